//! How a pipeline or a topic names a format: `format: {type: avro, registry: {url: ...}}`.

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use va_catalog::TopicName;

use crate::avro::{AvroDecoder, AvroEncoder, columns_of};
use crate::format::{Decoder, Encoder, FormatError};
use crate::ipc::{ArrowDecoder, ArrowEncoder};
use crate::json::{JsonDecoder, JsonEncoder};
use crate::protobuf::{ProtobufDecoder, ProtobufEncoder};
use crate::registry::RegistryOptions;

/// What the bytes of a message are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FormatSpec {
    /// An Arrow IPC stream.
    Arrow(ArrowOptions),
    /// An Avro record.
    Avro(AvroOptions),
    /// A JSON object.
    Json(JsonOptions),
    /// A Protobuf message.
    Protobuf(ProtobufOptions),
}

/// Options of `arrow`: there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ArrowOptions {}

/// Options of `json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JsonOptions {
    /// A message may hold many objects, one a line: each is a row.
    pub lines: bool,
    /// What is done with a field that the schema does not have.
    pub unknown_fields: UnknownFields,
    /// Written: nulls are written out instead of left out.
    pub nulls: bool,
}

/// What is done with fields that the schema does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownFields {
    /// They are left out.
    #[default]
    Ignore,
    /// The message is a dead letter.
    Refuse,
}

/// What is before the body of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Framing {
    /// Nothing: all messages have one schema.
    None,
    /// A zero byte and the id of the message's schema, as Confluent's serializers write it.
    Confluent,
}

/// Options of `avro`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AvroOptions {
    /// The Avro schema, as JSON text or as a mapping: of bare messages that are read, and of all that are written. Made from
    /// the columns when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// Name of the record in a schema that is made from the columns, e.g. `shop.Order`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is before the body; `confluent` when there is a registry, else `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub framing: Option<Framing>,
    /// Where schemas are found by their ids, and registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<RegistryOptions>,
    /// Schemas by id, beside the registry or instead of one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub schemas: BTreeMap<String, Value>,
}

impl AvroOptions {
    /// The schemas that are written out, by their ids.
    pub fn schemas(&self) -> Result<BTreeMap<u32, &Value>, FormatError> {
        let parse = |(id, schema): (&String, _)| match id.parse() {
            Ok(id) => Ok((id, schema)),
            Err(_) => Err(FormatError::Invalid(format!(
                "`format.schemas` names `{id}`; a schema id is a number"
            ))),
        };
        self.schemas.iter().map(parse).collect()
    }

    /// What is before the body.
    pub fn framing(&self) -> Framing {
        framing(self.framing, self.registry.is_some())
    }
}

/// Options of `protobuf`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProtobufOptions {
    /// The text of the `.proto` file that declares the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Texts of the files that it imports, by the names in its imports. Google's own are known.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub imports: BTreeMap<String, String>,
    /// A descriptor set instead of a text, as `protoc --descriptor_set_out` writes it, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descriptor_set: Option<String>,
    /// Full name of the message, e.g. `shop.Order`. Not needed where the file has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What is before the body; `confluent` when there is a registry, else `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub framing: Option<Framing>,
    /// Where schemas are found by their ids, and registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry: Option<RegistryOptions>,
}

impl ProtobufOptions {
    /// What is before the body.
    pub fn framing(&self) -> Framing {
        framing(self.framing, self.registry.is_some())
    }
}

fn framing(stated: Option<Framing>, has_registry: bool) -> Framing {
    stated.unwrap_or(match has_registry {
        true => Framing::Confluent,
        false => Framing::None,
    })
}

impl FormatSpec {
    /// Every word that `type:` may be.
    pub const KINDS: [&str; 4] = ["arrow", "avro", "json", "protobuf"];

    /// The word after `type:`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Arrow(_) => "arrow",
            Self::Avro(_) => "avro",
            Self::Json(_) => "json",
            Self::Protobuf(_) => "protobuf",
        }
    }

    /// The columns of a schema that is written out in the options, for a source that declares none.
    pub fn columns(&self) -> Result<Option<SchemaRef>, FormatError> {
        match self {
            Self::Avro(AvroOptions {
                schema: Some(schema),
                ..
            }) => columns_of(schema).map(Some),
            _ => Ok(None),
        }
    }

    /// What reads payloads into these columns. Asks nobody yet, and checks everything that can be checked before.
    pub fn decoder(&self, columns: &SchemaRef) -> Result<Box<dyn Decoder>, FormatError> {
        let columns = columns.clone();
        Ok(match self {
            Self::Arrow(_) => Box::new(ArrowDecoder { columns }),
            Self::Avro(options) => Box::new(AvroDecoder::new(columns, options)?),
            Self::Json(options) => Box::new(JsonDecoder::new(columns, options.clone())?),
            Self::Protobuf(options) => Box::new(ProtobufDecoder::new(columns, options)?),
        })
    }

    /// What writes these columns as payloads of a topic. Asks nobody yet, and checks everything that can be checked before.
    pub fn encoder(
        &self,
        columns: &SchemaRef,
        topic: &TopicName,
    ) -> Result<Box<dyn Encoder>, FormatError> {
        Ok(match self {
            Self::Arrow(_) => Box::new(ArrowEncoder),
            Self::Avro(options) => Box::new(AvroEncoder::new(columns, options, topic)?),
            Self::Json(options) => Box::new(JsonEncoder::new(options.clone())),
            Self::Protobuf(options) => Box::new(ProtobufEncoder::new(columns, options, topic)?),
        })
    }
}
