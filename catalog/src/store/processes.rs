//! The processes that share the catalog: which there are, what each tells of itself, and which of them does what only one
//! needs to do.
//!
//! Both rest on clocks of several machines and on pauses being short. So a process that is listed may be dead, and two
//! processes may hold one lease for a while: a lease saves work, it protects nothing, and whatever is done under one has
//! to be right when two do it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::database::Catalog;
use super::documents::read_number;
use super::error::CatalogError;
use super::query::{Row, query};

/// How long a process that says nothing more is remembered.
const REMEMBERED_MS: i64 = 24 * 3_600_000;

/// A process at work on this catalog.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Unique among all processes, also over restarts.
    pub id: String,
    /// What it was started as: `up`, `worker`, `serve`.
    pub role: String,
    pub host: String,
    pub pid: u32,
    /// Of the program.
    pub version: String,
    /// What it tells of itself, a JSON object; what is in it is agreed among processes.
    pub report: Value,
    /// UTC milliseconds.
    pub started_at: i64,
    /// When it last reported.
    pub seen_at: i64,
}

impl Catalog {
    /// Notes what a process tells of itself, and that it was seen now. `seen_at` of `process` says nothing.
    pub async fn report_process(&self, process: &Process) -> Result<(), CatalogError> {
        let now = self.now_ms();
        query(
            "INSERT INTO processes (id, role, host, pid, version, report, started_at, seen_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO UPDATE SET \
             report = excluded.report, seen_at = excluded.seen_at",
        )
        .bind(&process.id)
        .bind(&process.role)
        .bind(&process.host)
        .bind(i64::from(process.pid))
        .bind(&process.version)
        .bind(process.report.to_string())
        .bind(process.started_at)
        .bind(now)
        .execute(self.write_installation())
        .await?;
        query("DELETE FROM processes WHERE seen_at < $1")
            .bind(now - REMEMBERED_MS)
            .execute(self.write_installation())
            .await?;
        Ok(())
    }

    /// The processes that were seen within `age`, oldest start first.
    pub async fn processes(&self, age: Duration) -> Result<Vec<Process>, CatalogError> {
        let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        let rows = query(
            "SELECT id, role, host, pid, version, report, started_at, seen_at FROM processes \
             WHERE seen_at >= $1 ORDER BY started_at, id",
        )
        .bind(self.now_ms().saturating_sub(age))
        .fetch_all(self.read_installation())
        .await?;
        rows.iter().map(read_process).collect()
    }

    /// Forgets a process that ends, with its leases.
    pub async fn forget_process(&self, id: &str) -> Result<(), CatalogError> {
        query("DELETE FROM leases WHERE holder = $1")
            .bind(id)
            .execute(self.write_installation())
            .await?;
        query("DELETE FROM processes WHERE id = $1")
            .bind(id)
            .execute(self.write_installation())
            .await?;
        Ok(())
    }

    /// Takes the lease `name` for `length`, or holds it on; false when another process has it.
    pub async fn lease(
        &self,
        name: &str,
        holder: &str,
        length: Duration,
    ) -> Result<bool, CatalogError> {
        let now = self.now_ms();
        let length = i64::try_from(length.as_millis()).unwrap_or(i64::MAX);
        let taken = query(
            "INSERT INTO leases (name, holder, expires_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE SET \
             holder = excluded.holder, expires_at = excluded.expires_at \
             WHERE leases.holder = excluded.holder OR leases.expires_at <= $4",
        )
        .bind(name)
        .bind(holder)
        .bind(now.saturating_add(length))
        .bind(now)
        .execute(self.write_installation())
        .await?;
        Ok(taken > 0)
    }

    /// Gives the lease back before its time; nothing happens when another process has it.
    pub async fn end_lease(&self, name: &str, holder: &str) -> Result<(), CatalogError> {
        query("DELETE FROM leases WHERE name = $1 AND holder = $2")
            .bind(name)
            .bind(holder)
            .execute(self.write_installation())
            .await?;
        Ok(())
    }
}

fn read_process(row: &Row) -> Result<Process, CatalogError> {
    let report: String = row.try_get("report")?;
    Ok(Process {
        id: row.try_get("id")?,
        role: row.try_get("role")?,
        host: row.try_get("host")?,
        pid: read_number(row, "pid")?,
        version: row.try_get("version")?,
        report: serde_json::from_str(&report)
            .map_err(|_| CatalogError::corrupt("report", &report))?,
        started_at: row.try_get("started_at")?,
        seen_at: row.try_get("seen_at")?,
    })
}
