//! Excel workbooks (XLSX): a heading and a table for each sheet, values as they are shown as far as that is cheap.
//!
//! `calamine` reads the cells one by one. Its ready-made ranges are not used, because they allocate the whole rectangle
//! between the first and the last cell, which two cells in opposite corners make as large as they like.

use std::collections::BTreeSet;
use std::io::Cursor;

use calamine::{DataRef, Reader, Xlsx, XlsxError};

use crate::builder::Builder;
use crate::document::Format;
use crate::error::{LimitKind, ParseError};
use crate::input::Limits;
use crate::ooxml::Parts;

pub(crate) fn parse(
    bytes: &[u8],
    limits: &Limits,
    builder: &mut Builder,
) -> Result<(), ParseError> {
    let mut parts = Parts::open(bytes, Format::Xlsx, limits)?;
    parts.check_unpacked_size()?;
    parts.read_title(builder);
    let mut workbook: Xlsx<_> = Xlsx::new(Cursor::new(bytes)).map_err(corrupt)?;
    let sheets = workbook.sheet_names();
    builder.set_pages(sheets.len())?;
    for (idx, sheet) in sheets.iter().enumerate() {
        builder.set_page(idx as u32 + 1);
        builder.clear_headings();
        let cells = match read_cells(&mut workbook, sheet, limits) {
            Ok(cells) => cells,
            // A chart sheet has no cells; a damaged one is named, and the others are read.
            Err(ParseError::Corrupt { reason, .. }) => {
                builder.warn(format!("Sheet `{sheet}` was not read: {reason}."));
                continue;
            }
            Err(error) => return Err(error),
        };
        if !cells.is_empty() {
            builder.heading(1, sheet)?;
            write_table(&cells, builder)?;
        }
    }
    Ok(())
}

struct Cell {
    row: u32,
    column: u32,
    text: String,
}

fn read_cells(
    workbook: &mut Xlsx<Cursor<&[u8]>>,
    sheet: &str,
    limits: &Limits,
) -> Result<Vec<Cell>, ParseError> {
    let mut reader = workbook.worksheet_cells_reader(sheet).map_err(corrupt)?;
    let mut cells = Vec::new();
    let mut size = 0;
    while let Some(cell) = reader.next_cell().map_err(corrupt)? {
        let (row, column) = cell.get_position();
        let text = cell_text(cell.get_value());
        if text.trim().is_empty() {
            continue;
        }
        size += text.len();
        if size > limits.text_bytes_max {
            return Err(ParseError::TooLarge {
                kind: LimitKind::TextBytes,
                limit: limits.text_bytes_max,
            });
        }
        cells.push(Cell { row, column, text });
    }
    // The file should have them in this order, and a few producers do not.
    cells.sort_by_key(|cell| (cell.row, cell.column));
    Ok(cells)
}

/// Only columns that hold something somewhere become cells, so that a far-away note does not widen every row.
fn write_table(cells: &[Cell], builder: &mut Builder) -> Result<(), ParseError> {
    let columns: Vec<u32> = cells
        .iter()
        .map(|cell| cell.column)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let rows = cells.chunk_by(|a, b| a.row == b.row);
    builder.table(rows.map(|row| {
        let last = row.last().map_or(0, |cell| cell.column);
        let mut filled = row.iter().peekable();
        let shown = columns.iter().take_while(move |column| **column <= last);
        shown.map(
            move |column| match filled.next_if(|cell| cell.column == *column) {
                Some(cell) => cell.text.as_str(),
                None => "",
            },
        )
    }))
}

fn cell_text(value: &DataRef<'_>) -> String {
    match value {
        DataRef::Empty => String::new(),
        DataRef::String(text) => text.clone(),
        DataRef::SharedString(text) => (*text).to_owned(),
        DataRef::Int(number) => number.to_string(),
        DataRef::Float(number) => number.to_string(),
        DataRef::Bool(value) => if *value { "TRUE" } else { "FALSE" }.to_owned(),
        DataRef::DateTime(time) if time.is_datetime() => {
            let (year, month, day, hour, minute, second, _) = time.to_ymd_hms_milli();
            let date = format!("{year:04}-{month:02}-{day:02}");
            if (hour, minute, second) == (0, 0, 0) {
                date
            } else {
                format!("{date} {hour:02}:{minute:02}:{second:02}")
            }
        }
        DataRef::DateTime(duration) => duration.as_f64().to_string(),
        DataRef::DateTimeIso(text) | DataRef::DurationIso(text) => text.clone(),
        DataRef::Error(error) => error.to_string(),
        #[allow(unreachable_patterns)]
        _ => String::new(),
    }
}

fn corrupt(error: XlsxError) -> ParseError {
    match error {
        XlsxError::Password => ParseError::Encrypted {
            format: Format::Xlsx,
        },
        error => ParseError::corrupt(Format::Xlsx, error),
    }
}
