//! What can go wrong, by whose part it is.

use std::path::{Path, PathBuf};

use va_catalog::CollectionRef;
use va_catalog::store::CatalogError;
use va_connectors::objects::ObjectError;
use va_fulltext::TextError;
use va_vector::VectorError;

/// An error of a shared index.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Objects(#[from] ObjectError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Vector(#[from] VectorError),
    /// The caller's mistake: rows that are not chunk rows.
    #[error("chunk rows: {0}")]
    Rows(#[from] arrow::error::ArrowError),
    /// The local disk.
    #[error("{doing} `{path}`: {source}", path = path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// An object that is no split, or not a whole one.
    #[error("split: {0}")]
    Damaged(String),
    /// A blocking task died: our mistake.
    #[error("split task: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl SplitError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    /// As an error of the seam of vectors.
    pub(crate) fn of(self, collection: &CollectionRef, action: &'static str) -> VectorError {
        match self {
            Self::Vector(error) => error,
            other => VectorError::Storage {
                collection: collection.clone(),
                action,
                source: Box::new(other),
            },
        }
    }
}
