//! The table of synonyms: a file that people can read and replace, see `synonyms.txt`.
//!
//! Words are matched as the full-text analysis cuts and stems them, so `rows` matches `row`, and `行` matches where it is a
//! word but not inside `进行`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use va_fulltext::analysis::Term;

use super::text::{Lang, is_han, words};

const BUILT_IN: &str = include_str!("synonyms.txt");

/// A larger file is no table of synonyms.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Words in the longest entry that is matched.
const ENTRY_WORDS_MAX: usize = 4;

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{path}`: {reason}", path = path.display())]
pub struct TableError {
    path: PathBuf,
    reason: String,
}

/// Groups of words that mean the same.
#[derive(Debug)]
pub struct Synonyms {
    groups: Vec<Vec<String>>,
    /// The words of an entry, stemmed, to the group.
    by_words: HashMap<Vec<String>, usize>,
}

/// Words of a text that are in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match<'a> {
    /// Index of the first matched word, and how many there are.
    pub first: usize,
    pub count: usize,
    pub group: &'a [String],
}

impl Synonyms {
    /// The table of the file, the built-in one when there is no file.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or a line says nothing.
    pub fn open(path: &Path) -> Result<Self, TableError> {
        let fail = |reason: String| TableError {
            path: path.to_owned(),
            reason,
        };
        match std::fs::metadata(path) {
            Ok(meta) if meta.len() > FILE_BYTES_MAX => {
                return Err(fail(format!(
                    "has {} bytes; a table of synonyms has at most {FILE_BYTES_MAX}",
                    meta.len()
                )));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Self::parse(BUILT_IN).map_err(fail);
            }
            Err(error) => return Err(fail(error.to_string())),
        }
        let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        Self::parse(&text).map_err(fail)
    }

    /// Reads a table.
    ///
    /// # Errors
    /// With the number of a line that has fewer than two words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut table = Self {
            groups: Vec::new(),
            by_words: HashMap::new(),
        };
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let group: Vec<String> = line
                .split('|')
                .map(|word| word.trim().to_owned())
                .filter(|word| !word.is_empty())
                .collect();
            if group.len() < 2 {
                return Err(format!(
                    "line {}: `{line}` is no group; write at least two words separated by `|`",
                    number + 1
                ));
            }
            for entry in &group {
                let key: Vec<String> = words(entry).into_iter().map(|term| term.text).collect();
                // An entry in two groups belongs to the first, so that the order of the file decides.
                if !key.is_empty() && key.len() <= ENTRY_WORDS_MAX {
                    table.by_words.entry(key).or_insert(table.groups.len());
                }
            }
            table.groups.push(group);
        }
        Ok(table)
    }

    /// The entries in a text, of which these are the words; the longest at each place.
    pub fn matches(&self, words: &[Term]) -> Vec<Match<'_>> {
        let mut found = Vec::new();
        let mut first = 0;
        while first < words.len() {
            let longest = (1..=ENTRY_WORDS_MAX.min(words.len() - first))
                .rev()
                .find_map(|count| {
                    let key: Vec<String> = words[first..first + count]
                        .iter()
                        .map(|term| term.text.clone())
                        .collect();
                    let group = self.by_words.get(&key)?;
                    Some(Match {
                        first,
                        count,
                        group: &self.groups[*group],
                    })
                });
            first += longest.as_ref().map_or(1, |found| found.count);
            found.extend(longest);
        }
        found
    }
}

/// The entries of a group in one language.
pub fn in_language(group: &[String], lang: Lang) -> impl Iterator<Item = &str> {
    group
        .iter()
        .map(String::as_str)
        .filter(move |entry| entry.chars().any(is_han) == (lang == Lang::Zh))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_table_is_good() {
        let table = Synonyms::parse(BUILT_IN).expect("a table");
        assert!(table.groups.len() > 50);
        for group in &table.groups {
            for lang in [Lang::Zh, Lang::En] {
                assert!(in_language(group, lang).next().is_some(), "{group:?}");
            }
        }
    }

    #[test]
    fn entries_match_as_words() {
        let table =
            Synonyms::parse("行 | row\nlog in | 登录\n# no\n\n冻结 | freeze").expect("a table");
        let firsts = |text: &str| -> Vec<String> {
            let words = words(text);
            let found = table.matches(&words);
            found.into_iter().map(|m| m.group[0].clone()).collect()
        };
        assert_eq!(firsts("Freezing rows"), ["冻结", "行"]);
        assert_eq!(firsts("how do I log in"), ["log in"]);
        assert!(firsts("正在进行").is_empty());
    }

    #[test]
    fn a_line_without_a_partner_is_named() {
        let error = Synonyms::parse("a | b\n\nalone").expect_err("refused");
        assert!(error.starts_with("line 3: `alone`"), "{error}");
    }
}
