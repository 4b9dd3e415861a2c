//! Provides the part of a cache that one process computes, where several share the work.

use std::str::FromStr;

use super::scheduler;

/// Some of the shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Written `I/N`: every N-th shard, from the I-th one on, counted from 0; or `auto`, where a scheduler says both.
    Every {
        /// I.
        index: u32,
        /// N.
        of: u32,
    },
    /// The shards with these numbers.
    These(Vec<u32>),
}

impl Part {
    /// Whether the shard with this number is in this part.
    pub fn holds(&self, shard: u32) -> bool {
        match self {
            Self::Every { index, of } => shard % of == *index,
            Self::These(shards) => shards.contains(&shard),
        }
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no part; write I/N with I from 0 to N - 1, e.g. 0/4 for the first of four, or auto"
            )
        };
        if text == "auto" {
            let [index, of] = scheduler::rank(|name| {
                Some(std::env::var_os(name)?.to_string_lossy().into_owned())
            })?;
            return Ok(Self::Every { index, of });
        }
        let (index, of) = text.split_once('/').ok_or_else(wrong)?;
        let index: u32 = index.trim().parse().map_err(|_| wrong())?;
        let of: u32 = of.trim().parse().map_err(|_| wrong())?;
        if index < of {
            Ok(Self::Every { index, of })
        } else {
            Err(wrong())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_shard_once() {
        let parts: Vec<Part> = ["0/3", "1/3", "2/3"]
            .map(|text| text.parse().unwrap())
            .into();
        for shard in 0..10 {
            assert_eq!(parts.iter().filter(|part| part.holds(shard)).count(), 1);
        }
        for wrong in ["", "3", "3/3", "a/b", "-1/2", "0/0"] {
            assert!(
                wrong.parse::<Part>().unwrap_err().contains("I/N"),
                "{wrong}"
            );
        }
    }
}
