//! The notation of the test documents, which says what each stretch of text is as briefly as possible:
//! `# heading`, `- item`, rows with ` | `, code between fences, `~~~` for the next page, other lines are paragraphs up
//! to a blank line. The first line holds the options: `tokens_max tokens_min overlap_tokens`.

use va_chunk::ChunkOptions;
use va_parse::{Block, BlockKind};

#[derive(Default)]
struct Reader {
    text: String,
    blocks: Vec<Block>,
    titles: Vec<String>,
    page: u32,
    /// Lines of this kind go on with the block before.
    open: bool,
}

impl Reader {
    fn line(&mut self, kind: BlockKind, line: &str) {
        let start = self.text.len();
        self.text.push_str(line);
        let end = self.text.len();
        self.text.push('\n');
        match self.blocks.last_mut() {
            Some(block) if self.open && block.kind == kind => block.range.end = end,
            _ => self.blocks.push(Block {
                kind,
                range: start..end,
                page: (self.page > 0).then_some(self.page),
                title_path: self.titles.clone(),
            }),
        }
        self.open = matches!(
            kind,
            BlockKind::Paragraph | BlockKind::Table | BlockKind::Code
        );
    }
}

pub fn read(source: &str) -> (String, Vec<Block>, ChunkOptions) {
    let mut lines = source.lines();
    let numbers: Vec<usize> = lines
        .next()
        .unwrap()
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    let options = ChunkOptions {
        tokens_max: numbers[0],
        tokens_min: numbers[1],
        overlap_tokens: numbers[2],
        with_headings: true,
    };
    let mut reader = Reader::default();
    let mut code = false;
    for line in lines {
        if line.starts_with("```") {
            code = !code;
            reader.open = false;
        } else if code {
            reader.line(BlockKind::Code, line);
        } else if line == "~~~" {
            reader.page += 1;
            reader.open = false;
        } else if line.is_empty() {
            reader.text.push('\n');
            reader.open = false;
        } else if let Some(title) = line
            .trim_start_matches('#')
            .strip_prefix(' ')
            .filter(|_| line.starts_with('#'))
        {
            let level = line.len() - title.len() - 1;
            reader.titles.truncate(level - 1);
            reader.line(BlockKind::Heading(level as u8), title);
            reader.titles.push(title.to_owned());
        } else if let Some(item) = line.strip_prefix("- ") {
            reader.line(BlockKind::ListItem, item);
        } else if line.contains(" | ") {
            reader.line(BlockKind::Table, line);
        } else {
            reader.line(BlockKind::Paragraph, line);
        }
    }
    (reader.text, reader.blocks, options)
}
