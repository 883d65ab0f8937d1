//! What a file is: by its content where the content can tell, by media type and name only between kinds of text.
//!
//! Relies on the first bytes (and, for ZIP containers, on the member names); decoding text is left to `decode`.

use crate::document::Format;
use crate::error::ParseError;
use crate::input::Input;
use crate::ooxml::Package;

/// Signatures of what is not read, so that the message can name it. (offset, bytes, name)
const FOREIGN: &[(usize, &[u8], &str)] = &[
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (0, b"BM", "a BMP image"),
    (0, b"\0\0\x01\0", "an icon"),
    (8, b"WEBP", "a WebP image"),
    (8, b"WAVE", "a WAV sound"),
    (0, b"ID3", "an MP3 sound"),
    (0, b"\xff\xfb", "an MP3 sound"),
    (0, b"OggS", "an Ogg sound or video"),
    (0, b"fLaC", "a FLAC sound"),
    (4, b"ftyp", "an MP4 or HEIF media file"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"!<arch>\n", "a Unix archive or Debian package"),
    (0, b"\x7fELF", "a Linux program"),
    (0, b"MZ", "a Windows program"),
    (0, b"\xca\xfe\xba\xbe", "a Java class or macOS program"),
    (0, b"\xcf\xfa\xed\xfe", "a macOS program"),
    (0, b"\0asm", "a WebAssembly module"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"{\\rtf", "a Rich Text (RTF) document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"wOFF", "a font"),
    (0, b"OTTO", "a font"),
    (0, b"\0\x01\0\0\0", "a font"),
];

/// Header names that only e-mails begin their first lines with.
const MAIL_HEADERS: &[&str] = &[
    "from",
    "to",
    "cc",
    "subject",
    "date",
    "received",
    "return-path",
    "message-id",
    "mime-version",
    "delivered-to",
    "content-type",
    "content-transfer-encoding",
    "reply-to",
    "sender",
    "dkim-signature",
    "x-mailer",
    "in-reply-to",
    "references",
    "user-agent",
    "list-id",
    "bcc",
    "received-spf",
    "authentication-results",
    "arc-seal",
];

/// What the bytes are, as far as they tell without being decoded.
pub(crate) enum Kind {
    Container(Format),
    /// Some kind of text: decode it, then ask [`text_format`].
    Text,
}

/// Decides by magic numbers and ZIP members; everything without one is taken for text here.
pub(crate) fn detect(input: &Input) -> Result<Kind, ParseError> {
    let bytes = input.bytes;
    if bytes.is_empty() {
        return Err(ParseError::Empty {
            reason: "the file has no bytes".into(),
        });
    }
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        return zip_format(bytes).map(Kind::Container);
    }
    if bytes.starts_with(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1") {
        return Err(compound_file(input));
    }
    for (offset, magic, name) in FOREIGN {
        let found = bytes
            .get(*offset..)
            .is_some_and(|rest| rest.starts_with(magic));
        // Two letters are no proof: "BM" and "MZ" also begin texts, so they count only with binary data behind them.
        if found && (magic.len() > 2 || bytes[..bytes.len().min(512)].contains(&0)) {
            return Err(ParseError::Unsupported {
                looks_like: (*name).to_owned(),
            });
        }
    }
    // Writers put a few bytes of their own before the header, and readers accept it in the first kilobyte.
    let head = &bytes[..bytes.len().min(1024)];
    if let Some(at) = find(head, b"%PDF-")
        && (at == 0
            || head.contains(&0)
            || has_ending(input.name, &["pdf"])
            || media_type(input) == "application/pdf")
    {
        return Ok(Kind::Container(Format::Pdf));
    }
    Ok(Kind::Text)
}

/// The kind of a text: by its content where that is certain, then by media type, then by name.
pub(crate) fn text_format(input: &Input, text: &str) -> Format {
    let head = text.trim_start();
    if looks_like_html(head) {
        return Format::Html;
    }
    let name = input.name;
    if looks_like_mail(head) || has_ending(name, &["eml"]) || media_type(input) == "message/rfc822"
    {
        return Format::Email;
    }
    if looks_like_man(head, name) {
        return Format::Man;
    }
    let by_type = match media_type(input).as_str() {
        "text/html" | "application/xhtml+xml" => Some(Format::Html),
        "text/markdown" => Some(Format::Markdown),
        "text/csv" | "text/tab-separated-values" => Some(Format::Csv),
        "application/json" | "application/x-ndjson" => Some(Format::Json),
        _ => None,
    };
    if let Some(format) = by_type {
        return format;
    }
    if has_ending(name, &["html", "htm", "xhtml"]) {
        Format::Html
    } else if has_ending(name, &["md", "markdown", "mdown"]) {
        Format::Markdown
    } else if has_ending(name, &["csv", "tsv"]) {
        Format::Csv
    } else if has_ending(name, &["json", "jsonl", "ndjson"])
        || (head.starts_with(['{', '['])
            && serde_json::from_str::<serde::de::IgnoredAny>(head).is_ok())
    {
        Format::Json
    } else {
        Format::Text
    }
}

/// Whether the name ends in one of these, without regard to case.
pub(crate) fn has_ending(name: &str, endings: &[&str]) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, ending)| endings.iter().any(|e| ending.eq_ignore_ascii_case(e)))
}

/// The media type without its parameters, lower case, empty if unknown.
fn media_type(input: &Input) -> String {
    let full = input.content_type.unwrap_or_default();
    full.split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// The charset parameter of the media type.
pub(crate) fn declared_charset<'a>(input: &Input<'a>) -> Option<&'a str> {
    let parameters = input.content_type?.split(';').skip(1);
    parameters
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(key, _)| key.trim().eq_ignore_ascii_case("charset"))
        .map(|(_, value)| value.trim().trim_matches('"'))
}

fn zip_format(bytes: &[u8]) -> Result<Format, ParseError> {
    let package = Package::open(bytes).map_err(|reason| ParseError::Unsupported {
        looks_like: format!("a damaged ZIP archive or Office document ({reason})"),
    })?;
    let names = || package.names();
    let any = |wanted: fn(&str) -> bool| names().any(wanted);
    if any(|n| n == "word/document.xml" || n.starts_with("word/document")) {
        return Ok(Format::Docx);
    }
    if any(|n| n == "ppt/presentation.xml") {
        return Ok(Format::Pptx);
    }
    if any(|n| n == "xl/workbook.xml") {
        return Ok(Format::Xlsx);
    }
    let looks_like = if any(|n| n == "xl/workbook.bin") {
        "a binary Excel workbook (XLSB); save it as XLSX"
    } else if any(|n| n == "META-INF/container.xml") {
        "an EPUB book"
    } else if any(|n| n == "META-INF/MANIFEST.MF") {
        "a Java archive"
    } else if any(|n| n == "content.xml") {
        "an OpenDocument file; save it as DOCX, XLSX, PPTX or PDF"
    } else {
        "a ZIP archive; upload the files in it one by one"
    };
    Err(ParseError::Unsupported {
        looks_like: looks_like.into(),
    })
}

/// Microsoft's compound file holds either the old Office formats or an encrypted new one.
fn compound_file(input: &Input) -> ParseError {
    let utf16 = |text: &str| {
        text.encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<u8>>()
    };
    if find(input.bytes, &utf16("EncryptedPackage")).is_some() {
        let format = if has_ending(input.name, &["xlsx", "xlsm"]) {
            Format::Xlsx
        } else if has_ending(input.name, &["pptx", "pptm"]) {
            Format::Pptx
        } else {
            Format::Docx
        };
        return ParseError::Encrypted { format };
    }
    ParseError::Unsupported {
        looks_like: "an old Office document (DOC, XLS, PPT) or Outlook message; save it as DOCX, XLSX, PPTX or EML".into(),
    }
}

fn looks_like_html(head: &str) -> bool {
    let mut rest = head;
    // An XML declaration and comments may stand before the first tag.
    loop {
        rest = rest.trim_start();
        let end = if rest.starts_with("<?xml") {
            rest.find("?>").map(|at| at + 2)
        } else if rest.starts_with("<!--") {
            rest.find("-->").map(|at| at + 3)
        } else {
            break;
        };
        match end {
            Some(end) => rest = &rest[end..],
            None => return false,
        }
    }
    let start: String = rest
        .chars()
        .take(14)
        .collect::<String>()
        .to_ascii_lowercase();
    ["<!doctype html", "<html", "<head", "<body"]
        .iter()
        .any(|tag| start.starts_with(tag))
}

/// At least two lines at the top are headers that e-mails have, and nothing else stands there.
fn looks_like_mail(head: &str) -> bool {
    let mut known = 0;
    for (idx, line) in head.lines().take(40).enumerate() {
        if line.is_empty() || (idx == 0 && line.starts_with("From ")) {
            if line.is_empty() {
                break;
            }
            continue;
        }
        if idx > 0 && line.starts_with([' ', '\t']) {
            continue;
        }
        let Some((key, _)) = line.split_once(':') else {
            return false;
        };
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return false;
        }
        known += usize::from(
            MAIL_HEADERS
                .iter()
                .any(|header| key.eq_ignore_ascii_case(header)),
        );
    }
    known >= 3
}

/// The title macro, or the comment that manual pages begin with. Section endings (`ls.1`) are asked for because other
/// roff documents look alike.
fn looks_like_man(head: &str, name: &str) -> bool {
    let section = name.rsplit_once('.').is_some_and(|(_, ending)| {
        ending.starts_with(|c: char| ('1'..='8').contains(&c)) && ending.len() <= 4
    });
    if head.starts_with(".TH ") || head.starts_with(".Dd ") {
        return true;
    }
    let comment =
        head.starts_with(".\\\"") || head.starts_with("'\\\"") || head.starts_with(".de ");
    comment
        && (section
            || head
                .lines()
                .any(|line| line.starts_with(".TH ") || line.starts_with(".SH ")))
        || section
            && head
                .lines()
                .take(200)
                .any(|line| line.starts_with(".TH ") || line.starts_with(".so "))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
