//! One worker process, seen from the pool.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{future, io};

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;
use va_parse::Limits;

use crate::death::Death;
use crate::frame::{self, LENGTHS, Reply, Request};
use crate::parser::Source;

/// What is kept of a worker's standard error.
const LAST_WORDS: usize = 4 << 10;
/// How long a worker may take to start; only a machine in trouble takes so long.
const START_WAIT: Duration = Duration::from_secs(30);
/// How long a worker whose socket is closed may take to be gone before it is killed.
const END_WAIT: Duration = Duration::from_secs(5);
/// Heads from here on are decoded aside, because they would hold up other tasks.
const SMALL_HEAD: usize = 256 << 10;

/// A child that parses. Killed when dropped.
pub(crate) struct Worker {
    child: Child,
    /// Buffered for reading.
    socket: BufReader<UnixStream>,
    stderr: ChildStderr,
    last_words: Vec<u8>,
    memory_bytes_max: u64,
    /// Nothing was asked of it yet.
    pub fresh: bool,
}

impl Worker {
    /// Starts `program parse-worker` and waits until it can work.
    pub(crate) async fn start(program: &Path, memory_bytes_max: u64) -> io::Result<Self> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut child = Command::new(program)
            .arg0("va")
            .args(["parse-worker", "--memory-bytes-max"])
            .arg(memory_bytes_max.to_string())
            // Where `va` allocates with jemalloc: address space that is kept for later would count against the limit.
            .env(
                "_RJEM_MALLOC_CONF",
                "narenas:1,retain:false,background_thread:false",
            )
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal reaches the whole group; the platform still wants its last checkpoint.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let stderr = child
            .stderr
            .take()
            .ok_or_else(|| io::Error::other("the child has no standard error"))?;
        let mut worker = Self {
            child,
            socket: BufReader::with_capacity(256 << 10, UnixStream::from_std(ours)?),
            stderr,
            last_words: Vec::new(),
            memory_bytes_max,
            fresh: true,
        };
        match timeout(START_WAIT, worker.socket.read_u8()).await {
            Ok(Ok(frame::READY)) => Ok(worker),
            Ok(_) => {
                let error = io::Error::other("it does not say that it is ready");
                let death = worker.autopsy(&error).await;
                Err(io::Error::other(format!("it ended at once: {death}")))
            }
            Err(_) => Err(io::Error::other(format!(
                "it is not ready after {} s",
                START_WAIT.as_secs()
            ))),
        }
    }

    /// Whether it still runs. One that was killed while idle must not cost a document its attempt.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a document. Its reply is read by [`Worker::reply`]; several may be on their way.
    pub(crate) async fn send(&mut self, source: &Source, limits: &Limits) -> io::Result<()> {
        self.fresh = false;
        let request = Request {
            name: source.name.clone(),
            content_type: source.content_type.clone(),
            limits: *limits,
        };
        let (first, rest) = frame::frame_of(&request, &source.bytes)?;
        let socket = &mut self.socket;
        let write = async move {
            socket.write_all(&first).await?;
            socket.write_all(rest).await
        };
        tokio::select! {
            written = write => written,
            never = hear(&mut self.stderr, &mut self.last_words) => match never {},
        }
    }

    /// The reply to the document that was sent first of those without one.
    pub(crate) async fn reply(&mut self, limits: &Limits) -> io::Result<Reply> {
        let socket = &mut self.socket;
        let read = async move {
            let mut lengths = [0; LENGTHS];
            socket.read_exact(&mut lengths).await?;
            let (head, body) = frame::lengths_of(lengths, limits.text_bytes_max as u64)?;
            let mut frame = vec![0; head];
            socket.read_exact(&mut frame).await?;
            let mut text = vec![0; body];
            socket.read_exact(&mut text).await?;
            io::Result::Ok((frame, text))
        };
        let (head, body) = tokio::select! {
            read = read => read?,
            never = hear(&mut self.stderr, &mut self.last_words) => match never {},
        };
        if head.len() < SMALL_HEAD {
            return frame::reply_of(&head, body);
        }
        tokio::task::spawn_blocking(move || frame::reply_of(&head, body))
            .await
            .map_err(io::Error::other)?
    }

    /// How it ended, once it does not answer any more.
    pub(crate) async fn autopsy(mut self, error: &io::Error) -> Death {
        let _ = self.socket.shutdown().await;
        let ended = {
            let (child, stderr, said) = (&mut self.child, &mut self.stderr, &mut self.last_words);
            let wait = async {
                let status = child.wait().await;
                // What it said last is in the pipe still.
                let mut rest = Vec::new();
                let _ = stderr.take(1 << 20).read_to_end(&mut rest).await;
                keep(said, &rest);
                status
            };
            timeout(END_WAIT, wait).await
        };
        match ended {
            // It left because its socket was closed: the fault was noticed on this side.
            Ok(Ok(status)) if status.success() => Death::Ended(error.to_string()),
            Ok(Ok(status)) => {
                let said = String::from_utf8_lossy(&self.last_words);
                Death::of(status, &said, self.memory_bytes_max)
            }
            Ok(Err(error)) => Death::Ended(error.to_string()),
            Err(_) => Death::Ended(format!("it does not end: {error}")),
        }
    }
}

/// Reads what the process prints, for as long as anything is waited for: a full pipe would stop it.
async fn hear(stderr: &mut ChildStderr, last_words: &mut Vec<u8>) -> std::convert::Infallible {
    let mut piece = [0; 1024];
    while let Ok(length @ 1..) = stderr.read(&mut piece).await {
        keep(last_words, &piece[..length]);
    }
    future::pending().await
}

fn keep(last_words: &mut Vec<u8>, piece: &[u8]) {
    last_words.extend_from_slice(piece);
    let surplus = last_words.len().saturating_sub(LAST_WORDS);
    last_words.drain(..surplus);
}

/// The program that is running: the same file, even when another version has been put in its place.
pub(crate) fn this_program() -> io::Result<PathBuf> {
    let link = Path::new("/proc/self/exe");
    if link.exists() {
        Ok(link.to_owned())
    } else {
        std::env::current_exe()
    }
}
