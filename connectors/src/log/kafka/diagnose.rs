//! What is often wrong with a cluster or with how it is used, each with what to do about it.
//!
//! Gathering the facts ([`Shared::diagnose`]) asks the brokers; judging them ([`findings`]) is a pure function. That the
//! cluster answers at all is not looked at here: without it there is no log.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::admin::{AdminOptions, ConfigResource, ResourceSpecifier};

use super::client::{Shared, storage, storage_code};
use super::options::KafkaOptions;
use crate::log::{Finding, LogError};

/// Topics that one finding names.
const NAMED_MAX: usize = 5;

/// What the brokers tell.
#[derive(Debug, Default)]
struct Facts {
    brokers: usize,
    /// Settings of one broker; they should be the same in all.
    settings: BTreeMap<String, String>,
    topics: Vec<TopicFacts>,
}

#[derive(Debug, Default)]
struct TopicFacts {
    name: String,
    replicas: usize,
    /// The fewest of any partition that are up to date.
    in_sync: usize,
    /// A partition without leader can be neither read nor written.
    leaderless: usize,
    /// How many have to be up to date for a write to be taken.
    in_sync_min: Option<usize>,
    record_bytes_max: Option<u64>,
}

impl Shared {
    /// What is wrong, or nothing.
    pub(super) async fn diagnose(self: &Arc<Self>) -> Result<Vec<Finding>, LogError> {
        let mut facts = self
            .blocking(|shared| {
                let metadata = shared
                    .admin
                    .inner()
                    .fetch_metadata(None, shared.timeout())
                    .map_err(|e| storage("ask for the topics", &e))?;
                let topics = metadata
                    .topics()
                    .iter()
                    .filter(|topic| topic.error().is_none())
                    .filter(|topic| topic.name().starts_with(&shared.options.prefix))
                    // Kafka's own, `__consumer_offsets`.
                    .filter(|topic| !topic.name().starts_with("__"))
                    .map(|topic| {
                        let partitions = topic.partitions();
                        TopicFacts {
                            name: topic.name().to_owned(),
                            replicas: partitions
                                .iter()
                                .map(|p| p.replicas().len())
                                .max()
                                .unwrap_or(0),
                            in_sync: partitions.iter().map(|p| p.isr().len()).min().unwrap_or(0),
                            leaderless: partitions.iter().filter(|p| p.leader() < 0).count(),
                            ..TopicFacts::default()
                        }
                    })
                    .collect();
                let broker = metadata.orig_broker_id();
                Ok((
                    Facts {
                        brokers: metadata.brokers().len(),
                        topics,
                        ..Facts::default()
                    },
                    broker,
                ))
            })
            .await?;
        let mut asked = vec![ResourceSpecifier::Broker(facts.1)];
        let names: Vec<String> = facts
            .0
            .topics
            .iter()
            .map(|topic| topic.name.clone())
            .collect();
        asked.extend(names.iter().map(|name| ResourceSpecifier::Topic(name)));
        let options = AdminOptions::new().request_timeout(Some(self.timeout()));
        let described = self.admin.describe_configs(&asked, &options).await;
        let mut described = described
            .map_err(|e| storage("ask for settings", &e))?
            .into_iter();
        facts.0.settings = match described.next() {
            Some(Ok(broker)) => values(&broker),
            Some(Err(code)) => return Err(storage_code("ask for the settings of a broker", code)),
            None => BTreeMap::new(),
        };
        for (topic, described) in facts.0.topics.iter_mut().zip(described) {
            // One that was deleted just now.
            let Ok(described) = described else { continue };
            let values = values(&described);
            topic.in_sync_min = number(&values, "min.insync.replicas");
            topic.record_bytes_max = number(&values, "max.message.bytes");
        }
        Ok(findings(&facts.0, &self.options))
    }
}

fn values(resource: &ConfigResource) -> BTreeMap<String, String> {
    let entries = resource.entries.iter();
    entries
        .filter_map(|entry| Some((entry.name.clone(), entry.value.clone()?)))
        .collect()
}

fn number<T: std::str::FromStr>(settings: &BTreeMap<String, String>, name: &str) -> Option<T> {
    settings.get(name)?.parse().ok()
}

/// The judgement.
fn findings(facts: &Facts, options: &KafkaOptions) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut finding = |name: &str, what: String, advice: &str| {
        found.push(Finding {
            name: name.to_owned(),
            what,
            advice: advice.to_owned(),
        });
    };
    let brokers = facts.brokers;
    if usize::from(options.replication_factor) > brokers {
        finding(
            "replication",
            format!(
                "`replication_factor` is {}, but there are {brokers} brokers: no topic can be created",
                options.replication_factor
            ),
            "start more brokers, or set `log.kafka.replication_factor` to their number",
        );
    } else if brokers > 1 && options.replication_factor == 1 {
        finding(
            "replication",
            format!(
                "new topics get one copy, though there are {brokers} brokers: each broker is a single point of loss"
            ),
            "set `log.kafka.replication_factor: 3`",
        );
    }
    for (setting, copies) in [
        (
            "offsets.topic.replication.factor",
            "the positions of all groups",
        ),
        (
            "transaction.state.log.replication.factor",
            "the state of transactions",
        ),
    ] {
        if brokers > 1 && number(&facts.settings, setting) == Some(1_u32) {
            finding(
                "replication",
                format!(
                    "the brokers keep {copies} in one copy (`{setting}=1`): when that broker is away, every pipeline stands still"
                ),
                "set it to 3 on the brokers before the first start, or raise the replication of that internal topic",
            );
        }
    }
    let longest: Option<u64> = number(&facts.settings, "transaction.max.timeout.ms");
    if let Some(longest) =
        longest.filter(|longest| u64::from(options.transaction_timeout_ms) > *longest)
    {
        finding(
            "transactions",
            format!(
                "`transaction_timeout_ms` is {}, the brokers allow {longest}: every commit is refused",
                options.transaction_timeout_ms
            ),
            "lower it, or raise `transaction.max.timeout.ms` on the brokers",
        );
    }
    let session = u64::from(options.session_timeout_ms);
    let least: Option<u64> = number(&facts.settings, "group.min.session.timeout.ms");
    let most: Option<u64> = number(&facts.settings, "group.max.session.timeout.ms");
    if least.is_some_and(|least| session < least) || most.is_some_and(|most| session > most) {
        finding(
            "groups",
            format!(
                "`session_timeout_ms` is {session}, the brokers allow {} to {}: no worker can join",
                shown(least),
                shown(most)
            ),
            "set `log.kafka.session_timeout_ms` between them",
        );
    }
    let named = |unwell: &dyn Fn(&&TopicFacts) -> bool| {
        let all: Vec<&TopicFacts> = facts.topics.iter().filter(unwell).collect();
        let mut names: Vec<String> = all
            .iter()
            .take(NAMED_MAX)
            .map(|topic| format!("`{}`", topic.name))
            .collect();
        if all.len() > NAMED_MAX {
            names.push(format!("{} more", all.len() - NAMED_MAX));
        }
        (!names.is_empty()).then(|| names.join(", "))
    };
    if let Some(topics) = named(&|topic| topic.leaderless > 0) {
        finding(
            "topics",
            format!("partitions without a leader: {topics}: they can be neither read nor written"),
            "start the brokers that are away",
        );
    }
    if let Some(topics) = named(&|topic| topic.in_sync < topic.replicas && topic.leaderless == 0) {
        finding(
            "topics",
            format!("copies that are not up to date: {topics}"),
            "a broker is away or slow; it catches up by itself when it is back",
        );
    }
    if let Some(topics) = named(&|topic| topic.in_sync_min.is_some_and(|min| topic.replicas < min))
    {
        finding(
            "topics",
            format!(
                "fewer copies than a write needs (`min.insync.replicas`): {topics}: every commit to them fails"
            ),
            "give these topics more replicas, or lower their `min.insync.replicas`",
        );
    }
    if let Some(topics) =
        named(&|topic| topic.replicas > 1 && topic.in_sync_min == Some(topic.replicas))
    {
        finding(
            "topics",
            format!(
                "a write needs every copy (`min.insync.replicas` is the number of replicas): {topics}: one broker that is away stops them"
            ),
            "set `min.insync.replicas` to one less than the replicas",
        );
    }
    let bytes = u64::from(options.record_bytes_max);
    if let Some(topics) = named(&|topic| topic.record_bytes_max.is_some_and(|max| max < bytes)) {
        finding(
            "topics",
            format!(
                "records may be smaller there than `record_bytes_max` ({bytes}): {topics}: large batches are refused"
            ),
            "raise `max.message.bytes` of these topics, or lower `log.kafka.record_bytes_max`",
        );
    }
    found
}

fn shown(bound: Option<u64>) -> String {
    bound.map_or_else(|| "?".to_owned(), |bound| bound.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change<'a> = &'a dyn Fn(&mut Facts, &mut KafkaOptions);

    fn told(facts: &Facts, options: &KafkaOptions) -> Vec<String> {
        findings(facts, options)
            .into_iter()
            .map(|finding| finding.what)
            .collect()
    }

    fn healthy() -> Facts {
        let settings = [
            ("offsets.topic.replication.factor", "3"),
            ("transaction.state.log.replication.factor", "3"),
            ("transaction.max.timeout.ms", "900000"),
            ("group.min.session.timeout.ms", "6000"),
            ("group.max.session.timeout.ms", "1800000"),
        ];
        Facts {
            brokers: 3,
            settings: settings
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            topics: vec![TopicFacts {
                name: "t".into(),
                replicas: 3,
                in_sync: 3,
                leaderless: 0,
                in_sync_min: Some(2),
                record_bytes_max: Some(64 << 20),
            }],
        }
    }

    #[test]
    fn a_healthy_cluster_is_quiet() {
        assert_eq!(told(&healthy(), &KafkaOptions::default()), [""; 0]);
    }

    #[test]
    fn each_mistake_is_told() {
        let options = KafkaOptions::default();
        let with = |change: Change<'_>| {
            let (mut facts, mut options) = (healthy(), options.clone());
            change(&mut facts, &mut options);
            let told = told(&facts, &options);
            assert_eq!(told.len(), 1, "{told:?}");
            told[0].clone()
        };
        let cases: [(Change<'_>, &str); 10] = [
            (&|f, _| f.brokers = 1, "no topic can be created"),
            (&|_, o| o.replication_factor = 1, "single point of loss"),
            (
                &|f, _| {
                    drop(
                        f.settings
                            .insert("offsets.topic.replication.factor".into(), "1".into()),
                    )
                },
                "the positions of all groups",
            ),
            (
                &|_, o| o.transaction_timeout_ms = 1_000_000,
                "every commit is refused",
            ),
            (&|_, o| o.session_timeout_ms = 1_000, "no worker can join"),
            (&|f, _| f.topics[0].leaderless = 1, "without a leader"),
            (&|f, _| f.topics[0].in_sync = 2, "not up to date"),
            (&|f, _| f.topics[0].in_sync_min = Some(4), "fewer copies"),
            (
                &|f, _| f.topics[0].in_sync_min = Some(3),
                "needs every copy",
            ),
            (
                &|f, _| f.topics[0].record_bytes_max = Some(1_000),
                "large batches are refused",
            ),
        ];
        for (change, word) in cases {
            let told = with(change);
            assert!(told.contains(word), "{told}");
        }
    }
}
