//! Columns that are made of the fields of messages, in the types that these have by themselves.
//!
//! Leaves what a message is to its parent, and fitting to the declared types to `crate::fit`.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Float32Builder, Float64Builder, Int32Builder,
    Int64Builder, ListArray, MapArray, StringBuilder, StructArray, TimestampMicrosecondBuilder,
    UInt32Builder, UInt64Builder,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value,
};

use super::TIMESTAMP;

/// How deep messages may be nested in columns.
const DEPTH_MAX: usize = 32;

/// A column in the making. What is pushed is a value of the kind that it was made for.
pub(super) enum Column {
    Bool(BooleanBuilder),
    I32(Int32Builder),
    I64(Int64Builder),
    U32(UInt32Builder),
    U64(UInt64Builder),
    F32(Float32Builder),
    F64(Float64Builder),
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Enum(EnumDescriptor, StringBuilder),
    Time(TimestampMicrosecondBuilder),
    /// One of the wrappers of `google.protobuf`.
    Wrapped(FieldDescriptor, Box<Column>),
    Struct {
        children: Vec<(FieldDescriptor, Column)>,
        valid: Vec<bool>,
    },
    List {
        item: Box<Column>,
        offsets: Vec<i32>,
    },
    Map {
        key: Box<Column>,
        value: Box<Column>,
        offsets: Vec<i32>,
    },
}

impl Column {
    pub(super) fn of(
        field: &FieldDescriptor,
        wanted: &DataType,
        depth: usize,
    ) -> Result<Self, String> {
        if depth > DEPTH_MAX {
            return Err(format!(
                "field `{}` is nested too deeply",
                field.full_name()
            ));
        }
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else {
                return Err(format!("field `{}` is no map", field.full_name()));
            };
            let value = match wanted {
                DataType::Map(entries, _) => match entries.data_type() {
                    DataType::Struct(fields) if fields.len() == 2 => fields[1].data_type().clone(),
                    _ => DataType::Null,
                },
                _ => DataType::Null,
            };
            return Ok(Self::Map {
                key: Box::new(Self::of_kind(
                    &entry.map_entry_key_field().kind(),
                    &DataType::Null,
                    depth,
                )?),
                value: Box::new(Self::of_kind(
                    &entry.map_entry_value_field().kind(),
                    &value,
                    depth,
                )?),
                offsets: vec![0],
            });
        }
        if field.is_list() {
            let item = match wanted {
                DataType::List(item) | DataType::LargeList(item) => item.data_type(),
                _ => &DataType::Null,
            };
            return Ok(Self::List {
                item: Box::new(Self::of_kind(&field.kind(), item, depth)?),
                offsets: vec![0],
            });
        }
        Self::of_kind(&field.kind(), wanted, depth)
    }

    fn of_kind(kind: &Kind, wanted: &DataType, depth: usize) -> Result<Self, String> {
        Ok(match kind {
            Kind::Double => Self::F64(Float64Builder::new()),
            Kind::Float => Self::F32(Float32Builder::new()),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Self::I32(Int32Builder::new()),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Self::I64(Int64Builder::new()),
            Kind::Uint32 | Kind::Fixed32 => Self::U32(UInt32Builder::new()),
            Kind::Uint64 | Kind::Fixed64 => Self::U64(UInt64Builder::new()),
            Kind::Bool => Self::Bool(BooleanBuilder::new()),
            Kind::String => Self::Text(StringBuilder::new()),
            Kind::Bytes => Self::Bytes(BinaryBuilder::new()),
            Kind::Enum(descriptor) => Self::Enum(descriptor.clone(), StringBuilder::new()),
            Kind::Message(message) if message.full_name() == TIMESTAMP => {
                Self::Time(TimestampMicrosecondBuilder::new().with_timezone("UTC"))
            }
            Kind::Message(message) if is_wrapper(message) => {
                let value = message.get_field(1).ok_or("a wrapper has no value")?;
                let column = Self::of(&value, wanted, depth + 1)?;
                Self::Wrapped(value, Box::new(column))
            }
            Kind::Message(message) => {
                let wanted = match wanted {
                    DataType::Struct(fields) => fields.clone(),
                    _ => Fields::empty(),
                };
                let mut children = Vec::with_capacity(wanted.len());
                for field in &wanted {
                    if let Some(found) = message.get_field_by_name(field.name()) {
                        let column = Self::of(&found, field.data_type(), depth + 1)?;
                        children.push((found, column));
                    }
                }
                Self::Struct {
                    children,
                    valid: Vec::new(),
                }
            }
        })
    }

    pub(super) fn data_type(&self) -> DataType {
        match self {
            Self::Bool(_) => DataType::Boolean,
            Self::I32(_) => DataType::Int32,
            Self::I64(_) => DataType::Int64,
            Self::U32(_) => DataType::UInt32,
            Self::U64(_) => DataType::UInt64,
            Self::F32(_) => DataType::Float32,
            Self::F64(_) => DataType::Float64,
            Self::Text(_) | Self::Enum(..) => DataType::Utf8,
            Self::Bytes(_) => DataType::Binary,
            Self::Time(_) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::Wrapped(_, column) => column.data_type(),
            Self::Struct { children, .. } => DataType::Struct(fields_of(children)),
            Self::List { item, .. } => DataType::List(item_field(item)),
            Self::Map { key, value, .. } => DataType::Map(entries_field(key, value), false),
        }
    }

    pub(super) fn push(&mut self, value: Option<&Value>) -> Result<(), String> {
        match (self, value) {
            (Self::Bool(to), value) => to.append_option(value.and_then(Value::as_bool)),
            (Self::I32(to), value) => to.append_option(value.and_then(Value::as_i32)),
            (Self::I64(to), value) => to.append_option(value.and_then(Value::as_i64)),
            (Self::U32(to), value) => to.append_option(value.and_then(Value::as_u32)),
            (Self::U64(to), value) => to.append_option(value.and_then(Value::as_u64)),
            (Self::F32(to), value) => to.append_option(value.and_then(Value::as_f32)),
            (Self::F64(to), value) => to.append_option(value.and_then(Value::as_f64)),
            (Self::Text(to), value) => to.append_option(value.and_then(Value::as_str)),
            (Self::Bytes(to), value) => to.append_option(value.and_then(Value::as_bytes)),
            (Self::Enum(of, to), value) => match value.and_then(Value::as_enum_number) {
                None => to.append_null(),
                Some(number) => match of.get_value(number) {
                    Some(value) => to.append_value(value.name()),
                    // Of a newer schema.
                    None => to.append_value(number.to_string()),
                },
            },
            (Self::Time(to), value) => match value.and_then(Value::as_message) {
                None => to.append_null(),
                Some(time) => to.append_value(micros(time)?),
            },
            (Self::Wrapped(field, column), value) => match value.and_then(Value::as_message) {
                None => column.push(None)?,
                Some(wrapper) => column.push(Some(&wrapper.get_field(field)))?,
            },
            (Self::Struct { children, valid }, value) => {
                let message = value.and_then(Value::as_message);
                valid.push(message.is_some());
                for (field, column) in children {
                    push_field(message, field, column)?;
                }
            }
            (Self::List { item, offsets }, value) => {
                for value in value.and_then(Value::as_list).into_iter().flatten() {
                    item.push(Some(value))?;
                }
                let count = value.and_then(Value::as_list).map_or(0, <[Value]>::len);
                push_offset(offsets, count)?;
            }
            (
                Self::Map {
                    key,
                    value: of,
                    offsets,
                },
                value,
            ) => {
                let entries = value.and_then(Value::as_map);
                // In the order of their keys: a map has none of its own.
                let mut sorted: Vec<_> = entries.into_iter().flatten().collect();
                sorted.sort_by(|a, b| a.0.cmp(b.0));
                for (name, value) in &sorted {
                    key.push(Some(&Value::from((*name).clone())))?;
                    of.push(Some(value))?;
                }
                push_offset(offsets, sorted.len())?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<ArrayRef, String> {
        let offsets_of = |offsets: &mut Vec<i32>| {
            OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(offsets, vec![0])))
        };
        let wrong = |error: arrow::error::ArrowError| error.to_string();
        let array: ArrayRef = match self {
            Self::Bool(to) => Arc::new(to.finish()),
            Self::I32(to) => Arc::new(to.finish()),
            Self::I64(to) => Arc::new(to.finish()),
            Self::U32(to) => Arc::new(to.finish()),
            Self::U64(to) => Arc::new(to.finish()),
            Self::F32(to) => Arc::new(to.finish()),
            Self::F64(to) => Arc::new(to.finish()),
            Self::Text(to) | Self::Enum(_, to) => Arc::new(to.finish()),
            Self::Bytes(to) => Arc::new(to.finish()),
            Self::Time(to) => Arc::new(to.finish()),
            Self::Wrapped(_, column) => return column.finish(),
            Self::Struct { children, valid } => {
                let fields = fields_of(children);
                let arrays = children
                    .iter_mut()
                    .map(|(_, column)| column.finish())
                    .collect::<Result<Vec<_>, _>>()?;
                let valid = std::mem::take(valid);
                let rows = valid.len();
                let nulls = Some(NullBuffer::from(valid));
                let array = StructArray::try_new_with_length(fields, arrays, nulls, rows);
                Arc::new(array.map_err(wrong)?)
            }
            Self::List { item, offsets } => {
                let field = item_field(item);
                let array = ListArray::try_new(field, offsets_of(offsets), item.finish()?, None);
                Arc::new(array.map_err(wrong)?)
            }
            Self::Map {
                key,
                value,
                offsets,
            } => {
                let field = entries_field(key, value);
                let DataType::Struct(fields) = field.data_type().clone() else {
                    return Err("a map has no entries".to_owned());
                };
                let entries =
                    StructArray::try_new(fields, vec![key.finish()?, value.finish()?], None);
                let array = MapArray::try_new(
                    field,
                    offsets_of(offsets),
                    entries.map_err(wrong)?,
                    None,
                    false,
                );
                Arc::new(array.map_err(wrong)?)
            }
        };
        Ok(array)
    }
}

fn push_offset(offsets: &mut Vec<i32>, count: usize) -> Result<(), String> {
    let last = offsets.last().copied().unwrap_or(0);
    let next = i32::try_from(count)
        .ok()
        .and_then(|count| last.checked_add(count));
    offsets.push(next.ok_or("its lists are too long for one batch")?);
    Ok(())
}

pub(super) fn push_field(
    message: Option<&DynamicMessage>,
    field: &FieldDescriptor,
    column: &mut Column,
) -> Result<(), String> {
    match message {
        Some(message) if !field.supports_presence() || message.has_field(field) => {
            column.push(Some(&message.get_field(field)))
        }
        _ => column.push(None),
    }
}

fn item_field(item: &Column) -> FieldRef {
    Arc::new(Field::new("item", item.data_type(), true))
}

fn entries_field(key: &Column, value: &Column) -> FieldRef {
    let fields = vec![
        Field::new("keys", key.data_type(), false),
        Field::new("values", value.data_type(), true),
    ];
    Arc::new(Field::new(
        "entries",
        DataType::Struct(fields.into()),
        false,
    ))
}

fn fields_of(children: &[(FieldDescriptor, Column)]) -> Fields {
    let field =
        |(of, column): &(FieldDescriptor, Column)| Field::new(of.name(), column.data_type(), true);
    children.iter().map(field).collect()
}

pub(super) fn is_wrapper(message: &MessageDescriptor) -> bool {
    const WRAPPERS: [&str; 9] = [
        "Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes",
    ];
    let name = message.full_name();
    let name = name
        .strip_prefix("google.protobuf.")
        .and_then(|name| name.strip_suffix("Value"));
    name.is_some_and(|name| WRAPPERS.contains(&name))
}

fn micros(time: &DynamicMessage) -> Result<i64, String> {
    let part = |number| {
        time.get_field_by_number(number)
            .map(std::borrow::Cow::into_owned)
    };
    let seconds = part(1).and_then(|value| value.as_i64()).unwrap_or(0);
    let nanos = part(2).and_then(|value| value.as_i32()).unwrap_or(0);
    seconds
        .checked_mul(1_000_000)
        .and_then(|micros| micros.checked_add(i64::from(nanos / 1_000)))
        .ok_or_else(|| format!("the time of {seconds} seconds is out of range"))
}

pub(super) fn top(
    message: &MessageDescriptor,
    columns: &Schema,
) -> Result<Vec<(FieldDescriptor, Column)>, String> {
    let mut found = Vec::with_capacity(columns.fields().len());
    for field in columns.fields() {
        if let Some(of) = message.get_field_by_name(field.name()) {
            let column = Column::of(&of, field.data_type(), 0)?;
            found.push((of, column));
        }
    }
    Ok(found)
}

/// The message's fields that these columns name, in the types that they have by themselves.
pub(super) fn natural(message: &MessageDescriptor, columns: &Schema) -> Result<SchemaRef, String> {
    Ok(Arc::new(Schema::new(fields_of(&top(message, columns)?))))
}
