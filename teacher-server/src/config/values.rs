//! Provides the settings that are written as words: value coding, estimator, the sharing of the device.

use std::{fmt, str::FromStr};

use distill_proto::{Estimator, ValueCoding};
use serde::{Deserialize, Serialize};

use super::BindAddress;

/// How kept logits are stored, as `graded`, `graded:NATS`, `step:NATS` or `f16`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ValueCodingSetting(pub ValueCoding);

impl Default for ValueCodingSetting {
    fn default() -> Self {
        Self(ValueCoding::GRADED)
    }
}

impl FromStr for ValueCodingSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let coding = match text.split_once(':') {
            None if text == "f16" => Some(ValueCoding::F16),
            None if text == "graded" => Some(ValueCoding::GRADED),
            Some(("graded", step)) => step.parse().ok().map(ValueCoding::Graded),
            Some(("step", step)) => step.parse().ok().map(ValueCoding::Step),
            _ => None,
        };
        match coding {
            Some(coding) if coding.is_valid() => Ok(Self(coding)),
            _ => Err(format!(
                "`{text}` is none of `graded`, `graded:NATS` with a multiple of 1/1024 up to 1, `step:NATS` with a positive \
                 number, `f16`"
            )),
        }
    }
}

impl fmt::Display for ValueCodingSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ValueCoding::Step(step) => write!(f, "step:{step}"),
            ValueCoding::F16 => f.write_str("f16"),
            ValueCoding::GRADED => f.write_str("graded"),
            ValueCoding::Graded(step) => write!(f, "graded:{step}"),
        }
    }
}

/// How a row stands for the distribution, as `top-k`, `sampled` or `head+sampled`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EstimatorSetting(pub Estimator);

impl Default for EstimatorSetting {
    fn default() -> Self {
        Self(Estimator::HeadSampled)
    }
}

impl FromStr for EstimatorSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |estimator: &Estimator| estimator.name() == text;
        let unknown = || {
            let names = Estimator::ALL.map(Estimator::name).join("`, `");
            format!("`{text}` is none of `{names}`")
        };
        Estimator::ALL
            .into_iter()
            .find(named)
            .map(Self)
            .ok_or_else(unknown)
    }
}

impl fmt::Display for EstimatorSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

/// How the device is shared with trainers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum VramMode {
    /// The teacher stays in memory.
    #[default]
    Resident,
    /// Teacher and trainers take turns.
    Swap,
}

impl FromStr for VramMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "resident" => Ok(Self::Resident),
            "swap" => Ok(Self::Swap),
            "cached" => Err(
                "`cached` is what serving a complete cache is; name it with --cache and leave this out"
                    .to_owned(),
            ),
            _ => Err(format!("`{text}` is none of `resident`, `swap`")),
        }
    }
}

impl fmt::Display for VramMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resident => "resident",
            Self::Swap => "swap",
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
serde_as_words!(ValueCodingSetting, EstimatorSetting, VramMode, BindAddress);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_codings_are_written_as_they_are_read() {
        for word in ["graded", "graded:0.0625", "step:0.125", "f16"] {
            let setting: ValueCodingSetting = word.parse().unwrap();
            assert_eq!(setting.to_string(), word);
        }
        assert_eq!(ValueCodingSetting::default().to_string(), "graded");
        for word in [
            "graded:2",
            "graded:0.0001",
            "graded:nan",
            "step:0",
            "step:-1",
            "step:inf",
            "step",
            "f32",
        ] {
            let refused = word.parse::<ValueCodingSetting>().unwrap_err();
            assert!(
                refused.contains(word) && refused.contains("graded:NATS"),
                "{refused}"
            );
        }
    }
}
