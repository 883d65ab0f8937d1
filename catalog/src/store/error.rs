//! What can go wrong in the catalog, by what the caller must do next.

use super::quotas::Quota;
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
    /// The tenant has no room for more of it: remove some, or have the limit raised.
    #[error(
        "the tenant's quota of {quota} is used up: it has {used} of {limit}, and this needs {needs} more; remove some, or \
         ask the operators of the installation for more (`va tenant quota`)"
    )]
    QuotaExceeded {
        quota: Quota,
        limit: u64,
        used: u64,
        /// How much more there was to be.
        needs: u64,
    },
    /// The input is wrong: change it.
    #[error("{0}")]
    Invalid(String),
    /// What was asked for is sealed, and this process does not have the key: give it the key, or ask another process.
    #[error("{0}")]
    Locked(String),
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
    /// The database itself failed: try again when [`CatalogError::is_retriable`] says so, else look at its disk or server.
    #[error("{action}: {source}")]
    Storage {
        action: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl CatalogError {
    /// Whether the same call may succeed soon: the database was busy, restarting or out of reach. What it was to write may
    /// have been written, if the answer to the commit is what was lost.
    pub fn is_retriable(&self) -> bool {
        let Self::Storage { source, .. } = self else {
            return false;
        };
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(source.as_ref());
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<sqlx::Error>() {
                return passes(error);
            }
            cause = error.source();
        }
        false
    }

    /// Whether the database refuses what it was to keep: a text with a NUL, a number that is too large. Change it.
    pub fn is_unstorable(&self) -> bool {
        let Self::Storage { source, .. } = self else {
            return false;
        };
        let error = source.downcast_ref::<sqlx::Error>();
        let Some(sqlx::Error::Database(error)) = error else {
            return false;
        };
        // Class 22 of PostgreSQL: data exceptions. SQLite keeps what it is given.
        error
            .code()
            .is_some_and(|code| code.len() == 5 && code.starts_with("22"))
    }

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

/// Whether the cause of the error passes by itself.
fn passes(error: &sqlx::Error) -> bool {
    match error {
        // A certificate that is not accepted stays so.
        sqlx::Error::Io(error) => error.kind() != std::io::ErrorKind::InvalidData,
        sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code_passes(&code)),
        _ => false,
    }
}

/// Codes of PostgreSQL have five characters, of which the first two are the class; those of SQLite are numbers, of which
/// the lowest byte is the kind.
fn code_passes(code: &str) -> bool {
    const BUSY: u32 = 5;
    const LOCKED: u32 = 6;
    match code {
        // A lock that was waited for in vain, and a transaction that stood still for too long.
        "55P03" | "25P03" => true,
        // A full disk does not become empty by asking again.
        "53100" => false,
        _ if code.len() == 5 => {
            // Connection lost; rolled back because of others; out of resources; stopped by an operator.
            ["08", "40", "53", "57"].contains(&&code[..2])
        }
        _ => code
            .parse::<u32>()
            .is_ok_and(|code| [BUSY, LOCKED].contains(&(code & 0xff))),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_retriable() {
        for code in [
            "5", "517", "6", "262", "40001", "40P01", "55P03", "57P01", "08006", "53300",
        ] {
            assert!(code_passes(code), "{code}");
        }
        // A full disk, a damaged file, a duplicate key, a wrong password, a missing table.
        for code in ["13", "53100", "11", "2067", "23505", "28P01", "42P01", ""] {
            assert!(!code_passes(code), "{code}");
        }
        let lost = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(CatalogError::from(sqlx::Error::Io(lost)).is_retriable());
        assert!(!CatalogError::from(sqlx::Error::RowNotFound).is_retriable());
        assert!(!CatalogError::Invalid(String::new()).is_retriable());
    }
}
