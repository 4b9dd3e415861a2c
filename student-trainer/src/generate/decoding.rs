//! Provides how answers are written as a command's settings say it, and the check of it by their names.

use distill_model::answers::Decoding;

use crate::{Error, Result};

/// What the settings of a command say that answers outside of training.
macro_rules! decoding_of {
    ($config:expr) => {
        ::distill_model::answers::Decoding {
            max_new_tokens: $config.max_new_tokens,
            sampling: ::distill_model::Sampling {
                temperature: $config.temperature,
                top_k: $config.top_k,
                top_p: $config.top_p,
                min_p: $config.min_p,
            },
            seed: $config.sample_seed,
        }
    };
}
pub(crate) use decoding_of;

/// Checks the numbers; `prefix` stands before a setting's name.
///
/// # Errors
/// The first that is outside its meaning, by name.
pub(crate) fn check_decoding(decoding: &Decoding, prefix: &str) -> Result<()> {
    let checked = decoding.validate();
    checked.map_err(|message| Error::Config(format!("{prefix}{message}")))
}

#[cfg(test)]
mod tests {
    use distill_model::Sampling;

    use super::*;

    #[test]
    fn nonsense_is_refused_by_the_name_of_its_setting() {
        let fine = Decoding {
            max_new_tokens: 1,
            sampling: Sampling::GREEDY,
            seed: 1,
        };
        check_decoding(&fine, "eval_").unwrap();
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
            let message = check_decoding(&broken, "eval_").unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        }
    }
}
