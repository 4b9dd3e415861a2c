//! Provides what in a choice of adapters chooses nothing in a model: misspelt names, layers that it does not have.

use std::collections::BTreeSet;
use std::fmt;

use super::{LoraConfig, LoraLayers, LoraModules};
use crate::{ModelConfig, Result};

/// A part of a choice that chooses nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unused {
    /// PEFT's key for it.
    pub key: &'static str,
    /// The name, the expression or the number of a layer.
    pub value: String,
    /// What it was looked for among.
    among: &'static str,
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` matches no {}", self.value, self.among)
    }
}

impl LoraConfig {
    /// What chooses nothing in `model`: names that are no linear's, exclusions that exclude nothing, layers without a target,
    /// and patterns for ranks and alphas that no adapted linear has. PEFT warns of patterns and of exclusions.
    ///
    /// # Errors
    /// An expression whose matching does not end in time.
    pub fn unused(&self, model: &ModelConfig) -> Result<Vec<Unused>> {
        let linears = linears(model);
        let mut unused = Vec::new();
        let mut add = |key, among, values: Vec<String>| {
            unused.extend(values.into_iter().map(|value| Unused { key, value, among }));
        };
        let values = self.targets.unused(&linears)?;
        add("target_modules", "linear of the model's layers", values);
        if let Some(exclude) = &self.exclude {
            let values = exclude.unused(&modules(model))?;
            add("exclude_modules", "module of the model", values);
        }
        if let (LoraModules::Names(_), Some(layers)) = (&self.targets, &self.layers) {
            let values = layers.unused(&self.targets, &linears)?;
            add("layers_to_transform", "layer with a target", values);
        }
        let mut adapted = Vec::new();
        for linear in linears {
            if self.adapts(&linear)? {
                adapted.push(linear);
            }
        }
        let ranks = self.rank_pattern.iter();
        let ranks = ranks.map(|(pattern, _)| ("rank_pattern", pattern));
        let alphas = self.alpha_pattern.iter();
        let alphas = alphas.map(|(pattern, _)| ("alpha_pattern", pattern));
        for (key, pattern) in ranks.chain(alphas) {
            if !any(&adapted, |module| pattern.matches(module))? {
                add(key, "adapted linear", vec![pattern.as_str().to_owned()]);
            }
        }
        Ok(unused)
    }
}

impl LoraModules {
    /// Which of the names, or the expression, is none of `modules`.
    fn unused(&self, modules: &[String]) -> Result<Vec<String>> {
        let parts = match self {
            Self::AllLinear => return Ok(Vec::new()),
            Self::Names(names) => names
                .iter()
                .map(|name| (name.clone(), [name].into_iter().collect()))
                .collect(),
            Self::Pattern(pattern) => vec![(pattern.as_str().to_owned(), self.clone())],
        };
        let mut unused = Vec::new();
        for (text, part) in parts {
            let part: Self = part;
            if !any(modules, |module| part.contains(module))? {
                unused.push(text);
            }
        }
        Ok(unused)
    }
}

impl LoraLayers {
    /// Which numbers are no layer with one of `targets`.
    fn unused(&self, targets: &LoraModules, linears: &[String]) -> Result<Vec<String>> {
        let mut unused = Vec::new();
        for &number in &self.numbers {
            let alone = Self {
                numbers: vec![number],
                after: self.after.clone(),
            };
            let chosen = |module: &str| Ok(targets.contains(module)? && alone.contains(module)?);
            if !any(linears, chosen)? {
                unused.push(number.to_string());
            }
        }
        Ok(unused)
    }
}

fn any(modules: &[String], matches: impl Fn(&str) -> Result<bool>) -> Result<bool> {
    for module in modules {
        if matches(module)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The linears of the layers: what adapters may belong to.
fn linears(model: &ModelConfig) -> Vec<String> {
    let matrices = model.parameter_shapes().into_iter();
    let matrices = matrices.filter(|(_, shape)| shape.len() == 2);
    let modules = matrices.filter_map(|(name, _)| name.strip_suffix(".weight").map(str::to_owned));
    modules
        .filter(|module| module.starts_with("model.layers."))
        .collect()
}

/// Every module that PEFT walks over: those with weights, what they are in, and the head, which is one also when it is tied.
fn modules(model: &ModelConfig) -> Vec<String> {
    let mut modules = BTreeSet::from(["lm_head".to_owned()]);
    for (name, _) in model.parameter_shapes() {
        let dots = name.match_indices('.').map(|(at, _)| at);
        modules.extend(dots.filter_map(|at| name.get(..at)).map(str::to_owned));
    }
    modules.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::super::LoraPattern;
    use super::*;
    use crate::testing::{TinyModel, write_tiny_model};

    /// Two layers, a tied head.
    fn unused(lora: &LoraConfig) -> Vec<(&'static str, String)> {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_model(dir.path(), &TinyModel::llama(), 1).unwrap();
        let model = ModelConfig::load(dir.path()).unwrap();
        let unused = lora.unused(&model).unwrap();
        unused.into_iter().map(|one| (one.key, one.value)).collect()
    }

    fn names(names: &[&str]) -> LoraModules {
        names.iter().copied().collect()
    }

    fn layers(numbers: &[usize], after: &[&str]) -> Option<LoraLayers> {
        let after = after.iter();
        Some(LoraLayers {
            numbers: numbers.to_vec(),
            after: after
                .map(|text| LoraPattern::before_layer("layers_pattern", text).unwrap())
                .collect(),
        })
    }

    #[test]
    fn a_pattern_that_matches_nothing_passed_without_a_word() {
        let ending = |text: &str| LoraPattern::ending("p", text).unwrap();
        let lora = LoraConfig {
            targets: names(&["q_proj", "mlp.up_proj"]),
            // The second is a linear, but none with an adapter; the fourth is never the first to match, and still matches.
            rank_pattern: [
                "q_prj",
                "k_proj",
                "layers.1.*",
                "layers.1.*q_proj",
                "layers.2.*",
            ]
            .map(|text| (ending(text), 2))
            .into(),
            alpha_pattern: ["mlp.up_proj", "attn.q_proj"]
                .map(|text| (ending(text), 2.0))
                .into(),
            ..LoraConfig::default()
        };
        let expected = [
            ("rank_pattern", "q_prj"),
            ("rank_pattern", "k_proj"),
            ("rank_pattern", "layers.2.*"),
            ("alpha_pattern", "attn.q_proj"),
        ];
        assert_eq!(unused(&lora), expected.map(|(k, v)| (k, v.to_owned())));
        assert!(unused(&LoraConfig::default()).is_empty());
    }

    #[test]
    fn names_exclusions_and_layers_that_choose_nothing_are_found() {
        let base = LoraConfig::default();
        let whole = |text: &str| LoraModules::Pattern(LoraPattern::whole("t", text).unwrap());
        let with = |targets: LoraModules, exclude: Option<LoraModules>, layers| LoraConfig {
            targets,
            exclude,
            layers,
            ..base.clone()
        };
        let q = || names(&["q_proj"]);
        for (lora, expected) in [
            (with(names(&["q_proj", "query"]), None, None), vec!["query"]),
            (with(names(&["roj"]), None, None), vec!["roj"]),
            (with(whole(r".*\.query"), None, None), vec![r".*\.query"]),
            (with(LoraModules::AllLinear, None, None), vec![]),
            // PEFT walks over every module, so that the head and a whole layer can be excluded.
            (
                with(q(), Some(names(&["lm_head", "layers.0"])), None),
                vec![],
            ),
            (with(q(), Some(names(&["head"])), None), vec!["head"]),
            (
                with(q(), Some(whole(".*vision.*")), None),
                vec![".*vision.*"],
            ),
            (with(q(), None, layers(&[0, 7], &[])), vec!["7"]),
            (with(q(), None, layers(&[1], &["h", "layers"])), vec![]),
            (with(q(), None, layers(&[1], &["blocks"])), vec!["1"]),
        ] {
            let values: Vec<String> = unused(&lora).into_iter().map(|(_, value)| value).collect();
            assert_eq!(values, expected, "{lora:?}");
        }
        let message = Unused {
            key: "target_modules",
            value: "query".into(),
            among: "linear of the model's layers",
        };
        let expected = "`query` matches no linear of the model's layers";
        assert_eq!(message.to_string(), expected);
    }
}
