//! Leaving a deployment alone that fails too often.
//!
//! ```text
//! closed ── more than so many of the last calls failed ──► open ── cooldown over ──► half open: one call tries it
//!    ▲                                                       ▲                          │ fails        │ succeeds
//!    │                                                       └──────────────────────────┘              │
//!    └─────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```

/// When a deployment is left alone, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerRules {
    pub window_ms: i64,
    pub calls_min: u32,
    pub failures_percent_max: u32,
    pub cooldown_ms: i64,
}

const SLOTS: usize = 10;

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// Which part of the time it counts.
    number: i64,
    calls: u32,
    failures: u32,
}

/// How a deployment has been doing.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    slots: [Slot; SLOTS],
    /// Not asked before this time, after too many failures.
    open_until: Option<i64>,
    /// When the call began that tries whether it works again.
    probe: Option<i64>,
    /// Not asked before this time, because the provider said so.
    blocked_until: i64,
}

impl Breaker {
    /// Whether a call may be made now.
    pub fn admits(&self, rules: &BreakerRules, now: i64) -> bool {
        if now < self.blocked_until {
            return false;
        }
        match (self.open_until, self.probe) {
            (None, _) => true,
            (Some(until), None) => now >= until,
            // A call that never told how it ended must not keep the deployment out for ever.
            (Some(_), Some(since)) => now >= since + rules.cooldown_ms,
        }
    }

    /// When it is worth to look again; `now` when a call may be made.
    pub fn admits_at(&self, rules: &BreakerRules, now: i64) -> i64 {
        let open = match (self.open_until, self.probe) {
            (None, _) => now,
            (Some(until), None) => until,
            (Some(_), Some(since)) => since + rules.cooldown_ms,
        };
        open.max(self.blocked_until).max(now)
    }

    /// Whether it is left alone, or has only been tried since.
    pub fn is_open(&self) -> bool {
        self.open_until.is_some()
    }

    /// A call begins.
    pub fn begin(&mut self, now: i64) {
        if self.open_until.is_some() {
            self.probe = Some(now);
        }
    }

    /// A call worked. True when that ended a cooldown.
    pub fn succeeded(&mut self, rules: &BreakerRules, now: i64) -> bool {
        if self.open_until.take().is_some() {
            *self = Self {
                blocked_until: self.blocked_until,
                ..Self::default()
            };
            return true;
        }
        self.slot(rules, now).calls += 1;
        false
    }

    /// A call failed for a reason that lies with the deployment. True when that began a cooldown.
    pub fn failed(&mut self, rules: &BreakerRules, now: i64) -> bool {
        if self.open_until.is_some() {
            // A late failure of a call from before is no news.
            if self.probe.take().is_some() {
                self.open_until = Some(now + rules.cooldown_ms);
            }
            return false;
        }
        let slot = self.slot(rules, now);
        slot.calls += 1;
        slot.failures += 1;
        let (calls, failures) = self.counted(rules, now);
        if calls >= rules.calls_min.max(1)
            && u64::from(failures) * 100 > u64::from(rules.failures_percent_max) * u64::from(calls)
        {
            self.open_until = Some(now + rules.cooldown_ms);
            self.probe = None;
            return true;
        }
        false
    }

    /// A call ended in a way that says nothing about the deployment.
    pub fn abandoned(&mut self) {
        self.probe = None;
    }

    /// The provider wants to be left alone until then.
    pub fn block(&mut self, until: i64) {
        self.blocked_until = self.blocked_until.max(until);
    }

    fn counted(&self, rules: &BreakerRules, now: i64) -> (u32, u32) {
        let oldest = Self::number(rules, now) - SLOTS as i64 + 1;
        let recent = self.slots.iter().filter(|slot| slot.number >= oldest);
        recent.fold((0, 0), |(calls, failures), slot| {
            (calls + slot.calls, failures + slot.failures)
        })
    }

    fn number(rules: &BreakerRules, now: i64) -> i64 {
        // Not 0, which is what an unused slot has.
        now / (rules.window_ms / SLOTS as i64).max(1) + SLOTS as i64
    }

    fn slot(&mut self, rules: &BreakerRules, now: i64) -> &mut Slot {
        let number = Self::number(rules, now);
        let slot = &mut self.slots[number.rem_euclid(SLOTS as i64) as usize];
        if slot.number != number {
            *slot = Slot {
                number,
                ..Slot::default()
            };
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: BreakerRules = BreakerRules {
        window_ms: 10_000,
        calls_min: 4,
        failures_percent_max: 50,
        cooldown_ms: 5_000,
    };

    #[test]
    fn it_opens_above_half_and_closes_after_a_call_that_works() {
        let mut breaker = Breaker::default();
        // Too few to tell, then exactly half, then more.
        assert!(!breaker.failed(&RULES, 0));
        assert!(!breaker.failed(&RULES, 10));
        assert!(!breaker.succeeded(&RULES, 20));
        assert!(!breaker.succeeded(&RULES, 30));
        assert!(breaker.admits(&RULES, 40));
        assert!(breaker.failed(&RULES, 1_000));
        assert!(!breaker.admits(&RULES, 5_999));
        assert_eq!(breaker.admits_at(&RULES, 2_000), 6_000);

        // One call tries it, others wait for how that ends.
        assert!(breaker.admits(&RULES, 6_000));
        breaker.begin(6_000);
        assert!(!breaker.admits(&RULES, 6_001));
        assert!(!breaker.failed(&RULES, 6_500));
        assert!(!breaker.admits(&RULES, 11_499));
        assert!(breaker.admits(&RULES, 11_500));
        breaker.begin(11_500);
        assert!(breaker.succeeded(&RULES, 11_600));
        assert!(breaker.admits(&RULES, 11_600));
        // What was before does not count any more.
        assert!(!breaker.failed(&RULES, 11_700));
    }

    #[test]
    fn old_failures_are_forgotten() {
        let mut breaker = Breaker::default();
        for at in [0, 1, 2] {
            assert!(!breaker.failed(&RULES, at));
        }
        assert!(!breaker.failed(&RULES, 10_500));
        assert!(breaker.admits(&RULES, 10_500));
    }

    #[test]
    fn a_call_that_tells_nothing_gives_way_to_the_next() {
        let mut breaker = Breaker::default();
        for at in 0..4 {
            breaker.failed(&RULES, at);
        }
        breaker.begin(6_000);
        breaker.abandoned();
        assert!(breaker.admits(&RULES, 6_001));
        breaker.begin(6_001);
        // Lost altogether: after another cooldown somebody else may try.
        assert!(!breaker.admits(&RULES, 11_000));
        assert!(breaker.admits(&RULES, 11_001));
    }

    #[test]
    fn a_provider_may_ask_for_a_pause() {
        let mut breaker = Breaker::default();
        breaker.block(700);
        breaker.block(500);
        assert!(!breaker.admits(&RULES, 699));
        assert!(breaker.admits(&RULES, 700));
    }
}
