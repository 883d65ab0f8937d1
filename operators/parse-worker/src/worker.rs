//! The other end: the main loop of a worker process.
//!
//! Its standard input is a socket to the pool, on which requests come and replies go; standard output leads nowhere, so
//! that nothing a library prints can get between the frames. The process has no other connection to the outside, and it
//! ends, in the middle of a document if need be, when the other end of the socket is gone.

use std::io::{self, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::sync_channel;
use std::thread;

use rlimit::Resource;
use va_parse::Input;

use crate::frame::{self, Request};

/// Where so much cannot be had any more, a parser that panics does so for want of memory.
const ROOM: usize = 1 << 20;

/// Serves requests until the pool is gone. `memory_bytes_max` bounds what this process may allocate; the allocation
/// beyond it aborts the process.
///
/// # Errors
/// When standard input is no socket, or the limit cannot be set: the caller says so and exits.
pub fn run_worker(memory_bytes_max: u64) -> io::Result<()> {
    limit(memory_bytes_max)?;
    // Panics are caught and told in the reply, but for those of libraries that make one of an allocation that failed.
    std::panic::set_hook(Box::new(|_| {
        let mut room = Vec::<u8>::new();
        let had = room.try_reserve_exact(ROOM);
        // Else an optimiser may find that nobody uses it, and not ask.
        std::hint::black_box(&room);
        if had.is_err() {
            // In the words of the runtime, which the pool looks for.
            let _ = io::stderr().write_all(b"memory allocation of a parser failed\n");
            std::process::abort();
        }
    }));
    let mut replies = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut socket = BufReader::with_capacity(256 << 10, replies.try_clone()?);
    replies.peer_addr().map_err(|_| {
        io::Error::other(
            "standard input is not a socket: `va up` and `va index` start workers by themselves",
        )
    })?;
    replies.write_all(&[frame::READY])?;
    // The next request is read while this one is parsed; and the end of the stream is seen at once.
    let (requests, incoming) = sync_channel::<(Request, Vec<u8>)>(1);
    thread::Builder::new()
        .name("requests".into())
        .spawn(move || {
            while let Ok(Some(request)) = frame::read(&mut socket) {
                if requests.send(request).is_err() {
                    break;
                }
            }
            // Nobody waits for what is being parsed, and it may never end.
            std::process::exit(0)
        })?;
    for (request, bytes) in incoming {
        let input = Input {
            name: &request.name,
            content_type: request.content_type.as_deref(),
            bytes: &bytes,
        };
        frame::write_reply(&mut replies, va_parse::parse(&input, &request.limits))?;
    }
    Ok(())
}

fn limit(memory_bytes_max: u64) -> io::Result<()> {
    let (_, hard) = Resource::DATA.get()?;
    let bytes = memory_bytes_max.min(hard);
    Resource::DATA.set(bytes, bytes)?;
    // An image of all that memory on the disk would help nobody.
    Resource::CORE.set(0, 0)?;
    // Should the machine run out of memory, this process is the one to go. Only Linux can be told.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
    Ok(())
}
