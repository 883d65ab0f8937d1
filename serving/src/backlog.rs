//! Backlog protection: while a pipeline is too far behind, what it reads takes nothing new.
//!
//! Where `limits.backlog_max` is set, the lag of every pipeline is looked at each second. Above the limit the topics that
//! the pipeline reads are closed to producers: uploads and `va topic produce` are refused with 429 and `Retry-After`.
//! They are open again by themselves when the lag has fallen below [`REOPENS_AT`] of the limit; the distance keeps a topic
//! that stands at the limit from opening and closing with each row. Both are told as an event of `platform.alert`, a
//! metric and a log line.
//!
//! What pipelines write to each other is never refused: it would stop the very work that has to be done. Removals are
//! taken too, they make things smaller.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, StringArray, StructArray, TimestampMillisecondArray};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use va_catalog::event::{PLATFORM_ALERT, platform_alert_schema};
use va_catalog::{PipelineName, TopicName};
use va_connectors::log::Target;
use va_pipelines::Plan;

use crate::platform::{Platform, now_ms};

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Part of the limit below which producers are let in again.
const REOPENS_AT: f64 = 0.8;
/// Bounds of what `Retry-After` says.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Why a topic takes nothing new.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "pipeline `{pipeline}` is {lag} rows behind, more than the limit of {limit} (`limits.backlog_max`); `{topic}` takes new \
     rows when that has shrunk: try again in {seconds} s, or add workers", seconds = retry_after.as_secs()
)]
pub struct BacklogFull {
    pub topic: TopicName,
    pub pipeline: PipelineName,
    pub lag: u64,
    pub limit: u64,
    /// When it is worth to try again, by how fast the pipeline is.
    pub retry_after: Duration,
}

/// The topics that are closed.
#[derive(Default)]
pub struct Backlog {
    closed: Mutex<BTreeMap<TopicName, BacklogFull>>,
}

impl Backlog {
    /// To be asked before something new is put into a topic.
    pub fn room(&self, topic: &str) -> Result<(), BacklogFull> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        match closed.iter().find(|(name, _)| name.as_str() == topic) {
            Some((_, full)) => {
                metrics::counter!("va_backlog_refused_total", "topic" => topic.to_owned())
                    .increment(1);
                Err(full.clone())
            }
            None => Ok(()),
        }
    }

    fn set(&self, closed: BTreeMap<TopicName, BacklogFull>) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = closed;
    }

    fn get(&self) -> BTreeMap<TopicName, BacklogFull> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.clone()
    }
}

/// How far one pipeline is behind in one topic, now and at the look before.
struct Lag {
    topic: TopicName,
    pipeline: PipelineName,
    now: u64,
    before: Option<(u64, Duration)>,
}

/// Which topics are closed after a look, given those that were. Of several pipelines that read a topic the one that is
/// furthest behind counts.
fn closed_after(
    lags: Vec<Lag>,
    limit: u64,
    closed: &BTreeMap<TopicName, BacklogFull>,
) -> BTreeMap<TopicName, BacklogFull> {
    let reopens = (limit as f64 * REOPENS_AT) as u64;
    let mut after: BTreeMap<TopicName, BacklogFull> = BTreeMap::new();
    for lag in lags {
        let bound = if closed.contains_key(&lag.topic) {
            reopens
        } else {
            limit
        };
        let known = after.get(&lag.topic);
        if lag.now <= bound || known.is_some_and(|known| known.lag >= lag.now) {
            continue;
        }
        let full = BacklogFull {
            topic: lag.topic.clone(),
            pipeline: lag.pipeline.clone(),
            lag: lag.now,
            limit,
            retry_after: retry_after(&lag, reopens),
        };
        after.insert(lag.topic, full);
    }
    after
}

/// The time in which the lag falls to `goal` at the pace of the last look; the longest when it does not fall.
fn retry_after(lag: &Lag, goal: u64) -> Duration {
    let pace = lag.before.map_or(0.0, |(before, since)| {
        before.saturating_sub(lag.now) as f64 / since.as_secs_f64().max(1e-3)
    });
    let seconds = (lag.now.saturating_sub(goal)) as f64 / pace.max(1e-9);
    Duration::from_secs(seconds.min(1e6).ceil() as u64).clamp(RETRY_AFTER.0, RETRY_AFTER.1)
}

/// Looks until the platform stops. Returns at once where no limit is set.
pub async fn watch(platform: Arc<Platform>) {
    let Some(limit) = platform.settings.limits.backlog_max else {
        return;
    };
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before: HashMap<(PipelineName, TopicName), (u64, Instant)> = HashMap::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = platform.stopping().cancelled() => return,
        }
        let lags = match lags(&platform, &mut before).await {
            Ok(lags) => lags,
            Err(error) => {
                // Whoever cannot ask does not know better than the last look.
                tracing::warn!(error, "how far pipelines are behind");
                continue;
            }
        };
        let closed = platform.backlog.get();
        let after = closed_after(lags, limit.get(), &closed);
        for (topic, full) in &after {
            metrics::gauge!("va_backlog_closed", "topic" => topic.to_string()).set(1.0);
            if !closed.contains_key(topic) {
                let full = full.to_string();
                raise(&platform, "backlog", topic.as_str(), "raised", &full).await;
            }
        }
        for topic in closed.keys().filter(|topic| !after.contains_key(*topic)) {
            metrics::gauge!("va_backlog_closed", "topic" => topic.to_string()).set(0.0);
            let open = format!("`{topic}` takes new rows again");
            raise(&platform, "backlog", topic.as_str(), "cleared", &open).await;
        }
        platform.backlog.set(after);
    }
}

async fn lags(
    platform: &Platform,
    before: &mut HashMap<(PipelineName, TopicName), (u64, Instant)>,
) -> Result<Vec<Lag>, String> {
    let mut lags = Vec::new();
    for plan in plans(platform).await? {
        let parts = va_pipelines::runtime::lag(platform.log.as_ref(), &plan).await;
        let parts = parts.map_err(|error| error.to_string())?;
        let sources = plan.nodes.iter().filter_map(|node| node.source.as_ref());
        for topic in sources.map(|source| source.topic.clone()) {
            // They are named `topic-partition`.
            let of_topic = |part: &str| {
                part.rsplit_once('-')
                    .is_some_and(|(name, _)| name == topic.as_str())
            };
            let lags_of_topic = parts.iter().filter(|(part, _)| of_topic(part));
            let now = lags_of_topic.map(|(_, lag)| *lag).sum();
            let pipeline = plan.graph.name.clone();
            let seen = before.insert((pipeline.clone(), topic.clone()), (now, Instant::now()));
            lags.push(Lag {
                topic,
                pipeline,
                now,
                before: seen.map(|(lag, at)| (lag, at.elapsed())),
            });
        }
    }
    Ok(lags)
}

/// The plans of all pipelines that should run, here or in other processes.
async fn plans(platform: &Platform) -> Result<Vec<Arc<Plan>>, String> {
    let mut plans = Vec::new();
    for name in platform.runtime.names() {
        plans.extend(platform.runtime.plan(&name));
    }
    if platform.role.runs_pipelines() {
        return Ok(plans);
    }
    let names = platform.names().await.map_err(|error| error.to_string())?;
    for (file, text) in va_pipelines::definitions::builtin() {
        let loaded = va_pipelines::load(file, text, names.as_ref());
        plans.extend(loaded.ok().map(|loaded| Arc::new(loaded.plan)));
    }
    let wished = crate::deployment::wished(platform).await;
    for pipeline in wished.map_err(|error| error.to_string())? {
        let loaded =
            va_pipelines::load(pipeline.name.as_str(), &pipeline.definition, names.as_ref());
        plans.extend(loaded.ok().map(|loaded| Arc::new(loaded.plan)));
    }
    Ok(plans)
}

/// Writes an alert: of which kind, about what, `raised` or `cleared`. Of several processes that see the same, one does.
pub(crate) async fn raise(
    platform: &Platform,
    kind: &'static str,
    subject: &str,
    state: &'static str,
    detail: &str,
) {
    tracing::warn!(kind, subject, state, detail, "alert");
    metrics::counter!("va_alerts_total", "alert" => kind, "state" => state).increment(1);
    if !platform.leads(&format!("alert/{kind}/{subject}")).await {
        return;
    }
    let told = async {
        let batch =
            alert(platform, kind, subject, state, detail).map_err(|error| error.to_string())?;
        let alerts = TopicName::new(PLATFORM_ALERT).map_err(|error| error.to_string())?;
        let mut commit = platform.log.begin();
        commit.append(&alerts, Target::Key(subject.to_owned().into()), batch);
        commit.finish().await.map_err(|error| error.to_string())
    };
    if let Err(error) = told.await {
        tracing::warn!(
            error,
            kind,
            subject,
            state,
            "the alert did not reach its topic"
        );
    }
}

fn alert(
    platform: &Platform,
    kind: &str,
    subject: &str,
    state: &str,
    detail: &str,
) -> Result<RecordBatch, arrow::error::ArrowError> {
    let text = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
    let schema = platform_alert_schema();
    let DataType::Struct(fields) = schema.field(5).data_type() else {
        return Err(arrow::error::ArrowError::SchemaError(
            "`platform.alert` has no struct payload".into(),
        ));
    };
    let payload = vec![text(kind), text(state), text(subject), text(detail)];
    let payload = StructArray::try_new(fields.clone(), payload, None)?;
    let now = TimestampMillisecondArray::from(vec![now_ms()]).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        text(&uuid::Uuid::now_v7().to_string()),
        text(PLATFORM_ALERT),
        text(platform.tenant.as_str()),
        Arc::new(StringArray::from(vec![None::<&str>])),
        Arc::new(now),
        Arc::new(payload),
    ];
    RecordBatch::try_new(schema, columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(topic: &str, pipeline: &str, now: u64, before: Option<u64>) -> Lag {
        Lag {
            topic: TopicName::new(topic).expect("a name"),
            pipeline: PipelineName::new(pipeline).expect("a name"),
            now,
            before: before.map(|before| (before, Duration::from_secs(1))),
        }
    }

    #[test]
    fn a_topic_closes_above_the_limit_and_opens_well_below() {
        let mut closed = BTreeMap::new();
        let mut look = |now: u64, before: Option<u64>| {
            closed = closed_after(vec![lag("t", "p", now, before)], 100, &closed);
            closed
                .values()
                .next()
                .map(|full| full.retry_after.as_secs())
        };
        assert_eq!(look(100, None), None);
        // Nobody knows how fast it is.
        assert_eq!(look(101, None), Some(60));
        // 30 rows above where it opens, 10 each second.
        assert_eq!(look(110, Some(120)), Some(3));
        assert_eq!(look(90, Some(110)), Some(1));
        assert_eq!(look(81, Some(81)), Some(60));
        assert_eq!(look(80, Some(81)), None);
        assert_eq!(look(90, Some(80)), None);
    }

    #[test]
    fn the_pipeline_that_is_furthest_behind_is_named() {
        let lags = vec![
            lag("t", "slow", 500, None),
            lag("t", "slower", 900, None),
            lag("t", "fast", 3, None),
            lag("u", "fast", 3, None),
        ];
        let closed = closed_after(lags, 100, &BTreeMap::new());
        let closed: Vec<_> = closed
            .values()
            .map(|full| (full.pipeline.as_str(), full.lag))
            .collect();
        assert_eq!(closed, [("slower", 900)]);
    }
}
