//! Provides the update of the adapters: gradient clipping's factor, AdamW and the learning rate's schedule.

mod adamw;
mod blockwise;
mod card;
mod group;
mod moments;
#[expect(clippy::module_inception, reason = "the name says it best")]
mod optimizer;
mod schedule;
mod settings;

pub use adamw::AdamWConfig;
pub use group::{EIGHT_BIT_SIZE_MIN, LearningRateRatios};
pub use optimizer::{Optimizer, OptimizerConfig, OptimizerKind};
pub use schedule::Schedule;
pub use settings::UpdateSettings;
pub(crate) use settings::update_settings;

/// The factor that brings a gradient of norm `norm` down to `max_norm`; 1 where it is smaller, or where `max_norm` is 0.
///
/// As `torch.nn.utils.clip_grad_norm_`: `min(1, max_norm / (norm + 1e-6))`.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 {
        (max_norm / (norm + 1e-6)).min(1.0)
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::clip_factor;

    #[test]
    fn clips_only_what_is_too_long() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(100.0, 0.0), 1.0);
        // torch's 1e-6 keeps the clipped norm a millionth below the limit.
        let clipped = 4.0 * clip_factor(4.0, 1.0);
        assert!((clipped - 1.0).abs() < 1e-6 && clipped < 1.0);
    }
}
