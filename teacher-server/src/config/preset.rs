//! Provides presets: names for settings that go together. File and flags win over them.

use distill_model::ComputeDtype;
use distill_proto::Estimator;
use distill_text::nearest;

use super::{EstimatorSetting, refuse};
use crate::{Result, cli::Settings};

/// Names of all presets.
const NAMES: [&str; 1] = ["reference-24gb"];

/// The settings that a preset stands for.
///
/// # Errors
/// `Config` naming the nearest preset.
pub(super) fn preset(name: &str) -> Result<Settings> {
    match name {
        // Weights in f32 would not fit the card. What is kept of a row is what docs/losses.md found to be enough.
        "reference-24gb" => Ok(Settings {
            seq_len: Some(512),
            batch_size: Some(1),
            dtype: Some(ComputeDtype::Bf16),
            estimator: Some(EstimatorSetting(Estimator::HeadSampled)),
            top_k: Some(8),
            draws: Some(16),
            temperatures: Some(vec![1.0]),
            chunk_rows: Some(128),
            ..Settings::default()
        }),
        _ => {
            let nearest = nearest(name, NAMES).unwrap_or_default();
            let reason = format!("there is no `{name}`; the nearest is `{nearest}`");
            Err(refuse("preset", reason))
        }
    }
}
