//! How fast chunking is: `cargo run -p va-chunk --example chunk_speed [FILE...]`, one line a case, in MB/s.
//!
//! Without files it makes its own texts, well-behaved and hostile. The counter is as cheap as one can be, so what is
//! measured is the chunker; `passes` is how often the counter saw each byte, which is what a real tokenizer would add.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::cell::Cell;
use std::time::Instant;

use va_chunk::{ChunkOptions, TokenCounter, chunk};
use va_parse::{Block, BlockKind};

/// Four bytes a token.
struct Quarter {
    bytes: Cell<usize>,
}

impl TokenCounter for Quarter {
    fn count(&self, text: &str) -> usize {
        self.bytes.set(self.bytes.get() + text.len());
        text.len().div_ceil(4)
    }

    fn offsets(&self, text: &str) -> Vec<(usize, usize)> {
        self.bytes.set(self.bytes.get() + text.len());
        (0..text.len()).step_by(4).map(|at| (at, at + 4)).collect()
    }
}

fn measure(name: &str, text: &str, blocks: &[Block]) {
    let counter = Quarter {
        bytes: Cell::new(0),
    };
    let started = Instant::now();
    let chunks = chunk(text, blocks, &ChunkOptions::default(), &counter);
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{name:<28} {:>7.1} MB {:>8.1} MB/s {:>8} chunks {:>5.1} passes",
        text.len() as f64 / 1e6,
        text.len() as f64 / 1e6 / seconds,
        chunks.len(),
        counter.bytes.get() as f64 / text.len() as f64,
    );
}

fn one_block(kind: BlockKind, text: &str) -> Vec<Block> {
    vec![Block {
        kind,
        range: 0..text.len(),
        page: None,
        title_path: Vec::new(),
    }]
}

/// A block a line, every tenth a heading.
fn by_lines(text: &str) -> Vec<Block> {
    let mut start = 0;
    let mut blocks = Vec::new();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        blocks.push(Block {
            kind: if number % 10 == 0 {
                BlockKind::Heading(1)
            } else {
                BlockKind::Paragraph
            },
            range: start..start + line.trim_end().len(),
            page: None,
            title_path: Vec::new(),
        });
        start += line.len();
    }
    blocks
}

fn main() -> std::io::Result<()> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    for path in &paths {
        let text = std::fs::read_to_string(path)?;
        measure(path, &text, &one_block(BlockKind::Paragraph, &text));
    }
    if !paths.is_empty() {
        return Ok(());
    }
    let paragraph = BlockKind::Paragraph;
    let prose = "Freezing keeps the header row in place. 冻结行以后，标题行会一直显示在屏幕上。Does it work? 当然可以！";
    let cases = [
        ("prose in one line", paragraph, prose.repeat(80_000)),
        ("no punctuation", paragraph, "冻结行和列".repeat(700_000)),
        ("one word", paragraph, "x".repeat(10_000_000)),
        ("only full stops", paragraph, "。".repeat(3_000_000)),
        (
            "a sentence every two bytes",
            paragraph,
            "! ".repeat(5_000_000),
        ),
        (
            "table",
            BlockKind::Table,
            "A-100 | 红 red | 1,299.00\n".repeat(300_000),
        ),
        (
            "code",
            BlockKind::Code,
            "    let row = freeze(3);\n\n".repeat(300_000),
        ),
    ];
    for (name, kind, text) in &cases {
        measure(name, text, &one_block(*kind, text));
    }
    let lines = format!("{prose}\n").repeat(100_000);
    measure("100,000 blocks", &lines, &by_lines(&lines));
    Ok(())
}
