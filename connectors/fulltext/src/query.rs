//! From a user's words to a tantivy query.
//!
//! Text is text: there is no query syntax, so nothing a user types is an error. Words are combined with OR and BM25;
//! a chunk that has all of them gets its score raised; titles count more; words in double quotes raise chunks that
//! have them side by side. Filters never influence the score. How that is searched for is `matching`'s.

use std::collections::BTreeMap;

use tantivy::Term as IndexTerm;
use tantivy::query::{
    BooleanQuery, ConstScoreQuery, EmptyQuery, Occur, PhraseQuery, Query, TermSetQuery,
};
use tantivy::schema::Field;
use va_catalog::Filter;
use va_catalog::readers::RESTRICTED_TAG;

use crate::analysis::{Analysis, Kind, Term, is_stop_word};
use crate::matching::{self, Matching};
use crate::schema::Fields;

/// Longer queries are cut: nobody types them, and a pasted page would match everything slowly.
const QUERY_CHARS_MAX: usize = 1000;
/// Different words of a query that are looked at; the rest is ignored.
const QUERY_WORDS_MAX: usize = matching::WORDS_MAX;

/// How much each kind of match counts. Factors to a BM25 score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranking {
    /// Of a word inside a longer word.
    pub part: f32,
    /// Of two Chinese characters that need not be a word.
    pub pair: f32,
    /// Of one Chinese character that is not a word by itself.
    pub single: f32,
    /// Of a match in the title or the title path.
    pub title: f32,
    /// Of the score added once more when all words are there.
    pub all_words: f32,
    /// Of the whole query (or a quoted part of it) side by side. 0 looks at quoted parts only.
    pub phrase: f32,
}

impl Default for Ranking {
    /// Chosen by measurement, see `ANALYSIS.md`.
    fn default() -> Self {
        Self {
            part: 0.25,
            pair: 0.5,
            single: 0.0,
            title: 1.0,
            all_words: 0.5,
            phrase: 0.25,
        }
    }
}

/// What quoted words gain where `Ranking::phrase` is 0.
const QUOTED: f32 = 2.0;

/// The terms of one word of the query, with their weights.
type Word = BTreeMap<String, f32>;

/// The query for `text` under `filter`; `None` when `text` has no word to look for.
pub(crate) fn build(
    fields: &Fields,
    analysis: Analysis,
    ranking: &Ranking,
    text: &str,
    filter: &Filter,
) -> Option<Box<dyn Query>> {
    let text = cut(text);
    let terms = analysis.terms(text);
    let words = words(&terms, ranking);
    if words.is_empty() {
        return None;
    }
    let searched = [(fields.text, 1.0), (fields.title, ranking.title)];
    let word = |word: &Word| {
        let terms = word.iter().flat_map(|(term, weight)| {
            searched.map(|(field, boost)| (IndexTerm::from_field_text(field, term), weight * boost))
        });
        matching::Word {
            terms: terms.collect(),
            telling: !is_stop(word),
        }
    };
    let quoted = quoted(text);
    let whole = (quoted.is_empty() && ranking.phrase > 0.0).then_some((terms, ranking.phrase));
    let quoted = quoted.into_iter().map(|q| (analysis.terms(q), QUOTED));
    let mut phrases = Vec::new();
    for (phrase, weight) in quoted.chain(whole) {
        let phrase = finest(phrase);
        for (field, boost) in searched {
            phrases.extend(phrase_query(field, &phrase).map(|query| (query, weight * boost)));
        }
    }
    let matched = Box::new(Matching {
        words: words.iter().map(word).collect(),
        all_words: ranking.all_words,
        phrases,
    });
    if filter.is_empty() {
        return Some(matched);
    }
    let mut clauses: Vec<(Occur, Box<dyn Query>)> = vec![(Occur::Must, matched)];
    clauses.extend(
        filter
            .groups()
            .map(|tags| (Occur::Must, any_tag(fields.tags, &tags))),
    );
    if let Some(readers) = filter.reader_tags() {
        clauses.push((Occur::MustNot, hidden(fields.tags, &readers)));
    }
    Some(Box::new(BooleanQuery::new(clauses)))
}

/// The beginning of a query, at most [`QUERY_CHARS_MAX`] characters.
pub(crate) fn cut(text: &str) -> &str {
    text.char_indices()
        .nth(QUERY_CHARS_MAX)
        .map_or(text, |(end, _)| &text[..end])
}

/// The distinct words of the query. A word that is written twice counts once.
fn words(terms: &[Term], ranking: &Ranking) -> Vec<Word> {
    let mut by_word: BTreeMap<usize, Word> = BTreeMap::new();
    for term in terms {
        let weight = match term.kind {
            Kind::Word => 1.0,
            Kind::Part => ranking.part,
            Kind::Pair => ranking.pair,
            Kind::Single => ranking.single,
        };
        if weight > 0.0 {
            let known = by_word
                .entry(term.word)
                .or_default()
                .entry(term.text.clone())
                .or_insert(weight);
            *known = known.max(weight);
        }
    }
    let mut words: Vec<Word> = Vec::new();
    for word in by_word.into_values() {
        if words.len() < QUERY_WORDS_MAX && !words.contains(&word) {
            words.push(word);
        }
    }
    words
}

fn is_stop(word: &Word) -> bool {
    word.keys().any(|term| is_stop_word(term))
}

/// The parts between pairs of double quotes; a quote without partner quotes nothing.
fn quoted(text: &str) -> Vec<&str> {
    let pieces: Vec<_> = text.split(['"', '“', '”', '＂']).collect();
    // Every second piece is inside quotes; the last one has no closing quote.
    let closed = pieces.len() - 1;
    let inside = pieces.into_iter().take(closed).skip(1).step_by(2);
    inside.filter(|piece| !piece.trim().is_empty()).collect()
}

/// The [`finest`] terms of a text at the distances at which they stand; `None` for fewer than two.
fn phrase_query(field: Field, finest: &[Term]) -> Option<PhraseQuery> {
    let terms: Vec<_> = finest
        .iter()
        .take(QUERY_WORDS_MAX)
        .map(|term| (term.position, IndexTerm::from_field_text(field, &term.text)))
        .collect();
    (terms.len() > 1).then(|| PhraseQuery::new_with_offset(terms))
}

/// One term a position. Grams come first: they are there in any context, while words are cut differently.
fn finest(terms: Vec<Term>) -> Vec<Term> {
    let rank = |term: &Term| (term.kind < Kind::Pair, term.span);
    let mut finest: Vec<Term> = Vec::new();
    for term in terms {
        match finest.last_mut() {
            Some(last) if last.position == term.position => {
                if rank(&term) < rank(last) {
                    *last = term;
                }
            }
            _ => finest.push(term),
        }
    }
    let mut covered = 0;
    finest.retain(|term| {
        let end = term.position + term.span;
        let adds = end > covered;
        covered = covered.max(end);
        adds
    });
    finest
}

/// Matches chunks that are restricted, and not to somebody whose tags these are. To leave those out costs nothing where
/// nothing is restricted; to look for the others would be a walk through all.
fn hidden(field: Field, readers: &[String]) -> Box<dyn Query> {
    let restricted = any_tag(field, &[RESTRICTED_TAG.to_owned()]);
    if readers.is_empty() {
        return restricted;
    }
    Box::new(BooleanQuery::new(vec![
        (Occur::Must, restricted),
        (Occur::MustNot, any_tag(field, readers)),
    ]))
}

/// Matches chunks with at least one of `tags`, at no score.
fn any_tag(field: Field, tags: &[String]) -> Box<dyn Query> {
    if tags.is_empty() {
        return Box::new(EmptyQuery);
    }
    let terms = tags
        .iter()
        .map(|tag| IndexTerm::from_field_text(field, tag));
    Box::new(ConstScoreQuery::new(
        Box::new(TermSetQuery::new(terms)),
        0.0,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_come_in_pairs() {
        for (text, expected) in [
            ("a \"b c\" d", vec!["b c"]),
            ("“冻结 行”", vec!["冻结 行"]),
            ("\"unbalanced", vec![]),
            ("\"a\" b\" c", vec!["a"]),
            ("\"\" x", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(quoted(text), expected, "{text}");
        }
    }
}
