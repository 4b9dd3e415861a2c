//! Provides the setting of what is sent of the hidden states: nothing, all of the last one, a sketch, an earlier layer's.

use std::{fmt, str::FromStr};

use distill_proto::{StateCoding, StateKind, limits::STATE_RANK_MAX};
use serde::{Deserialize, Serialize};

use super::values::serde_as_words;

/// Whether, of which layer and how hidden states are stored with every row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StateSetting {
    /// Not at all: losses on logit similarities cannot be had.
    #[default]
    None,
    /// The last hidden state; the basis is the centred lm_head.
    Exact(StateCoding),
    /// Coordinates in the leading directions of the centred logits.
    Sketch {
        /// Number of directions, R.
        rank: usize,
        /// How they are stored.
        coding: StateCoding,
    },
    /// The output of an earlier layer; no basis.
    Hidden {
        /// Decoder layer, the first one is 1.
        layer: usize,
        /// How it is stored.
        coding: StateCoding,
    },
}

impl StateSetting {
    /// What frames will hold.
    pub fn kind(self) -> Option<StateKind> {
        match self {
            Self::None => None,
            Self::Exact(_) => Some(StateKind::Exact),
            Self::Sketch { .. } => Some(StateKind::Sketch),
            Self::Hidden { .. } => Some(StateKind::Hidden),
        }
    }
}

impl StateSetting {
    /// Bytes of one coordinate as it is stored.
    pub fn coordinate_bytes(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Exact(coding) | Self::Sketch { coding, .. } | Self::Hidden { coding, .. } => {
                match coding {
                    StateCoding::F16 => 2,
                    StateCoding::I8 => 1,
                }
            }
        }
    }
}

impl FromStr for StateSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || {
            format!(
                "`{text}` is none of `none`, `exact`, `sketch:R`, `hidden:L`, the last three with `:f16` or `:i8` after it"
            )
        };
        let (rest, coding) = match text.rsplit_once(':') {
            Some((rest, "f16")) => (rest, Some(StateCoding::F16)),
            Some((rest, "i8")) => (rest, Some(StateCoding::I8)),
            _ => (text, None),
        };
        let (kind, number) = match rest.split_once(':') {
            Some((kind, number)) => (kind, Some(number.parse::<usize>().map_err(|_| unknown())?)),
            None => (rest, None),
        };
        match (kind, number) {
            ("none", None) if coding.is_none() => Ok(Self::None),
            ("exact", None) => Ok(Self::Exact(coding.unwrap_or(StateCoding::F16))),
            ("sketch", Some(rank)) if (1..=STATE_RANK_MAX).contains(&rank) => Ok(Self::Sketch {
                rank,
                coding: coding.unwrap_or(StateCoding::I8),
            }),
            ("sketch", Some(rank)) => Err(format!(
                "a sketch of {rank} directions; give 1 to {STATE_RANK_MAX}, most often 64 to 256"
            )),
            ("hidden", Some(layer)) if layer > 0 => Ok(Self::Hidden {
                layer,
                coding: coding.unwrap_or(StateCoding::F16),
            }),
            ("hidden", Some(_)) => Err("layers are counted from 1".to_owned()),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for StateSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |coding: &StateCoding| match coding {
            StateCoding::F16 => "f16",
            StateCoding::I8 => "i8",
        };
        match self {
            Self::None => f.write_str("none"),
            Self::Exact(coding) => write!(f, "exact:{}", word(coding)),
            Self::Sketch { rank, coding } => write!(f, "sketch:{rank}:{}", word(coding)),
            Self::Hidden { layer, coding } => write!(f, "hidden:{layer}:{}", word(coding)),
        }
    }
}
serde_as_words!(StateSetting);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_they_are_written() {
        for (text, full) in [
            ("none", "none"),
            ("exact", "exact:f16"),
            ("exact:i8", "exact:i8"),
            ("sketch:128", "sketch:128:i8"),
            ("sketch:1:f16", "sketch:1:f16"),
            ("hidden:3", "hidden:3:f16"),
            ("hidden:3:i8", "hidden:3:i8"),
        ] {
            let setting: StateSetting = text.parse().unwrap();
            assert_eq!(setting.to_string(), full);
            assert_eq!(full.parse::<StateSetting>().unwrap(), setting);
        }
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for text in [
            "",
            "none:i8",
            "exact:4",
            "exact:f32",
            "sketch",
            "sketch:",
            "sketch:0",
            "sketch:-1",
            "sketch:40000",
            "sketch:8:8",
            "hidden",
            "hidden:0",
            "hidden:x",
            "sketch:8:i8:i8",
        ] {
            assert!(text.parse::<StateSetting>().is_err(), "{text}");
        }
    }
}
