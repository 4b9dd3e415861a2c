//! Provides the choice of the next token from its logits: the likeliest, or drawn from those that temperature, top-k, top-p and min-p
//! leave, in that order, as transformers does it.

use crate::{Error, Result};

/// Logits over less than this overflow f32.
const TEMPERATURE_MIN: f64 = 1e-30;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits before anything else; 0 takes the likeliest token every time.
    pub temperature: f64,
    /// So many of the likeliest tokens are drawn from, and those as likely as the last of them; 0 is all.
    pub top_k: usize,
    /// Share of the mass that is drawn from, the likeliest tokens first.
    pub top_p: f64,
    /// Tokens less likely than this share of the likeliest are not drawn.
    pub min_p: f64,
}

impl Sampling {
    /// The likeliest token every time.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
    };

    /// Checks the numbers.
    ///
    /// # Errors
    /// The first that is outside its meaning, by name, with what is allowed.
    pub fn validate(&self) -> std::result::Result<(), &'static str> {
        let single = |x: f64| x as f32;
        let checks = [
            (
                self.temperature == 0.0
                    || (self.temperature >= TEMPERATURE_MIN && self.temperature.is_finite()),
                "temperature: must be 0, which is greedy, or a number of at least 1e-30",
            ),
            (
                single(self.top_p) > 0.0 && self.top_p <= 1.0,
                "top_p: must lie above 0, also in f32, and at most at 1",
            ),
            (
                (0.0..=1.0).contains(&self.min_p),
                "min_p: must lie from 0 to 1",
            ),
        ];
        let broken = checks.into_iter().find(|(fine, _)| !fine);
        broken.map_or(Ok(()), |(_, message)| Err(message))
    }

    /// The next token after `logits`, with a random number in [0, 1).
    ///
    /// # Errors
    /// Logits that are no numbers, which no token can be chosen by.
    pub fn choose(&self, logits: &[f32], random: f64) -> Result<u32> {
        if self.temperature == 0.0 {
            return likeliest(logits);
        }
        let kept = self.kept(logits)?;
        let mass: f64 = kept.iter().map(|token| token.weight).sum();
        let mut below = 0.0;
        let drawn = kept.iter().find(|token| {
            below += token.weight;
            below > random * mass
        });
        // Rounding may leave the sum below its parts' end.
        let drawn = drawn.or(kept.iter().rev().find(|token| token.weight > 0.0));
        drawn.map(|token| token.id).ok_or_else(no_numbers)
    }

    /// What logits are divided by, which leaves -inf what it is.
    pub(super) fn divisor(&self) -> f32 {
        (self.temperature as f32).min(f32::MAX)
    }

    /// The tokens that are drawn from, in the order of their ids, with weights that need not sum to 1.
    fn kept(&self, logits: &[f32]) -> Result<Vec<Token>> {
        let divisor = self.divisor();
        // -0 is as likely as 0.
        let score = |logit: f32| logit / divisor + 0.0;
        let largest = score(largest(logits)?);
        if !largest.is_finite() {
            return Err(no_numbers());
        }
        let tokens = logits.iter().zip(0..).map(|(&logit, id)| {
            let score = score(logit);
            let weight = f64::from(score - largest).exp();
            Token { id, score, weight }
        });
        let mut kept: Vec<Token> = tokens.collect();
        if (1..kept.len()).contains(&self.top_k) {
            let mut scores: Vec<f32> = kept.iter().map(|token| token.score).collect();
            let descending = |a: &f32, b: &f32| b.total_cmp(a);
            let (_, last, _) = scores.select_nth_unstable_by(self.top_k - 1, descending);
            kept.retain(|token| token.score >= *last);
        }
        if self.top_p < 1.0 {
            keep_top_p(&mut kept, self.top_p);
        }
        // Nothing above takes the likeliest away, whose weight is 1.
        kept.retain(|token| token.weight >= self.min_p);
        Ok(kept)
    }
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
struct Token {
    id: u32,
    /// Its logit over the temperature.
    score: f32,
    /// e to the power of how far its score is below the largest.
    weight: f64,
}

/// Takes the least likely tokens away whose mass together is at most `1 - top_p`; of equally likely ones those with larger ids, so that
/// the last one is the greedy choice. (transformers leaves that to torch's sorting, which is not stable.)
fn keep_top_p(kept: &mut Vec<Token>, top_p: f64) {
    let allowed = (1.0 - top_p) * kept.iter().map(|token| token.weight).sum::<f64>();
    // Even if all were as light as this they could go: only the heavier ones need to be sorted.
    let light = allowed / kept.len() as f64;
    let mut gone: f64 = kept
        .iter()
        .map(|token| token.weight)
        .filter(|weight| *weight < light)
        .sum();
    kept.retain(|token| token.weight >= light);
    let order = |a: &Token, b: &Token| a.score.total_cmp(&b.score).then(b.id.cmp(&a.id));
    let mut sorted = kept.clone();
    sorted.sort_unstable_by(order);
    let first = sorted.iter().find(|token| {
        gone += token.weight;
        gone > allowed
    });
    // At least one stays, whatever sums round to.
    if let Some(first) = first.or(sorted.last()) {
        kept.retain(|token| order(token, first).is_ge());
    }
}

fn likeliest(logits: &[f32]) -> Result<u32> {
    let largest = largest(logits)?;
    let found = logits.iter().zip(0..).find(|(logit, _)| **logit == largest);
    found.map(|(_, id)| id).ok_or_else(no_numbers)
}

/// The largest logit, where each is a number and one is finite.
fn largest(logits: &[f32]) -> Result<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // `max` passes over what is no number.
    if largest.is_finite() && !logits.iter().any(|logit| logit.is_nan()) {
        return Ok(largest);
    }
    Err(no_numbers())
}

pub(super) fn no_numbers() -> Error {
    Error::Input(
        "the model's logits are not finite numbers, so no token can be chosen: its weights or its adapter are damaged, or overflow in \
         this type; try --dtype f32"
            .into(),
    )
}
