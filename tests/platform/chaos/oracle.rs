//! The oracle: makes the load, keeps what was acknowledged, and judges what became of it.
//!
//! Whatever a call acknowledged is an obligation. A call that failed is in doubt: what it sent may be there or not, but not
//! twice, and it is never sent again, so doubt can hide nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use va_catalog::Partition;
use va_connectors::log::partition_of;

use super::pass;
use super::world::{PIPELINE, World};
use crate::server::{Server, good, run, va};

/// Keys of events; each has events in every partition, which are placed by id.
const KEYS: u64 = 40;
const PARTITIONS: u32 = 6;
/// Events of one call.
const EVENTS: u64 = 40;
/// Documents of each collection.
const DOCUMENTS: usize = 24;
/// One with vectors, one without.
const COLLECTIONS: [&str; 2] = ["both", "words"];

const DEFINITION: &str = "\
pipeline: chaos
checkpoint: {interval_ms: 200}
sources:
  events: {type: topic, topic: events}
operators:
  decoded: {type: map, input: events, set: {amount: cast(amount as bigint)}}
  totals: {type: aggregate, input: decoded, group_by: [key], compute: {events: count(), total: sum(amount)}}
sinks:
  each: {type: topic, input: decoded, topic: decoded, key: id}
  sums: {type: topic, input: totals, topic: totals, key: key}
";

#[derive(Default)]
pub struct Oracle {
    acknowledged: Mutex<BTreeSet<u64>>,
    in_doubt: Mutex<BTreeSet<u64>>,
    /// What each document should be: the contents that it may have; the last acknowledged one, and those in doubt since.
    documents: Mutex<BTreeMap<(usize, usize), Vec<Option<String>>>>,
}

/// What the judge found.
#[derive(Debug, Default)]
pub struct Verdict {
    pub events: u64,
    pub in_doubt: u64,
    pub in_doubt_there: u64,
    /// Acknowledged, and not in the topic that they were sent to.
    pub never_stored: u64,
    /// In the input and not in the output.
    pub lost: u64,
    /// More than once in the output.
    pub doubled: u64,
    /// Events of a key that overtook each other within a partition.
    pub overtaken: u64,
    /// Keys whose total differs from a recomputation.
    pub wrong_totals: u64,
    pub keys: u64,
    pub documents: u64,
    /// Documents with other chunks than they should have, or none, or too many.
    pub wrong_documents: u64,
    /// What `va collection verify` found.
    pub disagreements: u64,
}

impl Verdict {
    pub fn check(&self) {
        let bad = self.never_stored
            + self.lost
            + self.doubled
            + self.overtaken
            + self.wrong_totals
            + self.wrong_documents
            + self.disagreements;
        assert_eq!(bad, 0, "{self:#?}");
        assert!(
            self.events > 0 && self.keys == KEYS && self.documents > 0,
            "{self:#?}"
        );
    }
}

impl Oracle {
    /// Makes what the load needs.
    pub fn begin(world: &World) -> Self {
        let serve = &world.serve;
        let topic = json!({"name": "events", "partitions": PARTITIONS, "schema": {"id": "string!", "key": "string!", "seq": "int64!", "amount": "string!"}});
        good(serve.post("/api/v1/topics").json(&topic));
        world.deploy(DEFINITION);
        for (at, name) in COLLECTIONS.into_iter().enumerate() {
            good(
                serve
                    .post("/api/v1/collections")
                    .json(&json!({"name": name, "keyword_only": at == 1})),
            );
        }
        Self::default()
    }

    /// Sends events until `done`.
    pub fn events(&self, serve: &Server, done: &AtomicBool) {
        let mut next = 0;
        while !done.load(Ordering::SeqCst) {
            let ids = next..next + EVENTS;
            next += EVENTS;
            let rows: String = ids.clone().map(|id| format!("{}\n", event(id))).collect();
            let sent = serve
                .post("/api/v1/topics/events/records?key=id")
                .body(rows)
                .send();
            let taken = sent.is_ok_and(|reply| reply.status().is_success());
            let list = if taken {
                &self.acknowledged
            } else {
                &self.in_doubt
            };
            list.lock().unwrap().extend(ids);
            pass(Duration::from_millis(40));
        }
    }

    /// Uploads, changes and removes documents until `done`, each of them many times.
    pub fn documents(&self, serve: &Server, done: &AtomicBool) {
        for round in 0_usize.. {
            for at in 0..DOCUMENTS {
                for collection in 0..COLLECTIONS.len() {
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    self.change(serve, collection, at, round);
                    pass(Duration::from_millis(60));
                }
            }
        }
    }

    fn change(&self, serve: &Server, collection: usize, at: usize, round: usize) {
        let path = format!("/api/v1/collections/{}/documents", COLLECTIONS[collection]);
        // Every fifth goes, now and then.
        let removal = round % 3 == 2 && at.is_multiple_of(5);
        let (reply, becomes) = if removal {
            let listed = serve.get(&format!("{path}?limit=500")).send();
            let Some(id) = listed
                .ok()
                .and_then(|reply| id_of(&reply.text().ok()?, &name(at)))
            else {
                return;
            };
            (serve.delete(&format!("{path}/{id}")).send(), None)
        } else {
            let text = text(collection, at, round);
            let upload = serve
                .post(&format!("{path}?name={}", name(at)))
                .header("content-type", "application/octet-stream")
                .body(text.clone());
            (upload.send(), Some(text))
        };
        let mut documents = self.documents.lock().unwrap();
        let may_be = documents
            .entry((collection, at))
            .or_insert_with(|| vec![None]);
        if reply.is_ok_and(|reply| reply.status().is_success()) {
            may_be.clear();
        }
        may_be.push(becomes);
    }

    /// Waits until everything has settled and compares.
    pub fn judge(&self, world: &World) -> Verdict {
        world.until_settled();
        let mut verdict = Verdict::default();
        self.judge_events(world, &mut verdict);
        for collection in 0..COLLECTIONS.len() {
            self.judge_documents(world, collection, &mut verdict);
        }
        verdict
    }

    fn judge_events(&self, world: &World, verdict: &mut Verdict) {
        let acknowledged = self.acknowledged.lock().unwrap();
        let in_doubt = self.in_doubt.lock().unwrap();
        let stored = numbers(&world.rows("events"));
        verdict.events = acknowledged.len() as u64;
        verdict.in_doubt = in_doubt.len() as u64;
        verdict.in_doubt_there =
            in_doubt.iter().filter(|id| stored.contains_key(id)).count() as u64;
        verdict.never_stored = acknowledged
            .iter()
            .filter(|id| !stored.contains_key(id))
            .count() as u64;
        verdict.doubled += stored.values().filter(|count| **count > 1).count() as u64;

        let rows = world.rows("decoded");
        let decoded = numbers(&rows);
        verdict.lost = stored.keys().filter(|id| !decoded.contains_key(id)).count() as u64;
        verdict.doubled += decoded.values().filter(|count| **count > 1).count() as u64;
        // Of one key that stays in one partition on either side the order is that of sending.
        let mut last: BTreeMap<(String, Partition, u64), i64> = BTreeMap::new();
        for row in &rows {
            let from = partition_of(row["id"].as_str().unwrap().as_bytes(), PARTITIONS);
            let place = (
                row["key"].to_string(),
                from,
                row["_partition"].as_u64().unwrap(),
            );
            let seq = row["seq"].as_i64().unwrap();
            let before = last.insert(place, seq);
            verdict.overtaken += u64::from(before.is_some_and(|before| before >= seq));
        }

        let mut expected: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for id in stored.keys() {
            let total = expected.entry(key(*id)).or_default();
            *total = (total.0 + 1, total.1 + amount(*id));
        }
        let mut found: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for row in world.rows("totals") {
            let now = (
                row["events"].as_i64().unwrap(),
                row["total"].as_i64().unwrap(),
            );
            // Totals of a key are of one partition, in order; the last counts.
            found.insert(row["key"].as_str().unwrap().to_owned(), now);
        }
        verdict.keys = expected.len() as u64;
        let differ = |key: &&String| expected.get(*key) != found.get(*key);
        verdict.wrong_totals = expected
            .keys()
            .chain(found.keys())
            .filter(differ)
            .collect::<BTreeSet<_>>()
            .len() as u64;
    }

    fn judge_documents(&self, world: &World, collection: usize, verdict: &mut Verdict) {
        let (serve, name_of) = (&world.serve, COLLECTIONS[collection]);
        let done = |c: &Value| {
            let count = |state: &str| c["states"][state].as_u64().unwrap_or(0);
            count("UPLOADING") + count("PROCESSING") + count("DELETING") == 0
        };
        world.patiently(&format!("/api/v1/collections/{name_of}"), done);
        let documents = self.documents.lock().unwrap();
        for ((_, at), may_be) in documents.iter().filter(|((c, _), _)| *c == collection) {
            verdict.documents += 1;
            // Its own word finds it, with the text of one of the contents that it may have, or nothing does.
            let hits = serve.search(name_of, &word(collection, *at), "keyword");
            let found: Vec<&str> = hits
                .iter()
                .filter_map(|hit| hit["chunk"]["text"].as_str())
                .collect();
            let fits = match found.as_slice() {
                [] => may_be.contains(&None),
                [one] => may_be
                    .iter()
                    .flatten()
                    .any(|text| text.trim() == one.trim()),
                _ => false,
            };
            if !fits {
                println!(
                    "{name_of} {}: {found:?} instead of one of {may_be:?}",
                    name(*at)
                );
                verdict.wrong_documents += 1;
            }
        }
        let report = run(va(&serve.data).args(["collection", "verify", name_of, "--json"]));
        let report: Value = serde_json::from_str(&report).unwrap();
        if report["ok"] != true {
            println!("{report}");
            verdict.disagreements += 1;
        }
    }
}

fn event(id: u64) -> Value {
    json!({"id": format!("e{id}"), "key": key(id), "seq": id, "amount": amount(id).to_string()})
}

fn key(id: u64) -> String {
    format!("键{}", id % KEYS)
}

fn amount(id: u64) -> i64 {
    (id * 7919 % 1_000) as i64 - 300
}

fn name(at: usize) -> String {
    format!("d{at}.md")
}

/// A word that only this document has, whatever its version.
fn word(collection: usize, at: usize) -> String {
    let letter = |n: usize| char::from(b"bcdfghjkmn"[n]);
    format!(
        "qx{}{}{}o",
        letter(collection),
        letter(at / 10),
        letter(at % 10)
    )
}

/// One chunk.
fn text(collection: usize, at: usize, round: usize) -> String {
    format!(
        "文档 {at} 的代号是 {}，第 {round} 版。Revision {round} of document {at}.",
        word(collection, at)
    )
}

fn id_of(listed: &str, name: &str) -> Option<String> {
    let listed: Value = serde_json::from_str(listed).ok()?;
    let items = listed["items"].as_array()?;
    let item = items.iter().find(|item| item["name"] == name)?;
    Some(item["id"].as_str()?.to_owned())
}

/// How often each event is there.
fn numbers(rows: &[Value]) -> BTreeMap<u64, u32> {
    let mut numbers = BTreeMap::new();
    for row in rows {
        let id = row["id"]
            .as_str()
            .and_then(|id| id.strip_prefix('e')?.parse().ok());
        *numbers
            .entry(id.unwrap_or_else(|| panic!("{PIPELINE}: a row without id: {row}")))
            .or_default() += 1;
    }
    numbers
}
