//! What can go wrong with a query, by what the caller does next.

use std::time::Duration;

use datafusion::error::DataFusionError;

/// An error of a query.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SqlError {
    /// The statement is wrong: an unknown name, bad syntax, a type that does not fit. Change it.
    #[error("{0}")]
    Invalid(String),
    /// The statement would change something.
    #[error("`{0}` is refused: SQL here only reads; use SELECT, EXPLAIN, SHOW or DESCRIBE")]
    ReadOnly(String),
    /// The query ran into its deadline.
    #[error(
        "the query took longer than {after:?} and was ended; add a WHERE or LIMIT, or raise the limit"
    )]
    Timeout { after: Duration },
    /// Whoever asked has changed their mind.
    #[error("the query was cancelled")]
    Cancelled,
    /// The memory that all queries share is used up. Ask for less, or try again when others have ended.
    #[error("not enough memory for this query: {0}; select fewer rows or columns, or try again")]
    Memory(String),
    /// The data could not be read, or a value could not be computed.
    #[error("{0}")]
    Failed(String),
}

impl From<DataFusionError> for SqlError {
    fn from(error: DataFusionError) -> Self {
        match error.find_root() {
            // Ours, passed through DataFusion.
            DataFusionError::External(inner) => match inner.downcast_ref::<SqlError>() {
                Some(ours) => ours.clone(),
                None => Self::Failed(inner.to_string()),
            },
            DataFusionError::Plan(message) | DataFusionError::Configuration(message) => {
                Self::Invalid(message.clone())
            }
            DataFusionError::SQL(error, _) => Self::Invalid(error.to_string()),
            DataFusionError::SchemaError(error, _) => Self::Invalid(error.to_string()),
            DataFusionError::NotImplemented(message) => {
                Self::Invalid(format!("not supported: {message}"))
            }
            DataFusionError::ResourcesExhausted(message) => Self::Memory(message.clone()),
            DataFusionError::Execution(message) => Self::Failed(message.clone()),
            DataFusionError::ArrowError(error, _) => Self::Failed(error.to_string()),
            other => Self::Failed(other.strip_backtrace()),
        }
    }
}

impl From<SqlError> for DataFusionError {
    fn from(error: SqlError) -> Self {
        Self::External(Box::new(error))
    }
}

/// A source that could not be read, as DataFusion carries it.
pub(crate) fn unreadable(error: impl std::fmt::Display) -> DataFusionError {
    SqlError::Failed(error.to_string()).into()
}

/// `; did you mean ...` for the nearest of `known`, or the list of them when none is near.
pub(crate) fn suggestion(name: &str, known: &[String]) -> String {
    let near = known
        .iter()
        .map(|other| (strsim::damerau_levenshtein(name, other), other))
        .min()
        .filter(|(distance, _)| *distance <= 1 + name.chars().count() / 3);
    match near {
        Some((_, other)) => format!("; did you mean `{other}`?"),
        None if known.is_empty() => "; there is none yet".to_owned(),
        None => {
            const SHOWN: usize = 10;
            let more = if known.len() > SHOWN { ", ..." } else { "" };
            let shown: Vec<&str> = known.iter().take(SHOWN).map(String::as_str).collect();
            format!("; there is {}{more}", shown.join(", "))
        }
    }
}
