//! From rows to messages, each behind the header that its framing wants.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, RecordBatch};
use arrow::datatypes::{
    Float32Type, Float64Type, Int32Type, Int64Type, SchemaRef, TimestampMicrosecondType,
    UInt32Type, UInt64Type,
};
use async_trait::async_trait;
use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use va_catalog::TopicName;

use super::columns::{is_wrapper, natural};
use super::{TIMESTAMP, message_of, path_of};
use crate::confluent;
use crate::fit::{check, fit};
use crate::format::{Encoded, Encoder, FormatError};
use crate::registry::{RegisteredSchema, Registry};
use crate::spec::{Framing, ProtobufOptions};

/// Writes rows as Protobuf messages.
pub(crate) struct ProtobufEncoder {
    pub(super) message: MessageDescriptor,
    natural: SchemaRef,
    /// Before each body.
    header: Vec<u8>,
    /// Until the id is known.
    unregistered: Option<(Registry, String, RegisteredSchema, bool)>,
}

impl ProtobufEncoder {
    pub(crate) fn new(
        columns: &SchemaRef,
        options: &ProtobufOptions,
        topic: &TopicName,
    ) -> Result<Self, FormatError> {
        let message = message_of(options)?.ok_or_else(|| {
            FormatError::Invalid(
                "give the type that messages are written as: its .proto text as `schema`, or a `descriptor_set`".to_owned(),
            )
        })?;
        for column in columns.fields() {
            if message.get_field_by_name(column.name()).is_none() {
                return Err(FormatError::Invalid(format!(
                    "message `{}` has no field `{}`; add it to the .proto, or drop the column in a `map`",
                    message.full_name(),
                    column.name()
                )));
            }
        }
        let invalid = |error: String| {
            FormatError::Invalid(format!("the rows do not fit `format.schema`: {error}"))
        };
        let natural = natural(&message, columns).map_err(invalid)?;
        check(columns, &natural).map_err(invalid)?;
        let path = path_of(&message);
        let mut encoder = Self {
            message,
            natural,
            header: Vec::new(),
            unregistered: None,
        };
        match (options.framing(), &options.registry, &options.schema) {
            (Framing::None, ..) => {}
            (Framing::Confluent, Some(registry), Some(schema)) if options.imports.is_empty() => {
                let subject = registry.subject.subject(topic, encoder.message.full_name());
                let schema = RegisteredSchema {
                    schema: schema.clone(),
                    kind: "PROTOBUF".to_owned(),
                    references: Vec::new(),
                };
                encoder.header = confluent::indexes(&path);
                encoder.unregistered =
                    Some((Registry::new(registry)?, subject, schema, registry.register));
            }
            (Framing::Confluent, ..) => {
                return Err(FormatError::Invalid(
                    "messages with a schema id are written with `registry` and a `schema` without imports of its own".to_owned(),
                ));
            }
        }
        Ok(encoder)
    }
}

#[async_trait]
impl Encoder for ProtobufEncoder {
    async fn prepare(&mut self) -> Result<(), FormatError> {
        let Some((registry, subject, schema, register)) = &self.unregistered else {
            return Ok(());
        };
        let id = registry.id_of(subject, schema, *register).await?;
        self.header = [&confluent::header(id)[..], &self.header].concat();
        self.unregistered = None;
        Ok(())
    }

    fn encode(&mut self, batch: &RecordBatch) -> Result<Encoded, FormatError> {
        if self.unregistered.is_some() {
            return Err(FormatError::Invalid(
                "the schema id is not known yet: `prepare` comes first".to_owned(),
            ));
        }
        let fitted = fit(batch, &self.natural).map_err(FormatError::Invalid)?;
        let schema = fitted.schema();
        let fields: Vec<(FieldDescriptor, &ArrayRef)> = schema
            .fields()
            .iter()
            .zip(fitted.columns())
            .filter_map(|(field, array)| {
                Some((self.message.get_field_by_name(field.name())?, array))
            })
            .collect();
        let mut payloads = BinaryBuilder::with_capacity(fitted.num_rows(), fitted.num_rows() * 64);
        let mut bytes = Vec::new();
        for row in 0..fitted.num_rows() {
            let mut message = DynamicMessage::new(self.message.clone());
            for (field, array) in &fields {
                set(&mut message, field, array.as_ref(), row).map_err(|error| {
                    FormatError::Invalid(format!("row {row}, column `{}`: {error}", field.name()))
                })?;
            }
            bytes.clear();
            bytes.extend_from_slice(&self.header);
            message
                .encode(&mut bytes)
                .map_err(|error| FormatError::invalid("write a message", error))?;
            payloads.append_value(&bytes);
        }
        Ok(Encoded {
            payloads: payloads.finish(),
            by_row: true,
        })
    }
}

fn set(
    message: &mut DynamicMessage,
    field: &FieldDescriptor,
    array: &dyn Array,
    row: usize,
) -> Result<(), String> {
    if array.is_null(row) {
        return Ok(());
    }
    let value = if field.is_map() {
        let Kind::Message(entry) = field.kind() else {
            return Err("it is no map".to_owned());
        };
        let entries = array.as_map().value(row);
        let (keys, values) = (entries.column(0), entries.column(1));
        let (key, of) = (
            entry.map_entry_key_field().kind(),
            entry.map_entry_value_field().kind(),
        );
        let mut map = HashMap::new();
        for i in 0..entries.len() {
            let name = value_of(&key, keys.as_ref(), i)?;
            let name = key_of(name).ok_or("it is no key of a map")?;
            map.insert(name, value_of(&of, values.as_ref(), i)?);
        }
        Value::Map(map)
    } else if field.is_list() {
        let items = array.as_list::<i32>().value(row);
        let kind = field.kind();
        let values = (0..items.len()).map(|i| match items.is_null(i) {
            true => Err("a repeated field has no nulls".to_owned()),
            false => value_of(&kind, items.as_ref(), i),
        });
        Value::List(values.collect::<Result<_, _>>()?)
    } else {
        value_of(&field.kind(), array, row)?
    };
    message
        .try_set_field(field, value)
        .map_err(|error| error.to_string())
}

fn key_of(value: Value) -> Option<MapKey> {
    Some(match value {
        Value::Bool(value) => MapKey::Bool(value),
        Value::I32(value) => MapKey::I32(value),
        Value::I64(value) => MapKey::I64(value),
        Value::U32(value) => MapKey::U32(value),
        Value::U64(value) => MapKey::U64(value),
        Value::String(value) => MapKey::String(value),
        _ => return None,
    })
}

/// A value that is not null, of an array in the kind's natural type.
fn value_of(kind: &Kind, array: &dyn Array, row: usize) -> Result<Value, String> {
    Ok(match kind {
        Kind::Double => Value::F64(array.as_primitive::<Float64Type>().value(row)),
        Kind::Float => Value::F32(array.as_primitive::<Float32Type>().value(row)),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            Value::I32(array.as_primitive::<Int32Type>().value(row))
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            Value::I64(array.as_primitive::<Int64Type>().value(row))
        }
        Kind::Uint32 | Kind::Fixed32 => Value::U32(array.as_primitive::<UInt32Type>().value(row)),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(array.as_primitive::<UInt64Type>().value(row)),
        Kind::Bool => Value::Bool(array.as_boolean().value(row)),
        Kind::String => Value::String(array.as_string::<i32>().value(row).to_owned()),
        Kind::Bytes => Value::Bytes(array.as_binary::<i32>().value(row).to_vec().into()),
        Kind::Enum(of) => {
            let text = array.as_string::<i32>().value(row);
            let number = of.get_value_by_name(text).map(|value| value.number());
            let number = number.or_else(|| text.parse().ok());
            Value::EnumNumber(
                number.ok_or_else(|| format!("`{text}` is no value of `{}`", of.full_name()))?,
            )
        }
        Kind::Message(message) if message.full_name() == TIMESTAMP => {
            let micros = array.as_primitive::<TimestampMicrosecondType>().value(row);
            let mut time = DynamicMessage::new(message.clone());
            time.set_field_by_number(1, Value::I64(micros.div_euclid(1_000_000)));
            time.set_field_by_number(2, Value::I32((micros.rem_euclid(1_000_000) * 1_000) as i32));
            Value::Message(time)
        }
        Kind::Message(message) if is_wrapper(message) => {
            let field = message.get_field(1).ok_or("a wrapper has no value")?;
            let mut wrapper = DynamicMessage::new(message.clone());
            set(&mut wrapper, &field, array, row)?;
            Value::Message(wrapper)
        }
        Kind::Message(message) => {
            let of = array.as_struct();
            let mut inner = DynamicMessage::new(message.clone());
            for (field, child) in of.fields().iter().zip(of.columns()) {
                if let Some(found) = message.get_field_by_name(field.name()) {
                    set(&mut inner, &found, child.as_ref(), row)?;
                }
            }
            Value::Message(inner)
        }
    })
}
