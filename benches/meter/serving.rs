//! Requests to an HTTP server from many connections at once: how many a second, how long each took, how evenly a stream
//! came. Every reply is read to its end, and one that is not as it should be ends the measurement.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Barrier;

use crate::Failure;
use crate::http::{self, Connection, Head};

/// What is asked, of whom.
#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// Host and port.
    address: String,
    #[serde(default = "post")]
    method: String,
    path: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    /// Sent in turns; without one, a request without a body.
    #[serde(default)]
    bodies: Vec<String>,
    /// What every good reply holds.
    holds: String,
}

fn post() -> String {
    "POST".to_owned()
}

impl Ask {
    fn requests(&self) -> Arc<[Vec<u8>]> {
        let empty = [String::new()];
        let bodies = if self.bodies.is_empty() {
            &empty[..]
        } else {
            &self.bodies[..]
        };
        bodies
            .iter()
            .map(|body| http::request(&self.address, &self.method, &self.path, &self.headers, body))
            .collect()
    }

    fn check(&self, head: &Head, body: &[u8]) -> Result<(), Failure> {
        if (200..300).contains(&head.status) && http::count(body, self.holds.as_bytes()) > 0 {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned();
        Err(format!(
            "{} {}: {} without `{}`: {said}",
            self.method, self.path, head.status, self.holds
        )
        .into())
    }
}

/// Each connection sends its next request when it has the reply.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    ask: Ask,
    connections: usize,
    /// Not counted.
    warm_s: f64,
    seconds: f64,
}

pub async fn load(asked: &Load) -> Result<Value, Failure> {
    let requests = asked.ask.requests();
    let from = Instant::now() + Duration::from_secs_f64(asked.warm_s);
    let until = from + Duration::from_secs_f64(asked.seconds);
    let mut tasks = Vec::new();
    for number in 0..asked.connections {
        let (ask, requests) = (asked.ask.clone(), requests.clone());
        tasks.push(tokio::spawn(async move {
            let mut connection = Connection::new(ask.address.as_str().into());
            let (mut times, mut body) = (Vec::new(), Vec::new());
            for request in requests.iter().cycle().skip(number % requests.len()) {
                let started = Instant::now();
                if started >= until {
                    break;
                }
                body.clear();
                let head = connection.send(request).await?;
                connection
                    .body(&head, |piece| body.extend_from_slice(piece))
                    .await?;
                let ended = Instant::now();
                ask.check(&head, &body)?;
                if started >= from && ended <= until {
                    times.push((ended - started).as_secs_f64());
                }
            }
            Ok::<_, Failure>(times)
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let per_second = times.len() as f64 / asked.seconds;
    Ok(json!({"requests": times.len(), "per_second": per_second, "ms": spread(times)?}))
}

/// Connections that all send one request at the same moment.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    ask: Ask,
    connections: usize,
}

/// Good replies, refusals that say when to come again, and everything else as errors.
pub async fn burst(asked: &Burst) -> Result<Value, Failure> {
    let requests = asked.ask.requests();
    let barrier = Arc::new(Barrier::new(asked.connections));
    let mut tasks = Vec::new();
    for number in 0..asked.connections {
        let (ask, requests, barrier) = (asked.ask.clone(), requests.clone(), barrier.clone());
        tasks.push(tokio::spawn(async move {
            let mut connection = Connection::new(ask.address.as_str().into());
            let opened = connection.open().await;
            // Also by one that could not connect, or the others would wait for ever.
            barrier.wait().await;
            opened?;
            let started = Instant::now();
            let mut body = Vec::new();
            let head = connection.send(&requests[number % requests.len()]).await?;
            connection
                .body(&head, |piece| body.extend_from_slice(piece))
                .await?;
            let refused = head.status == 503 && head.retry_after.is_some();
            if !refused {
                ask.check(&head, &body)?;
            }
            Ok::<_, Failure>((refused, started.elapsed().as_secs_f64()))
        }));
    }
    let (mut times, mut refused) = (Vec::new(), 0_u64);
    let mut errors: BTreeMap<String, u64> = BTreeMap::new();
    for task in tasks {
        match task.await? {
            Ok((false, seconds)) => times.push(seconds),
            Ok((true, _)) => refused += 1,
            Err(error) => *errors.entry(error.to_string()).or_default() += 1,
        }
    }
    let failed: u64 = errors.values().sum();
    let ms = if times.is_empty() {
        Value::Null
    } else {
        spread(times.clone())?
    };
    Ok(
        json!({"good": times.len(), "refused": refused, "failed": failed, "errors": errors, "ms": ms}),
    )
}

/// Streams of server-sent events, one after the other on each connection.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Streams {
    /// Its `holds` is what the end of each stream holds.
    ask: Ask,
    connections: usize,
    /// Streams of each connection; the first of each is not counted when there are several.
    streams: usize,
    /// What each event with text holds.
    mark: String,
    /// How far apart those should be.
    gap_ms: Option<f64>,
    /// How many of them there must be in a stream.
    marks_min: usize,
}

#[derive(Default)]
struct Seen {
    first_byte: Vec<f64>,
    first_mark: Vec<f64>,
    /// How far gaps are from what they should be.
    off: Vec<f64>,
}

pub async fn streams(asked: &Streams) -> Result<Value, Failure> {
    let requests = asked.ask.requests();
    let gap = asked.gap_ms.map(|ms| ms / 1_000.0);
    let (streams, marks_min) = (asked.streams, asked.marks_min);
    let mut tasks = Vec::new();
    for number in 0..asked.connections {
        let (ask, requests) = (asked.ask.clone(), requests.clone());
        let mark = asked.mark.clone();
        tasks.push(tokio::spawn(async move {
            let mut connection = Connection::new(ask.address.as_str().into());
            connection.open().await?;
            let mut seen = Seen::default();
            for at in 0..streams {
                let request = &requests[(number * streams + at) % requests.len()];
                let started = Instant::now();
                let head = connection.send(request).await?;
                let (mut first, mut marks, mut body) = (None, Vec::new(), Vec::new());
                connection
                    .body(&head, |piece| {
                        let now = started.elapsed().as_secs_f64();
                        first.get_or_insert(now);
                        let found = http::count(piece, mark.as_bytes());
                        marks.extend(std::iter::repeat_n(now, found));
                        body.extend_from_slice(piece);
                    })
                    .await?;
                ask.check(&head, &body)?;
                if marks.len() < marks_min {
                    let said = String::from_utf8_lossy(&body[..body.len().min(1_000)]).into_owned();
                    return Err(
                        format!("{} of {marks_min} events `{mark}`: {said}", marks.len()).into(),
                    );
                }
                if at == 0 && streams > 1 {
                    continue;
                }
                seen.first_byte.extend(first);
                seen.first_mark.extend(marks.first());
                if let Some(gap) = gap {
                    let gaps = marks.windows(2).map(|two| two[1] - two[0]);
                    seen.off.extend(gaps.map(|found| (found - gap).abs()));
                }
            }
            Ok::<_, Failure>(seen)
        }));
    }
    let mut all = Seen::default();
    for task in tasks {
        let seen = task.await??;
        all.first_byte.extend(seen.first_byte);
        all.first_mark.extend(seen.first_mark);
        all.off.extend(seen.off);
    }
    let off = match gap {
        Some(_) => spread(all.off)?,
        None => Value::Null,
    };
    Ok(json!({
        "streams": all.first_byte.len(), "first_byte_ms": spread(all.first_byte)?, "first_mark_ms": spread(all.first_mark)?,
        "off_ms": off,
    }))
}

/// Quantiles of seconds, in milliseconds.
fn spread(mut seconds: Vec<f64>) -> Result<Value, Failure> {
    if seconds.is_empty() {
        return Err("nothing was measured: raise the seconds".into());
    }
    seconds.sort_unstable_by(f64::total_cmp);
    // The nearest rank.
    let at = |share: f64| {
        let rank = (share * seconds.len() as f64).ceil() as usize;
        seconds[rank.clamp(1, seconds.len()) - 1] * 1_000.0
    };
    Ok(json!({"p50": at(0.5), "p99": at(0.99), "max": at(1.0)}))
}
