//! What a call costs: integers from the settings to the sum.

use va_catalog::settings::llm::PriceSettings;

use crate::types::Usage;

/// The prices of a deployment over time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PriceTable {
    /// By the time from which they hold, latest first.
    prices: Vec<(i64, PriceSettings)>,
}

impl PriceTable {
    pub fn new(prices: &[PriceSettings]) -> Self {
        let mut prices: Vec<_> = prices
            .iter()
            .map(|price| {
                let from = price.from.map_or(i64::MIN, |day| day.begin_ms());
                (from, price.clone())
            })
            .collect();
        prices.sort_by_key(|(from, _)| std::cmp::Reverse(*from));
        Self { prices }
    }

    /// In pico-units (10⁻¹²) of the currency. What has no price is free.
    pub fn cost(&self, usage: &Usage, at_ms: i64) -> i128 {
        let Some(price) = self.at(at_ms) else {
            return 0;
        };
        let cached = usage.cached.min(usage.input);
        let written = usage.cache_write.min(usage.input - cached);
        let plain = usage.input - cached - written;
        price.input.of_tokens(plain)
            + price.cached.unwrap_or(price.input).of_tokens(cached)
            + price.cache_write.unwrap_or(price.input).of_tokens(written)
            + price.output.of_tokens(usage.output)
            + price.seconds.of_tokens(usage.audio_seconds)
            + price.characters.of_tokens(usage.characters)
    }

    /// What a token in and a token out cost together, for comparing.
    pub fn level(&self, at_ms: i64) -> u64 {
        self.at(at_ms).map_or(0, |price| {
            let sum = price.input.of_tokens(1) + price.output.of_tokens(1);
            u64::try_from(sum).unwrap_or(u64::MAX)
        })
    }

    fn at(&self, at_ms: i64) -> Option<&PriceSettings> {
        self.prices
            .iter()
            .find(|(from, _)| *from <= at_ms)
            .map(|(_, price)| price)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_has_the_price_of_its_day_and_kind() {
        let price =
            |from: Option<&str>, input: &str, output: &str, cached: Option<&str>| PriceSettings {
                from: from.map(|day| day.parse().expect("a day")),
                input: input.parse().expect("a price"),
                output: output.parse().expect("a price"),
                cached: cached.map(|price| price.parse().expect("a price")),
                cache_write: None,
                seconds: "100".parse().expect("a price"),
                characters: "15".parse().expect("a price"),
            };
        let table = PriceTable::new(&[
            price(None, "0.15", "0.60", Some("0.075")),
            price(Some("2026-06-01"), "0.2", "0.60", None),
        ]);
        let usage = Usage {
            input: 1_000,
            cached: 400,
            cache_write: 100,
            output: 7,
            ..Usage::default()
        };
        let june = "2026-06-01"
            .parse::<va_catalog::settings::llm::Date>()
            .expect("a day")
            .begin_ms();
        // 600 x 0.15 + 400 x 0.075 + 7 x 0.60 millionths.
        assert_eq!(
            table.cost(&usage, june - 1),
            90_000_000 + 30_000_000 + 4_200_000
        );
        assert_eq!(table.cost(&usage, june), 200_000_000 + 4_200_000);
        assert_eq!(PriceTable::default().cost(&usage, june), 0);
        // More from the cache than there was: a provider's fault must not become a negative sum.
        let odd = Usage {
            input: 10,
            cached: 20,
            cache_write: 20,
            ..Usage::default()
        };
        assert_eq!(table.cost(&odd, 0), 10 * 75_000);
        assert_eq!(table.level(june), 800_000);
        // Seconds and characters are priced by the million too.
        let voice = Usage {
            audio_seconds: 3,
            characters: 10,
            ..Usage::default()
        };
        assert_eq!(table.cost(&voice, june), 300_000_000 + 150_000_000);
    }
}
