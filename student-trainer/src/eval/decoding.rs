//! Provides the choice of the next token: the likeliest, or drawn by temperature and top-p.

use candle_core::Tensor;
use candle_transformers::generation::LogitsProcessor;

use crate::{Error, Result, loss::is_positive};

/// Logits over less than this overflow f32.
const TEMPERATURE_MIN: f64 = 1e-30;

/// How completions are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoding {
    /// Where a completion is cut that does not end by itself.
    pub max_new_tokens: usize,
    /// Divides the logits before sampling; 0 is greedy.
    pub temperature: f64,
    /// Share of the mass that is drawn from, the likeliest tokens first.
    pub top_p: f64,
    /// Of the draws.
    pub seed: u64,
}

impl Decoding {
    /// Checks the numbers; `prefix` stands before a setting's name.
    ///
    /// # Errors
    /// The first that is outside its meaning, by name.
    pub fn validate(&self, prefix: &str) -> Result<()> {
        let checks = [
            (
                self.temperature == 0.0
                    || (self.temperature >= TEMPERATURE_MIN && self.temperature.is_finite()),
                "temperature: must be 0, which is greedy, or a number of at least 1e-30",
            ),
            (
                is_positive(self.top_p) && self.top_p <= 1.0,
                "top_p: must lie above 0, also in f32, and at most at 1",
            ),
            (
                self.max_new_tokens > 0,
                "max_new_tokens: must be at least 1",
            ),
        ];
        match checks.into_iter().find(|(fine, _)| !fine) {
            Some((_, message)) => Err(Error::Config(format!("{prefix}{message}"))),
            None => Ok(()),
        }
    }

    /// What chooses the tokens of prompt number `index`. Every prompt draws for itself: its answer does not depend on
    /// which others it shares a batch with.
    pub(super) fn chooser(&self, index: usize) -> Chooser {
        let seed = self.seed.wrapping_add(index as u64);
        let temperature = (self.temperature > 0.0).then_some(self.temperature);
        let top_p = (self.top_p < 1.0).then_some(self.top_p);
        Chooser(temperature.map(|_| LogitsProcessor::new(seed, temperature, top_p)))
    }
}

/// Chooses the tokens of one completion.
pub(super) struct Chooser(Option<LogitsProcessor>);

impl Chooser {
    /// The next token after `logits`, whose likeliest is `likeliest`.
    ///
    /// # Shapes
    /// `logits`: `[V]`.
    ///
    /// # Errors
    /// A tensor error; weights that cannot be drawn from.
    pub fn next(&mut self, logits: &Tensor, likeliest: u32) -> Result<u32> {
        match &mut self.0 {
            None => Ok(likeliest),
            Some(processor) => Ok(processor.sample(logits)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    const GREEDY: Decoding = Decoding {
        max_new_tokens: 1,
        temperature: 0.0,
        top_p: 1.0,
        seed: 1,
    };

    /// How often each of three tokens with probabilities 0.6, 0.3 and 0.1 is drawn by 2000 prompts.
    fn shares(decoding: &Decoding) -> Vec<f64> {
        let logits = Tensor::new(&[0.6_f32.ln(), 0.3_f32.ln(), 0.1_f32.ln()], &Device::Cpu);
        let logits = logits.unwrap();
        let mut counts = vec![0.0; 3];
        for prompt in 0..2000 {
            let token = decoding.chooser(prompt).next(&logits, 0).unwrap();
            counts[token as usize] += 1.0 / 2000.0;
        }
        counts
    }

    #[test]
    fn draws_follow_temperature_and_top_p() {
        assert_eq!(shares(&GREEDY)[0], shares(&GREEDY).iter().sum::<f64>());
        // Squared and normalised under temperature 0.5; 0.6 and 0.3 alone reach 0.8 of the mass.
        let all = |temperature, top_p| Decoding {
            temperature,
            top_p,
            ..GREEDY
        };
        for (decoding, expected) in [
            (all(1.0, 1.0), [0.6, 0.3, 0.1]),
            (all(0.5, 1.0), [0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46]),
            (all(1.0, 0.8), [0.6 / 0.9, 0.3 / 0.9, 0.0]),
        ] {
            for (share, expected) in shares(&decoding).iter().zip(expected) {
                // Four deviations of a share of 2000 draws.
                assert!((share - expected).abs() < 0.045, "{decoding:?}: {share}");
            }
            assert_eq!(shares(&decoding), shares(&decoding));
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (broken, name) in [
            (
                Decoding {
                    temperature: f64::NAN,
                    ..GREEDY
                },
                "eval_temperature",
            ),
            (
                Decoding {
                    top_p: 0.0,
                    ..GREEDY
                },
                "eval_top_p",
            ),
            // 0 in f32: nothing could be drawn.
            (
                Decoding {
                    top_p: 1e-50,
                    ..GREEDY
                },
                "eval_top_p",
            ),
            (
                Decoding {
                    temperature: 1e-40,
                    ..GREEDY
                },
                "eval_temperature",
            ),
        ] {
            let message = broken.validate("eval_").unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        }
    }
}
