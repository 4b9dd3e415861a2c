//! Provides which linears are left as they are, by the rule that transformers reads `llm_int8_skip_modules` with.

use fancy_regex::Regex;

use crate::{Error, Result};

/// Modules that are not quantised.
pub(super) struct SkippedModules(Vec<(String, Regex)>);

impl SkippedModules {
    /// # Errors
    /// A text that is no regular expression.
    pub fn new(patterns: &[String]) -> Result<Self> {
        let compiled = patterns.iter().map(|text| {
            // From the start of the name to the end of a component; transformers looks behind for the dot as well.
            let regex = Regex::new(&format!(r"\A(?:{text})(?:(?<=\.)|(?=\.|\z))"));
            let regex =
                regex.map_err(|e| fault(text, &format!("is no regular expression: {e}")))?;
            Ok((text.clone(), regex))
        });
        Ok(Self(compiled.collect::<Result<_>>()?))
    }

    /// Whether the module (such as `model.layers.0.mlp.up_proj`) is skipped: one pattern is the end of its name, or matches its
    /// beginning.
    ///
    /// # Errors
    /// An expression whose matching does not end in time.
    pub fn contains(&self, module: &str) -> Result<bool> {
        for pattern in &self.0 {
            if is_match(pattern, module)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// # Errors
    /// A pattern that matches none of `modules`, nor the head, which is never quantised.
    pub fn refuse_unused<'a>(&self, modules: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
        for pattern in &self.0 {
            let mut used = is_match(pattern, "lm_head")?;
            for module in modules.clone() {
                used = used || is_match(pattern, module)?;
            }
            if !used {
                return Err(fault(&pattern.0, "matches no linear of the model"));
            }
        }
        Ok(())
    }
}

fn is_match((text, regex): &(String, Regex), module: &str) -> Result<bool> {
    let matched = regex.is_match(module);
    let matched = matched.map_err(|e| fault(text, &format!("cannot be matched: {e}")))?;
    Ok(matched || module.ends_with(text.as_str()))
}

fn fault(pattern: &str, problem: &str) -> Error {
    Error::Config(format!("skip_modules: `{pattern}` {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_transformers_matches_them() {
        let skipped = |pattern: &str, module: &str| {
            let modules = SkippedModules::new(&[pattern.to_owned()]).unwrap();
            modules.contains(module).unwrap()
        };
        let module = "model.layers.1.self_attn.q_proj";
        for pattern in [
            "q_proj",
            "attn.q_proj",
            "model.layers.1",
            "model.layers.1.",
            ".*self_attn",
        ] {
            assert!(skipped(pattern, module), "{pattern}");
        }
        // Not inside a component, and not from its middle.
        for pattern in [
            "model.layers.1.self",
            "self_attn",
            "layers.1",
            "model.layers.11",
        ] {
            assert!(!skipped(pattern, module), "{pattern}");
        }
        assert!(!skipped(
            "model.layers.1",
            "model.layers.11.self_attn.q_proj"
        ));
    }

    #[test]
    fn patterns_that_do_nothing_are_named() {
        let modules = ["model.layers.0.mlp.up_proj"];
        let check = |pattern: &str| -> Result<()> {
            SkippedModules::new(&[pattern.to_owned()])?.refuse_unused(modules.into_iter())
        };
        check("up_proj").unwrap();
        check("lm_head").unwrap();
        for pattern in ["down_proj", "("] {
            let message = check(pattern).unwrap_err().to_string();
            assert!(message.starts_with("skip_modules: `"), "{message}");
        }
    }
}
