//! Provides the settings that are written as words: value coding, estimator, precision.

use std::{fmt, str::FromStr};

use distill_proto::{Estimator, ValueCoding};
use serde::{Deserialize, Serialize};

/// How kept logits are stored, as `step:0.125` or `f16`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ValueCodingSetting(pub ValueCoding);

impl Default for ValueCodingSetting {
    fn default() -> Self {
        Self(ValueCoding::Step(0.125))
    }
}

impl FromStr for ValueCodingSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "f16" {
            return Ok(Self(ValueCoding::F16));
        }
        let step = text
            .strip_prefix("step:")
            .and_then(|step| step.parse::<f32>().ok());
        match step {
            Some(step) if step.is_finite() && step > 0.0 => Ok(Self(ValueCoding::Step(step))),
            _ => Err(format!(
                "`{text}` is neither `f16` nor `step:NATS` with a positive number"
            )),
        }
    }
}

impl fmt::Display for ValueCodingSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ValueCoding::Step(step) => write!(f, "step:{step}"),
            ValueCoding::F16 => f.write_str("f16"),
        }
    }
}

/// How a row stands for the distribution, as `top-k`, `sampled` or `head+sampled`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EstimatorSetting(pub Estimator);

impl FromStr for EstimatorSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "top-k" => Ok(Self(Estimator::TopK)),
            "sampled" => Ok(Self(Estimator::Sampled)),
            "head+sampled" => Ok(Self(Estimator::HeadSampled)),
            _ => Err(format!(
                "`{text}` is none of `top-k`, `sampled`, `head+sampled`"
            )),
        }
    }
}

impl fmt::Display for EstimatorSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Estimator::TopK => "top-k",
            Estimator::Sampled => "sampled",
            Estimator::HeadSampled => "head+sampled",
        })
    }
}

/// Arithmetic of the teacher's layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Precision {
    /// 32 bits: the reference, and the fastest on a CPU.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl Precision {
    /// candle's name for it.
    pub fn dtype(self) -> candle_core::DType {
        match self {
            Self::F32 => candle_core::DType::F32,
            Self::Bf16 => candle_core::DType::BF16,
            Self::F16 => candle_core::DType::F16,
        }
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(format!("`{text}` is none of `f32`, `bf16`, `f16`")),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

/// serde by way of the words that flags use.
macro_rules! serde_as_words {
    ($($setting:ty),*) => {$(
        impl TryFrom<String> for $setting {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$setting> for String {
            fn from(setting: $setting) -> String {
                setting.to_string()
            }
        }
    )*};
}
pub(super) use serde_as_words;
serde_as_words!(ValueCodingSetting, EstimatorSetting, Precision);
