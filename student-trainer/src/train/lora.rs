//! Provides the adapters that a run trains: new ones as the settings say, or existing ones to be continued.

use distill_model::{Decoder, LORA_TARGETS, LoraConfig, LoraModules, LoraPattern};

use crate::{
    Error, Result,
    config::TrainConfig,
    run::{AdapterConfig, load_adapter},
};

/// Which adapters the decoder grows: those of `init_adapter` where it is set, else those that `lora_*` ask for.
///
/// # Errors
/// An adapter that cannot be continued, or settings that make none, by name.
pub(super) fn choose(config: &TrainConfig) -> Result<LoraConfig> {
    let Some(directory) = &config.init_adapter else {
        return config.lora();
    };
    Ok(LoraConfig {
        seed: config.seed,
        ..AdapterConfig::read(directory)?.lora()
    })
}

/// Gives the fresh adapters of `decoder` the values that they start from.
///
/// # Errors
/// A target or an expression that matches no linear: it would do nothing without a word. Or weights that do not fit.
pub(super) fn start(config: &TrainConfig, lora: &LoraConfig, decoder: &Decoder) -> Result<()> {
    let parameters = decoder.parameters();
    if let Some(directory) = &config.init_adapter {
        load_adapter(directory, &parameters)?;
        tracing::info!("adapters: continued from {}", directory.display());
        return Ok(());
    }
    let adapted: Vec<&str> = parameters
        .iter()
        .filter_map(|(name, _)| {
            let module = name.strip_prefix("base_model.model.")?;
            module.strip_suffix(".lora_A.weight")
        })
        .collect();
    if let LoraModules::Names(names) = &lora.targets {
        let used = |name: &&String| {
            let rest = |module: &&str| module.strip_suffix(name.as_str()).map(str::to_owned);
            let ends = |rest: String| rest.is_empty() || rest.ends_with('.');
            adapted.iter().filter_map(rest).any(ends)
        };
        if let Some(name) = names.iter().find(|name| !used(name)) {
            return Err(Error::Config(format!(
                "lora_targets: the student has no linear `{name}`; there are {}",
                LORA_TARGETS.join(", ")
            )));
        }
    }
    let ranks = lora.rank_pattern.iter().map(|(pattern, _)| pattern);
    let alphas = lora.alpha_pattern.iter().map(|(pattern, _)| pattern);
    for (setting, pattern) in std::iter::empty()
        .chain(ranks.map(|pattern| ("lora_rank_pattern", pattern)))
        .chain(alphas.map(|pattern| ("lora_alpha_pattern", pattern)))
    {
        check_used(setting, pattern, &adapted)?;
    }
    Ok(())
}

fn check_used(setting: &str, pattern: &LoraPattern, adapted: &[&str]) -> Result<()> {
    for module in adapted {
        if pattern.matches(module)? {
            return Ok(());
        }
    }
    Err(Error::Config(format!(
        "{setting}: `{}` matches no adapted linear; names are such as {}",
        pattern.as_str(),
        adapted.first().unwrap_or(&"model.layers.0.mlp.up_proj")
    )))
}
