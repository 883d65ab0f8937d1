//! Prices, amounts and days, exactly: money is an integer from the file on, never a float.
//!
//! A price is in micro-units for a million tokens, so a token costs as many pico-units (10⁻¹²). Amounts are in
//! pico-units too.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Decimal places of a price: 0.000001 for a million tokens is the least.
const PRICE_PLACES: u32 = 6;
/// Decimal places of an amount.
const AMOUNT_PLACES: u32 = 12;

/// What a million tokens cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Price {
    micros: u64,
}

impl Price {
    pub fn from_micros(micros: u64) -> Self {
        Self { micros }
    }

    /// In pico-units.
    pub fn of_tokens(self, tokens: u64) -> i128 {
        i128::from(self.micros) * i128::from(tokens)
    }
}

/// An amount of money.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount {
    picos: i128,
}

impl Amount {
    pub fn from_picos(picos: i128) -> Self {
        Self { picos }
    }

    pub fn picos(self) -> i128 {
        self.picos
    }
}

/// A day, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date(chrono::NaiveDate);

impl Date {
    /// When it begins, in UTC milliseconds.
    pub fn begin_ms(self) -> i64 {
        self.0
            .and_time(chrono::NaiveTime::MIN)
            .and_utc()
            .timestamp_millis()
    }
}

/// The number times ten to the `places`. `None` when it is not a plain decimal number of that many places, or too large.
fn scaled(text: &str, places: u32) -> Option<u128> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && part.is_empty()) || !digits(whole) || !digits(part) {
        return None;
    }
    let part = part.trim_end_matches('0');
    let missing = places.checked_sub(u32::try_from(part.len()).ok()?)?;
    format!("{whole}{part}")
        .parse::<u128>()
        .ok()?
        .checked_mul(10u128.checked_pow(missing)?)
}

fn decimal(value: u128, places: u32) -> String {
    let unit = 10u128.pow(places);
    let part = format!("{:0width$}", value % unit, width = places as usize);
    let part = part.trim_end_matches('0');
    if part.is_empty() {
        (value / unit).to_string()
    } else {
        format!("{}.{part}", value / unit)
    }
}

impl FromStr for Price {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        scaled(text.trim(), PRICE_PLACES)
            .and_then(|micros| u64::try_from(micros).ok())
            .map(|micros| Self { micros })
            .ok_or_else(|| {
                format!("`{text}` is not a price: use a decimal number with at most {PRICE_PLACES} places, like 0.15")
            })
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        scaled(text.trim(), AMOUNT_PLACES)
            .and_then(|picos| i128::try_from(picos).ok())
            .map(|picos| Self { picos })
            .ok_or_else(|| {
                format!("`{text}` is not an amount: use a decimal number with at most {AMOUNT_PLACES} places, like 25.50")
            })
    }
}

impl FromStr for Date {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        chrono::NaiveDate::parse_from_str(text.trim(), "%Y-%m-%d")
            .map(Self)
            .map_err(|_| format!("`{text}` is not a day: use YYYY-MM-DD"))
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&decimal(u128::from(self.micros), PRICE_PLACES))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.picos < 0 {
            f.write_str("-")?;
        }
        f.write_str(&decimal(self.picos.unsigned_abs(), AMOUNT_PLACES))
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Takes what YAML makes of a number without quotes. A float is written out again in its shortest form, which gives back
/// the digits that were in the file; it is never calculated with.
struct Text<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a decimal number or a day")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

macro_rules! as_text {
    ($name:ident, $types:expr, $example:literal) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Text(std::marker::PhantomData))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": $types, "examples": [$example]})
            }
        }
    };
}

as_text!(Price, ["string", "number"], "0.15");
as_text!(Amount, ["string", "number"], "25.50");
as_text!(Date, ["string"], "2026-01-31");
