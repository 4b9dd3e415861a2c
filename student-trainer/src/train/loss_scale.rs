//! Provides dynamic loss scaling (Micikevicius et al., "Mixed precision training", 2018): in f16, gradients below 6e-8 vanish
//! on their way through the decoder, so the loss is multiplied by as much as they bear.

use candle_core::DType;
use serde::{Deserialize, Serialize};

/// Where f16 begins: torch's GradScaler does, too.
const SCALE_START: f64 = 65_536.0;
/// Beyond it nothing is gained, and a gradient of 1 would be near f16's largest number's square.
const SCALE_MAX: f64 = 16_777_216.0;
/// Steps without an overflow before the scale doubles.
const GROWTH_STEPS: usize = 2_000;

/// The factor on the loss, and how it has fared: what a checkpoint must keep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScaleState {
    /// The factor.
    pub scale: f64,
    /// Steps since it changed.
    pub good_steps: usize,
    /// Steps that were skipped because a gradient overflowed.
    pub skipped: usize,
}

/// Moves the scale: halved when a gradient overflows, doubled after many steps without.
#[derive(Clone, Debug)]
pub struct LossScaler {
    /// `None` where the type's range is that of f32.
    state: Option<LossScaleState>,
}

/// What to do with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its gradients are what they are; infinite ones are the run's fault.
    Use,
    /// Its gradients overflowed by the scale: go on without an update.
    Skip,
}

impl LossScaler {
    /// For a decoder that computes in `dtype`: at work in f16, idle elsewhere.
    pub fn new(dtype: DType) -> Self {
        let state = LossScaleState {
            scale: SCALE_START,
            good_steps: 0,
            skipped: 0,
        };
        Self {
            state: (dtype == DType::F16).then_some(state),
        }
    }

    /// The factor for the next step.
    pub fn scale(&self) -> f64 {
        self.state.map_or(1.0, |state| state.scale)
    }

    /// Takes note of whether a step's gradients were finite, and says what to do with them.
    ///
    /// At a scale of 1 an overflow is no longer the scale's doing, and is left for the run to report.
    pub fn settle(&mut self, finite: bool) -> Verdict {
        let Some(state) = &mut self.state else {
            return Verdict::Use;
        };
        if !finite {
            if state.scale <= 1.0 {
                return Verdict::Use;
            }
            state.scale = (state.scale / 2.0).max(1.0);
            state.good_steps = 0;
            state.skipped += 1;
            return Verdict::Skip;
        }
        state.good_steps += 1;
        if state.good_steps == GROWTH_STEPS {
            state.scale = (state.scale * 2.0).min(SCALE_MAX);
            state.good_steps = 0;
        }
        Verdict::Use
    }

    /// What a checkpoint must keep; `None` where there is nothing.
    pub fn state(&self) -> Option<LossScaleState> {
        self.state
    }

    /// Goes on from a checkpoint. A state from another type is left aside: the scale belongs to the arithmetic.
    pub fn restore(&mut self, state: Option<LossScaleState>) {
        if let (Some(own), Some(state)) = (&mut self.state, state) {
            *own = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflows_halve_and_good_steps_double() {
        let mut scaler = LossScaler::new(DType::F16);
        assert_eq!(scaler.settle(false), Verdict::Skip);
        assert_eq!(scaler.scale(), SCALE_START / 2.0);
        for _ in 0..GROWTH_STEPS {
            assert_eq!(scaler.settle(true), Verdict::Use);
        }
        assert_eq!(scaler.scale(), SCALE_START);
        assert_eq!(scaler.state().map(|state| state.skipped), Some(1));
        let mut other = LossScaler::new(DType::F16);
        other.restore(scaler.state());
        assert_eq!(other.state(), scaler.state());
    }

    #[test]
    fn an_overflow_at_scale_one_is_the_runs_own() {
        let mut scaler = LossScaler::new(DType::F16);
        while scaler.scale() > 1.0 {
            assert_eq!(scaler.settle(false), Verdict::Skip);
        }
        assert_eq!(scaler.settle(false), Verdict::Use);
    }

    #[test]
    fn f32_and_bf16_are_left_alone() {
        for dtype in [DType::F32, DType::BF16] {
            let mut scaler = LossScaler::new(dtype);
            assert_eq!((scaler.scale(), scaler.settle(false)), (1.0, Verdict::Use));
            assert!(scaler.state().is_none());
        }
    }
}
