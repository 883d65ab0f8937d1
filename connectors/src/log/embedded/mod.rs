//! The embedded log: one directory, one process, on the `fjall` LSM store.
//!
//! ```text
//!  finish() ── encode (any thread) ── queue ─┐
//!  finish() ── encode (any thread) ── queue ─┤  one writer at a time: check owners, give offsets,
//!                                            └─ ONE atomic write over the keyspaces ── fsync? ── wake readers
//!
//!  keyspace   key                                        value
//!  index      topic id, partition, base offset           appended at, rows, bytes     (small: scanned)
//!  batches    topic id, partition, base offset           checksum, Arrow IPC stream   (large: kept apart)
//!  meta       topics, watermarks, format version
//!  offsets    group, topic, partition                    next offset
//!  state      group, namespace, key                      the operator's bytes
//! ```
//!
//! Commits that wait for the writer at the same time share one write and one fsync (each stays atomic: all of them are
//! applied or none). Readers take a snapshot of the store, so they see whole commits only. What an acknowledged commit
//! survives is [`Durability`]'s choice. Left to others: schemas (the catalog), when to call `enforce_retention`.

mod assign;
mod codec;
mod commit;
mod groups;
mod log;
mod member;
mod read;
mod retention;
mod store;
mod sync;
#[cfg(test)]
mod tests;
mod topics;

pub use store::{Clock, Durability, EmbeddedLog, Options};
