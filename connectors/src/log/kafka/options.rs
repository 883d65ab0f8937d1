//! How to reach Kafka and how to use it, as read from configuration. Everything that librdkafka can do stays within
//! reach through `properties`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use rdkafka::ClientConfig;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use va_catalog::settings::Secret;

use crate::log::LogError;

/// How producers compress batches of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    None,
    Gzip,
    Snappy,
    Lz4,
    #[default]
    Zstd,
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// A user name and a password for the brokers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: String,
    pub username: String,
    pub password: Secret,
}

/// Encryption and identity.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Security {
    /// Encrypts the connections.
    pub tls: bool,
    /// File with the certificate authorities to trust, PEM. The system's when absent.
    pub ca_file: Option<PathBuf>,
    /// File with the client's certificate, PEM.
    pub certificate_file: Option<PathBuf>,
    /// File with the client's private key, PEM.
    pub key_file: Option<PathBuf>,
    pub sasl: Option<Sasl>,
}

/// How to use a Kafka cluster as the log.
///
/// ```yaml
/// brokers: broker-1:9092,broker-2:9092
/// replication_factor: 3
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaOptions {
    /// Brokers to begin with, `host:port`, separated by commas.
    pub brokers: String,
    /// How this process calls itself in the brokers' logs.
    pub client_id: String,
    /// Goes before the name of every topic, group and transactional id, so that installations can share a cluster.
    /// Topics without it do not exist for this log.
    pub prefix: String,
    /// Copies of each topic that is created. 3 in production; 1 where there is one broker.
    pub replication_factor: u16,
    pub compression: Compression,
    pub security: Security,
    /// A name of this worker that stays the same when it is restarted. With it the membership of a group is static: a
    /// restart within `session_timeout_ms` moves no partition. Two workers must never use the same.
    pub instance: Option<String>,
    /// After how long without a heartbeat a member is taken for dead, milliseconds.
    pub session_timeout_ms: u32,
    /// How long a member may take to give up partitions before the group goes on without it, milliseconds.
    pub rebalance_timeout_ms: u32,
    /// After how long the brokers abort a transaction that nobody ends, milliseconds: how long a dead worker can hold
    /// up readers when no successor fences it.
    pub transaction_timeout_ms: u32,
    /// How long a request to the brokers may take, milliseconds. Then a commit is `Indefinite`.
    pub request_timeout_ms: u32,
    /// Largest record, in bytes. Larger batches are cut; larger values of state are refused.
    pub record_bytes_max: u32,
    /// Read ahead for each partition that is being read, in kibibytes.
    pub read_ahead_kib: u32,
    /// Partitions of the topic that holds a group's state, where it is made: at least so many. Members restore only the
    /// partitions whose keys they need.
    pub state_partitions: u32,
    /// Follow all state of the groups that this process is a member of, so that a member that takes over from another
    /// has it already. Costs the disk and the reading of all of it, in each process.
    pub standby: bool,
    /// Folder for the local copy of state. A temporary one when absent. It is a cache: emptied at each start.
    pub state_dir: Option<PathBuf>,
    /// Any property of librdkafka; wins over what this file sets. Texts, numbers, `true` and `false`.
    #[serde(deserialize_with = "properties")]
    pub properties: BTreeMap<String, String>,
}

impl Default for KafkaOptions {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".to_owned(),
            client_id: "voiceassistant".to_owned(),
            prefix: String::new(),
            replication_factor: 3,
            compression: Compression::default(),
            security: Security::default(),
            instance: None,
            session_timeout_ms: 45_000,
            rebalance_timeout_ms: 60_000,
            transaction_timeout_ms: 60_000,
            request_timeout_ms: 30_000,
            record_bytes_max: 16 << 20,
            read_ahead_kib: 16 << 10,
            state_partitions: 8,
            standby: false,
            state_dir: None,
            properties: BTreeMap::new(),
        }
    }
}

impl fmt::Debug for KafkaOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without values of properties: `sasl.password` is one.
        f.debug_struct("KafkaOptions")
            .field("brokers", &self.brokers)
            .field("client_id", &self.client_id)
            .field("prefix", &self.prefix)
            .field("replication_factor", &self.replication_factor)
            .field("compression", &self.compression)
            .field("security", &self.security)
            .field("instance", &self.instance)
            .field("properties", &self.properties.keys())
            .finish_non_exhaustive()
    }
}

impl KafkaOptions {
    /// Every problem at once, without connecting.
    pub fn validate(&self) -> Result<(), LogError> {
        let mut problems = Vec::new();
        if self.brokers.trim().is_empty() {
            problems.push("`brokers` is empty; use `host:port`".to_owned());
        }
        if self.replication_factor == 0 {
            problems.push("`replication_factor` is 0; use 1 or more".to_owned());
        }
        if !(64 << 10..=1 << 30).contains(&self.record_bytes_max) {
            problems.push(format!(
                "`record_bytes_max` is {}; use 65536 to 1073741824",
                self.record_bytes_max
            ));
        }
        if !(1..=256).contains(&self.state_partitions) {
            problems.push(format!(
                "`state_partitions` is {}; use 1 to 256",
                self.state_partitions
            ));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !self.prefix.chars().all(plain) {
            problems.push(format!(
                "`prefix` is `{}`; use letters, digits, `.`, `_` and `-`",
                self.prefix
            ));
        }
        if self.rebalance_timeout_ms < self.session_timeout_ms {
            problems.push("`rebalance_timeout_ms` is below `session_timeout_ms`".to_owned());
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(LogError::Config(problems.join("; ")))
        }
    }

    /// What all clients have in common.
    pub(super) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config.set("client.id", &self.client_id);
        config.set("socket.nagle.disable", "true");
        // A broker that comes back should be noticed within a second, not within the default ten.
        config.set("reconnect.backoff.max.ms", "1000");
        let security = &self.security;
        let protocol = match (security.tls, security.sasl.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        for (name, file) in [
            ("ssl.ca.location", &security.ca_file),
            ("ssl.certificate.location", &security.certificate_file),
            ("ssl.key.location", &security.key_file),
        ] {
            if let Some(file) = file {
                config.set(name, file.to_string_lossy());
            }
        }
        if let Some(sasl) = &security.sasl {
            config.set("sasl.mechanism", &sasl.mechanism);
            config.set("sasl.username", &sasl.username);
            config.set("sasl.password", sasl.password.expose());
        }
        config
    }

    /// Adds the user's own properties, last.
    pub(super) fn finish(&self, mut config: ClientConfig) -> ClientConfig {
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config
    }

    pub(super) fn producer(&self, transactional_id: &str) -> ClientConfig {
        let mut config = self.client();
        config.set("transactional.id", transactional_id);
        config.set("enable.idempotence", "true");
        config.set("acks", "all");
        config.set("compression.type", self.compression.name());
        // While a commit hands over its records they gather to larger batches. The flush behind them does not end this
        // waiting (rust-rdkafka flushes in steps of no time), so it is short.
        config.set("linger.ms", "2");
        config.set("message.max.bytes", self.record_bytes_max.to_string());
        config.set(
            "transaction.timeout.ms",
            self.transaction_timeout_ms.to_string(),
        );
        // librdkafka wants it not above the transaction's.
        config.set(
            "delivery.timeout.ms",
            self.request_timeout_ms
                .min(self.transaction_timeout_ms)
                .to_string(),
        );
        config.set("queue.buffering.max.kbytes", (256 << 10).to_string());
        self.finish(config)
    }

    pub(super) fn reader(&self) -> ClientConfig {
        let mut config = self.client();
        // librdkafka wants a group to assign partitions by hand; nobody ever joins this one.
        config.set("group.id", format!("{}va.readers", self.prefix));
        config.set("isolation.level", "read_committed");
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("auto.offset.reset", "error");
        config.set("enable.partition.eof", "true");
        // Behind a topic that grows, a reader would otherwise ask hundreds of times a second for a few rows each time, which
        // takes more of a broker than writing them. A row comes that much later at most; a reader also learns by it that it
        // reached the end, and so that what is left is no row: see `reader`.
        config.set("fetch.min.bytes", "16384");
        config.set("fetch.wait.max.ms", "25");
        config.set("fetch.error.backoff.ms", "50");
        // The bound is the one in bytes: a topic of single records has thousands where one of batches has one.
        config.set("queued.min.messages", "100000");
        config.set(
            "queued.max.messages.kbytes",
            self.read_ahead_kib.to_string(),
        );
        config.set("fetch.message.max.bytes", self.record_bytes_max.to_string());
        config.set(
            "fetch.max.bytes",
            self.record_bytes_max.max(50 << 20).to_string(),
        );
        config.set(
            "receive.message.max.bytes",
            (self.record_bytes_max.max(50 << 20) + (1 << 20)).to_string(),
        );
        self.finish(config)
    }

    /// A client that asks for and sets the offsets of a group without joining it.
    pub(super) fn group(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        config.set("group.id", group);
        // With it the broker does not tell an offset that a transaction is about to change.
        config.set("isolation.level", "read_committed");
        config.set("enable.auto.commit", "false");
        self.finish(config)
    }

    pub(super) fn member(&self, group: &str, client_id: &str) -> ClientConfig {
        let mut config = self.group(group);
        config.set("client.id", client_id);
        config.set("enable.auto.offset.store", "false");
        config.set("auto.offset.reset", "latest");
        config.set("partition.assignment.strategy", "cooperative-sticky");
        config.set("session.timeout.ms", self.session_timeout_ms.to_string());
        config.set(
            "heartbeat.interval.ms",
            (self.session_timeout_ms / 10).clamp(100, 3_000).to_string(),
        );
        config.set(
            "max.poll.interval.ms",
            self.rebalance_timeout_ms.to_string(),
        );
        // It holds membership only and fetches nothing.
        config.set("queued.max.messages.kbytes", "16");
        if let Some(instance) = &self.instance {
            config.set("group.instance.id", instance);
        }
        self.finish(config)
    }
}

/// As librdkafka wants them, which is as text.
fn properties<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let given = BTreeMap::<String, Value>::deserialize(deserializer)?;
    let text = |(name, value): (String, Value)| match value {
        Value::String(text) => Ok((name, text)),
        Value::Number(_) | Value::Bool(_) => Ok((name, value.to_string())),
        // Without the value: some are secrets.
        Value::Null | Value::Array(_) | Value::Object(_) => Err(D::Error::custom(format!(
            "the property `{name}` is no text, number, `true` or `false`"
        ))),
    };
    given.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_print() {
        let options: KafkaOptions = serde_json::from_value(serde_json::json!({
            "brokers": "b:9092",
            "security": {"sasl": {"mechanism": "PLAIN", "username": "u", "password": "hunter2"}},
            "properties": {"ssl.key.password": "hunter2", "socket.nagle.disable": true, "linger.ms": 5},
        }))
        .unwrap();
        let printed = format!("{options:?}");
        assert!(!printed.contains("hunter2"), "{printed}");
        let config = options.client();
        assert_eq!(config.get("sasl.password"), Some("hunter2"));
        assert_eq!(config.get("security.protocol"), Some("sasl_plaintext"));
        assert_eq!(
            options.reader().get("ssl.key.password"),
            Some("hunter2"),
            "every property is within reach"
        );
        let producer = options.producer("p");
        let set = ["socket.nagle.disable", "linger.ms"].map(|name| producer.get(name));
        assert_eq!(set, [Some("true"), Some("5")]);
        let nested = serde_json::json!({"properties": {"sasl": {"password": "hunter2"}}});
        let error = serde_json::from_value::<KafkaOptions>(nested).unwrap_err();
        assert!(error.to_string().contains("property `sasl`"), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn wrong_options_are_refused() {
        let unknown = serde_json::json!({"brokers": "b:9092", "broker": "x"});
        assert!(serde_json::from_value::<KafkaOptions>(unknown).is_err());
        let wrong = KafkaOptions {
            brokers: " ".to_owned(),
            replication_factor: 0,
            prefix: "前".to_owned(),
            ..KafkaOptions::default()
        };
        let error = wrong.validate().unwrap_err().to_string();
        for part in ["brokers", "replication_factor", "prefix"] {
            assert!(error.contains(part), "{error}");
        }
        KafkaOptions::default().validate().unwrap();
    }
}
