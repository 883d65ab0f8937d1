//! Chunks of the documents in `data`, and what holds for any document.
//!
//! `data/NAME.txt` is written in the small notation of `notation`; its chunks stand in `data/NAME.expected`. Rewrite them
//! with `REWRITE_EXPECTED=1 cargo test -p va-chunk` and read the difference.

#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod notation;

use std::cell::Cell;
use std::fmt::Write;
use std::ops::Range;
use std::path::Path;

use va_chunk::{Chunk, ChunkOptions, TokenCounter, chunk};
use va_parse::{Block, BlockKind};

/// A token is a Han character, a punctuation mark, or up to four other visible characters.
struct Simple;

impl TokenCounter for Simple {
    fn count(&self, text: &str) -> usize {
        self.offsets(text).len()
    }

    fn offsets(&self, text: &str) -> Vec<(usize, usize)> {
        let mut offsets: Vec<(usize, usize)> = Vec::new();
        let mut letters = 0;
        for (at, c) in text.char_indices() {
            let end = at + c.len_utf8();
            let letter = c.is_alphanumeric() && (c as u32) < 0x2E80;
            match offsets.last_mut() {
                Some(last) if letter && (1..4).contains(&letters) => last.1 = end,
                _ if c.is_whitespace() => {}
                _ => {
                    offsets.push((at, end));
                    letters = 0;
                }
            }
            letters = if letter { letters + 1 } else { 0 };
        }
        offsets
    }
}

/// A token a byte, as a byte-level tokenizer has on what it does not know.
struct Bytes;

impl TokenCounter for Bytes {
    fn count(&self, text: &str) -> usize {
        text.len()
    }

    fn offsets(&self, text: &str) -> Vec<(usize, usize)> {
        (0..text.len()).map(|at| (at, at + 1)).collect()
    }
}

/// A token a word, however long, as tokenizers with an unknown word have it.
struct Words;

impl TokenCounter for Words {
    fn count(&self, text: &str) -> usize {
        text.split_whitespace().count()
    }

    fn offsets(&self, text: &str) -> Vec<(usize, usize)> {
        text.split_whitespace()
            .map(|word| {
                let start = word.as_ptr() as usize - text.as_ptr() as usize;
                (start, start + word.len())
            })
            .collect()
    }
}

/// Joined text has far more tokens than its parts, and the offsets say nothing of it.
struct Squares;

impl TokenCounter for Squares {
    fn count(&self, text: &str) -> usize {
        text.len() * text.len() / 50
    }

    fn offsets(&self, text: &str) -> Vec<(usize, usize)> {
        Simple.offsets(text)
    }
}

/// Everything is free.
struct Nothing;

impl TokenCounter for Nothing {
    fn count(&self, _: &str) -> usize {
        0
    }

    fn offsets(&self, _: &str) -> Vec<(usize, usize)> {
        Vec::new()
    }
}

/// Counts the bytes that pass through it.
struct Metered<'a> {
    inner: &'a dyn TokenCounter,
    bytes: Cell<usize>,
}

impl Metered<'_> {
    fn note(&self, text: &str) {
        self.bytes.set(self.bytes.get() + text.len() + 1);
    }
}

impl TokenCounter for Metered<'_> {
    fn count(&self, text: &str) -> usize {
        self.note(text);
        self.inner.count(text)
    }

    fn offsets(&self, text: &str) -> Vec<(usize, usize)> {
        self.note(text);
        self.inner.offsets(text)
    }
}

#[test]
fn documents() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    let mut wrong = Vec::new();
    for path in paths {
        let (text, blocks, options) = notation::read(&std::fs::read_to_string(&path).unwrap());
        let chunks = check_invariants(&text, &blocks, &options, &Simple);
        let found = show(&chunks);
        let expected = path.with_extension("expected");
        if std::env::var_os("REWRITE_EXPECTED").is_some() {
            std::fs::write(&expected, found).unwrap();
        } else if found != std::fs::read_to_string(&expected).unwrap_or_default() {
            wrong.push(format!("{}:\n{found}", path.display()));
        }
    }
    assert!(
        wrong.is_empty(),
        "chunks differ from `.expected`:\n{}",
        wrong.join("\n")
    );
}

fn show(chunks: &[Chunk]) -> String {
    let mut out = String::new();
    for (number, chunk) in chunks.iter().enumerate() {
        writeln!(
            out,
            "=== {number}: bytes {:?}, chars {:?}, {} tokens, page {:?}, {:?}",
            chunk.bytes, chunk.chars, chunk.tokens, chunk.page, chunk.kinds
        )
        .unwrap();
        writeln!(out, "titles: {}", chunk.title_path.join(" > ")).unwrap();
        for (name, value) in [("context", &chunk.context), ("prefix", &chunk.prefix)] {
            if let Some(value) = value {
                writeln!(out, "{name}: {value}").unwrap();
            }
        }
        writeln!(out, "{}", chunk.text).unwrap();
    }
    out
}

/// Chunks the document and checks everything that [`chunk`] promises.
fn check_invariants(
    text: &str,
    blocks: &[Block],
    options: &ChunkOptions,
    counter: &dyn TokenCounter,
) -> Vec<Chunk> {
    let chunks = chunk(text, blocks, options, counter);
    let tokens_max = options.tokens_max.max(1);
    let mut covered = 0;
    let mut chars = (0, 0);
    let mut last_start = None;
    for chunk in &chunks {
        let Range { start, end } = chunk.bytes;
        assert_eq!(chunk.text, text[start..end]);
        assert!(!chunk.text.trim().is_empty());
        assert!(
            last_start < Some(start),
            "starts grow: {last_start:?}, {start}"
        );
        last_start = Some(start);
        if start > covered {
            let gap = &text[covered..start];
            assert!(gap.trim().is_empty(), "lost at {covered}: {gap:?}");
        }
        covered = covered.max(end);
        chars = (chars.0 + text[chars.1..start].chars().count(), start);
        let char_end = chars.0 + chunk.text.chars().count();
        assert_eq!(chunk.chars, chars.0..char_end);
        assert_eq!(chunk.tokens, counter.count(&chunk.text));
        let prefix = chunk
            .prefix
            .as_deref()
            .map_or(0, |prefix| counter.count(prefix));
        assert!(
            chunk.tokens + prefix <= tokens_max || chunk.text.chars().count() == 1,
            "{} + {prefix} tokens above {tokens_max}: {:?}",
            chunk.tokens,
            chunk.text
        );
        assert!(chunk.text.len() <= (tokens_max * 16).max(64));
        if let Some(context) = &chunk.context {
            assert!(options.with_headings && counter.count(context) <= tokens_max / 4);
        }
    }
    assert!(
        text[covered..].trim().is_empty(),
        "lost at the end: {:?}",
        &text[covered..]
    );
    chunks
}

/// xorshift64*: the same numbers for the same seed for ever.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

const SCRAPS: &[&str] = &[
    "word ",
    "another ",
    "冻结行",
    "和列",
    "。",
    "！”",
    "，",
    ". ",
    "... ",
    "! ",
    "?",
    "; ",
    "e.g. ",
    "3.14 ",
    "\n",
    "\r\n",
    "\n\n",
    " | ",
    "\t",
    "    ",
    "\u{200b}",
    "e\u{301}",
    "👩‍👩‍👧‍👦",
    "🇨🇳",
    "\u{3000}",
    "：",
    ":",
    "(",
    "）",
    "“",
    "0123456789abcdef",
    "----",
    "\u{feff}",
    "。。。。",
    "ｆｕｌｌ",
];

/// A document of a few blocks; in a quarter of them the blocks break the parser's rules.
fn random_document(random: &mut Random) -> (String, Vec<Block>) {
    let mut text = String::new();
    let mut blocks = Vec::new();
    let mut titles: Vec<String> = Vec::new();
    let alphabet: Vec<&str> = (0..1 + random.below(8))
        .map(|_| random.pick(SCRAPS))
        .collect();
    for _ in 0..random.below(30) {
        let kind = random.pick(&[
            BlockKind::Heading(1),
            BlockKind::Heading(2),
            BlockKind::Heading(3),
            BlockKind::Paragraph,
            BlockKind::Paragraph,
            BlockKind::ListItem,
            BlockKind::Table,
            BlockKind::Code,
        ]);
        let start = text.len();
        let scraps = random.pick(&[3, 10, 100, 400]);
        for _ in 0..random.below(scraps) {
            text.push_str(random.pick(&alphabet));
        }
        if let BlockKind::Heading(level) = kind {
            titles.truncate(level as usize - 1);
        }
        blocks.push(Block {
            kind,
            range: start..text.len(),
            page: None,
            title_path: titles.clone(),
        });
        if let BlockKind::Heading(_) = kind {
            titles.push(
                text[start..]
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" "),
            );
        }
        text.push_str(random.pick(&["\n", "\n\n", " \r\n"]));
    }
    if random.below(4) == 0 {
        let length = text.len() + 10;
        for block in &mut blocks {
            match random.below(5) {
                0 => block.range = random.below(length)..random.below(length),
                1 => block.range.end += 3,
                2 => block.title_path = vec!["elsewhere".into()],
                _ => {}
            }
        }
    }
    (text, blocks)
}

#[test]
fn any_document() {
    let counters: [&dyn TokenCounter; 5] = [&Simple, &Bytes, &Words, &Squares, &Nothing];
    for seed in 1..=1000 {
        let mut random = Random(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
        let (text, blocks) = random_document(&mut random);
        let options = ChunkOptions {
            tokens_max: random.pick(&[0, 1, 3, 16, 40, 320]),
            tokens_min: random.pick(&[0, 8, 48, 1000]),
            overlap_tokens: random.pick(&[0, 5, 40, 1000]),
            with_headings: random.below(2) == 0,
        };
        let counter = counters[random.below(counters.len())];
        let run = || {
            let first = check_invariants(&text, &blocks, &options, counter);
            assert_eq!(first, chunk(&text, &blocks, &options, counter));
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        assert!(outcome.is_ok(), "seed {seed}, {options:?}");
    }
}

/// Work is measured by what the counter is given, since a test must not look at a clock.
#[test]
fn work_is_linear() {
    let mut cases = vec![
        ("one word", "x".repeat(1 << 17)),
        ("one line", "some words and more, ".repeat(10_000)),
        ("no spaces", "冻结行和列".repeat(10_000)),
        ("full stops", "。".repeat(30_000)),
        ("dots", ". ".repeat(30_000)),
        ("blanks", format!("a{}b", " ".repeat(1 << 17))),
        ("zero width", "\u{200b}".repeat(30_000)),
        ("combining", format!("e{}", "\u{301}".repeat(30_000))),
        ("flags", "🇨🇳".repeat(10_000)),
        ("short lines", "ab\n".repeat(30_000)),
        ("windows lines", "a b c\r\n\r\n".repeat(10_000)),
        ("open quotes", ".“(\"".repeat(10_000)),
    ];
    cases.push(("rows", "left | right\n".repeat(10_000)));
    let counters: [(&str, &dyn TokenCounter); 4] = [
        ("simple", &Simple),
        ("bytes", &Bytes),
        ("words", &Words),
        ("nothing", &Nothing),
    ];
    for (name, text) in &cases {
        for kind in [
            BlockKind::Paragraph,
            BlockKind::Table,
            BlockKind::Code,
            BlockKind::Heading(1),
        ] {
            for (counter_name, counter) in counters {
                let metered = Metered {
                    inner: counter,
                    bytes: Cell::new(0),
                };
                let blocks = [Block {
                    kind,
                    range: 0..text.len(),
                    page: None,
                    title_path: Vec::new(),
                }];
                let options = ChunkOptions::default();
                let chunks = chunk(text, &blocks, &options, &metered);
                let passes = metered.bytes.get() as f64 / text.len() as f64;
                assert!(
                    passes < 12.0,
                    "{name}, {kind:?}, {counter_name}: {passes} passes, {} chunks",
                    chunks.len()
                );
                check_invariants(text, &blocks, &options, counter);
            }
        }
    }
}

#[test]
fn many_blocks() {
    let mut text = String::new();
    let mut blocks = Vec::new();
    for number in 0..20_000 {
        let start = text.len();
        let heading = number % 10 == 0;
        text.push_str(if heading {
            "标题"
        } else {
            "一句话。Another sentence here."
        });
        blocks.push(Block {
            kind: if heading {
                BlockKind::Heading(2)
            } else {
                BlockKind::Paragraph
            },
            range: start..text.len(),
            page: Some(number / 50),
            title_path: if heading {
                vec!["书".into()]
            } else {
                vec!["书".into(), "标题".into()]
            },
        });
        text.push('\n');
    }
    let chunks = check_invariants(&text, &blocks, &ChunkOptions::default(), &Simple);
    assert_eq!(chunks.len(), 2_000, "one chunk a section");
}

#[test]
fn nothing_to_chunk() {
    for text in ["", " ", "\n\r\n\u{3000}"] {
        assert_eq!(chunk(text, &[], &ChunkOptions::default(), &Simple), []);
    }
}
