//! Provides the setting of what is sent of the hidden states: nothing, all of the last one, a sketch, those of some layers.

use std::{fmt, str::FromStr};

use distill_proto::{
    StateCoding, StateKind,
    limits::{STATE_LAYERS_MAX, STATE_RANK_MAX},
};
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
    /// The outputs of some layers; no basis.
    Hidden {
        /// Which.
        layers: Layers,
        /// How they are stored.
        coding: StateCoding,
    },
}

/// Layers whose outputs are kept, in increasing order: 0 for the embeddings, 1 for the first decoder layer, and so on; and
/// `last` for the output after the final norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layers {
    /// The first `count` are there.
    numbers: [u32; STATE_LAYERS_MAX],
    count: usize,
    has_last: bool,
}

/// How the output after the final norm is written.
const LAST: &str = "last";

impl Layers {
    /// The numbers, without `last`.
    pub fn numbered(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        self.numbers
            .into_iter()
            .take(self.count)
            .map(|number| number as usize)
    }

    /// Whether the output after the final norm is among them.
    pub fn has_last(&self) -> bool {
        self.has_last
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.count + usize::from(self.has_last)
    }

    /// Their numbers in a model of `layers` decoder layers, where `last` is that number.
    pub fn of_model(&self, layers: usize) -> Vec<u32> {
        let last = self.has_last.then_some(layers as u32);
        self.numbers
            .into_iter()
            .take(self.count)
            .chain(last)
            .collect()
    }
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut layers = Self {
            numbers: [0; STATE_LAYERS_MAX],
            count: 0,
            has_last: false,
        };
        for word in text.split(',') {
            let order = "layers increase, 0 is the embeddings, and `last` comes last";
            if layers.has_last {
                return Err(format!("`{text}`: {order}"));
            }
            if layers.len() == STATE_LAYERS_MAX {
                return Err(format!("`{text}`: {STATE_LAYERS_MAX} layers at most"));
            }
            if word == LAST {
                layers.has_last = true;
                continue;
            }
            let number = word
                .parse()
                .map_err(|_| format!("`{word}` is no layer; {order}"))?;
            if layers
                .numbered()
                .last()
                .is_some_and(|before| before >= number as usize)
            {
                return Err(format!("`{text}`: {order}"));
            }
            if let Some(place) = layers.numbers.get_mut(layers.count) {
                *place = number;
            }
            layers.count += 1;
        }
        Ok(layers)
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = self.numbered().map(|number| number.to_string());
        let last = self.has_last.then(|| LAST.to_owned());
        f.write_str(&numbers.chain(last).collect::<Vec<_>>().join(","))
    }
}

impl StateSetting {
    /// Parts of a row, each of them a layer's output or all there is.
    pub fn layers(self) -> usize {
        match self {
            Self::Hidden { layers, .. } => layers.len(),
            _ => 1,
        }
    }

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
                "`{text}` is none of `none`, `exact`, `sketch:R`, `hidden:L,L,..`, the last three with `:f16` or `:i8` after it"
            )
        };
        let (rest, coding) = match text.rsplit_once(':') {
            Some((rest, "f16")) => (rest, Some(StateCoding::F16)),
            Some((rest, "i8")) => (rest, Some(StateCoding::I8)),
            _ => (text, None),
        };
        if let Some(layers) = rest.strip_prefix("hidden:") {
            return Ok(Self::Hidden {
                layers: layers.parse()?,
                coding: coding.unwrap_or(StateCoding::F16),
            });
        }
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
            Self::Hidden { layers, coding } => write!(f, "hidden:{layers}:{}", word(coding)),
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
            ("hidden:0", "hidden:0:f16"),
            ("hidden:0,12,last", "hidden:0,12,last:f16"),
            ("hidden:last:i8", "hidden:last:i8"),
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
            "hidden:",
            "hidden:x",
            "hidden:2,1",
            "hidden:1,1",
            "hidden:last,3",
            "hidden:last,last",
            "hidden:1,,2",
            "hidden:-1",
            "hidden:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
            "sketch:8:i8:i8",
        ] {
            assert!(text.parse::<StateSetting>().is_err(), "{text}");
        }
    }
}
