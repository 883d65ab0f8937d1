//! Server-sent events as providers really send them.
//!
//! Lines end with LF, CRLF or CR, also across chunks of the network; comments (heartbeats) are passed over; the last event
//! may lack its empty line. A line of bare JSON, with which some servers report a fault inside a stream, counts as data.
//! A line is bounded, so that a server that never ends one cannot fill the memory.

/// The longest line and the longest event, in bytes.
pub const EVENT_BYTES_MAX: usize = 16 << 20;

/// An event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// Its type, if it has one.
    pub event: Option<String>,
    pub data: String,
}

/// Why a stream cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    #[error("an event is longer than {EVENT_BYTES_MAX} bytes")]
    TooLong,
    #[error("an event is not UTF-8")]
    Encoding,
}

/// Cuts a stream of bytes into events.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// The last byte was a CR: an LF that follows belongs to it.
    after_cr: bool,
    frame: Frame,
    has_data: bool,
    begun: bool,
}

impl SseParser {
    /// Reads on, and adds the events that end here.
    pub fn push(&mut self, bytes: &[u8], frames: &mut Vec<Frame>) -> Result<(), SseError> {
        let mut rest = bytes;
        if self.after_cr && !rest.is_empty() {
            self.after_cr = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            self.extend(&rest[..end])?;
            self.end_line(frames)?;
            let cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if cr {
                if rest.is_empty() {
                    self.after_cr = true;
                } else {
                    rest = rest.strip_prefix(b"\n").unwrap_or(rest);
                }
            }
        }
        self.extend(rest)
    }

    /// What is left when the stream has ended.
    pub fn finish(mut self) -> Result<Option<Frame>, SseError> {
        let mut frames = Vec::new();
        if !self.line.is_empty() {
            self.end_line(&mut frames)?;
        }
        self.end_event(&mut frames);
        Ok(frames.pop())
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        if self.line.len() + self.frame.data.len() + bytes.len() > EVENT_BYTES_MAX {
            return Err(SseError::TooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self, frames: &mut Vec<Frame>) -> Result<(), SseError> {
        let line = std::mem::take(&mut self.line);
        let mut line = std::str::from_utf8(&line).map_err(|_| SseError::Encoding)?;
        if !std::mem::replace(&mut self.begun, true) {
            line = line.trim_start_matches('\u{feff}');
        }
        if line.is_empty() {
            self.end_event(frames);
            return Ok(());
        }
        let (field, value) = if line.starts_with('{') {
            ("data", line)
        } else {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            (field, value.strip_prefix(' ').unwrap_or(value))
        };
        match field {
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.frame.data.push('\n');
                }
                self.frame.data.push_str(value);
            }
            "event" => self.frame.event = Some(value.to_owned()),
            // Comments, ids, and times for reconnecting, which nobody does here.
            _ => {}
        }
        Ok(())
    }

    fn end_event(&mut self, frames: &mut Vec<Frame>) {
        let frame = std::mem::take(&mut self.frame);
        if std::mem::replace(&mut self.has_data, false) {
            frames.push(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a stream that comes in pieces of `size`, each as `type|data`.
    fn events(stream: &str, size: usize) -> Vec<String> {
        let mut parser = SseParser::default();
        let mut frames = Vec::new();
        for piece in stream.as_bytes().chunks(size) {
            parser.push(piece, &mut frames).expect("readable");
        }
        frames.extend(parser.finish().expect("readable"));
        frames
            .iter()
            .map(|frame| format!("{}|{}", frame.event.as_deref().unwrap_or(""), frame.data))
            .collect()
    }

    #[test]
    fn events_are_the_same_wherever_the_stream_is_cut() {
        for (stream, expected) in [
            ("data: a\n\ndata: b\n\n", vec!["|a", "|b"]),
            ("data: a\r\n\r\ndata: b\r\n\r\n", vec!["|a", "|b"]),
            ("data: a\r\rdata: b\r\r", vec!["|a", "|b"]),
            (": OPENROUTER PROCESSING\n\n: x\ndata: a\n\n", vec!["|a"]),
            (
                "event: ping\ndata: {}\n\nevent: end\n\ndata:x\n\n",
                vec!["ping|{}", "|x"],
            ),
            ("data: one\ndata: two\n\n", vec!["|one\ntwo"]),
            ("\u{feff}data: 冻结\n\n", vec!["|冻结"]),
            // No empty line behind the last event, not even an end of line.
            ("data: a\n\ndata: [DONE]", vec!["|a", "|[DONE]"]),
            (
                "data: a\n\n{\"error\":{\"message\":\"overloaded\"}}\n",
                vec!["|a", "|{\"error\":{\"message\":\"overloaded\"}}"],
            ),
            ("id: 7\nretry: 10\ndata\n\n", vec!["|"]),
            ("", vec![]),
        ] {
            for size in [1, 2, 3, 5, 1_000] {
                assert_eq!(events(stream, size), expected, "{stream:?} by {size}");
            }
        }
    }

    #[test]
    fn a_line_without_end_and_bytes_that_are_no_text_are_refused() {
        let mut parser = SseParser::default();
        let mut frames = Vec::new();
        let piece = vec![b'x'; 1 << 20];
        let mut pushed = 0;
        let error = loop {
            if let Err(error) = parser.push(&piece, &mut frames) {
                break error;
            }
            pushed += piece.len();
            assert!(pushed <= EVENT_BYTES_MAX);
        };
        assert_eq!(error, SseError::TooLong);

        let mut parser = SseParser::default();
        assert_eq!(
            parser.push(b"data: \xff\xfe\n", &mut frames),
            Err(SseError::Encoding)
        );
    }
}
