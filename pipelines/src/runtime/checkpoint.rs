//! The decisions of a checkpoint, as pure functions over plain data: is it complete, is every row accounted for, what
//! goes into the commit.
//!
//! ```text
//! feeder ──batch──► operator ──batch──► sink        barrier n follows the batches on every edge;
//!    │                 │                  │         each node hands its part to the coordinator,
//!    └──── ack n ──────┴───── ack n ──────┴──► coordinator ── publish indexes ── one commit ──► log
//! ```
//! Nothing of checkpoint n is in the log before the commit, and checkpoint n+1 begins after it. Indexes show it just
//! before: who reads of a document in the log finds it.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, StringArray, StructArray, TimestampMillisecondArray, UInt32Array,
    UInt64Array,
};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use va_catalog::event::dead_letter_schema;
use va_catalog::{CollectionRef, Offset, PipelineName, TopicPartition};
use va_connectors::flow::Append;
use va_connectors::log::StateKey;
use va_connectors::log::records::Records;
use va_operators::{Counts, DeadLetter};

use super::traces::{Links, Work};
use crate::plan::Plan;

/// When checkpoints begin and when partitions may be given up: the coordinator's memory, without its I/O. Driven by
/// [`super::task`] and, with every kind of fault, by the simulation.
#[derive(Debug, Default)]
pub struct Progress {
    /// The last checkpoint that was begun.
    last: u64,
    in_flight: bool,
    /// Another checkpoint was asked for while one was in flight.
    wanted: bool,
    /// Partitions to give up, and the first checkpoint that holds everything that was read of them.
    revoked: Vec<(u64, Vec<TopicPartition>)>,
}

impl Progress {
    /// A checkpoint is asked for: the one to begin now. `None` when one is in flight; then another follows it.
    pub fn want(&mut self) -> Option<u64> {
        if self.in_flight {
            self.wanted = true;
            return None;
        }
        self.last += 1;
        self.in_flight = true;
        Some(self.last)
    }

    /// Partitions are to be given up; their feeder has stopped reading them. Returns the checkpoint to begin now, as
    /// [`Progress::want`]. One that is in flight already may lack their last rows, so it is not enough.
    pub fn revoke(&mut self, partitions: Vec<TopicPartition>) -> Option<u64> {
        self.revoked.push((self.last + 1, partitions));
        self.want()
    }

    /// The checkpoint in flight is committed: what may be given up now, and the checkpoint to begin after that.
    pub fn committed(&mut self) -> (Vec<TopicPartition>, Option<u64>) {
        debug_assert!(self.in_flight, "a commit without a checkpoint");
        self.in_flight = false;
        let last = self.last;
        let (released, kept) = std::mem::take(&mut self.revoked)
            .into_iter()
            .partition(|(holds_all, _)| *holds_all <= last);
        self.revoked = kept;
        let released: Vec<(u64, Vec<TopicPartition>)> = released;
        let next = if std::mem::take(&mut self.wanted) {
            self.want()
        } else {
            None
        };
        (
            released
                .into_iter()
                .flat_map(|(_, partitions)| partitions)
                .collect(),
            next,
        )
    }

    /// The last checkpoint that was begun; 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Nothing is in flight or waiting.
    pub fn is_idle(&self) -> bool {
        !self.in_flight && !self.wanted
    }
}

/// What one node hands over at a barrier.
#[derive(Debug, Default)]
pub struct Ack {
    /// Position in [`Plan::nodes`].
    pub node: usize,
    pub counts: Counts,
    /// Rows received on each input since the start.
    pub rows_in: Vec<u64>,
    pub dead_letters: Vec<DeadLetter>,
    pub state: Vec<(StateKey, Option<Bytes>)>,
    pub appends: Vec<Append>,
    /// Of a sink: collections to publish.
    pub collections: Vec<CollectionRef>,
    /// Of a source: the next offset of every partition that it reads.
    pub offsets: Vec<(TopicPartition, Offset)>,
    /// Of a source: the traces that its rows came with.
    pub links: Links,
    /// What was done for this checkpoint; `None` without rows.
    pub work: Option<Work>,
}

/// The acks of one checkpoint while they arrive.
#[derive(Debug)]
pub struct Pending {
    pub id: u64,
    acks: Vec<Option<Ack>>,
}

impl Pending {
    pub fn new(id: u64, nodes: usize) -> Self {
        Self {
            id,
            acks: (0..nodes).map(|_| None).collect(),
        }
    }

    /// Takes an ack; all of them, in node order, when it was the last one.
    pub fn arrived(&mut self, ack: Ack) -> Option<Vec<Ack>> {
        let at = ack.node;
        self.acks[at] = Some(ack);
        if self.acks.iter().all(Option::is_some) {
            Some(self.acks.iter_mut().filter_map(Option::take).collect())
        } else {
            None
        }
    }
}

/// Checks that no row was lost or made up: every operator accounts for its input rows, and what went into an edge came
/// out of it. Returns what does not add up.
pub fn conservation(plan: &Plan, acks: &[Ack]) -> Result<(), String> {
    for (at, node) in plan.nodes.iter().enumerate() {
        let counts = &acks[at].counts;
        if node.source.is_none() && !counts.conserved() {
            return Err(format!(
                "`{}` took {} rows and accounts for {} passed + {} filtered + {} dead-lettered + {} held",
                node.node.name,
                counts.rows_in,
                counts.passed,
                counts.filtered,
                counts.dead_lettered,
                counts.held
            ));
        }
        for (consumer, input) in plan.consumers(at) {
            let received = acks[consumer].rows_in[input];
            if counts.rows_out != received {
                return Err(format!(
                    "`{}` sent {} rows to `{}`, which received {received}",
                    node.node.name, counts.rows_out, plan.nodes[consumer].node.name
                ));
            }
        }
    }
    Ok(())
}

/// Dead letters as rows of the pipeline's dead-letter topic.
pub fn dead_letter_batch(
    pipeline: &PipelineName,
    letters: &[(&str, &DeadLetter)],
    now_ms: i64,
) -> Result<RecordBatch, ArrowError> {
    let mut row_ipc = Vec::with_capacity(letters.len());
    let mut row_json = Vec::with_capacity(letters.len());
    for (_, letter) in letters {
        row_ipc.push(ipc_of(&letter.row)?);
        row_json.push(json_of(&letter.row)?);
    }
    let ids = letters
        .iter()
        .zip(&row_ipc)
        .map(|((operator, letter), ipc)| {
            let mut hasher = blake3_of(pipeline.as_str());
            hasher.update(operator.as_bytes());
            hasher.update(letter.reason.as_bytes());
            hasher.update(ipc);
            hasher.finalize().to_hex()[..32].to_owned()
        });
    let ids: ArrayRef = Arc::new(StringArray::from_iter_values(ids));
    let tenant = |letter: &DeadLetter| {
        va_catalog::chunk::strings(&letter.row, "tenant_id").map_or_else(
            |_| "default".to_owned(),
            |tenants| tenants.value(0).to_owned(),
        )
    };
    let n = letters.len();
    let schema = dead_letter_schema();
    let DataType::Struct(fields) = schema.field(5).data_type() else {
        return Err(ArrowError::SchemaError(
            "the dead-letter schema has no struct payload".into(),
        ));
    };
    let payload = StructArray::try_new(
        fields.clone(),
        vec![
            Arc::new(StringArray::from(vec![pipeline.as_str(); n])),
            Arc::new(StringArray::from_iter_values(
                letters.iter().map(|(operator, _)| operator),
            )),
            Arc::new(StringArray::from_iter_values(
                letters.iter().map(|(_, letter)| &letter.reason),
            )),
            Arc::new(StringArray::from_iter(letters.iter().map(|(_, letter)| {
                letter.partition.as_ref().map(|p| p.topic.as_str())
            }))),
            Arc::new(UInt32Array::from_iter(letters.iter().map(|(_, letter)| {
                letter.partition.as_ref().map(|p| p.partition.0)
            }))),
            Arc::new(UInt64Array::from_iter(
                letters.iter().map(|(_, letter)| letter.offset.map(|o| o.0)),
            )),
            Arc::new(BinaryArray::from_iter_values(&row_ipc)),
            Arc::new(StringArray::from_iter_values(&row_json)),
        ],
        None,
    )?;
    RecordBatch::try_new(
        schema.clone(),
        vec![
            ids,
            Arc::new(StringArray::from(vec!["row.dead_lettered"; n])),
            Arc::new(StringArray::from_iter_values(
                letters.iter().map(|(_, letter)| tenant(letter)),
            )),
            Arc::new(StringArray::new_null(n)),
            Arc::new(TimestampMillisecondArray::from(vec![now_ms; n]).with_timezone("UTC")),
            Arc::new(payload),
        ],
    )
}

fn blake3_of(text: &str) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(text.as_bytes());
    hasher
}

fn ipc_of(row: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &row.schema())?;
    // A slice shares the buffers of its batch; taking copies the one row out of them.
    let row = arrow::compute::take_record_batch(row, &UInt32Array::from(vec![0]))?;
    writer.write(&row)?;
    writer.finish()?;
    writer.into_inner()
}

/// Longest string that `row_json` shows; the whole row is in `row_ipc`.
const JSON_STRING_MAX: usize = 500;

fn json_of(row: &RecordBatch) -> Result<String, ArrowError> {
    if let Some(records) = Records::of(row) {
        // As people read it; the bytes themselves are in `row_ipc`.
        let text =
            |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let headers: serde_json::Map<String, serde_json::Value> = records
            .headers(0)
            .map(|(name, value)| (name.to_owned(), text(value).into()))
            .collect();
        let mut value = serde_json::json!({
            "key": text(records.key(0)), "value": text(records.value(0)), "headers": headers,
        });
        shorten(&mut value);
        return Ok(value.to_string());
    }
    let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
    writer.write(row)?;
    writer.finish()?;
    let mut value: serde_json::Value = serde_json::from_slice(&writer.into_inner())
        .map_err(|error| ArrowError::JsonError(error.to_string()))?;
    shorten(&mut value);
    Ok(value.to_string())
}

fn shorten(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) if text.chars().count() > JSON_STRING_MAX => {
            let kept: String = text.chars().take(JSON_STRING_MAX).collect();
            *text = format!("{kept}… ({} characters)", text.chars().count());
        }
        serde_json::Value::Array(items) => {
            items.truncate(20);
            items.iter_mut().for_each(shorten);
        }
        serde_json::Value::Object(fields) => fields.values_mut().for_each(shorten),
        _ => {}
    }
}
