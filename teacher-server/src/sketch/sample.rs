//! Provides the rows that a sketch is made from and judged on: hidden states of sequences spread evenly over the plan.

use candle_core::{DType, Device, Tensor};

use super::check;
use crate::{
    Error, Result,
    forward::{Teacher, targets},
    plan::Plan,
    production::Tokens,
    progress::Progress,
};

/// Rows that a sketch is made from, about; more add little to directions of a few thousand dimensions.
const ROWS: u64 = 8192;
/// Sequences that they come from: no fewer, for variety, and no more, for time.
const SEQUENCES_MIN: u64 = 32;
const SEQUENCES_MAX: u64 = 1024;
/// One sequence in so many is held out for the error.
const HELD_OUT_EVERY: u64 = 5;
/// Rows of one sequence; those of a longer one are spread over it.
const SEQUENCE_ROWS_MAX: usize = 1024;

/// Which sequences of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub training: Vec<usize>,
    pub held_out: Vec<usize>,
    /// The corpus is too small to hold sequences out, so all of them serve both ends.
    pub shared: bool,
}

impl Choice {
    /// Depends on the plan's shape only, so that equal plans have equal sketches.
    pub fn of(plan: &Plan) -> Self {
        let count = plan.count();
        if count < HELD_OUT_EVERY {
            let all: Vec<usize> = (0..count as usize).collect();
            return Self {
                training: all.clone(),
                held_out: all,
                shared: true,
            };
        }
        let targets = (plan.target_count() / count).max(1);
        let training = ROWS.div_ceil(targets).clamp(SEQUENCES_MIN, SEQUENCES_MAX);
        let picks = (training * HELD_OUT_EVERY / (HELD_OUT_EVERY - 1)).min(count);
        let is_held_out = |pick: &u64| pick % HELD_OUT_EVERY == HELD_OUT_EVERY - 1;
        let (held_out, training): (Vec<u64>, Vec<u64>) = (0..picks).partition(is_held_out);
        let spread = |picks: Vec<u64>, of: u64| {
            let place = |pick| (pick * count / of) as usize;
            picks.into_iter().map(place).collect()
        };
        Self {
            training: spread(training, picks),
            held_out: spread(held_out, picks),
            shared: false,
        }
    }

    /// Sequences and tokens to run the teacher on.
    pub fn work(&self, plan: &Plan) -> (u64, u64) {
        let all = self.training.iter().chain(&self.held_out);
        let lengths = all.filter_map(|&index| plan.sequence(index));
        lengths.fold((0, 0), |(sequences, tokens), sequence| {
            (sequences + 1, tokens + sequence.token_ids.len() as u64)
        })
    }
}

/// Runs the teacher on the sequences at `indices` and hands `take` the hidden states before their targets, `[n, D]` f32 on
/// the CPU, a sequence at a time.
pub(super) fn hidden_rows(
    teacher: &Teacher,
    plan: &Plan,
    indices: &[usize],
    stopped: &dyn Fn() -> bool,
    progress: &mut Progress,
    mut take: impl FnMut(Tensor) -> Result<()>,
) -> Result<()> {
    for batch in indices.chunks(plan.batch_size()) {
        check(stopped)?;
        let sequences = batch.iter().filter_map(|&index| plan.sequence(index));
        let tokens: Vec<Tokens<'_>> = sequences.map(Tokens::of).collect();
        let states = teacher.target_states(&tokens)?.last;
        let states = states.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let mut start = 0;
        for tokens in &tokens {
            let count = targets(tokens).count();
            if count > 0 {
                let states = states.narrow(0, start, count)?;
                check_finite(&states, tokens)?;
                take(thinned(&states)?)?;
            }
            start += count;
        }
        let read = tokens.iter().map(|tokens| tokens.token_ids.len() as u64);
        progress.advance(tokens.len() as u64, read.sum());
    }
    Ok(())
}

/// At most `SEQUENCE_ROWS_MAX` of the rows, evenly spread.
fn thinned(states: &Tensor) -> Result<Tensor> {
    let count = states.dim(0)?;
    if count <= SEQUENCE_ROWS_MAX {
        return Ok(states.contiguous()?);
    }
    let rows = (0..SEQUENCE_ROWS_MAX).map(|row| (row * count / SEQUENCE_ROWS_MAX) as u32);
    let rows = Tensor::from_iter(rows, &Device::Cpu)?;
    Ok(states.index_select(&rows, 0)?)
}

/// One NaN in a sum over rows would spoil every direction, and nobody could tell where it came from.
fn check_finite(states: &Tensor, tokens: &Tokens<'_>) -> Result<()> {
    let rank = states.dim(1)?.max(1);
    let values = states.flatten_all()?.to_vec1::<f32>()?;
    let Some(at) = values.iter().position(|value| !value.is_finite()) else {
        return Ok(());
    };
    Err(Error::NotFinite {
        sequence: tokens.id,
        position: targets(tokens).nth(at / rank).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::plan;

    #[test]
    fn training_and_held_out_sequences_are_spread_and_disjoint() {
        for count in [5, 39, 40, 1000, 5000] {
            let plan = plan(count, 2);
            let Choice {
                training,
                held_out,
                shared,
            } = Choice::of(&plan);
            assert!(!shared && !held_out.is_empty());
            let all = training.len() + held_out.len();
            assert_eq!(held_out.len(), all / HELD_OUT_EVERY as usize);
            assert!(training.iter().all(|index| !held_out.contains(index)));
            assert!(training.is_sorted_by(|a, b| a < b) && held_out.is_sorted_by(|a, b| a < b));
            assert!(
                held_out
                    .last()
                    .is_some_and(|&last| last + 1 + all >= count as usize - all)
            );
            assert!(training.len() <= SEQUENCES_MAX as usize);
        }
        // These sequences have three targets on average.
        assert_eq!(Choice::of(&plan(5000, 2)).training.len(), 1024);
    }

    #[test]
    fn a_corpus_too_small_to_hold_any_out_says_so() {
        let choice = Choice::of(&plan(4, 2));
        assert!(choice.shared);
        assert_eq!(choice.training, choice.held_out);
    }

    #[test]
    fn rows_of_a_long_sequence_are_spread_over_it() {
        let states = Tensor::arange(0f32, 5000.0, &Device::Cpu).unwrap();
        let rows = thinned(&states.reshape((2500, 2)).unwrap()).unwrap();
        let rows = rows.to_vec2::<f32>().unwrap();
        assert_eq!(rows.len(), SEQUENCE_ROWS_MAX);
        assert_eq!((rows[0][0], rows[512][0]), (0.0, 2500.0));
        assert!(rows.iter().is_sorted_by(|a, b| a[0] < b[0]));
    }
}
