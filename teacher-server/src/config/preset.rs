//! Provides presets: names for settings that go together. File and flags win over them.

use distill_text::nearest;
use toml::{Table, Value};

use crate::{Error, Result};

/// Names of all presets, and what they stand for.
const PRESETS: [(&str, &str); 1] = [("reference-24gb", REFERENCE_24GB)];

/// Weights in f32 would not fit the card. What is kept of a row is what docs/which-loss.md found to be enough.
const REFERENCE_24GB: &str = r#"
seq_len = 512
batch_size = 1
dtype = "bf16"
estimator = "head+sampled"
top_k = 8
draws = 16
temperatures = [1.0]
chunk_rows = 128
"#;

/// The settings that a preset stands for.
///
/// # Errors
/// `Config` naming the nearest preset.
pub(super) fn preset(name: &Value) -> Result<Table> {
    let name = name.as_str().unwrap_or_default();
    let names = PRESETS.map(|(name, _)| name);
    let Some((_, settings)) = PRESETS.iter().find(|(preset, _)| *preset == name) else {
        let nearest = nearest(name, names).unwrap_or_default();
        let reason = format!("there is no `{name}`; the nearest is `{nearest}`");
        return Err(Error::config("preset", reason));
    };
    let cannot = |e: toml::de::Error| Error::config("preset", e.to_string());
    settings.parse().map_err(cannot)
}
