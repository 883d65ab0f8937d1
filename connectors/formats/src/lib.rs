//! What the bytes of a message mean: payloads to Arrow batches and back, whatever carried them.
//!
//! [`format`] is the seam: a [`Decoder`] turns many payloads into one batch and says which of them it could not read,
//! an [`Encoder`] the reverse. [`FormatSpec`] is how a pipeline names one. [`source`] puts a decoder over the records of a
//! log and adds what a record has beside its payload. [`registry`] is the client of a schema registry, which Avro and
//! Protobuf use. Reading from and writing to a log is left to sources and sinks.

mod avro;
mod avro_schema;
mod confluent;
mod fit;
mod format;
mod ipc;
mod json;
mod metadata;
mod protobuf;
pub mod registry;
mod salvage;
pub mod source;
mod spec;

pub use fit::{check as check_columns, fit as fit_columns};
pub use format::{Decoded, Decoder, Encoded, Encoder, Failure, FormatError};
pub use metadata::{MetadataColumn, is_metadata, payload_columns};
pub use spec::{
    ArrowOptions, AvroOptions, FormatSpec, Framing, JsonOptions, ProtobufOptions, UnknownFields,
};
