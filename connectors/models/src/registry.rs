//! The models that are loaded right now: each once, on first use, and dropped again when idle.
//!
//! Relies on `load_embedder`; never starts a thread: the caller decides when [`Embedders::unload_idle`] runs.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::embedder::{Embedder, load_embedder, load_tokenizer};
use crate::error::ModelError;
use crate::store::ModelStore;
use crate::tokenizer::TextTokenizer;

/// Loads embedding models on first use and shares them.
#[derive(Debug)]
pub struct Embedders {
    store: ModelStore,
    loaded: Mutex<HashMap<String, Arc<Slot>>>,
}

/// A lock per model, so that loading one does not hold up the use of another.
#[derive(Debug, Default)]
struct Slot(Mutex<Held>);

/// What is in memory of a model.
#[derive(Debug, Default)]
struct Held {
    model: Option<Arc<dyn Embedder>>,
    /// Only while the model, which has one of its own, is not loaded.
    tokenizer: Option<Arc<TextTokenizer>>,
    used: Option<Instant>,
}

/// A model's tokenizer, from the loaded model or by itself.
#[derive(Debug, Clone)]
pub enum SharedTokenizer {
    OfModel(Arc<dyn Embedder>),
    Alone(Arc<TextTokenizer>),
}

impl Deref for SharedTokenizer {
    type Target = TextTokenizer;

    fn deref(&self) -> &TextTokenizer {
        match self {
            Self::OfModel(model) => model.tokenizer(),
            Self::Alone(tokenizer) => tokenizer,
        }
    }
}

impl Embedders {
    /// Nothing is loaded yet.
    pub fn new(store: ModelStore) -> Self {
        Self {
            store,
            loaded: Mutex::default(),
        }
    }

    /// The store that models are loaded from.
    pub fn store(&self) -> &ModelStore {
        &self.store
    }

    /// The model `reference` (see [`load_embedder`]), loaded now when it was not. Others who ask meanwhile wait for the
    /// same load. Blocks.
    ///
    /// # Errors
    /// Those of [`load_embedder`]; the next call tries again.
    pub fn get(&self, reference: &str) -> Result<Arc<dyn Embedder>, ModelError> {
        let slot = self.slot(reference);
        let mut held = lock(&slot.0);
        held.used = Some(Instant::now());
        if let Some(model) = &held.model {
            return Ok(Arc::clone(model));
        }
        let model = load_embedder(reference, &self.store)?;
        held.model = Some(Arc::clone(&model));
        held.tokenizer = None;
        Ok(model)
    }

    /// The tokenizer of the model `reference`. Its weights are not loaded for it. Blocks.
    ///
    /// # Errors
    /// When the model is unknown, not pulled or damaged; the next call tries again.
    pub fn tokenizer(&self, reference: &str) -> Result<SharedTokenizer, ModelError> {
        let slot = self.slot(reference);
        let mut held = lock(&slot.0);
        held.used = Some(Instant::now());
        if let Some(model) = &held.model {
            return Ok(SharedTokenizer::OfModel(Arc::clone(model)));
        }
        if let Some(tokenizer) = &held.tokenizer {
            return Ok(SharedTokenizer::Alone(Arc::clone(tokenizer)));
        }
        let tokenizer = Arc::new(load_tokenizer(reference, &self.store)?);
        held.tokenizer = Some(Arc::clone(&tokenizer));
        Ok(SharedTokenizer::Alone(tokenizer))
    }

    /// Drops models and tokenizers that nobody holds and that nobody asked for within `idle`; returns how many models.
    /// What is still held elsewhere stays, since dropping our share of it would free nothing and load it twice.
    pub fn unload_idle(&self, idle: Duration) -> usize {
        let mut dropped = 0;
        for (name, slot) in self.slots() {
            // A slot that is locked is loading, thus in use.
            let Ok(mut held) = slot.0.try_lock() else {
                continue;
            };
            if held.used.is_some_and(|used| used.elapsed() < idle) {
                continue;
            }
            held.tokenizer
                .take_if(|tokenizer| Arc::strong_count(tokenizer) == 1);
            let model = held.model.take_if(|model| Arc::strong_count(model) == 1);
            if model.is_some() {
                dropped += 1;
                tracing::info!(model = name, "idle model unloaded");
            }
        }
        dropped
    }

    /// References of the models that are loaded.
    pub fn loaded(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .slots()
            .into_iter()
            .filter(|(_, slot)| slot.0.try_lock().is_ok_and(|held| held.model.is_some()))
            .map(|(name, _)| name)
            .collect();
        names.sort();
        names
    }

    fn slot(&self, reference: &str) -> Arc<Slot> {
        Arc::clone(lock(&self.loaded).entry(reference.to_owned()).or_default())
    }

    fn slots(&self) -> Vec<(String, Arc<Slot>)> {
        lock(&self.loaded)
            .iter()
            .map(|(name, slot)| (name.clone(), Arc::clone(slot)))
            .collect()
    }
}

/// A panic elsewhere leaves the map as it was: every change to it is a single assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
