//! What can go wrong in the catalog, by what the caller must do next.

use crate::ids::InvalidName;

/// An error of the catalog store.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The named thing does not exist in this tenant: report it, a retry does not help.
    #[error("{kind} `{name}` does not exist")]
    NotFound { kind: &'static str, name: String },
    /// The name is taken: choose another or use what exists.
    #[error("{kind} `{name}` exists already")]
    Exists { kind: &'static str, name: String },
    /// The thing is in a state that does not permit this: look at the state, then decide.
    #[error(
        "{kind} `{name}` is {from} and cannot become {to}; from {from} it can become {allowed}"
    )]
    Conflict {
        kind: &'static str,
        name: String,
        from: String,
        to: String,
        /// The permitted states, comma separated, or `nothing`.
        allowed: String,
    },
    /// The input is wrong: change it.
    #[error("{0}")]
    Invalid(String),
    /// The database was written by a newer `va`: install that version or use another data directory.
    #[error(
        "the catalog `{path}` was written by a newer version (it has migration {found}, this program knows up to {known}); \
         use that version or another data directory"
    )]
    NewerDatabase {
        path: String,
        found: i64,
        known: i64,
    },
    /// The database itself failed: retry when it is busy, else look at the disk.
    #[error("{action}: {source}")]
    Storage {
        action: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl CatalogError {
    pub(crate) fn not_found(kind: &'static str, name: impl ToString) -> Self {
        Self::NotFound {
            kind,
            name: name.to_string(),
        }
    }

    pub(crate) fn exists(kind: &'static str, name: impl ToString) -> Self {
        Self::Exists {
            kind,
            name: name.to_string(),
        }
    }

    /// `action` is a verb phrase, so that the message reads as a sentence.
    pub(crate) fn storage(
        action: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Storage {
            action: action.into(),
            source: source.into(),
        }
    }

    /// A stored value that this program cannot read.
    pub(crate) fn corrupt(column: &str, value: impl ToString) -> Self {
        Self::storage(
            "read the catalog",
            format!("column `{column}` holds `{}`", value.to_string()),
        )
    }
}

impl From<sqlx::Error> for CatalogError {
    fn from(source: sqlx::Error) -> Self {
        Self::storage("use the catalog database", source)
    }
}

impl From<InvalidName> for CatalogError {
    fn from(error: InvalidName) -> Self {
        Self::Invalid(error.to_string())
    }
}
