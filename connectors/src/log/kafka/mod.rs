//! The log on Apache Kafka, through librdkafka: the same trait and the same conformance suite as the embedded log.
//!
//! ```text
//!  finish() ─ begin transaction ─ records ─ state changes ─ offsets + group generation ─ commit ── visible to fetch()
//!                 │                  │           │                  │
//!           transactional id     topics    va.state.<group>   __consumer_offsets        (ONE Kafka transaction)
//! ```
//!
//! **Rows and records.** One record is one Arrow IPC stream with one batch, with the headers `va.rows`, `va.schema` (a
//! fingerprint) and, when there is one, `traceparent`. An [`Offset`](va_catalog::Offset) names a row: the record's
//! offset times 65,536 plus the row within the record. So a position in the middle of a batch can be committed: the
//! group's Kafka offset is the record, the row is in the commit's metadata. Offsets grow but have gaps, because the
//! ends of transactions take offsets of their own; callers count with [`Log::distance`](super::Log::distance).
//! A batch that is too large for one record becomes several, in order, within the same transaction.
//!
//! A commit is visible through this log once it is finished, though Kafka acknowledges it a moment earlier: what asks for
//! the end of a partition waits for it, at most 5 seconds when somebody else's open transaction is before it. Other
//! processes see it within milliseconds, whole.
//!
//! **Guaranteed**, with brokers from 3.7 on: a commit is atomic (readers are `read_committed`); a member that lost a
//! partition cannot commit for it (the broker checks member and generation with the offsets, KIP-447; here ownership
//! is checked a second time); a producer that was replaced cannot write (epoch of its transactional id).
//!
//! **The known hazard.** librdkafka lacks KIP-890 (its issue 5423): when a request of a transaction times out, a late
//! copy of it may still arrive, and without KIP-890 the broker could add it to the producer's next transaction. So after
//! an error or a time-out whose outcome is unknown the producer is dropped and a new one made with the same
//! transactional id: its `init_transactions` waits for or aborts what the former one began and raises the epoch, so
//! that late requests are refused. Only then is the position of a group told again ([`producer::Producers::settle`]),
//! and [`Indefinite`](super::LogError::Indefinite) asks the caller to replay from it. This does not need KIP-890 on the
//! broker; brokers from 4.0 on have their own half of it, which helps only clients that speak it.
//!
//! **State** is written to one compacted topic for each group, `va.state.<group>`, in the commit's transaction, each entry
//! to the partition of its key, and read from a local store that follows the partitions of the keys that are asked for up
//! to their ends before it answers (`state`). Limits: an instance restores what it needs from the topic after each start,
//! and asks the broker for the partitions' ends with each read, of however many keys.
//!
//! **Records** of other programs ([`records`](super::records)) are Kafka's own: one row each, whose offset is the record's
//! times 65,536. They are written in the same transactions, and read many at a time from the same readers. A fetch that
//! expects batches is told [`Corrupt`](super::LogError::Corrupt) with topic, partition and offset.
//!
//! Left to others: schemas (the catalog), and what the bytes of a record mean (`va-formats`).

mod client;
mod codec;
mod commit;
mod diagnose;
mod groups;
mod log;
mod member;
mod names;
mod options;
mod positions;
mod producer;
mod reader;
mod state;
#[cfg(test)]
mod tests;
mod topics;

pub use client::KafkaLog;
pub use options::{Compression, KafkaOptions, Sasl, Security};
