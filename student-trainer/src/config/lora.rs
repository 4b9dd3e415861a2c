//! Provides what `train` is told about adapters as the decoder's configuration of them.

use distill_model::{LoraConfig, LoraModules, LoraPattern};

use super::TrainConfig;
use crate::{Error, Result};

/// The one target that stands for every linear of a decoder layer.
const ALL_LINEAR: &str = "all-linear";

impl TrainConfig {
    /// The adapters that `lora_*` ask for.
    ///
    /// # Errors
    /// The setting that makes no adapter, by name.
    pub fn lora(&self) -> Result<LoraConfig> {
        let targets = match self.lora_targets.as_slice() {
            [] => {
                return Err(Error::Config(
                    "lora_targets: name at least one projection".into(),
                ));
            }
            [all] if all.eq_ignore_ascii_case(ALL_LINEAR) => LoraModules::AllLinear,
            names => LoraModules::Names(names.to_vec()),
        };
        let lora = LoraConfig {
            rank: self.lora_rank,
            alpha: self.lora_alpha,
            targets,
            rank_pattern: patterns("lora_rank_pattern", &self.lora_rank_pattern)?,
            alpha_pattern: patterns("lora_alpha_pattern", &self.lora_alpha_pattern)?,
            seed: self.seed,
            rs_lora: self.lora_rs,
            ..LoraConfig::default()
        };
        // Its options are called as the settings are: lora.rank is lora_rank.
        lora.validate().map_err(|e| match e {
            distill_model::Error::InvalidOption { option, message } => {
                Error::Config(format!("{}: {message}", option.replace('.', "_")))
            }
            other => other.into(),
        })?;
        Ok(lora)
    }
}

/// Reads `expression=value`; the value is what follows the last `=`.
fn patterns<T: std::str::FromStr>(
    setting: &'static str,
    entries: &[String],
) -> Result<Vec<(LoraPattern, T)>> {
    let entry = |text: &String| {
        let fault = |problem: &str| Error::Config(format!("{setting}: `{text}` {problem}"));
        let (expression, value) = text
            .rsplit_once('=')
            .ok_or_else(|| fault("is not EXPRESSION=NUMBER, such as v_proj=32"))?;
        let value = value
            .trim()
            .parse()
            .map_err(|_| fault("does not end in a number"))?;
        let pattern =
            LoraPattern::ending(setting, expression.trim()).map_err(|e| fault(&e.to_string()))?;
        Ok((pattern, value))
    };
    entries.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_and_broken_ones_are_named() {
        let config = TrainConfig {
            lora_rank_pattern: vec!["layers.0.*v_proj=4".into(), "(?=x)x=8".into()],
            lora_alpha_pattern: vec!["up_proj=1.5".into()],
            lora_targets: vec!["all-linear".into()],
            lora_rs: true,
            ..TrainConfig::default()
        };
        let lora = config.lora().unwrap();
        let module = "model.layers.0.self_attn.v_proj";
        assert_eq!((lora.rank_of(module).unwrap(), lora.rs_lora), (4, true));
        assert_eq!(lora.scale_of("up_proj").unwrap(), 1.5 / 4.0);
        for entry in [
            "v_proj",
            "v_proj=",
            "v_proj=-1",
            "v_proj=0",
            "(=4",
            "v_proj=9999",
        ] {
            let config = TrainConfig {
                lora_rank_pattern: vec![entry.into()],
                ..TrainConfig::default()
            };
            let message = config.lora().unwrap_err().to_string();
            assert!(message.starts_with("lora_rank_pattern: "), "{message}");
        }
    }
}
