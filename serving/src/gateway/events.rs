//! Events of `llm.usage` as rows, written and read.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, RecordBatch, StringArray, StructArray,
    TimestampMillisecondArray, UInt32Array, UInt64Array,
};
use arrow::datatypes::{DataType, Decimal128Type, TimestampMillisecondType, UInt32Type};
use arrow::error::ArrowError;
use va_catalog::event::{LLM_RELEASED, LLM_RESERVED, LLM_SETTLED, MONEY_SCALE, llm_usage_schema};
use va_llm::{Attempt, Outcome, Took, Usage};

use super::books::{Entry, Kind};

/// An event.
#[derive(Debug, Clone)]
pub(super) struct UsageEvent {
    pub entry: Entry,
    pub request_id: String,
    pub attempt: Arc<Attempt>,
    pub usage: Usage,
    pub outcome: Option<Outcome>,
    pub took: Option<Took>,
    /// Set where the process that made the call is gone and did not tell how it ended.
    pub lost: bool,
}

/// An event that was read.
#[derive(Debug)]
pub(super) struct Read {
    pub entry: Entry,
    pub request_id: String,
    pub process: String,
    /// What the event of its end needs, were it lost.
    pub attempt: Attempt,
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Reserved => LLM_RESERVED,
        Kind::Settled => LLM_SETTLED,
        Kind::Released => LLM_RELEASED,
    }
}

/// The events as a batch of the topic.
pub(super) fn batch(
    events: &[UsageEvent],
    process: &str,
    currency: &str,
) -> Result<RecordBatch, ArrowError> {
    let schema = llm_usage_schema();
    let DataType::Struct(fields) = schema.field(5).data_type() else {
        return Err(ArrowError::SchemaError(
            "`llm.usage` has no struct payload".into(),
        ));
    };
    fn texts<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(values))
    }
    let numbers = |number: fn(&Usage) -> u64| -> ArrayRef {
        let values = events.iter().map(|event| number(&event.usage));
        Arc::new(UInt64Array::from_iter_values(values))
    };
    // Of calls that have them; others have no value.
    let units = |number: fn(&Usage) -> u64| -> ArrayRef {
        let values = events.iter().map(|event| number(&event.usage));
        Arc::new(UInt64Array::from_iter(
            values.map(|value| (value > 0).then_some(value)),
        ))
    };
    let millis = |time: fn(&Took) -> Option<std::time::Duration>| -> ArrayRef {
        let values = events.iter().map(|event| {
            let time = time(event.took.as_ref()?)?;
            u64::try_from(time.as_millis()).ok()
        });
        Arc::new(UInt64Array::from_iter(values))
    };
    let costs = Decimal128Array::from_iter_values(events.iter().map(|event| event.entry.cost));
    let outcomes = events.iter().map(|event| match event.outcome {
        _ if event.lost => Some("lost"),
        outcome => outcome.map(Outcome::as_str),
    });
    let attempts = UInt32Array::from_iter_values(events.iter().map(|event| event.attempt.number));
    let payload: Vec<ArrayRef> = vec![
        texts(
            events
                .iter()
                .map(|event| event.entry.reservation_id.as_str()),
        ),
        texts(events.iter().map(|event| event.request_id.as_str())),
        Arc::new(attempts),
        texts(events.iter().map(|_| process)),
        Arc::new(StringArray::from_iter(
            events.iter().map(|event| event.entry.key.as_deref()),
        )),
        texts(events.iter().map(|event| event.attempt.model.as_str())),
        texts(events.iter().map(|event| event.attempt.deployment.as_str())),
        texts(events.iter().map(|event| event.attempt.provider.as_str())),
        texts(
            events
                .iter()
                .map(|event| event.attempt.upstream_model.as_str()),
        ),
        numbers(|usage| usage.input),
        numbers(|usage| usage.cached),
        numbers(|usage| usage.cache_write),
        numbers(|usage| usage.output),
        numbers(|usage| usage.reasoning),
        Arc::new(costs.with_precision_and_scale(38, MONEY_SCALE)?),
        texts(events.iter().map(|_| currency)),
        Arc::new(BooleanArray::from_iter(
            events.iter().map(|event| Some(event.usage.estimated)),
        )),
        Arc::new(StringArray::from_iter(outcomes)),
        millis(|took| Some(took.whole)),
        millis(|took| took.first_token),
        units(|usage| usage.audio_seconds),
        units(|usage| usage.characters),
    ];
    let payload = StructArray::try_new(fields.clone(), payload, None)?;
    let ids: Vec<String> = events
        .iter()
        .map(|_| uuid::Uuid::now_v7().to_string())
        .collect();
    let times = events.iter().map(|event| event.entry.at_ms);
    let columns: Vec<ArrayRef> = vec![
        texts(ids.iter().map(String::as_str)),
        texts(events.iter().map(|event| kind_name(event.entry.kind))),
        texts(events.iter().map(|event| event.entry.tenant.as_str())),
        Arc::new(StringArray::new_null(events.len())),
        Arc::new(TimestampMillisecondArray::from_iter_values(times).with_timezone("UTC")),
        Arc::new(payload),
    ];
    RecordBatch::try_new(schema, columns)
}

/// The events of a batch. Rows that are none (a topic can be written to by hand) are passed over and counted.
pub(super) fn read(batch: &RecordBatch) -> (Vec<Read>, usize) {
    let rows = batch.num_rows();
    let read = read_rows(batch).unwrap_or_default();
    let odd = rows - read.len();
    (read, odd)
}

fn read_rows(batch: &RecordBatch) -> Option<Vec<Read>> {
    let texts = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>();
    let (kinds, tenants) = (texts("event_type")?, texts("tenant_id")?);
    let times = batch
        .column_by_name("timestamp")?
        .as_primitive_opt::<TimestampMillisecondType>()?;
    let payload = batch.column_by_name("payload")?.as_struct_opt()?;
    let inner = |name: &str| payload.column_by_name(name)?.as_string_opt::<i32>();
    let (ids, requests) = (inner("reservation_id")?, inner("request_id")?);
    let (processes, keys) = (inner("process")?, inner("key_id")?);
    let (models, deployments) = (inner("model")?, inner("deployment")?);
    let (providers, upstream) = (inner("provider")?, inner("upstream_model")?);
    let attempts = payload
        .column_by_name("attempt")?
        .as_primitive_opt::<UInt32Type>()?;
    let costs = payload
        .column_by_name("cost")?
        .as_primitive_opt::<Decimal128Type>()?;
    let mut read = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let kind = match kinds.value(row) {
            LLM_RESERVED => Kind::Reserved,
            LLM_SETTLED => Kind::Settled,
            LLM_RELEASED => Kind::Released,
            _ => continue,
        };
        let entry = Entry {
            kind,
            tenant: tenants.value(row).to_owned(),
            key: keys.is_valid(row).then(|| keys.value(row).to_owned()),
            reservation_id: ids.value(row).to_owned(),
            cost: costs.value(row),
            at_ms: times.value(row),
        };
        read.push(Read {
            attempt: Attempt {
                number: attempts.value(row),
                model: models.value(row).to_owned(),
                deployment: deployments.value(row).to_owned(),
                provider: providers.value(row).to_owned(),
                upstream_model: upstream.value(row).to_owned(),
                most: Usage::default(),
                most_cost: entry.cost,
            },
            entry,
            request_id: requests.value(row).to_owned(),
            process: processes.value(row).to_owned(),
        });
    }
    Some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let attempt = Arc::new(Attempt {
            number: 2,
            model: "chat".into(),
            deployment: "chat/openai/gpt".into(),
            provider: "openai".into(),
            upstream_model: "gpt".into(),
            most: Usage::default(),
            most_cost: 7,
        });
        let event = |kind, key: Option<&str>, cost| UsageEvent {
            entry: Entry {
                kind,
                tenant: "商店".into(),
                key: key.map(Into::into),
                reservation_id: "r1".into(),
                cost,
                at_ms: 1_796_083_200_123,
            },
            request_id: "q1".into(),
            attempt: attempt.clone(),
            usage: Usage::default(),
            outcome: Some(Outcome::Ok),
            took: Some(Took::default()),
            lost: false,
        };
        let events = [
            event(
                Kind::Reserved,
                Some("key_1"),
                99_999_999_999_999_999_999_999_999,
            ),
            event(Kind::Settled, None, 1),
            event(Kind::Released, None, 0),
        ];
        let batch = batch(&events, "p1", "CNY").expect("a batch");
        let (read, odd) = read(&batch);
        assert_eq!(odd, 0);
        for (read, event) in read.iter().zip(&events) {
            assert_eq!(read.entry, event.entry);
            assert_eq!(read.process, "p1");
            assert_eq!(read.attempt.deployment, "chat/openai/gpt");
        }
        assert_eq!(read.len(), 3);
    }
}
