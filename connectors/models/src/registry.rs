//! The models that are loaded right now: each once, on first use, and dropped again when idle.
//!
//! Relies on `load_embedder`; never starts a thread: the caller decides when [`Embedders::unload_idle`] runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::embedder::{Embedder, load_embedder};
use crate::error::ModelError;
use crate::store::ModelStore;

/// Loads embedding models on first use and shares them.
#[derive(Debug)]
pub struct Embedders {
    store: ModelStore,
    loaded: Mutex<HashMap<String, Arc<Slot>>>,
}

/// A lock per model, so that loading one does not hold up the use of another.
#[derive(Debug, Default)]
struct Slot(Mutex<Option<Loaded>>);

#[derive(Debug)]
struct Loaded {
    model: Arc<dyn Embedder>,
    used: Instant,
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
        let slot = Arc::clone(lock(&self.loaded).entry(reference.to_owned()).or_default());
        let mut slot = lock(&slot.0);
        if let Some(loaded) = slot.as_mut() {
            loaded.used = Instant::now();
            return Ok(Arc::clone(&loaded.model));
        }
        let model = load_embedder(reference, &self.store)?;
        *slot = Some(Loaded {
            model: Arc::clone(&model),
            used: Instant::now(),
        });
        Ok(model)
    }

    /// Drops models that nobody holds and that nobody asked for within `idle`; returns how many. A model that is still
    /// held elsewhere stays, since dropping our share of it would free nothing and load it twice.
    pub fn unload_idle(&self, idle: Duration) -> usize {
        let slots: Vec<(String, Arc<Slot>)> = lock(&self.loaded)
            .iter()
            .map(|(name, slot)| (name.clone(), Arc::clone(slot)))
            .collect();
        let mut dropped = 0;
        for (name, slot) in slots {
            // A slot that is locked is loading, thus in use.
            let Ok(mut slot) = slot.0.try_lock() else {
                continue;
            };
            let unused = slot
                .as_ref()
                .is_some_and(|l| l.used.elapsed() >= idle && Arc::strong_count(&l.model) == 1);
            if unused {
                *slot = None;
                dropped += 1;
                tracing::info!(model = name, "idle model unloaded");
            }
        }
        dropped
    }

    /// References of the models that are loaded.
    pub fn loaded(&self) -> Vec<String> {
        let slots: Vec<(String, Arc<Slot>)> = lock(&self.loaded)
            .iter()
            .map(|(name, slot)| (name.clone(), Arc::clone(slot)))
            .collect();
        let mut names: Vec<String> = slots
            .into_iter()
            .filter(|(_, slot)| slot.0.try_lock().is_ok_and(|s| s.is_some()))
            .map(|(name, _)| name)
            .collect();
        names.sort();
        names
    }
}

/// A panic elsewhere leaves the map as it was: every change to it is a single assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
