//! Reading: the blocking fetch on consumers that belong to no group and stay where they stopped.
//!
//! Each reader is a consumer of one partition. A fetch takes the one that stands at its offset, so that sequential
//! reading never seeks; librdkafka reads ahead of it, up to `read_ahead_kib`, and then pauses by itself. Readers that
//! nobody uses are kept, at most [`IDLE_MAX`]; the one that was used longest ago goes first.
//!
//! Kafka does not tell how many offsets at the end hold no row (ends of transactions, aborted records). A fetch that
//! finds nothing below the high watermark positions the reader anew and waits for a row or for the end of the partition,
//! whichever comes: since the reader was positioned after the watermark was asked for, an end means that nothing below
//! that watermark was missed, and the fetch goes on there. A reader that already stands where the fetch begins is listened
//! to first: while rows come in, nothing is asked.
//!
//! A record is looked into only when its rows are handed over: a topic of single records ([`crate::log::records`]) is
//! read through the same readers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message, OwnedHeaders};
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tokio::time::Instant;
use va_catalog::{Offset, TopicName, TopicPartition};

use super::client::{Quiet, Shared, is_unknown_topic, lock, storage};
use super::codec;
use super::names::Position;
use crate::log::records::{self, RecordsBuilder};
use crate::log::{FetchLimit, Fetched, FetchedRecords, LogBatch, LogError};

/// Each holds a connection to each broker and its read-ahead.
const IDLE_MAX: usize = 32;

/// Until the brokers have told each other of a new topic.
const NEWS: Duration = Duration::from_millis(20);

/// How long a reader that stands where a fetch begins is listened to before the cluster is asked. Longer than a broker holds
/// back an answer that says that there is nothing.
const LISTEN: Duration = Duration::from_millis(75);

/// How long a fetch that had to wait for its first record lets others gather. At the end of a topic that grows, records
/// would otherwise be handed over in twos and threes, and each handing over has its price in everything that follows.
const GATHER: Duration = Duration::from_millis(5);

/// A consumer of one partition.
pub(super) struct Reader {
    place: TopicPartition,
    topic: String,
    consumer: StreamConsumer<Quiet>,
    /// The next record that it will return; `None` when that is not known.
    at: Option<i64>,
    /// A record that was received and did not fit into the last fetch.
    held: Option<Record>,
    /// One past the last record as last asked, and when that was.
    high: i64,
    asked: Option<Instant>,
}

/// A record as it is stored.
pub(super) struct Record {
    pub(super) offset: i64,
    key: Option<Vec<u8>>,
    payload: Option<Bytes>,
    headers: Option<OwnedHeaders>,
    appended_at_ms: i64,
}

impl Record {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        Self {
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(Bytes::copy_from_slice),
            headers: message.headers().map(|headers| headers.detach()),
            appended_at_ms: message.timestamp().to_millis().unwrap_or(0),
        }
    }

    fn bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len)
    }

    /// The batch of ours that it holds.
    pub(super) fn batch(&self, place: &TopicPartition) -> Result<RecordBatch, LogError> {
        codec::decode(self.payload.clone(), self.headers.as_ref())
            .map_err(|e| LogError::Corrupt(format!("record {} of `{place}`: {e}", self.offset)))
    }
}

/// What a fetch begins with.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one, on the stack of one fetch"
)]
enum Begun<'a> {
    Nothing {
        next: Offset,
        skipped: u64,
        high: Offset,
    },
    Rows {
        reader: Lent<'a>,
        start: Position,
        first: Record,
        skipped: u64,
    },
}

/// What a reader came upon.
pub(super) enum Event {
    Record(Record),
    /// There is nothing more now.
    End,
    /// The position does not exist (any more).
    OutOfRange,
}

/// Readers that nobody uses, the one that was used last at the end.
#[derive(Default)]
pub(super) struct Readers {
    idle: Mutex<Vec<Reader>>,
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

impl Readers {
    /// The reader that stands there, else another one of the partition.
    fn take(&self, place: &TopicPartition, record: i64) -> Option<Reader> {
        let mut idle = lock(&self.idle);
        let of_partition = |reader: &Reader| reader.place == *place;
        let index = idle
            .iter()
            .position(|reader| of_partition(reader) && reader.at == Some(record))
            .or_else(|| idle.iter().position(of_partition))?;
        Some(idle.remove(index))
    }

    fn give(&self, reader: Reader) {
        let mut idle = lock(&self.idle);
        idle.push(reader);
        if idle.len() > IDLE_MAX {
            let oldest = idle.remove(0);
            drop(idle);
            dispose(oldest);
        }
    }

    pub(super) fn forget(&self, topic: &TopicName) {
        let mut idle = lock(&self.idle);
        let gone: Vec<Reader> = idle
            .extract_if(.., |reader| reader.place.topic == *topic)
            .collect();
        drop(idle);
        gone.into_iter().for_each(dispose);
    }

    pub(super) fn clear(&self) {
        let all = std::mem::take(&mut *lock(&self.idle));
        all.into_iter().for_each(dispose);
    }
}

/// Closing a consumer waits for its threads.
fn dispose(reader: Reader) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || drop(reader))),
        Err(_) => drop(reader),
    }
}

/// A reader in use. It goes back whatever happens to the fetch.
pub(super) struct Lent<'a> {
    readers: &'a Readers,
    reader: Option<Reader>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.readers.give(reader);
        }
    }
}

impl std::ops::Deref for Lent<'_> {
    type Target = Reader;
    fn deref(&self) -> &Reader {
        self.reader.as_ref().expect("taken only by drop")
    }
}

impl std::ops::DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Reader {
        self.reader.as_mut().expect("taken only by drop")
    }
}

impl Reader {
    /// Goes to a record; what was read ahead is thrown away.
    pub(super) fn go_to(&mut self, record: i64) -> Result<(), LogError> {
        self.at = None;
        self.held = None;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(
            &self.topic,
            self.place.partition.0 as i32,
            KafkaOffset::Offset(record),
        )
        .and_then(|()| self.consumer.assign(&list))
        .map_err(|e| storage(&format!("read `{}`", self.place), &e))?;
        self.at = Some(record);
        Ok(())
    }

    /// The next event. Cancel-safe: what is not returned stays in the queue.
    pub(super) async fn next(&mut self) -> Result<Event, LogError> {
        if let Some(record) = self.held.take() {
            return Ok(self.took(record));
        }
        match interpret(&self.place, self.consumer.recv().await) {
            Ok(Event::Record(record)) => Ok(self.took(record)),
            Ok(Event::End) => Ok(Event::End),
            // The consumer stands behind what could not be read: whoever reads on has to come back to it.
            other => {
                self.at = None;
                other
            }
        }
    }

    /// The next record, when it is here already. Anything else is left for a fetch that has nothing to return.
    fn next_now(&mut self) -> Option<Record> {
        match self.next().now_or_never() {
            Some(Ok(Event::Record(record))) => Some(record),
            _ => None,
        }
    }

    fn took(&mut self, record: Record) -> Event {
        self.at = Some(record.offset + 1);
        Event::Record(record)
    }

    /// Puts back the record that was taken last.
    fn hold(&mut self, record: Record) {
        self.at = Some(record.offset);
        self.held = Some(record);
    }
}

fn interpret(
    place: &TopicPartition,
    received: Result<BorrowedMessage<'_>, KafkaError>,
) -> Result<Event, LogError> {
    match received {
        Ok(message) => Ok(Event::Record(Record::of(&message))),
        Err(KafkaError::PartitionEOF(_)) => Ok(Event::End),
        Err(error) => match error.rdkafka_error_code() {
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => Ok(Event::OutOfRange),
            _ if is_unknown_topic(&error) => Err(LogError::UnknownTopic(place.topic.clone())),
            _ => Err(storage(&format!("read `{place}`"), &error)),
        },
    }
}

/// A batch of ours is no record of another program.
fn check_record<H: Headers>(
    headers: Option<&H>,
    offset: i64,
    place: &TopicPartition,
) -> Result<(), LogError> {
    if headers.is_some_and(codec::is_batch) {
        return Err(LogError::Config(format!(
            "record {offset} of `{place}` holds a batch and not a record: read it without `format`"
        )));
    }
    Ok(())
}

fn push_record<H: Headers>(
    builder: &mut RecordsBuilder,
    (key, value): (Option<&[u8]>, Option<&[u8]>),
    timestamp_ms: i64,
    headers: Option<&H>,
) {
    let headers = headers
        .into_iter()
        .flat_map(|headers| headers.iter().map(|header| (header.key, header.value)));
    builder.push(key, value, Some(timestamp_ms), headers);
}

impl Shared {
    pub(super) async fn reader(
        self: &Arc<Self>,
        place: &TopicPartition,
        record: i64,
    ) -> Result<Lent<'_>, LogError> {
        let reader = match self.readers.take(place, record) {
            Some(reader) => reader,
            None => {
                let (place, topic) = (place.clone(), self.kafka_topic(&place.topic)?);
                // Here and not on a blocking thread: the consumer wants the runtime. Connecting is in the background.
                let consumer =
                    StreamConsumer::from_config_and_context(&self.options.reader(), Quiet)
                        .map_err(|e| LogError::Config(format!("kafka: {e}")))?;
                Reader {
                    place,
                    topic,
                    consumer,
                    at: None,
                    held: None,
                    high: 0,
                    asked: None,
                }
            }
        };
        Ok(Lent {
            readers: &self.readers,
            reader: Some(reader),
        })
    }

    async fn ask_records(self: &Arc<Self>, place: &TopicPartition) -> Result<(i64, i64), LogError> {
        let place = place.clone();
        self.blocking(move |shared| shared.records(&place)).await
    }

    /// Brings the high watermark behind the position `next`, unless it was asked for a moment ago: then what was read since
    /// is the best that is known.
    async fn look_ahead(self: &Arc<Self>, reader: &mut Reader, next: i64) -> Result<(), LogError> {
        let fresh = |asked: Instant| asked.elapsed() < LISTEN;
        if reader.high > next || reader.asked.is_some_and(fresh) {
            return Ok(());
        }
        reader.high = self.ask_records(&reader.place.clone()).await?.1;
        reader.asked = Some(Instant::now());
        Ok(())
    }

    /// See [`crate::log::Log::fetch`].
    pub(super) async fn fetch(
        self: &Arc<Self>,
        place: &TopicPartition,
        from: Offset,
        limit: FetchLimit,
        wait: Duration,
    ) -> Result<Fetched, LogError> {
        match self.first(place, from, wait).await? {
            Begun::Nothing {
                next,
                skipped,
                high,
            } => Ok(Fetched {
                batches: Vec::new(),
                next,
                skipped,
                high,
            }),
            Begun::Rows {
                mut reader,
                start,
                first,
                skipped,
            } => {
                self.collect(&mut reader, start, first, limit, skipped)
                    .await
            }
        }
    }

    /// See [`crate::log::Log::fetch_records`].
    pub(super) async fn fetch_records(
        self: &Arc<Self>,
        place: &TopicPartition,
        from: Offset,
        limit: FetchLimit,
        wait: Duration,
    ) -> Result<FetchedRecords, LogError> {
        match self.first(place, from, wait).await? {
            Begun::Nothing {
                next,
                skipped,
                high,
            } => Ok(FetchedRecords {
                batch: RecordBatch::new_empty(records::schema()),
                offsets: Vec::new(),
                next,
                skipped,
                high,
            }),
            Begun::Rows {
                mut reader,
                first,
                skipped,
                ..
            } => {
                self.collect_records(&mut reader, first, limit, skipped)
                    .await
            }
        }
    }

    /// Waits for the first record of a fetch.
    async fn first<'a>(
        self: &'a Arc<Self>,
        place: &TopicPartition,
        from: Offset,
        wait: Duration,
    ) -> Result<Begun<'a>, LogError> {
        self.open()?;
        // A wait beyond what the timer can hold is a wait without end.
        let deadline = Instant::now().checked_add(wait);
        // Known topics are not asked for again.
        if !self.is_known(place) {
            let place = place.clone();
            self.blocking(move |shared| shared.place(&place)).await?;
        }
        let start = Position::of(from);
        let mut reader = self.reader(place, start.record).await?;
        let first = if reader.at == Some(start.record) {
            reader.next_now()
        } else {
            None
        };
        if let Some(first) = first {
            return Ok(Begun::Rows {
                reader,
                start,
                first,
                skipped: 0,
            });
        }

        // It reads on from there by itself. To ask the cluster and to position the reader anew for every few records that
        // come in would cost more than the records.
        if reader.at == Some(start.record) && !wait.is_zero() {
            let event = tokio::select! {
                event = reader.next() => Some(event),
                () = tokio::time::sleep(wait.min(LISTEN)) => None,
                () = self.closed.cancelled() => return Err(LogError::Closed),
            };
            // Whatever else it is, the cluster is asked.
            if let Some(Ok(Event::Record(first))) = event {
                tokio::time::sleep(GATHER).await;
                return Ok(Begun::Rows {
                    reader,
                    start,
                    first,
                    skipped: 0,
                });
            }
        }

        let (low, high) = self.ask_records(place).await?;
        (reader.high, reader.asked) = (high, Some(Instant::now()));
        let (from, start, skipped) = if start.record < low {
            let low_start = Position::start_of(low);
            (low_start.offset(), low_start, (low - start.record) as u64)
        } else {
            (from, start, 0)
        };
        let nothing = |next: Offset| Begun::Nothing {
            next,
            skipped,
            high: Position::start_of(high).offset(),
        };
        if start.record < high {
            // Rows, or the end: in any case soon.
            reader.go_to(start.record)?;
            let event = tokio::select! {
                event = self.await_event(&mut reader) => event?,
                () = tokio::time::sleep(self.timeout()) => {
                    return Err(LogError::Storage(format!(
                        "kafka: no answer for record {} of `{place}`", start.record
                    )));
                }
                () = self.closed.cancelled() => return Err(LogError::Closed),
            };
            return match event {
                Event::Record(first) => Ok(Begun::Rows {
                    reader,
                    start,
                    first,
                    skipped,
                }),
                Event::End => {
                    self.learn_gap(place, start, high);
                    reader.at = Some(high);
                    Ok(nothing(Position::start_of(high).offset()))
                }
                // Removed just now; the next fetch asks for the low watermark again.
                Event::OutOfRange => Ok(nothing(from)),
            };
        }
        if skipped > 0 || wait.is_zero() {
            return Ok(nothing(from));
        }
        if reader.at != Some(start.record) {
            reader.go_to(start.record)?;
        }
        let timeout = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(timeout);
        loop {
            let event = tokio::select! {
                event = self.await_event(&mut reader) => event?,
                () = &mut timeout => return Ok(nothing(from)),
                () = self.closed.cancelled() => return Err(LogError::Closed),
            };
            match event {
                Event::Record(first) => {
                    tokio::time::sleep(GATHER).await;
                    return Ok(Begun::Rows {
                        reader,
                        start,
                        first,
                        skipped: 0,
                    });
                }
                Event::End => {}
                // A position beyond the end, of a topic that was made again: nothing is there until it grows.
                Event::OutOfRange => {
                    reader.at = None;
                    tokio::select! {
                        () = &mut timeout => return Ok(nothing(from)),
                        () = self.closed.cancelled() => return Err(LogError::Closed),
                    }
                }
            }
        }
    }

    fn is_known(&self, place: &TopicPartition) -> bool {
        self.known_count(&place.topic)
            .is_some_and(|count| place.partition.0 < count)
    }

    /// Waits over what passes by itself: librdkafka connects again and goes on where it was, and a broker that has not
    /// heard of a new topic yet will.
    async fn await_event(self: &Arc<Self>, reader: &mut Reader) -> Result<Event, LogError> {
        let record = reader.at;
        loop {
            match reader.next().await {
                Err(LogError::Storage(reason)) => {
                    tracing::debug!(reason, place = %reader.place, "the reader goes on");
                }
                Err(LogError::UnknownTopic(_)) => {
                    let place = reader.place.clone();
                    self.blocking(move |shared| shared.still_exists(&place))
                        .await?;
                    tokio::time::sleep(NEWS).await;
                    if let Some(record) = record {
                        reader.go_to(record)?;
                    }
                }
                other => return other,
            }
        }
    }

    pub(super) fn learn_gap(&self, place: &TopicPartition, from: Position, to: i64) {
        if from.row == 0 && from.record < to {
            lock(&self.gaps).insert(place.clone(), (from.record, to));
        }
    }

    /// What fits into the limit of what is here, beginning with `first`.
    async fn collect(
        self: &Arc<Self>,
        reader: &mut Reader,
        start: Position,
        first: Record,
        limit: FetchLimit,
        skipped: u64,
    ) -> Result<Fetched, LogError> {
        let mut fetched = Fetched {
            batches: Vec::new(),
            next: start.offset(),
            skipped,
            high: Offset(0),
        };
        let (mut rows, mut bytes) = (0_usize, 0_usize);
        let mut next = Some(first);
        while let Some(record) = next {
            let batch = match record.batch(&reader.place) {
                Ok(batch) => batch,
                // What came before it is returned; the next fetch begins with it and says so.
                Err(error) => {
                    reader.hold(record);
                    if fetched.batches.is_empty() {
                        return Err(error);
                    }
                    break;
                }
            };
            let cut = if record.offset == start.record {
                (start.row as usize).min(batch.num_rows())
            } else {
                0
            };
            let count = batch.num_rows() - cut;
            rows += count;
            bytes = bytes.saturating_add(record.bytes());
            if !fetched.batches.is_empty() && (rows > limit.rows || bytes > limit.bytes) {
                reader.hold(record);
                break;
            }
            fetched.next = Position::start_of(record.offset + 1).offset();
            if count > 0 {
                let base = Position {
                    record: record.offset,
                    row: cut as u32,
                };
                fetched.batches.push(LogBatch {
                    base: base.offset(),
                    batch: batch.slice(cut, count),
                    appended_at_ms: record.appended_at_ms,
                });
            }
            if rows >= limit.rows || bytes >= limit.bytes {
                break;
            }
            next = reader.next_now();
        }
        let next = Position::of(fetched.next).record;
        self.look_ahead(reader, next).await?;
        fetched.high = Position::start_of(reader.high.max(next)).offset();
        let topic = reader.place.topic.to_string();
        let returned: usize = fetched.batches.iter().map(|b| b.batch.num_rows()).sum();
        metrics::counter!("va_log_fetch_rows_total", "topic" => topic).increment(returned as u64);
        Ok(fetched)
    }

    /// What is here of single records, up to the limit. Takes them from the client's queue one by one without a copy in
    /// between: this is the hot path of reading what others write.
    async fn collect_records(
        self: &Arc<Self>,
        reader: &mut Reader,
        first: Record,
        limit: FetchLimit,
        skipped: u64,
    ) -> Result<FetchedRecords, LogError> {
        let rows_max = limit.rows.max(1);
        let mut builder = RecordsBuilder::with_capacity(rows_max.min(8_192), 0);
        let mut offsets = Vec::with_capacity(rows_max.min(8_192));
        let mut bytes = first.bytes();
        check_record(first.headers.as_ref(), first.offset, &reader.place)
            .inspect_err(|_| reader.at = None)?;
        push_record(
            &mut builder,
            (first.key.as_deref(), first.payload.as_deref()),
            first.appended_at_ms,
            first.headers.as_ref(),
        );
        let mut last = first.offset;
        offsets.push(Position::start_of(last).offset());
        {
            let mut stream = reader.consumer.stream();
            while builder.len() < rows_max && bytes < limit.bytes {
                match stream.next().now_or_never() {
                    Some(Some(Ok(message))) => {
                        let offset = message.offset();
                        if check_record(message.headers(), offset, &reader.place).is_err() {
                            // The next fetch begins with it and says so.
                            reader.at = None;
                            break;
                        }
                        last = offset;
                        reader.at = Some(last + 1);
                        bytes += message.payload_len() + message.key_len();
                        offsets.push(Position::start_of(last).offset());
                        push_record(
                            &mut builder,
                            (message.key(), message.payload()),
                            message.timestamp().to_millis().unwrap_or(0),
                            message.headers(),
                        );
                    }
                    Some(Some(Err(KafkaError::PartitionEOF(_)))) => break,
                    // Left for a fetch that has nothing to return; it has to come back to where this one stopped.
                    Some(_) => {
                        reader.at = None;
                        break;
                    }
                    None => break,
                }
            }
        }
        let next = last + 1;
        self.look_ahead(reader, next).await?;
        let topic = reader.place.topic.to_string();
        metrics::counter!("va_log_fetch_rows_total", "topic" => topic)
            .increment(builder.len() as u64);
        Ok(FetchedRecords {
            batch: builder.finish(),
            offsets,
            next: Position::start_of(next).offset(),
            skipped,
            high: Position::start_of(reader.high.max(next)).offset(),
        })
    }

    /// The same position, moved over what holds no row: equal to the high watermark exactly when everything was read.
    pub(super) async fn settle_position(
        self: &Arc<Self>,
        place: &TopicPartition,
        position: Position,
    ) -> Result<Offset, LogError> {
        let (low, high) = self.ask_records(place).await?;
        let position = position.max(Position::start_of(low));
        if position.record >= high {
            return Ok(position.offset());
        }
        let gap = lock(&self.gaps).get(place).copied();
        if let Some((from, to)) = gap
            && position.row == 0
            && (from..to).contains(&position.record)
            && to >= high
        {
            return Ok(Position::start_of(to).offset());
        }
        let mut reader = self.reader(place, position.record).await?;
        reader.go_to(position.record)?;
        loop {
            let event = tokio::select! {
                event = self.await_event(&mut reader) => event?,
                () = tokio::time::sleep(self.timeout()) => {
                    return Err(LogError::Storage(format!(
                        "kafka: no answer for record {} of `{place}`", position.record
                    )));
                }
                () = self.closed.cancelled() => return Err(LogError::Closed),
            };
            match event {
                // Behind the last row of its record. Where the row is the first, nothing needs to be looked into.
                Event::Record(record)
                    if record.offset == position.record
                        && position.row > 0
                        && position.row as usize >= record.batch(place)?.num_rows() => {}
                Event::Record(record) => {
                    let row = if record.offset == position.record {
                        position.row
                    } else {
                        0
                    };
                    let found = Position {
                        record: record.offset,
                        row,
                    };
                    reader.hold(record);
                    return Ok(found.offset());
                }
                Event::End => {
                    reader.at = Some(high);
                    self.learn_gap(place, position, high);
                    return Ok(Position::start_of(high).offset());
                }
                Event::OutOfRange => return Ok(position.offset()),
            }
        }
    }

    /// See [`crate::log::Log::offset_at`].
    pub(super) async fn offset_at(
        self: &Arc<Self>,
        place: &TopicPartition,
        time_ms: i64,
    ) -> Result<Offset, LogError> {
        let checked = place.clone();
        let (_, high) = self
            .blocking(move |shared| shared.records(&checked))
            .await?;
        let mut reader = self.reader(place, -1).await?;
        let reader = reader.reader.take().expect("just lent");
        let kafka_time = time_ms.max(0);
        let (reader, found) = tokio::task::spawn_blocking({
            let timeout = self.timeout();
            move || {
                let mut list = TopicPartitionList::new();
                let found = list
                    .add_partition_offset(
                        &reader.topic,
                        reader.place.partition.0 as i32,
                        KafkaOffset::Offset(kafka_time),
                    )
                    .and_then(|()| reader.consumer.offsets_for_times(list, timeout));
                (reader, found)
            }
        })
        .await
        .map_err(|e| LogError::Storage(format!("a kafka task failed: {e}")))?;
        self.readers.give(reader);
        let found = found.map_err(|e| self.lost(place, "ask for the offset at a time", &e))?;
        let record = match found.elements().first().map(|element| element.offset()) {
            Some(KafkaOffset::Offset(record)) if record < high => record,
            _ => high,
        };
        // What ends a transaction has a time as well.
        self.settle_position(place, Position::start_of(record))
            .await
    }
}
