//! Units to chunks: fills each up to the limit and moves its end back to the best border nearby.
//!
//! Tokens of units are summed, which is cheap; since a joined text may have a few more tokens than its parts, each
//! finished chunk is counted once as a whole and shrunk while it is too long.

use std::ops::Range;

use va_parse::BlockKind;

use crate::chunk::TokenCounter;
use crate::options::Limits;
use crate::units::{Flow, Stretch, Unit};

/// A chunk in terms of units.
#[derive(Debug)]
pub(crate) struct Packed {
    pub units: Range<usize>,
    /// Tokens of the slice from the first to the last unit.
    pub tokens: usize,
    /// The unit that is the header row of the table in whose middle the chunk starts.
    pub header: Option<usize>,
}

pub(crate) struct Packer<'a> {
    text: &'a str,
    stretches: &'a [Stretch<'a>],
    units: &'a [Unit],
    limits: &'a Limits,
    counter: &'a dyn TokenCounter,
    /// `sums[i]`: cost of the units before `i`. A unit costs at least 1, so that chunks have at most `tokens_max` of them.
    sums: Vec<usize>,
    /// `section_of[i]`: number of the section of unit `i`.
    section_of: &'a [u32],
}

impl<'a> Packer<'a> {
    pub fn new(
        text: &'a str,
        stretches: &'a [Stretch<'a>],
        units: &'a [Unit],
        section_of: &'a [u32],
        limits: &'a Limits,
        counter: &'a dyn TokenCounter,
    ) -> Self {
        let mut sums = Vec::with_capacity(units.len() + 1);
        let mut sum = 0;
        sums.push(0);
        for unit in units {
            sum += (unit.tokens as usize).max(1);
            sums.push(sum);
        }
        Self {
            text,
            stretches,
            units,
            limits,
            counter,
            sums,
            section_of,
        }
    }

    /// Packs the units of one group, appending to `out`.
    pub fn pack(&self, group: Range<usize>, out: &mut Vec<Packed>) {
        let mut next = group.start;
        let mut before = None;
        while next < group.end {
            let packed = self.one(before, next, group.end);
            before = Some(packed.units.start);
            next = packed.units.end;
            out.push(packed);
        }
    }

    /// The chunk whose first new unit is `next`, after one that starts at `before`.
    fn one(&self, before: Option<usize>, next: usize, group_end: usize) -> Packed {
        let mut start = before.map_or(next, |before| self.overlap_start(before, next));
        let header = self.header(start);
        let budget =
            self.limits.tokens_max - header.map_or(0, |header| self.cost(header..header + 1));
        if !self.fits(start..next + 1, budget) {
            start = next;
        }
        let mut end = next + 1;
        while end < group_end && self.fits(start..end + 1, budget) {
            end += 1;
        }
        let mut step = 1;
        loop {
            end = self.best_end(start, next, end, group_end, budget);
            let tokens = self.counter.count(self.slice(start..end));
            if tokens <= budget {
                return Packed {
                    units: start..end,
                    tokens,
                    header,
                };
            }
            if end - start == 1 {
                // A row that leaves no room for its header, or a single character above the limit.
                return Packed {
                    units: start..end,
                    tokens,
                    header: None,
                };
            }
            // Give up as much as the excess asks for, and ever more if that does not help; first of all an overlap that
            // is more than what is new, so that each chunk gets on.
            let least = end == next + 1;
            let kept = self.sums[start] + self.cost(start..end) * budget / tokens;
            let by_tokens = self.sums.partition_point(|sum| *sum <= kept) - 1;
            end = by_tokens.min(end.saturating_sub(step)).max(next + 1);
            if least || self.cost(next..end) < self.cost(start..next) {
                start = next;
            }
            step *= 2;
        }
    }

    /// First unit of the overlap before `next`, or `next`. Whole sentences of the same section, and never all of the
    /// chunk before, so that starts grow.
    fn overlap_start(&self, before: usize, next: usize) -> usize {
        if self.units[next].flow != Flow::Sentence {
            return next;
        }
        let mut start = next;
        while start > before + 1
            && self.units[start - 1].flow == Flow::Sentence
            && self.section_of[start - 1] == self.section_of[next]
            && self.fits(start - 1..next, self.limits.overlap_tokens)
        {
            start -= 1;
        }
        start
    }

    /// Header row for a chunk that starts inside a table, unless it would take too much of each chunk.
    fn header(&self, start: usize) -> Option<usize> {
        let stretch = &self.stretches[self.units[start].stretch as usize];
        let first = stretch.units.start;
        let repeats = stretch.kind == BlockKind::Table
            && start > first
            && self.units[first].flow == Flow::Row
            && self.cost(first..first + 1) <= self.limits.tokens_max / 4;
        repeats.then_some(first)
    }

    /// The best border in `next + 1 ..= end` to end a chunk that starts at `start`: a section's end before a block's
    /// end before a sentence's end, not too far from the end, and so that what is left of the group is not tiny.
    fn best_end(
        &self,
        start: usize,
        next: usize,
        end: usize,
        group_end: usize,
        budget: usize,
    ) -> usize {
        if end == group_end {
            return end;
        }
        let overlap = self.cost(start..next);
        let floor = overlap + (budget.saturating_sub(overlap)) * 3 / 5;
        let left = |at: usize| self.sums[group_end] - self.sums[at];
        let pick = |accepts: &dyn Fn(usize) -> bool| {
            // The last of equals wins, which is the one nearest to the end.
            (next + 1..=end)
                .filter(|at| self.rank(*at) > 0 && accepts(*at))
                .max_by_key(|at| self.rank(*at))
        };
        let full = |at: usize| self.cost(start..at) >= floor;
        pick(&|at| full(at) && left(at) >= self.limits.tokens_min)
            .or_else(|| pick(&|at| full(at)))
            .or_else(|| (next + 1..=end).rev().find(|at| self.rank(*at) > 0))
            .unwrap_or(end)
    }

    /// How good it is to cut before unit `at`; 0 is bad.
    fn rank(&self, at: usize) -> u8 {
        let (before, after) = (&self.units[at - 1], &self.units[at]);
        if before.keep_with_next {
            0
        } else if self.section_of[at - 1] != self.section_of[at] {
            4
        } else if before.stretch != after.stretch {
            3
        } else if before.flow == Flow::Fragment && after.flow == Flow::Fragment {
            1
        } else {
            2
        }
    }

    fn cost(&self, units: Range<usize>) -> usize {
        self.sums[units.end] - self.sums[units.start]
    }

    fn fits(&self, units: Range<usize>, tokens: usize) -> bool {
        let bytes = self.units[units.end - 1].end - self.units[units.start].start;
        self.cost(units) <= tokens && bytes <= self.limits.bytes_max
    }

    fn slice(&self, units: Range<usize>) -> &'a str {
        &self.text[self.units[units.start].start..self.units[units.end - 1].end]
    }
}
