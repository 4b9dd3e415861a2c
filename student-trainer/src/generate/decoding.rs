//! Provides how answers are written: their length, and how tokens are chosen.

use distill_model::Sampling;

use crate::{Error, Result};

/// How answers are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoding {
    /// Where an answer is cut that does not end by itself.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Of the draws; every prompt draws by a number of its own after it.
    pub seed: u64,
}

impl Decoding {
    /// Checks the numbers; `prefix` stands before a setting's name.
    ///
    /// # Errors
    /// The first that is outside its meaning, by name.
    pub fn validate(&self, prefix: &str) -> Result<()> {
        let length = match self.max_new_tokens {
            0 => Err("max_new_tokens: must be at least 1"),
            _ => Ok(()),
        };
        let checked = self.sampling.validate().and(length);
        checked.map_err(|message| Error::Config(format!("{prefix}{message}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_by_the_name_of_its_setting() {
        let fine = Decoding {
            max_new_tokens: 1,
            sampling: Sampling::GREEDY,
            seed: 1,
        };
        fine.validate("eval_").unwrap();
        for (broken, name) in [
            (
                Decoding {
                    sampling: Sampling {
                        top_p: 0.0,
                        ..Sampling::GREEDY
                    },
                    ..fine
                },
                "eval_top_p",
            ),
            (
                Decoding {
                    max_new_tokens: 0,
                    ..fine
                },
                "eval_max_new_tokens",
            ),
        ] {
            let message = broken.validate("eval_").unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        }
    }
}
