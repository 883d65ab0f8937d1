//! What traces tell of a pipeline: one span for each checkpoint that had rows, with one within it for each node.
//!
//! Rows of many requests go through together, so the span is a part of none of their traces and *links* to them. The spans
//! are made when the checkpoint is committed, from what the nodes noted: nothing is held open while rows are under way, and
//! without traces nothing happens here. Nothing of the rows is told but how many they are.

use std::time::{Duration, Instant, SystemTime};

use arrow::record_batch::RecordBatch;
use opentelemetry::trace::{
    Link, Span, SpanBuilder, SpanContext, SpanKind, TraceContextExt, Tracer,
};
use opentelemetry::{Context, KeyValue};
use va_connectors::trace::{TRACEPARENT, read};

use super::checkpoint::Ack;
use crate::plan::Plan;

/// Links of one span at most.
const LINKS_MAX: usize = 32;

/// The traces that the rows of a checkpoint came with, each once.
#[derive(Debug, Default)]
pub struct Links {
    seen: Vec<SpanContext>,
    /// Those that are no longer looked at.
    left_out: u64,
}

impl Links {
    /// Takes note of what a batch came with.
    pub fn add(&mut self, trace: Option<SpanContext>) {
        let Some(trace) = trace else { return };
        if self.seen.contains(&trace) {
            return;
        }
        if self.seen.len() < LINKS_MAX {
            self.seen.push(trace);
        } else {
            self.left_out += 1;
        }
    }
}

/// The span that a batch was sent in, by the metadata of its schema.
pub fn trace_of(batch: &RecordBatch) -> Option<SpanContext> {
    let metadata = batch.schema_ref().metadata();
    metadata.get(TRACEPARENT).and_then(|parent| read(parent))
}

/// What a node did for a checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    first: Instant,
    last: Instant,
    busy: Duration,
    rows: u64,
}

impl Work {
    /// Of a source, which waits more than it works.
    pub fn reading(first: Instant, rows: u64) -> Self {
        Self {
            first,
            last: Instant::now(),
            busy: Duration::ZERO,
            rows,
        }
    }

    /// Adds to the work of a node what it did since `started`.
    pub fn add(work: &mut Option<Self>, started: Instant, rows: u64) {
        let last = Instant::now();
        let work = work.get_or_insert(Self {
            first: started,
            last,
            busy: Duration::ZERO,
            rows: 0,
        });
        work.last = last;
        work.busy += last.saturating_duration_since(started);
        work.rows += rows;
    }
}

/// Tells of a checkpoint that has just been committed; `barrier`: when it was begun.
pub fn tell(plan: &Plan, acks: &[Ack], barrier: Option<Instant>, now: SystemTime) {
    let Some(first) = acks.iter().filter_map(|ack| Some(ack.work?.first)).min() else {
        return;
    };
    let tracer = opentelemetry::global::tracer("va");
    let instant = Instant::now();
    let at = |then: Instant| {
        let ago = instant.saturating_duration_since(then);
        now.checked_sub(ago).unwrap_or(now)
    };
    let pipeline = plan.graph.name.to_string();
    let mut links = Links::default();
    let mut rows = 0;
    for (node, ack) in plan.nodes.iter().zip(acks) {
        ack.links
            .seen
            .iter()
            .for_each(|trace| links.add(Some(trace.clone())));
        links.left_out += ack.links.left_out;
        if node.source.is_some() {
            rows += ack.work.map_or(0, |work| work.rows);
        }
    }
    let whole = SpanBuilder::from_name(format!("process {pipeline}"))
        .with_kind(SpanKind::Consumer)
        .with_start_time(at(first))
        .with_attributes([
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.batch.message_count", rows as i64),
            KeyValue::new("messaging.consumer.group.name", pipeline),
            KeyValue::new("va.links.left_out", links.left_out as i64),
        ])
        .with_links(links.seen.into_iter().map(Link::with_context).collect());
    let mut whole = tracer.build_with_context(whole, &Context::new());
    if whole.is_recording() {
        let parent = Context::new().with_remote_span_context(whole.span_context().clone());
        let within = |name: String, start: Instant, end: SystemTime, more: Vec<KeyValue>| {
            let span = SpanBuilder::from_name(name)
                .with_kind(SpanKind::Internal)
                .with_start_time(at(start))
                .with_attributes(more);
            tracer
                .build_with_context(span, &parent)
                .end_with_timestamp(end);
        };
        for (node, ack) in plan.nodes.iter().zip(acks) {
            let Some(work) = ack.work else { continue };
            let told = vec![
                KeyValue::new("va.node.kind", node.node.kind.clone()),
                KeyValue::new("va.node.rows", work.rows as i64),
                KeyValue::new("va.node.busy_ms", work.busy.as_secs_f64() * 1_000.0),
            ];
            within(node.node.name.to_string(), work.first, at(work.last), told);
        }
        if let Some(barrier) = barrier {
            within("checkpoint".to_owned(), barrier, now, Vec::new());
        }
    }
    whole.end_with_timestamp(now);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use arrow::datatypes::Schema;

    use super::*;

    #[test]
    fn links_are_bounded_and_each_is_there_once() {
        let of = |number: usize| read(&format!("00-{number:032x}-{number:016x}-01"));
        let mut links = Links::default();
        links.add(None);
        for number in 1..=LINKS_MAX + 2 {
            links.add(of(number));
            links.add(of(1));
        }
        assert_eq!((links.seen.len(), links.left_out), (LINKS_MAX, 2));
    }

    #[test]
    fn a_batch_names_its_trace_in_the_metadata_of_its_schema() {
        let of = |metadata: HashMap<String, String>| {
            let schema = Schema::empty().with_metadata(metadata);
            trace_of(&RecordBatch::new_empty(Arc::new(schema)))
        };
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let given = |value: &str| HashMap::from([(TRACEPARENT.to_owned(), value.to_owned())]);
        assert_eq!(of(given(parent)), read(parent));
        assert_eq!(of(given("none")), None);
        assert_eq!(of(HashMap::new()), None);
    }

    #[test]
    fn work_is_from_the_first_batch_to_the_last() {
        let mut work = None;
        let started = Instant::now();
        Work::add(&mut work, started, 3);
        Work::add(&mut work, Instant::now(), 4);
        let work = work.unwrap();
        assert_eq!((work.first, work.rows), (started, 7));
        assert!(work.last >= work.first && work.busy <= work.last - work.first);
    }
}
