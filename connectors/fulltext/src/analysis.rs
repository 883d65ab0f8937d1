//! From text to index terms, the same for chunks and for queries.
//!
//! Text is folded ([`crate::fold`]), then split where the script changes:
//!
//! * Chinese: words by jieba, the dictionary words inside longer words, and [`Grams`], so that a word which the
//!   dictionary does not know (or cuts differently in another context) is still found.
//! * Letters and digits: whole identifiers (`snake_case`, `file.ext`, `e-mail`, `C++`, `camelCase`) without their
//!   joints *and* their parts; English words are stemmed (Snowball). Numbers stay whole (`3.14`, `1,000`).
//! * Japanese kana, Hangul, Thai, Lao, Khmer and Burmese: overlapping pairs of characters.
//!
//! Everything else separates and is never a term. A position is one Chinese (kana, ...) character or one word part, so
//! that terms that stand side by side have neighbouring positions whichever way they were cut.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use frostem::{Algorithm, Stemmer};
use jieba_rs::Jieba;
use tantivy::tokenizer::{Token, TokenStream, Tokenizer};

use crate::dictionary::dictionary;
use crate::fold::{Folded, fold};

/// Longer words are cut here, in the index and in the query alike: base64 and the like would only bloat the index.
const WORD_CHARS_MAX: usize = 64;
/// A chain of more parts (a path, a host name) is not indexed as one joined word.
const JOINED_PARTS_MAX: usize = 8;

/// What is indexed of Chinese text besides words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grams {
    None,
    /// Every character.
    Singles,
    /// Every two neighbouring characters.
    Pairs,
    Both,
}

/// How text is analysed. Index and query must agree; [`Analysis::name`] is stored with the index to make sure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Analysis {
    /// Let jieba guess words that are not in its dictionary.
    pub guess_words: bool,
    pub grams: Grams,
}

impl Default for Analysis {
    /// Chosen by measurement, see `ANALYSIS.md`.
    fn default() -> Self {
        Self {
            guess_words: false,
            grams: Grams::Both,
        }
    }
}

/// How a term came to be, which decides its weight in a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A whole word.
    Word,
    /// A word inside a longer word.
    Part,
    /// Two Chinese characters, whether a word or not.
    Pair,
    /// One Chinese character that is not a word by itself here.
    Single,
}

/// One term of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    pub text: String,
    /// Bytes of the original text, end exclusive.
    pub start: usize,
    pub end: usize,
    pub position: usize,
    /// How many positions the term covers.
    pub span: usize,
    pub kind: Kind,
    /// Number of the outermost word that the term belongs to, from 0 in text order.
    pub word: usize,
}

impl Analysis {
    /// Name of the tokenizer in the stored schema; changes with whatever changes the terms.
    pub fn name(&self) -> String {
        let words = if self.guess_words { "guess" } else { "dict" };
        format!("va1-{words}-{:?}", self.grams).to_lowercase()
    }

    /// The terms of a text, ordered by position; no term twice at one position.
    pub fn terms(&self, text: &str) -> Vec<Term> {
        let folded = fold(text);
        let mut analyser = Analyser {
            analysis: *self,
            chars: &folded,
            dictionary: OnceCell::new(),
            terms: Vec::with_capacity(folded.len() / 2),
            position: 0,
            word: 0,
        };
        analyser.run();
        let mut terms = analyser.terms;
        // The index wants positions that do not go back; the strongest kind of equal terms comes first and stays.
        terms.sort_by(|a, b| {
            (a.position, &a.text, a.kind, b.span).cmp(&(b.position, &b.text, b.kind, a.span))
        });
        terms.dedup_by(|b, a| a.position == b.position && a.text == b.text);
        terms
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Han,
    /// Indexed as pairs of characters; the number tells scripts apart.
    Pairs(u8),
    Letter,
    Digit,
    /// Ends a sentence: phrases do not reach over it.
    Stop,
    Other,
}

fn class(ch: char) -> Class {
    match ch {
        'a'..='z' => Class::Letter,
        '0'..='9' => Class::Digit,
        '.' | '!' | '?' | '。' => Class::Stop,
        '\0'..='\x7f' => Class::Other,
        '\u{3005}' | '\u{3007}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' => Class::Han,
        '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}' => Class::Han,
        '\u{3041}'..='\u{3096}' | '\u{309d}'..='\u{309f}' => Class::Pairs(0),
        '\u{30a1}'..='\u{30fa}' | '\u{30fc}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' => {
            Class::Pairs(1)
        }
        '\u{ac00}'..='\u{d7a3}' | '\u{1100}'..='\u{11ff}' | '\u{3131}'..='\u{318e}' => {
            Class::Pairs(2)
        }
        '\u{0e01}'..='\u{0e4e}' | '\u{0e81}'..='\u{0ecd}' => Class::Pairs(3),
        '\u{1000}'..='\u{103f}' | '\u{1780}'..='\u{17d3}' => Class::Pairs(4),
        _ if ch.is_alphabetic() => Class::Letter,
        _ if ch.is_numeric() => Class::Digit,
        // Vowel signs of Indic scripts belong to the word.
        '\u{0900}'..='\u{0dff}' if unicode_normalization::char::is_combining_mark(ch) => {
            Class::Letter
        }
        _ => Class::Other,
    }
}

fn is_word(class: Class) -> bool {
    matches!(class, Class::Letter | Class::Digit)
}

struct Analyser<'a> {
    analysis: Analysis,
    chars: &'a [Folded],
    /// Asked for once a text, and only if there is Chinese in it.
    dictionary: OnceCell<Arc<Jieba>>,
    terms: Vec<Term>,
    position: usize,
    word: usize,
}

impl Analyser<'_> {
    fn run(&mut self) {
        let mut at = 0;
        while at < self.chars.len() {
            let class = self.class(at);
            let run = |end: usize| (at + 1..=end).find(|&i| i == end || self.class(i) != class);
            let end = match class {
                Class::Letter | Class::Digit => self.identifier_end(at),
                _ => run(self.chars.len()).unwrap_or(self.chars.len()),
            };
            match class {
                Class::Han => self.han(at, end),
                Class::Pairs(_) => self.pairs(at, end),
                Class::Letter | Class::Digit => self.identifier(at, end),
                Class::Stop => self.position += 1,
                Class::Other => {}
            }
            at = end;
        }
    }

    /// The class of the character at `at`; beyond the end, `Other`.
    fn class(&self, at: usize) -> Class {
        self.chars.get(at).map_or(Class::Other, |f| class(f.ch))
    }

    fn ch(&self, at: usize) -> char {
        self.chars.get(at).map_or(' ', |f| f.ch)
    }

    /// Adds the term of the characters `from..to`.
    fn add(
        &mut self,
        text: String,
        from: usize,
        to: usize,
        position: usize,
        span: usize,
        kind: Kind,
    ) {
        self.terms.push(Term {
            text,
            start: self.chars[from].start,
            end: self.chars[to - 1].end,
            position,
            span,
            kind,
            word: self.word,
        });
    }

    fn text(&self, from: usize, to: usize) -> String {
        self.chars[from..to].iter().map(|f| f.ch).collect()
    }

    fn han(&mut self, from: usize, to: usize) {
        let text = self.text(from, to);
        let base = self.position;
        let jieba = Arc::clone(self.dictionary.get_or_init(dictionary));
        for cut in jieba.cut(&text, self.analysis.guess_words) {
            let (start, end) = (from + cut.start, from + cut.end);
            let len = end - start;
            self.add(
                cut.word.to_owned(),
                start,
                end,
                base + cut.start,
                len,
                Kind::Word,
            );
            for part_len in 2..=3 {
                for i in start..(end + 1).saturating_sub(part_len) {
                    let part = self.text(i, i + part_len);
                    if part_len < len && jieba.has_word(&part) {
                        self.add(part, i, i + part_len, base + i - from, part_len, Kind::Part);
                    }
                }
            }
            self.word += 1;
            self.grams(start, end, to, base + cut.start);
        }
        self.position += to - from;
    }

    /// The grams that begin in the word `start..end` of a run that ends at `run_end`.
    fn grams(&mut self, start: usize, end: usize, run_end: usize, position: usize) {
        let lengths = match self.analysis.grams {
            Grams::None => 1..1,
            Grams::Singles => 1..2,
            Grams::Pairs => 2..3,
            Grams::Both => 1..3,
        };
        // A gram belongs to the word it begins in.
        self.word -= 1;
        for len in lengths {
            let kind = if len == 1 { Kind::Single } else { Kind::Pair };
            for i in start..end {
                if i + len <= run_end {
                    let gram = self.text(i, i + len);
                    self.add(gram, i, i + len, position + i - start, len, kind);
                }
            }
        }
        self.word += 1;
    }

    fn pairs(&mut self, from: usize, to: usize) {
        let len = (to - from).min(2);
        for i in from..=to - len {
            self.add(
                self.text(i, i + len),
                i,
                i + len,
                self.position + i - from,
                len,
                Kind::Word,
            );
        }
        self.word += 1;
        self.position += to - from;
    }

    /// Where the identifier that begins at `from` ends: letters and digits, with single joints between them.
    fn identifier_end(&self, from: usize) -> usize {
        let mut end = from;
        loop {
            while is_word(self.class(end)) {
                end += 1;
            }
            if !(is_joint(self.ch(end)) && is_word(self.class(end + 1))) {
                return end;
            }
            // A comma joins thousands only: `1,000`, not `1,2` or `a,b`.
            let digits =
                |range: Range<usize>| range.into_iter().all(|i| self.class(i) == Class::Digit);
            if self.ch(end) == ','
                && !(digits(end - 1..end)
                    && digits(end + 1..end + 4)
                    && !is_word(self.class(end + 4)))
            {
                return end;
            }
            end += 1;
        }
    }

    fn identifier(&mut self, from: usize, to: usize) {
        let base = self.position;
        let word_parts = self.word_parts(from, to);
        let mut joined = String::new();
        let mut stems_joined = true;
        for (i, &(start, end)) in word_parts.iter().enumerate() {
            let written = self.written(start, end);
            joined.push_str(&written);
            stems_joined &= written.chars().all(|c| c.is_ascii_lowercase());
            let units = self.units(start, end);
            // `C++`, `C#`: the signs are the name. Only at the end, so that `a+b` is two words.
            let signs = (end..end + 2)
                .take_while(|&i| matches!(self.ch(i), '+' | '#'))
                .count();
            let signs = match i + 1 == word_parts.len() && !is_word(self.class(end + signs)) {
                true => signs,
                false => 0,
            };
            let whole = word_parts.len() == 1 && signs == 0;
            let kind = if whole { Kind::Word } else { Kind::Part };
            self.add_word(written, start, end, units.len(), kind);
            if units.len() > 1 {
                for &(start, end) in &units {
                    self.add_word(self.text(start, end), start, end, 1, Kind::Part);
                    self.position += 1;
                }
            } else {
                self.position += 1;
            }
            if signs > 0 {
                let text = self.text(start, end + signs);
                let span = self.position - base;
                self.add(text, start, end + signs, base, span, Kind::Word);
            }
        }
        if (2..=JOINED_PARTS_MAX).contains(&word_parts.len()) {
            let span = self.position - base;
            let text = if stems_joined { stem(&joined) } else { joined };
            if text.chars().count() <= WORD_CHARS_MAX {
                self.add(text, from, to, base, span, Kind::Word);
            }
        }
        self.word += 1;
    }

    /// Splits `from..to` at its joints, except inside numbers and contractions; drops a possessive `'s`.
    fn word_parts(&self, from: usize, to: usize) -> Vec<(usize, usize)> {
        let mut parts = Vec::new();
        let mut start = from;
        let mut i = from;
        while i < to {
            if is_joint(self.ch(i)) {
                let digits = self.class(i - 1) == Class::Digit && self.class(i + 1) == Class::Digit;
                let suffix_end = (i + 1..to).find(|&i| !is_word(self.class(i))).unwrap_or(to);
                match self.ch(i) {
                    '.' if digits => {}
                    ',' => {}
                    '\'' if self.text(i + 1, suffix_end) == "s" => {
                        parts.push((start, i));
                        start = (suffix_end + 1).min(to);
                        i = suffix_end;
                    }
                    '\'' if ["t", "re", "ve", "ll", "d", "m"]
                        .contains(&self.text(i + 1, suffix_end).as_str()) => {}
                    _ => {
                        parts.push((start, i));
                        start = i + 1;
                    }
                }
            }
            i += 1;
        }
        if start < to {
            parts.push((start, to));
        }
        parts
    }

    /// The text of a word part without the joints that stayed inside it, but `3.14` keeps its point.
    fn written(&self, from: usize, to: usize) -> String {
        self.chars[from..to]
            .iter()
            .map(|f| f.ch)
            .filter(|ch| !matches!(ch, '\'' | ','))
            .collect()
    }

    /// Splits `camelCase`, and letters from digits where there are three letters or more (`Excel2016`, not `mp3`).
    fn units(&self, from: usize, to: usize) -> Vec<(usize, usize)> {
        let mut units = Vec::new();
        let mut start = from;
        for i in from + 1..to {
            let (before, here) = (&self.chars[i - 1], &self.chars[i]);
            let camel = here.upper
                && before.ch.is_alphabetic()
                && (!before.upper
                    // `HTTPServer`: the last capital begins a word of three letters or more, unlike in `PDFs`.
                    || (i + 2 < to && (i + 1..=i + 2).all(|i| self.is_lower(i))));
            let (a, b) = (class(before.ch), class(here.ch));
            let number = (a == Class::Letter && b == Class::Digit && i - start >= 3)
                || (a == Class::Digit
                    && b == Class::Letter
                    && i + 2 < to
                    && (i..=i + 2).all(|i| self.class(i) == Class::Letter));
            if camel || number {
                units.push((start, i));
                start = i;
            }
        }
        units.push((start, to));
        units
    }

    fn is_lower(&self, at: usize) -> bool {
        self.class(at) == Class::Letter && !self.chars[at].upper
    }

    fn add_word(&mut self, text: String, from: usize, to: usize, span: usize, kind: Kind) {
        let mut text = stem(&text);
        if let Some((cut, _)) = text.char_indices().nth(WORD_CHARS_MAX) {
            text.truncate(cut);
        }
        self.add(text, from, to, self.position, span, kind);
    }
}

/// Joins the parts of an identifier when letters or digits stand on both sides.
fn is_joint(ch: char) -> bool {
    matches!(ch, '_' | '-' | '.' | '\'' | '&' | ',')
}

fn stem(word: &str) -> String {
    static ENGLISH: LazyLock<Stemmer> = LazyLock::new(|| Stemmer::new(Algorithm::English));
    if word.bytes().all(|b| b.is_ascii_lowercase()) && word.len() <= WORD_CHARS_MAX {
        ENGLISH.stem(word).into_owned()
    } else {
        word.to_owned()
    }
}

/// [`Analysis`] as tantivy's tokenizer.
#[derive(Debug, Clone, Copy)]
pub struct TantivyTokenizer(pub Analysis);

impl Tokenizer for TantivyTokenizer {
    type TokenStream<'a> = Terms;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> Terms {
        Terms {
            terms: self.0.terms(text).into_iter(),
            token: Token::default(),
        }
    }
}

/// The terms of one text as tantivy's token stream.
pub struct Terms {
    terms: std::vec::IntoIter<Term>,
    token: Token,
}

impl TokenStream for Terms {
    fn advance(&mut self) -> bool {
        let Some(term) = self.terms.next() else {
            return false;
        };
        self.token = Token {
            offset_from: term.start,
            offset_to: term.end,
            position: term.position,
            text: term.text,
            position_length: term.span,
        };
        true
    }

    fn token(&self) -> &Token {
        &self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        &mut self.token
    }
}

/// Words that say little about what is meant, as terms. They are searched like all others (BM25 knows that they are
/// frequent) but need not be there, and are not highlighted next to better ones.
pub fn is_stop_word(term: &str) -> bool {
    const STOP_WORDS: &[&str] = &[
        "a", "an", "and", "are", "as", "at", "be", "by", "can", "do", "doe", "for", "from", "how",
        "i", "in", "is", "it", "my", "of", "on", "or", "that", "the", "this", "to", "what", "when",
        "where", "which", "who", "whi", "will", "with", "you", "your", "的", "了", "是", "在",
        "和", "与", "或", "及", "我", "你", "把", "被", "对", "为", "吗", "呢", "吧", "怎么",
        "怎样", "如何", "什么", "哪些", "哪", "请问", "可以", "一个", "么", "样",
    ];
    STOP_WORDS.contains(&term)
}
