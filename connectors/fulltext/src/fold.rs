//! Folding of characters: what must be equal for search although it is written differently.
//!
//! Unicode NFKC (full and half width, ligatures, circled digits), lower case, accents of Latin and Greek letters, and
//! traditional to simplified Chinese, character by character. Every folded character remembers which bytes of the
//! original text it came from. Splitting into words is left to [`crate::analysis`].

use std::collections::HashMap;
use std::sync::LazyLock;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;

/// A folded character and the bytes of the original text it stands for.
///
/// Several folded characters can share one range (`½`), and one can cover several original characters (`e` + accent).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Folded {
    pub ch: char,
    pub start: usize,
    pub end: usize,
    /// The letter was upper case, which is where `camelCase` is split.
    pub upper: bool,
}

/// Folds a text. The ranges of the result never go backwards.
pub fn fold(text: &str) -> Vec<Folded> {
    let mut folded = Vec::with_capacity(text.len());
    let mut chars = text.char_indices().peekable();
    let mut cluster = String::new();
    while let Some((start, first)) = chars.next() {
        let mut end = start + first.len_utf8();
        cluster.clear();
        if !is_ignored(first) {
            cluster.push(first);
        }
        // Composition looks at a base character together with its marks; never across two base characters.
        while let Some(&(at, next)) = chars.peek() {
            if !(is_extending(next) || is_ignored(next)) {
                break;
            }
            end = at + next.len_utf8();
            if !is_ignored(next) {
                cluster.push(next);
            }
            chars.next();
        }
        if cluster.len() == 1 {
            // One ASCII byte folds to itself in lower case, the common case of English text.
            push(&mut folded, first, start, end);
        } else {
            for ch in cluster.nfkc() {
                push(&mut folded, ch, start, end);
            }
        }
    }
    folded
}

fn push(folded: &mut Vec<Folded>, ch: char, start: usize, end: usize) {
    let upper = ch.is_uppercase();
    let mut add = |ch| {
        folded.push(Folded {
            ch,
            start,
            end,
            upper,
        })
    };
    if ch.is_ascii() {
        return add(ch.to_ascii_lowercase());
    }
    for ch in ch.to_lowercase() {
        match ch {
            'ß' => ['s', 's'].into_iter().for_each(&mut add),
            'æ' => ['a', 'e'].into_iter().for_each(&mut add),
            'œ' => ['o', 'e'].into_iter().for_each(&mut add),
            'ø' => add('o'),
            'ł' => add('l'),
            'đ' | 'ð' => add('d'),
            'þ' => ['t', 'h'].into_iter().for_each(&mut add),
            'ı' => add('i'),
            'ς' => add('σ'),
            // Typographic apostrophes and hyphens join the parts of a word like their ASCII forms.
            '\u{2018}' | '\u{2019}' | '\u{02bc}' => add('\''),
            '\u{2010}' | '\u{2011}' => add('-'),
            'à'..='ʯ' | '\u{1e00}'..='\u{1eff}' | 'ά'..='ώ' | '\u{1f00}'..='\u{1fff}' => {
                ch.nfd()
                    .filter(|&c| !is_combining_mark(c))
                    .for_each(&mut add);
            }
            mark if is_combining_mark(mark) && !is_letter_like_mark(mark) => {}
            _ => add(simplified(ch)),
        }
    }
}

/// Marks that spell: the vowel signs of Indic and South-East Asian scripts. Only accents are dropped.
fn is_letter_like_mark(ch: char) -> bool {
    matches!(ch, '\u{0900}'..='\u{1aff}' | '\u{a800}'..='\u{abff}')
}

/// Continues the character before it: combining marks, half-width voicing marks, conjoining Hangul vowels and finals.
fn is_extending(ch: char) -> bool {
    !ch.is_ascii()
        && (matches!(ch, '\u{ff9e}' | '\u{ff9f}' | '\u{1160}'..='\u{11ff}')
            || (is_combining_mark(ch) && !is_letter_like_mark(ch)))
}

/// Invisible characters that may stand inside a word: soft hyphen, zero-width characters, direction marks.
fn is_ignored(ch: char) -> bool {
    matches!(
        ch,
        '\u{00ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}' | '\u{feff}'
            | '\u{fe00}'..='\u{fe0f}'
    )
}

/// The character table of OpenCC, first choice of each character. Words are not looked at, so the result is meant for
/// matching, not for reading (`乾隆` becomes `干隆`, in the index and in the query alike).
static SIMPLIFIED: LazyLock<HashMap<char, char>> = LazyLock::new(|| {
    hanconv::RawDictionary::TSCharacters
        .iter()
        .filter_map(|(from, to)| {
            let one = |word: &str| {
                let mut chars = word.chars();
                chars.next().filter(|_| chars.next().is_none())
            };
            Some((one(from)?, one(to)?))
        })
        .collect()
});

fn simplified(ch: char) -> char {
    if ch < '\u{3400}' {
        return ch;
    }
    SIMPLIFIED.get(&ch).copied().unwrap_or(ch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(text: &str) -> String {
        fold(text).iter().map(|f| f.ch).collect()
    }

    #[test]
    fn equal_for_search() {
        for (text, expected) in [
            ("ＡＢＣ１２３", "abc123"),
            ("Café CAFE\u{301}", "cafe cafe"),
            ("naïve Straße Łódź", "naive strasse lodz"),
            ("資料庫 凍結列", "资料库 冻结列"),
            ("裡裏著名", "里里著名"),
            ("ｶﾞｷﾞ ガ", "ガギ ガ"),
            ("\u{1112}\u{1161}\u{11ab}", "한"),
            ("ﬁle ① ㎏ Ⅳ", "file 1 kg iv"),
            ("in\u{ad}dex\u{200b}er", "indexer"),
            ("İstanbul", "istanbul"),
            ("й ё", "й ё"),
            ("don’t e‑mail", "don't e-mail"),
            ("", ""),
            ("\u{301}", ""),
        ] {
            assert_eq!(folded(text), expected, "{text}");
        }
    }

    #[test]
    fn ranges_cover_the_original() {
        let text = "e\u{301}ﬁ凍\0½";
        let ranges: Vec<_> = fold(text)
            .iter()
            .map(|f| (f.ch, &text[f.start..f.end]))
            .collect();
        assert_eq!(
            ranges,
            vec![
                ('e', "e\u{301}"),
                ('f', "ﬁ"),
                ('i', "ﬁ"),
                ('冻', "凍"),
                ('\0', "\0"),
                ('1', "½"),
                ('\u{2044}', "½"),
                ('2', "½"),
            ]
        );
    }
}
