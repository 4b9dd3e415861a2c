//! Provides a template's source as it is compiled: bounded, and with what the engine does otherwise than Jinja2 rewritten.
//!
//! - `{% generation %}` becomes a call that marks what the block writes.
//! - What a variable takes goes through the filter [`BOUND`], so that no loop makes a value without bounds.
//! - Escapes in texts that the engine reads otherwise than Python are written in a way that both read.
//! - The operands of `~` and what filters of texts get go through [`TEXT`], which prints as Python does.
//! - `%` behind a text goes through the filter [`PERCENT`]; the engine's own is for numbers.
//! - A factor [`ONE`] keeps the compiler from working out `'x' * 100000000`, which a rendering has to pay for.

use std::ops::Range;

use super::{
    generation,
    tags::{Kind, Tag, Tags, Token},
};
use crate::limits::{TEMPLATE_BYTES_MAX, TEMPLATE_OPERATORS_MAX, TEMPLATE_TAGS_MAX};

/// Filter that bounds what a variable takes.
pub(super) const BOUND: &str = "__bound";
/// Filter that bounds what a namespace takes.
pub(super) const BOUND_FOR_NAMESPACE: &str = "__bound_for_namespace";
/// Filter that prints a value as Python does.
pub(super) const TEXT: &str = "__text";
/// Filter that writes values into a text with `%` in it.
pub(super) const PERCENT: &str = "__percent";
/// The number 1.
pub(super) const ONE: &str = "__one";

/// Filters of the engine that turn any value into a text first; they get one, printed as Python does and bounded.
const OF_TEXT: [&str; 10] = [
    "upper",
    "lower",
    "title",
    "capitalize",
    "trim",
    "replace",
    "split",
    "lines",
    "escape",
    "e",
];

/// Tags that read another template; there is none beside the chat template.
const OTHER_TEMPLATES: [&str; 4] = ["include", "import", "from", "extends"];

/// What [`prepare`] makes of a template.
pub(super) struct Prepared {
    pub source: String,
    pub marks_generation: bool,
}

/// Checks a template against the limits and rewrites it.
pub(super) fn prepare(source: &str) -> Result<Prepared, String> {
    if source.len() > TEMPLATE_BYTES_MAX {
        let found = source.len();
        return Err(format!(
            "has {found} bytes, above the limit of {TEMPLATE_BYTES_MAX}"
        ));
    }
    let mut edits = Edits::default();
    let mut marks_generation = false;
    for (index, tag) in Tags::of(source).enumerate() {
        if index == TEMPLATE_TAGS_MAX {
            return Err(format!("has more than {TEMPLATE_TAGS_MAX} tags"));
        }
        let tag = tag.map_err(|at| {
            let line = line_of(source, at);
            format!("a tag has no end (it begins in line {line} of the template)")
        })?;
        let tag = Reader { source, tag };
        tag.check().map_err(|reason| {
            let line = line_of(source, tag.tag.bytes.start);
            format!("{reason} (line {line} of the template)")
        })?;
        edits.escapes(&tag);
        edits.operators(&tag);
        if tag.tag.is_block {
            edits.block(&tag);
            marks_generation |= tag.word(0) == Some("generation");
        }
    }
    Ok(Prepared {
        source: edits.apply(source),
        marks_generation,
    })
}

fn line_of(source: &str, at: usize) -> usize {
    let before = source.get(..at).unwrap_or_default();
    before.matches('\n').count() + 1
}

/// A tag with the source that it lies in.
struct Reader<'a> {
    source: &'a str,
    tag: Tag,
}

impl<'a> Reader<'a> {
    fn tokens(&self) -> &[Token] {
        &self.tag.tokens
    }

    fn text(&self, token: &Token) -> &'a str {
        self.source.get(token.bytes.clone()).unwrap_or_default()
    }

    fn word(&self, index: usize) -> Option<&'a str> {
        let token = self.tokens().get(index)?;
        (token.kind == Kind::Word).then(|| self.text(token))
    }

    /// Where the last token ends.
    fn end(&self) -> usize {
        let last = self.tokens().last();
        last.map_or(self.tag.bytes.end, |token| token.bytes.end)
    }

    /// The first token of this text outside of brackets, from `start` on.
    fn find(&self, text: &str, start: usize) -> Option<usize> {
        let mut tokens = self.tokens().iter().enumerate().skip(start);
        let found = tokens.find(|(_, token)| token.depth == 0 && self.text(token) == text);
        found.map(|(index, _)| index)
    }

    /// Operators nest as brackets do: the parser makes a tree of them that is as deep as there are operators.
    fn check(&self) -> Result<(), String> {
        if let Some(word) = self.word(0).filter(|_| self.tag.is_block)
            && OTHER_TEMPLATES.contains(&word)
        {
            return Err(format!(
                "`{word}` reads another template, and there is none beside the chat template"
            ));
        }
        let nests = |token: &&Token| match token.kind {
            Kind::Operator => !matches!(self.text(token), "," | ":" | ")" | "]" | "}"),
            Kind::Word => is_keyword(self.text(token)),
            Kind::Number | Kind::Text => false,
        };
        let found = self.tokens().iter().filter(nests).count();
        if found > TEMPLATE_OPERATORS_MAX {
            return Err(format!(
                "one tag has {found} operators, above the limit of {TEMPLATE_OPERATORS_MAX}"
            ));
        }
        Ok(())
    }

    /// Whether the token ends something that an operator may follow.
    fn ends_operand(&self, token: &Token) -> bool {
        match token.kind {
            Kind::Number | Kind::Text => true,
            Kind::Word => !is_keyword(self.text(token)),
            Kind::Operator => matches!(self.text(token), ")" | "]" | "}"),
        }
    }

    /// The operands of `~`: what lies between it and the nearest weaker operators.
    fn operands_of_concatenation(&self) -> Vec<Range<usize>> {
        let mut operands = Vec::new();
        // One entry for every open bracket: where the current operand begins, and whether `~` stands before it.
        let mut open: Vec<(Option<usize>, bool)> = vec![(None, false)];
        let mut end = 0;
        let mut before: Option<&Token> = None;
        for (index, token) in self.tokens().iter().enumerate() {
            let text = self.text(token);
            let closes = token.kind == Kind::Operator && matches!(text, ")" | "]" | "}");
            if closes || self.separates_operands(index, before) {
                if let Some((start, after_tilde)) = open.last_mut() {
                    if let Some(start) = start.take().filter(|_| *after_tilde || text == "~") {
                        operands.push(start..end);
                    }
                    *after_tilde = text == "~";
                }
                if closes && open.len() > 1 {
                    open.pop();
                }
            } else if let Some((start, _)) = open.last_mut() {
                start.get_or_insert(token.bytes.start);
            }
            if token.kind == Kind::Operator && matches!(text, "(" | "[" | "{") {
                open.push((None, false));
            }
            end = token.bytes.end;
            before = Some(token);
        }
        if let Some((Some(start), true)) = open.first() {
            operands.push(*start..end);
        }
        operands
    }

    /// Every `%` behind a text in quotes, or behind such a `%`, with what is written into the text.
    fn percents(&self) -> Vec<(Range<usize>, Range<usize>)> {
        let mut found = Vec::new();
        let tokens = self.tokens();
        let mut chained = None;
        for (index, percent) in tokens.iter().enumerate() {
            let follows_text = chained == Some(index) || self.begins_with_text(index);
            if self.text(percent) != "%" || percent.kind != Kind::Operator || !follows_text {
                continue;
            }
            let is_end = |&at: &usize| self.ends_factor(at, percent.depth);
            let end = (index + 2..tokens.len())
                .find(is_end)
                .unwrap_or(tokens.len());
            let (first, last) = (tokens.get(index + 1), tokens.get(end.saturating_sub(1)));
            if let (Some(first), Some(last)) = (first, last) {
                let value = first.bytes.start..last.bytes.end;
                found.push((percent.bytes.clone(), value));
            }
            chained = Some(end);
        }
        found
    }

    /// Whether a text in quotes and nothing else is the operand before the token at `index`.
    fn begins_with_text(&self, index: usize) -> bool {
        let before = |steps: usize| self.tokens().get(index.checked_sub(steps)?);
        let is_text = before(1).is_some_and(|token| token.kind == Kind::Text);
        let begins_tag = index == 2 && self.tag.is_block;
        let is_whole = before(2).is_none_or(|token| {
            !self.ends_operand(token) && !matches!(self.text(token), "*" | "/" | "//" | "%" | "**")
        });
        is_text && (is_whole || begins_tag)
    }

    /// Whether an operator of the strength of `%` or a weaker one is at `index`, or the end of the bracket around.
    fn ends_factor(&self, index: usize, depth: usize) -> bool {
        let Some(token) = self.tokens().get(index) else {
            return true;
        };
        let before = index.checked_sub(1).and_then(|at| self.tokens().get(at));
        let multiplies = matches!(self.text(token), "*" | "/" | "//" | "%");
        let is_operator = token.kind == Kind::Operator && multiplies;
        token.depth < depth
            || token.depth == depth && (is_operator || self.separates_operands(index, before))
    }

    fn separates_operands(&self, index: usize, before: Option<&Token>) -> bool {
        let Some(token) = self.tokens().get(index) else {
            return false;
        };
        let text = self.text(token);
        match token.kind {
            Kind::Operator => match text {
                "+" | "-" => before.is_some_and(|before| self.ends_operand(before)),
                "~" | "," | ":" | "=" | "==" | "!=" | "<" | ">" | "<=" | ">=" => true,
                _ => false,
            },
            // `x is not y` and `x.in` belong to one operand; `set`, `if` and the like begin a block tag.
            Kind::Word => {
                let before = before.map(|before| self.text(before));
                let begins_tag = index == 0 && self.tag.is_block;
                let keyword = matches!(text, "and" | "or" | "in" | "if" | "else" | "not");
                begins_tag || keyword && !matches!(before, Some("is" | "." | "|"))
            }
            Kind::Number | Kind::Text => false,
        }
    }
}

fn is_keyword(word: &str) -> bool {
    matches!(word, "and" | "or" | "not" | "in" | "is" | "if" | "else")
}

/// Pieces of text to insert or to replace, by where.
#[derive(Default)]
struct Edits {
    /// Bytes that are replaced, and by what; the number orders those at one place.
    edits: Vec<(Range<usize>, i64, String)>,
}

impl Edits {
    fn insert(&mut self, at: usize, text: String) {
        self.edits.push((at..at, 0, text));
    }

    /// Puts brackets around `bytes` and a filter behind: a longer piece opens before a shorter one and closes after it.
    fn filter(&mut self, bytes: Range<usize>, filter: &str) {
        let length = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        self.edits
            .push((bytes.start..bytes.start, i64::MAX - length, "(".to_owned()));
        self.edits.push((
            bytes.end..bytes.end,
            length - i64::MAX,
            format!(")|{filter}"),
        ));
    }

    /// Writes escapes of Python's texts that the engine reads otherwise.
    fn escapes(&mut self, tag: &Reader<'_>) {
        for token in tag.tokens().iter().filter(|t| t.kind == Kind::Text) {
            let mut characters = tag.text(token).char_indices();
            while let Some((at, character)) = characters.next() {
                let escaped = (character == '\\').then(|| characters.next()).flatten();
                let by = match escaped {
                    Some((_, '/')) => r"\\/",
                    Some((_, 'a')) => r"\x07",
                    Some((_, 'v')) => r"\x0b",
                    _ => continue,
                };
                let start = token.bytes.start + at;
                self.edits.push((start..start + 2, 0, by.to_owned()));
            }
        }
    }

    fn operators(&mut self, tag: &Reader<'_>) {
        for operand in tag.operands_of_concatenation() {
            self.filter(operand, TEXT);
        }
        for (percent, value) in tag.percents() {
            let length = i64::try_from(value.len()).unwrap_or(i64::MAX);
            self.edits.push((percent, 0, format!("|{PERCENT}(")));
            let end = value.end..value.end;
            self.edits.push((end, length - i64::MAX, ")".to_owned()));
        }
        for pair in tag.tokens().windows(2) {
            let [before, token] = pair else { continue };
            if tag.text(token) == "*" && tag.ends_operand(before) {
                self.insert(token.bytes.end, format!(" {ONE} * "));
            }
            if tag.text(before) == "|" && OF_TEXT.contains(&tag.text(token)) {
                self.insert(token.bytes.start, format!("{TEXT}|"));
            }
        }
    }

    fn block(&mut self, tag: &Reader<'_>) {
        match tag.word(0) {
            Some("generation") => self.replace_word(tag, format!("call {}()", generation::CALL)),
            Some("endgeneration") => self.replace_word(tag, "endcall".to_owned()),
            Some("set") => self.set(tag),
            Some("for") => self.for_each(tag),
            Some("with") => self.bound_names(tag, |after| after == Some("="), 0),
            Some("macro") => self.bound_names(tag, |after| after != Some("("), 1),
            Some("call") if tag.tokens().get(1).is_some_and(|t| tag.text(t) == "(") => {
                self.bound_names(tag, |after| after != Some("("), 1);
            }
            _ => {}
        }
    }

    fn replace_word(&mut self, tag: &Reader<'_>, by: String) {
        if let Some(word) = tag.tokens().first() {
            self.edits.push((word.bytes.clone(), 0, by));
        }
    }

    fn set(&mut self, tag: &Reader<'_>) {
        let Some(equals) = tag.find("=", 1) else {
            if tag.find("|", 1).is_some() {
                self.insert(tag.end(), format!("|{BOUND_FOR_NAMESPACE}"));
            }
            return;
        };
        let target = tag.tokens().get(1..equals).unwrap_or_default();
        let in_namespace = target.iter().any(|token| tag.text(token) == ".");
        let filter = if in_namespace {
            BOUND_FOR_NAMESPACE
        } else {
            BOUND
        };
        if let Some(first) = tag.tokens().get(equals + 1) {
            self.filter(first.bytes.start..tag.end(), filter);
        }
    }

    fn for_each(&mut self, tag: &Reader<'_>) {
        let Some(in_) = tag.find("in", 2) else {
            return;
        };
        let last = tag.tokens().len().saturating_sub(1);
        let recursive = tag.word(last) == Some("recursive");
        let end = tag.find("if", in_).or(recursive.then_some(last));
        let end = end.unwrap_or(last + 1).saturating_sub(1);
        if let (Some(first), Some(last)) = (tag.tokens().get(in_ + 1), tag.tokens().get(end)) {
            self.filter(first.bytes.start..last.bytes.end, BOUND);
        }
        if recursive {
            // `loop(..)` brings further items past the filter above.
            let target = tag.tokens().get(1..in_).unwrap_or_default();
            let names = target.iter().filter(|token| token.kind == Kind::Word);
            let names: Vec<&str> = names.map(|token| tag.text(token)).collect();
            self.bound_after(tag, &names);
        }
    }

    /// Bounds the names that a tag binds, in a tag of its own behind it.
    fn bound_names(
        &mut self,
        tag: &Reader<'_>,
        binds: impl Fn(Option<&str>) -> bool,
        depth: usize,
    ) {
        let mut names = Vec::new();
        for (index, triple) in tag.tokens().windows(2).enumerate() {
            let [before, name] = triple else { continue };
            let begins = matches!(tag.text(before), "(" | ",") || index == 0 && depth == 0;
            let after = tag.tokens().get(index + 2).map(|token| tag.text(token));
            if name.kind == Kind::Word && name.depth == depth && begins && binds(after) {
                names.push(tag.text(name));
            }
            if depth > 0 && tag.text(name) == ")" && name.depth == 0 {
                break;
            }
        }
        self.bound_after(tag, &names);
    }

    fn bound_after(&mut self, tag: &Reader<'_>, names: &[&str]) {
        let end = tag.tag.bytes.end;
        // White space behind goes as the tag itself says.
        let close = tag.source.get(..end).unwrap_or_default();
        let close = ["-%}", "+%}"].into_iter().find(|c| close.ends_with(c));
        for name in names {
            let close = close.unwrap_or("%}");
            self.insert(end, format!("{{% set {name} = {name}|{BOUND} {close}"));
        }
    }

    fn apply(mut self, source: &str) -> String {
        self.edits
            .sort_by_key(|(bytes, order, _)| (bytes.start, *order));
        let mut out = String::with_capacity(source.len());
        let mut at = 0;
        for (bytes, _, text) in &self.edits {
            out.push_str(source.get(at..bytes.start).unwrap_or_default());
            out.push_str(text);
            at = bytes.end;
        }
        out.push_str(source.get(at..).unwrap_or_default());
        out
    }
}
