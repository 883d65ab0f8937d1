//! `protobuf`: messages of a type that a `.proto` text or a descriptor set declares, bare or in Confluent's framing.
//!
//! The declared columns decide what is read: fields by name, of a message that is known at run time only. A field without
//! presence has its default where it is not sent, as everywhere in Protobuf; one with presence is null. Enums are texts,
//! `google.protobuf.Timestamp` is a timestamp, the wrappers are nullable values.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, BooleanBuilder, Float32Builder,
    Float64Builder, Int32Builder, Int64Builder, ListArray, MapArray, RecordBatch,
    RecordBatchOptions, StringBuilder, StructArray, TimestampMicrosecondBuilder, UInt32Builder,
    UInt64Builder,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    DataType, Field, FieldRef, Fields, Float32Type, Float64Type, Int32Type, Int64Type, Schema,
    SchemaRef, TimeUnit, TimestampMicrosecondType, UInt32Type, UInt64Type,
};
use async_trait::async_trait;
use base64::Engine;
use prost_reflect::prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MapKey,
    MessageDescriptor, Value,
};
use protobuf::Message as _;
use protobuf::descriptor::FileDescriptorSet;
use va_catalog::TopicName;

use crate::confluent;
use crate::fit::{check, fit};
use crate::format::{Decoded, Decoder, Encoded, Encoder, FormatError};
use crate::registry::{RegisteredSchema, Registry};
use crate::salvage::by_writer;
use crate::spec::{Framing, ProtobufOptions};

/// Name of the file that is given as a text.
const MAIN: &str = "message.proto";
const TIMESTAMP: &str = "google.protobuf.Timestamp";
/// How deep messages may be nested in columns.
const DEPTH_MAX: usize = 32;
/// Files that one schema of the registry may import, directly or not.
const IMPORTS_MAX: usize = 100;

/// Reads the text of a `.proto` file and of those that it imports. The parser reads files, so they are written into a
/// folder that goes again; Google's own it knows by itself.
fn compile(main: &str, imports: &BTreeMap<String, String>) -> Result<FileDescriptor, String> {
    let folder = tempfile::tempdir().map_err(|error| format!("make a folder: {error}"))?;
    for (name, text) in imports.iter().chain([(&MAIN.to_owned(), &main.to_owned())]) {
        let is_plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', ':']);
        if !name.split('/').all(is_plain) {
            return Err(format!("`{name}` is no name of a file to import"));
        }
        let path = folder.path().join(name);
        path.parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, text))
            .map_err(|error| format!("write `{name}`: {error}"))?;
    }
    // The chain of an error is its text: which file, which place, what is wrong there.
    let parsed = protobuf_parse::Parser::new()
        .pure()
        .include(folder.path())
        .input(folder.path().join(MAIN))
        .parse_and_typecheck()
        .map_err(|error| {
            let text = format!("{error:#}");
            text.replace(&format!("{}/", folder.path().display()), "")
        })?;
    let mut set = FileDescriptorSet::new();
    set.file = parsed.file_descriptors;
    let bytes = set.write_to_bytes().map_err(|error| error.to_string())?;
    let pool = DescriptorPool::decode(bytes.as_slice()).map_err(|error| error.to_string())?;
    pool.get_file_by_name(MAIN)
        .ok_or_else(|| "the compiled file is missing".to_owned())
}

/// The message that the options name.
fn message_of(options: &ProtobufOptions) -> Result<Option<MessageDescriptor>, FormatError> {
    let invalid = FormatError::Invalid;
    let (pool, file) = match (&options.schema, &options.descriptor_set) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(invalid(
                "`format` has both `schema` and `descriptor_set`; use one of them".to_owned(),
            ));
        }
        (Some(schema), None) => {
            let file = compile(schema, &options.imports)
                .map_err(|error| invalid(format!("`format.schema`: {error}")))?;
            (file.parent_pool().clone(), Some(file))
        }
        (None, Some(set)) => {
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(set.trim())
                .map_err(|error| {
                    invalid(format!("`format.descriptor_set` is no base64: {error}"))
                })?;
            let pool = DescriptorPool::decode(bytes.as_slice())
                .map_err(|error| invalid(format!("`format.descriptor_set`: {error}")))?;
            (pool, None)
        }
    };
    let names = || {
        let known: Vec<String> = match &file {
            Some(file) => file
                .messages()
                .map(|m| format!("`{}`", m.full_name()))
                .collect(),
            None => pool
                .all_messages()
                .map(|m| format!("`{}`", m.full_name()))
                .collect(),
        };
        known.join(", ")
    };
    let found = match &options.message {
        Some(name) => pool.get_message_by_name(name).ok_or_else(|| {
            invalid(format!(
                "`format.message` is `{name}`, which is not declared; use one of {}",
                names()
            ))
        })?,
        None => {
            let mut messages: Vec<_> = file
                .iter()
                .flat_map(|file| file.messages().collect::<Vec<_>>())
                .collect();
            if messages.len() != 1 {
                return Err(invalid(format!(
                    "name the type in `format.message`; there are {}",
                    names()
                )));
            }
            messages.remove(0)
        }
    };
    Ok(Some(found))
}

/// Which message of its file it is.
fn path_of(message: &MessageDescriptor) -> Vec<usize> {
    let indexes = message.path().iter().skip(1).step_by(2);
    indexes.map(|index| *index as usize).collect()
}

fn message_at(file: &FileDescriptor, path: &[usize]) -> Option<MessageDescriptor> {
    let (first, rest) = path.split_first()?;
    let top = file.messages().nth(*first)?;
    rest.iter()
        .try_fold(top, |message, index| message.child_messages().nth(*index))
}

/// A column in the making. What is pushed is a value of the kind that it was made for.
enum Column {
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
    fn of(field: &FieldDescriptor, wanted: &DataType, depth: usize) -> Result<Self, String> {
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

    fn data_type(&self) -> DataType {
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

    fn push(&mut self, value: Option<&Value>) -> Result<(), String> {
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

    fn finish(&mut self) -> Result<ArrayRef, String> {
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

fn push_field(
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

fn is_wrapper(message: &MessageDescriptor) -> bool {
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

/// Reads messages of one type.
struct Reader {
    message: MessageDescriptor,
    natural: SchemaRef,
    columns: SchemaRef,
}

impl Reader {
    fn new(message: MessageDescriptor, columns: &SchemaRef) -> Result<Self, String> {
        let reader = Self {
            natural: natural(&message, columns)?,
            columns: columns.clone(),
            message,
        };
        // A field without presence always has a value, so only the names and types are held against each other.
        check(&reader.natural, columns)?;
        Ok(reader)
    }

    fn read(&self, bodies: &mut dyn Iterator<Item = &[u8]>) -> Result<RecordBatch, String> {
        let mut columns = top(&self.message, &self.columns)?;
        let mut rows = 0;
        for body in bodies {
            let message = DynamicMessage::decode(self.message.clone(), body)
                .map_err(|error| error.to_string())?;
            for (field, column) in &mut columns {
                push_field(Some(&message), field, column)?;
            }
            rows += 1;
        }
        let arrays = columns
            .iter_mut()
            .map(|(_, column)| column.finish())
            .collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(self.natural.clone(), arrays, &options)
            .map_err(|error| error.to_string())?;
        fit(&batch, &self.columns)
    }
}

fn top(
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
fn natural(message: &MessageDescriptor, columns: &Schema) -> Result<SchemaRef, String> {
    Ok(Arc::new(Schema::new(fields_of(&top(message, columns)?))))
}

/// Reads Protobuf messages into columns.
pub(crate) struct ProtobufDecoder {
    columns: SchemaRef,
    framing: Framing,
    registry: Option<Registry>,
    /// Of bare messages.
    bare: Option<Reader>,
    /// Of framed ones when a schema is given here: whatever id they name.
    file: Option<FileDescriptor>,
    files: HashMap<u32, Result<FileDescriptor, String>>,
    readers: HashMap<(u32, Vec<usize>), Result<Reader, String>>,
}

impl ProtobufDecoder {
    pub(crate) fn new(columns: SchemaRef, options: &ProtobufOptions) -> Result<Self, FormatError> {
        let registry = options.registry.as_ref().map(Registry::new).transpose()?;
        let message = message_of(options)?;
        let framing = options.framing();
        let bare = match &message {
            Some(message) => Some(
                Reader::new(message.clone(), &columns)
                    .map_err(|error| FormatError::Invalid(format!("`format.schema`: {error}")))?,
            ),
            None => None,
        };
        match (framing, &message, &registry) {
            (Framing::None, None, _) => {
                return Err(FormatError::Invalid(
                    "give the message's type: its .proto text as `schema`, or a `descriptor_set`"
                        .to_owned(),
                ));
            }
            (Framing::Confluent, None, None) => {
                return Err(FormatError::Invalid(
                    "messages with a schema id need `registry`, or the `schema` that all of them have".to_owned(),
                ));
            }
            _ => {}
        }
        Ok(Self {
            columns,
            framing,
            file: message
                .map(|message| message.parent_file())
                .filter(|_| registry.is_none()),
            registry,
            bare,
            files: HashMap::new(),
            readers: HashMap::new(),
        })
    }

    async fn fetch(
        &self,
        registry: &Registry,
        id: u32,
    ) -> Result<Result<FileDescriptor, String>, FormatError> {
        let Some(found) = registry.schema(id).await? else {
            return Ok(Err(format!("the registry has no schema {id}")));
        };
        if found.kind != "PROTOBUF" {
            return Ok(Err(format!(
                "schema {id} is {} and not Protobuf",
                found.kind
            )));
        }
        let mut imports = BTreeMap::new();
        let mut wanted = found.references.clone();
        while let Some(reference) = wanted.pop() {
            if imports.contains_key(&reference.name) {
                continue;
            }
            if imports.len() >= IMPORTS_MAX {
                return Ok(Err(format!(
                    "schema {id} imports more than {IMPORTS_MAX} others"
                )));
            }
            let version = registry
                .version(&reference.subject, Some(reference.version))
                .await?;
            let Some(version) = version else {
                return Ok(Err(format!(
                    "schema {id} imports version {} of subject `{}`, which the registry does not have",
                    reference.version, reference.subject
                )));
            };
            wanted.extend(version.schema.references);
            imports.insert(reference.name, version.schema.schema);
        }
        Ok(compile(&found.schema, &imports).map_err(|error| format!("schema {id}: {error}")))
    }
}

#[async_trait]
impl Decoder for ProtobufDecoder {
    async fn prepare(&mut self, payloads: &BinaryArray) -> Result<(), FormatError> {
        if self.framing == Framing::None {
            return Ok(());
        }
        let mut last = None;
        for payload in payloads.iter().flatten() {
            let Ok((id, rest)) = confluent::split(payload) else {
                continue;
            };
            let Ok((path, _)) = confluent::split_indexes(rest) else {
                continue;
            };
            let key = (id, path);
            if last.as_ref() == Some(&key) || matches!(self.readers.get(&key), Some(Ok(_))) {
                last = Some(key);
                continue;
            }
            last = Some(key.clone());
            if let Some(registry) = &self.registry
                && !matches!(self.files.get(&id), Some(Ok(_)))
            {
                let file = self.fetch(&registry.clone(), id).await?;
                self.files.insert(id, file);
            }
            let file = match (&self.file, self.files.get(&id)) {
                (Some(file), _) | (None, Some(Ok(file))) => Ok(file),
                (None, Some(Err(reason))) => Err(reason.clone()),
                (None, None) => Err(format!("schema {id} is not known")),
            };
            let reader = file.and_then(|file| {
                let message = message_at(file, &key.1)
                    .ok_or_else(|| format!("schema {id} has no message at {:?}", key.1))?;
                Reader::new(message, &self.columns)
                    .map_err(|error| format!("written with schema {id}: {error}"))
            });
            self.readers.insert(key, reader);
        }
        Ok(())
    }

    fn decode(&mut self, payloads: &BinaryArray) -> Result<Decoded, FormatError> {
        let framing = self.framing;
        let split = |payload| -> Result<_, String> {
            match framing {
                Framing::None => Ok(((0, Vec::new()), payload)),
                Framing::Confluent => {
                    let (id, rest) = confluent::split(payload)?;
                    let (path, body) = confluent::split_indexes(rest)?;
                    Ok(((id, path), body))
                }
            }
        };
        by_writer(
            &self.columns,
            payloads,
            split,
            |key, bodies| match framing {
                Framing::None => match &self.bare {
                    Some(reader) => reader.read(bodies),
                    None => Err("the message's type is not known".to_owned()),
                },
                Framing::Confluent => match self.readers.get(key) {
                    Some(Ok(reader)) => reader.read(bodies),
                    Some(Err(reason)) => Err(reason.clone()),
                    None => Err(format!("schema {} is not known", key.0)),
                },
            },
        )
    }
}

/// Writes rows as Protobuf messages.
pub(crate) struct ProtobufEncoder {
    message: MessageDescriptor,
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]
mod tests {
    use serde_json::json;
    use va_connectors::schema::parse_schema;

    use super::*;
    use crate::json::{JsonDecoder, JsonEncoder};
    use crate::spec::JsonOptions;

    const PROTO: &str = r#"
        syntax = "proto3";
        package shop;
        import "google/protobuf/timestamp.proto";
        import "google/protobuf/wrappers.proto";
        message Other { string x = 1; }
        message Order {
          int64 id = 1;
          optional string name = 2;
          google.protobuf.Timestamp at = 3;
          repeated string tags = 4;
          enum State { NEW = 0; PAID = 1; }
          State state = 5;
          message Who { string city = 1; int32 n = 2; Order order = 3; }
          Who who = 6;
          google.protobuf.DoubleValue score = 7;
          map<string, int32> counts = 8;
          bytes raw = 9;
        }"#;

    fn columns(text: serde_json::Value) -> SchemaRef {
        parse_schema(text.as_object().unwrap()).unwrap()
    }

    fn order() -> SchemaRef {
        columns(
            json!({"id": "int64!", "name": "string", "at": "timestamp", "tags": "list<string>", "state": "string",
            "who": {"city": "string", "n": "int64"}, "score": "float64", "raw": "binary"}),
        )
    }

    fn options(text: serde_json::Value) -> ProtobufOptions {
        serde_json::from_value(text).unwrap()
    }

    fn topic() -> TopicName {
        TopicName::new("orders").unwrap()
    }

    fn rows(columns: &SchemaRef, lines: &[&str]) -> RecordBatch {
        let payloads = BinaryArray::from_iter_values(lines);
        let decoded = JsonDecoder::new(columns.clone(), JsonOptions::default())
            .unwrap()
            .decode(&payloads)
            .unwrap();
        assert_eq!(decoded.failures, []);
        decoded.batch
    }

    fn shown(batch: &RecordBatch) -> Vec<String> {
        let encoded = JsonEncoder::new(JsonOptions::default())
            .encode(batch)
            .unwrap();
        let text = |payload: Option<&[u8]>| String::from_utf8(payload.unwrap().to_vec()).unwrap();
        encoded.payloads.iter().map(text).collect()
    }

    const ORDERS: [&str; 2] = [
        r#"{"id":1,"name":"小明","at":"2026-01-01T00:00:00.123Z","tags":["a","b"],"state":"PAID","who":{"city":"上海","n":3},"score":1.5,"raw":"00ff"}"#,
        r#"{"id":2,"tags":[],"state":"NEW","raw":""}"#,
    ];

    #[test]
    fn what_is_written_is_read() {
        let options = options(json!({"schema": PROTO, "message": "shop.Order"}));
        let mut encoder = ProtobufEncoder::new(&order(), &options, &topic()).unwrap();
        let payloads = encoder.encode(&rows(&order(), &ORDERS)).unwrap().payloads;
        let mut decoder = ProtobufDecoder::new(order(), &options).unwrap();
        let decoded = decoder.decode(&payloads).unwrap();
        assert_eq!(decoded.failures, []);
        assert_eq!(shown(&decoded.batch), ORDERS);

        let bad = BinaryArray::from(vec![
            Some(payloads.value(1)),
            Some(&b"\xff\xff"[..]),
            None,
            Some(&b""[..]),
        ]);
        let decoded = decoder.decode(&bad).unwrap();
        assert_eq!(decoded.payloads, Some(vec![0, 3]));
        assert_eq!(decoded.failures.len(), 2);
        // An empty message is one whose fields have their defaults.
        assert_eq!(
            shown(&decoded.batch)[1],
            r#"{"id":0,"tags":[],"state":"NEW","raw":""}"#
        );
    }

    #[test]
    fn a_descriptor_set_does_as_well() {
        let message = message_of(&options(json!({"schema": PROTO, "message": "shop.Order"})))
            .unwrap()
            .unwrap();
        let set =
            base64::engine::general_purpose::STANDARD.encode(message.parent_pool().encode_to_vec());
        let options = options(json!({"descriptor_set": set, "message": "shop.Order"}));
        let mut encoder = ProtobufEncoder::new(&order(), &options, &topic()).unwrap();
        let payloads = encoder.encode(&rows(&order(), &ORDERS)).unwrap().payloads;
        let decoded = ProtobufDecoder::new(order(), &options)
            .unwrap()
            .decode(&payloads)
            .unwrap();
        assert_eq!(shown(&decoded.batch), ORDERS);
    }

    #[tokio::test]
    async fn framed_messages_name_their_type() {
        let bare = options(json!({"schema": PROTO, "message": "shop.Order"}));
        let mut encoder = ProtobufEncoder::new(&order(), &bare, &topic()).unwrap();
        let payloads = encoder.encode(&rows(&order(), &ORDERS)).unwrap().payloads;
        let path = path_of(&encoder.message);
        assert_eq!(path, [1]);
        let framed = |path: &[usize], body: &[u8]| {
            [&confluent::header(7)[..], &confluent::indexes(path), body].concat()
        };
        let framed = BinaryArray::from_iter_values([
            framed(&path, payloads.value(0)),
            framed(&[9], payloads.value(0)),
            payloads.value(0).to_vec(),
            framed(&path, payloads.value(1)),
        ]);
        let options =
            options(json!({"schema": PROTO, "message": "shop.Order", "framing": "confluent"}));
        let mut decoder = ProtobufDecoder::new(order(), &options).unwrap();
        decoder.prepare(&framed).await.unwrap();
        let decoded = decoder.decode(&framed).unwrap();
        assert_eq!(decoded.payloads, Some(vec![0, 3]));
        assert_eq!(shown(&decoded.batch), ORDERS);
        assert!(
            decoded.failures[0].reason.contains("no message at [9]"),
            "{:?}",
            decoded.failures
        );
        let nested = message_of(&options_of_nested()).unwrap().unwrap();
        assert_eq!(path_of(&nested), [1, 0]);
        assert_eq!(message_at(&nested.parent_file(), &[1, 0]).unwrap(), nested);
    }

    fn options_of_nested() -> ProtobufOptions {
        options(json!({"schema": PROTO, "message": "shop.Order.Who"}))
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let of = |text| options(text);
        let decoder = |columns, options: &ProtobufOptions| {
            ProtobufDecoder::new(columns, options)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default()
        };
        let good = of(json!({"schema": PROTO, "message": "shop.Order"}));
        for (error, part) in [
            (decoder(order(), &of(json!({}))), "`schema`"),
            (
                decoder(order(), &of(json!({"schema": PROTO}))),
                "`shop.Order`",
            ),
            (
                decoder(order(), &of(json!({"schema": "message {"}))),
                "`format.schema`",
            ),
            (
                decoder(columns(json!({"id": "string"})), &good),
                "column `id` is Int64 in the data and Utf8 is wanted",
            ),
            (
                decoder(columns(json!({"more": "string!"})), &good),
                "`more`",
            ),
        ] {
            assert!(error.contains(part), "{error}");
        }
        let error = ProtobufEncoder::new(&columns(json!({"more": "string"})), &good, &topic())
            .err()
            .unwrap();
        assert!(error.to_string().contains("no field `more`"), "{error}");
        // A new nullable column is null in old messages.
        let newer = columns(json!({"id": "int64!", "more": "string"}));
        assert_eq!(decoder(newer, &good), "");
    }

    #[test]
    fn rates() {
        let columns = columns(
            json!({"id": "int64!", "name": "string", "at": "timestamp", "score": "float64"}),
        );
        let lines: Vec<String> = (0..8_192)
            .map(|i| {
                format!(
                    r#"{{"id":{i},"name":"user-{}","at":"2026-01-01T00:00:{:02}.123Z","score":{}.5}}"#,
                    i % 1000,
                    i % 60,
                    i % 500
                )
            })
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let options = options(json!({"schema": PROTO, "message": "shop.Order"}));
        let batch = rows(&columns, &lines);
        let rounds = 10;
        let mut encoder = ProtobufEncoder::new(&columns, &options, &topic()).unwrap();
        let started = std::time::Instant::now();
        let mut payloads = None;
        for _ in 0..rounds {
            payloads = Some(encoder.encode(&batch).unwrap().payloads);
        }
        let written = f64::from(rounds) * 8_192.0 / started.elapsed().as_secs_f64();
        let payloads = payloads.unwrap();
        let mut decoder = ProtobufDecoder::new(columns, &options).unwrap();
        let started = std::time::Instant::now();
        for _ in 0..rounds {
            assert_eq!(decoder.decode(&payloads).unwrap().batch.num_rows(), 8_192);
        }
        let read = f64::from(rounds) * 8_192.0 / started.elapsed().as_secs_f64();
        println!("protobuf: {read:.0} rows/s read, {written:.0} rows/s written");
    }
}
