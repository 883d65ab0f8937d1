//! What `aggregate` keeps: values by key, how rows go into them, and the bytes of state.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, Float64Array, Int64Array};
use bytes::Bytes;
use foldhash::fast::RandomState;
use va_connectors::flow::FlowError;

use super::layout::{Aggregate, Function};

/// First byte of every stored state. Another layout takes another number, so that old state is refused, not misread.
const LAYOUT: u8 = 1;

/// What an aggregate has come to for one key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Count(i64),
    /// `None` until a number has come.
    Whole(Option<i64>),
    Float(Option<f64>),
    /// A value of the column in arrow's row format, in which the order of bytes is the order of values. `None` until one
    /// has come.
    Kept(Option<Bytes>),
}

impl Value {
    pub(super) fn new(aggregate: Aggregate) -> Self {
        match aggregate.function {
            Function::Count => Self::Count(0),
            Function::Sum if aggregate.float => Self::Float(None),
            Function::Sum => Self::Whole(None),
            Function::Min | Function::Max | Function::Last => Self::Kept(None),
        }
    }
}

/// The numbers or row bytes of one aggregate's column in a batch.
pub(super) enum Column {
    /// `count()`: every row counts.
    All,
    Counted(ArrayRef),
    /// `count` of the merging form: counts to add up.
    Counts(Int64Array),
    Whole(Int64Array),
    Float(Float64Array),
    Kept(ArrayRef, arrow::row::Rows),
}

impl Column {
    /// Whether `value` can take row `row`.
    pub(super) fn fits(&self, row: usize, value: &Value) -> bool {
        match (self, value) {
            (Self::Whole(column), Value::Whole(Some(sum))) if column.is_valid(row) => {
                sum.checked_add(column.value(row)).is_some()
            }
            _ => true,
        }
    }

    /// Whether every sum can take what comes for it, and much more. False is no answer: then it is looked at row by row.
    pub(super) fn surely_fits(
        &self,
        places: &[u32],
        values: &[Value],
        at: usize,
        width: usize,
    ) -> bool {
        let Self::Whole(column) = self else {
            return true;
        };
        let largest = places
            .iter()
            .map(|&place| match values[place as usize * width + at] {
                Value::Whole(Some(sum)) => sum.unsigned_abs(),
                _ => 0,
            });
        // What is below a null counts too, which only makes the answer more careful.
        let added = column
            .values()
            .iter()
            .fold(0_u128, |all, value| all + u128::from(value.unsigned_abs()));
        u128::from(largest.max().unwrap_or(0)) + added < i64::MAX as u128
    }

    /// Puts every row into the value of its place; all of them fit.
    pub(super) fn apply_all(
        &self,
        places: &[u32],
        function: Function,
        values: &mut [Value],
        at: usize,
        width: usize,
    ) {
        let rows = places.iter().map(|&place| place as usize * width + at);
        match self {
            Self::All => {
                for place in rows {
                    if let Value::Count(count) = &mut values[place] {
                        *count += 1;
                    }
                }
            }
            Self::Whole(column) if column.null_count() == 0 => {
                for (place, added) in rows.zip(column.values()) {
                    if let Value::Whole(sum) = &mut values[place] {
                        *sum = Some(sum.unwrap_or(0) + added);
                    }
                }
            }
            _ => {
                for (row, place) in rows.enumerate() {
                    self.apply(row, function, &mut values[place]);
                }
            }
        }
    }

    /// Puts row `row`, which [fits](Self::fits), into `value`.
    pub(super) fn apply(&self, row: usize, function: Function, value: &mut Value) {
        match (self, value) {
            (Self::All, Value::Count(count)) => *count += 1,
            (Self::Counted(column), Value::Count(count)) => {
                *count += i64::from(column.is_valid(row));
            }
            (Self::Counts(column), Value::Count(count)) => {
                *count = count.saturating_add(column.value(row));
            }
            (Self::Whole(column), Value::Whole(sum)) if column.is_valid(row) => {
                *sum = Some(sum.unwrap_or(0).saturating_add(column.value(row)));
            }
            (Self::Float(column), Value::Float(sum)) if column.is_valid(row) => {
                *sum = Some(sum.unwrap_or(0.0) + column.value(row));
            }
            (Self::Kept(column, rows), Value::Kept(kept))
                if function == Function::Last || column.is_valid(row) =>
            {
                let new = rows.row(row);
                let new: &[u8] = new.as_ref();
                let better = kept.as_ref().is_none_or(|old| match function {
                    Function::Min => new < old.as_ref(),
                    Function::Max => new > old.as_ref(),
                    _ => true,
                });
                if better {
                    *kept = Some(Bytes::copy_from_slice(new));
                }
            }
            _ => {}
        }
    }
}

/// What the aggregates of keys have come to: for each key, a stretch of `values` as long as there are aggregates.
#[derive(Default)]
pub(super) struct Table {
    places: HashMap<Bytes, u32, RandomState>,
    /// By place, in order of their first row.
    pub(super) keys: Vec<Bytes>,
    pub(super) values: Vec<Value>,
}

impl Table {
    /// The place of a key. A new one is behind all others, and its values have to follow.
    pub(super) fn place_of(&mut self, key: &[u8]) -> u32 {
        if let Some(&place) = self.places.get(key) {
            return place;
        }
        let (key, place) = (Bytes::copy_from_slice(key), self.keys.len() as u32);
        self.keys.push(key.clone());
        self.places.insert(key, place);
        place
    }
}

/// The layout byte, then each value: numbers as 8 bytes little endian, kept values as their length (4 bytes) and their
/// bytes, each after a byte that says whether there is one.
pub(super) fn encode(values: &[Value]) -> Bytes {
    let mut out = vec![LAYOUT];
    let mut optional = |some: Option<&[u8]>| {
        out.push(u8::from(some.is_some()));
        out.extend_from_slice(some.unwrap_or_default());
    };
    for value in values {
        match value {
            Value::Count(count) => optional(Some(&count.to_le_bytes())),
            Value::Whole(sum) => {
                optional(sum.map(i64::to_le_bytes).as_ref().map(<[u8; 8]>::as_slice))
            }
            Value::Float(sum) => {
                optional(sum.map(f64::to_le_bytes).as_ref().map(<[u8; 8]>::as_slice))
            }
            Value::Kept(None) => optional(None),
            Value::Kept(Some(kept)) => {
                let mut bytes = (kept.len() as u32).to_le_bytes().to_vec();
                bytes.extend_from_slice(kept);
                optional(Some(&bytes));
            }
        }
    }
    out.into()
}

pub(super) fn decode(stored: &[u8], aggregates: &[Aggregate]) -> Result<Vec<Value>, FlowError> {
    let mut rest = stored;
    let values = (take(&mut rest, 1) == Some(&[LAYOUT]))
        .then(|| {
            aggregates
                .iter()
                .map(|&aggregate| read(&mut rest, aggregate))
                .collect::<Option<Vec<_>>>()
        })
        .flatten()
        .filter(|_| rest.is_empty());
    values.ok_or_else(|| {
        FlowError::fatal(
            "aggregate",
            "the stored state does not fit the columns of `compute`, which have changed since it was written; \
             give the operator another name, so that it begins anew, and replay the source",
        )
    })
}

fn read(rest: &mut &[u8], aggregate: Aggregate) -> Option<Value> {
    let there = take(rest, 1)? == [1];
    let mut number = || -> Option<[u8; 8]> { take(rest, 8)?.try_into().ok() };
    Some(match Value::new(aggregate) {
        Value::Count(_) => Value::Count(i64::from_le_bytes(number()?)),
        empty if !there => empty,
        Value::Whole(_) => Value::Whole(Some(i64::from_le_bytes(number()?))),
        Value::Float(_) => Value::Float(Some(f64::from_le_bytes(number()?))),
        Value::Kept(_) => {
            let length = u32::from_le_bytes(take(rest, 4)?.try_into().ok()?);
            Value::Kept(Some(Bytes::copy_from_slice(take(rest, length as usize)?)))
        }
    })
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}
