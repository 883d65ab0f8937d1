//! Topics: names, partitions, retention and schema of what the log carries.
//!
//! The catalog says what a topic is; making it in the log is left to whoever owns both.

use std::fmt;

use arrow::datatypes::{Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use super::database::{Catalog, Part};
use super::documents::read_number;
use super::error::CatalogError;
use super::page::{Listing, Page};
use super::query::{Row, Transaction, query};
use super::topic_schema::{evolve, schema_from_json, schema_to_json};
use crate::event;
use crate::ids::{TenantId, TopicName};

/// What a topic holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum WireFormat {
    /// Batches of this platform.
    #[default]
    Batches,
    /// Messages as other programs write and read them: the options of their format, `{"type": "json"}`. What they mean is
    /// the formats' business.
    Messages(serde_json::Value),
}

impl WireFormat {
    /// `batches`, or the format's name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Batches => "batches",
            Self::Messages(options) => options["type"].as_str().unwrap_or("unknown"),
        }
    }

    /// The format of messages; `None` for batches.
    pub fn messages(&self) -> Option<&serde_json::Value> {
        match self {
            Self::Batches => None,
            Self::Messages(options) => Some(options),
        }
    }
}

impl fmt::Display for WireFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How long rows are kept. Without a bound they are kept for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    pub ms: Option<u64>,
    /// Of each partition.
    pub bytes: Option<u64>,
}

/// A topic.
#[derive(Debug, Clone, PartialEq)]
pub struct Topic {
    pub name: TopicName,
    pub partitions: u32,
    pub retention: Retention,
    pub wire_format: WireFormat,
    /// `None` accepts any batch.
    pub schema: Option<SchemaRef>,
    pub description: String,
}

/// How often a change of a schema is tried that others keep changing.
const EVOLVE_TRIES: u32 = 32;

/// Retention of most built-in topics, as of a topic made without one.
const SEVEN_DAYS_MS: u64 = 7 * 24 * 3_600_000;

/// The topics that every tenant has.
pub fn built_in_topics() -> Vec<Topic> {
    [
        (
            event::CONVERSATION_EVENTS,
            event::conversation_events_schema(),
            "what becomes of conversations and their messages",
            Some(SEVEN_DAYS_MS),
        ),
        (
            event::DOCUMENT_UPLOADED,
            event::document_uploaded_schema(),
            "document versions that wait to be indexed or removed",
            Some(SEVEN_DAYS_MS),
        ),
        (
            event::DOCUMENT_INDEXED,
            event::document_indexed_schema(),
            "document versions that are in both indexes, or gone from both",
            Some(SEVEN_DAYS_MS),
        ),
        (
            event::LLM_USAGE,
            event::llm_usage_schema(),
            "what calls of models reserve, take and give back",
            // What was spent is the sum of all of it.
            None,
        ),
        (
            event::PLATFORM_ALERT,
            event::platform_alert_schema(),
            "what needs a look, and what does no more",
            Some(SEVEN_DAYS_MS),
        ),
    ]
    .into_iter()
    .filter_map(|(name, schema, description, retention_ms)| {
        Some(Topic {
            // A constant; a test sees to it that it is a valid name.
            name: TopicName::new(name).ok()?,
            partitions: 3,
            retention: Retention {
                ms: retention_ms,
                bytes: None,
            },
            wire_format: WireFormat::Batches,
            schema: Some(schema),
            description: description.to_owned(),
        })
    })
    .collect()
}

const COLUMNS: &str =
    "name, partitions, retention_ms, retention_bytes, format, arrow_schema, description";

impl Catalog {
    /// Registers a topic. [`CatalogError::Exists`] when there is one of that name.
    pub async fn create_topic(&self, tenant: &TenantId, topic: &Topic) -> Result<(), CatalogError> {
        if topic.partitions == 0 {
            return Err(CatalogError::Invalid(format!(
                "topic `{}` has 0 partitions: use at least 1",
                topic.name
            )));
        }
        self.tenant(tenant).await?;
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        let inserted = insert(&mut transaction, tenant, topic, self.now_ms()).await?;
        transaction.commit().await?;
        if inserted {
            Ok(())
        } else {
            Err(CatalogError::exists("topic", &topic.name))
        }
    }

    /// The topic of that name.
    pub async fn topic(&self, tenant: &TenantId, name: &TopicName) -> Result<Topic, CatalogError> {
        let row = query(&format!(
            "SELECT {COLUMNS} FROM topics WHERE tenant_id = $1 AND name = $2"
        ))
        .bind(tenant.as_str())
        .bind(name.as_str())
        .fetch_optional(self.read_of(tenant))
        .await?;
        row.map(|row| read_topic(&row))
            .transpose()?
            .ok_or_else(|| CatalogError::not_found("topic", name))
    }

    /// The tenant's topics, by name.
    pub async fn topics(
        &self,
        tenant: &TenantId,
        page: &Page,
    ) -> Result<Listing<Topic>, CatalogError> {
        let rows = query(&format!(
            "SELECT {COLUMNS} FROM topics WHERE tenant_id = $1 AND name > $2 ORDER BY name LIMIT $3"
        ))
        .bind(tenant.as_str())
        .bind(page.after()?)
        .bind(page.rows()?)
        .fetch_all(self.read_of(tenant))
        .await?;
        let topics = rows.iter().map(read_topic).collect::<Result<_, _>>()?;
        Ok(page.listing(topics, |topic: &Topic| topic.name.as_str()))
    }

    /// Adds the columns that rows of this schema have and the topic does not: see [`evolve`]. Nothing happens when there
    /// are none, or the topic takes any batch.
    pub async fn evolve_topic(
        &self,
        tenant: &TenantId,
        name: &TopicName,
        rows: &Schema,
    ) -> Result<(), CatalogError> {
        // Of processes that do this at the same time each one's columns count: who finds that the schema is another one by now
        // starts over.
        for _ in 0..EVOLVE_TRIES {
            if self.try_evolve_topic(tenant, name, rows).await? {
                return Ok(());
            }
        }
        Err(CatalogError::Invalid(format!(
            "topic `{name}`: its schema was changed by others {EVOLVE_TRIES} times meanwhile; try again"
        )))
    }

    /// False when somebody else changed the schema meanwhile.
    async fn try_evolve_topic(
        &self,
        tenant: &TenantId,
        name: &TopicName,
        rows: &Schema,
    ) -> Result<bool, CatalogError> {
        let mut transaction = self.begin(Part::Tenant(tenant)).await?;
        let row = query(&format!(
            "SELECT {COLUMNS} FROM topics WHERE tenant_id = $1 AND name = $2"
        ))
        .bind(tenant.as_str())
        .bind(name.as_str())
        .fetch_optional(&mut transaction)
        .await?
        .ok_or_else(|| CatalogError::not_found("topic", name))?;
        let mut topic = read_topic(&row)?;
        // As it is stored, which an earlier version may have written otherwise.
        let before: Option<String> = row.try_get("arrow_schema")?;
        let Some(schema) = topic.schema.take() else {
            return Ok(true);
        };
        let evolved = evolve(&schema, rows).map_err(|changes| {
            let lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
            CatalogError::Invalid(format!("topic `{name}`: {}", lines.join("; ")))
        })?;
        if evolved == schema {
            return Ok(true);
        }
        topic.schema = Some(evolved);
        let changed = query(
            "UPDATE topics SET arrow_schema = $3, updated_at = $4 \
             WHERE tenant_id = $1 AND name = $2 AND arrow_schema = $5",
        )
        .bind(tenant.as_str())
        .bind(name.as_str())
        .bind(schema_text(&topic)?)
        .bind(self.now_ms())
        .bind(before)
        .execute(&mut transaction)
        .await?;
        transaction.commit().await?;
        Ok(changed == 1)
    }

    /// Forgets a topic. The built-in ones come back when the catalog is opened again.
    pub async fn delete_topic(
        &self,
        tenant: &TenantId,
        name: &TopicName,
    ) -> Result<(), CatalogError> {
        let deleted = query("DELETE FROM topics WHERE tenant_id = $1 AND name = $2")
            .bind(tenant.as_str())
            .bind(name.as_str())
            .execute(self.write_of(tenant))
            .await?;
        if deleted == 0 {
            return Err(CatalogError::not_found("topic", name));
        }
        Ok(())
    }
}

/// The built-in topics that the tenant does not have yet; the schema of those it has is renewed.
pub(crate) async fn register_built_ins(
    transaction: &mut Transaction,
    tenant: &TenantId,
    now: i64,
) -> Result<(), CatalogError> {
    for topic in built_in_topics() {
        if !insert(transaction, tenant, &topic, now).await? {
            query(
                "UPDATE topics SET arrow_schema = $3, description = $4, updated_at = $5 \
                 WHERE tenant_id = $1 AND name = $2 AND (arrow_schema IS NULL OR arrow_schema <> $3)",
            )
            .bind(tenant.as_str())
            .bind(topic.name.as_str())
            .bind(schema_text(&topic)?)
            .bind(&topic.description)
            .bind(now)
            .execute(&mut *transaction)
            .await?;
        }
    }
    Ok(())
}

/// False when there is one of that name.
async fn insert(
    transaction: &mut Transaction,
    tenant: &TenantId,
    topic: &Topic,
    now: i64,
) -> Result<bool, CatalogError> {
    let inserted = query(
        "INSERT INTO topics (tenant_id, name, partitions, retention_ms, retention_bytes, wire_format, arrow_schema, \
         description, created_at, updated_at, format) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $10) \
         ON CONFLICT (tenant_id, name) DO NOTHING",
    )
    .bind(tenant.as_str())
    .bind(topic.name.as_str())
    .bind(i64::from(topic.partitions))
    .bind(stored_bound("retention.ms", topic.retention.ms)?)
    .bind(stored_bound("retention.bytes", topic.retention.bytes)?)
    .bind(topic.wire_format.as_str())
    .bind(schema_text(topic)?)
    .bind(&topic.description)
    .bind(now)
    .bind(topic.wire_format.messages().map(ToString::to_string))
    .execute(&mut *transaction)
    .await?;
    Ok(inserted > 0)
}

fn schema_text(topic: &Topic) -> Result<Option<String>, CatalogError> {
    topic
        .schema
        .as_ref()
        .map(|schema| Ok(schema_to_json(schema)?.to_string()))
        .transpose()
}

fn stored_bound(name: &str, bound: Option<u64>) -> Result<Option<i64>, CatalogError> {
    bound
        .map(|bound| {
            i64::try_from(bound).map_err(|_| {
                CatalogError::Invalid(format!(
                    "{name} {bound} is too large: use at most {}",
                    i64::MAX
                ))
            })
        })
        .transpose()
}

fn read_topic(row: &Row) -> Result<Topic, CatalogError> {
    let bound = |column| -> Result<Option<u64>, CatalogError> {
        Ok(row.try_get::<Option<i64>>(column)?.map(i64::unsigned_abs))
    };
    let format: Option<String> = row.try_get("format")?;
    let schema: Option<String> = row.try_get("arrow_schema")?;
    Ok(Topic {
        name: TopicName::new(row.try_get::<String>("name")?)?,
        partitions: read_number(row, "partitions")?,
        retention: Retention {
            ms: bound("retention_ms")?,
            bytes: bound("retention_bytes")?,
        },
        wire_format: match format {
            None => WireFormat::Batches,
            Some(format) => WireFormat::Messages(
                serde_json::from_str(&format)
                    .map_err(|_| CatalogError::corrupt("format", &format))?,
            ),
        },
        schema: schema
            .map(|schema| {
                let json = serde_json::from_str(&schema)
                    .map_err(|_| CatalogError::corrupt("arrow_schema", &schema))?;
                schema_from_json(&json)
            })
            .transpose()?,
        description: row.try_get("description")?,
    })
}
