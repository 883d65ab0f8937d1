//! The language models that are loaded right now: each once, on first use, and dropped again when idle.
//!
//! As `crate::registry` does for embedding models; never starts a thread of its own for it: the caller decides when
//! [`Generators::unload_idle`] runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::generator::{ChatTokenizer, Generator, GeneratorOptions};
use crate::error::ModelError;
use crate::store::ModelStore;

/// Loads language models on first use and shares them.
#[derive(Debug)]
pub struct Generators {
    store: ModelStore,
    options: GeneratorOptions,
    loaded: Mutex<HashMap<String, Arc<Slot>>>,
}

/// A lock per model, so that loading one does not hold up the use of another.
#[derive(Debug, Default)]
struct Slot(Mutex<Held>);

/// What is in memory of a model.
#[derive(Debug, Default)]
struct Held {
    model: Option<Arc<Generator>>,
    /// Only while the model, which has one of its own, is not loaded.
    tokenizer: Option<ChatTokenizer>,
    used: Option<Instant>,
}

impl Generators {
    /// Nothing is loaded yet.
    pub fn new(store: ModelStore, options: GeneratorOptions) -> Self {
        Self {
            store,
            options,
            loaded: Mutex::default(),
        }
    }

    /// The store that models are loaded from.
    pub fn store(&self) -> &ModelStore {
        &self.store
    }

    /// The model `name`, loaded now when it was not. Others who ask meanwhile wait for the same load. Blocks.
    ///
    /// # Errors
    /// When the model is unknown, not pulled, damaged, or of a kind that cannot be run; the next call tries again.
    pub fn get(&self, name: &str) -> Result<Arc<Generator>, ModelError> {
        let slot = self.slot(name);
        let mut held = lock(&slot.0);
        held.used = Some(Instant::now());
        if let Some(model) = &held.model {
            return Ok(Arc::clone(model));
        }
        let dir = self.store.chat(name)?;
        let model = Arc::new(Generator::load(name, &dir, self.options)?);
        held.model = Some(Arc::clone(&model));
        held.tokenizer = None;
        Ok(model)
    }

    /// The tokenizer of the model `name`. Its weights are not loaded for it. Blocks.
    ///
    /// # Errors
    /// As for [`get`](Self::get).
    pub fn tokenizer(&self, name: &str) -> Result<ChatTokenizer, ModelError> {
        let slot = self.slot(name);
        let mut held = lock(&slot.0);
        held.used = Some(Instant::now());
        if let Some(model) = &held.model {
            return Ok(model.tokenizer());
        }
        if let Some(tokenizer) = &held.tokenizer {
            return Ok(tokenizer.clone());
        }
        let tokenizer = ChatTokenizer::load(&self.store.chat(name)?)?;
        held.tokenizer = Some(tokenizer.clone());
        Ok(tokenizer)
    }

    /// Drops models and tokenizers that nobody uses and that nobody asked for within `idle`; returns how many models.
    pub fn unload_idle(&self, idle: Duration) -> usize {
        let slots: Vec<_> = lock(&self.loaded)
            .iter()
            .map(|(name, slot)| (name.clone(), Arc::clone(slot)))
            .collect();
        let mut dropped = 0;
        for (name, slot) in slots {
            // A slot that is locked is loading, thus in use.
            let Ok(mut held) = slot.0.try_lock() else {
                continue;
            };
            if held.used.is_some_and(|used| used.elapsed() < idle) {
                continue;
            }
            held.tokenizer = None;
            let model = held.model.take_if(|model| Arc::strong_count(model) == 1);
            if model.is_some() {
                dropped += 1;
                tracing::info!(model = name, "idle model unloaded");
            }
        }
        dropped
    }

    fn slot(&self, name: &str) -> Arc<Slot> {
        Arc::clone(lock(&self.loaded).entry(name.to_owned()).or_default())
    }
}

/// A panic elsewhere leaves the map as it was: every change to it is a single assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
