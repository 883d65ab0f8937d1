//! The words of a query, searched for together.
//!
//! As a tree of the library's queries, each word is a union of its terms, and "all words" an intersection of the same unions;
//! a union adds up whole windows of rows, so every posting is read twice and goes through three sums. Here postings are read
//! once, one term after the other within a window of rows, each row with its score and the words that it has (as in the
//! windowed disjunctions of Lucene's `BooleanScorer`). Matches and scores are those of the tree.
//!
//! Which terms a word has, and what they weigh, is decided in `query`.

use std::collections::BTreeMap;

use tantivy::fieldnorm::FieldNormReader;
use tantivy::postings::BlockSegmentPostings;
use tantivy::query::{Bm25Weight, EnableScoring, Explanation, PhraseQuery, Query, Scorer, Weight};
use tantivy::schema::IndexRecordOption;
use tantivy::{DocId, DocSet, Score, SegmentReader, TERMINATED, TantivyError, Term};

/// Rows of a window, whose scores and words fit the first cache of a processor.
const WINDOW: DocId = 2048;
const BUCKETS: usize = WINDOW as usize / 64;

/// Words that can be told apart: one bit each.
pub(crate) const WORDS_MAX: usize = 64;

/// The terms of one word with what they weigh.
#[derive(Debug, Clone)]
pub(crate) struct Word {
    pub terms: Vec<(Term, Score)>,
    /// Whether a chunk without it lacks something.
    pub telling: bool,
}

/// Chunks that have one of the words at least, or a phrase. The score is the sum of the BM25 scores of all terms, each times its
/// weight; of those of telling words once more times `all_words` where each of these (two at least) is there; and of the
/// phrases.
#[derive(Debug, Clone)]
pub(crate) struct Matching {
    /// [`WORDS_MAX`] at most.
    pub words: Vec<Word>,
    pub all_words: Score,
    /// With what they weigh.
    pub phrases: Vec<(PhraseQuery, Score)>,
}

impl Query for Matching {
    fn weight(&self, scoring: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        let EnableScoring::Enabled {
            statistics_provider: statistics,
            ..
        } = scoring
        else {
            let reason = "words are searched for with scores".to_owned();
            return Err(TantivyError::InvalidArgument(reason));
        };
        // A term that several words have is read once.
        let mut telling: BTreeMap<&Term, (Score, u64)> = BTreeMap::new();
        let mut others: BTreeMap<&Term, (Score, u64)> = BTreeMap::new();
        let mut count = 0;
        for word in &self.words {
            let (terms, bit) = match word.telling {
                true => (&mut telling, 1_u64.checked_shl(count).unwrap_or(0)),
                false => (&mut others, 0),
            };
            count += u32::from(word.telling);
            for (term, weight) in &word.terms {
                let (sum, words) = terms.entry(term).or_default();
                *sum += weight;
                *words |= bit;
            }
        }
        let documents = statistics.total_num_docs()?;
        let weigh = |terms: BTreeMap<&Term, (Score, u64)>| {
            let weighed = terms.into_iter().map(|(term, (weight, words))| {
                let tokens = statistics.total_num_tokens(term.field())?;
                let similarity = Bm25Weight::for_one_term_without_explain(
                    statistics.doc_freq(term)?,
                    documents,
                    tokens as Score / documents as Score,
                );
                Ok(Weighed {
                    term: term.clone(),
                    similarity: similarity.boost_by(weight),
                    words,
                })
            });
            weighed.collect::<tantivy::Result<Vec<_>>>()
        };
        let phrases = self.phrases.iter();
        let phrases = phrases.map(|(phrase, weight)| Ok((phrase.weight(scoring)?, *weight)));
        Ok(Box::new(MatchingWeight {
            telling: weigh(telling)?,
            others: weigh(others)?,
            all: match count {
                2.. if self.all_words > 0.0 => Some(u64::MAX >> (64 - count.min(64))),
                _ => None,
            },
            all_words: self.all_words,
            phrases: phrases.collect::<tantivy::Result<_>>()?,
        }))
    }

    fn query_terms<'a>(&'a self, visitor: &mut dyn FnMut(&'a Term, bool)) {
        for (term, _) in self.words.iter().flat_map(|word| &word.terms) {
            visitor(term, false);
        }
        for (phrase, _) in &self.phrases {
            phrase.query_terms(visitor);
        }
    }
}

struct Weighed {
    term: Term,
    similarity: Bm25Weight,
    /// The telling words that it belongs to, a bit each.
    words: u64,
}

struct MatchingWeight {
    /// Of telling words, and of all others.
    telling: Vec<Weighed>,
    others: Vec<Weighed>,
    /// The bits of all telling words, where having them all counts.
    all: Option<u64>,
    all_words: Score,
    phrases: Vec<(Box<dyn Weight>, Score)>,
}

impl MatchingWeight {
    fn of_segment(&self, segment: &SegmentReader, boost: Score) -> tantivy::Result<MatchingScorer> {
        let read = |terms: &[Weighed]| {
            let mut read = Vec::with_capacity(terms.len());
            for weighed in terms {
                let field = weighed.term.field();
                let postings = segment
                    .inverted_index(field)?
                    .read_block_postings(&weighed.term, IndexRecordOption::WithFreqs)?;
                let Some(postings) = postings else { continue };
                let norms = segment.fieldnorms_readers().get_field(field)?;
                let norms = norms.ok_or_else(|| {
                    TantivyError::SchemaError("the searched fields have no norms".to_owned())
                })?;
                read.push(Cursor {
                    postings,
                    at: 0,
                    norms,
                    similarity: weighed.similarity.boost_by(boost),
                    words: weighed.words,
                });
            }
            Ok::<_, TantivyError>(read)
        };
        let mut phrases = Vec::with_capacity(self.phrases.len());
        for (phrase, weight) in &self.phrases {
            phrases.push(phrase.scorer(segment, weight * boost)?);
        }
        Ok(MatchingScorer {
            telling: read(&self.telling)?,
            others: read(&self.others)?,
            phrases,
            all: self.all,
            all_words: self.all_words,
            window: Box::new(Window::default()),
            row: TERMINATED,
            score: 0.0,
        })
    }
}

impl Weight for MatchingWeight {
    fn scorer(&self, segment: &SegmentReader, boost: Score) -> tantivy::Result<Box<dyn Scorer>> {
        let mut scorer = self.of_segment(segment, boost)?;
        scorer.advance();
        Ok(Box::new(scorer))
    }

    fn explain(&self, segment: &SegmentReader, row: DocId) -> tantivy::Result<Explanation> {
        let mut scorer = self.scorer(segment, 1.0)?;
        if scorer.doc() > row || scorer.seek(row) != row {
            let reason = format!("row {row} has none of the words");
            return Err(TantivyError::InvalidArgument(reason));
        }
        Ok(Explanation::new("words and phrases", scorer.score()))
    }

    fn for_each_pruning(
        &self,
        mut threshold: Score,
        segment: &SegmentReader,
        callback: &mut dyn FnMut(DocId, Score) -> Score,
    ) -> tantivy::Result<()> {
        let mut scorer = self.of_segment(segment, 1.0)?;
        while scorer.fill() {
            while let Some((row, score)) = scorer.window.next() {
                if score > threshold {
                    threshold = callback(row, score);
                }
            }
        }
        Ok(())
    }
}

/// The rows that have a term, from one of them on.
struct Cursor {
    postings: BlockSegmentPostings,
    /// Within the block.
    at: usize,
    norms: FieldNormReader,
    similarity: Bm25Weight,
    words: u64,
}

impl Cursor {
    fn row(&self) -> DocId {
        let row = self.postings.docs().get(self.at);
        row.copied().unwrap_or(TERMINATED)
    }

    fn seek(&mut self, row: DocId) {
        if self.row() < row {
            self.at = self.postings.seek(row);
        }
    }

    /// Gives each of its rows before `end`, with its score, to `add`.
    fn until(&mut self, end: DocId, mut add: impl FnMut(DocId, Score)) {
        loop {
            let rows = self.postings.docs().iter().zip(self.postings.freqs());
            for (row, frequency) in rows.skip(self.at) {
                if *row >= end {
                    return;
                }
                let norm = self.norms.fieldnorm_id(*row);
                add(*row, self.similarity.score(norm, *frequency));
                self.at += 1;
            }
            if self.postings.docs().is_empty() {
                return;
            }
            self.postings.advance();
            self.at = 0;
        }
    }
}

/// Rows that follow each other: which of them match, with what score and which words.
struct Window {
    start: DocId,
    matching: [u64; BUCKETS],
    /// Buckets before it have no row any more.
    bucket: usize,
    /// Of rows that match; what there is of others is from windows before.
    scores: [Score; WINDOW as usize],
    words: [u64; WINDOW as usize],
}

impl Default for Window {
    fn default() -> Self {
        Self {
            start: 0,
            matching: [0; BUCKETS],
            bucket: 0,
            scores: [0.0; WINDOW as usize],
            words: [0; WINDOW as usize],
        }
    }
}

impl Window {
    fn add(&mut self, row: DocId, score: Score, words: u64) {
        let at = (row - self.start) as usize;
        let (bucket, bit) = (at / 64, 1 << (at % 64));
        if self.matching[bucket] & bit == 0 {
            self.matching[bucket] |= bit;
            self.scores[at] = score;
            self.words[at] = words;
        } else {
            self.scores[at] += score;
            self.words[at] |= words;
        }
    }

    /// Multiplies the scores of rows that have exactly these words.
    fn multiply(&mut self, words: u64, factor: Score) {
        for (bucket, mut bits) in self.matching.into_iter().enumerate() {
            while bits != 0 {
                let at = bucket * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if self.words[at] == words {
                    self.scores[at] *= factor;
                }
            }
        }
    }

    /// The next row that matches, which is taken out, with its score.
    fn next(&mut self) -> Option<(DocId, Score)> {
        while let Some(bits) = self.matching.get_mut(self.bucket) {
            if *bits != 0 {
                let at = self.bucket * 64 + bits.trailing_zeros() as usize;
                *bits &= *bits - 1;
                return Some((self.start + at as DocId, self.scores[at]));
            }
            self.bucket += 1;
        }
        None
    }
}

struct MatchingScorer {
    telling: Vec<Cursor>,
    others: Vec<Cursor>,
    phrases: Vec<Box<dyn Scorer>>,
    all: Option<u64>,
    all_words: Score,
    window: Box<Window>,
    row: DocId,
    score: Score,
}

impl MatchingScorer {
    /// Goes on to the window of the next row that matches, if there is one. The one before has none left.
    fn fill(&mut self) -> bool {
        let words = self.telling.iter().chain(&self.others).map(Cursor::row);
        let phrases = self.phrases.iter().map(|phrase| phrase.doc());
        let start = words.chain(phrases).min().unwrap_or(TERMINATED);
        if start == TERMINATED {
            return false;
        }
        let window = &mut *self.window;
        (window.start, window.bucket) = (start, 0);
        let end = start + WINDOW;
        for cursor in &mut self.telling {
            let words = cursor.words;
            cursor.until(end, |row, score| window.add(row, score, words));
        }
        if let Some(all) = self.all {
            // Nothing else is in the scores yet.
            window.multiply(all, 1.0 + self.all_words);
        }
        for cursor in &mut self.others {
            cursor.until(end, |row, score| window.add(row, score, 0));
        }
        for phrase in &mut self.phrases {
            let mut row = phrase.doc();
            while row < end {
                window.add(row, phrase.score(), 0);
                row = phrase.advance();
            }
        }
        true
    }
}

impl DocSet for MatchingScorer {
    fn advance(&mut self) -> DocId {
        loop {
            if let Some((row, score)) = self.window.next() {
                (self.row, self.score) = (row, score);
                return row;
            }
            if !self.fill() {
                self.row = TERMINATED;
                return TERMINATED;
            }
        }
    }

    fn seek(&mut self, target: DocId) -> DocId {
        if self.row < target && target >= self.window.start.saturating_add(WINDOW) {
            // Of the windows between nothing is wanted.
            self.window.matching = [0; BUCKETS];
            for cursor in self.telling.iter_mut().chain(&mut self.others) {
                cursor.seek(target);
            }
            for phrase in &mut self.phrases {
                if phrase.doc() < target {
                    phrase.seek(target);
                }
            }
        }
        while self.row < target {
            self.advance();
        }
        self.row
    }

    fn doc(&self) -> DocId {
        self.row
    }

    fn size_hint(&self) -> u32 {
        let cursors = self.telling.iter().chain(&self.others);
        let most = cursors.map(|cursor| cursor.postings.doc_freq()).max();
        most.unwrap_or(0)
    }
}

impl Scorer for MatchingScorer {
    fn score(&mut self) -> Score {
        self.score
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tantivy::collector::TopDocs;
    use tantivy::query::{BooleanQuery, BoostQuery, Occur, TermQuery};
    use tantivy::schema::{Field, STRING, Schema, TEXT};
    use tantivy::{DocAddress, Index, IndexWriter, Searcher, doc};

    use super::*;

    /// A number below `below`, the same ones in every run.
    fn random(state: &mut u64, below: usize) -> usize {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (*state >> 33) as usize % below
    }

    /// Word `n`; the smaller the number, the more often it is drawn.
    fn word(state: &mut u64) -> String {
        let most = 1 + random(state, 60);
        format!("w{}", random(state, most))
    }

    fn text(state: &mut u64, words: usize) -> String {
        let words: Vec<String> = (0..words).map(|_| word(state)).collect();
        words.join(" ")
    }

    struct World {
        searcher: Searcher,
        text: Field,
        title: Field,
        tag: Field,
    }

    /// Three segments, one of several windows.
    fn world() -> World {
        let mut schema = Schema::builder();
        let (text_field, title) = (
            schema.add_text_field("text", TEXT),
            schema.add_text_field("title", TEXT),
        );
        let tag = schema.add_text_field("tag", STRING);
        let index = Index::create_in_ram(schema.build());
        let mut writer: IndexWriter = index
            .writer_with_num_threads(1, 50_000_000)
            .expect("a writer");
        writer.set_merge_policy(Box::new(tantivy::merge_policy::NoMergePolicy));
        let mut state = 3;
        for rows in [5_000, 1, 700] {
            for _ in 0..rows {
                let words = 1 + random(&mut state, 12);
                let (body, head) = (text(&mut state, words), text(&mut state, 2));
                // A rare tag, so that a search goes from one far row to another.
                let tagged = if random(&mut state, 700) == 0 {
                    "rare"
                } else {
                    "usual"
                };
                let row = doc!(text_field => body, title => head, tag => tagged);
                writer.add_document(row).expect("added");
            }
            writer.commit().expect("a commit");
        }
        // Rows that are gone are not found, but count in the statistics.
        writer.delete_term(Term::from_field_text(title, "w7"));
        writer.commit().expect("a commit");
        World {
            searcher: index.reader().expect("a reader").searcher(),
            text: text_field,
            title,
            tag,
        }
    }

    /// The same as a tree of the library's own queries.
    fn tree(matching: &Matching) -> BooleanQuery {
        let boosted = |query: Box<dyn Query>, boost| -> Box<dyn Query> {
            Box::new(BoostQuery::new(query, boost))
        };
        let clause = |word: &Word| -> Box<dyn Query> {
            let terms = word.terms.iter().map(|(term, weight)| {
                let term = TermQuery::new(term.clone(), IndexRecordOption::WithFreqs);
                (Occur::Should, boosted(Box::new(term), *weight))
            });
            Box::new(BooleanQuery::new(terms.collect()))
        };
        let mut clauses: Vec<(Occur, Box<dyn Query>)> = (matching.words.iter())
            .map(|word| (Occur::Should, clause(word)))
            .collect();
        let telling = matching.words.iter().filter(|word| word.telling);
        let telling: Vec<Box<dyn Query>> = telling.map(clause).collect();
        if telling.len() > 1 {
            let all = Box::new(BooleanQuery::intersection(telling));
            clauses.push((Occur::Should, boosted(all, matching.all_words)));
        }
        for (phrase, weight) in &matching.phrases {
            clauses.push((Occur::Should, boosted(Box::new(phrase.clone()), *weight)));
        }
        BooleanQuery::new(clauses)
    }

    /// Every row that is found, with its score.
    fn found(world: &World, query: &dyn Query) -> HashMap<DocAddress, Score> {
        let all = TopDocs::with_limit(10_000).order_by_score();
        let found = world.searcher.search(query, &all).expect("hits");
        found.into_iter().map(|(score, row)| (row, score)).collect()
    }

    fn assert_same(a: &HashMap<DocAddress, Score>, b: &HashMap<DocAddress, Score>, what: &str) {
        assert_eq!(a.len(), b.len(), "{what}");
        for (row, score) in a {
            let other = b.get(row).copied().unwrap_or_default();
            assert!(
                (score - other).abs() <= 1e-5 * score,
                "{what}: {row:?} {score} {other}"
            );
        }
    }

    #[test]
    fn rows_and_scores_are_those_of_the_tree() {
        let world = world();
        let mut state = 5;
        let mut both = 0;
        for round in 0..60 {
            let count = 1 + random(&mut state, 6);
            let words = (0..count).map(|_| {
                // Several terms, some of them in several words, some nowhere.
                let terms = (0..1 + random(&mut state, 3)).flat_map(|_| {
                    let term = word(&mut state);
                    let weight = 0.25 + random(&mut state, 4) as Score / 4.0;
                    [world.text, world.title]
                        .map(|field| (Term::from_field_text(field, &term), weight))
                });
                let terms: Vec<(Term, Score)> = terms.collect();
                let telling = random(&mut state, 4) > 0;
                Word { terms, telling }
            });
            let words: Vec<Word> = words.collect();
            let phrase = (0..2).map(|at| {
                let term = word(&mut state);
                (at, Term::from_field_text(world.text, &term))
            });
            let phrase = PhraseQuery::new_with_offset(phrase.collect());
            let matching = Matching {
                words,
                all_words: 0.5,
                phrases: match round % 3 {
                    0 => Vec::new(),
                    _ => vec![(phrase, 0.75)],
                },
            };
            let all = found(&world, &matching);
            assert_same(
                &all,
                &found(&world, &tree(&matching)),
                &format!("{matching:?}"),
            );
            both += all.len();

            // Under a condition, which leaves rows out in between.
            let tag = Term::from_field_text(world.tag, "rare");
            let under = |query: Box<dyn Query>| {
                let tag = TermQuery::new(tag.clone(), IndexRecordOption::Basic);
                let tag = BoostQuery::new(Box::new(tag), 0.0);
                BooleanQuery::intersection(vec![query, Box::new(tag)])
            };
            let some = found(&world, &under(Box::new(matching.clone())));
            let of_tree = found(&world, &under(Box::new(tree(&matching))));
            assert_same(&some, &of_tree, &format!("rare: {matching:?}"));

            // The best alone, for which not every row is looked at.
            let best = TopDocs::with_limit(5).order_by_score();
            let best = world.searcher.search(&matching, &best).expect("hits");
            let mut scores: Vec<Score> = all.into_values().collect();
            scores.sort_by(|a, b| b.total_cmp(a));
            scores.truncate(5);
            let best: Vec<Score> = best.into_iter().map(|(score, _)| score).collect();
            assert_eq!(best, scores);
        }
        assert!(both > 10_000, "{both}");
    }

    #[test]
    fn a_score_can_be_explained() {
        let world = world();
        let term = Term::from_field_text(world.text, "w1");
        let matching = Matching {
            words: vec![Word {
                terms: vec![(term, 1.0)],
                telling: true,
            }],
            all_words: 0.5,
            phrases: Vec::new(),
        };
        let (row, score) = found(&world, &matching).into_iter().next().expect("a hit");
        let explained = matching.explain(&world.searcher, row).expect("a reason");
        assert_eq!(explained.value(), score);
        assert!(matching.count(&world.searcher).is_err(), "without scores");
    }
}
