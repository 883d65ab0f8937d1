//! Chooses the next token from the scores of all.
//!
//! Pure, but for the generator's own random numbers, which a seed decides: the same request with the same seed gets the same
//! reply on the same machine. With temperature 0 the best token is taken, and no number is drawn.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use crate::error::ModelError;

/// How a reply is made.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens of the reply; without it, as many as the model holds.
    pub max_tokens: Option<usize>,
    /// 0 takes the best token each time; higher is more varied.
    pub temperature: f32,
    /// Only the most likely tokens that have this much of the probability together are drawn from.
    pub top_p: f32,
    /// Only so many of the most likely tokens are drawn from; 0 is all.
    pub top_k: usize,
    /// Taken off the score of a token for each time it is in the reply.
    pub frequency_penalty: f32,
    /// Taken off the score of a token that is in the reply.
    pub presence_penalty: f32,
    /// The same seed gives the same reply; without it, each is another.
    pub seed: Option<u64>,
    /// Texts that end the reply; they are not part of it.
    pub stop: Vec<String>,
}

impl Default for GenerateOptions {
    /// What llama.cpp does unasked.
    fn default() -> Self {
        Self {
            max_tokens: None,
            temperature: 0.8,
            top_p: 0.95,
            top_k: 40,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: None,
            stop: Vec::new(),
        }
    }
}

/// Chooses the tokens of one reply.
pub(super) struct Sampler<'a> {
    options: &'a GenerateOptions,
    state: u64,
    seen: HashMap<u32, u32>,
}

impl<'a> Sampler<'a> {
    pub(super) fn new(options: &'a GenerateOptions) -> Self {
        let seed = options.seed.unwrap_or_else(|| {
            // The standard library's hashers are keyed by the system's random numbers.
            RandomState::new().build_hasher().finish()
        });
        Self {
            options,
            state: seed,
            seen: HashMap::new(),
        }
    }

    /// The next token of the reply.
    pub(super) fn next(&mut self, mut scores: Vec<f32>) -> Result<u32, ModelError> {
        for (token, times) in &self.seen {
            if let Some(score) = scores.get_mut(*token as usize) {
                *score -=
                    self.options.presence_penalty + self.options.frequency_penalty * *times as f32;
            }
        }
        let best = best(&scores)?;
        let token = if self.options.temperature > 0.0 {
            self.draw(&scores, best.1)
        } else {
            best.0
        };
        *self.seen.entry(token).or_default() += 1;
        Ok(token)
    }

    fn draw(&mut self, scores: &[f32], most: f32) -> u32 {
        let mut likely: Vec<(u32, f32)> = (0u32..).zip(scores.iter().copied()).collect();
        // By score, and by number where scores are equal, so that the order is always the same.
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if self.options.top_k > 0 && self.options.top_k < likely.len() {
            likely.select_nth_unstable_by(self.options.top_k - 1, order);
            likely.truncate(self.options.top_k);
        }
        likely.sort_unstable_by(order);
        let mut sum = 0.0;
        for (_, score) in &mut likely {
            *score = ((*score - most) / self.options.temperature).exp();
            sum += *score;
        }
        let enough = sum * self.options.top_p.clamp(0.0, 1.0);
        let mut together = 0.0;
        let mut count = 0;
        for (_, weight) in &likely {
            together += weight;
            count += 1;
            if together >= enough {
                break;
            }
        }
        let mut left = self.chance() * together;
        for (token, weight) in &likely[..count] {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        // Rounding only: what is left over belongs to the last one.
        likely[count - 1].0
    }

    /// From 0 up to 1, by SplitMix64.
    fn chance(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // 24 bits are what a float holds.
        (mixed >> 40) as f32 / 16_777_216.0
    }
}

/// The token with the highest score, the first of several, and that score.
fn best(scores: &[f32]) -> Result<(u32, f32), ModelError> {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, score) in (0u32..).zip(scores) {
        if *score > best.1 {
            best = (token, *score);
        }
    }
    if best.1.is_finite() {
        Ok(best)
    } else {
        Err(ModelError::Run(
            "the scores of the next token are no numbers; the weights may be damaged: `va model verify`"
                .to_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(options: &GenerateOptions, times: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(options);
        (0..times)
            .map(|_| sampler.next(vec![0.0, 2.0, 1.0, -9.0, 2.0]).unwrap())
            .collect()
    }

    #[test]
    fn what_is_drawn_is_what_the_options_allow() {
        let options = |temperature, top_k, top_p| GenerateOptions {
            temperature,
            top_k,
            top_p,
            seed: Some(5),
            ..GenerateOptions::default()
        };
        assert_eq!(draw(&options(0.0, 0, 1.0), 3), [1, 1, 1]);
        assert_eq!(draw(&options(1.0, 1, 1.0), 3), [1, 1, 1]);
        let two = draw(&options(1.0, 0, 0.5), 200);
        assert!(two.iter().all(|token| [1, 4].contains(token)), "{two:?}");
        assert!(two.contains(&1) && two.contains(&4));
        let all = draw(&options(1.0, 0, 1.0), 400);
        for token in [0, 1, 2, 4] {
            assert!(all.contains(&token), "{token}");
        }
        assert_eq!(all, draw(&options(1.0, 0, 1.0), 400), "the same seed");
        let frequency = GenerateOptions {
            frequency_penalty: 1.5,
            ..options(0.0, 0, 1.0)
        };
        assert_eq!(draw(&frequency, 4), [1, 4, 2, 1]);
    }

    #[test]
    fn scores_that_are_no_numbers_are_an_error() {
        let options = GenerateOptions::default();
        assert!(Sampler::new(&options).next(vec![f32::NAN; 3]).is_err());
    }
}
