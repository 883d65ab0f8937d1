//! What of a reply may be shown already: whole characters, and nothing that a stop text may begin with.

/// The end of a reply, as far as it is held back.
#[derive(Debug, Default)]
pub(super) struct Output {
    stops: Vec<String>,
    /// The beginning of a character.
    bytes: Vec<u8>,
    /// Text that may be the beginning of a stop text.
    held: String,
}

/// What came of some bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    pub text: String,
    /// The stop text that ended the reply.
    pub stop: Option<String>,
}

impl Output {
    pub(super) fn new(stops: &[String]) -> Self {
        Self {
            stops: stops
                .iter()
                .filter(|stop| !stop.is_empty())
                .cloned()
                .collect(),
            ..Self::default()
        }
    }

    /// Adds bytes; what can be shown now.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Shown {
        self.bytes.extend_from_slice(bytes);
        let mut done = 0;
        loop {
            match std::str::from_utf8(&self.bytes[done..]) {
                Ok(text) => {
                    self.held.push_str(text);
                    done = self.bytes.len();
                    break;
                }
                Err(error) => {
                    let valid = &self.bytes[done..done + error.valid_up_to()];
                    self.held.push_str(&String::from_utf8_lossy(valid));
                    done += valid.len();
                    let Some(wrong) = error.error_len() else {
                        break;
                    };
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    done += wrong;
                }
            }
        }
        self.bytes.drain(..done);
        self.release()
    }

    /// The reply is over: all that is left.
    pub(super) fn finish(&mut self) -> Shown {
        if !self.bytes.is_empty() {
            // A character that was not completed.
            self.bytes.clear();
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        let mut shown = self.release();
        if shown.stop.is_none() {
            shown.text.push_str(&std::mem::take(&mut self.held));
        }
        shown
    }

    fn release(&mut self) -> Shown {
        let found = self
            .stops
            .iter()
            .filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)))
            .min_by_key(|(at, stop)| (*at, std::cmp::Reverse(stop.len())));
        if let Some((at, stop)) = found {
            let stop = Some(stop.clone());
            self.held.truncate(at);
            return Shown {
                text: std::mem::take(&mut self.held),
                stop,
            };
        }
        let keep = self.stops.iter().map(|stop| beginning(&self.held, stop));
        let keep = keep.max().unwrap_or_default();
        let rest = self.held.split_off(self.held.len() - keep);
        Shown {
            text: std::mem::replace(&mut self.held, rest),
            stop: None,
        }
    }
}

/// How many bytes at the end of `text` may be the beginning of `stop`.
pub(super) fn beginning(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(at, _)| at)
        .filter(|at| *at > 0 && text.ends_with(&stop[..*at]))
        .max()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte by byte, whatever the cuts: the pieces are whole characters and make up what is expected.
    fn check(stops: &[&str], input: &[u8], expected: &str, stop: Option<&str>) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        for size in 1..=input.len() {
            let mut output = Output::new(&stops);
            let mut text = String::new();
            let mut found = None;
            for piece in input.chunks(size) {
                let shown = output.push(piece);
                text.push_str(&shown.text);
                if shown.stop.is_some() {
                    found = shown.stop;
                    break;
                }
            }
            if found.is_none() {
                let shown = output.finish();
                text.push_str(&shown.text);
                found = shown.stop;
            }
            assert_eq!(
                (text.as_str(), found.as_deref()),
                (expected, stop),
                "{size}"
            );
        }
    }

    #[test]
    fn characters_are_whole() {
        check(&[], "a你😀é".as_bytes(), "a你😀é", None);
        check(&[], b"a\xffb\xe4\xbd", "a\u{fffd}b\u{fffd}", None);
    }

    #[test]
    fn stop_texts_do_not_leak() {
        check(&["</s>"], b"one </s> two", "one ", Some("</s>"));
        check(&["</s>"], b"one </ two <", "one </ two <", None);
        check(&["停止", "\n\n"], "好停止了".as_bytes(), "好", Some("停止"));
        check(&["aab"], b"aaab", "a", Some("aab"));
        check(&[""], b"all", "all", None);
    }
}
