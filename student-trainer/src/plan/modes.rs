//! Provides the three ways to share a card, what each takes at most, and the longest sequence and largest batch that fit.

use serde::Serialize;

use super::{
    config::{BATCH_SIZE_MAX, PlanConfig},
    pair::Pair,
    part::Process,
    teacher::teacher,
    trainer::trainer,
};
use crate::{Result, loss::POSITIONS_MAX};

/// How two processes share one memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// Both stay.
    Resident,
    /// They take turns: the trainer's process ends before the teacher's turn, and the teacher frees all but its context.
    Swap,
    /// The teacher's answers are in a cache: the trainer is alone.
    Cached,
}

impl Sharing {
    /// As the table has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resident => "resident",
            Self::Swap => "swap",
            Self::Cached => "cached",
        }
    }
}

/// Both processes under one set of settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Processes {
    /// Without one only `cached` is possible.
    pub teacher: Option<Process>,
    /// The trainer.
    pub trainer: Process,
}

impl Processes {
    /// Adds everything up.
    ///
    /// # Errors
    /// Adapters that cannot be read, or a pattern whose matching does not end in time.
    pub fn new(pair: &Pair, config: &PlanConfig) -> Result<Self> {
        let shape = pair.teacher.as_ref();
        Ok(Self {
            teacher: shape.map(|shape| teacher(shape, config)).transpose()?,
            trainer: trainer(pair, config)?,
        })
    }

    /// What this way of sharing takes at most; none where it needs a teacher and there is none.
    pub fn peak(&self, sharing: Sharing) -> Option<u64> {
        let trainer = &self.trainer;
        let teacher = self.teacher.as_ref();
        match sharing {
            Sharing::Cached => Some(trainer.peak_bytes),
            Sharing::Resident => Some(teacher?.peak_bytes + trainer.peak_bytes),
            Sharing::Swap => {
                let teacher = teacher?;
                let its_turn = teacher.peak_bytes + trainer.stays_bytes;
                Some(its_turn.max(trainer.peak_bytes + teacher.stays_bytes))
            }
        }
    }

    /// The ways of sharing that this pair has.
    pub fn sharings(&self) -> &'static [Sharing] {
        match self.teacher {
            Some(_) => &[Sharing::Resident, Sharing::Swap, Sharing::Cached],
            None => &[Sharing::Cached],
        }
    }
}

/// One way of sharing, with what fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mode {
    /// Which.
    pub sharing: Sharing,
    /// At most.
    pub peak_bytes: u64,
    /// Whether it fits.
    pub fits: bool,
    /// What is left of the limit, or missing where that is below 0.
    pub free_bytes: i64,
    /// The longest sequence that fits with everything else as it is; 0 where none does.
    pub longest_seq_len: u64,
    /// Whether that is as long as the models go, or as transport over a whole sequence may be.
    pub longest_is_the_models: bool,
    /// The most sequences in a pass that fit at this length; 0 where not even one does.
    pub largest_batch_size: u64,
}

impl Mode {
    /// Compares with `limit` bytes, and looks for what would just fit.
    ///
    /// # Errors
    /// As [`Processes::new`].
    pub fn new(
        sharing: Sharing,
        pair: &Pair,
        config: &PlanConfig,
        peak_bytes: u64,
        limit: u64,
    ) -> Result<Self> {
        let fits = |config: &PlanConfig| -> Result<bool> {
            let peak = Processes::new(pair, config)?.peak(sharing);
            Ok(peak.is_some_and(|peak| peak <= limit))
        };
        let most = longest(pair, config);
        let longest_seq_len = largest(most, |seq_len| {
            let mut other = config.clone();
            other.options.seq_len = seq_len as usize;
            fits(&other)
        })?;
        let largest_batch_size = largest(BATCH_SIZE_MAX as u64, |batch_size| {
            let mut other = config.clone();
            other.train.batch_size = batch_size as usize;
            fits(&other)
        })?;
        Ok(Self {
            sharing,
            peak_bytes,
            fits: peak_bytes <= limit,
            free_bytes: limit as i64 - peak_bytes as i64,
            longest_seq_len,
            longest_is_the_models: longest_seq_len == most,
            largest_batch_size,
        })
    }
}

/// Positions of both models at most, and of one transport problem.
fn longest(pair: &Pair, config: &PlanConfig) -> u64 {
    let teacher = pair.teacher.as_ref();
    let positions = teacher.map_or(usize::MAX, |teacher| teacher.model.max_position_embeddings);
    let positions = positions.min(pair.student.model.max_position_embeddings);
    let loss = config.loss();
    let transport = loss.ot_weight > 0.0 && loss.align.block_size == 0;
    let most = if transport { POSITIONS_MAX } else { usize::MAX };
    positions.min(most) as u64
}

/// The largest number up to `most` that `fits`, where smaller ones do: by halving.
fn largest(most: u64, mut fits: impl FnMut(u64) -> Result<bool>) -> Result<u64> {
    if fits(most)? {
        return Ok(most);
    }
    let (mut fitting, mut too_large) = (0, most);
    while fitting + 1 < too_large {
        let middle = fitting + (too_large - fitting) / 2;
        match fits(middle)? {
            true => fitting = middle,
            false => too_large = middle,
        }
    }
    Ok(fitting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_the_last_that_fits() {
        for most in [1, 2, 7, 64, 1000] {
            for last in 0..=most {
                assert_eq!(largest(most, |n| Ok(n <= last)).unwrap(), last, "of {most}");
            }
        }
    }

    #[test]
    fn swap_is_the_larger_turn_and_only_the_teacher_leaves_a_context() {
        let pair = Pair::reference().unwrap();
        let both = Processes::new(&pair, &PlanConfig::default()).unwrap();
        let teacher = both.teacher.as_ref().unwrap();
        let resident = both.peak(Sharing::Resident).unwrap();
        assert_eq!(resident, teacher.peak_bytes + both.trainer.peak_bytes);
        let swap = both.peak(Sharing::Swap).unwrap();
        assert_eq!(swap, teacher.peak_bytes);
        let even = Processes {
            trainer: teacher.clone(),
            ..both.clone()
        };
        let swap = even.peak(Sharing::Swap).unwrap();
        assert_eq!(swap, teacher.peak_bytes + (450 << 20));
        assert_eq!(both.peak(Sharing::Cached), Some(both.trainer.peak_bytes));

        let alone = Pair {
            teacher: None,
            ..pair
        };
        let alone = Processes::new(&alone, &PlanConfig::default()).unwrap();
        assert_eq!(alone.peak(Sharing::Resident), None);
        assert_eq!(alone.sharings(), [Sharing::Cached]);
    }

    #[test]
    fn what_fits_fits_and_one_more_does_not() {
        let pair = Pair::reference().unwrap();
        let config = PlanConfig::default();
        let limit = 24_000 << 20;
        let peak = |config: &PlanConfig, sharing| {
            let both = Processes::new(&pair, config).unwrap();
            both.peak(sharing).unwrap()
        };
        for sharing in [Sharing::Resident, Sharing::Swap, Sharing::Cached] {
            let mode = Mode::new(sharing, &pair, &config, peak(&config, sharing), limit).unwrap();
            assert!(mode.fits && mode.longest_seq_len > 512, "{mode:?}");
            let at = |seq_len: u64, batch_size: u64| {
                let mut config = config.clone();
                config.options.seq_len = seq_len as usize;
                config.train.batch_size = batch_size as usize;
                peak(&config, sharing)
            };
            assert!(at(mode.longest_seq_len, 1) <= limit);
            assert!(mode.longest_is_the_models || at(mode.longest_seq_len + 1, 1) > limit);
            assert!(at(512, mode.largest_batch_size) <= limit);
            assert!(at(512, mode.largest_batch_size + 1) > limit);
        }
    }
}
