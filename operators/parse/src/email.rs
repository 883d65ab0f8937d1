//! E-mail (RFC 5322 with MIME): the subject as heading, who and when, the body, and attachments that can be parsed.
//!
//! `mail-parser` undoes MIME; bodies in HTML and attachments go through this crate's own parsers.

use mail_parser::{Address, Message, MessageParser, MessagePart, MimeHeaders, PartType};

use crate::builder::{Builder, counted};
use crate::document::Format;
use crate::error::{LimitKind, ParseError};
use crate::input::{Input, Limits};
use crate::parse::parse_nested;
use crate::{html, text};

pub(crate) fn parse(
    bytes: &[u8],
    limits: &Limits,
    depth: usize,
    builder: &mut Builder,
) -> Result<(), ParseError> {
    let Some(message) = MessageParser::default().parse(bytes) else {
        return Err(ParseError::corrupt(Format::Email, "no header was found"));
    };
    builder.set_title(message.subject().unwrap_or_default());
    builder.heading(1, message.subject().unwrap_or_default())?;
    builder.paragraph(&envelope(&message))?;
    for part in message.text_bodies() {
        match &part.body {
            PartType::Text(body) => text::parse("", &unquote_flowed(body), builder)?,
            PartType::Html(body) => {
                builder.set_level_base(1);
                html::parse(body, builder)?;
                builder.set_level_base(0);
            }
            _ => {}
        }
    }
    for part in message.attachments() {
        attachment(part, limits, depth, builder)?;
    }
    Ok(())
}

fn envelope(message: &Message<'_>) -> String {
    let mut lines = String::new();
    let addresses = [
        ("From", message.from()),
        ("To", message.to()),
        ("Cc", message.cc()),
    ];
    for (label, address) in addresses {
        if let Some(address) = address {
            lines.push_str(&format!("{label}: {}\n", address_list(address)));
        }
    }
    if let Some(date) = message.date() {
        lines.push_str(&format!("Date: {}\n", date.to_rfc3339()));
    }
    lines
}

fn address_list(address: &Address<'_>) -> String {
    let one = |addr: &mail_parser::Addr<'_>| match (addr.name(), addr.address()) {
        (Some(name), Some(address)) => format!("{name} <{address}>"),
        (Some(text), None) | (None, Some(text)) => text.to_owned(),
        (None, None) => String::new(),
    };
    address
        .iter()
        .map(one)
        .filter(|one| !one.is_empty())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Line ends as everywhere else, the signature's separator as a paragraph break.
fn unquote_flowed(body: &str) -> String {
    body.replace("\r\n", "\n").replace("\n-- \n", "\n\n")
}

fn attachment(
    part: &MessagePart<'_>,
    limits: &Limits,
    depth: usize,
    builder: &mut Builder,
) -> Result<(), ParseError> {
    let media_type = part.content_type().map(|content| match content.subtype() {
        Some(subtype) => format!("{}/{subtype}", content.ctype()),
        None => content.ctype().to_owned(),
    });
    let is_message = matches!(part.body, PartType::Message(_));
    let name = part
        .attachment_name()
        .unwrap_or(if is_message { "message.eml" } else { "unnamed" });
    let bytes = match &part.body {
        PartType::Message(message) => message.raw_message(),
        _ => part.contents(),
    };
    let input = Input {
        name,
        // Parts are handed over in UTF-8 whatever their header says, so the charset must not be passed on.
        content_type: media_type.as_deref(),
        bytes,
    };
    match parse_nested(&input, limits, depth + 1) {
        Ok(document) => {
            builder.heading(2, name)?;
            builder.append_document(&document, 2)
        }
        // The whole e-mail is over the bound then, not only this part.
        Err(
            error @ ParseError::TooLarge {
                kind: LimitKind::TextBytes | LimitKind::UnpackedBytes,
                ..
            },
        ) => Err(error),
        Err(error) => {
            let size = counted(bytes.len(), "byte", "bytes");
            builder.warn(format!(
                "Attachment `{name}` ({size}) was not read: {error}."
            ));
            Ok(())
        }
    }
}
