//! One dead letter, as read from its topic.

use std::fmt;
use std::str::FromStr;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMillisecondType;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use va_catalog::chunk::{column, strings, u32s, u64s};
use va_catalog::{
    CollectionName, CollectionRef, DocumentId, Offset, Partition, TenantId, TopicName,
    TopicPartition, Version,
};
use va_connectors::log::LogBatch;
use va_pipelines::fixture::batch_to_rows;

use super::DeadLetterError;

/// A letter's place in its topic, written `partition-offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LetterId {
    pub partition: Partition,
    pub offset: Offset,
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.partition.0, self.offset.0)
    }
}

impl FromStr for LetterId {
    type Err = DeadLetterError;

    fn from_str(text: &str) -> Result<Self, DeadLetterError> {
        text.split_once('-')
            .and_then(|(partition, offset)| {
                Some(Self {
                    partition: Partition(partition.parse().ok()?),
                    offset: Offset(offset.parse().ok()?),
                })
            })
            .ok_or_else(|| {
                DeadLetterError::Invalid(format!(
                    "`{text}` is not the id of a dead letter; ids are partition-offset, such as 0-17"
                ))
            })
    }
}

impl TryFrom<String> for LetterId {
    type Error = DeadLetterError;

    fn try_from(text: String) -> Result<Self, DeadLetterError> {
        text.parse()
    }
}

impl From<LetterId> for String {
    fn from(id: LetterId) -> Self {
        id.to_string()
    }
}

/// The row of the log that the failing row was made from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SourceRow {
    pub topic: TopicName,
    pub partition: Partition,
    /// `None` behind a step that makes one row into many.
    pub offset: Option<Offset>,
}

impl SourceRow {
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition {
            topic: self.topic.clone(),
            partition: self.partition,
        }
    }
}

/// The document that the failing row belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentOf {
    pub tenant: TenantId,
    pub collection: CollectionName,
    pub id: DocumentId,
    pub version: Version,
    pub name: String,
    pub uri: String,
}

impl DocumentOf {
    pub fn collection(&self) -> CollectionRef {
        CollectionRef {
            tenant: self.tenant.clone(),
            collection: self.collection.clone(),
        }
    }

    /// `None` when the row is not one of a document: an event of `document.uploaded`, a parsed document or a chunk.
    fn of(row: &RecordBatch) -> Option<Self> {
        let tenant = TenantId::new(strings(row, "tenant_id").ok()?.value(0)).ok()?;
        let fields = match column(row, "payload").ok().and_then(|p| p.as_struct_opt()) {
            Some(payload) => RecordBatch::from(payload.clone()),
            None => row.clone(),
        };
        let text = |name: &str| Some(strings(&fields, name).ok()?.value(0).to_owned());
        Some(Self {
            tenant,
            collection: CollectionName::new(text("collection")?).ok()?,
            id: text("document_id")?.parse().ok()?,
            version: Version(u32s(&fields, "version").ok()?.value(0)),
            name: text("name")?,
            uri: text("uri")?,
        })
    }
}

/// A row that a pipeline could not process.
#[derive(Debug, Clone)]
pub struct Letter {
    pub id: LetterId,
    /// Derived from pipeline, operator, reason and row: equal for two letters that say the same.
    pub event_id: String,
    pub tenant: String,
    /// UTC milliseconds.
    pub failed_at_ms: i64,
    pub operator: String,
    pub reason: String,
    pub source: Option<SourceRow>,
    pub document: Option<DocumentOf>,
    /// For people: long text is shortened.
    pub row_json: String,
    /// The whole row, an Arrow IPC stream.
    pub row_ipc: Vec<u8>,
    /// When it was sent through the pipeline again, UTC milliseconds.
    pub retried_at_ms: Option<i64>,
}

impl Letter {
    /// The letters of a stored batch, in offset order.
    pub fn read(partition: Partition, stored: &LogBatch) -> Result<Vec<Self>, ArrowError> {
        let batch = &stored.batch;
        let payload = column(batch, "payload")?
            .as_struct_opt()
            .map(|payload| RecordBatch::from(payload.clone()))
            .ok_or_else(|| ArrowError::SchemaError("column `payload` is not a struct".into()))?;
        let event_id = strings(batch, "event_id")?;
        let tenant = strings(batch, "tenant_id")?;
        let failed_at = column(batch, "timestamp")?
            .as_primitive_opt::<TimestampMillisecondType>()
            .ok_or_else(|| ArrowError::SchemaError("column `timestamp` is not one".into()))?;
        let operator = strings(&payload, "operator")?;
        let reason = strings(&payload, "reason")?;
        let source_topic = strings(&payload, "source_topic")?;
        let source_partition = u32s(&payload, "source_partition")?;
        let source_offset = u64s(&payload, "source_offset")?;
        let row_json = strings(&payload, "row_json")?;
        let row_ipc = column(&payload, "row_ipc")?
            .as_binary_opt::<i32>()
            .ok_or_else(|| ArrowError::SchemaError("column `row_ipc` is not Binary".into()))?;
        (0..batch.num_rows())
            .map(|row| {
                let source = (source_topic.is_valid(row) && source_partition.is_valid(row))
                    .then(|| TopicName::new(source_topic.value(row)).ok())
                    .flatten()
                    .map(|topic| SourceRow {
                        topic,
                        partition: Partition(source_partition.value(row)),
                        offset: source_offset
                            .is_valid(row)
                            .then(|| Offset(source_offset.value(row))),
                    });
                let row_ipc = row_ipc.value(row).to_vec();
                Ok(Self {
                    id: LetterId {
                        partition,
                        offset: Offset(stored.base.0 + row as u64),
                    },
                    event_id: event_id.value(row).to_owned(),
                    tenant: tenant.value(row).to_owned(),
                    failed_at_ms: failed_at.value(row),
                    operator: operator.value(row).to_owned(),
                    reason: reason.value(row).to_owned(),
                    source,
                    document: decode(&row_ipc).ok().and_then(|row| DocumentOf::of(&row)),
                    row_json: row_json.value(row).to_owned(),
                    row_ipc,
                    retried_at_ms: None,
                })
            })
            .collect()
    }

    /// The whole failing row.
    pub fn row(&self) -> Result<Map<String, Value>, ArrowError> {
        batch_to_rows(&decode(&self.row_ipc)?)
            .map_err(ArrowError::JsonError)?
            .into_iter()
            .next()
            .ok_or_else(|| ArrowError::IpcError("the letter holds no row".into()))
    }
}

fn decode(row_ipc: &[u8]) -> Result<RecordBatch, ArrowError> {
    StreamReader::try_new(row_ipc, None)?
        .next()
        .unwrap_or_else(|| Err(ArrowError::IpcError("the letter holds no row".into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_partition_and_offset() {
        let id: LetterId = "2-17".parse().expect("an id");
        assert_eq!((id.partition, id.offset), (Partition(2), Offset(17)));
        assert_eq!(id.to_string(), "2-17");
        for wrong in ["", "2", "2-", "-2", "2-x", "a-1", "2-1-3", "0x1-2"] {
            assert!(wrong.parse::<LetterId>().is_err(), "{wrong}");
        }
    }
}
