//! Provides the adapters that a run trains: new ones as the settings say, or existing ones to be continued.

use distill_model::{Decoder, LoraConfig};

use crate::{
    Result,
    config::TrainConfig,
    run::{AdapterConfig, load_adapter, refuse_unused, warn_of_unused},
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
    if let Some(directory) = &config.init_adapter {
        warn_of_unused(directory, lora, decoder.config())?;
        load_adapter(directory, &decoder.parameters())?;
        tracing::info!("adapters: continued from {}", directory.display());
        return Ok(());
    }
    refuse_unused(lora, decoder.config())
}
