//! `va pipeline top`: what pipelines are doing right now, in rows a second, until Ctrl-C.
//!
//! Rates are differences of two answers of the server, so the first screen has none. Counts that went down, because a
//! process was restarted, start anew.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::client::{Client, Failure, Outcome, encode};
use super::table::{cell, print};
use crate::platform::now_ms;

/// Live rates of all pipelines, or of the nodes of one, until Ctrl-C.
#[derive(Args)]
#[command(after_help = "Example: va pipeline top index --interval 5")]
pub struct Top {
    /// Show the nodes of this pipeline.
    name: Option<String>,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 2.0)]
    interval: f64,
    /// Stop after so many screens.
    #[arg(long)]
    count: Option<u64>,
    /// One JSON object a look, instead of a table.
    #[arg(long)]
    json: bool,
}

/// A counter's name (pipeline, node, what) and its value.
type Counters = BTreeMap<(String, String, &'static str), u64>;

/// Rows a second since the last look.
#[derive(Default)]
struct Rates {
    last: Option<(Instant, Counters)>,
    rates: BTreeMap<(String, String, &'static str), f64>,
}

impl Rates {
    fn look(&mut self, pipelines: &[Value], now: Instant) {
        let mut counters = Counters::new();
        for pipeline in pipelines {
            for (node, counts) in pipeline["nodes"].as_object().into_iter().flatten() {
                for what in ["rows_in", "rows_out", "dead_lettered"] {
                    let key = (cell(&pipeline["name"]), node.clone(), what);
                    counters.insert(key, counts[what].as_u64().unwrap_or(0));
                }
            }
        }
        self.rates.clear();
        if let Some((at, last)) = &self.last {
            let seconds = now.duration_since(*at).as_secs_f64().max(1e-3);
            for (key, count) in &counters {
                // A count that is new or went down begins at zero.
                let before = last.get(key).filter(|before| *before <= count);
                let rows = count - before.unwrap_or(&0);
                self.rates.insert(key.clone(), rows as f64 / seconds);
            }
        }
        self.last = Some((now, counters));
    }

    fn of(&self, pipeline: &str, node: &str, what: &'static str) -> Option<f64> {
        let key = (pipeline.to_owned(), node.to_owned(), what);
        self.rates.get(&key).copied()
    }

    /// Of the node where it is highest.
    fn highest(&self, pipeline: &str, what: &'static str) -> Option<f64> {
        let all = self.rates.iter();
        all.filter(|((name, _, counter), _)| name == pipeline && *counter == what)
            .map(|(_, rate)| *rate)
            .max_by(f64::total_cmp)
    }
}

pub async fn run(client: &Client, top: &Top) -> Outcome<()> {
    if !(0.1..=3600.0).contains(&top.interval) {
        return Err(Failure::usage(format!(
            "`--interval {}`: use 0.1 to 3600 seconds",
            top.interval
        )));
    }
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(top.interval));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut rates = Rates::default();
    let mut left = top.count.unwrap_or(u64::MAX);
    while left > 0 {
        tokio::select! {
            _ = ticks.tick() => {}
            () = super::up::wait_for_signal() => return Ok(()),
        }
        let pipelines = match &top.name {
            Some(name) => {
                let path = format!("/api/v1/pipelines/{}", encode(name));
                vec![client.get(&path).await?]
            }
            None => {
                let list: Value = client.get("/api/v1/pipelines").await?;
                list["items"].as_array().cloned().unwrap_or_default()
            }
        };
        rates.look(&pipelines, Instant::now());
        if top.json {
            println!("{}", as_json(&pipelines, &rates));
        } else {
            if std::io::stdout().is_terminal() {
                // Home and clear, as `top` does.
                print!("\x1b[H\x1b[2J");
            }
            match (&top.name, pipelines.first()) {
                (Some(_), Some(pipeline)) => one(pipeline, &rates),
                _ => all(&pipelines, &rates),
            }
        }
        left -= 1;
    }
    Ok(())
}

fn as_json(pipelines: &[Value], rates: &Rates) -> Value {
    let pipelines: Vec<Value> = pipelines
        .iter()
        .map(|pipeline| {
            let name = cell(&pipeline["name"]);
            let nodes: serde_json::Map<String, Value> = nodes(pipeline)
                .map(|node| {
                    let rate = |what| rates.of(&name, node, what);
                    let rates = json!({"rows_in_per_s": rate("rows_in"), "rows_out_per_s": rate("rows_out"),
                        "dead_lettered_per_s": rate("dead_lettered")});
                    (node.clone(), rates)
                })
                .collect();
            json!({"name": name, "state": pipeline["state"], "lag_rows": pipeline["lag_rows"],
                "last_checkpoint_at_ms": pipeline["last_checkpoint_at_ms"], "queues": pipeline["queues"], "nodes": nodes})
        })
        .collect();
    json!({"at_ms": now_ms(), "pipelines": pipelines})
}

fn nodes(pipeline: &Value) -> impl Iterator<Item = &String> {
    let nodes = pipeline["nodes"].as_object();
    nodes.into_iter().flat_map(|nodes| nodes.keys())
}

fn all(pipelines: &[Value], rates: &Rates) {
    let rows: Vec<Vec<String>> = pipelines
        .iter()
        .map(|pipeline| {
            let name = cell(&pipeline["name"]);
            vec![
                name.clone(),
                cell(&pipeline["state"]),
                shown(rates.highest(&name, "rows_out")),
                shown(rates.highest(&name, "dead_lettered")),
                cell(&pipeline["lag_rows"]),
                age(&pipeline["last_checkpoint_at_ms"]),
                fullest(&pipeline["queues"]),
                pipeline["workers"]
                    .as_array()
                    .map_or(0, Vec::len)
                    .to_string(),
                cell(&pipeline["reason"]),
            ]
        })
        .collect();
    print(
        &[
            "PIPELINE",
            "STATE",
            "ROWS/S",
            "DEAD/S",
            "LAG",
            "CHECKPOINT",
            "QUEUE",
            "PROCESSES",
            "REASON",
        ],
        &rows,
    );
}

fn one(pipeline: &Value, rates: &Rates) {
    let name = cell(&pipeline["name"]);
    println!(
        "{name}: {}, lag {} rows, last checkpoint {}",
        cell(&pipeline["state"]),
        cell(&pipeline["lag_rows"]),
        age(&pipeline["last_checkpoint_at_ms"]),
    );
    if let Some(reason) = pipeline["reason"].as_str() {
        println!("reason: {reason}");
    }
    if let Some(left @ 1..) = pipeline["state_restoring"].as_u64() {
        println!("state is being restored, {left} changes left");
    }
    println!();
    let rows: Vec<Vec<String>> = nodes(pipeline)
        .map(|node| {
            let rate = |what| shown(rates.of(&name, node, what));
            // A queue is named after what it joins; the one that ends here is this node's.
            let queues = pipeline["queues"].as_object().into_iter().flatten();
            let fill = queues
                .filter(|(queue, _)| queue.ends_with(&format!(" {node}")))
                .filter_map(|(_, fill)| fill.as_f64())
                .max_by(f64::total_cmp);
            vec![
                node.clone(),
                rate("rows_in"),
                rate("rows_out"),
                rate("dead_lettered"),
                fill.map(percent).unwrap_or_default(),
            ]
        })
        .collect();
    print(&["NODE", "IN/S", "OUT/S", "DEAD/S", "QUEUE"], &rows);
}

fn shown(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate >= 100.0 || rate == 0.0 => format!("{rate:.0}"),
        Some(rate) => format!("{rate:.1}"),
    }
}

fn percent(fill: f64) -> String {
    format!("{:.0} %", fill * 100.0)
}

fn fullest(queues: &Value) -> String {
    let fills = queues.as_object().into_iter().flatten();
    let fullest = fills
        .filter_map(|(_, fill)| fill.as_f64())
        .max_by(f64::total_cmp);
    fullest.map(percent).unwrap_or_default()
}

/// How long ago.
fn age(at_ms: &Value) -> String {
    match at_ms.as_i64() {
        Some(at) => format!("{} s ago", (now_ms() - at).max(0) / 1000),
        None => "never".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_and_a_restart_is_no_flood() {
        let pipeline = |rows: u64| {
            vec![json!({"name": "p", "nodes": {"a": {"rows_in": rows, "rows_out": 0}}})]
        };
        let (mut rates, start) = (Rates::default(), Instant::now());
        rates.look(&pipeline(1_000), start);
        assert_eq!(rates.of("p", "a", "rows_in"), None);
        rates.look(&pipeline(1_500), start + Duration::from_secs(2));
        assert_eq!(rates.of("p", "a", "rows_in"), Some(250.0));
        assert_eq!(rates.highest("p", "rows_out"), Some(0.0));
        // The process was restarted and has counted 30 since.
        rates.look(&pipeline(30), start + Duration::from_secs(3));
        assert_eq!(rates.of("p", "a", "rows_in"), Some(30.0));
    }
}
