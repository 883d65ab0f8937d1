//! Re-ranking by late interaction: question and passages compared token by token (`va_models::max_sim`).
//!
//! The vectors of a passage cost as much as embedding it again, so they are kept for the next question ([`TokenCache`]). A
//! question that asks for this order waits for what is missing, which is made best passage first, as long as the time
//! suffices, but one batch in any case: a machine that is slow, or busy, re-ranks fewer, not later. One that does not ask
//! waits for nothing: known passages are compared, the others are made known when nobody waits (`learn`). Leaves the order to
//! the parent.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use va_catalog::ChunkId;
use va_models::{Embedder, ModelError, PackedTokens, Role, max_sim};

use super::super::retrieve::Source;
use super::learn::Lesson;
use super::{Judged, blend};
use crate::platform::Platform;

/// Passages whose vectors are made at once: the time is looked at in between.
const BATCH_MAX: usize = 8;

/// Compares the candidates with the question, and orders them. What `waits` is worth some time to wait for.
///
/// # Errors
/// Why nothing could be compared, for people.
pub(super) async fn judge(
    platform: &Arc<Platform>,
    model: Option<&str>,
    question: &str,
    candidates: &[Source],
    waits: bool,
) -> Result<Judged, String> {
    let model = model.ok_or("the collection is for keyword search only, it has no model")?;
    let owned = (platform.clone(), model.to_owned(), question.to_owned());
    let passages: Vec<(ChunkId, String)> = candidates
        .iter()
        .map(|source| (source.chunk.id, source.chunk.text.clone()))
        .collect();
    let all = passages.len();
    let scores = tokio::task::spawn_blocking(move || {
        let (platform, model, question) = owned;
        let time_max = Duration::from_millis(platform.settings.rag.rerank.time_max_ms);
        let embedder = platform.embedders.get(&model)?;
        let limits = Limits {
            time_max: waits.then_some(time_max),
            bytes_max: cache_bytes_max(&platform),
        };
        let cache = &platform.answers.tokens;
        compare(&*embedder, &question, &passages, cache, limits)
    })
    .await
    .map_err(|error| error.to_string())?
    .map_err(|error| error.to_string())?;
    let judged = scores.iter().flatten().count();
    if judged < all {
        let unknown = candidates.iter().zip(&scores);
        let unknown = unknown.filter(|(_, score)| score.is_none());
        let lessons = unknown.map(|(source, _)| Lesson {
            model: model.to_owned(),
            chunk: source.chunk.id,
            text: source.chunk.text.clone(),
        });
        platform.answers.learner.learn(platform, lessons.collect());
    }
    let note = (judged < all).then(|| {
        let why = if waits {
            "the time (`rag.rerank.time_max_ms`) did not suffice for them"
        } else {
            "they are not known yet, and a question that does not ask for `late` waits for none"
        };
        format!(
            "{} of {all} passages kept their places: {why}, or they hold no words",
            all - judged
        )
    });
    Ok(Judged {
        order: blend(&scores),
        scores,
        judged,
        tokens: 0,
        note,
    })
}

/// What comparing may take.
#[derive(Clone, Copy)]
struct Limits {
    /// For making vectors of passages; `None` makes none.
    time_max: Option<Duration>,
    /// For keeping them.
    bytes_max: usize,
}

/// The score of each passage, `None` where there was no time for it. Blocks.
fn compare(
    embedder: &dyn Embedder,
    question: &str,
    passages: &[(ChunkId, String)],
    cache: &TokenCache,
    limits: Limits,
) -> Result<Vec<Option<f64>>, ModelError> {
    let mut scores = vec![None; passages.len()];
    let model = name(embedder);
    let known: Vec<Option<Arc<PackedTokens>>> = passages
        .iter()
        .map(|(chunk, _)| cache.get(&(model, *chunk)))
        .collect();
    if limits.time_max.is_none() && known.iter().all(Option::is_none) {
        return Ok(scores);
    }
    let asked = embedder.token_vectors(&[question], Role::Query)?;
    let Some(asked) = asked.first() else {
        return Ok(scores);
    };
    let mut missing = Vec::new();
    for (at, tokens) in known.iter().enumerate() {
        match tokens {
            Some(tokens) => scores[at] = max_sim(asked, tokens),
            None => missing.push(at),
        }
    }
    let Some(time_max) = limits.time_max else {
        return Ok(scores);
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    for batch in missing.chunks(threads.clamp(1, BATCH_MAX)) {
        // The next batch may take as long as the slowest one; how long the first one takes, nobody knows before.
        if slowest > Duration::ZERO && started.elapsed() + slowest > time_max {
            break;
        }
        let began = Instant::now();
        let texts: Vec<&str> = batch.iter().map(|at| passages[*at].1.as_str()).collect();
        let made = embedder.token_vectors(&texts, Role::Passage)?;
        slowest = slowest.max(began.elapsed());
        for (at, tokens) in batch.iter().zip(made) {
            let tokens = Arc::new(tokens.pack());
            scores[*at] = max_sim(asked, &tokens);
            cache.put((model, passages[*at].0), tokens, limits.bytes_max);
        }
    }
    Ok(scores)
}

/// Makes the vectors of one passage, unless they are known. Blocks.
pub(super) fn know(
    embedder: &dyn Embedder,
    chunk: ChunkId,
    text: &str,
    cache: &TokenCache,
    bytes_max: usize,
) -> Result<(), ModelError> {
    let key = (name(embedder), chunk);
    if cache.get(&key).is_none() {
        for tokens in embedder.token_vectors(&[text], Role::Passage)? {
            cache.put(key, Arc::new(tokens.pack()), bytes_max);
        }
    }
    Ok(())
}

/// What kept vectors may take.
pub(super) fn cache_bytes_max(platform: &Platform) -> usize {
    let bytes = platform.settings.rag.rerank.cache_bytes_max;
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// A short name of the model as it is.
fn name(embedder: &dyn Embedder) -> u64 {
    let mut hasher = DefaultHasher::new();
    embedder.fingerprint().hash(&mut hasher);
    hasher.finish()
}

/// A model, by its fingerprint, and a chunk. A chunk's id names its version, so its text never changes.
type Key = (u64, ChunkId);

/// The token vectors of passages that were compared lately; what was not used for longest goes first.
#[derive(Default)]
pub struct TokenCache(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    passages: HashMap<Key, (Arc<PackedTokens>, u64)>,
    /// By when they were last used.
    used: BTreeMap<u64, Key>,
    /// Counts uses.
    now: u64,
    bytes: usize,
}

impl TokenCache {
    fn get(&self, key: &Key) -> Option<Arc<PackedTokens>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *kept;
        let (tokens, used) = kept.passages.get_mut(key)?;
        kept.now += 1;
        kept.used.remove(&*used);
        kept.used.insert(kept.now, *key);
        *used = kept.now;
        Some(tokens.clone())
    }

    /// Keeps the vectors of a passage, and lets go of others until all take at most `bytes_max`.
    fn put(&self, key: Key, tokens: Arc<PackedTokens>, bytes_max: usize) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *kept;
        kept.now += 1;
        kept.bytes += tokens.bytes();
        kept.used.insert(kept.now, key);
        if let Some((before, used)) = kept.passages.insert(key, (tokens, kept.now)) {
            kept.bytes -= before.bytes();
            kept.used.remove(&used);
        }
        while kept.bytes > bytes_max {
            let Some((_, oldest)) = kept.used.pop_first() else {
                break;
            };
            if let Some((tokens, _)) = kept.passages.remove(&oldest) {
                kept.bytes -= tokens.bytes();
            }
        }
        metrics::gauge!("va_rag_token_cache_bytes").set(kept.bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use va_models::{Embedders, ModelStore, NoProgress, TokenVectors, default_model_dir};

    use super::*;
    use crate::rag::retrieve::tests::source;

    fn tokens(count: usize) -> Arc<PackedTokens> {
        let vectors = TokenVectors::new(2, [1.0, 0.0].repeat(count));
        Arc::new(vectors.expect("rows").pack())
    }

    fn key(name: &str) -> Key {
        (1, source(name, 1, name).chunk.id)
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let cache = TokenCache::default();
        let room = 2 * tokens(10).bytes();
        cache.put(key("a"), tokens(10), room);
        cache.put(key("b"), tokens(10), room);
        assert!(cache.get(&key("a")).is_some());
        cache.put(key("c"), tokens(10), room);
        assert!(cache.get(&key("b")).is_none());
        assert!(cache.get(&key("a")).is_some() && cache.get(&key("c")).is_some());
        // The same again takes no more room; another model's vectors are others.
        cache.put(key("c"), tokens(10), room);
        assert!(cache.get(&key("a")).is_some());
        assert!(cache.get(&(2, key("a").1)).is_none());
        // What is larger than the room is not kept, and nothing beside it.
        cache.put(key("d"), tokens(100), room);
        let kept = cache.0.lock().expect("a lock");
        assert_eq!(
            (kept.bytes, kept.passages.len(), kept.used.len()),
            (0, 0, 0)
        );
    }

    /// The real model: what answers has a higher score than what is about something else, again from what was kept; without
    /// time there is one batch.
    #[test]
    fn as_many_as_the_time_allows() {
        let models = Embedders::new(ModelStore::open(default_model_dir()).expect("a store"));
        if let Err(error) = models
            .store()
            .pull(va_models::DEFAULT_EMBEDDER, &NoProgress)
        {
            assert!(
                std::env::var_os("CI").is_none(),
                "no model under CI: {error}"
            );
            eprintln!("SKIPPED: {error}");
            return;
        }
        let embedder = models.get(va_models::DEFAULT_EMBEDDER).expect("the model");
        let passages: Vec<(ChunkId, String)> = [
            "Steam the fish for eight minutes over high heat.",
            "A parcel may be returned within thirty days.",
            "收到包裹后三十天内可以退货。",
        ]
        .iter()
        .map(|text| (source(text, 1, text).chunk.id, (*text).to_owned()))
        .collect();
        let question = "Within how many days may a parcel be returned?";
        let compare = |cache: &TokenCache, time_ms: Option<u64>| {
            let limits = Limits {
                time_max: time_ms.map(Duration::from_millis),
                bytes_max: 1 << 20,
            };
            compare(&*embedder, question, &passages, cache, limits).expect("scores")
        };
        let cache = TokenCache::default();
        // Who does not wait gets what is known: nothing yet, then the one that was learned.
        assert_eq!(compare(&cache, None), [None, None, None]);
        let (chunk, text) = &passages[1];
        know(&*embedder, *chunk, text, &cache, 1 << 20).expect("vectors");
        let known = compare(&cache, None);
        assert!(known[1].is_some() && known[0].is_none() && known[2].is_none());
        let scores = compare(&cache, Some(600_000));
        println!("{scores:?}");
        assert!(scores.iter().all(Option::is_some), "{scores:?}");
        assert!(scores[1] > scores[0], "{scores:?}");
        // All are kept, so no time is needed, and the scores are the same.
        assert_eq!(compare(&cache, Some(0)), scores);
        assert_eq!(compare(&cache, None), scores);
        let few = compare(&TokenCache::default(), Some(0));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let batch = threads.clamp(1, BATCH_MAX).min(passages.len());
        assert_eq!(few.iter().flatten().count(), batch, "{few:?}");
        for (alone, together) in few.iter().zip(&scores).take(batch) {
            let (Some(alone), Some(together)) = (alone, together) else {
                panic!("the first batch is the best passages: {few:?}");
            };
            assert!((alone - together).abs() < 1e-3, "{alone} {together}");
        }
    }
}
