//! Members that are taken for dead and are not, that die in the middle of a transaction, and commits whose end is lost
//! on the way.
//!
//! Where a process has to stop or die, the child is this test binary again, told by an environment variable what to do.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use va_catalog::{Offset, Partition};

use super::super::member::KafkaMember;
use super::super::producer::{Outgoing, Writes};
use super::super::{KafkaLog, KafkaOptions};
use super::proxy::{Cut, Proxy};
use super::{broker, connect, options};
use crate::log::conformance::{
    assigned, create, end, group, ints, part, produce, read_all, state, topic,
};
use crate::log::{Commit, Log, LogError, Member, Target};

/// Tells a child of a test where the broker is.
pub(super) const BROKERS: &str = "VA_KAFKA_TEST_BROKERS";
const PREFIX: &str = "VA_KAFKA_TEST_PREFIX";
const ROLE: &str = "VA_KAFKA_TEST_ROLE";

/// Short, so that the group soon goes on without a member that is gone.
const SESSION_MS: u32 = 1_500;

fn soon_dead(options: KafkaOptions) -> KafkaOptions {
    KafkaOptions {
        session_timeout_ms: SESSION_MS,
        ..options
    }
}

/// Another process in the same group. It is killed when the test ends.
struct Other {
    child: Child,
    stdin: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Other {
    fn start(role: &str, options: &KafkaOptions) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "log::kafka::tests::faults::child", "--nocapture"])
            .env(BROKERS, &options.brokers)
            .env(PREFIX, &options.prefix)
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take().unwrap(),
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
        }
    }

    /// Waits for the next line that begins so, and returns what follows.
    fn says(&mut self, word: &str) -> String {
        let mut heard = Vec::new();
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            if let Some((_, rest)) = line.split_once(&format!("child: {word}")) {
                return rest.trim().to_owned();
            }
            heard.push(line);
        }
        panic!("the child ended without `{word}`: {heard:?}");
    }

    fn go_on(&mut self) {
        self.stdin.write_all(b"\n").unwrap();
        self.stdin.flush().unwrap();
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's part; without the variables it is a test that passes.
#[test]
fn child() {
    let (Ok(prefix), Ok(role)) = (std::env::var(PREFIX), std::env::var(ROLE)) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let options = soon_dead(KafkaOptions {
            prefix,
            ..options().unwrap()
        });
        let log = connect(options).await;
        let member = KafkaMember::join(Arc::clone(&log.shared), &group("g"), &[topic("in")])
            .await
            .unwrap();
        assigned(&member, 1).await;
        let first = step(&member, 1);
        first.finish().await.unwrap();
        let say = |line: String| {
            // One call, so that a line is printed whole.
            let mut stdout = std::io::stdout();
            stdout
                .write_all(format!("child: {line}\n").as_bytes())
                .unwrap();
            stdout.flush().unwrap();
        };
        match role.as_str() {
            "zombie" => {
                let late = step(&member, 2);
                say("ready".to_owned());
                std::io::stdin().read_line(&mut String::new()).unwrap();
                say(match late.finish().await {
                    Ok(_) => "result committed".to_owned(),
                    Err(LogError::Fenced(place)) => format!("result fenced {place}"),
                    Err(other) => format!("result {other}"),
                });
            }
            "dies" => {
                let slot = Arc::clone(&member.membership.producer).lock_owned().await;
                let (timeout, kafka) = (
                    log.shared.timeout(),
                    log.shared.kafka_topic(&topic("out")).unwrap(),
                );
                let mut list = TopicPartitionList::new();
                let input = log.shared.kafka_topic(&topic("in")).unwrap();
                list.add_partition_offset(&input, 0, KafkaOffset::Offset(1))
                    .unwrap();
                let metadata = member.membership.group_metadata().unwrap();
                tokio::task::spawn_blocking(move || {
                    let record = Outgoing {
                        topic: kafka,
                        partition: 0,
                        key: None,
                        payload: Some(b"never to be seen".to_vec()),
                        headers: None,
                    };
                    let writes = Writes {
                        single: vec![record],
                        ..Writes::default()
                    };
                    let producer = slot.as_ref().unwrap();
                    producer.leave_open(&writes, (&list, &metadata), timeout);
                })
                .await
                .unwrap();
                say("ready".to_owned());
                std::future::pending::<()>().await;
            }
            other => panic!("no role `{other}`"),
        }
    });
}

/// One step of a pipeline: row `n - 1` is consumed, and written out.
fn step(member: &dyn Member, n: u64) -> Box<dyn Commit> {
    let mut commit = member.begin();
    commit.append(
        &topic("out"),
        Target::Partition(Partition(0)),
        ints(n as i64 - 1..n as i64),
    );
    commit.consumed(&part(&topic("in"), 0), Offset(n));
    commit.put(state("g", "node", "count"), n.to_string().into());
    commit
}

/// Topics `in`, with ten rows in one batch, and `out`.
async fn scene(log: &Arc<KafkaLog>) -> Arc<dyn Log> {
    let log = Arc::clone(log) as Arc<dyn Log>;
    let input = create(&log, "in", 1).await;
    create(&log, "out", 1).await;
    produce(&log, &input, 0, 0..10).await;
    log
}

async fn count(log: &Arc<dyn Log>) -> Option<String> {
    let value = log.state_get(&state("g", "node", "count")).await.unwrap();
    value.map(|value| String::from_utf8_lossy(&value).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_is_fenced() {
    let Some(options) = options().map(soon_dead) else {
        return;
    };
    let log = scene(&connect(options.clone()).await).await;
    let mut zombie = Other::start("zombie", &options);
    zombie.says("ready");
    // It cannot know that it is taken for dead: it does not run.
    zombie.signal("-STOP");
    let member = log.join(&group("g"), &[topic("in")]).await.unwrap();
    let from = assigned(&*member, 1).await[&part(&topic("in"), 0)];
    assert_eq!(from, Offset(1));
    step(&*member, 2).finish().await.unwrap();

    zombie.go_on();
    zombie.signal("-CONT");
    assert_eq!(zombie.says("result"), "fenced in-0");
    step(&*member, 3).finish().await.unwrap();
    assert_eq!(read_all(&log, &topic("out"), 0).await, [0, 1, 2]);
    assert_eq!(count(&log).await.as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_in_a_transaction_leaves_nothing() {
    let Some(options) = options().map(soon_dead) else {
        return;
    };
    // The brokers would end the transaction only after a minute: the successor has to.
    assert!(options.transaction_timeout_ms >= 60_000);
    let log = scene(&connect(options.clone()).await).await;
    let mut other = Other::start("dies", &options);
    other.says("ready");
    other.signal("-KILL");

    let member = log.join(&group("g"), &[topic("in")]).await.unwrap();
    let from = assigned(&*member, 1).await[&part(&topic("in"), 0)];
    assert_eq!(from, Offset(1));
    step(&*member, 2).finish().await.unwrap();
    // Its record would be an error if it could be seen, and what comes after it would wait if it were open.
    assert_eq!(read_all(&log, &topic("out"), 0).await, [0, 1]);
    assert_eq!(count(&log).await.as_deref(), Some("2"));
}

/// A static member that is restarted is the same member: the group does not wait for the session to end, and what the
/// former process still tries is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_instance_keeps_its_partitions() {
    let Some(options) = options() else { return };
    let options = KafkaOptions {
        instance: Some("worker-1".to_owned()),
        // Longer than the test may take.
        session_timeout_ms: 120_000,
        rebalance_timeout_ms: 120_000,
        ..options
    };
    let log = scene(&connect(options.clone()).await).await;
    let member = log.join(&group("g"), &[topic("in")]).await.unwrap();
    assigned(&*member, 1).await;
    step(&*member, 1).finish().await.unwrap();

    let again = connect(options).await as Arc<dyn Log>;
    let successor = again.join(&group("g"), &[topic("in")]).await.unwrap();
    let from = assigned(&*successor, 1).await[&part(&topic("in"), 0)];
    assert_eq!(from, Offset(1));
    step(&*successor, 2).finish().await.unwrap();
    let error = step(&*member, 2).finish().await.unwrap_err();
    assert!(
        matches!(error, LogError::Fenced(_) | LogError::Retriable(_)),
        "{error}"
    );
    step(&*successor, 3).finish().await.unwrap();
    assert_eq!(read_all(&log, &topic("out"), 0).await, [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_cut_off_before_the_broker_is_replayed() {
    cut_off(Cut::Request).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_cut_off_behind_the_broker_is_not_replayed() {
    cut_off(Cut::Response).await;
}

/// Consumes ten rows one by one through a proxy that cuts the fifth commit off, as a pipeline does: whenever a commit's
/// end is unknown it asks for the committed position and goes on there.
async fn cut_off(cut: Cut) {
    let Some(options) = options() else { return };
    let proxy = Proxy::start(broker::proxied().unwrap()).await;
    let through = KafkaOptions {
        brokers: proxy.address(),
        request_timeout_ms: 3_000,
        session_timeout_ms: 30_000,
        ..options.clone()
    };
    // Another process's view, whose connections stay whole.
    let direct = scene(&connect(options).await).await;
    let log = connect(through).await as Arc<dyn Log>;
    let member = log.join(&group("g"), &[topic("in")]).await.unwrap();
    assigned(&*member, 1).await;
    let place = part(&topic("in"), 0);

    let mut unknown = 0;
    let mut n = 1;
    while n <= 10 {
        if n == 5 && unknown == 0 {
            proxy.cut_at_commit(cut);
        }
        match step(&*member, n).finish().await {
            Ok(_) => n += 1,
            Err(LogError::Indefinite(_)) => {
                unknown += 1;
                assert_eq!(n, 5);
                // While it cannot be known, no position is told.
                let told = log.committed(&group("g"), &place).await;
                assert!(told.is_err(), "{told:?}");
                proxy.heal();
                let committed = log.committed(&group("g"), &place).await.unwrap().unwrap();
                let expected = match cut {
                    Cut::Request => 4,
                    Cut::Response => 5,
                };
                assert_eq!(committed, Offset(expected));
                n = committed.0 + 1;
            }
            Err(other) => panic!("commit {n}: {other}"),
        }
    }
    assert_eq!(unknown, 1);
    // The record's end is the partition's.
    let committed = direct.committed(&group("g"), &place).await.unwrap();
    assert_eq!(committed, Some(end(&direct, &topic("in"), 0).await));
    let rows = read_all(&direct, &topic("out"), 0).await;
    assert_eq!(rows, (0..10).collect::<Vec<_>>());
    assert_eq!(count(&direct).await.as_deref(), Some("10"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_cluster_is_an_error() {
    let unreachable = KafkaOptions {
        // The discard port: nobody listens.
        brokers: "127.0.0.1:9".to_owned(),
        request_timeout_ms: 300,
        ..KafkaOptions::default()
    };
    let started = std::time::Instant::now();
    let error = KafkaLog::connect(unreachable).await.unwrap_err();
    assert!(matches!(error, LogError::Storage(_)), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
}
