//! One bad payload must cost only itself, and yet payloads are read many at a time.
//!
//! All are read at once, which is what happens nearly always. When that fails, the range is halved until what is left of
//! it is one payload, which then has the reason: for `b` bad ones among `n`, about `n + b log n` are read again.
//!
//! Where each payload says which schema wrote it, those of one schema are read together and put into order again.

use arrow::array::{Array, BinaryArray, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;

use crate::format::{Decoded, Failure, FormatError};

/// Reads payloads `0..count`. `read` reads a range as a whole: its rows with the payload of each (`None` for one row a
/// payload), or why not.
pub(crate) fn salvage(
    schema: &SchemaRef,
    count: usize,
    mut read: impl FnMut(std::ops::Range<usize>) -> Result<(RecordBatch, Option<Vec<u32>>), String>,
) -> Result<Decoded, FormatError> {
    let (mut parts, mut payloads, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    let mut by_payload = true;
    let mut ranges: Vec<_> = std::iter::once(0..count).collect();
    while let Some(range) = ranges.pop() {
        if range.is_empty() {
            continue;
        }
        match read(range.clone()) {
            Ok((batch, of)) => {
                by_payload &= of.is_none();
                let all = || (range.start as u32..range.end as u32).collect();
                payloads.extend(of.unwrap_or_else(all));
                parts.push(batch);
            }
            Err(reason) if range.len() == 1 => failures.push(Failure {
                payload: range.start,
                reason,
            }),
            Err(_) => {
                let middle = range.start + range.len() / 2;
                // The first half is taken next.
                ranges.push(middle..range.end);
                ranges.push(range.start..middle);
            }
        }
    }
    let batch = match parts.as_slice() {
        [] => RecordBatch::new_empty(schema.clone()),
        [one] => one.clone(),
        many => concat_batches(schema, many)
            .map_err(|error| FormatError::invalid("put decoded rows together", error))?,
    };
    let aligned = by_payload && failures.is_empty();
    Ok(Decoded {
        batch,
        payloads: (!aligned).then_some(payloads),
        failures,
    })
}

/// Reads payloads that several schemas wrote: `split` says which one and what is its body, `read` reads bodies of one, a row
/// each.
pub(crate) fn by_writer<'a, K: Clone + PartialEq>(
    columns: &SchemaRef,
    payloads: &'a BinaryArray,
    split: impl Fn(&'a [u8]) -> Result<(K, &'a [u8]), String>,
    mut read: impl FnMut(&K, &mut dyn Iterator<Item = &'a [u8]>) -> Result<RecordBatch, String>,
) -> Result<Decoded, FormatError> {
    let mut failures = Vec::new();
    let mut bodies: Vec<&[u8]> = Vec::with_capacity(payloads.len());
    // Which payloads each schema wrote, in the order in which the schemas come.
    let mut groups: Vec<(K, Vec<u32>)> = Vec::new();
    for payload in 0..payloads.len() {
        let found = match payloads.is_valid(payload) {
            true => split(payloads.value(payload)),
            false => Err("the record has no value (a tombstone)".to_owned()),
        };
        match found {
            Ok((writer, body)) => {
                bodies.push(body);
                match groups.iter_mut().find(|(of, _)| *of == writer) {
                    Some((_, group)) => group.push(payload as u32),
                    None => groups.push((writer, vec![payload as u32])),
                }
            }
            Err(reason) => {
                bodies.push(&[]);
                failures.push(Failure { payload, reason });
            }
        }
    }
    let (mut parts, mut rows) = (Vec::new(), Vec::new());
    for (writer, group) in &groups {
        let decoded = salvage(columns, group.len(), |range| {
            let mut of = group[range].iter().map(|payload| bodies[*payload as usize]);
            Ok((read(writer, &mut of)?, None))
        })?;
        match decoded.payloads {
            Some(of) => rows.extend(of.iter().map(|position| group[*position as usize])),
            None => rows.extend(group),
        }
        failures.extend(decoded.failures.into_iter().map(|failure| Failure {
            payload: group[failure.payload] as usize,
            ..failure
        }));
        parts.push(decoded.batch);
    }
    failures.sort_by_key(|failure| failure.payload);
    let put = |error| FormatError::invalid("put decoded rows together", error);
    let mut batch = match parts.as_slice() {
        [] => RecordBatch::new_empty(columns.clone()),
        [one] => one.clone(),
        many => concat_batches(columns, many).map_err(put)?,
    };
    if !rows.is_sorted() {
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        order.sort_unstable_by_key(|row| rows[*row as usize]);
        batch = take_record_batch(&batch, &UInt32Array::from(order)).map_err(put)?;
        rows.sort_unstable();
    }
    Ok(Decoded {
        batch,
        payloads: (rows.len() != payloads.len()).then_some(rows),
        failures,
    })
}
