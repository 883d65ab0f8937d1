//! How well each sentence of the sources answers the question, and whether there is an answer at all.
//!
//! Who quotes sentences needs each of them compared. Who lets a model write needs to know whether there is something to write
//! about, and takes the passages as they are: the vector search has compared them already, so nothing is computed.
//!
//! A sentence is compared together with the heading above it: what stands under `Freezing rows` need not say `rows` again.
//! Two measures, both from 0 to 1, are added up: the similarity of the embedder's vectors, and the share of the question's
//! words that are there, rarer words counting more. Headings and questions are no answers, so they are never candidates.
//!
//! The weights and thresholds were chosen on the `tune` half of the labelled questions; what they come to on the `test` half
//! is in `docs/answers.md`. Blocks its thread: call it through `spawn_blocking`.

use std::cmp::Ordering;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use va_catalog::ChunkId;
use va_chunk::sentences;
use va_models::{Embedder, ModelError, Role};

use super::retrieve::Source;
use super::text::{Lang, bare, compared, is_han, trimmed};

/// Cosine similarities of this embedder family lie in a narrow band; it is spread to 0 to 1.
const SIMILARITY_LOW: f64 = 0.78;
const SIMILARITY_HIGH: f64 = 0.94;

/// What similarity and shared words count.
const SIMILARITY: f64 = 0.7;
const COVERAGE: f64 = 0.3;

/// Below it no sentence answers the question: with vectors, and by words alone.
const THRESHOLD: f64 = 0.52;
const THRESHOLD_WORDS: f64 = 0.45;

/// Below it no passage as a whole answers. Chosen so that on the `tune` half as many of the answerable questions are answered
/// as by sentences, and about as many of the others are not.
const THRESHOLD_PASSAGE: f64 = 0.49;

/// What the best source has ahead of one that is far down the list.
const RANK: f64 = 0.2;

/// What the first sentence under a heading has ahead of later ones: who explains something begins with what it is.
const FIRST: f64 = 0.08;

/// What a sentence in another language than the question has to make good.
const OTHER_LANGUAGE: f64 = 0.15;

/// Sentences whose vectors are made for one question.
const EMBEDDED_MAX: usize = 32;

/// Longest candidate, in bytes; what is longer (a table, a listing) is taken line by line.
const SENTENCE_BYTES_MAX: usize = 900;

/// Vectors of sentences that are kept: 1.5 KiB each with 384 dimensions.
const VECTORS_MAX: usize = 8_192;

/// A sentence that may answer.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Index into the sources.
    pub source: usize,
    /// Bytes of the chunk's text.
    pub range: Range<usize>,
    /// Number of the heading it stands under, within its source.
    pub section: usize,
    /// How many sentences stand before it in its section.
    pub position: usize,
    pub heading: Option<String>,
    /// Whether it leads to what stands after it, as `Run the command` does, and all but the last of numbered steps.
    pub opens: bool,
    pub terms: BTreeSet<String>,
    /// Share of the question's words, by weight.
    pub coverage: f64,
    /// Cosine of the vectors; `None` where none was made.
    pub similarity: Option<f64>,
    /// How much speaks for it being an answer.
    pub evidence: f64,
    /// The evidence with what is known of its source: for the order.
    pub score: f64,
}

/// How much is to be found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Which sentences answer best: for who quotes them.
    Order,
    /// Whether there is an answer: for who lets a model write. By passages; by sentences where no passage was found by its
    /// vector.
    Verdict,
    /// The verdict by passages, and the sentences beside it: for who wants to see all scores.
    Explained,
}

/// A passage as a whole.
#[derive(Debug, Clone, Copy)]
pub struct Evidence {
    /// Cosine of its vector and the question's.
    similarity: f64,
    /// Of the sentence with most of the question's words.
    coverage: f64,
    evidence: f64,
}

/// What was found out.
#[derive(Debug, Clone, Default)]
pub struct Grade {
    /// Whether all was compared that may be, so that the order is the best there is.
    pub whole: bool,
    /// Best first.
    pub candidates: Vec<Candidate>,
    /// The best passage, where the verdict is by passages.
    pub passage: Option<Evidence>,
    pub threshold: f64,
    /// Why vectors were not compared although the collection has a model.
    pub degraded: Option<String>,
}

/// The same for the trace.
#[derive(Debug, Clone, Serialize)]
pub struct GradeTrace {
    pub answerable: bool,
    pub evidence: f64,
    pub threshold: f64,
    pub similarity: Option<f64>,
    pub coverage: f64,
    pub sentences: usize,
}

impl Grade {
    /// How much speaks for the best passage, or else for the best candidate.
    pub fn evidence(&self) -> f64 {
        let best = self.candidates.first().map_or(0.0, |best| best.evidence);
        self.passage.map_or(best, |passage| passage.evidence)
    }

    /// Whether the sources hold an answer.
    pub fn answerable(&self) -> bool {
        !self.candidates.is_empty() && self.evidence() >= self.threshold
    }

    pub fn trace(&self) -> GradeTrace {
        let (similarity, coverage) = match (&self.passage, self.candidates.first()) {
            (Some(passage), _) => (Some(passage.similarity), passage.coverage),
            (None, Some(best)) => (best.similarity, best.coverage),
            (None, None) => (None, 0.0),
        };
        GradeTrace {
            answerable: self.answerable(),
            evidence: self.evidence(),
            threshold: self.threshold,
            similarity,
            coverage,
            sentences: self.candidates.len(),
        }
    }
}

/// Scores the sentences of `sources`. Without an embedder by words alone.
pub fn grade(
    question: &str,
    lang: Lang,
    sources: &[Source],
    embedder: Option<&dyn Embedder>,
    vectors: &SentenceVectors,
    depth: Depth,
) -> Grade {
    let mut candidates = candidates(question, sources);
    cover(&compared(question), &mut candidates);
    let by_words = |candidate: &Candidate| candidate.coverage + rank_share(candidate);
    candidates.sort_by(|a, b| by_words(b).total_cmp(&by_words(a)));
    let passage = match (depth, embedder) {
        (Depth::Order, _) | (_, None) => None,
        (Depth::Verdict | Depth::Explained, Some(_)) => passage(sources, &candidates),
    };
    let mut grade = Grade {
        whole: depth != Depth::Verdict || passage.is_none(),
        threshold: passage.map_or(THRESHOLD, |_| THRESHOLD_PASSAGE),
        passage,
        candidates,
        degraded: None,
    };
    if !grade.whole {
        score(sources, lang, true, &mut grade.candidates);
        grade.candidates.sort_by(by_score);
        return grade;
    }
    let compared = embedder
        .map(|embedder| compare(question, sources, embedder, vectors, &mut grade.candidates));
    let with_vectors = matches!(compared, Some(Ok(())));
    if !with_vectors {
        // Sentences with and without vectors cannot be put in one order.
        grade
            .candidates
            .iter_mut()
            .for_each(|c| c.similarity = None);
        if grade.passage.is_none() {
            grade.threshold = THRESHOLD_WORDS;
        }
        grade.degraded = compared.and_then(|failed| Some(failed.err()?.to_string()));
    }
    score(sources, lang, with_vectors, &mut grade.candidates);
    grade.candidates.sort_by(by_score);
    grade
}

/// Best first; ties in the order of the sources.
fn by_score(a: &Candidate, b: &Candidate) -> Ordering {
    let place = |c: &Candidate| (c.source, c.range.start);
    b.score
        .total_cmp(&a.score)
        .then_with(|| place(a).cmp(&place(b)))
}

/// The passage that speaks most for itself, of those that a vector search has compared with the question.
fn passage(sources: &[Source], candidates: &[Candidate]) -> Option<Evidence> {
    let mut coverage = vec![None; sources.len()];
    for candidate in candidates {
        let best = coverage[candidate.source].get_or_insert(0.0_f64);
        *best = best.max(candidate.coverage);
    }
    let known = sources
        .iter()
        .zip(coverage)
        .filter_map(|(source, coverage)| {
            // Without a sentence there is nothing to quote.
            let (coverage, similarity) = (coverage?, source.similarity()?);
            Some(Evidence {
                similarity,
                coverage,
                evidence: evidence(similarity, coverage),
            })
        });
    known.max_by(|a, b| a.evidence.total_cmp(&b.evidence))
}

/// How much speaks for a text that is this similar to the question and has this share of its words.
fn evidence(similarity: f64, coverage: f64) -> f64 {
    let spread = (similarity - SIMILARITY_LOW) / (SIMILARITY_HIGH - SIMILARITY_LOW);
    SIMILARITY * spread.clamp(0.0, 1.0) + COVERAGE * coverage
}

/// Sets evidence and score of each candidate.
fn score(sources: &[Source], lang: Lang, with_vectors: bool, candidates: &mut [Candidate]) {
    for candidate in candidates {
        candidate.evidence = match candidate.similarity {
            Some(similarity) => evidence(similarity, candidate.coverage),
            None if with_vectors => COVERAGE * candidate.coverage,
            None => candidate.coverage,
        };
        let text = &sources[candidate.source].chunk.text[candidate.range.clone()];
        let foreign = if Lang::of(text) == lang {
            0.0
        } else {
            OTHER_LANGUAGE
        };
        let first = FIRST / (1.0 + candidate.position as f64);
        candidate.score = candidate.evidence + rank_share(candidate) + first - foreign;
    }
}

fn rank_share(candidate: &Candidate) -> f64 {
    RANK / (1.0 + candidate.source as f64)
}

/// The sentences that could answer, each once, in the order of the sources.
fn candidates(question: &str, sources: &[Source]) -> Vec<Candidate> {
    let asked = bare(question);
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let text = &source.chunk.text;
        let titles: BTreeSet<String> = source
            .chunk
            .title_path
            .iter()
            .chain(&source.document.title)
            .map(|title| bare(title))
            .collect();
        let mut heading = source.chunk.title_path.last().cloned();
        let mut section = 0;
        let mut add = |range: Range<usize>, section: usize, heading: &Option<String>| {
            let sentence = &text[range.clone()];
            let plain = bare(sentence);
            let letters = plain.chars().count();
            let repeats = plain.contains(&asked) && letters < asked.chars().count() + 8;
            if letters < 4 || repeats || asks(sentence) || !seen.insert(plain) {
                return;
            }
            let with_heading = match heading {
                Some(heading) => format!("{heading}\n{sentence}"),
                None => sentence.to_owned(),
            };
            found.push(Candidate {
                source: index,
                range,
                section,
                position: 0,
                heading: heading.clone(),
                opens: opens(sentence),
                terms: compared(&with_heading),
                coverage: 0.0,
                similarity: None,
                evidence: 0.0,
                score: 0.0,
            });
        };
        let paragraphs: Vec<Range<usize>> = paragraphs(text);
        for (at, paragraph) in paragraphs.iter().enumerate() {
            let written = &text[paragraph.clone()];
            // A title of the path is none where it is all there is, as in a note of one line.
            let alone = paragraphs.len() == 1;
            let last = at + 1 == paragraphs.len();
            if !alone && (titles.contains(&bare(written)) || !last && is_heading(written)) {
                heading = Some(written.to_owned());
                section += 1;
                continue;
            }
            for sentence in sentences(written) {
                let sentence = paragraph.start + sentence.start..paragraph.start + sentence.end;
                for piece in pieces(text, sentence) {
                    add(piece, section, &heading);
                }
            }
        }
    }
    place(sources, &mut found);
    found
}

/// Numbers the sentences of each section, and ties the steps of a procedure together.
fn place(sources: &[Source], candidates: &mut [Candidate]) {
    let mut position = 0;
    // The last step and its number.
    let mut before: Option<(usize, u32)> = None;
    for at in 0..candidates.len() {
        let candidate = &candidates[at];
        let section = (candidate.source, candidate.section);
        if at == 0 || section != (candidates[at - 1].source, candidates[at - 1].section) {
            (position, before) = (0, None);
        }
        let text = &sources[candidate.source].chunk.text[candidate.range.clone()];
        candidates[at].position = position;
        position += 1;
        let Some(number) = step(text) else { continue };
        if let Some((from, last)) = before
            && number == last.saturating_add(1)
        {
            candidates[from..at].iter_mut().for_each(|c| c.opens = true);
        }
        before = Some((at, number));
    }
}

/// The number of a step: `3. Click OK.`
fn step(text: &str) -> Option<u32> {
    let (number, rest) = text.split_once(['.', '、', ')', '）'])?;
    let spaced = rest.starts_with(' ') || !rest.is_ascii();
    if spaced { number.parse().ok() } else { None }
}

/// What empty lines set apart, without white space around it.
fn paragraphs(text: &str) -> Vec<Range<usize>> {
    let mut start = 0;
    let mut found = Vec::new();
    for paragraph in text.split_inclusive("\n\n") {
        let range = trimmed(text, start..start + paragraph.len());
        start += paragraph.len();
        if !range.is_empty() {
            found.push(range);
        }
    }
    found
}

/// Whether a text ends as a question.
fn asks(text: &str) -> bool {
    text.trim_end_matches(['"', '”', '’', ')', '）', '!', '！'])
        .ends_with(['?', '？'])
}

/// A short line that is no sentence, or that asks, and no item of a list, row of a table or line of code.
///
/// Chunks are plain text, so this goes by looks. What is taken for a heading cannot be quoted: in doubt it is none.
fn is_heading(paragraph: &str) -> bool {
    const QUESTION_CHARS_MAX: usize = 160;
    const WORDS_MAX: usize = 12;
    const CHINESE_MAX: usize = 40;
    /// A clause before a comma makes a sentence of all but the shortest Chinese lines.
    const CHINESE_CLAUSE_MAX: usize = 12;
    if paragraph.contains('\n') || paragraph.chars().count() > QUESTION_CHARS_MAX {
        return false;
    }
    if asks(paragraph) {
        return true;
    }
    let chinese = paragraph.chars().filter(|c| is_han(*c)).count();
    let most = if paragraph.contains('，') {
        CHINESE_CLAUSE_MAX
    } else {
        CHINESE_MAX
    };
    let words = paragraph.split_whitespace().count();
    if words > WORDS_MAX || chinese > most || paragraph.contains('。') {
        return false;
    }
    // `dpkg --listfiles foo`; a single word is a term that is explained below.
    let code = words > 1 && paragraph.starts_with(|c: char| c.is_ascii_lowercase())
        || paragraph.starts_with(['$', '#', '/', '~', '<'])
        || paragraph.contains(" -") && !paragraph.contains(" - ");
    let item = paragraph.starts_with(['-', '*', '•', '·'])
        || paragraph.starts_with(|c: char| c.is_ascii_digit());
    let stops = paragraph.ends_with([
        '.', '。', '!', '！', ';', '；', ':', '：', '…', ')', '）', '”', '"',
    ]);
    !code && !item && !stops && !paragraph.contains(" | ")
}

/// Whether something must follow: it ends in a colon, or does not end at all.
fn opens(sentence: &str) -> bool {
    let closed = ['.', '。', '!', '！', '?', '？', ';', '；', '…'];
    let quoted = ['"', '”', '’', '\'', ')', '）', '」', '』', '*'];
    !sentence.trim_end_matches(quoted).ends_with(closed)
}

/// A sentence without white space around it; one that is too long, line by line, the lines cut where they are too long.
fn pieces(text: &str, range: Range<usize>) -> Vec<Range<usize>> {
    let range = trimmed(text, range);
    if range.len() <= SENTENCE_BYTES_MAX {
        return if range.is_empty() {
            Vec::new()
        } else {
            vec![range]
        };
    }
    let mut pieces = Vec::new();
    let mut start = range.start;
    for line in text[range].split_inclusive('\n') {
        let mut at = start;
        start += line.len();
        while at < start {
            let end = text.floor_char_boundary((at + SENTENCE_BYTES_MAX).min(start));
            let piece = trimmed(text, at..end);
            if !piece.is_empty() {
                pieces.push(piece);
            }
            at = end;
        }
    }
    pieces
}

/// Sets the coverage of each candidate: the weight of the question's words that it has, of the weight of all of them. A word
/// weighs more the fewer candidates have it; one that none has weighs most.
fn cover(question: &BTreeSet<String>, candidates: &mut [Candidate]) {
    let all = candidates.len() as f64;
    let weight = |word: &String| {
        let having = candidates.iter().filter(|c| c.terms.contains(word)).count();
        (1.0 + all / (1.0 + having as f64)).ln()
    };
    let weights: Vec<(&String, f64)> = question.iter().map(|word| (word, weight(word))).collect();
    let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
    if sum <= 0.0 {
        return;
    }
    for candidate in candidates {
        let here = weights
            .iter()
            .filter(|(word, _)| candidate.terms.contains(*word));
        candidate.coverage = here.map(|(_, weight)| weight).sum::<f64>() / sum;
    }
}

/// Compares the sentences with most of the question's words by vectors, and makes those that are not known.
fn compare(
    question: &str,
    sources: &[Source],
    embedder: &dyn Embedder,
    vectors: &SentenceVectors,
    candidates: &mut [Candidate],
) -> Result<(), ModelError> {
    let asked = embedder.embed(&[question], Role::Query)?.into_iter().next();
    let asked = asked.unwrap_or_default();
    // The cosine, as both have length 1.
    let similarity = |vector: &[f32]| {
        let products = asked.iter().zip(vector).map(|(a, b)| a * b);
        f64::from(products.sum::<f32>())
    };
    let mut hasher = DefaultHasher::new();
    embedder.fingerprint().hash(&mut hasher);
    let model = hasher.finish();
    let (mut unknown, mut texts) = (Vec::new(), Vec::new());
    for candidate in candidates.iter_mut().take(EMBEDDED_MAX) {
        let chunk = &sources[candidate.source].chunk;
        let key = SentenceKey {
            model,
            chunk: chunk.id,
            start: candidate.range.start,
            end: candidate.range.end,
        };
        if let Some(vector) = vectors.get(&key) {
            candidate.similarity = Some(similarity(&vector));
            continue;
        }
        let sentence = &chunk.text[candidate.range.clone()];
        texts.push(match &candidate.heading {
            Some(heading) => format!("{heading}\n{sentence}"),
            None => sentence.to_owned(),
        });
        unknown.push((candidate, key));
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let made = embedder.embed(&texts, Role::Passage)?;
    for ((candidate, key), vector) in unknown.into_iter().zip(made) {
        candidate.similarity = Some(similarity(&vector));
        vectors.put(key, vector.into());
    }
    Ok(())
}

/// Names a sentence of a chunk under a model. A chunk's id names its version, so its text never changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SentenceKey {
    model: u64,
    chunk: ChunkId,
    start: usize,
    end: usize,
}

/// Vectors of sentences that were compared lately: questions meet the same passages again and again.
#[derive(Default)]
pub struct SentenceVectors(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    vectors: HashMap<SentenceKey, Arc<[f32]>>,
    /// Oldest first.
    order: VecDeque<SentenceKey>,
}

impl SentenceVectors {
    fn get(&self, key: &SentenceKey) -> Option<Arc<[f32]>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.vectors.get(key).cloned()
    }

    fn put(&self, key: SentenceKey, vector: Arc<[f32]>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.vectors.insert(key.clone(), vector).is_none() {
            kept.order.push_back(key);
        }
        while kept.order.len() > VECTORS_MAX {
            if let Some(oldest) = kept.order.pop_front() {
                kept.vectors.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rag::retrieve::Found;
    use crate::rag::retrieve::tests::source;
    use crate::retrieval::RankScore;

    fn sentences_of(question: &str, text: &str, title: &str) -> Vec<String> {
        let mut source = source("a", 1, text);
        source.chunk.title_path = vec![title.into()];
        let found = candidates(question, &[source.clone()]);
        let shown = |c: &Candidate| {
            let heading = c.heading.as_deref().unwrap_or("-");
            format!("{heading}: {}", &source.chunk.text[c.range.clone()])
        };
        found.iter().map(shown).collect()
    }

    #[test]
    fn headings_and_questions_are_no_answers() {
        let text = "Freezing Rows\n\nSelect the row below. Is it so? Choose View.\n\nOther matters\n\nClick here now.\n\n\
                    1.3. OK, what is Linux?!\n\nLinux is a kernel.";
        assert_eq!(
            sentences_of("How do I freeze rows?", text, "Freezing Rows"),
            [
                "Freezing Rows: Select the row below.",
                "Freezing Rows: Choose View.",
                "Other matters: Click here now.",
                "1.3. OK, what is Linux?!: Linux is a kernel.",
            ]
        );
        let text = "8.4. Which files?\n\nTo list all files that the installed package foo has brought execute the command\n\n\
                    dpkg --listfiles foo\n\nFiles of scripts are not shown.";
        assert_eq!(
            sentences_of("Which files?", text, "8.4. Which files?"),
            [
                "8.4. Which files?: To list all files that the installed package foo has brought execute the command",
                "8.4. Which files?: dpkg --listfiles foo",
                "8.4. Which files?: Files of scripts are not shown.",
            ]
        );
        let text = "如何冻结行？\n\n先选择下一行。然后点击“冻结”。";
        assert_eq!(
            sentences_of("如何冻结行", text, "表格"),
            [
                "如何冻结行？: 先选择下一行。",
                "如何冻结行？: 然后点击“冻结”。"
            ]
        );
    }

    #[test]
    fn steps_lead_to_each_other() {
        let text =
            "Do this.\n\n1. Open it. It is blue.\n\n2. Click.\n\n3. Close it.\n\nIt stays closed.";
        let found = candidates("How?", &[source("a", 1, text)]);
        let told: Vec<(usize, bool)> = found.iter().map(|c| (c.position, c.opens)).collect();
        let expected = [
            (0, false),
            (1, true),
            (2, true),
            (3, true),
            (4, false),
            (5, false),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn long_stretches_are_cut_at_lines() {
        let row = format!("{}\n", "cell | ".repeat(40));
        let table = row.repeat(8);
        let pieces = pieces(&table, 0..table.len());
        assert_eq!(pieces.len(), 8);
        assert!(pieces.iter().all(|p| p.len() <= SENTENCE_BYTES_MAX));
        let line = "字".repeat(1_000);
        let cut = super::pieces(&line, 0..line.len());
        assert_eq!(cut.iter().map(Range::len).sum::<usize>(), line.len());
    }

    #[test]
    fn by_words_alone_the_right_sentence_is_first() {
        let sources = [
            source(
                "a",
                1,
                "Printers are set up in the system. Choose File to print a sheet.",
            ),
            source(
                "b",
                2,
                "To freeze rows, select the row below. Then choose Freeze.",
            ),
        ];
        let vectors = SentenceVectors::default();
        let grade = |question| {
            let depth = Depth::Order;
            super::grade(question, Lang::En, &sources, None, &vectors, depth)
        };
        let graded = grade("How do I freeze rows?");
        let best = &graded.candidates[0];
        assert_eq!(
            &sources[best.source].chunk.text[best.range.clone()],
            "To freeze rows, select the row below."
        );
        assert!(graded.answerable(), "{}", graded.evidence());
        let graded = grade("What is the capital of Peru?");
        assert!(!graded.answerable(), "{}", graded.evidence());
    }

    /// With the real model.
    #[test]
    fn a_verdict_is_by_passages_and_computes_nothing() {
        use va_models::{DEFAULT_EMBEDDER, Embedders, ModelStore, NoProgress, default_model_dir};
        let models = Embedders::new(ModelStore::open(default_model_dir()).expect("a store"));
        if let Err(error) = models.store().pull(DEFAULT_EMBEDDER, &NoProgress) {
            assert!(std::env::var_os("CI").is_none(), "no model in CI: {error}");
            eprintln!("SKIPPED: {error}");
            return;
        }
        let embedder = models.get(DEFAULT_EMBEDDER).expect("the model");
        let text = "A parcel may be returned within thirty days. The shop is open on Monday. Steam the fish. Boil the rice. \
                    Peel the carrots. Wash the pots. The train is late. Paint the door blue.";
        let graded = |question: &str, depth: Depth, similarity: Option<f32>| {
            let vectors = SentenceVectors::default();
            let mut source = source("a", 1, text);
            source.found.push(Found {
                query: 0,
                rank: 1,
                vector: similarity.map(|score| RankScore { rank: 1, score }),
                keyword: None,
            });
            super::grade(
                question,
                Lang::En,
                &[source],
                Some(&*embedder),
                &vectors,
                depth,
            )
        };
        let compared = |grade: &Grade| {
            let compared = |c: &&Candidate| c.similarity.is_some();
            grade.candidates.iter().filter(compared).count()
        };
        let question = "Within how many days may a parcel be returned?";
        for (similarity, answers) in [(0.9, true), (0.79, false)] {
            let verdict = graded(question, Depth::Verdict, Some(similarity));
            assert_eq!(verdict.answerable(), answers, "{verdict:?}");
            assert_eq!(verdict.trace().similarity, Some(f64::from(similarity)));
            assert!(!verdict.whole && compared(&verdict) == 0);
            // Who looks closer sees the same verdict.
            let explained = graded(question, Depth::Explained, Some(similarity));
            assert_eq!(explained.answerable(), answers, "{explained:?}");
            assert_eq!(explained.evidence(), verdict.evidence());
            assert!(explained.whole && compared(&explained) == 8);
        }
        // What quotes looks at sentences alone, and so does a verdict on what no vector search found.
        for (depth, similarity) in [(Depth::Order, Some(0.79)), (Depth::Verdict, None)] {
            for (question, answers) in [(question, true), ("What is the capital of Peru?", false)] {
                let whole = graded(question, depth, similarity);
                assert!(whole.whole && whole.passage.is_none() && compared(&whole) == 8);
                assert_eq!(whole.answerable(), answers, "{}", whole.evidence());
            }
        }
    }
}
