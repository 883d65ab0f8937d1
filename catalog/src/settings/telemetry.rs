//! Settings of what the program tells about itself: log lines and traces.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// What the program tells about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySettings {
    /// How log lines are written.
    pub log_format: LogFormat,
    /// The least important log lines that are written.
    pub level: LogLevel,
    /// Where traces go, by OTLP over HTTP: the URL of a collector or of Jaeger, for example `http://jaeger:4318`. Without a
    /// path that ends in `/v1/traces`, that is added. Where it is not set, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` and
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` of the environment count, as for other programs; without any there are no traces. What a
    /// collector wants in its headers, such as a key, is taken from
    /// `OTEL_EXPORTER_OTLP_HEADERS` and `OTEL_EXPORTER_OTLP_TRACES_HEADERS`.
    pub otlp_endpoint: Option<String>,
    /// The share of requests that are traced, from 0 to 1, of those whose caller has not decided it in `traceparent`.
    #[serde(deserialize_with = "ratio")]
    #[schemars(range(min = 0, max = 1))]
    pub sample_ratio: Ratio,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Json,
            level: LogLevel::Info,
            otlp_endpoint: None,
            sample_ratio: Ratio::ONE,
        }
    }
}

/// A share, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct Ratio(f64);

/// A share is never "not a number".
impl Eq for Ratio {}

impl Ratio {
    /// All of it.
    pub const ONE: Self = Self(1.0);

    /// The share, when it is one.
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    /// As a number from 0 to 1.
    pub fn get(self) -> f64 {
        self.0
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// How important a log line is, from a human having to look (`error`) to single steps (`trace`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// A number, or the text of one: variables of the environment have no other type.
fn ratio<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ratio, D::Error> {
    struct Share;

    impl Visitor<'_> for Share {
        type Value = Ratio;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a share from 0 to 1")
        }

        fn visit_f64<E: Error>(self, share: f64) -> Result<Ratio, E> {
            Ratio::new(share).ok_or_else(|| E::custom(format!("{share} is no share: use 0 to 1")))
        }

        fn visit_u64<E: Error>(self, share: u64) -> Result<Ratio, E> {
            self.visit_f64(share as f64)
        }

        fn visit_i64<E: Error>(self, share: i64) -> Result<Ratio, E> {
            self.visit_f64(share as f64)
        }

        fn visit_str<E: Error>(self, share: &str) -> Result<Ratio, E> {
            match share.trim().parse() {
                Ok(share) => self.visit_f64(share),
                Err(_) => Err(E::custom(format!("`{share}` is no share: use 0 to 1"))),
            }
        }
    }
    deserializer.deserialize_any(Share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_number_or_the_text_of_one() {
        let read = |value: serde_json::Value| {
            let settings = serde_json::json!({"sample_ratio": value});
            serde_json::from_value::<TelemetrySettings>(settings).map(|s| s.sample_ratio.get())
        };
        for (value, share) in [
            (serde_json::json!(0.25), 0.25),
            (serde_json::json!(1), 1.0),
            (serde_json::json!("0.5"), 0.5),
        ] {
            assert_eq!(read(value).unwrap(), share);
        }
        for bad in [
            serde_json::json!(1.5),
            serde_json::json!(-1),
            serde_json::json!("half"),
            serde_json::json!("NaN"),
        ] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains("use 0 to 1"), "{error}");
        }
    }
}
