//! Finds the calls of functions in a reply's text.
//!
//! Models write a call as JSON with `name` and `arguments`, between `<tool_call>` tags; small ones leave the tags out. What
//! looks like a call and is none, or is of a function that was not offered, stays what it is: text.

use serde_json::Value;

use super::output::beginning;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// A piece of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text to show.
    Text(String),
    /// A call of a function that was offered.
    Call {
        /// The function.
        name: String,
        /// JSON, as the model wrote it.
        arguments: String,
    },
}

/// Reads the text of one reply.
#[derive(Debug)]
pub(super) struct Calls {
    /// The functions that were offered; without any, all is text.
    names: Vec<String>,
    held: String,
    /// Whether only white space has come so far.
    is_beginning: bool,
    has_called: bool,
}

impl Calls {
    /// `tools` in OpenAI's form.
    pub(super) fn new(tools: &[Value]) -> Self {
        let names = tools
            .iter()
            .filter_map(|tool| tool["function"]["name"].as_str());
        Self {
            names: names.map(ToOwned::to_owned).collect(),
            held: String::new(),
            is_beginning: true,
            has_called: false,
        }
    }

    /// Adds text; the pieces that are complete.
    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if self.names.is_empty() {
            show(text, &mut pieces);
            return pieces;
        }
        self.held.push_str(text);
        loop {
            // A reply that begins as JSON may be a call as a whole; its end tells.
            let bare = self.is_beginning
                && matches!(self.held.trim_start().chars().next(), None | Some('{'));
            if bare {
                return pieces;
            }
            self.is_beginning = false;
            // White space before a call belongs to the call, so it waits as well.
            let Some(open) = self.held.find(OPEN) else {
                let keep = beginning(&self.held, OPEN);
                self.show_up_to(self.held.len() - keep, &mut pieces);
                return pieces;
            };
            let Some(close) = self.held[open..].find(CLOSE) else {
                self.show_up_to(open, &mut pieces);
                return pieces;
            };
            let end = open + close + CLOSE.len();
            let rest = self.held.split_off(end);
            let held = std::mem::replace(&mut self.held, rest);
            let inside = &held[open + OPEN.len()..open + close];
            match self.call(inside) {
                Some(call) => {
                    // The line that a call stands on is not text.
                    show(held[..open].trim_end(), &mut pieces);
                    pieces.push(call);
                    self.has_called = true;
                }
                None => show(&held, &mut pieces),
            }
        }
    }

    /// The reply is over: what is left.
    pub(super) fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let held = std::mem::take(&mut self.held);
        // A model that has said its call may leave out the end of the frame.
        let inside = held.trim_start();
        match self.call(inside.strip_prefix(OPEN).unwrap_or(inside)) {
            Some(call) => pieces.push(call),
            None if self.has_called && inside.is_empty() => {}
            None => show(&held, &mut pieces),
        }
        pieces
    }

    /// Shows what is held, up to there and without white space at the end, and goes on holding the rest.
    fn show_up_to(&mut self, end: usize, pieces: &mut Vec<Piece>) {
        let end = self.held[..end].trim_end().len();
        let rest = self.held.split_off(end);
        show(&std::mem::replace(&mut self.held, rest), pieces);
    }

    fn call(&self, text: &str) -> Option<Piece> {
        let call: Value = serde_json::from_str(text.trim()).ok()?;
        let name = call["name"].as_str()?;
        let arguments = call.get("arguments").filter(|value| value.is_object())?;
        self.names
            .iter()
            .any(|known| known == name)
            .then(|| Piece::Call {
                name: name.to_owned(),
                arguments: arguments.to_string(),
            })
    }
}

fn show(text: &str, pieces: &mut Vec<Piece>) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The text and the calls of a reply that comes in pieces of each size.
    fn check(reply: &str, text: &str, calls: &[(&str, &str)]) {
        let tools = [json!({"type": "function", "function": {"name": "find"}})];
        for size in 1..=reply.len() {
            let mut reader = Calls::new(&tools);
            let mut pieces = Vec::new();
            let letters: Vec<char> = reply.chars().collect();
            for piece in letters.chunks(size) {
                pieces.extend(reader.push(&piece.iter().collect::<String>()));
            }
            pieces.extend(reader.finish());
            let mut shown = String::new();
            let mut found = Vec::new();
            for piece in &pieces {
                match piece {
                    Piece::Text(text) => shown.push_str(text),
                    Piece::Call { name, arguments } => {
                        found.push((name.as_str(), arguments.as_str()))
                    }
                }
            }
            assert_eq!((shown.as_str(), found.as_slice()), (text, calls), "{size}");
        }
    }

    #[test]
    fn calls_are_found_and_the_rest_is_text() {
        let call = "<tool_call>\n{\"name\": \"find\", \"arguments\": {\"q\": \"a\"}}\n</tool_call>";
        let found = ("find", "{\"q\":\"a\"}");
        check(call, "", &[found]);
        check(&format!("{call}\n{call}"), "", &[found, found]);
        check(&format!("好 <b>.{call}"), "好 <b>.", &[found]);
        check(call.trim_end_matches(CLOSE), "", &[found]);
        check(
            "{\"name\": \"find\", \"arguments\": {}}",
            "",
            &[("find", "{}")],
        );
        for text in [
            "{\"name\": \"other\", \"arguments\": {}}",
            "<tool_call>nothing</tool_call> and more",
            "<tool_call>{\"name\": \"find\"",
            "plain <tool",
        ] {
            check(text, text, &[]);
        }
    }
}
