//! Provides the regular expressions of PEFT's configurations, matched against module names the way PEFT matches them.

use fancy_regex::Regex;

use crate::{Error, Result};

/// Longest expression accepted; real ones have some hundred bytes.
const PATTERN_BYTES_MAX: usize = 1 << 16;

/// A regular expression over module names such as `model.layers.0.mlp.up_proj`.
///
/// PEFT's are Python's: look-around and back references are allowed, and matching gives up with an error after a million
/// steps of backtracking.
#[derive(Clone, Debug)]
pub struct LoraPattern {
    text: String,
    compiled: Regex,
}

impl PartialEq for LoraPattern {
    fn eq(&self, other: &Self) -> bool {
        self.compiled.as_str() == other.compiled.as_str()
    }
}

impl LoraPattern {
    /// An expression that must match a module's whole name: `target_modules` and `exclude_modules`.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] with `option` when it is no expression.
    pub fn whole(option: &'static str, text: &str) -> Result<Self> {
        Self::compile(option, text, &format!(r"\A(?:{text})\z"))
    }

    /// An expression that must match a module's whole name or its last components: keys of `rank_pattern` and
    /// `alpha_pattern`.
    ///
    /// # Errors
    /// As [`whole`](Self::whole).
    pub fn ending(option: &'static str, text: &str) -> Result<Self> {
        // Both groups count, as in PEFT: a back reference in the expression is numbered after them.
        Self::compile(option, text, &format!(r"\A(.*\.)?({text})\z"))
    }

    /// An expression for the component that a layer's number follows: `layers_pattern`; any component where it is empty.
    ///
    /// # Errors
    /// As [`whole`](Self::whole).
    pub fn before_layer(option: &'static str, text: &str) -> Result<Self> {
        let regex = match text {
            "" => r"\A.*?\.[^.]*\.(?P<idx>\d+)\.".to_owned(),
            _ => format!(r"\A(?:|.*?\.){text}\.(?P<idx>\d+)\."),
        };
        Self::compile(option, text, &regex)
    }

    /// The expression as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the module's name is one that is meant.
    ///
    /// # Errors
    /// Matching that does not end in time.
    pub fn matches(&self, module: &str) -> Result<bool> {
        self.compiled
            .is_match(module)
            .map_err(|e| self.gave_up(module, &e))
    }

    /// The number of the layer that `module` belongs to.
    pub(super) fn layer(&self, module: &str) -> Result<Option<usize>> {
        let captures = self
            .compiled
            .captures(module)
            .map_err(|e| self.gave_up(module, &e))?;
        let number = captures.as_ref().and_then(|found| found.name("idx"));
        Ok(number.and_then(|number| number.as_str().parse().ok()))
    }

    fn compile(option: &'static str, text: &str, regex: &str) -> Result<Self> {
        let fault = |message: String| Error::InvalidOption { option, message };
        if text.len() > PATTERN_BYTES_MAX {
            return Err(fault(format!(
                "an expression of {} bytes; at most {PATTERN_BYTES_MAX} are read",
                text.len()
            )));
        }
        let compiled = Regex::new(regex)
            .map_err(|e| fault(format!("`{text}` is no regular expression: {e}")))?;
        Ok(Self {
            text: text.to_owned(),
            compiled,
        })
    }

    fn gave_up(&self, module: &str, error: &fancy_regex::Error) -> Error {
        Error::Unsupported {
            what: format!("matching `{}` against `{module}` ({error})", self.text),
            remedy: "simplify the expression, or list the modules by name".into(),
        }
    }
}
