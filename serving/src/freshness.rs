//! How fresh the indexes are, and waiting until they are fresh enough.
//!
//! A search tells how far its indexes had come (`as_of`): the offsets of `document.uploaded` that the pipeline `index` has
//! committed. A checkpoint publishes the indexes before it commits, so whatever is before these offsets can be found.
//! Whoever has just written and wants to read it hands such offsets in, or says `now`, and waits within bounds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use va_catalog::event::DOCUMENT_UPLOADED;
use va_catalog::{Offset, Partition, PipelineName, TopicName, TopicPartition};
use va_connectors::log::{GroupId, LogError};

use crate::platform::Platform;

/// How long what servers said is good enough: asking costs a few round trips, which no search should wait for.
const KEPT: Duration = Duration::from_secs(1);

/// How often the offsets are looked at when no checkpoint of this process tells that they moved.
const LOOK: Duration = Duration::from_millis(250);

/// By topic, the next offset of each partition that is yet to be indexed.
pub type Offsets = BTreeMap<TopicName, Vec<Offset>>;

/// How fresh an answer is.
#[derive(Debug, Clone, Serialize)]
pub struct AsOf {
    /// When the last checkpoint of the `index` pipeline was committed (UTC milliseconds), as far as the processes that run
    /// now have told.
    pub indexed_at_ms: Option<i64>,
    /// Documents that wait to be indexed.
    pub pending: u64,
    /// Everything before these offsets was in the indexes. Empty when the log could not tell.
    pub offsets: Offsets,
}

/// How far `index` was behind when servers were last asked.
#[derive(Default)]
pub struct Freshness(tokio::sync::Mutex<Option<(Instant, AsOf)>>);

/// How fresh a search that begins now will be, at least.
pub async fn as_of(platform: &Platform) -> AsOf {
    if platform.settings.log.brokers.is_none() {
        let status = match PipelineName::new("index") {
            Ok(name) => platform.runtime.status(&name).await.ok(),
            Err(_) => None,
        };
        return AsOf {
            indexed_at_ms: (status.as_ref()).and_then(|status| status.last_checkpoint_at_ms),
            pending: status.map_or(0, |status| status.lag_rows),
            offsets: indexed(platform).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "how far `index` is");
                Offsets::new()
            }),
        };
    }
    let mut known = platform.freshness.0.lock().await;
    if let Some((at, as_of)) = known.as_ref()
        && at.elapsed() < KEPT
    {
        return as_of.clone();
    }
    let as_of = ask(platform).await.unwrap_or_else(|error| {
        tracing::debug!(error, "how far `index` is");
        AsOf {
            indexed_at_ms: None,
            pending: 0,
            offsets: Offsets::new(),
        }
    });
    *known = Some((Instant::now(), as_of.clone()));
    as_of
}

/// From the log, and from whichever processes run `index`.
async fn ask(platform: &Platform) -> Result<AsOf, String> {
    let name = PipelineName::new("index").map_err(|error| error.to_string())?;
    let plan = match platform.runtime.plan(&name) {
        Some(plan) => plan,
        None => Arc::new(built_in_plan(&name).ok_or("it is not built in")?),
    };
    let offsets = indexed(platform).await.map_err(|error| error.to_string())?;
    let lag = va_pipelines::runtime::lag(platform.log.as_ref(), &plan).await;
    let processes = crate::processes::alive(platform).await;
    let processes = processes.map_err(|error| error.to_string())?;
    let doing = crate::processes::doing(&processes, &name).unwrap_or_default();
    Ok(AsOf {
        indexed_at_ms: doing["last_checkpoint_at_ms"].as_i64(),
        pending: lag.map_err(|error| error.to_string())?.values().sum(),
        offsets,
    })
}

fn built_in_plan(name: &PipelineName) -> Option<va_pipelines::Plan> {
    let (file, text) = va_pipelines::definitions::builtin()
        .into_iter()
        .find(|(file, _)| file.strip_suffix(".yaml") == Some(name.as_str()))?;
    let loaded = va_pipelines::load(file, text, &va_pipelines::plan::BuiltinNames).ok()?;
    Some(loaded.plan)
}

/// What a client wants an answer to have seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Everything that was uploaded before the question.
    Now,
    /// Everything before these offsets.
    Offsets(Offsets),
}

impl Wanted {
    /// Reads `"now"`, or an object with `offsets` as the `as_of` of an answer has them; its other fields say nothing here.
    ///
    /// # Errors
    /// What is wrong, and what is allowed.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let allowed = "use \"now\", or the `as_of` of an earlier answer, or \
                       {\"offsets\": {\"document.uploaded\": [12, 7, 9]}}";
        if value == "now" {
            return Ok(Self::Now);
        }
        let Some(topics) = value.get("offsets").and_then(Value::as_object) else {
            return Err(format!("`min_freshness` is {value}; {allowed}"));
        };
        let mut offsets = Offsets::new();
        for (topic, of_topic) in topics {
            let numbers = of_topic
                .as_array()
                .and_then(|all| all.iter().map(|n| n.as_u64().map(Offset)).collect());
            let Some(numbers) = numbers else {
                return Err(format!(
                    "`min_freshness`: the offsets of `{topic}` are {of_topic}, not a list of whole numbers; {allowed}"
                ));
            };
            if topic != DOCUMENT_UPLOADED {
                return Err(format!(
                    "`min_freshness` names the topic `{topic}`; what is indexed comes from `{DOCUMENT_UPLOADED}` only"
                ));
            }
            let topic = TopicName::new(topic.as_str()).map_err(|error| error.to_string())?;
            offsets.insert(topic, numbers);
        }
        Ok(Self::Offsets(offsets))
    }
}

/// Why an answer could not be as fresh as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NotFresh {
    #[error("{0}")]
    Invalid(String),
    #[error(
        "the indexes are not as fresh as `min_freshness` asks after {waited_ms} ms: partition {partition} of \
         `{topic}` has been indexed up to offset {reached}, not {wanted}; ask again, wait longer \
         (`freshness_timeout_ms`), or take what is there (`allow_stale`)"
    )]
    Behind {
        topic: TopicName,
        partition: usize,
        reached: u64,
        wanted: u64,
        waited_ms: u128,
    },
    #[error("how far the indexes are cannot be told: {0}")]
    Log(#[from] LogError),
}

/// Waits until the indexes have come as far as `wanted`, at most for `patience`.
pub async fn wait(
    platform: &Platform,
    wanted: &Wanted,
    patience: Duration,
) -> Result<(), NotFresh> {
    let started = Instant::now();
    let wanted = match wanted {
        Wanted::Now => ends(platform).await?,
        Wanted::Offsets(offsets) => offsets.clone(),
    };
    let name = PipelineName::new("index").map_err(|error| NotFresh::Invalid(error.to_string()))?;
    // Where another process runs the pipeline there is nothing to listen to.
    let mut checkpoints = platform.runtime.checkpoints(&name).ok();
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if let Some(checkpoints) = &mut checkpoints {
            checkpoints.borrow_and_update();
        }
        let reached = indexed(platform).await?;
        let Some((topic, partition, reached, wanted)) = behind(platform, &wanted, &reached)? else {
            break;
        };
        let moved = async {
            match &mut checkpoints {
                Some(checkpoints) => {
                    // The pause bounds how often one looks when the pipeline has gone.
                    let _ = tokio::time::timeout(LOOK, checkpoints.changed()).await;
                }
                None => tokio::time::sleep(LOOK).await,
            }
        };
        tokio::select! {
            () = moved => {}
            () = tokio::time::sleep_until(deadline) => {
                return Err(NotFresh::Behind {
                    topic,
                    partition,
                    reached: reached.0,
                    wanted: wanted.0,
                    waited_ms: started.elapsed().as_millis(),
                });
            }
        }
        if checkpoints
            .as_ref()
            .is_some_and(|c| c.has_changed().is_err())
        {
            checkpoints = None;
        }
    }
    if platform.indexes.is_shared() {
        // This process may still see the state from before, for as long as the settings say.
        tokio::time::sleep(Duration::from_millis(platform.settings.indexes.refresh_ms)).await;
    }
    Ok(())
}

/// The first partition that has not been read far enough.
fn behind(
    platform: &Platform,
    wanted: &Offsets,
    reached: &Offsets,
) -> Result<Option<(TopicName, usize, Offset, Offset)>, NotFresh> {
    for (topic, wanted) in wanted {
        let of_topic = reached.get(topic).map(Vec::as_slice).unwrap_or_default();
        if wanted.len() > of_topic.len() {
            return Err(NotFresh::Invalid(format!(
                "`min_freshness` names {} partitions of `{topic}`, which has {}",
                wanted.len(),
                of_topic.len()
            )));
        }
        for (partition, (wanted, reached)) in wanted.iter().zip(of_topic).enumerate() {
            if platform.log.distance(*reached, *wanted) > 0 {
                return Ok(Some((topic.clone(), partition, *reached, *wanted)));
            }
        }
    }
    Ok(None)
}

/// What the `index` pipeline has committed.
async fn indexed(platform: &Platform) -> Result<Offsets, LogError> {
    let group = GroupId(PipelineName::new("index").map_err(name)?);
    let partitions = uploads(platform).await?;
    let positions = platform.log.positions(&group, &partitions).await?;
    let offsets = positions.into_iter();
    let offsets = offsets.map(|(marks, committed)| committed.unwrap_or(marks.low));
    Ok(of_uploads(offsets.collect(), partitions))
}

/// Where the log of uploads ends now.
async fn ends(platform: &Platform) -> Result<Offsets, LogError> {
    let mut offsets = Vec::new();
    let partitions = uploads(platform).await?;
    for partition in &partitions {
        offsets.push(platform.log.watermarks(partition).await?.high);
    }
    Ok(of_uploads(offsets, partitions))
}

fn of_uploads(offsets: Vec<Offset>, partitions: Vec<TopicPartition>) -> Offsets {
    let topic = partitions.into_iter().next().map(|first| first.topic);
    topic.map(|topic| (topic, offsets)).into_iter().collect()
}

async fn uploads(platform: &Platform) -> Result<Vec<TopicPartition>, LogError> {
    let topic = TopicName::new(DOCUMENT_UPLOADED).map_err(name)?;
    let topics = platform.log.topics().await?;
    let partitions = topics
        .iter()
        .find(|(known, _)| *known == topic)
        .map_or(0, |(_, config)| config.partitions);
    let partition = |partition| TopicPartition {
        topic: topic.clone(),
        partition: Partition(partition),
    };
    Ok((0..partitions).map(partition).collect())
}

fn name(error: va_catalog::InvalidName) -> LogError {
    LogError::Config(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_token_is_now_or_offsets() {
        assert_eq!(Wanted::parse(&json!("now")), Ok(Wanted::Now));
        let token =
            json!({"indexed_at_ms": 5, "pending": 0, "offsets": {"document.uploaded": [3, 0]}});
        let topic = TopicName::new(DOCUMENT_UPLOADED).expect("a name");
        let offsets = Offsets::from([(topic, vec![Offset(3), Offset(0)])]);
        assert_eq!(Wanted::parse(&token), Ok(Wanted::Offsets(offsets)));
        for (bad, said) in [
            (json!("later"), "use \"now\""),
            (json!(7), "use \"now\""),
            (
                json!({"offsets": {"document.uploaded": [-1]}}),
                "whole numbers",
            ),
            (
                json!({"offsets": {"document.uploaded": 3}}),
                "whole numbers",
            ),
            (json!({"offsets": {"other": [1]}}), "`other`"),
        ] {
            let error = Wanted::parse(&bad).expect_err("refused");
            assert!(error.contains(said), "{bad}: {error}");
        }
    }
}
