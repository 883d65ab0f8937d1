//! The order in which the deployments of a model are asked.

use va_catalog::settings::llm::Strategy;

/// A deployment that may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub index: usize,
    pub weight: u32,
    /// How soon it has been giving its first token, if it has been asked.
    pub latency_ms: Option<u32>,
    /// What a token in and a token out cost.
    pub cost: u64,
    /// Whether it has room now.
    pub has_room: bool,
}

/// The indexes of the candidates, first choice first. Those without room come last: a call there waits.
pub fn order(strategy: Strategy, candidates: &[Candidate], chance: u64) -> Vec<usize> {
    let mut ordered = by_weight(candidates, chance);
    // Sorting keeps the order of equals, which is by weight and chance.
    match strategy {
        Strategy::Weight => {}
        // One that nobody has asked yet is tried.
        Strategy::Latency => ordered.sort_by_key(|candidate| candidate.latency_ms.unwrap_or(0)),
        Strategy::Cost => ordered.sort_by_key(|candidate| candidate.cost),
    }
    ordered.sort_by_key(|candidate| !candidate.has_room);
    ordered
        .into_iter()
        .map(|candidate| candidate.index)
        .collect()
}

/// Drawn one after the other, each by its share of what is left; those of weight 0 come last.
fn by_weight(candidates: &[Candidate], mut chance: u64) -> Vec<Candidate> {
    let mut left = candidates.to_vec();
    let mut drawn = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let sum: u64 = left
            .iter()
            .map(|candidate| u64::from(candidate.weight))
            .sum();
        let mut at = if sum == 0 { 0 } else { chance % sum };
        chance = mixed(chance);
        let place = left
            .iter()
            .position(|candidate| {
                let weight = u64::from(candidate.weight);
                let hit = sum == 0 || at < weight;
                at = at.saturating_sub(weight);
                hit
            })
            .unwrap_or(0);
        drawn.push(left.remove(place));
    }
    drawn
}

/// The next number of a chain (SplitMix64).
pub fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(index: usize, weight: u32) -> Candidate {
        Candidate {
            index,
            weight,
            latency_ms: None,
            cost: 0,
            has_room: true,
        }
    }

    #[test]
    fn weights_are_shares_of_the_first_choice() {
        let candidates = [candidate(0, 3), candidate(1, 1), candidate(2, 0)];
        let mut first = [0; 3];
        let mut chance = 7;
        for _ in 0..10_000 {
            chance = mixed(chance);
            let order = order(Strategy::Weight, &candidates, chance);
            assert_eq!(order.len(), 3);
            assert_eq!(order[2], 2, "weight 0 is the last");
            first[order[0]] += 1;
        }
        assert!((7_300..7_700).contains(&first[0]), "{first:?}");
        assert_eq!(first[2], 0);
        assert_eq!(
            order(Strategy::Weight, &candidates, 5),
            order(Strategy::Weight, &candidates, 5)
        );
    }

    #[test]
    fn latency_cost_and_room() {
        let mut candidates = [candidate(0, 1), candidate(1, 1), candidate(2, 1)];
        for (candidate, (latency, cost)) in
            candidates
                .iter_mut()
                .zip([(Some(300), 5), (Some(100), 9), (None, 7)])
        {
            candidate.latency_ms = latency;
            candidate.cost = cost;
        }
        for chance in 0..50 {
            assert_eq!(order(Strategy::Latency, &candidates, chance), [2, 1, 0]);
            assert_eq!(order(Strategy::Cost, &candidates, chance), [0, 2, 1]);
        }
        candidates[0].has_room = false;
        assert_eq!(order(Strategy::Cost, &candidates, 3), [2, 1, 0]);
        assert_eq!(order(Strategy::Weight, &[], 3), Vec::<usize>::new());
    }
}
