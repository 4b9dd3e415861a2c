//! Provides the parser: what Python's `json.loads` accepts of a text, and nothing else.

use super::{Json, Object};
use crate::limits::{JSON_DEPTH_MAX, JSON_INTEGER_DIGITS_MAX};

/// What a name has that stands twice in one object.
const TWICE: &str = "a field that is given twice";
const SURROGATE: &str = "a text with a lone surrogate, which UTF-8 cannot hold";

/// Parses one value with nothing but white space around it; the error is the reason alone.
pub(crate) fn parse(text: &str) -> Result<Json, String> {
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(0)?;
    parser.skip_white_space();
    match parser.peek() {
        None => Ok(value),
        Some(_) => Err(parser.expected("the end")),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_white_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Goes past `word` where it comes next.
    fn eat(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    fn expected(&self, what: &str) -> String {
        match self.rest().chars().next() {
            Some(found) => format!(
                "not JSON: expected {what} at byte {}, found {found:?}",
                self.at
            ),
            None => format!(
                "not JSON: expected {what} at byte {}, where it ends",
                self.at
            ),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Json, String> {
        if depth > JSON_DEPTH_MAX {
            return Err(format!("nested more than {JSON_DEPTH_MAX} deep"));
        }
        self.skip_white_space();
        for (word, value) in [
            ("null", Json::Null),
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
            ("NaN", Json::Float(f64::NAN)),
            ("Infinity", Json::Float(f64::INFINITY)),
            ("-Infinity", Json::Float(f64::NEG_INFINITY)),
        ] {
            if self.eat(word) {
                return Ok(value);
            }
        }
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => Ok(self
                .string()?
                .map_or(Json::Unusable(SURROGATE), Json::String)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.expected("a value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, String> {
        let mut fields = Object::new();
        self.at += 1;
        self.skip_white_space();
        if self.eat("}") {
            return Ok(Json::Object(fields));
        }
        loop {
            self.skip_white_space();
            if self.peek() != Some(b'"') {
                return Err(self.expected("a name in double quotes"));
            }
            let name = self.string()?;
            self.skip_white_space();
            if !self.eat(":") {
                return Err(self.expected("`:`"));
            }
            let value = self.value(depth + 1)?;
            match name {
                Some(name) => {
                    let at = fields.entry(name);
                    at.and_modify(|first| *first = Json::Unusable(TWICE))
                        .or_insert(value);
                }
                None => {
                    fields.insert(
                        char::REPLACEMENT_CHARACTER.into(),
                        Json::Unusable(SURROGATE),
                    );
                }
            }
            self.skip_white_space();
            if self.eat("}") {
                return Ok(Json::Object(fields));
            }
            if !self.eat(",") {
                return Err(self.expected("`,` or `}`"));
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Json, String> {
        let mut values = Vec::new();
        self.at += 1;
        self.skip_white_space();
        if self.eat("]") {
            return Ok(Json::Array(values));
        }
        loop {
            values.push(self.value(depth + 1)?);
            self.skip_white_space();
            if self.eat("]") {
                return Ok(Json::Array(values));
            }
            if !self.eat(",") {
                return Err(self.expected("`,` or `]`"));
            }
        }
    }

    fn number(&mut self) -> Result<Json, String> {
        let start = self.at;
        self.eat("-");
        if !self.eat("0") && self.digits() == 0 {
            return Err(self.expected("a digit"));
        }
        let integer = self.at;
        // As in Python, a point or an exponent without a digit after it does not belong to the number.
        if self.eat(".") && self.digits() == 0 {
            self.at = integer;
        }
        let mantissa = self.at;
        if self.eat("e") || self.eat("E") {
            let _sign = self.eat("+") || self.eat("-");
            if self.digits() == 0 {
                self.at = mantissa;
            }
        }
        let written = self.text.get(start..self.at).unwrap_or_default();
        if self.at > integer {
            let value = written.parse().map_err(|e| format!("`{written}`: {e}"))?;
            return Ok(Json::Float(value));
        }
        if written.trim_start_matches('-').len() > JSON_INTEGER_DIGITS_MAX {
            return Err(format!(
                "an integer of more than {JSON_INTEGER_DIGITS_MAX} digits"
            ));
        }
        let integer = written.parse().map(Json::Integer);
        Ok(integer.unwrap_or_else(|_| Json::LongInteger(written.to_owned())))
    }

    /// Goes past digits and says how many there were.
    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }

    /// A text; `None` where it has a lone surrogate in it.
    fn string(&mut self) -> Result<Option<String>, String> {
        self.at += 1;
        let mut out = String::new();
        let mut whole = true;
        loop {
            let rest = self.rest();
            let plain = rest.find(|c: char| c == '"' || c == '\\' || c < ' ');
            let plain = plain.ok_or_else(|| "not JSON: a text does not end".to_owned())?;
            out += rest.get(..plain).unwrap_or_default();
            self.at += plain;
            if self.eat("\"") {
                return Ok(whole.then_some(out));
            }
            if !self.eat("\\") {
                return Err(self.expected("an escape in place of a control character"));
            }
            match self.escape()? {
                Some(character) => out.push(character),
                None => whole = false,
            }
        }
    }

    /// What stands behind a backslash; `None` for a lone surrogate.
    fn escape(&mut self) -> Result<Option<char>, String> {
        for (written, meant) in [
            ("\"", '"'),
            ("\\", '\\'),
            ("/", '/'),
            ("b", '\u{8}'),
            ("f", '\u{c}'),
            ("n", '\n'),
            ("r", '\r'),
            ("t", '\t'),
        ] {
            if self.eat(written) {
                return Ok(Some(meant));
            }
        }
        if !self.eat("u") {
            return Err(self.expected("an escape that JSON knows"));
        }
        let high = self.four_digits()?;
        if !(0xd800..0xdc00).contains(&high) {
            return Ok(char::from_u32(high));
        }
        let after_high = self.at;
        if self.eat("\\u") {
            let low = self.four_digits()?;
            if (0xdc00..0xe000).contains(&low) {
                return Ok(char::from_u32(
                    0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00),
                ));
            }
            // It is an escape of its own.
            self.at = after_high;
        }
        Ok(None)
    }

    fn four_digits(&mut self) -> Result<u32, String> {
        let digits = self.text.get(self.at..self.at + 4).unwrap_or_default();
        let hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u32::from_str_radix(digits, 16) {
            Ok(code) if hexadecimal => {
                self.at += 4;
                Ok(code)
            }
            _ => Err(self.expected("four hexadecimal digits")),
        }
    }
}
