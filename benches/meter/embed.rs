//! Our embedder on texts of a file, in the batches that are asked for.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};
use va_models::{Embedder, ModelStore, NoProgress, Role, default_model_dir, load_embedder};

use crate::Failure;

/// Embeds every text of a file once.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embed {
    model: String,
    /// A JSON list of batches, each a list of texts; each batch is one call.
    batches: PathBuf,
    /// Answer with the vectors too.
    #[serde(default)]
    vectors: bool,
}

/// Models that have been loaded, so that only the first command waits for it.
#[derive(Default)]
pub struct Models {
    loaded: HashMap<String, Arc<dyn Embedder>>,
    texts: HashMap<PathBuf, Vec<Vec<String>>>,
}

impl Models {
    pub fn embed(&mut self, asked: &Embed) -> Result<Value, Failure> {
        if !self.loaded.contains_key(&asked.model) {
            let store = ModelStore::open(default_model_dir())?;
            if store.lock().get(&asked.model).is_some() {
                store.pull(&asked.model, &NoProgress)?;
            }
            let model = load_embedder(&asked.model, &store)?;
            model.embed(&["warm-up"], Role::Passage)?;
            self.loaded.insert(asked.model.clone(), model);
        }
        if !self.texts.contains_key(&asked.batches) {
            let text = std::fs::read_to_string(&asked.batches)?;
            self.texts
                .insert(asked.batches.clone(), serde_json::from_str(&text)?);
        }
        let (model, batches) = (&self.loaded[&asked.model], &self.texts[&asked.batches]);
        let mut vectors = Vec::new();
        let cpu = cpu_seconds();
        let started = Instant::now();
        for batch in batches {
            let texts: Vec<&str> = batch.iter().map(String::as_str).collect();
            let found = model.embed(&texts, Role::Passage)?;
            if asked.vectors {
                vectors.extend(found);
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(json!({
            "texts": batches.iter().map(Vec::len).sum::<usize>(), "seconds": seconds,
            "cpu_seconds": cpu_seconds() - cpu, "vectors": vectors,
        }))
    }
}

/// Processor time of this process. Other programs take time away from a run, but not from this figure.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    // Linux counts in hundredths of a second on every platform that it shows to programs.
    ticks / 100.0
}
