//! A question's turn: few are searched for at a time, so that one that is worked on is done soon and one that waits costs no
//! memory. Turns are for the processor; a question that waits for a model gives its turn back meanwhile.

use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{RagError, ms};

/// How long a question waits for its turn, each time.
pub const TURN_MAX: Duration = Duration::from_secs(60);

/// Whose turn it is, until it is dropped.
pub struct Turn<'a> {
    turns: &'a Semaphore,
    held: Option<SemaphorePermit<'a>>,
    /// Milliseconds waited so far, all times together.
    pub waited_ms: f64,
}

impl<'a> Turn<'a> {
    /// Waits for a turn.
    ///
    /// # Errors
    /// [`RagError::Busy`] when it does not come in time.
    pub async fn wait(turns: &'a Semaphore) -> Result<Self, RagError> {
        let mut turn = Self {
            turns,
            held: None,
            waited_ms: 0.0,
        };
        turn.again().await?;
        Ok(turn)
    }

    /// Lets others work until [`again`](Self::again).
    pub fn give_back(&mut self) {
        self.held = None;
    }

    /// Waits for another turn, or does nothing while it holds one.
    ///
    /// # Errors
    /// [`RagError::Busy`] when it does not come in time.
    pub async fn again(&mut self) -> Result<(), RagError> {
        if self.held.is_some() {
            return Ok(());
        }
        let began = Instant::now();
        let turn = tokio::time::timeout(TURN_MAX, self.turns.acquire()).await;
        self.waited_ms += ms(began);
        // Nobody closes the semaphore.
        self.held = turn.map_err(|_| RagError::Busy(TURN_MAX.as_secs()))?.ok();
        Ok(())
    }
}
