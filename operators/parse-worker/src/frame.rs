//! What goes over the socket between the pool and a worker.
//!
//! A frame is two lengths (little endian: `u32` of the head, `u64` of the body), the head in JSON, the body as it is. The
//! big things, a document's bytes and its text, are bodies, so they are never escaped or copied piece by piece.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use va_parse::{Document, LimitKind, Limits, ParseError};

/// Longest head: what a reader takes on from the other side. A document with a few million blocks has more.
const HEAD_BYTES_MAX: u32 = 64 << 20;
pub(crate) const LENGTHS: usize = 12;
/// What a worker says first, once its limits hold.
pub(crate) const READY: u8 = b'!';

/// Pool to worker; the body is the file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub name: String,
    pub content_type: Option<String>,
    pub limits: Limits,
}

/// Worker to pool; the body is the text, which the document in the head lacks.
pub(crate) type Reply = Result<Document, ParseError>;

/// Bodies up to here are copied behind their head, so that the frame is one write and wakes its reader once.
const SMALL_BODY: usize = 128 << 10;

/// A frame in two pieces, to be written one after the other; the second is empty or the body.
pub(crate) fn frame_of<'a>(
    head: &impl Serialize,
    body: &'a [u8],
) -> io::Result<(Vec<u8>, &'a [u8])> {
    let mut first = head_of(head, body)?;
    if body.len() > SMALL_BODY {
        return Ok((first, body));
    }
    first.extend_from_slice(body);
    Ok((first, &[]))
}

/// Lengths and head of a frame.
fn head_of(head: &impl Serialize, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; LENGTHS];
    serde_json::to_writer(&mut frame, head)?;
    let length = u32::try_from(frame.len() - LENGTHS)
        .ok()
        .filter(|length| *length <= HEAD_BYTES_MAX)
        .ok_or_else(|| io::Error::other("the head of a frame is too long"))?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame[4..LENGTHS].copy_from_slice(&(body.len() as u64).to_le_bytes());
    Ok(frame)
}

/// Lengths of head and body, when they are within bounds.
pub(crate) fn lengths_of(bytes: [u8; LENGTHS], body_max: u64) -> io::Result<(usize, usize)> {
    let [a, b, c, d, body @ ..] = bytes;
    let (head, body) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(body));
    if head > HEAD_BYTES_MAX || body > body_max {
        return Err(io::Error::other(format!(
            "a frame of {head} + {body} bytes, which is too long"
        )));
    }
    Ok((head as usize, body as usize))
}

/// Reads a frame; `None` at the end of the stream.
pub(crate) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<(T, Vec<u8>)>> {
    let mut lengths = [0; LENGTHS];
    match from.read_exact(&mut lengths) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let (head, body) = lengths_of(lengths, u64::MAX)?;
    let mut bytes = vec![0; head];
    from.read_exact(&mut bytes)?;
    let head = serde_json::from_slice(&bytes)?;
    let mut bytes = vec![0; body];
    from.read_exact(&mut bytes)?;
    Ok(Some((head, bytes)))
}

/// Writes a reply.
pub(crate) fn write_reply(to: &mut impl Write, mut reply: Reply) -> io::Result<()> {
    let text = match &mut reply {
        Ok(document) => std::mem::take(&mut document.text),
        Err(_) => String::new(),
    };
    let Ok((first, rest)) = frame_of(&reply, text.as_bytes()) else {
        let error: Reply = Err(ParseError::TooLarge {
            kind: LimitKind::StructureBytes,
            limit: HEAD_BYTES_MAX as usize,
        });
        return to.write_all(&head_of(&error, &[])?);
    };
    to.write_all(&first)?;
    to.write_all(rest)
}

/// Puts a reply together again.
pub(crate) fn reply_of(head: &[u8], body: Vec<u8>) -> io::Result<Reply> {
    let mut reply: Reply = serde_json::from_slice(head)?;
    if let Ok(document) = &mut reply {
        document.text = String::from_utf8(body).map_err(io::Error::other)?;
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were() {
        let source = va_parse::Input {
            name: "冻结.md",
            content_type: None,
            bytes: "# 冻结\n\n选择“视图”。\n\n| a | b |\n|---|---|\n| 1 | 2 |\n".as_bytes(),
        };
        let good = va_parse::parse(&source, &Limits::default());
        let bad = va_parse::parse(
            &va_parse::Input {
                bytes: b"",
                ..source
            },
            &Limits::default(),
        );
        assert!(good.is_ok() && bad.is_err());
        for reply in [good, bad] {
            let mut wire = Vec::new();
            write_reply(&mut wire, reply.clone()).expect("written");
            let (lengths, rest) = wire.split_at(LENGTHS);
            let lengths = lengths.try_into().expect("lengths");
            let (head, body) = lengths_of(lengths, u64::MAX).expect("within bounds");
            assert_eq!(rest.len(), head + body);
            let again = reply_of(&rest[..head], rest[head..].to_vec()).expect("a reply");
            assert_eq!(again, reply);
        }
        let request = Request {
            name: "a".into(),
            content_type: Some("text/plain".into()),
            limits: Limits::default(),
        };
        let (mut wire, rest) = frame_of(&request, b"bytes").expect("a frame");
        wire.extend(rest);
        let mut from = wire.as_slice();
        let (again, body): (Request, _) = read(&mut from).expect("read").expect("a frame");
        assert_eq!((again.name, body), (request.name, b"bytes".to_vec()));
        assert!(read::<Request>(&mut from).expect("the end").is_none());
        assert!(lengths_of([255; LENGTHS], 1 << 20).is_err());
    }
}
