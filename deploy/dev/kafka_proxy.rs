//! A TCP proxy before a broker that can lose a commit: it knows enough of Kafka's protocol to find the request that ends
//! a transaction. Included by path where a test needs one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Kafka's number of the request that ends a transaction.
const END_TXN: i16 = 26;

/// Which way of the commit is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The broker never hears of it.
    Request,
    /// The broker commits, and nobody hears of that.
    Response,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Whole,
    Armed(Cut),
    /// Nothing passes in any direction, and nobody is told.
    Dead,
}

pub struct Proxy {
    told: u16,
    mode: watch::Sender<Mode>,
    _tasks: Arc<Mutex<tokio::task::JoinSet<()>>>,
}

/// Tests that want the same port take turns. In this order: the port is free before the next one's turn comes.
struct Door {
    listener: TcpListener,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl Proxy {
    /// `listens` is the broker's port, `told` the one that it tells its clients to come to.
    pub async fn start((listens, told): (u16, u16)) -> Self {
        static TURNS: Mutex<BTreeMap<u16, Arc<tokio::sync::Mutex<()>>>> =
            Mutex::new(BTreeMap::new());
        let turn = TURNS.lock().unwrap().entry(told).or_default().clone();
        let turn = turn.lock_owned().await;
        let door = Door {
            listener: TcpListener::bind(("127.0.0.1", told)).await.unwrap(),
            _turn: turn,
        };
        let (mode, _) = watch::channel(Mode::Whole);
        let tasks = Arc::new(Mutex::new(tokio::task::JoinSet::new()));
        let (connections, modes) = (Arc::downgrade(&tasks), mode.clone());
        tasks.lock().unwrap().spawn(async move {
            // All of it, with the turn.
            let door = door;
            while let Ok((client, _)) = door.listener.accept().await {
                let Some(tasks) = connections.upgrade() else {
                    return;
                };
                tasks
                    .lock()
                    .unwrap()
                    .spawn(pass(client, listens, modes.clone()));
            }
        });
        Self {
            told,
            mode,
            _tasks: tasks,
        }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.told)
    }

    /// Goes dead at the next request that ends a transaction.
    pub fn cut_at_commit(&self, cut: Cut) {
        self.mode.send_replace(Mode::Armed(cut));
    }

    /// Lets new connections through.
    pub fn heal(&self) {
        self.mode.send_replace(Mode::Whole);
    }
}

/// Carries one connection. One that was alive when the proxy went dead ends when it heals, so that what was on the way
/// is lost.
async fn pass(client: TcpStream, listens: u16, mode: watch::Sender<Mode>) {
    let mut changes = mode.subscribe();
    if changes.wait_for(|mode| *mode != Mode::Dead).await.is_err() {
        return;
    }
    let Ok(broker) = TcpStream::connect(("127.0.0.1", listens)).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = broker.into_split();
    let requests = async {
        loop {
            let size = from_client.read_i32().await?;
            let mut request = vec![0; size as usize];
            from_client.read_exact(&mut request).await?;
            let kind = i16::from_be_bytes([request[0], request[1]]);
            let now = *mode.borrow();
            let lost = match now {
                Mode::Armed(cut) if kind == END_TXN => {
                    mode.send_replace(Mode::Dead);
                    cut == Cut::Request
                }
                other => other == Mode::Dead,
            };
            if !lost {
                to_broker.write_i32(size).await?;
                to_broker.write_all(&request).await?;
            }
        }
        #[allow(unreachable_code, reason = "it says what the block returns")]
        std::io::Result::Ok(())
    };
    let responses = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = from_broker.read(&mut buffer).await?;
            if count == 0 {
                return std::io::Result::Ok(());
            }
            if *mode.borrow() != Mode::Dead {
                to_client.write_all(&buffer[..count]).await?;
            }
        }
    };
    let died_and_healed = async {
        let _ = changes.wait_for(|mode| *mode == Mode::Dead).await;
        let _ = changes.wait_for(|mode| *mode != Mode::Dead).await;
    };
    tokio::select! {
        _ = requests => {}
        _ = responses => {}
        () = died_and_healed => {}
    }
}
