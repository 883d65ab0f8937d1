//! The processes of one installation, as each tells of itself: who runs which pipeline, and how that goes.
//!
//! A process that shares its catalog writes a report every [`REPORT_INTERVAL`]; who shows a pipeline adds them up. What
//! is told here is for people. Nothing is decided by it: who owns which partition is the log's business.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use va_catalog::PipelineName;
use va_catalog::store::{CatalogError, Process};

use crate::platform::{Platform, now_ms};

const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// A process that has been silent for longer is not counted.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// Reports until the platform stops, then says goodbye.
pub async fn run(platform: Arc<Platform>) {
    let mut ticks = tokio::time::interval(REPORT_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = platform.stopping().cancelled() => break,
        }
        if let Err(error) = platform.catalog.report_process(&report(&platform)).await {
            tracing::debug!(%error, "the report of this process");
        }
    }
}

/// This process, as it is now.
fn report(platform: &Platform) -> Process {
    let pipelines: Map<String, Value> = platform
        .runtime
        .names()
        .into_iter()
        .filter_map(|name| {
            let doing = platform.runtime.doing(&name).ok()?;
            Some((name.to_string(), serde_json::to_value(doing).ok()?))
        })
        .collect();
    Process {
        id: platform.process.clone(),
        role: platform.role.as_str().to_owned(),
        host: va_catalog::store::host_name(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        report: json!({"pipelines": pipelines}),
        started_at: platform.started_at_ms,
        seen_at: now_ms(),
    }
}

/// The processes of this installation that are alive, this one as of now.
pub async fn alive(platform: &Platform) -> Result<Vec<Process>, CatalogError> {
    let mut processes = if platform.catalog.is_shared() {
        platform.catalog.processes(SEEN_WITHIN).await?
    } else {
        Vec::new()
    };
    processes.retain(|process| process.id != platform.process);
    processes.push(report(platform));
    Ok(processes)
}

/// What a pipeline is doing in all processes together: the worst of their states, the sum of their counts, and each of
/// them under `workers`. `None` where nobody runs it.
pub fn doing(processes: &[Process], name: &PipelineName) -> Option<Value> {
    let mut whole: Option<Value> = None;
    let mut workers = Vec::new();
    for process in processes {
        let Some(part) = process.report["pipelines"].get(name.as_str()) else {
            continue;
        };
        workers.push(json!({
            "host": process.host, "pid": process.pid, "role": process.role, "version": process.version,
            "state": part["state"], "reason": part["reason"],
            "last_checkpoint_at_ms": part["last_checkpoint_at_ms"],
        }));
        match &mut whole {
            None => whole = Some(part.clone()),
            Some(whole) => add(whole, part),
        }
    }
    let mut whole = whole?;
    whole["workers"] = json!(workers);
    Some(whole)
}

/// From what needs nobody to what needs a person.
const STATES: [&str; 4] = ["running", "stopped", "restarting", "failed"];

fn add(whole: &mut Value, part: &Value) {
    let rank = |state: &Value| STATES.iter().position(|known| state == known);
    if rank(&part["state"]) > rank(&whole["state"]) {
        whole["state"] = part["state"].clone();
        whole["reason"] = part["reason"].clone();
    }
    for key in [
        "tasks",
        "nodes",
        "conservation_violations",
        "state_restoring",
    ] {
        sum(&mut whole[key], &part[key]);
    }
    for key in ["last_checkpoint_at_ms", "last_checkpoint_seconds", "queues"] {
        most(&mut whole[key], &part[key]);
    }
}

/// Adds numbers, also those inside objects.
fn sum(whole: &mut Value, part: &Value) {
    merge(whole, part, &|a, b| match (a.as_u64(), b.as_u64()) {
        (Some(a), Some(b)) => json!(a + b),
        _ => json!(a.as_f64().unwrap_or(0.0) + b.as_f64().unwrap_or(0.0)),
    });
}

/// Keeps the greater numbers, also of those inside objects.
fn most(whole: &mut Value, part: &Value) {
    merge(whole, part, &|a, b| {
        if b.as_f64() > a.as_f64() {
            b.clone()
        } else {
            a.clone()
        }
    });
}

fn merge(whole: &mut Value, part: &Value, with: &impl Fn(&Value, &Value) -> Value) {
    match (&mut *whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (key, part) in part {
                match whole.get_mut(key) {
                    Some(whole) => merge(whole, part, with),
                    None => {
                        whole.insert(key.clone(), part.clone());
                    }
                }
            }
        }
        (Value::Null, part) => *whole = part.clone(),
        (_, Value::Null) => {}
        (a, b) => *whole = with(a, b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, pipeline: Value) -> Process {
        Process {
            id: pid.to_string(),
            role: "worker".to_owned(),
            host: "h".to_owned(),
            pid,
            version: "0".to_owned(),
            report: json!({"pipelines": {"p": pipeline}}),
            started_at: 0,
            seen_at: 0,
        }
    }

    #[test]
    fn processes_add_up() {
        let name = PipelineName::new("p").expect("a name");
        let running = |rows: u64, at: Value| {
            json!({"state": "running", "tasks": 1, "nodes": {"a": {"rows_in": rows}}, "queues": {"a": 0.5},
                "conservation_violations": 0, "last_checkpoint_at_ms": at})
        };
        let processes = [
            process(1, running(3, json!(null))),
            process(
                2,
                json!({"state": "failed", "reason": "why", "tasks": 1, "nodes": {}}),
            ),
            process(3, running(4, json!(9))),
        ];
        let whole = doing(&processes, &name).expect("it runs");
        assert_eq!(whole["state"], "failed");
        assert_eq!(whole["reason"], "why");
        assert_eq!(whole["tasks"], 3);
        assert_eq!(whole["nodes"]["a"]["rows_in"], 7);
        assert_eq!(whole["last_checkpoint_at_ms"], 9);
        assert_eq!(whole["workers"].as_array().map(Vec::len), Some(3));
        assert!(doing(&processes, &PipelineName::new("q").expect("a name")).is_none());
    }
}
