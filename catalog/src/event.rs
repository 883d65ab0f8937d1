//! The built-in topics and the Arrow schemas of what flows through them and through the `index` pipeline.
//!
//! Every event begins with the envelope columns; what is particular to an event type is the struct column `payload`.
//! Chunk rows, which are not events, are described in [`crate::chunk`].

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

/// `document.uploaded`: a document version waits to be indexed, or (`event_type` = `document.deleted`) to be removed.
pub const DOCUMENT_UPLOADED: &str = "document.uploaded";
/// `document.indexed`: a document version is in both indexes (or gone from both), written in the commit that made it so.
pub const DOCUMENT_INDEXED: &str = "document.indexed";
/// `platform.alert`: something needs a look, or does no more.
pub const PLATFORM_ALERT: &str = "platform.alert";
/// `conversation.events`: what becomes of conversations and their messages.
pub const CONVERSATION_EVENTS: &str = "conversation.events";
/// `llm.usage`: what calls of models reserve, take and give back.
pub const LLM_USAGE: &str = "llm.usage";
/// Event type of `llm.usage`: a call begins and may cost so much.
pub const LLM_RESERVED: &str = "llm.reserved";
/// Event type of `llm.usage`: a call ended and took this.
pub const LLM_SETTLED: &str = "llm.settled";
/// Event type of `llm.usage`: a call ended and took nothing.
pub const LLM_RELEASED: &str = "llm.released";
/// Event type of a removal on the topic `document.uploaded`.
pub const DOCUMENT_DELETED: &str = "document.deleted";

/// Time in events: UTC, milliseconds.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

/// `event_id, event_type, tenant_id, user_id, timestamp, payload`, with the given payload fields.
pub fn event_schema(payload: Fields) -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("event_id", DataType::Utf8, false),
        Field::new("event_type", DataType::Utf8, false),
        Field::new("tenant_id", DataType::Utf8, false),
        Field::new("user_id", DataType::Utf8, true),
        Field::new("timestamp", timestamp_type(), false),
        Field::new("payload", DataType::Struct(payload), false),
    ]))
}

/// Schema of `document.uploaded`. `metadata` is a JSON object of strings.
pub fn document_uploaded_schema() -> SchemaRef {
    event_schema(Fields::from(vec![
        Field::new("collection", DataType::Utf8, false),
        Field::new("document_id", DataType::Utf8, false),
        Field::new("version", DataType::UInt32, false),
        Field::new("name", DataType::Utf8, false),
        Field::new("uri", DataType::Utf8, false),
        Field::new("content_type", DataType::Utf8, true),
        Field::new("content_hash", DataType::Utf8, false),
        Field::new("size", DataType::UInt64, false),
        Field::new("metadata", DataType::Utf8, false),
        // Whether the document gets vectors; without a value it does. False in collections for keyword search only.
        Field::new("vectors", DataType::Boolean, true),
    ]))
}

/// Schema of `document.indexed`. `chunks` is 0 for a removed document.
pub fn document_indexed_schema() -> SchemaRef {
    event_schema(Fields::from(vec![
        Field::new("collection", DataType::Utf8, false),
        Field::new("document_id", DataType::Utf8, false),
        Field::new("version", DataType::UInt32, false),
        Field::new("title", DataType::Utf8, true),
        Field::new("chunks", DataType::UInt32, false),
    ]))
}

/// Schema of `conversation.events`. `kind` is `created`, `finished`, `deleted` or `feedback`; without `message_id` it is about
/// the conversation. What was said is not in here: a tenant's readers of topics are not the owners of its conversations.
pub fn conversation_events_schema() -> SchemaRef {
    event_schema(Fields::from(vec![
        Field::new("conversation_id", DataType::Utf8, false),
        Field::new("message_id", DataType::Utf8, true),
        Field::new("kind", DataType::Utf8, false),
        // `user` or `assistant`.
        Field::new("role", DataType::Utf8, true),
        // `complete`, `writing` or `partial`.
        Field::new("state", DataType::Utf8, true),
        // Length of the content in characters.
        Field::new("chars", DataType::UInt64, true),
        // `up` or `down`.
        Field::new("feedback", DataType::Utf8, true),
        // Of a question: `question`, `task`, `complaint`, `greeting` or `handover`.
        Field::new("intent", DataType::Utf8, true),
        // Of a question: `positive`, `neutral` or `negative`, and from -1 to 1.
        Field::new("sentiment", DataType::Utf8, true),
        Field::new("sentiment_score", DataType::Float64, true),
        // Of a question: whether a human is asked for.
        Field::new("handover_requested", DataType::Boolean, true),
    ]))
}

/// Schema of `platform.alert`. `state` is `raised` or `cleared`, `subject` names what the alert is about, as its kind says.
pub fn platform_alert_schema() -> SchemaRef {
    event_schema(Fields::from(vec![
        Field::new("alert", DataType::Utf8, false),
        Field::new("state", DataType::Utf8, false),
        Field::new("subject", DataType::Utf8, false),
        Field::new("detail", DataType::Utf8, false),
    ]))
}

/// Decimal places of money in events: a millionth of the least price of a token.
pub const MONEY_SCALE: i8 = 12;

/// Schema of `llm.usage`. A reservation is `llm.reserved`, and one of `llm.settled` and `llm.released` with the same
/// `reservation_id` ends it. `cost` is what may be (`llm.reserved`) or was (`llm.settled`) to be paid; the sum of
/// what was settled is what was spent.
pub fn llm_usage_schema() -> SchemaRef {
    event_schema(Fields::from(vec![
        Field::new("reservation_id", DataType::Utf8, false),
        // As the client named it, or we did for it.
        Field::new("request_id", DataType::Utf8, false),
        Field::new("attempt", DataType::UInt32, false),
        // The process that made the call.
        Field::new("process", DataType::Utf8, false),
        Field::new("key_id", DataType::Utf8, true),
        Field::new("model", DataType::Utf8, false),
        Field::new("deployment", DataType::Utf8, false),
        Field::new("provider", DataType::Utf8, false),
        Field::new("upstream_model", DataType::Utf8, false),
        Field::new("input_tokens", DataType::UInt64, false),
        Field::new("cached_tokens", DataType::UInt64, false),
        Field::new("cache_write_tokens", DataType::UInt64, false),
        Field::new("output_tokens", DataType::UInt64, false),
        Field::new("reasoning_tokens", DataType::UInt64, false),
        Field::new("cost", DataType::Decimal128(38, MONEY_SCALE), false),
        Field::new("currency", DataType::Utf8, false),
        // Whether the tokens are an estimate, because the provider told none.
        Field::new("estimated", DataType::Boolean, false),
        // `ok`, `cached` (nobody was asked), `cancelled`, or why it failed; without a value while it runs.
        Field::new("outcome", DataType::Utf8, true),
        Field::new("latency_ms", DataType::UInt64, true),
        Field::new("first_token_ms", DataType::UInt64, true),
        // Of calls of voice models: how long the audio was that they heard, and how much text they read.
        Field::new("audio_seconds", DataType::UInt64, true),
        Field::new("characters", DataType::UInt64, true),
    ]))
}

/// Schema of every `<pipeline>.dead_letter` topic: where the row came from, why it failed, and its bytes.
pub fn dead_letter_schema() -> SchemaRef {
    event_schema(Fields::from(vec![
        Field::new("pipeline", DataType::Utf8, false),
        Field::new("operator", DataType::Utf8, false),
        Field::new("reason", DataType::Utf8, false),
        // The source row that the failing row was made from; no offset behind a step that makes one row into many.
        Field::new("source_topic", DataType::Utf8, true),
        Field::new("source_partition", DataType::UInt32, true),
        Field::new("source_offset", DataType::UInt64, true),
        // The failing row as an Arrow IPC stream, so that it can be retried unchanged ...
        Field::new("row_ipc", DataType::Binary, false),
        // ... and as JSON, so that a person can read it (long text shortened).
        Field::new("row_json", DataType::Utf8, false),
    ]))
}

/// One block of a parsed document, see `va-parse`.
pub fn block_fields() -> Fields {
    Fields::from(vec![
        Field::new("kind", DataType::Utf8, false),
        Field::new("level", DataType::UInt8, true),
        Field::new("start", DataType::UInt64, false),
        Field::new("end", DataType::UInt64, false),
        Field::new("page", DataType::UInt32, true),
        Field::new("title_path", string_list(), false),
    ])
}

/// `List<Utf8>` with non-null items.
pub fn string_list() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Utf8, false)))
}

/// What `parse` emits: one row a document. `op` is `upsert`, or `delete` with empty text and no blocks.
/// Block offsets are bytes of `text`.
pub fn parsed_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("op", DataType::Utf8, false),
        Field::new("tenant_id", DataType::Utf8, false),
        Field::new("collection", DataType::Utf8, false),
        Field::new("document_id", DataType::Utf8, false),
        Field::new("version", DataType::UInt32, false),
        Field::new("name", DataType::Utf8, false),
        Field::new("uri", DataType::Utf8, false),
        Field::new("format", DataType::Utf8, true),
        Field::new("encoding", DataType::Utf8, true),
        Field::new("title", DataType::Utf8, true),
        Field::new("pages", DataType::UInt32, true),
        Field::new("metadata", DataType::Utf8, false),
        Field::new("vectors", DataType::Boolean, true),
        Field::new("text", DataType::LargeUtf8, false),
        Field::new(
            "blocks",
            DataType::List(Arc::new(Field::new(
                "item",
                DataType::Struct(block_fields()),
                false,
            ))),
            false,
        ),
    ]))
}
