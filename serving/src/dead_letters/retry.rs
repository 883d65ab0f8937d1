//! Sending the source rows of dead letters through their pipeline again, each exactly once.
//!
//! ```text
//! any pipeline:   one commit:  append the source row to its partition  +  mark the letter as retried
//! `index`:        commit "begun"  ─►  catalog FAILED → PROCESSING  ─►  that one commit, which also ends "begun"
//! ```
//! The row goes to the partition that it came from, so it keeps its place among the rows of its key. A crash before the
//! one commit leaves nothing done, after it everything. A document needs the step before it, because the catalog is
//! another database: the state must say PROCESSING before the pipeline can report READY or FAILED again, and a process
//! that dies in between must not leave a document PROCESSING for which no row is under way. [`resume`] finishes what
//! was begun at the next start, and every retry does so first.
//!
//! Relies on one retry at a time, because two of one letter would both find it not retried: [`Platform::retrying`] sees to
//! that within a process, a lease of the catalog among several. A lease protects only as long as its holder is not
//! stopped for longer than it lasts; see [`Platform::leads`].

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use va_catalog::store::{Applied, CatalogError, DocumentState};
use va_catalog::{Offset, Partition, PipelineName, TenantScope, TopicPartition};
use va_connectors::log::{FetchLimit, GroupId, LogError, StateKey, Target};

use super::DeadLetterError;
use super::letter::{DocumentOf, Letter, LetterId, SourceRow};
use super::read::{Filter, Reader, find, partitions};
use crate::platform::{Platform, now_ms};

/// Namespaces of the pipeline's state; no node can have such a name, so operators' state is never touched.
pub(super) const RETRIED: &str = "dlq/retried";
const BEGUN: &str = "dlq/begun";

/// Letters of one commit.
const BATCH: usize = 256;
/// Letters that one call may name.
const IDS_MAX: usize = 10_000;
/// Marks looked at, after a retry, for letters that retention has removed.
const MARKS_PER_SWEEP: usize = 1_000;
/// Reasons told of letters that were skipped; the rest is only counted.
const SKIPPED_MAX: usize = 1_000;

/// How often, and after which pauses, a retry asks for its turn among processes.
const TURN_LOOKS: u32 = 20;
const TURN_PAUSE: Duration = Duration::from_millis(500);

/// The pipeline whose letters are documents with a state in the catalog.
const INDEX: &str = "index";

/// Which letters to retry.
#[derive(Debug, Clone)]
pub enum Wanted {
    Ids(Vec<LetterId>),
    /// All that the filter takes and that were not retried.
    All(Filter),
}

/// What a retry did.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Letters whose source row is in the topic again.
    pub retried: u64,
    pub skipped: u64,
    /// Why, of the first 1,000.
    pub reasons: Vec<Skipped>,
}

/// A letter that was not retried.
#[derive(Debug, Serialize)]
pub struct Skipped {
    pub id: LetterId,
    pub reason: String,
}

impl Outcome {
    fn skip(&mut self, id: LetterId, reason: impl Into<String>) {
        self.skipped += 1;
        if self.reasons.len() < SKIPPED_MAX {
            self.reasons.push(Skipped {
                id,
                reason: reason.into(),
            });
        }
    }
}

/// That a letter was retried, as kept in the log's state.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Mark {
    pub event_id: String,
    pub at_ms: i64,
}

/// A retry that was decided on: all that is needed to finish it, also after a crash.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Begun {
    letter: LetterId,
    event_id: String,
    source: SourceRow,
    offset: Offset,
    reason: String,
    document: Option<DocumentOf>,
}

/// Sends the source rows of the wanted letters through the pipeline again. Each letter is retried or skipped on its
/// own; an error means that the log or the catalog failed, and what was not retried by then can be retried again.
pub async fn retry(
    platform: &Platform,
    tenant: &TenantScope,
    pipeline: &PipelineName,
    wanted: Wanted,
) -> Result<Outcome, DeadLetterError> {
    let _one_at_a_time = platform.retrying.lock().await;
    alone(platform, pipeline).await?;
    let outcome = retry_alone(platform, tenant, pipeline, wanted).await;
    platform.lets_go(&turn(pipeline)).await;
    outcome
}

async fn retry_alone(
    platform: &Platform,
    tenant: &TenantScope,
    pipeline: &PipelineName,
    wanted: Wanted,
) -> Result<Outcome, DeadLetterError> {
    let mut outcome = Outcome::default();
    finish_begun(platform, pipeline).await?;
    match wanted {
        Wanted::Ids(ids) => {
            if ids.len() > IDS_MAX {
                return Err(DeadLetterError::Invalid(format!(
                    "{} ids; retry at most {IDS_MAX} at once, or all",
                    ids.len()
                )));
            }
            for part in ids.chunks(BATCH) {
                let mut letters: Vec<Letter> = Vec::with_capacity(part.len());
                for id in part {
                    if letters.iter().any(|letter| letter.id == *id) {
                        continue;
                    }
                    match find(platform, tenant, pipeline, *id).await {
                        Ok(letter) => letters.push(letter),
                        Err(error @ DeadLetterError::UnknownLetter { .. }) => {
                            outcome.skip(*id, error.to_string());
                        }
                        Err(error) => return Err(error),
                    }
                }
                retry_some(platform, pipeline, letters, &mut outcome).await?;
            }
        }
        Wanted::All(filter) => {
            let filter = Filter {
                retried: false,
                ..filter
            };
            // Ends at the letters that are there now: a row that fails again is not retried for ever.
            let mut reader = Reader::open(platform, tenant, pipeline, None).await?;
            let mut letters = Vec::new();
            while let Some(letter) = reader.next().await? {
                if filter.takes(&letter) {
                    letters.push(letter);
                }
                if letters.len() == BATCH {
                    retry_some(
                        platform,
                        pipeline,
                        std::mem::take(&mut letters),
                        &mut outcome,
                    )
                    .await?;
                }
            }
            retry_some(platform, pipeline, letters, &mut outcome).await?;
        }
    }
    forget_removed(platform, pipeline).await?;
    metrics::counter!("va_dead_letters_retried_total", "pipeline" => pipeline.to_string())
        .increment(outcome.retried);
    Ok(outcome)
}

/// Finishes the retries of documents that a crash interrupted.
pub async fn resume(platform: &Platform) -> Result<(), DeadLetterError> {
    let _one_at_a_time = platform.retrying.lock().await;
    let pipeline = PipelineName::new(INDEX)?;
    alone(platform, &pipeline).await?;
    let finished = finish_begun(platform, &pipeline).await;
    platform.lets_go(&turn(&pipeline)).await;
    finished
}

/// The lease of whoever retries.
fn turn(pipeline: &PipelineName) -> String {
    format!("dlq/{pipeline}")
}

/// Waits for the turn among processes, or holds it on: before each step anew.
async fn alone(platform: &Platform, pipeline: &PipelineName) -> Result<(), DeadLetterError> {
    for _ in 0..TURN_LOOKS {
        if platform.leads(&turn(pipeline)).await {
            return Ok(());
        }
        tokio::time::sleep(TURN_PAUSE).await;
    }
    Err(DeadLetterError::Busy(pipeline.to_string()))
}

async fn finish_begun(platform: &Platform, pipeline: &PipelineName) -> Result<(), DeadLetterError> {
    loop {
        let stored = platform
            .log
            .state_scan(&GroupId(pipeline.clone()), BEGUN, b"", BATCH)
            .await?;
        if stored.is_empty() {
            return Ok(());
        }
        let begun = stored
            .iter()
            .map(|(_, value)| {
                serde_json::from_slice::<Begun>(value)
                    .map_err(|error| LogError::Corrupt(format!("a retry that was begun: {error}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        tracing::info!(%pipeline, letters = begun.len(), "retries of dead letters are taken up again");
        finish(platform, pipeline, begun, &mut Outcome::default()).await?;
    }
}

async fn retry_some(
    platform: &Platform,
    pipeline: &PipelineName,
    letters: Vec<Letter>,
    outcome: &mut Outcome,
) -> Result<(), DeadLetterError> {
    let mut begun = Vec::with_capacity(letters.len());
    for letter in letters {
        let id = letter.id;
        match check(platform, pipeline, letter).await? {
            Ok(one) => begun.push(one),
            Err(reason) => outcome.skip(id, reason),
        }
    }
    if begun.is_empty() {
        return Ok(());
    }
    alone(platform, pipeline).await?;
    if begun.iter().any(|one| one.document.is_some()) {
        let mut commit = platform.log.begin();
        for one in begun.iter().filter(|one| one.document.is_some()) {
            let value =
                serde_json::to_vec(one).map_err(|error| LogError::Corrupt(error.to_string()))?;
            commit.put(key(pipeline, BEGUN, one.letter), Bytes::from(value));
        }
        commit.finish().await?;
    }
    finish(platform, pipeline, begun, outcome).await
}

/// Whether a letter can be retried, or why not.
async fn check(
    platform: &Platform,
    pipeline: &PipelineName,
    letter: Letter,
) -> Result<Result<Begun, String>, DeadLetterError> {
    if letter.retried_at_ms.is_some() {
        return Ok(Err("it was retried already".into()));
    }
    let Some(source) = letter.source else {
        return Ok(Err(
            "the letter does not say which source row it came from".into()
        ));
    };
    let Some(offset) = source.offset else {
        return Ok(Err(format!(
            "`{}` does not see source rows one by one, so the row of `{}` to send again is not known",
            letter.operator, source.topic
        )));
    };
    let document = letter.document.filter(|_| pipeline.as_str() == INDEX);
    if let Some(document) = &document
        && let Some(reason) = obstacle(platform, document).await?
    {
        return Ok(Err(reason));
    }
    Ok(Ok(Begun {
        letter: letter.id,
        event_id: letter.event_id,
        source,
        offset,
        reason: format!("{}: {}", letter.operator, letter.reason),
        document,
    }))
}

/// Why a document must not be tried again.
async fn obstacle(
    platform: &Platform,
    document: &DocumentOf,
) -> Result<Option<String>, DeadLetterError> {
    let now = match platform
        .catalog
        .document(&document.collection(), document.id)
        .await
    {
        Ok(now) => now,
        Err(CatalogError::NotFound { kind, .. }) => {
            return Ok(Some(format!("the {kind} was removed")));
        }
        Err(error) => return Err(error.into()),
    };
    Ok(match now.state {
        DocumentState::Deleting => Some("the document is being removed".into()),
        _ if now.version > document.version => Some(format!(
            "version {} of the document was overtaken by version {}",
            document.version, now.version
        )),
        DocumentState::Failed => None,
        state => Some(format!("the document is {state}")),
    })
}

/// The second half: PROCESSING in the catalog, then the one commit.
async fn finish(
    platform: &Platform,
    pipeline: &PipelineName,
    begun: Vec<Begun>,
    outcome: &mut Outcome,
) -> Result<(), DeadLetterError> {
    let mut commit = platform.log.begin();
    // Two letters of one source row (of two branches of the graph) need it once.
    let mut rows: BTreeMap<(TopicPartition, Offset), RecordBatch> = BTreeMap::new();
    let mut retried = 0;
    for one in &begun {
        if one.document.is_some() {
            commit.delete(key(pipeline, BEGUN, one.letter));
        }
        let place = one.source.topic_partition();
        let row = match source_row(platform, &place, one.offset).await? {
            Ok(row) => row,
            Err(reason) => {
                give_up(platform, one).await?;
                outcome.skip(one.letter, reason);
                continue;
            }
        };
        if let Some(document) = &one.document {
            match platform
                .catalog
                .set_retried(&document.collection(), document.id, document.version)
                .await
            {
                Ok(Applied::Changed | Applied::Repeated) => {}
                Ok(Applied::Late)
                | Err(CatalogError::NotFound { .. } | CatalogError::Conflict { .. }) => {
                    outcome.skip(one.letter, "the document has changed meanwhile");
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
        }
        rows.insert((place, one.offset), row);
        let mark = Mark {
            event_id: one.event_id.clone(),
            at_ms: now_ms(),
        };
        let mark =
            serde_json::to_vec(&mark).map_err(|error| LogError::Corrupt(error.to_string()))?;
        commit.put(key(pipeline, RETRIED, one.letter), Bytes::from(mark));
        retried += 1;
    }
    for ((place, _), row) in rows {
        commit.append(&place.topic, Target::Partition(place.partition), row);
    }
    commit.finish().await?;
    outcome.retried += retried;
    Ok(())
}

/// A document whose row is gone can only be uploaded again: it is FAILED for the reason that it had.
async fn give_up(platform: &Platform, begun: &Begun) -> Result<(), DeadLetterError> {
    let Some(document) = &begun.document else {
        return Ok(());
    };
    match platform
        .catalog
        .set_failed(
            &document.collection(),
            document.id,
            document.version,
            begun.reason.clone(),
        )
        .await
    {
        Ok(_) | Err(CatalogError::NotFound { .. } | CatalogError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The source row, or why it is not there.
async fn source_row(
    platform: &Platform,
    place: &TopicPartition,
    offset: Offset,
) -> Result<Result<RecordBatch, String>, DeadLetterError> {
    let limit = FetchLimit { rows: 1, bytes: 1 };
    let fetched = match platform
        .log
        .fetch(place, offset, limit, Duration::ZERO)
        .await
    {
        Ok(fetched) => fetched,
        Err(error @ (LogError::UnknownTopic(_) | LogError::UnknownPartition { .. })) => {
            return Ok(Err(error.to_string()));
        }
        // A topic of messages of other programs: then the row is the message.
        Err(LogError::Corrupt(reason)) => {
            let found = platform
                .log
                .fetch_records(place, offset, limit, Duration::ZERO)
                .await;
            return match found {
                Ok(found) if found.offsets.first() == Some(&offset) => {
                    Ok(Ok(found.batch.slice(0, 1)))
                }
                Ok(_) => Ok(Err(expired(place, offset))),
                Err(_) => Err(LogError::Corrupt(reason).into()),
            };
        }
        Err(error) => return Err(error.into()),
    };
    Ok(match fetched.batches.first() {
        Some(stored) if stored.base == offset && stored.batch.num_rows() > 0 => {
            Ok(stored.batch.slice(0, 1))
        }
        _ => Err(expired(place, offset)),
    })
}

fn expired(place: &TopicPartition, offset: Offset) -> String {
    format!(
        "the source row {place}@{offset} is not there any more: retention has removed it, so hand the data in again"
    )
}

/// Removes marks of letters that retention has removed, some at a time: state must not grow for ever.
async fn forget_removed(
    platform: &Platform,
    pipeline: &PipelineName,
) -> Result<(), DeadLetterError> {
    let group = GroupId(pipeline.clone());
    let mut commit = platform.log.begin();
    for place in partitions(platform, pipeline).await? {
        let low = platform.log.watermarks(&place).await?.low;
        let prefix = mark_prefix(place.partition);
        let marks = platform
            .log
            .state_scan(&group, RETRIED, prefix.as_bytes(), MARKS_PER_SWEEP)
            .await?;
        for (stored, _) in marks {
            // In offset order, because keys are padded.
            let offset = String::from_utf8_lossy(&stored)
                .strip_prefix(&prefix)
                .and_then(|offset| offset.parse().ok())
                .map(Offset);
            match offset {
                Some(offset) if offset < low => commit.delete(StateKey {
                    group: group.clone(),
                    namespace: RETRIED.to_owned(),
                    key: stored,
                }),
                _ => break,
            }
        }
    }
    commit.finish().await?;
    Ok(())
}

fn mark_prefix(partition: Partition) -> String {
    format!("{:010}-", partition.0)
}

/// The key of what is kept of a letter; sorts as letters do.
pub(super) fn key(pipeline: &PipelineName, namespace: &str, letter: LetterId) -> StateKey {
    StateKey {
        group: GroupId(pipeline.clone()),
        namespace: namespace.to_owned(),
        key: Bytes::from(format!(
            "{}{:020}",
            mark_prefix(letter.partition),
            letter.offset.0
        )),
    }
}
