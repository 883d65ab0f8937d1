//! The seam: bytes to batch, batch to bytes.

use arrow::array::BinaryArray;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;

/// What was read of many payloads.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The rows, in the order of their payloads, with the columns that were asked for.
    pub batch: RecordBatch,
    /// Which payload each row is of. `None`: row `i` is payload `i`, and none failed.
    pub payloads: Option<Vec<u32>>,
    /// Payloads that could not be read, each by itself, in order.
    pub failures: Vec<Failure>,
}

/// A payload that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its number among those that were handed over.
    pub payload: usize,
    pub reason: String,
}

/// A batch as payloads.
#[derive(Debug, Clone)]
pub struct Encoded {
    pub payloads: BinaryArray,
    /// Whether payload `i` is row `i`; else one payload holds the whole batch.
    pub by_row: bool,
}

/// Reads payloads.
///
/// Order of calls: `prepare` with payloads, then `decode` with the same. Neither keeps anything of them.
#[async_trait]
pub trait Decoder: Send {
    /// Fetches from outside what these payloads need to be read (the schemas that they name). Nothing by default.
    async fn prepare(&mut self, _payloads: &BinaryArray) -> Result<(), FormatError> {
        Ok(())
    }

    /// Reads them. No I/O; takes time on the CPU. A payload that cannot be read is a [`Failure`] and costs only itself; an
    /// error is about all of them. A null is no payload and fails.
    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded, FormatError>;
}

/// Writes payloads.
#[async_trait]
pub trait Encoder: Send {
    /// Asks or tells the outside what has to be known before the first batch (registers the schema). May be called again.
    async fn prepare(&mut self) -> Result<(), FormatError> {
        Ok(())
    }

    /// Writes a batch of the schema that the encoder was made for. No I/O.
    fn encode(&mut self, batch: &RecordBatch) -> Result<Encoded, FormatError>;
}

/// What went wrong, by what the caller must do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FormatError {
    /// The options, a schema or the data do not fit; repeating would fail again. The text says what to do.
    #[error("{0}")]
    Invalid(String),
    /// An outside system (the registry) did not answer; later it may.
    #[error("{0}")]
    Unavailable(String),
}

impl FormatError {
    /// Wraps an error of a library with what was being done.
    pub(crate) fn invalid(what: &str, error: impl std::fmt::Display) -> Self {
        Self::Invalid(format!("{what}: {error}"))
    }
}
