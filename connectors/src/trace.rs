//! Traces across processes: reading and writing `traceparent`, and the trace that the running code belongs to.
//!
//! Code that is worth a span of its own makes one with the target [`TARGET`]; nothing but the layer that `va-serving` sets
//! up when traces are exported looks at that target, so without it such a span costs a comparison. What goes into its
//! fields leaves the process: names of models, counts and durations, never contents, keys or names of people.
//!
//! See <https://www.w3.org/TR/trace-context/>.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Name of the header of a request and of a record, and of the entry in the metadata of a batch's schema.
pub const TRACEPARENT: &str = "traceparent";

/// Target of spans that are for traces only.
pub const TARGET: &str = "va_trace";

/// Reads a `traceparent`; `None` when it is none.
pub fn read(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let mut part = |length: usize| {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let part = parts.next()?;
        (part.len() == length && part.bytes().all(is_hex)).then_some(part)
    };
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    // A later version may have more behind what this one has.
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let read = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::NONE,
    );
    read.is_valid().then_some(read)
}

/// Writes a `traceparent`.
pub fn write(span: &SpanContext) -> String {
    let sampled = u8::from(span.is_sampled());
    format!("00-{}-{}-{sampled:02x}", span.trace_id(), span.span_id())
}

/// The span of the trace that stands behind `span`; `None` when there are no traces.
pub fn of(span: &Span) -> Option<SpanContext> {
    let context = span.context();
    let found = context.span().span_context().clone();
    found.is_valid().then_some(found)
}

/// What to hand on to others as `traceparent`: the span that the running code is in. `None` when there are no traces.
pub fn current() -> Option<String> {
    of(&Span::current()).as_ref().map(write)
}

/// Makes `span`, in which nobody has been yet, a part of somebody else's trace.
pub fn continue_from(span: &Span, parent: SpanContext) {
    // It fails where there are no traces, and then there is nothing to continue.
    let _ = span.set_parent(Context::new().with_remote_span_context(parent));
}

/// Gives the span of the trace another name than its own: one that is known at run time only.
pub fn rename(span: &Span, name: String) {
    span.context().span().update_name(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_and_written() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read_back = read(good).unwrap();
        assert!(read_back.is_sampled() && read_back.is_remote());
        assert_eq!(write(&read_back), good);
        // Flags that this version does not know are not handed on.
        let unsampled = read(&good.replace("-01", "-02")).unwrap();
        assert_eq!(write(&unsampled), good.replace("-01", "-00"));
        // A later version, with more to it.
        assert!(read(&format!("{}-more", good.replacen("00", "cc", 1))).is_some());
    }

    #[test]
    fn what_is_no_traceparent_is_not_continued() {
        for bad in [
            "",
            "00",
            "00-1-2-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-+1",
        ] {
            assert!(read(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn without_traces_there_is_nothing_to_hand_on() {
        let span = tracing::info_span!(target: TARGET, "work");
        continue_from(
            &span,
            read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap(),
        );
        assert_eq!(of(&span), None);
        assert_eq!(span.in_scope(current), None);
    }
}
