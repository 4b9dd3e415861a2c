//! Provides the rotary settings of a `config.json`: base and scaling, in the spellings of transformers 4 and 5.

use serde::Deserialize;

use super::Architecture;
use super::check::{Problem, problem, required, within};
use super::raw::{POSITIONS_MAX, RawConfig};

/// Largest factor by which frequencies are divided; published ones are 2 to 64.
const FACTOR_MAX: f64 = 1e6;
/// Smallest positive number that such a factor, or a wave's length, may be.
const FACTOR_MIN: f64 = 1e-6;
/// SmolLM3's default: every fourth layer turns nothing.
const NO_ROPE_LAYER_INTERVAL: usize = 4;
/// Kinds of scaling that are done, for messages.
const SUPPORTED: &str = "default, linear, llama3, and longrope with one list of factors";

/// How rotary frequencies are stretched, so that a model takes longer sequences than it was first trained on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by the factor: position interpolation (Chen et al. 2023).
    Linear {
        /// What frequencies are divided by.
        factor: f64,
    },
    /// Llama 3.1's: short waves stay, long ones are divided by the factor, those between are mixed.
    Llama3 {
        /// What the frequencies of long waves are divided by.
        factor: f64,
        /// Waves that fit fewer times than this into the first training's sequences are long.
        low_freq_factor: f64,
        /// Waves that fit more often than this are short.
        high_freq_factor: f64,
        /// Length of the first training's sequences.
        original_max_position_embeddings: usize,
    },
    /// Every frequency divided by a factor of its own: LongRoPE (Ding et al. 2024) with the same factors at every length. GGUF
    /// files have Llama 3.1's angles in this form.
    LongRope {
        /// What the frequencies are divided by, the highest first; one for each pair of a head's values.
        factors: Vec<f64>,
    },
}

impl RopeScaling {
    /// What becomes of `omega`, the frequency of a head's pair number `pair`, in radians a position.
    ///
    /// Llama 3.1, with r = L omega / 2 pi the number of times that the wave fits into the original length L:
    /// `omega / factor` for r < low, `omega` for r > high, else `((1 - s) / factor + s) omega` with
    /// `s = (r - low) / (high - low)`.
    pub fn scale(&self, pair: usize, omega: f64) -> f64 {
        match self {
            Self::None => omega,
            Self::Linear { factor } => omega / factor,
            Self::LongRope { factors } => omega / factors.get(pair).unwrap_or(&1.0),
            &Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings,
            } => {
                let times = original_max_position_embeddings as f64 * omega / std::f64::consts::TAU;
                let smooth = ((times - low) / (high - low)).clamp(0.0, 1.0);
                omega * ((1.0 - smooth) / factor + smooth)
            }
        }
    }
}

/// `rope_scaling` of transformers 4 (kind under `type` or `rope_type`), `rope_parameters` of 5.
#[derive(Deserialize)]
pub(super) struct RawRope {
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
    attention_factor: Option<f64>,
}

impl RawConfig {
    /// Where transformers looks: in the nested settings first, then at the top level, then the family's default.
    pub(super) fn rope_theta(&self, default: f64) -> f64 {
        let nested = [&self.rope_parameters, &self.rope_scaling]
            .into_iter()
            .flatten()
            .find_map(|rope| rope.rope_theta);
        nested.or(self.rope_theta).unwrap_or(default)
    }

    /// Which layers turn queries and keys by their positions: all but those that SmolLM3 leaves out.
    pub(super) fn turned(
        &self,
        architecture: Architecture,
        layers: usize,
    ) -> Result<Vec<bool>, Problem> {
        if architecture != Architecture::SmolLm3 {
            return Ok(vec![true; layers]);
        }
        if let Some(flags) = &self.no_rope_layers {
            let turned: Vec<bool> = flags.iter().take(layers).map(|flag| *flag != 0).collect();
            return match turned.len() == layers {
                true => Ok(turned),
                false => problem(
                    "no_rope_layers",
                    format!(
                        "names {} layers beside num_hidden_layers = {layers}",
                        flags.len()
                    ),
                ),
            };
        }
        let interval = self
            .no_rope_layer_interval
            .unwrap_or(NO_ROPE_LAYER_INTERVAL);
        let interval = required("no_rope_layer_interval", Some(interval), usize::MAX)?;
        Ok((1..=layers)
            .map(|layer| !layer.is_multiple_of(interval))
            .collect())
    }

    /// As transformers 5, `rope_scaling` goes before `rope_parameters` where a file has both. A kind that is not done is
    /// refused in either. `pairs` are those of a head.
    pub(super) fn rope_scaling(
        &self,
        architecture: Architecture,
        positions: usize,
        pairs: usize,
    ) -> Result<RopeScaling, Problem> {
        let mut scaling = None;
        for (field, rope) in [
            ("rope_scaling", &self.rope_scaling),
            ("rope_parameters", &self.rope_parameters),
        ] {
            let Some(rope) = rope else { continue };
            refuse_partial_rotary(field, rope.partial_rotary_factor)?;
            let found = rope.scaling(field, positions, pairs)?;
            if architecture.is_outside() && found != RopeScaling::None {
                let name = architecture.name();
                return problem(field, format!("scaling is not supported for {name}"));
            }
            scaling = scaling.or(Some(found));
        }
        refuse_partial_rotary("partial_rotary_factor", self.partial_rotary_factor)?;
        Ok(scaling.unwrap_or(RopeScaling::None))
    }
}

impl RawRope {
    fn scaling(
        &self,
        field: &'static str,
        positions: usize,
        pairs: usize,
    ) -> Result<RopeScaling, Problem> {
        let kind = self.rope_type.as_deref().or(self.r#type.as_deref());
        let number = |name: &str, value: Option<f64>, min: f64| match value {
            Some(value) => factor(field, name, value, min),
            None => problem(
                field,
                format!("RoPE type `{}` without {name}", kind.unwrap_or_default()),
            ),
        };
        match kind {
            None | Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear {
                factor: number("factor", self.factor, 1.0)?,
            }),
            Some("llama3") => {
                let low_freq_factor = number("low_freq_factor", self.low_freq_factor, FACTOR_MIN)?;
                let high_freq_factor =
                    number("high_freq_factor", self.high_freq_factor, FACTOR_MIN)?;
                if high_freq_factor <= low_freq_factor {
                    return problem(
                        field,
                        format!(
                            "high_freq_factor {high_freq_factor} is not above low_freq_factor {low_freq_factor}"
                        ),
                    );
                }
                let original = self.original_max_position_embeddings.unwrap_or(positions);
                if !(1..=POSITIONS_MAX).contains(&original) {
                    return problem(
                        field,
                        format!(
                            "original_max_position_embeddings: {original} is outside 1..={POSITIONS_MAX}"
                        ),
                    );
                }
                Ok(RopeScaling::Llama3 {
                    factor: number("factor", self.factor, 1.0)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: original,
                })
            }
            Some("longrope") => self.long_rope(field, pairs),
            Some(kind) => problem(
                field,
                format!("RoPE type `{kind}` is not supported; supported are {SUPPORTED}"),
            ),
        }
    }

    /// Factors that hold at every length, with cosines and sines as they are.
    fn long_rope(&self, field: &'static str, pairs: usize) -> Result<RopeScaling, Problem> {
        let (Some(short), Some(long)) = (&self.short_factor, &self.long_factor) else {
            return problem(
                field,
                "RoPE type `longrope` without short_factor and long_factor",
            );
        };
        if short != long {
            return problem(
                field,
                format!(
                    "RoPE type `longrope` whose short_factor and long_factor differ is not supported; supported are {SUPPORTED}"
                ),
            );
        }
        if self.attention_factor != Some(1.0) {
            return problem(
                field,
                "RoPE type `longrope` is supported with attention_factor = 1",
            );
        }
        if short.len() != pairs {
            return problem(
                field,
                format!(
                    "short_factor: {} factors for the {pairs} pairs of a head's values",
                    short.len()
                ),
            );
        }
        for one in short {
            factor(field, "short_factor", *one, FACTOR_MIN)?;
        }
        Ok(RopeScaling::LongRope {
            factors: short.clone(),
        })
    }
}

/// A number of the settings in `field`.
fn factor(field: &'static str, name: &str, value: f64, min: f64) -> Result<f64, Problem> {
    within(field, value, min, FACTOR_MAX).map_err(|Problem { field, problem }| Problem {
        field,
        problem: format!("{name}: {problem}"),
    })
}

fn refuse_partial_rotary(field: &'static str, factor: Option<f64>) -> Result<(), Problem> {
    match factor {
        Some(factor) if factor != 1.0 => problem(
            field,
            format!("a rotary factor of {factor} is not supported; supported is 1"),
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Llama 3.1's.
    const LLAMA3: RopeScaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };

    /// The frequency of a wave that fits `times` into 8192 positions.
    fn fits(times: f64) -> f64 {
        std::f64::consts::TAU * times / 8192.0
    }

    #[test]
    fn short_waves_stay_and_long_ones_are_stretched() {
        for times in [4.0, 4.5, 1000.0] {
            assert_eq!(LLAMA3.scale(0, fits(times)), fits(times));
        }
        for times in [0.01, 0.5, 1.0] {
            assert_eq!(LLAMA3.scale(0, fits(times)), fits(times) / 8.0);
        }
        // Half way: the mean of both.
        let mixed = LLAMA3.scale(0, fits(2.5)) / fits(2.5);
        assert!((mixed - (1.0 + 1.0 / 8.0) / 2.0).abs() < 1e-12, "{mixed}");
    }

    #[test]
    fn factors_divide_each_its_own_frequency() {
        let scaling = RopeScaling::LongRope {
            factors: vec![1.0, 4.0],
        };
        assert_eq!([0, 1].map(|pair| scaling.scale(pair, 2.0)), [2.0, 0.5]);
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let linear = RopeScaling::Linear { factor: 4.0 };
        assert_eq!(linear.scale(0, 1.0), 0.25);
        assert_eq!(RopeScaling::None.scale(0, 0.3), 0.3);
    }
}
