//! Provides presets: names for settings that go together. File and flags win over them.

use toml::{Table, Value};

use super::nearest;
use crate::{Error, Result, loss::LossConfig};

/// Names of all presets.
const NAMES: [&str; 3] = ["default", "literal", "reference-24gb"];

/// Qwen2.5-7B teaches a 4-bit Qwen2.5-1.5B windows of 512 tokens, both on one card of 24 GB; `teacher-server` has a preset
/// of the same name. Sixteen windows a step, four in a pass, and QLoRA's learning rate for a model of this size; the last
/// three keys are what `plan` is told.
const REFERENCE_24GB: &str = r#"
quantize = "nf4"
dtype = "bf16"
batch_size = 16
pack_tokens = 2048
checkpointing = true
optimizer = "adamw"
lr = 2e-4
warmup_ratio = 0.03
max_grad_norm = 1.0
lora_rank = 16
lora_alpha = 32.0
seq_len = 512
teacher_dtype = "bf16"
vram_mib = 24564
[loss]
chunk_rows = 128
"#;

/// The settings that a preset stands for, of all commands.
///
/// # Errors
/// A name that no preset has, with the nearest.
pub(super) fn preset(name: &Value) -> Result<Table> {
    let loss = |loss: LossConfig| {
        let loss = Value::try_from(loss).map_err(cannot_write)?;
        Ok(Table::from_iter([("loss".to_owned(), loss)]))
    };
    match name.as_str().unwrap_or_default() {
        "reference-24gb" => REFERENCE_24GB.parse().map_err(cannot_write),
        name if NAMES.contains(&name) => loss(LossConfig::preset(name)?),
        name => {
            let near = nearest(name, NAMES).unwrap_or_default();
            Err(Error::Config(format!(
                "preset: there is no `{name}`; the nearest is `{near}`, of {}",
                NAMES.join(", ")
            )))
        }
    }
}

fn cannot_write(error: impl std::fmt::Display) -> Error {
    Error::Config(format!("the preset cannot be written as TOML: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use crate::{
        config::{ComputeDtype, Keys, Settings, TrainConfig, resolve, with_flags},
        loss::LossConfig,
        plan::PlanConfig,
        pretrain::PretrainConfig,
    };

    fn resolved<C: Settings>(flags: &[&str]) -> crate::Result<C> {
        let known = [TrainConfig::keys(), PlanConfig::keys()].concat();
        let command = with_flags::<C>(Command::new("x"));
        let args = ["x"].iter().chain(flags);
        Ok(resolve(&command.get_matches_from(args), &known)?.config)
    }

    #[test]
    fn flags_win_over_the_reference_pair_s_preset() {
        let flags = ["--preset", "reference-24gb", "--lora-rank", "8"];
        let train: TrainConfig = resolved(&flags).unwrap();
        assert_eq!((train.batch_size, train.lora_rank), (16, 8));
        assert_eq!(
            (train.grad_accumulation, train.pack_tokens),
            (1, Some(2048))
        );
        assert_eq!(train.dtype, ComputeDtype::Bf16);
        assert_eq!(train.loss, LossConfig::default());
        let plan: PlanConfig = resolved(&flags).unwrap();
        assert_eq!((plan.options.seq_len, plan.train.lora_rank), (512, 8));
        assert_eq!(plan.train.dtype, ComputeDtype::Bf16);
    }

    #[test]
    fn every_key_of_a_preset_is_some_command_s() {
        let keys = [TrainConfig::keys(), PlanConfig::keys()].concat();
        let table: toml::Table = super::REFERENCE_24GB.parse().unwrap();
        for (name, _) in table.iter().filter(|(name, _)| *name != "loss") {
            assert!(keys.iter().any(|key| key.path == *name), "{name}");
        }
    }

    #[test]
    fn an_unknown_preset_names_the_nearest() {
        let error = resolved::<TrainConfig>(&["--preset", "reference-24"]).unwrap_err();
        assert!(error.to_string().contains("`reference-24gb`"), "{error}");
    }

    #[test]
    fn a_file_s_preset_leaves_commands_without_presets_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "preset = \"reference-24gb\"").unwrap();
        let path = path.to_str().unwrap();
        let config: PretrainConfig = resolved(&["--config", path]).unwrap();
        assert_eq!(config, PretrainConfig::default());
    }
}
