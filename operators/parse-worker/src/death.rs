//! How a worker ended, in the words of the document that it was working on.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use thiserror::Error;

/// Why a worker did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Death {
    #[error(
        "parsing took longer than {}; split the document, or raise `parse.timeout_ms` in the configuration",
        seconds(.0)
    )]
    Timeout(Duration),
    #[error(
        "parsing needed more than {} MiB of memory; split the document, or raise `parse.memory_bytes_max` in the configuration",
        .0 >> 20
    )]
    Memory(u64),
    #[error("the document is nested too deeply to be parsed")]
    Stack,
    #[error(
        "the parser process was killed twice by signal {0} while it worked on this document; upload it again, unless \
         the system log says that memory ran out"
    )]
    Signal(i32),
    #[error(
        "the parser process ended twice while it worked on this document ({0}); this is a bug, please report it"
    )]
    Ended(String),
}

impl Death {
    /// One word, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Death::Timeout(_) => "timeout",
            Death::Memory(_) => "memory",
            Death::Stack => "stack",
            Death::Signal(_) => "signal",
            Death::Ended(_) => "ended",
        }
    }

    /// Reads the cause from what is left of the process. `said` is the end of its standard error: the runtime tells
    /// there, and only there, whether it aborted for want of memory or of stack.
    pub(crate) fn of(status: ExitStatus, said: &str, memory_bytes_max: u64) -> Self {
        if said.contains("memory allocation of") {
            return Death::Memory(memory_bytes_max);
        }
        if said.contains("has overflowed its stack") {
            return Death::Stack;
        }
        match status.signal() {
            Some(signal) => Death::Signal(signal),
            None => Death::Ended(status.to_string()),
        }
    }
}

fn seconds(duration: &Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{} s", duration.as_secs())
    } else {
        format!("{} ms", duration.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_told_from_status_and_last_words() {
        let of = |raw, said| Death::of(ExitStatus::from_raw(raw), said, 1 << 30).to_string();
        assert!(
            of(6, "memory allocation of 4096 bytes failed\n").contains("more than 1024 MiB"),
            "memory"
        );
        assert!(of(6, "\nthread 'main' has overflowed its stack\n").contains("nested too deeply"));
        assert!(of(9, "").contains("signal 9"));
        assert!(of(256, "").contains("exit status: 1"));
        assert!(
            Death::Timeout(Duration::from_secs(60))
                .to_string()
                .contains("than 60 s;")
        );
        assert!(
            Death::Timeout(Duration::from_millis(1))
                .to_string()
                .contains("than 1 ms;")
        );
    }
}
