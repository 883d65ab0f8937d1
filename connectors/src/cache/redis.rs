//! The cache in Redis (tested: 7.0), one server or a cluster: what many processes share.
//!
//! Each call is one command or one Lua script about one key, so it is atomic and works on a cluster. One multiplexed
//! connection; it is made at the first call, given up when it breaks or does not answer, and made anew by the next call.
//! Everything has an end: connecting, an answer, waiting for room among the calls under way. A call that failed may have
//! taken effect. Nothing is repeated here; whether Redis is gone, and what then, is the caller's business.

use std::fmt;
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::cluster::ClusterClient;
use ::redis::cluster_async::ClusterConnection;
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, cmd,
};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Mutex, Semaphore};

use super::{Cache, CacheError, CacheKey, millis};

/// How long connecting may take, and how long an answer.
const CONNECT: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_millis(500);
/// How long a call may take, with waiting and connecting.
const CALL: Duration = Duration::from_millis(1_500);
/// Calls under way at once; others wait.
const CALLS_MAX: usize = 512;
/// For how long nobody tries to connect after a failure, so that not every call waits for a server that is gone.
const PAUSE: Duration = Duration::from_millis(100);

/// `KEYS[1]` becomes `ARGV[2]` for `ARGV[3]` ms if it is `ARGV[1]`.
const REPLACE: &str = "\
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
return 0";
/// Removes `KEYS[1]` if it is `ARGV[1]`.
const REMOVE_IF: &str = "\
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0";
/// Adds `ARGV[1]` to `KEYS[1]`, which ends `ARGV[2]` ms after its first use. The sum is read as text, since a number of Lua
/// holds 53 bits.
const ADD: &str = "\
redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) == -1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return redis.call('GET', KEYS[1])";

/// A cache in Redis.
pub struct RedisCache {
    /// In front of every key.
    namespace: String,
    server: Server,
    told: String,
    link: Mutex<Link>,
    room: Semaphore,
}

#[expect(clippy::large_enum_variant, reason = "a process has one of it")]
enum Server {
    One(Client),
    Cluster(ClusterClient),
}

#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// The connection of now.
#[derive(Default)]
struct Link {
    connection: Option<Connection>,
    /// How many there have been, so that a late failure of an old one does not end the new one.
    number: u64,
    /// When connecting failed last, and why.
    failed: Option<(Instant, String)>,
}

impl RedisCache {
    /// The cache at `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`, `rediss://` with TLS, or of a cluster
    /// `redis+cluster://[USER:PASSWORD@]HOST:PORT,HOST:PORT` (`rediss+cluster://`), with `namespace` in front of its keys.
    /// Connects to nothing yet: a server that is not there now may be later.
    pub fn open(url: &str, namespace: &str) -> Result<Self, CacheError> {
        crate::tls::install();
        let refused = |error: RedisError| {
            // The error's text does not hold the URL, which may hold a password.
            CacheError(format!(
                "the URL cannot be used: {error}; use `redis://USER:PASSWORD@HOST:PORT`, `rediss://` with TLS, or \
                 `redis+cluster://USER:PASSWORD@HOST:PORT,HOST:PORT`"
            ))
        };
        let (server, told) = match nodes(url)? {
            None => {
                let client = Client::open(url).map_err(refused)?;
                let told = format!("Redis at {}", client.get_connection_info().addr());
                (Server::One(client), told)
            }
            Some(nodes) => {
                let hosts: Vec<String> = nodes.iter().map(|node| host(node).to_owned()).collect();
                let told = format!("Redis cluster at {}", hosts.join(", "));
                let client = ClusterClient::builder(nodes)
                    .connection_timeout(CONNECT)
                    .response_timeout(ANSWER)
                    // Following a key to its node is a retry, too.
                    .retries(3)
                    .build()
                    .map_err(refused)?;
                (Server::Cluster(client), told)
            }
        };
        Ok(Self {
            namespace: namespace.to_owned(),
            server,
            told,
            link: Mutex::default(),
            room: Semaphore::new(CALLS_MAX),
        })
    }

    fn key(&self, key: &CacheKey) -> String {
        format!("{}{}", self.namespace, key.as_str())
    }

    fn script(&self, code: &str, key: &CacheKey) -> Cmd {
        let mut command = cmd("EVAL");
        // The server keeps the compiled script by its text.
        command.arg(code).arg(1).arg(self.key(key));
        command
    }

    /// The answer to a command, in time.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, CacheError> {
        match tokio::time::timeout(CALL, self.answer(command)).await {
            Ok(answered) => answered,
            Err(_) => Err(CacheError(format!(
                "{}: no answer within {} ms",
                self.told,
                CALL.as_millis()
            ))),
        }
    }

    async fn answer<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, CacheError> {
        let _room = self
            .room
            .acquire()
            .await
            .map_err(|_| CacheError(format!("{}: it is closed", self.told)))?;
        let (connection, number) = self.connection().await?;
        let answered: Result<T, RedisError> = match connection {
            Connection::One(mut connection) => command.query_async(&mut connection).await,
            Connection::Cluster(mut connection) => command.query_async(&mut connection).await,
        };
        match answered {
            Ok(answer) => Ok(answer),
            Err(error) => {
                if breaks(&error) {
                    self.give_up(number).await;
                }
                Err(CacheError(format!("{}: {error}", self.told)))
            }
        }
    }

    /// The connection and its number. Of many who find none, one makes it and the others wait for that.
    async fn connection(&self) -> Result<(Connection, u64), CacheError> {
        let mut link = self.link.lock().await;
        if let Some(connection) = &link.connection {
            return Ok((connection.clone(), link.number));
        }
        if let Some((at, reason)) = &link.failed
            && at.elapsed() < PAUSE
        {
            return Err(CacheError(reason.clone()));
        }
        // A cluster is asked for its slots, too.
        let made = tokio::time::timeout(2 * CONNECT, self.connect()).await;
        let reason = match made {
            Ok(Ok(connection)) => {
                link.number += 1;
                link.failed = None;
                link.connection = Some(connection.clone());
                return Ok((connection, link.number));
            }
            Ok(Err(error)) => format!("{}: connect: {error}", self.told),
            Err(_) => format!(
                "{}: connect: not within {} ms",
                self.told,
                (2 * CONNECT).as_millis()
            ),
        };
        link.failed = Some((Instant::now(), reason.clone()));
        Err(CacheError(reason))
    }

    async fn connect(&self) -> Result<Connection, RedisError> {
        match &self.server {
            Server::One(client) => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(CONNECT))
                    .set_response_timeout(Some(ANSWER));
                let made = client.get_multiplexed_async_connection_with_config(&config);
                Ok(Connection::One(made.await?))
            }
            Server::Cluster(client) => {
                Ok(Connection::Cluster(client.get_async_connection().await?))
            }
        }
    }

    /// Lets the next call connect anew, unless somebody has already.
    async fn give_up(&self, number: u64) {
        let mut link = self.link.lock().await;
        if link.number == number {
            link.connection = None;
        }
    }
}

/// Whether the connection is of no more use. What the server says to a command concerns the command, except that a server
/// which may not write, or not yet answer, is the wrong one.
fn breaks(error: &RedisError) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::Server(ServerErrorKind::ResponseError) | ErrorKind::Extension
    )
}

/// The nodes of a cluster's URL, each as a URL; `None` when it is not a cluster's.
fn nodes(url: &str) -> Result<Option<Vec<String>>, CacheError> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Ok(None);
    };
    let Some(scheme) = scheme.strip_suffix("+cluster") else {
        return Ok(None);
    };
    let (user, hosts) = match rest.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), rest),
    };
    let hosts = hosts.trim_end_matches('/');
    if hosts.contains(['/', '?', '#']) {
        return Err(CacheError(
            "the URL of a cluster names its nodes and nothing behind them: a cluster has no numbered databases".to_owned(),
        ));
    }
    if hosts.split(',').any(|host| host.trim().is_empty()) {
        return Err(CacheError(
            "the URL of a cluster names at least one node: `redis+cluster://HOST:PORT,HOST:PORT`"
                .to_owned(),
        ));
    }
    let nodes = hosts
        .split(',')
        .map(|host| format!("{scheme}://{user}{}", host.trim()))
        .collect();
    Ok(Some(nodes))
}

/// The host of a node's URL, without who connects.
fn host(node: &str) -> &str {
    let rest = node.split_once("://").map_or(node, |(_, rest)| rest);
    rest.rsplit_once('@').map_or(rest, |(_, host)| host)
}

impl fmt::Debug for RedisCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCache")
            .field("told", &self.told)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Cache for RedisCache {
    async fn get(&self, key: &CacheKey) -> Result<Option<Bytes>, CacheError> {
        let mut command = cmd("GET");
        command.arg(self.key(key));
        self.ask(&command).await
    }

    async fn put(&self, key: &CacheKey, value: Bytes, life: Duration) -> Result<(), CacheError> {
        let mut command = cmd("SET");
        command.arg(self.key(key)).arg(&value[..]);
        command.arg("PX").arg(millis(life));
        self.ask(&command).await
    }

    async fn put_new(
        &self,
        key: &CacheKey,
        value: Bytes,
        life: Duration,
    ) -> Result<bool, CacheError> {
        let mut command = cmd("SET");
        command.arg(self.key(key)).arg(&value[..]);
        command.arg("NX").arg("PX").arg(millis(life));
        // `OK`, or nothing where something was.
        let put: Option<String> = self.ask(&command).await?;
        Ok(put.is_some())
    }

    async fn replace(
        &self,
        key: &CacheKey,
        expected: &Bytes,
        value: Bytes,
        life: Duration,
    ) -> Result<bool, CacheError> {
        let mut command = self.script(REPLACE, key);
        command.arg(&expected[..]).arg(&value[..]).arg(millis(life));
        let replaced: i64 = self.ask(&command).await?;
        Ok(replaced == 1)
    }

    async fn remove(&self, key: &CacheKey) -> Result<(), CacheError> {
        let mut command = cmd("DEL");
        command.arg(self.key(key));
        let _removed: i64 = self.ask(&command).await?;
        Ok(())
    }

    async fn remove_if(&self, key: &CacheKey, expected: &Bytes) -> Result<bool, CacheError> {
        let mut command = self.script(REMOVE_IF, key);
        command.arg(&expected[..]);
        let removed: i64 = self.ask(&command).await?;
        Ok(removed == 1)
    }

    async fn add(&self, key: &CacheKey, by: i64, life: Duration) -> Result<i64, CacheError> {
        let mut command = self.script(ADD, key);
        command.arg(by).arg(millis(life));
        self.ask(&command).await
    }

    async fn ping(&self) -> Result<(), CacheError> {
        // On a cluster a PING reaches some node; a read of a key needs the node that has it, and the slots to be there.
        let mut command = cmd("EXISTS");
        command.arg(format!("{}ping", self.namespace));
        let _there: i64 = self.ask(&command).await?;
        Ok(())
    }

    fn told(&self) -> String {
        self.told.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cache::conformance::World;
    use crate::servers::{self, Server as TestServer};
    use va_catalog::TenantId;

    /// A server for each test: all begin with an empty cache.
    fn start(script: &str) -> Option<TestServer> {
        match TestServer::start(script) {
            Ok(server) => Some(server),
            Err(reason) => {
                servers::skip(&reason);
                None
            }
        }
    }

    fn world(server: TestServer) -> (World, TestServer) {
        let cache = RedisCache::open(server.url(), "va:").unwrap();
        let world = World {
            cache: Arc::new(cache),
            pass: None,
        };
        (world, server)
    }

    mod one {
        use super::*;

        async fn make() -> Option<(World, TestServer)> {
            start("redis.sh").map(world)
        }

        crate::cache_conformance!(make);
    }

    mod cluster {
        use super::*;

        async fn make() -> Option<(World, TestServer)> {
            start("redis.sh cluster").map(world)
        }

        crate::cache_conformance!(make);
    }

    fn key(name: &str) -> CacheKey {
        CacheKey::new("test", &TenantId::default_tenant(), &[name])
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_that_goes_and_comes_is_found_again() {
        for script in ["redis.sh", "redis.sh cluster"] {
            let Some(mut server) = start(script) else {
                return;
            };
            let cache = RedisCache::open(server.url(), "va:").unwrap();
            let life = Duration::from_secs(60);
            cache.put(&key("a"), "1".into(), life).await.unwrap();
            server.tell("halt");
            let begun = Instant::now();
            let error = cache.get(&key("a")).await.unwrap_err().to_string();
            assert!(begun.elapsed() < 2 * CALL, "{:?}", begun.elapsed());
            let password = server.url().split([':', '@']).nth(2).unwrap();
            assert!(!error.contains(password), "{error}");
            server.tell("resume");
            let deadline = Instant::now() + Duration::from_secs(60);
            while let Err(error) = cache.put(&key("a"), "2".into(), life).await {
                assert!(Instant::now() < deadline, "{error}");
                tokio::task::yield_now().await;
            }
            assert_eq!(cache.get(&key("a")).await.unwrap(), Some("2".into()));
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn namespaces_share_a_server_and_more_calls_than_there_is_room_for_wait() {
        let Some(server) = start("redis.sh") else {
            return;
        };
        let one = Arc::new(RedisCache::open(server.url(), "one:").unwrap());
        let other = RedisCache::open(server.url(), "other:").unwrap();
        let life = Duration::from_secs(60);
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..2 * CALLS_MAX {
            let one = one.clone();
            calls.spawn(async move { one.add(&key("a"), 1, life).await.unwrap() });
        }
        let most = calls.join_all().await.into_iter().max();
        assert_eq!(most, i64::try_from(2 * CALLS_MAX).ok());
        assert_eq!(other.get(&key("a")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_password_is_never_shown_and_a_wrong_one_is_told() {
        for (url, told) in [
            ("redis://:s3cret@127.0.0.1:6379", "Redis at 127.0.0.1:6379"),
            ("rediss://ann:s3cret@redis.test", "Redis at redis.test:6379"),
            (
                "redis+cluster://ann:s3cret@a:1,b:2",
                "Redis cluster at a:1, b:2",
            ),
        ] {
            let cache = RedisCache::open(url, "va:").unwrap();
            assert_eq!(cache.told(), told);
            assert!(!format!("{cache:?}").contains("s3cret"));
        }
        for url in [
            "s3cret",
            "http://s3cret@host",
            "redis+cluster://:s3cret@a:1/7",
            "redis+cluster://",
        ] {
            let error = RedisCache::open(url, "va:").unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
        let Some(server) = start("redis.sh") else {
            return;
        };
        let (_, place) = server.url().rsplit_once('@').unwrap();
        let cache = RedisCache::open(&format!("redis://:s3cret@{place}"), "va:").unwrap();
        let error = cache.ping().await.unwrap_err().to_string();
        assert!(error.contains(place), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}
