//! What is done with a statement, and errors as PostgreSQL clients expect them.

use datafusion::sql::sqlparser::ast::{Set, Statement};
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError};

use crate::error::SqlError;

/// What a statement asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// To be planned; the engine refuses what does not only read.
    Rows,
    /// BEGIN, COMMIT, ROLLBACK.
    Transaction,
    /// A setting of this connection that has no effect outside it, or one that clients send and nobody needs.
    Setting,
    /// SHOW of a setting.
    Shown,
    /// Housekeeping without effect here; answered with this tag.
    Nothing(&'static str),
    /// A setting of the engine.
    Refused,
}

/// Settings that clients make when they connect. Others could change limits, so they are refused.
const SETTINGS: [&str; 15] = [
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "lock_timeout",
    "search_path",
    "standard_conforming_strings",
    "statement_timeout",
    "timezone",
];

pub(super) fn classify(statement: &Statement) -> Ask {
    match statement {
        Statement::StartTransaction { .. }
        | Statement::Commit { .. }
        | Statement::Rollback {
            savepoint: None, ..
        } => Ask::Transaction,
        Statement::Set(set) if is_harmless(set) => Ask::Setting,
        Statement::Set(Set::SetTransaction { .. }) => Ask::Nothing("SET"),
        Statement::Set(_) => Ask::Refused,
        Statement::ShowVariable { .. } => Ask::Shown,
        Statement::Discard { .. } => Ask::Nothing("DISCARD ALL"),
        Statement::Deallocate { .. } => Ask::Nothing("DEALLOCATE"),
        Statement::Reset(_) => Ask::Nothing("RESET"),
        _ => Ask::Rows,
    }
}

fn is_harmless(set: &Set) -> bool {
    match set {
        Set::SingleAssignment {
            hivevar: false,
            variable,
            values,
            ..
        } => {
            let variable = variable.to_string().to_lowercase();
            !values.is_empty() && SETTINGS.contains(&variable.as_str())
        }
        Set::SetTimeZone { .. } | Set::SetNames { .. } => true,
        _ => false,
    }
}

/// An error of the engine for a client.
pub(super) fn client_error(error: SqlError) -> PgWireError {
    // SQLSTATE codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
    let code = match &error {
        SqlError::Invalid(_) => "42000",
        SqlError::ReadOnly(_) => "25006",
        SqlError::Timeout { .. } | SqlError::Cancelled => "57014",
        SqlError::Memory(_) => "53200",
        SqlError::Failed(_) => "58000",
    };
    user_error("ERROR", code, &error.to_string())
}

/// An error after which the connection is closed.
pub(super) fn fatal(code: &str, message: &str) -> PgWireError {
    user_error("FATAL", code, message)
}

fn user_error(severity: &str, code: &str, message: &str) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new(
        severity.to_owned(),
        code.to_owned(),
        message.to_owned(),
    )))
}
