//! Provides the part of a cache that one process computes, where several share the work.

use std::{fmt, str::FromStr};

/// `I/N`: every N-th shard, from the I-th one on, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    index: u32,
    of: u32,
}

impl Part {
    /// Whether the shard with this number is in this part.
    pub fn holds(&self, shard: u32) -> bool {
        shard % self.of == self.index
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no part; write I/N with I from 0 to N - 1, e.g. 0/4 for the first of four"
            )
        };
        let (index, of) = text.split_once('/').ok_or_else(wrong)?;
        let part = Self {
            index: index.trim().parse().map_err(|_| wrong())?,
            of: of.trim().parse().map_err(|_| wrong())?,
        };
        match part.index < part.of {
            true => Ok(part),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
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
