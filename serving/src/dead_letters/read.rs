//! Reading letters: by id, as a list in the order in which rows failed, as counts by reason.
//!
//! The partitions of the topic are merged by time, each read in pieces, so memory does not grow with the topic.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::Serialize;
use va_catalog::{
    DocumentId, Offset, Partition, PipelineName, TenantScope, TopicName, TopicPartition,
};
use va_connectors::log::FetchLimit;

use super::DeadLetterError;
use super::letter::{Letter, LetterId};
use super::retry::{Mark, RETRIED, key};
use crate::platform::{Platform, is_built_in};

/// Most letters of one page.
pub const LIST_MAX: u32 = 1_000;
/// Letters that one call looks at; when few match, the page ends early and its cursor goes on.
const SCAN_MAX: usize = 50_000;
/// Different reasons that a summary tells apart; the rest is counted together.
const REASONS_MAX: usize = 1_000;
/// Letters fetched at once from one partition.
const PIECE: FetchLimit = FetchLimit {
    rows: 256,
    bytes: 4 << 20,
};

/// Which letters. The default is all that were not retried.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Part of the reason; upper and lower case are the same.
    pub reason: Option<String>,
    /// Name of the operator.
    pub operator: Option<String>,
    /// Also those that were retried.
    pub retried: bool,
    /// Documents that the caller may not read: their letters are not there.
    pub hidden: BTreeSet<DocumentId>,
}

impl Filter {
    /// Whether the letter is about a document that the caller may not read.
    pub fn hides(&self, letter: &Letter) -> bool {
        let document = letter.document.as_ref();
        document.is_some_and(|document| self.hidden.contains(&document.id))
    }

    pub(super) fn takes(&self, letter: &Letter) -> bool {
        let reason = self
            .reason
            .as_ref()
            .is_none_or(|part| letter.reason.to_lowercase().contains(&part.to_lowercase()));
        let operator = self
            .operator
            .as_ref()
            .is_none_or(|operator| *operator == letter.operator);
        !self.hides(letter)
            && reason
            && operator
            && (self.retried || letter.retried_at_ms.is_none())
    }
}

/// Some letters, oldest first.
#[derive(Debug)]
pub struct Page {
    pub letters: Vec<Letter>,
    /// Where to go on; `None` at the end.
    pub next: Option<String>,
}

/// Letters of one operator and reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Count {
    pub operator: String,
    pub reason: String,
    pub letters: u64,
    /// UTC milliseconds.
    pub first_at: i64,
    pub last_at: i64,
}

/// The letter of that id, retried or not.
pub async fn find(
    platform: &Platform,
    tenant: &TenantScope,
    pipeline: &PipelineName,
    id: LetterId,
) -> Result<Letter, DeadLetterError> {
    let mut reader = Reader::open(platform, tenant, pipeline, None).await?;
    let unknown = || DeadLetterError::UnknownLetter {
        pipeline: pipeline.to_string(),
        id: id.to_string(),
    };
    let lane = reader
        .lanes
        .iter_mut()
        .find(|lane| lane.partition.partition == id.partition)
        .ok_or_else(unknown)?;
    lane.next = id.offset;
    // A later letter is found when retention removed this one.
    lane.end = Offset(lane.end.0.min(id.offset.0.saturating_add(1)));
    reader
        .lanes
        .retain(|lane| lane.partition.partition == id.partition);
    match reader.next().await? {
        Some(letter) if letter.id == id => Ok(letter),
        _ => Err(unknown()),
    }
}

/// Letters that the filter takes, in the order in which the rows failed, from `cursor` on.
pub async fn list(
    platform: &Platform,
    tenant: &TenantScope,
    pipeline: &PipelineName,
    filter: &Filter,
    cursor: Option<&str>,
    limit: u32,
) -> Result<Page, DeadLetterError> {
    if !(1..=LIST_MAX).contains(&limit) {
        return Err(DeadLetterError::Invalid(format!(
            "limit `{limit}` is out of range: use 1 to {LIST_MAX}"
        )));
    }
    let mut reader = Reader::open(platform, tenant, pipeline, cursor).await?;
    let mut letters = Vec::new();
    for _ in 0..SCAN_MAX {
        let Some(letter) = reader.next().await? else {
            return Ok(Page {
                letters,
                next: None,
            });
        };
        if filter.takes(&letter) {
            letters.push(letter);
            if letters.len() == limit as usize {
                break;
            }
        }
    }
    let next = (!reader.at_end()).then(|| reader.cursor());
    Ok(Page { letters, next })
}

/// How many letters there are, by operator and reason, the most frequent first.
pub async fn summary(
    platform: &Platform,
    tenant: &TenantScope,
    pipeline: &PipelineName,
    filter: &Filter,
) -> Result<Vec<Count>, DeadLetterError> {
    let mut reader = Reader::open(platform, tenant, pipeline, None).await?;
    let mut counts: BTreeMap<(String, String), Count> = BTreeMap::new();
    while let Some(letter) = reader.next().await? {
        if !filter.takes(&letter) {
            continue;
        }
        let mut key = (letter.operator, letter.reason);
        if counts.len() >= REASONS_MAX && !counts.contains_key(&key) {
            key = ("*".to_owned(), "other reasons".to_owned());
        }
        let count = counts
            .entry(key)
            .or_insert_with_key(|(operator, reason)| Count {
                operator: operator.clone(),
                reason: reason.clone(),
                letters: 0,
                first_at: letter.failed_at_ms,
                last_at: letter.failed_at_ms,
            });
        count.letters += 1;
        count.last_at = letter.failed_at_ms;
    }
    let mut counts: Vec<Count> = counts.into_values().collect();
    counts.sort_by_key(|count| std::cmp::Reverse(count.letters));
    Ok(counts)
}

/// Reads all partitions of a dead-letter topic as one, up to where they ended when it was opened.
pub(super) struct Reader<'a> {
    platform: &'a Platform,
    pipeline: PipelineName,
    /// Of a pipeline that serves every tenant: only this tenant's letters are shown.
    only: Option<TenantScope>,
    lanes: Vec<Lane>,
}

struct Lane {
    partition: TopicPartition,
    /// The next offset to fetch.
    next: Offset,
    end: Offset,
    fetched: VecDeque<Letter>,
}

impl<'a> Reader<'a> {
    pub(super) async fn open(
        platform: &'a Platform,
        tenant: &TenantScope,
        pipeline: &PipelineName,
        cursor: Option<&str>,
    ) -> Result<Self, DeadLetterError> {
        let unknown = || DeadLetterError::UnknownPipeline(pipeline.to_string());
        let built_in = is_built_in(pipeline);
        if !built_in {
            platform
                .catalog
                .pipeline(tenant, pipeline)
                .await
                .map_err(|_| unknown())?;
        }
        let places = partitions(platform, pipeline).await?;
        let from = match cursor {
            Some(cursor) => positions(cursor)?,
            None => vec![Offset(0); places.len()],
        };
        if from.len() != places.len() {
            return Err(bad_cursor(cursor.unwrap_or_default()));
        }
        let mut lanes = Vec::with_capacity(places.len());
        for (place, from) in places.into_iter().zip(from) {
            let marks = platform.log.watermarks(&place).await?;
            lanes.push(Lane {
                partition: place,
                next: from.max(marks.low),
                end: marks.high,
                fetched: VecDeque::new(),
            });
        }
        Ok(Self {
            platform,
            pipeline: pipeline.clone(),
            only: built_in.then(|| tenant.clone()),
            lanes,
        })
    }

    /// The oldest letter that was not returned yet.
    pub(super) async fn next(&mut self) -> Result<Option<Letter>, DeadLetterError> {
        loop {
            for lane in &mut self.lanes {
                lane.fill(self.platform).await?;
            }
            let oldest = self
                .lanes
                .iter_mut()
                .filter(|lane| !lane.fetched.is_empty())
                .min_by_key(|lane| lane.fetched.front().map(|letter| letter.failed_at_ms));
            let Some(mut letter) = oldest.and_then(|lane| lane.fetched.pop_front()) else {
                return Ok(None);
            };
            if self
                .only
                .as_ref()
                .is_some_and(|only| only.as_str() != letter.tenant)
            {
                continue;
            }
            letter.retried_at_ms = self.retried_at(&letter).await?;
            return Ok(Some(letter));
        }
    }

    async fn retried_at(&self, letter: &Letter) -> Result<Option<i64>, DeadLetterError> {
        let key = key(&self.pipeline, RETRIED, letter.id);
        let stored = self.platform.log.state_get(&key).await?;
        Ok(stored
            .and_then(|bytes| serde_json::from_slice::<Mark>(&bytes).ok())
            // A topic that was removed and made again counts from 0 again.
            .filter(|mark| mark.event_id == letter.event_id)
            .map(|mark| mark.at_ms))
    }

    fn at_end(&self) -> bool {
        self.lanes
            .iter()
            .all(|lane| lane.fetched.is_empty() && lane.next >= lane.end)
    }

    /// The position of every partition.
    fn cursor(&self) -> String {
        let positions: Vec<String> = self
            .lanes
            .iter()
            .map(|lane| {
                let next = lane
                    .fetched
                    .front()
                    .map_or(lane.next, |letter| letter.id.offset);
                next.0.to_string()
            })
            .collect();
        positions.join(".")
    }
}

impl Lane {
    async fn fill(&mut self, platform: &Platform) -> Result<(), DeadLetterError> {
        while self.fetched.is_empty() && self.next < self.end {
            let fetched = platform
                .log
                .fetch(&self.partition, self.next, PIECE, Duration::ZERO)
                .await?;
            for stored in &fetched.batches {
                let letters = Letter::read(self.partition.partition, stored)?;
                let wanted = letters
                    .into_iter()
                    .filter(|letter| letter.id.offset < self.end);
                self.fetched.extend(wanted);
            }
            if fetched.next <= self.next && fetched.batches.is_empty() {
                return Ok(());
            }
            self.next = fetched.next;
        }
        Ok(())
    }
}

/// The partitions of the pipeline's dead-letter topic.
pub(super) async fn partitions(
    platform: &Platform,
    pipeline: &PipelineName,
) -> Result<Vec<TopicPartition>, DeadLetterError> {
    let topic = TopicName::new(format!("{pipeline}.dead_letter"))?;
    let (_, config) = platform
        .log
        .topics()
        .await?
        .into_iter()
        .find(|(name, _)| *name == topic)
        .ok_or_else(|| DeadLetterError::UnknownPipeline(pipeline.to_string()))?;
    Ok((0..config.partitions)
        .map(|partition| TopicPartition {
            topic: topic.clone(),
            partition: Partition(partition),
        })
        .collect())
}

fn positions(cursor: &str) -> Result<Vec<Offset>, DeadLetterError> {
    cursor
        .split('.')
        .map(|position| position.parse().map(Offset).map_err(|_| bad_cursor(cursor)))
        .collect()
}

fn bad_cursor(cursor: &str) -> DeadLetterError {
    DeadLetterError::Invalid(format!(
        "`{cursor}` is not a cursor: use `cursor` of the page before, unchanged"
    ))
}
