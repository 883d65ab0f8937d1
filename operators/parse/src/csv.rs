//! CSV and its relatives: the delimiter is sniffed, rows become table blocks.

use crate::builder::Builder;
use crate::document::Format;
use crate::error::ParseError;

const DELIMITERS: [u8; 4] = [b',', b'\t', b';', b'|'];

pub(crate) fn parse(text: &str, builder: &mut Builder) -> Result<(), ParseError> {
    let delimiter = sniff(text);
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let mut failed = None;
    let rows = reader
        .records()
        .map_while(|row| row.map_err(|error| failed = Some(error)).ok());
    builder.table(rows.map(|row| row.iter().map(str::to_owned).collect::<Vec<_>>()))?;
    match failed {
        Some(error) => Err(ParseError::corrupt(Format::Csv, error)),
        None => Ok(()),
    }
}

/// The delimiter that cuts the first lines into the most cells while cutting all of them alike. Commas win a tie.
fn sniff(text: &str) -> u8 {
    let head: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .take(20)
        .collect();
    let score = |delimiter: u8| {
        let counts: Vec<usize> = head
            .iter()
            .map(|line| count_outside_quotes(line, delimiter))
            .collect();
        let first = counts.first().copied().unwrap_or(0);
        let alike = counts.iter().filter(|count| **count == first).count();
        // Lines cut alike are the better witness; a comma inside prose cuts often but never evenly.
        (first > 0, alike * 4 > counts.len() * 3, first)
    };
    let mut best = DELIMITERS[0];
    for delimiter in DELIMITERS {
        if score(delimiter) > score(best) {
            best = delimiter;
        }
    }
    best
}

fn count_outside_quotes(line: &str, delimiter: u8) -> usize {
    let mut quoted = false;
    let mut count = 0;
    for byte in line.bytes() {
        match byte {
            b'"' => quoted = !quoted,
            _ if byte == delimiter && !quoted => count += 1,
            _ => {}
        }
    }
    count
}
