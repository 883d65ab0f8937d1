//! Every format on files beside this one: what comes out is compared with `NAME.expected`.
//!
//! `UPDATE_EXPECTED=1 cargo test -p va-parse` rewrites the expected files; read the diff before committing. A folder
//! `NAME.docx/` is zipped into an Office file first, so that its parts can be read and changed as text.

#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

use std::fmt::Write as _;
use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};

use va_parse::{BlockKind, Document, Format, Input, LimitKind, Limits, ParseError, parse};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn parse_bytes(name: &str, bytes: &[u8]) -> Result<Document, ParseError> {
    let input = Input {
        name,
        content_type: None,
        bytes,
    };
    let outcome = parse(&input, &Limits::default());
    if let Ok(document) = &outcome {
        check_promises(name, document);
    }
    outcome
}

/// What `Document` promises about its blocks.
fn check_promises(name: &str, document: &Document) {
    let mut end = 0;
    let mut pages = 0;
    for block in &document.blocks {
        assert!(
            block.range.start >= end,
            "{name}: {block:?} overlaps the block before it"
        );
        assert!(
            block.range.start < block.range.end,
            "{name}: {block:?} is empty"
        );
        let between = document
            .text
            .get(end..block.range.start)
            .expect("on a character boundary");
        assert!(
            between.trim().is_empty(),
            "{name}: text between blocks: {between:?}"
        );
        let text = document
            .text
            .get(block.range.clone())
            .expect("on a character boundary");
        assert!(!text.trim().is_empty(), "{name}: {block:?} is blank");
        assert_eq!(
            text,
            text.trim_end(),
            "{name}: {block:?} ends in white space"
        );
        assert!(
            !text.contains(|c: char| c.is_control() && c != '\n' && c != '\t'),
            "{name}: control character"
        );
        assert!(
            block.page.unwrap_or(0) >= pages,
            "{name}: pages go back at {block:?}"
        );
        pages = block.page.unwrap_or(0);
        assert!(
            pages <= document.pages.unwrap_or(0),
            "{name}: {block:?} is on a page that is not there"
        );
        end = block.range.end;
    }
    assert!(
        document.text[end..].trim().is_empty(),
        "{name}: text after the last block"
    );
}

fn render(outcome: &Result<Document, ParseError>) -> String {
    let document = match outcome {
        Ok(document) => document,
        Err(error) => return format!("{} error: {error}\n", error.kind()),
    };
    let mut out = String::new();
    writeln!(out, "format: {}", document.format).unwrap();
    writeln!(
        out,
        "encoding: {}",
        document.encoding.as_deref().unwrap_or("-")
    )
    .unwrap();
    writeln!(out, "title: {}", document.title.as_deref().unwrap_or("-")).unwrap();
    for warning in &document.warnings {
        writeln!(out, "warning: {warning}").unwrap();
    }
    for block in &document.blocks {
        let page = block
            .page
            .map(|page| format!(" page {page}"))
            .unwrap_or_default();
        writeln!(
            out,
            "\n[{:?}{page}] {}",
            block.kind,
            block.title_path.join(" > ")
        )
        .unwrap();
        writeln!(out, "{}", &document.text[block.range.clone()]).unwrap();
    }
    out
}

/// The bytes of a fixture: a file, or a folder to zip.
fn fixture(path: &Path) -> Vec<u8> {
    if !path.is_dir() {
        return std::fs::read(path).unwrap();
    }
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for entry in walkdir::WalkDir::new(path).sort_by_file_name() {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let name = entry
                .path()
                .strip_prefix(path)
                .unwrap()
                .to_str()
                .unwrap()
                .replace('\\', "/");
            // An ending keeps editors from taking the folder for something else; the file of relationships is hidden.
            zip.start_file(name, SimpleFileOptions::default()).unwrap();
            zip.write_all(&std::fs::read(entry.path()).unwrap())
                .unwrap();
        }
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn files_come_out_as_expected() {
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(data())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| path.extension().is_none_or(|ending| ending != "expected"));
    paths.sort();
    assert!(paths.len() > 20, "fixtures are missing");
    let mut wrong = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let actual = render(&parse_bytes(&name, &fixture(&path)));
        let expected_path = data().join(format!("{name}.expected"));
        if update {
            std::fs::write(&expected_path, &actual).unwrap();
        }
        let expected = std::fs::read_to_string(&expected_path).unwrap_or_default();
        if actual != expected {
            wrong.push(format!(
                "===== {name}: expected\n{expected}\n===== {name}: actual\n{actual}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn encodings_are_found_without_being_told() {
    let chinese =
        "冻结行或列，作为表头。如果工作表很长，超出了可见范围，那么您可以将一些行或列冻结。";
    let traditional =
        "凍結列或欄作為表頭。如果工作表很長，超出了可見範圍，您可以將一些列或欄凍結。";
    let japanese = "行または列を見出しとして固定します。データが長い場合は、スクロールしても見えるようにできます。";
    let korean =
        "행이나 열을 머리글로 고정합니다. 데이터가 길어서 보이는 영역을 넘는 경우에 사용합니다.";
    let german = "Zeilen oder Spalten als Überschrift fixieren: größere Tabellen bleiben übersichtlich, auch für Anfänger.";
    let cases = [
        (chinese, encoding_rs::GBK, "GBK"),
        (chinese, encoding_rs::GB18030, "GBK"),
        (traditional, encoding_rs::BIG5, "Big5"),
        (japanese, encoding_rs::SHIFT_JIS, "Shift_JIS"),
        (japanese, encoding_rs::EUC_JP, "EUC-JP"),
        (japanese, encoding_rs::ISO_2022_JP, "ISO-2022-JP"),
        (korean, encoding_rs::EUC_KR, "EUC-KR"),
        (german, encoding_rs::WINDOWS_1252, "windows-1252"),
        (chinese, encoding_rs::UTF_8, "UTF-8"),
    ];
    for (text, encoding, found) in cases {
        let (bytes, _, unmappable) = encoding.encode(text);
        assert!(!unmappable, "{}", encoding.name());
        let document = parse_bytes("a.txt", &bytes).unwrap();
        assert_eq!(document.text, text, "{}", encoding.name());
        assert_eq!(document.encoding.as_deref(), Some(found));
        assert_eq!(document.warnings, [""; 0]);
    }
    for (mark, to_bytes) in [
        (&b"\xff\xfe"[..], u16::to_le_bytes as fn(u16) -> [u8; 2]),
        (&b"\xfe\xff"[..], u16::to_be_bytes),
        (&b""[..], u16::to_le_bytes),
        (&b""[..], u16::to_be_bytes),
    ] {
        let mixed = format!("{chinese}\nFreeze rows 123\n{traditional}");
        let units: Vec<u8> = mixed.encode_utf16().flat_map(to_bytes).collect();
        let document = parse_bytes("a.txt", &[mark, &units].concat()).unwrap();
        assert_eq!(document.text, mixed);
    }
}

#[test]
fn a_declared_charset_is_believed() {
    let page = "<html><head><meta charset=\"gb2312\"><title>冻结</title></head><body><p>行</p></body></html>";
    let (bytes, _, _) = encoding_rs::GBK.encode(page);
    let document = parse_bytes("page.html", &bytes).unwrap();
    assert_eq!(
        (document.title.as_deref(), document.text.as_str()),
        (Some("冻结"), "行")
    );

    let (bytes, _, _) = encoding_rs::BIG5.encode("<p>凍結列</p>");
    let input = Input {
        name: "page",
        content_type: Some("text/html; charset=Big5"),
        bytes: &bytes,
    };
    assert_eq!(parse(&input, &Limits::default()).unwrap().text, "凍結列");

    // The page is UTF-8 although it says otherwise, as servers' default headers do.
    let document = parse_bytes("page.html", page.as_bytes()).unwrap();
    assert_eq!(document.text, "行");
}

#[test]
fn undecodable_bytes_become_a_warning() {
    let mut bytes = "冻结行或列，作为表头。".repeat(20).into_bytes();
    bytes.insert(30, 0xff);
    let document = parse_bytes("a.txt", &bytes).unwrap();
    assert_eq!(document.encoding.as_deref(), Some("UTF-8"));
    assert_eq!(
        document.warnings,
        ["1 byte sequence could not be decoded as UTF-8 and was replaced."]
    );
}

/// A name says nothing about what is inside.
#[test]
fn content_decides_before_the_name() {
    let kind = |name: &str, bytes: &[u8]| parse_bytes(name, bytes).map(|document| document.format);
    assert_eq!(
        kind("a.txt", b"<!DOCTYPE html><p>text</p>"),
        Ok(Format::Html)
    );
    assert_eq!(
        kind("a.txt", &std::fs::read(data().join("manual.pdf")).unwrap()),
        Ok(Format::Pdf)
    );
    assert_eq!(kind("noname", b"{\"title\": \"x\"}"), Ok(Format::Json));
    assert_eq!(kind("a.md", b"# x\n\ntext"), Ok(Format::Markdown));
    assert_eq!(kind("a.txt", b"# x\n\ntext"), Ok(Format::Text));
    let unsupported = |bytes: &[u8]| match parse_bytes("notes.txt", bytes) {
        Err(ParseError::Unsupported { looks_like }) => looks_like,
        other => panic!("{other:?}"),
    };
    assert_eq!(unsupported(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "a PNG image");
    let noise: Vec<u8> = (0..4000u32)
        .map(|n| (n.wrapping_mul(2654435761) >> 13) as u8)
        .collect();
    assert_eq!(
        unsupported(&noise),
        "binary data that is no text in any known encoding"
    );
    let message = parse_bytes("notes.txt", b"\x7fELF\0\0")
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("Linux program") && message.contains("supported are PDF, DOCX"),
        "{message}"
    );
}

#[test]
fn nothing_to_read_is_an_error_that_says_so() {
    for (name, bytes) in [
        ("a.txt", &b""[..]),
        ("a.txt", b"  \n\n "),
        ("a.html", b"<html><body></body></html>"),
        ("a.csv", b"\n"),
    ] {
        assert!(
            matches!(parse_bytes(name, bytes), Err(ParseError::Empty { .. })),
            "{name} {bytes:?}"
        );
    }
}

/// Cutting a file anywhere gives a document or an error that names the damage, never a panic.
#[test]
fn truncated_files_end_in_an_answer() {
    for name in [
        "manual.pdf",
        "report.docx",
        "slides.pptx",
        "stock.xlsx",
        "mail.eml",
        "page.html",
        "config.json",
    ] {
        let whole = fixture(&data().join(name));
        for part in 1..40 {
            let cut = &whole[..whole.len() * part / 40];
            if let Err(error) = parse_bytes(name, cut) {
                assert!(
                    !matches!(error, ParseError::Panicked { .. }),
                    "{name} cut at {}: {error}",
                    cut.len()
                );
            }
        }
    }
}

/// Flipping bytes too; the seed is fixed, so a failure repeats.
#[test]
fn damaged_files_end_in_an_answer() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for name in [
        "manual.pdf",
        "report.docx",
        "stock.xlsx",
        "mail.eml",
        "page.html",
        "guide.md",
        "tool.1",
    ] {
        let whole = fixture(&data().join(name));
        for round in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random(20) {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
            if let Err(error) = parse_bytes(name, &bytes) {
                assert!(
                    !matches!(error, ParseError::Panicked { .. }),
                    "{name} round {round}: {error}"
                );
            }
        }
    }
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    let html = format!("<p>start</p>{}<p>end</p>", "<div>".repeat(100_000));
    assert_eq!(
        parse_bytes("a.html", html.as_bytes()).unwrap().text,
        "start\n\nend"
    );
    let json = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(
        parse_bytes("a.json", json.as_bytes()),
        Err(ParseError::Corrupt { .. })
    ));
    let markdown = format!("{}text", "> ".repeat(10_000));
    assert!(parse_bytes("a.md", markdown.as_bytes()).is_ok());
}

/// The container says that its parts are small; what counts is what comes out of it.
#[test]
fn a_zip_bomb_is_stopped_while_unpacking() {
    let limits = Limits {
        unpacked_bytes_max: 1 << 20,
        ..Limits::default()
    };
    for (name, part) in [
        ("a.docx", "word/document.xml"),
        ("a.pptx", "ppt/presentation.xml"),
        ("a.xlsx", "xl/workbook.xml"),
    ] {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        zip.start_file(part, SimpleFileOptions::default()).unwrap();
        zip.write_all(&vec![b' '; 8 << 20]).unwrap();
        let bytes = zip.finish().unwrap().into_inner();
        assert!(bytes.len() < 100_000);
        let input = Input {
            name,
            content_type: None,
            bytes: &bytes,
        };
        let error = parse(&input, &limits).unwrap_err();
        let expected = ParseError::TooLarge {
            kind: LimitKind::UnpackedBytes,
            limit: 1 << 20,
        };
        assert_eq!(error, expected, "{name}");
    }
}

#[test]
fn limits_name_what_was_too_much() {
    let limits = Limits {
        text_bytes_max: 1000,
        pages_max: 3,
        ..Limits::default()
    };
    let check = |name: &str, bytes: &[u8]| {
        let input = Input {
            name,
            content_type: None,
            bytes,
        };
        parse(&input, &limits).unwrap_err().to_string()
    };
    let long = "line of text\n\n".repeat(200);
    assert_eq!(
        check("a.txt", long.as_bytes()),
        "document is too large: it has more than 1000 bytes of text"
    );
    let pdf = std::fs::read(data().join("manual.pdf")).unwrap();
    assert_eq!(
        check("a.pdf", &pdf),
        "document is too large: it has more than 3 pages, slides or sheets"
    );
}

#[test]
fn long_tables_continue_in_another_block_with_their_header() {
    let rows: String = (0..250).map(|n| format!("{n};name {n}\n")).collect();
    let document = parse_bytes("a.csv", format!("id;name\n{rows}").as_bytes()).unwrap();
    assert_eq!(document.blocks.len(), 3);
    for block in &document.blocks {
        assert_eq!(block.kind, BlockKind::Table);
        assert!(document.text[block.range.clone()].starts_with("id | name\n"));
    }
}
