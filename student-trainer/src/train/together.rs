//! Provides what the ranks of a run have to agree on: that they train the same student, the sums of a step, and what the first rank
//! alone has seen.

use candle_core::{Tensor, Var};
use distill_model::Gradients;

use super::step::StepLoss;
use crate::{
    Error, Result,
    checkpoint::{Best, EvalState, RunState},
    client::ServerInfo,
    config::{ShuffleTeacher, TrainConfig},
    loss::Convergence,
    ranks::{self, Ranks},
    run::config_text,
};

/// Refuses a step that has no pass for some of the ranks, and a control whose sequences are given something of the ones before them,
/// which another rank may have.
///
/// # Errors
/// With what to do.
pub(super) fn check_config(config: &TrainConfig, ranks: &dyn Ranks) -> Result<()> {
    let (passes, count) = (config.grad_accumulation, ranks.count());
    if config.shuffle_teacher != ShuffleTeacher::None && count > 1 {
        return Err(Error::Config(format!(
            "shuffle_teacher: a control needs the sequences in their order, and {count} ranks take a part of them each; start one \
             process"
        )));
    }
    if passes >= count {
        return Ok(());
    }
    Err(Error::Config(format!(
        "grad_accumulation: a step of {passes} forward passes has none for some of the {count} ranks that were started; start \
         {passes}, or, where the run is new, take --grad-accumulation {count} or a multiple of it"
    )))
}

/// Refuses a teacher that lends its device, to one process at a time.
///
/// # Errors
/// With what to do.
pub(super) fn check_teacher(info: &ServerInfo, ranks: &dyn Ranks) -> Result<()> {
    if ranks.is_alone() || !info.lends_device() {
        return Ok(());
    }
    Err(Error::Config(format!(
        "vram_mode: a teacher in swap mode lends its device to one process, and {} ranks were started; serve with --vram-mode \
         resident or from a cache that precompute made, or start one process",
        ranks.count()
    )))
}

/// Refuses ranks that begin otherwise than the first.
///
/// # Errors
/// The rank, and what to do.
pub(super) fn check_start(ranks: &dyn Ranks, config: &TrainConfig, state: &RunState) -> Result<()> {
    if ranks.is_alone() {
        return Ok(());
    }
    let settings = blake3::hash(config_text(config)?.as_bytes());
    if let Some(rank) = other_than_first(ranks, &settings) {
        return Err(Error::Config(format!(
            "rank {rank} was started with other settings than rank 0; give all the same flags, files and environment variables"
        )));
    }
    let data = format!("{} {:?} {:?}", state.step, state.data, state.identity);
    match other_than_first(ranks, &blake3::hash(data.as_bytes())) {
        None => Ok(()),
        Some(rank) => Err(Error::Config(format!(
            "rank {rank} begins at another step, or with other files, than rank 0: the run directory (--out, --resume) and the \
             student have to be on a disk that all ranks see"
        ))),
    }
}

/// Refuses parameters that are not those of the first rank, to the bit.
///
/// # Errors
/// The rank, and why that may be.
pub(super) fn check_same(
    ranks: &dyn Ranks,
    step: usize,
    parameters: &[(String, Var)],
) -> Result<()> {
    if ranks.is_alone() {
        return Ok(());
    }
    let mut hasher = blake3::Hasher::new();
    for (name, var) in parameters {
        hasher.update(name.as_bytes());
        let values = var.flatten_all()?.to_vec1::<f32>()?;
        hasher.update(bytemuck::cast_slice(&values));
    }
    match other_than_first(ranks, &hasher.finalize()) {
        None => Ok(()),
        Some(rank) => Err(Error::Config(format!(
            "after step {step} rank {rank} has other parameters than rank 0, and this step is not saved: its machine or its build computes \
             differently; start all ranks on machines of one kind with one build, and go on with --resume"
        ))),
    }
}

/// A rank whose digest is not that of the first.
fn other_than_first(ranks: &dyn Ranks, own: &blake3::Hash) -> Option<usize> {
    let mut words = [0u64; 4];
    for (word, bytes) in words.iter_mut().zip(own.as_bytes().chunks_exact(8)) {
        *word = bytes
            .iter()
            .fold(0, |word, &byte| word << 8 | u64::from(byte));
    }
    let all = ranks.all_have(&words);
    all.iter().position(|one| Some(one) != all.first())
}

/// What a step has, in one rank or in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    pub frames: usize,
    pub examples: usize,
    pub targets: usize,
}

impl Counts {
    /// Over all ranks.
    pub fn of_all(self, ranks: &dyn Ranks) -> Self {
        if ranks.is_alone() {
            return self;
        }
        let own = [self.frames, self.examples, self.targets].map(|count| count as u64);
        let all = ranks.all_have(&own);
        let sum = |which: usize| {
            all.iter()
                .map(|of| of.get(which).map_or(0, |&count| count as usize))
                .sum()
        };
        Self {
            frames: sum(0),
            examples: sum(1),
            targets: sum(2),
        }
    }
}

/// What a step comes to over all ranks, each of which has the loss and the gradients of its share. The same bits in all of them.
///
/// Where any loss is not finite, so is the sum, and the gradients stay what they are: nothing is done with them.
///
/// # Errors
/// A tensor error.
pub(super) fn add_up(
    ranks: &dyn Ranks,
    parameters: &[(String, Var)],
    loss: &StepLoss,
    gradients: Gradients,
) -> Result<(StepLoss, Gradients)> {
    let mut own = to_words(loss).to_vec();
    let has = |(name, _): &(String, Var)| u64::from(gradients.get(name).is_some());
    own.extend(parameters.iter().map(has));
    let mut sum = StepLoss::default();
    // A rank without a sequence in this step has no gradient at all.
    let mut anybody_has = vec![false; parameters.len()];
    for of_rank in ranks.all_have(&own) {
        let (words, has) = of_rank.split_at(WORDS);
        add_words(&mut sum, words);
        for (anybody_has, &has) in anybody_has.iter_mut().zip(has) {
            *anybody_has |= has == 1;
        }
    }
    if sum.not_finite().is_some() {
        return Ok((sum, gradients));
    }
    let wanted = parameters.iter().zip(anybody_has);
    let wanted: Vec<_> = wanted.filter_map(|(one, has)| has.then_some(one)).collect();
    let mut numbers = Vec::with_capacity(wanted.iter().map(|(_, var)| var.elem_count()).sum());
    for (name, var) in &wanted {
        match gradients.get(name) {
            Some(gradient) => {
                numbers.extend(gradient.reshape(var.elem_count())?.to_vec1::<f32>()?);
            }
            None => numbers.resize(numbers.len() + var.elem_count(), 0.0),
        }
    }
    drop(gradients);
    ranks::sum(ranks, &mut numbers);
    let (mut gradients, mut rest) = (Gradients::new(), numbers.as_slice());
    for (name, var) in wanted {
        let (of_this, others) = rest.split_at(var.elem_count());
        rest = others;
        gradients.add(
            name,
            &Tensor::from_slice(of_this, var.shape(), var.device())?,
        )?;
    }
    Ok((sum, gradients))
}

/// Words of a loss.
const WORDS: usize = 15;

/// What has to be added up of a loss.
fn to_words(loss: &StepLoss) -> [u64; WORDS] {
    let (solver, uninformative) = loss.solver.unwrap_or_default();
    [
        loss.total.to_bits(),
        loss.ce.to_bits(),
        loss.kl.to_bits(),
        loss.reverse_kl.to_bits(),
        loss.jsd.to_bits(),
        loss.ot.to_bits(),
        loss.padding as u64,
        loss.tokens as u64,
        loss.targets as u64,
        loss.solver.is_some().into(),
        solver.iterations as u64,
        solver.newton_steps as u64,
        solver.marginal_error.to_bits(),
        solver.converged.into(),
        uninformative.into(),
    ]
}

fn add_words(sum: &mut StepLoss, words: &[u64]) {
    let &[
        total,
        ce,
        kl,
        reverse_kl,
        jsd,
        ot,
        padding,
        tokens,
        targets,
        solved,
        iterations,
        newton_steps,
        marginal_error,
        converged,
        uninformative,
    ] = words
    else {
        return;
    };
    for (sum, bits) in [
        (&mut sum.total, total),
        (&mut sum.ce, ce),
        (&mut sum.kl, kl),
        (&mut sum.reverse_kl, reverse_kl),
        (&mut sum.jsd, jsd),
        (&mut sum.ot, ot),
    ] {
        *sum += f64::from_bits(bits);
    }
    for (sum, count) in [
        (&mut sum.padding, padding),
        (&mut sum.tokens, tokens),
        (&mut sum.targets, targets),
    ] {
        *sum += count as usize;
    }
    if solved == 1 {
        let (worst, is_uninformative) = sum.solver.get_or_insert_default();
        worst.add(Convergence {
            iterations: iterations as usize,
            newton_steps: newton_steps as usize,
            marginal_error: f64::from_bits(marginal_error),
            converged: converged == 1,
        });
        *is_uninformative |= uninformative == 1;
    }
}

/// Takes from the first rank what it knows of evaluations, and whether it has just found the best student.
pub(super) fn hear_first(ranks: &dyn Ranks, evals: &mut EvalState, is_best: bool) -> bool {
    if ranks.is_alone() {
        return is_best;
    }
    let best = evals.best.unwrap_or(Best {
        step: 0,
        value: 0.0,
    });
    let own = [
        is_best.into(),
        evals.evaluated as u64,
        evals.without_best as u64,
        evals.best.is_some().into(),
        best.step as u64,
        best.value.to_bits(),
    ];
    let all = ranks.all_have(&own);
    let Some(&[is_best, evaluated, without_best, has_best, step, value]) =
        all.first().map(Vec::as_slice)
    else {
        return false;
    };
    *evals = EvalState {
        evaluated: evaluated as usize,
        without_best: without_best as usize,
        best: (has_best == 1).then_some(Best {
            step: step as usize,
            value: f64::from_bits(value),
        }),
    };
    is_best == 1
}

#[cfg(test)]
#[path = "together_tests.rs"]
mod tests;
