//! Manual pages in roff (`man` and `mdoc` macros) to blocks: sections as headings, running text joined, examples kept.
//!
//! Not a typesetter: requests that only concern looks are dropped, and macros that a page defines for itself too.

use crate::builder::Builder;
use crate::document::BlockKind;
use crate::error::ParseError;
use crate::html::is_cjk;

pub(crate) fn parse(text: &str, builder: &mut Builder) -> Result<(), ParseError> {
    let mut page = Page {
        builder,
        line: String::new(),
        item: None,
        code: false,
        heading: None,
        tag: false,
    };
    let mut skip_until: Option<&str> = None;
    for line in text.lines() {
        if let Some(end) = skip_until {
            if line.trim_end() == end {
                skip_until = None;
            }
            continue;
        }
        match line.strip_prefix(['.', '\'']) {
            Some(request) => {
                let request = request.trim_start();
                // Definitions and conditions in several lines; what they would do is not known here.
                if request.starts_with("de ")
                    || request.starts_with("de1 ")
                    || request.starts_with("ig")
                {
                    skip_until = Some("..");
                } else if !request.starts_with("\\\"") {
                    page.request(request)?;
                }
            }
            None => page.text(line)?,
        }
    }
    page.flush()
}

struct Page<'a> {
    builder: &'a mut Builder,
    line: String,
    /// The tag of the paragraph being collected, for `.TP` and `.IP`.
    item: Option<String>,
    code: bool,
    /// A heading macro without text takes the next line.
    heading: Option<u8>,
    /// The next line is the tag of a `.TP`.
    tag: bool,
}

impl Page<'_> {
    fn request(&mut self, request: &str) -> Result<(), ParseError> {
        let (name, rest) = request
            .split_once(char::is_whitespace)
            .unwrap_or((request, ""));
        let args = arguments(rest);
        match name {
            "TH" | "Dt" => {
                let section = args.get(1).map(|s| format!("({s})")).unwrap_or_default();
                self.builder.set_title(&format!(
                    "{}{section}",
                    args.first().map_or("", String::as_str)
                ));
            }
            "SH" | "Sh" | "SS" | "Ss" => {
                self.flush()?;
                let level = if name.eq_ignore_ascii_case("SH") {
                    1
                } else {
                    2
                };
                if args.is_empty() {
                    self.heading = Some(level);
                } else {
                    self.builder.heading(level, &args.join(" "))?;
                }
            }
            "PP" | "P" | "LP" | "Pp" | "sp" | "HP" | "RS" | "RE" | "br" | "El" | "Bl"
                if !self.code =>
            {
                self.flush()?
            }
            "PP" | "P" | "LP" | "sp" => self.line.push('\n'),
            "TP" | "TQ" => {
                self.flush()?;
                self.tag = true;
            }
            "IP" | "It" => {
                self.flush()?;
                self.item = args.first().filter(|tag| !tag.is_empty()).cloned();
            }
            "nf" | "EX" | "Bd" => {
                self.flush()?;
                self.code = true;
            }
            "fi" | "EE" | "Ed" => self.flush()?,
            "B" | "I" | "SM" | "SB" | "R" => self.text_of(&args.join(" "))?,
            "BR" | "BI" | "IR" | "IB" | "RB" | "RI" => self.text_of(&args.concat())?,
            // `mdoc` names things by macros of their own; their arguments are the text.
            "Nm" | "Nd" | "Fl" | "Ar" | "Op" | "Pa" | "Xr" | "Cm" | "Em" | "Sy" | "Li" | "Dq"
            | "Sq" | "Va" | "Ev" => {
                self.text_of(&args.join(" "))?;
            }
            "UR" | "MT" => self.text_of(&args.join(" "))?,
            _ => {}
        }
        Ok(())
    }

    fn text(&mut self, line: &str) -> Result<(), ParseError> {
        let text = unescape(line);
        if line.trim().is_empty() && !self.code {
            return self.flush();
        }
        self.text_of(&text)
    }

    /// Text whose escapes are undone already.
    fn text_of(&mut self, text: &str) -> Result<(), ParseError> {
        if let Some(level) = self.heading.take() {
            return self.builder.heading(level, text);
        }
        if std::mem::take(&mut self.tag) {
            self.item = Some(text.trim().to_owned());
            return Ok(());
        }
        if self.code {
            self.line.push_str(text);
            self.line.push('\n');
            return Ok(());
        }
        let text = text.trim();
        let cjk = self.line.chars().next_back().is_some_and(is_cjk)
            && text.chars().next().is_some_and(is_cjk);
        if !self.line.is_empty() && !cjk {
            self.line.push(' ');
        }
        self.line.push_str(text);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ParseError> {
        let text = std::mem::take(&mut self.line);
        self.tag = false;
        if std::mem::take(&mut self.code) {
            return self.builder.code(&text);
        }
        match self.item.take() {
            Some(tag) => self
                .builder
                .block(BlockKind::ListItem, &format!("{tag}  {}", text.trim())),
            None => self.builder.paragraph(&text),
        }
    }
}

/// Words of a request, with escapes undone; quotes hold words together and a doubled quote is one.
fn arguments(rest: &str) -> Vec<String> {
    let mut args = Vec::new();
    let mut chars = rest.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let Some(first) = chars.peek().copied() else {
            return args;
        };
        let quoted = first == '"';
        if quoted {
            chars.next();
        }
        let mut arg = String::new();
        while let Some(c) = chars.next() {
            if c == '\\' {
                arg.push(c);
                arg.extend(chars.next());
            } else if quoted && c == '"' {
                if chars.next_if_eq(&'"').is_none() {
                    break;
                }
                arg.push('"');
            } else if !quoted && c.is_whitespace() {
                break;
            } else {
                arg.push(c);
            }
        }
        if arg.starts_with("\\\"") {
            return args;
        }
        args.push(unescape(&arg));
    }
}

/// Undoes roff's escapes: fonts and sizes vanish, special characters become themselves.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('f' | 'F' | '*' | 'n' | 'm' | 'M' | 'k' | 'Y' | 'g') => {
                name(&mut chars);
            }
            Some('s') => {
                let rest = chars.as_str();
                let sign = rest.len() - rest.trim_start_matches(['+', '-']).len();
                let digits = rest[sign..]
                    .bytes()
                    .take(2)
                    .take_while(u8::is_ascii_digit)
                    .count();
                chars = rest[sign + digits..].chars();
            }
            Some('(') => {
                let special: String = chars.by_ref().take(2).collect();
                out.push_str(character(&special));
            }
            Some('[') => {
                let special: String = chars.by_ref().take_while(|c| *c != ']').collect();
                let code = special
                    .strip_prefix('u')
                    .and_then(|hex| u32::from_str_radix(hex, 16).ok());
                match code.and_then(char::from_u32) {
                    Some(c) => out.push(c),
                    None => out.push_str(character(&special)),
                }
            }
            Some(
                'h' | 'v' | 'w' | 'o' | 'D' | 'l' | 'L' | 'x' | 'b' | 'N' | 'Z' | 'R' | 'X' | 'A'
                | 'B' | 'C' | 'H' | 'S',
            ) => {
                // An argument between two equal delimiters.
                if let Some(delimiter) = chars.next() {
                    chars
                        .by_ref()
                        .take_while(|c| *c != delimiter)
                        .for_each(drop);
                }
            }
            Some('"') => break,
            Some('e' | '\\' | 'E') => out.push('\\'),
            Some(' ' | '0' | '~' | 't') => out.push(' '),
            Some('-') => out.push('-'),
            Some('\'') => out.push('\''),
            Some('`') => out.push('`'),
            Some('.') => out.push('.'),
            Some(
                '&' | '|' | '^' | '%' | ':' | ')' | '/' | ',' | 'c' | 'd' | 'u' | 'r' | 'p' | 'z'
                | '{' | '}' | '!' | '?',
            )
            | None => {}
            Some(other) => out.push(other),
        }
    }
    out
}

/// A name after an escape: one character, `(` and two, or anything in brackets.
fn name(chars: &mut std::str::Chars<'_>) {
    match chars.next() {
        Some('(') => chars.by_ref().take(2).for_each(drop),
        Some('[') => chars.by_ref().take_while(|c| *c != ']').for_each(drop),
        _ => {}
    }
}

/// Special characters that manual pages use, by their roff names.
fn character(name: &str) -> &str {
    match name {
        "em" => "—",
        "en" => "–",
        "hy" | "mi" | "-" => "-",
        "bu" => "•",
        "aq" | "cq" | "oq" => "'",
        "dq" => "\"",
        "lq" => "“",
        "rq" => "”",
        "co" => "©",
        "rg" => "®",
        "tm" => "™",
        "ga" => "`",
        "ha" => "^",
        "ti" => "~",
        "rs" => "\\",
        "ba" | "or" => "|",
        "lB" => "[",
        "rB" => "]",
        "lC" => "{",
        "rC" => "}",
        "la" => "<",
        "ra" => ">",
        "<=" => "≤",
        ">=" => "≥",
        "!=" => "≠",
        "->" => "→",
        "<-" => "←",
        "mu" => "×",
        "+-" => "±",
        "de" => "°",
        "sc" => "§",
        "ss" => "ß",
        ":a" => "ä",
        ":o" => "ö",
        ":u" => "ü",
        "'e" => "é",
        "at" => "@",
        "sh" => "#",
        "Do" => "$",
        "sl" => "/",
        _ => "",
    }
}
