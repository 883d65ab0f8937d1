//! What can go wrong, by what the caller does next.

use arrow::error::ArrowError;
use va_catalog::CollectionRef;

/// An error of a vector store.
#[derive(Debug, thiserror::Error)]
pub enum VectorError {
    /// The request is wrong; the same request fails again. Show it to whoever made it.
    #[error("{0}")]
    Invalid(String),
    /// The collection was indexed with another model.
    #[error(
        "collection `{collection}` holds vectors of {has} dimensions, got {got}; \
         use the model it was indexed with, or re-index it with the new one"
    )]
    Dimensions {
        collection: CollectionRef,
        has: usize,
        got: usize,
    },
    /// Others wrote to the collection at the same time, again and again. Try again later.
    #[error("collection `{collection}` is busy: {action} gave up after {attempts} attempts")]
    Busy {
        collection: CollectionRef,
        action: &'static str,
        attempts: usize,
    },
    /// The disk or the stored data. What was being written may or may not be there; writing it again is safe.
    #[error("{action} of collection `{collection}`: {source}")]
    Storage {
        collection: CollectionRef,
        action: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The directory of the store cannot be used; an operator must look at it.
    #[error("{action} in `{dir}`: {source}")]
    Directory {
        dir: String,
        action: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl VectorError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Storage { .. })
    }

    pub(crate) fn storage(
        collection: &CollectionRef,
        action: &'static str,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Storage {
            collection: collection.clone(),
            action,
            source: error.into(),
        }
    }

    pub(crate) fn rows(error: ArrowError) -> Self {
        Self::Invalid(format!("the rows are not chunk rows: {error}"))
    }
}
