//! From messages to columns: one reader for each type that was met, with its schema from the registry or from here.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{BinaryArray, RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use prost_reflect::{DynamicMessage, FileDescriptor, MessageDescriptor};

use super::columns::{natural, push_field, top};
use super::{compile, message_at, message_of};
use crate::confluent;
use crate::fit::{check, fit};
use crate::format::{Decoded, Decoder, FormatError};
use crate::registry::Registry;
use crate::salvage::by_writer;
use crate::spec::{Framing, ProtobufOptions};

/// Files that one schema of the registry may import, directly or not.
const IMPORTS_MAX: usize = 100;

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
