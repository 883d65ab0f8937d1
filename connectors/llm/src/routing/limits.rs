//! How much a deployment takes: requests and tokens a minute, calls at a time, and the queue of those who wait.

use std::collections::VecDeque;

/// The bounds; `None` is no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    pub concurrent: Option<u32>,
}

/// Whether a call may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    Now,
    /// At this time at the earliest.
    At(i64),
    /// When a call ends.
    WhenFreed,
}

const SECONDS: usize = 60;

/// A sum over the last minute, by seconds.
#[derive(Debug, Clone)]
struct Minute {
    seconds: [(i64, u64); SECONDS],
}

impl Default for Minute {
    fn default() -> Self {
        Self {
            seconds: [(i64::MIN, 0); SECONDS],
        }
    }
}

impl Minute {
    fn slot(&mut self, now: i64) -> &mut u64 {
        let second = now.div_euclid(1_000);
        let slot = &mut self.seconds[second.rem_euclid(SECONDS as i64) as usize];
        if slot.0 != second {
            *slot = (second, 0);
        }
        &mut slot.1
    }

    fn recent(&self, now: i64) -> impl Iterator<Item = (i64, u64)> {
        let oldest = now.div_euclid(1_000) - SECONDS as i64;
        self.seconds
            .iter()
            .copied()
            .filter(move |(second, _)| *second > oldest)
    }

    fn sum(&self, now: i64) -> u64 {
        self.recent(now).map(|(_, value)| value).sum()
    }

    /// When the sum is at most `most`.
    fn at_most(&self, most: u64, now: i64) -> i64 {
        let mut recent: Vec<_> = self.recent(now).filter(|(_, value)| *value > 0).collect();
        recent.sort_unstable();
        let mut sum: u64 = recent.iter().map(|(_, value)| value).sum();
        for (second, value) in recent {
            if sum <= most {
                break;
            }
            sum -= value;
            if sum <= most {
                return (second + SECONDS as i64) * 1_000;
            }
        }
        now
    }
}

/// What a deployment does now.
#[derive(Debug, Clone, Default)]
pub struct Load {
    running: u32,
    requests: Minute,
    tokens: Minute,
    waiting: VecDeque<u64>,
    tickets: u64,
}

impl Load {
    /// Whether a call with so many tokens may begin, as far as the limits go.
    pub fn admission(&self, limits: &Limits, now: i64, tokens: u64) -> Admission {
        if limits.concurrent.is_some_and(|most| self.running >= most) {
            return Admission::WhenFreed;
        }
        let mut at = now;
        if let Some(most) = limits.requests_per_minute
            && self.requests.sum(now) >= most
        {
            at = at.max(self.requests.at_most(most.saturating_sub(1), now));
        }
        // One that is larger than the limit alone begins when nothing else has been sent for a minute.
        if let Some(most) = limits.tokens_per_minute
            && self.tokens.sum(now) > most.saturating_sub(tokens)
        {
            at = at.max(self.tokens.at_most(most.saturating_sub(tokens), now));
        }
        if at > now {
            Admission::At(at)
        } else {
            Admission::Now
        }
    }

    /// Takes the last place in the queue. `None` when it is full.
    pub fn queue(&mut self, most: u32) -> Option<u64> {
        if self.waiting.len() >= most as usize {
            return None;
        }
        self.tickets += 1;
        self.waiting.push_back(self.tickets);
        Some(self.tickets)
    }

    /// Whether it is this one's turn; without a ticket, whether nobody waits.
    pub fn is_next(&self, ticket: Option<u64>) -> bool {
        self.waiting.front().copied() == ticket
    }

    /// Leaves the queue, served or not.
    pub fn leave(&mut self, ticket: u64) {
        self.waiting.retain(|waiting| *waiting != ticket);
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A call with so many tokens, as estimated, begins.
    pub fn begin(&mut self, now: i64, tokens: u64) {
        self.running += 1;
        *self.requests.slot(now) += 1;
        *self.tokens.slot(now) += tokens;
    }

    /// It ends, and took so many.
    pub fn end(&mut self, begun: i64, estimated: u64, taken: u64, now: i64) {
        self.running = self.running.saturating_sub(1);
        let second = begun.div_euclid(1_000);
        if now.div_euclid(1_000) - second < SECONDS as i64 {
            let slot = self.tokens.slot(begun);
            *slot = slot.saturating_sub(estimated) + taken;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_at_a_time() {
        let limits = Limits {
            concurrent: Some(2),
            ..Limits::default()
        };
        let mut load = Load::default();
        for _ in 0..2 {
            assert_eq!(load.admission(&limits, 0, 10), Admission::Now);
            load.begin(0, 10);
        }
        assert_eq!(load.admission(&limits, 0, 10), Admission::WhenFreed);
        load.end(0, 10, 10, 5);
        assert_eq!(load.admission(&limits, 5, 10), Admission::Now);
    }

    #[test]
    fn requests_and_tokens_a_minute() {
        let limits = Limits {
            requests_per_minute: Some(3),
            tokens_per_minute: Some(100),
            concurrent: None,
        };
        let mut load = Load::default();
        load.begin(1_000, 40);
        load.begin(2_000, 40);
        // 80 of 100 are taken; 30 more fit when those of the first second are a minute old.
        assert_eq!(load.admission(&limits, 3_000, 30), Admission::At(61_000));
        assert_eq!(load.admission(&limits, 3_000, 20), Admission::Now);
        // The first one took less than was thought.
        load.end(1_000, 40, 5, 3_000);
        assert_eq!(load.admission(&limits, 3_000, 30), Admission::Now);
        load.begin(3_000, 30);
        assert_eq!(load.admission(&limits, 4_000, 1), Admission::At(61_000));
        assert_eq!(load.admission(&limits, 61_000, 1), Admission::Now);
        // Larger than the limit: alone.
        assert_eq!(load.admission(&limits, 61_500, 500), Admission::At(63_000));
        assert_eq!(load.admission(&limits, 63_000, 500), Admission::Now);
    }

    #[test]
    fn the_queue_is_bounded_and_in_order() {
        let mut load = Load::default();
        assert!(load.is_next(None));
        let first = load.queue(2);
        let second = load.queue(2);
        assert_eq!(load.queue(2), None);
        assert!(load.is_next(first) && !load.is_next(second) && !load.is_next(None));
        load.leave(first.expect("a place"));
        assert!(load.is_next(second));
        load.leave(second.expect("a place"));
        assert!(load.is_next(None));
    }
}
