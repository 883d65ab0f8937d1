//! Encrypted connections and passwords: that they work with a broker which wants them, and what is said when they do not
//! fit.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use uuid::Uuid;
use va_catalog::{Offset, Partition, TopicName, TopicPartition};

use super::{KafkaLog, KafkaOptions};
use crate::log::kafka::{Sasl, Security};
use crate::log::{FetchLimit, Log, LogError, Target, TopicConfig};
use crate::servers::{Server, skip};

/// As `kafka.sh --secure` has them.
const USER: &str = "tester";
const PASSWORD: &str = "not a secret";

struct Secured {
    address: String,
    certificates: PathBuf,
    _server: Server,
}

impl Secured {
    fn start() -> Option<Self> {
        let mut server = match Server::start("kafka.sh --secure") {
            Ok(server) => server,
            Err(reason) => {
                skip(&reason);
                return None;
            }
        };
        let said = server.ask("secured");
        let (address, certificates) = said.split_once(' ').unwrap();
        Some(Self {
            address: address.to_owned(),
            certificates: certificates.into(),
            _server: server,
        })
    }

    fn options(&self, mechanism: &str, password: &str) -> KafkaOptions {
        let sasl = Sasl {
            mechanism: mechanism.to_owned(),
            username: USER.to_owned(),
            password: serde_json::from_value(password.into()).unwrap(),
        };
        KafkaOptions {
            brokers: self.address.clone(),
            prefix: format!("t{}.", Uuid::now_v7().simple()),
            replication_factor: 1,
            request_timeout_ms: 20_000,
            security: Security {
                tls: true,
                ca_file: Some(self.certificates.join("ca.pem")),
                sasl: Some(sasl),
                ..Security::default()
            },
            ..KafkaOptions::default()
        }
    }
}

/// A row goes there and comes back.
async fn works(options: KafkaOptions) {
    let log = KafkaLog::connect(options).await.unwrap();
    let topic = TopicName::new("guarded").unwrap();
    log.create_topic(&topic, TopicConfig::default())
        .await
        .unwrap();
    let schema = Schema::new(vec![Field::new("n", DataType::Int64, false)]);
    let rows = RecordBatch::try_new(
        schema.into(),
        vec![std::sync::Arc::new(Int64Array::from(vec![7, 8]))],
    )
    .unwrap();
    let mut commit = log.begin();
    commit.append(&topic, Target::Partition(Partition(0)), rows.clone());
    commit.finish().await.unwrap();
    let place = TopicPartition {
        topic,
        partition: Partition(0),
    };
    let found = log
        .fetch(
            &place,
            Offset(0),
            FetchLimit::default(),
            Duration::from_secs(20),
        )
        .await
        .unwrap();
    assert_eq!(found.batches[0].batch, rows);
    log.close().await.unwrap();
}

/// Why it was refused; sooner than by waiting for an answer that cannot come.
async fn refusal(options: KafkaOptions) -> String {
    let (began, limit) = (
        Instant::now(),
        Duration::from_millis(u64::from(options.request_timeout_ms)),
    );
    let error = KafkaLog::connect(options).await.unwrap_err();
    assert!(matches!(error, LogError::Config(_)), "{error:?}");
    assert!(began.elapsed() < limit, "it waited until the end");
    error.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_connections_with_passwords_work_or_say_why_not() {
    let Some(secured) = Secured::start() else {
        return;
    };
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        works(secured.options(mechanism, PASSWORD)).await;
        let said = refusal(secured.options(mechanism, "guessed")).await;
        assert!(said.contains("log.kafka.security"), "{said}");
        assert!(said.contains("SASL authentication error"), "{said}");
        assert!(!said.contains("guessed"), "{said}");
    }

    let mut with_certificate = secured.options("PLAIN", PASSWORD);
    with_certificate.security.certificate_file = Some(secured.certificates.join("client.pem"));
    with_certificate.security.key_file = Some(secured.certificates.join("client.key"));
    works(with_certificate).await;

    let mut stranger = secured.options("PLAIN", PASSWORD);
    stranger.security.ca_file = Some(secured.certificates.join("client.pem"));
    let said = refusal(stranger).await;
    assert!(said.contains("certificate verify failed"), "{said}");

    let mut open = secured.options("PLAIN", PASSWORD);
    open.security = Security::default();
    open.request_timeout_ms = 2_000;
    let said = KafkaLog::connect(open).await.unwrap_err().to_string();
    assert!(
        said.contains(&secured.address) && said.contains("log.kafka.security"),
        "{said}"
    );
}
