//! Bytes to text: which character encoding it is, and what could not be decoded.
//!
//! The order of belief: byte order mark; then UTF-8 when the bytes are valid UTF-8 (no other encoding passes that test by
//! accident); then what the file or its sender declares; then UTF-16 by its zero bytes; then statistics (`chardetng`).

use std::borrow::Cow;

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};

use crate::builder::{Builder, counted};

/// The statistics settle long before this; reading more only costs time.
const DETECT_BYTES_MAX: usize = 256 << 10;

pub(crate) struct Decoded<'a> {
    /// Line ends are `\n`, no byte order mark.
    pub(crate) text: Cow<'a, str>,
    pub(crate) encoding: &'static Encoding,
    /// Sequences that meant nothing in the encoding; each stands as U+FFFD in the text.
    pub(crate) undecodable: usize,
}

impl Decoded<'_> {
    /// Notes the encoding, and a warning if something was lost.
    pub(crate) fn report(&self, builder: &mut Builder) {
        builder.set_encoding(self.encoding.name());
        if self.undecodable > 0 {
            builder.warn(format!(
                "{} could not be decoded as {} and {} replaced.",
                counted(self.undecodable, "byte sequence", "byte sequences"),
                self.encoding.name(),
                if self.undecodable == 1 { "was" } else { "were" },
            ));
        }
    }
}

/// Decodes text of unknown encoding; `None` when the bytes are no text at all. `declared` is the charset's label as the
/// file or its sender gives it.
pub(crate) fn decode<'a>(bytes: &'a [u8], declared: Option<&str>) -> Option<Decoded<'a>> {
    let encoding = guess(bytes, declared)?;
    let (text, undecodable) = decode_as(bytes, encoding);
    // Real text in the wrong encoding still decodes mostly; where this much fails it is noise.
    if undecodable > 16 && undecodable * 10 > text.len() {
        return None;
    }
    Some(Decoded {
        text: unify_line_ends(text),
        encoding,
        undecodable,
    })
}

/// Decodes with a known encoding, dropping its byte order mark. Returns the text and the number of sequences replaced.
pub(crate) fn decode_as<'a>(bytes: &'a [u8], encoding: &'static Encoding) -> (Cow<'a, str>, usize) {
    let (text, had_errors) = encoding.decode_with_bom_removal(bytes);
    let undecodable = if had_errors {
        text.matches('\u{FFFD}').count()
    } else {
        0
    };
    (text, undecodable)
}

fn guess(bytes: &[u8], declared: Option<&str>) -> Option<&'static Encoding> {
    if let Some((encoding, _)) = Encoding::for_bom(bytes) {
        return Some(encoding);
    }
    if let Some(encoding) = utf16_by_zeros(bytes) {
        return Some(encoding);
    }
    if is_binary(bytes) {
        return None;
    }
    // A multi-byte escape encoding is pure ASCII, so it must be looked for before "valid UTF-8" is believed.
    let escapes = bytes.contains(&0x1b);
    if !escapes && mostly_utf8(bytes) {
        return Some(UTF_8);
    }
    if let Some(encoding) = declared.and_then(|label| Encoding::for_label(label.trim().as_bytes()))
        && encoding != UTF_8
        && encoding != UTF_16LE
        && encoding != UTF_16BE
    {
        return Some(encoding);
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
    detector.feed(&bytes[..bytes.len().min(DETECT_BYTES_MAX)], true);
    let utf8 = if escapes {
        Utf8Detection::Allow
    } else {
        Utf8Detection::Deny
    };
    Some(detector.guess(None, utf8))
}

/// Whether the bytes are UTF-8, a few damaged characters allowed: a file cut in the middle of a character, or one stray
/// byte in a long text, is still UTF-8.
fn mostly_utf8(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let (mut good, mut bad) = (0usize, 0usize);
    loop {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                good += text.bytes().filter(|b| *b >= 0xc0).count();
                break;
            }
            Err(error) => {
                let (valid, damaged) = rest.split_at(error.valid_up_to());
                good += valid.iter().filter(|b| **b >= 0xc0).count();
                bad += 1;
                // Enough seen: this is another encoding.
                if bad > 64 && bad * 10 > good {
                    return false;
                }
                let skip = error.error_len().unwrap_or(damaged.len());
                rest = &damaged[skip..];
            }
        }
    }
    bad == 0 || good >= bad * 10
}

/// UTF-16 without a byte order mark shows zeros in every other byte where the text is Latin, digits or line ends. Text
/// that is Chinese throughout has few of them, but line ends and spaces remain.
fn utf16_by_zeros(bytes: &[u8]) -> Option<&'static Encoding> {
    let head = &bytes[..bytes.len().min(4096) & !1];
    if head.len() < 4 || !bytes.len().is_multiple_of(2) {
        return None;
    }
    let zeros = |odd: usize| {
        head.iter()
            .skip(odd)
            .step_by(2)
            .filter(|b| **b == 0)
            .count()
    };
    let (even, odd) = (zeros(0), zeros(1));
    // Zeros on the other side are rare: 一 is U+4E00.
    let many = |zeros: usize, others: usize| zeros * 100 >= head.len() / 2 && zeros > others * 3;
    let encoding = if many(odd, even) {
        UTF_16LE
    } else if many(even, odd) {
        UTF_16BE
    } else {
        return None;
    };
    // Random binary data passes the count now and then, but not the decoder.
    let (text, undecodable) = decode_as(head, encoding);
    let strange = text
        .chars()
        .filter(|c| c.is_control() && !c.is_whitespace())
        .count();
    (undecodable <= 1 && strange * 50 <= text.len()).then_some(encoding)
}

/// Whether the bytes are no text in any of the encodings: zeros, or too many control characters.
fn is_binary(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(64 << 10)];
    if head.contains(&0) {
        return true;
    }
    let control =
        |b: &&u8| **b < 0x20 && !matches!(**b, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b | 0x08);
    head.iter().filter(control).count() * 50 > head.len()
}

fn unify_line_ends(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.contains('\r') {
        Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n"))
    } else {
        text
    }
}
