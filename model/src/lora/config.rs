//! Provides the choice of the adapted layers and of each one's rank and scale, by the rules of Hugging Face PEFT.

use super::LoraPattern;
use crate::{Error, Result};

/// Largest LoRA rank accepted; beyond it an adapter is larger than the matrices it adapts.
pub const LORA_RANK_MAX: usize = 4096;

/// Which modules are meant.
#[derive(Clone, Debug, PartialEq)]
pub enum LoraModules {
    /// Whole names or their last components, such as `q_proj` or `mlp.up_proj`.
    Names(Vec<String>),
    /// An expression for whole names.
    Pattern(LoraPattern),
    /// Every linear layer but the head.
    AllLinear,
}

impl LoraModules {
    pub(super) fn contains(&self, module: &str) -> Result<bool> {
        match self {
            Self::Names(names) => Ok(names.iter().any(|name| {
                let rest = module.strip_suffix(name.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })),
            Self::Pattern(pattern) => pattern.matches(module),
            Self::AllLinear => Ok(true),
        }
    }
}

impl<S: Into<String>> FromIterator<S> for LoraModules {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        Self::Names(names.into_iter().map(S::into).collect())
    }
}

/// A choice of decoder layers; it narrows targets that are given by name.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraLayers {
    /// Layer numbers, from 0.
    pub numbers: Vec<usize>,
    /// What the number follows, such as `layers`; the first expression that matches decides. None: any component.
    pub after: Vec<LoraPattern>,
}

impl LoraLayers {
    pub(super) fn contains(&self, module: &str) -> Result<bool> {
        let any = [LoraPattern::before_layer("lora.layers", "")?];
        let after = if self.after.is_empty() {
            &any[..]
        } else {
            &self.after[..]
        };
        for pattern in after {
            if let Some(layer) = pattern.layer(module)? {
                return Ok(self.numbers.contains(&layer));
            }
        }
        Ok(false)
    }
}

/// Low-rank adapters (LoRA, Hu et al. 2021), chosen and scaled as Hugging Face PEFT does.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank r of the update B A, where no pattern gives another.
    pub rank: usize,
    /// Numerator of the scale, where no pattern gives another: alpha / r, or alpha / sqrt(r) with `rs_lora`.
    pub alpha: f64,
    /// The adapted layers.
    pub targets: LoraModules,
    /// Layers left alone all the same.
    pub exclude: Option<LoraModules>,
    /// Decoder layers; `None` for all. Used with targets by name only.
    pub layers: Option<LoraLayers>,
    /// Ranks of the modules that an expression matches; the first one counts.
    pub rank_pattern: Vec<(LoraPattern, usize)>,
    /// Alphas of the modules that an expression matches; the first one counts.
    pub alpha_pattern: Vec<(LoraPattern, f64)>,
    /// Together with the parameter's name this fixes the initial A bit for bit.
    pub seed: u64,
    /// Rank-stabilised scale (Kalajdzievski 2023).
    pub rs_lora: bool,
}

/// Every linear of a decoder layer.
pub const LORA_TARGETS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            targets: LORA_TARGETS.into_iter().collect(),
            exclude: None,
            layers: None,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            seed: 0,
            rs_lora: false,
        }
    }
}

impl LoraConfig {
    /// Whether the module (such as `model.layers.0.mlp.up_proj`) gets an adapter.
    ///
    /// # Errors
    /// An expression whose matching does not end in time.
    pub fn adapts(&self, module: &str) -> Result<bool> {
        if let Some(exclude) = &self.exclude
            && exclude.contains(module)?
        {
            return Ok(false);
        }
        if !self.targets.contains(module)? {
            return Ok(false);
        }
        match (&self.targets, &self.layers) {
            (LoraModules::Names(_), Some(layers)) => layers.contains(module),
            _ => Ok(true),
        }
    }

    /// Rank of the module's adapter.
    ///
    /// # Errors
    /// As [`adapts`](Self::adapts).
    pub fn rank_of(&self, module: &str) -> Result<usize> {
        Ok(first_match(&self.rank_pattern, module)?.unwrap_or(self.rank))
    }

    /// The factor on B A x of the module's adapter.
    ///
    /// # Errors
    /// As [`adapts`](Self::adapts).
    pub fn scale_of(&self, module: &str) -> Result<f64> {
        let rank = self.rank_of(module)? as f64;
        let alpha = first_match(&self.alpha_pattern, module)?.unwrap_or(self.alpha);
        Ok(alpha / if self.rs_lora { rank.sqrt() } else { rank })
    }

    /// Refuses values that make no adapter.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names the option at fault.
    pub fn validate(&self) -> Result<()> {
        let fault = |option, message: String| Err(Error::InvalidOption { option, message });
        let ranks = self.rank_pattern.iter().map(|(_, rank)| *rank);
        for (option, rank) in std::iter::once(("lora.rank", self.rank))
            .chain(ranks.map(|rank| ("lora.rank_pattern", rank)))
        {
            if rank == 0 || rank > LORA_RANK_MAX {
                return fault(option, format!("{rank} is outside 1..={LORA_RANK_MAX}"));
            }
        }
        let alphas = self.alpha_pattern.iter().map(|(_, alpha)| *alpha);
        for (option, alpha) in std::iter::once(("lora.alpha", self.alpha))
            .chain(alphas.map(|alpha| ("lora.alpha_pattern", alpha)))
        {
            if !alpha.is_finite() || alpha <= 0.0 {
                return fault(option, format!("{alpha} is not a positive number"));
            }
        }
        match &self.targets {
            LoraModules::Names(names) if names.is_empty() || names.iter().any(String::is_empty) => {
                fault(
                    "lora.targets",
                    "name at least one layer, such as q_proj; empty names match nothing".into(),
                )
            }
            _ => Ok(()),
        }
    }
}

/// The value of the first expression that matches.
fn first_match<T: Copy>(patterns: &[(LoraPattern, T)], module: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if pattern.matches(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: &str = "model.layers.0.self_attn.q_proj";
    const UP: &str = "model.layers.11.mlp.up_proj";

    fn ending(text: &str) -> LoraPattern {
        LoraPattern::ending("lora.rank_pattern", text).unwrap()
    }

    #[test]
    fn targets_match_whole_name_components() {
        let config = LoraConfig {
            targets: ["q_proj", "mlp.up_proj"].into_iter().collect(),
            ..LoraConfig::default()
        };
        assert!(config.adapts(Q).unwrap());
        assert!(config.adapts(UP).unwrap());
        assert!(config.adapts("q_proj").unwrap());
        assert!(!config.adapts("model.layers.0.self_attn.eq_proj").unwrap());
        assert!(!config.adapts("model.layers.0.mlp.down_proj").unwrap());
    }

    #[test]
    fn expressions_match_whole_names_and_may_look_around() {
        let adapts = |text: &str, module: &str| {
            let config = LoraConfig {
                targets: LoraModules::Pattern(LoraPattern::whole("t", text).unwrap()),
                ..LoraConfig::default()
            };
            config.adapts(module).unwrap()
        };
        assert!(adapts(r".*\.(q|v)_proj", Q));
        assert!(!adapts("q_proj", Q));
        assert!(!adapts(r"model\.layers\.0\.self_attn\.q", Q));
        assert!(!adapts(r"(?!.*mlp).*_proj", UP));
        assert!(adapts(r"(?!.*mlp).*_proj", Q));
        // An alternative may not escape the anchors.
        assert!(!adapts("model|x", Q));
    }

    #[test]
    fn exclusions_and_layers_narrow_the_targets() {
        let config = LoraConfig {
            exclude: Some(["layers.11.mlp.up_proj"].into_iter().collect()),
            ..LoraConfig::default()
        };
        assert!(config.adapts(Q).unwrap() && !config.adapts(UP).unwrap());
        let layers = |after: &[&str], numbers: &[usize]| LoraConfig {
            layers: Some(LoraLayers {
                numbers: numbers.to_vec(),
                after: after
                    .iter()
                    .map(|text| LoraPattern::before_layer("l", text).unwrap())
                    .collect(),
            }),
            ..LoraConfig::default()
        };
        for after in [&[][..], &["layers"], &["h", "layers"]] {
            let config = layers(after, &[1, 11]);
            assert!(config.adapts(UP).unwrap(), "{after:?}");
            assert!(!config.adapts(Q).unwrap(), "{after:?}");
        }
        assert!(!layers(&["blocks"], &[11]).adapts(UP).unwrap());
    }

    #[test]
    fn the_first_pattern_that_ends_the_name_gives_rank_and_alpha() {
        let config = LoraConfig {
            rank: 4,
            alpha: 8.0,
            rank_pattern: vec![(ending("layers.0.*q_proj"), 2), (ending("[qv]_proj"), 16)],
            alpha_pattern: vec![(ending("^model.layers.11.mlp.up_proj"), 2.0)],
            rs_lora: true,
            ..LoraConfig::default()
        };
        assert_eq!(config.rank_of(Q).unwrap(), 2);
        assert_eq!(
            config.rank_of("model.layers.1.self_attn.v_proj").unwrap(),
            16
        );
        // Not at a component's beginning.
        assert_eq!(
            config.rank_of("model.layers.1.self_attn.eq_proj").unwrap(),
            4
        );
        assert_eq!(config.scale_of(UP).unwrap(), 1.0);
        assert_eq!(config.scale_of(Q).unwrap(), 8.0 / 2f64.sqrt());
    }

    #[test]
    fn expressions_that_cannot_be_used_are_errors() {
        let error = LoraPattern::ending("lora.rank_pattern", "(q_proj").unwrap_err();
        assert!(error.to_string().contains("lora.rank_pattern"), "{error}");
        // A back reference keeps it from the linear-time engine.
        let endless = LoraPattern::whole("lora.targets", r"(a*)*\1b").unwrap();
        let error = endless.matches(&"a".repeat(64)).unwrap_err();
        assert!(error.to_string().contains("simplify"), "{error}");
        assert!(LoraPattern::whole("lora.targets", &"a".repeat(1 << 17)).is_err());
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let refused = |config: LoraConfig| config.validate().unwrap_err().to_string();
        let rank = LoraConfig {
            rank: 0,
            ..LoraConfig::default()
        };
        assert!(refused(rank).contains("lora.rank"));
        let alpha = LoraConfig {
            alpha: f64::NAN,
            ..LoraConfig::default()
        };
        assert!(refused(alpha).contains("lora.alpha"));
        let pattern = LoraConfig {
            rank_pattern: vec![(ending("q_proj"), LORA_RANK_MAX + 1)],
            ..LoraConfig::default()
        };
        assert!(refused(pattern).contains("lora.rank_pattern"));
        let targets = LoraConfig {
            targets: LoraModules::Names(Vec::new()),
            ..LoraConfig::default()
        };
        assert!(refused(targets).contains("lora.targets"));
    }
}
