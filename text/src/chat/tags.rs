//! Provides the tags of a template's source and the tokens in them.

use std::ops::Range;

/// Where a tag lies in the source, and what is in it.
#[derive(Debug)]
pub(super) struct Tag {
    /// From its `{` to its last `}`.
    pub bytes: Range<usize>,
    /// `{% .. %}`, not `{{ .. }}`.
    pub is_block: bool,
    /// What lies between the delimiters and their `-` or `+`.
    pub tokens: Vec<Token>,
}

/// One word, number, text or operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub kind: Kind,
    pub bytes: Range<usize>,
    /// Brackets of the same tag around it; of a bracket, around what is outside of it.
    pub depth: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    Number,
    Text,
    Operator,
}

/// Reads the tags of a template one after another; comments and `{% raw %}` are passed over. A tag without an end is an
/// error, with where it begins.
pub(super) struct Tags<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Tags<'a> {
    pub fn of(source: &'a str) -> Self {
        Self { source, at: 0 }
    }

    fn rest(&self) -> &'a str {
        self.source.get(self.at..).unwrap_or_default()
    }

    /// Passes over everything up to and with `needle`.
    fn skip_past(&mut self, needle: &str) -> Option<()> {
        self.at += self.rest().find(needle)? + needle.len();
        Some(())
    }

    /// Reads the tag at `start`; what is raw is passed over.
    fn read(&mut self, start: usize, is_block: bool) -> Option<Option<Tag>> {
        let (tokens, end) = tokens(self.source, start + 2, is_block)?;
        self.at = end;
        let word = tokens
            .first()
            .and_then(|token| self.source.get(token.bytes.clone()));
        if is_block && word == Some("raw") {
            self.skip_raw()?;
            return Some(None);
        }
        let bytes = start..end;
        Some(Some(Tag {
            bytes,
            is_block,
            tokens,
        }))
    }

    fn skip_raw(&mut self) -> Option<()> {
        loop {
            self.skip_past("{%")?;
            let word = self.rest().trim_start_matches(['-', '+']).trim_start();
            if word.starts_with("endraw") {
                return self.skip_past("%}");
            }
        }
    }
}

impl Iterator for Tags<'_> {
    type Item = Result<Tag, usize>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.at += self.rest().find('{')?;
            let start = self.at;
            let read = match self.rest().get(..2) {
                Some("{#") => self.skip_past("#}").map(|()| None),
                Some("{%") => self.read(start, true),
                Some("{{") => self.read(start, false),
                _ => {
                    self.at += 1;
                    continue;
                }
            };
            match read {
                Some(None) => {}
                Some(Some(tag)) => return Some(Ok(tag)),
                None => {
                    self.at = self.source.len();
                    return Some(Err(start));
                }
            }
        }
    }
}

/// Tokens from `at` to the end of the tag, and where that is; `None` where it has no end.
fn tokens(source: &str, mut at: usize, is_block: bool) -> Option<(Vec<Token>, usize)> {
    let end = if is_block { "%}" } else { "}}" };
    let mut tokens = Vec::new();
    let mut depth = 0usize;
    if source.get(at..)?.starts_with(['-', '+']) {
        at += 1;
    }
    loop {
        let rest = source.get(at..)?;
        let character = rest.chars().next()?;
        if character.is_whitespace() {
            at += character.len_utf8();
            continue;
        }
        if depth == 0 {
            let close = rest.strip_prefix(['-', '+']).unwrap_or(rest);
            if close.starts_with(end) {
                return Some((tokens, at + rest.len() - close.len() + end.len()));
            }
        }
        let (kind, length) = token(rest, character)?;
        if matches!(character, ')' | ']' | '}') {
            depth = depth.saturating_sub(1);
        }
        tokens.push(Token {
            kind,
            bytes: at..at + length,
            depth,
        });
        if matches!(character, '(' | '[' | '{') {
            depth += 1;
        }
        at += length;
    }
}

fn token(rest: &str, character: char) -> Option<(Kind, usize)> {
    let part_of_word = |c: char| c == '_' || c.is_alphanumeric();
    let until = |end: fn(char) -> bool| rest.find(end).unwrap_or(rest.len());
    match character {
        '\'' | '"' => Some((Kind::Text, text_length(rest, character)?)),
        '0'..='9' => Some((Kind::Number, number_length(rest))),
        c if part_of_word(c) => {
            let length = until(|c| c != '_' && !c.is_alphanumeric());
            Some((Kind::Word, length))
        }
        other => {
            let two = rest.get(..2).unwrap_or_default();
            let length = match two {
                "**" | "//" | "==" | "!=" | "<=" | ">=" => 2,
                _ => other.len_utf8(),
            };
            Some((Kind::Operator, length))
        }
    }
}

fn text_length(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + quote.len_utf8()),
            _ => {}
        }
    }
    None
}

/// Length of a number: digits with `_`, a fraction where a digit follows the point, an exponent.
fn number_length(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let at = |index: usize| bytes.get(index).copied().unwrap_or_default();
    let mut length = 0;
    loop {
        let (here, next) = (at(length), at(length + 1));
        let goes_on = match here {
            b'.' => next.is_ascii_digit(),
            b'+' | b'-' => {
                length > 0 && matches!(at(length - 1), b'e' | b'E') && next.is_ascii_digit()
            }
            other => other == b'_' || other.is_ascii_alphanumeric(),
        };
        if !goes_on {
            return length;
        }
        length += 1;
    }
}
