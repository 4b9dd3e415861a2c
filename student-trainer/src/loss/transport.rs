//! Provides the transport loss of a whole sequence: cut into problems, solved, and put together again.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::config::{AlignConfig, AlignLoss, Cost, POSITIONS_MAX, Reduction};
use super::cost::{Additions, Made, costs};
use super::error::{LossError, Result};
use super::plan::{PlanOptions, PlanProblem, SolvedPlan, solve_plan};
use super::rowwise::to_host;
use super::sinkhorn::Convergence;
use super::targets::Alignment;

/// How the solver fared, over all problems of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct SolverReport {
    /// Transport problems solved; 0 when the weight of OT is 0.
    pub problems: usize,
    /// The worst of them.
    #[serde(flatten)]
    pub convergence: Convergence,
    /// `<T,C>` of what is paid, without the prior, reduced as the loss is.
    pub transport_cost: f64,
    /// What is paid is `softmax-similarity`, within 1 % of 1 - 1/M, the value of a plan that knows nothing: the loss does not teach.
    pub uninformative: bool,
}

/// The transport loss of a sequence.
pub(crate) struct Transport {
    /// The objective, reduced.
    pub(crate) value: f64,
    /// `[n, m]`: d value / d(the matrix that the plan was made for); none where the plan is held and pays for another one.
    pub(crate) solved: Option<Entries>,
    /// `[n, m]`: d value / d(the matrix that was paid), where that is another one.
    pub(crate) paid: Option<Entries>,
    /// `[n]`: row masses of the plans, weighted as the reduction says.
    pub(crate) row_mass: Vec<f64>,
    pub(crate) report: SolverReport,
}

/// A matrix `[n, m]`, where it was computed.
pub(crate) enum Entries {
    /// Row-major.
    Host(Vec<f32>),
    Tensor(Tensor),
}

impl Entries {
    /// `count` rows of `m` from row `start` on, `[count, m]`.
    pub(crate) fn rows(&self, start: usize, count: usize, m: usize) -> Result<Cow<'_, [f32]>> {
        Ok(match self {
            Self::Host(entries) => Cow::Borrowed(&entries[start * m..(start + count) * m]),
            Self::Tensor(entries) => Cow::Owned(to_host(&entries.narrow(0, start, count)?)?),
        })
    }

    /// `[n, m]` times a weight.
    pub(crate) fn tensor(&self, m: usize, weight: f64, device: &Device) -> Result<Tensor> {
        Ok(match self {
            Self::Host(entries) => {
                let size = (entries.len() / m, m);
                (Tensor::from_slice(entries, size, device)? * weight)?
            }
            Self::Tensor(entries) => (entries.to_device(device)? * weight)?,
        })
    }

    /// Sums over the rows where the matrix is on the host.
    pub(crate) fn row_sums(&self, m: usize) -> Option<Vec<f64>> {
        let Self::Host(entries) = self else {
            return None;
        };
        let sum = |row: &[f32]| row.iter().map(|&x| f64::from(x)).sum();
        Some(entries.chunks(m).map(sum).collect())
    }
}

/// What a sequence's plan is made from.
pub(crate) struct Problem<'a> {
    /// `[n, m]`: what the plan is made for.
    pub(crate) solved: Vec<f32>,
    /// `[n, m]`: what is paid, where that is something else.
    pub(crate) paid: Option<Vec<f32>>,
    pub(crate) n: usize,
    pub(crate) m: usize,
    /// Where the positions lie, if not side by side, and which belong together.
    pub(crate) alignment: Option<&'a Alignment>,
    /// `[m]`: masses of the teacher's positions, of sum 1, where they are not all the same.
    pub(crate) masses: Option<&'a [f64]>,
}

/// One problem's rows and columns.
pub(super) type Block = (Range<usize>, Range<usize>);

/// One solved problem, but for its gradients.
pub(super) struct Outcome {
    pub(super) value: f64,
    pub(super) transport_cost: f64,
    pub(super) row_mass: Vec<f64>,
    pub(super) convergence: Convergence,
}

struct Solved {
    outcome: Outcome,
    solved: Option<Vec<f32>>,
    paid: Option<Vec<f32>>,
}

/// Solves the problems of a sequence.
///
/// # Errors
/// NaN or infinity in a matrix; more positions than [`POSITIONS_MAX`].
pub(crate) fn transport(problem: Problem, config: &AlignConfig) -> Result<Transport> {
    let (n, m) = (problem.n, problem.m);
    let blocks = blocks(n, m, config);
    let outcomes = each_problem(problem, &blocks, config, BlockProblem::solve)?;
    Ok(put_together(outcomes, &blocks, n, m, config))
}

/// The plans alone, put together `[n, m]`, row-major; of blocks as if each were the whole.
///
/// # Errors
/// As [`transport`].
pub(crate) fn plans(problem: Problem, config: &AlignConfig) -> Result<Vec<f32>> {
    let (n, m) = (problem.n, problem.m);
    let blocks = blocks(n, m, config);
    let plans = each_problem(problem, &blocks, config, BlockProblem::plan)?;
    let mut whole = None;
    for (plan, block) in plans.iter().zip(&blocks) {
        paste(&mut whole, (n, m), plan, block, 1.0);
    }
    Ok(whole.unwrap_or_default())
}

/// Cuts a sequence into its problems, and does with each of them what is asked for.
fn each_problem<T: Send>(
    problem: Problem,
    blocks: &[Block],
    config: &AlignConfig,
    solve: impl Fn(BlockProblem, &Around) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let Problem {
        solved,
        paid,
        n,
        m,
        alignment,
        masses,
    } = problem;
    if n == 0 || m == 0 || n.max(m) > POSITIONS_MAX {
        return Err(LossError::shape(
            "positions of a transport problem",
            format!(
                "1..={POSITIONS_MAX} on either side (--student-seq-len cuts the student's, another window of the server \
                 the teacher's; target masks and --block-size make problems smaller)"
            ),
            format!("{n} of the student, {m} of the teacher"),
        ));
    }
    let around = Around {
        additions: Additions::new(config, n, m, alignment),
        masses,
        links: alignment.map_or(&[], |alignment| &alignment.links),
        config,
    };
    if let [_] = blocks[..] {
        let whole = BlockProblem {
            solved,
            paid,
            first: (0, 0),
            m,
        };
        Ok(vec![solve(whole, &around)?])
    } else {
        let cut = |whole: &[f32], (i, j): &Block| -> Vec<f32> {
            let rows = i
                .clone()
                .flat_map(|i| &whole[i * m + j.start..i * m + j.end]);
            rows.copied().collect()
        };
        let block = |block: &Block| {
            let problem = BlockProblem {
                solved: cut(&solved, block),
                paid: paid.as_ref().map(|whole| cut(whole, block)),
                first: (block.0.start, block.1.start),
                m: block.1.len(),
            };
            solve(problem, &around)
        };
        blocks.par_iter().map(block).collect()
    }
}

/// All problems of a sequence: one, or every pair of blocks.
pub(super) fn blocks(n: usize, m: usize, config: &AlignConfig) -> Vec<Block> {
    let step = match config.block_size {
        0 => n.max(m),
        size => size,
    };
    let ranges = |length: usize| {
        let starts = (0..length).step_by(step);
        starts.map(move |start| start..(start + step).min(length))
    };
    ranges(n)
        .flat_map(|i| ranges(m).map(move |j| (i.clone(), j)))
        .collect()
}

/// What all problems of a sequence share.
struct Around<'a> {
    additions: Additions,
    masses: Option<&'a [f64]>,
    links: &'a [(u32, u32)],
    config: &'a AlignConfig,
}

impl Around<'_> {
    /// Masses of some of the teacher's positions, of sum 1.
    fn masses(&self, columns: Range<usize>) -> Vec<f64> {
        let uniform = || vec![1.0 / columns.len() as f64; columns.len()];
        let Some(masses) = self.masses.map(|masses| &masses[columns.clone()]) else {
            return uniform();
        };
        let sum: f64 = masses.iter().sum();
        if sum > 0.0 {
            masses.iter().map(|mass| mass / sum).collect()
        } else {
            uniform()
        }
    }

    fn options(&self) -> PlanOptions {
        let config = self.config;
        PlanOptions {
            kind: config.plan,
            epsilon: config.epsilon(),
            rho_student: config.rho_student,
            rho_teacher: config.rho_teacher,
            mass: config.mass,
            tolerance: config.tolerance,
            max_iterations: config.max_iterations,
        }
    }
}

/// One problem, cut out of a sequence.
struct BlockProblem {
    solved: Vec<f32>,
    paid: Option<Vec<f32>>,
    /// First row and column in the sequence.
    first: (usize, usize),
    m: usize,
}

/// The costs that a plan was made for, and the matrix that is paid where that is another one.
struct Costs<'a> {
    solved: &'a [f32],
    made: Made,
    paid: Option<Vec<f32>>,
}

impl BlockProblem {
    /// Makes the plan, and does with it what is asked for.
    fn with_plan<T>(
        self,
        around: &Around,
        then: impl FnOnce(&SolvedPlan, Costs) -> Result<T>,
    ) -> Result<T> {
        let (n, m, config) = (self.solved.len() / self.m, self.m, around.config);
        let (cost, made) = costs(self.solved, m, config.solved(), config.temperature);
        let solved_for = if around.additions.is_any() {
            Cow::Owned(around.additions.added(&cost, self.first, m))
        } else {
            Cow::Borrowed(cost.as_slice())
        };
        let columns = self.first.1..self.first.1 + m;
        let problem = PlanProblem {
            cost: &solved_for,
            a: &vec![1.0 / n as f64; n],
            b: &around.masses(columns),
            links: around.links,
        };
        let plan = solve_plan(problem, &around.options())?;
        let costs = Costs {
            solved: &cost,
            made,
            paid: self.paid,
        };
        then(&plan, costs)
    }

    fn plan(self, around: &Around) -> Result<Vec<f32>> {
        self.with_plan(around, |plan, _| Ok(plan.plan().to_vec()))
    }

    fn solve(self, around: &Around) -> Result<Solved> {
        let (m, config) = (self.m, around.config);
        let temperature = config.temperature;
        self.with_plan(around, |plan, Costs { solved, made, paid }| {
            let paid = paid.map(|paid| costs(paid, m, config.paid(), temperature));
            let paid_costs = paid.as_ref().map_or(solved, |(costs, _)| costs);
            let mut value = evaluate(plan, paid_costs, paid.is_some(), config)?;
            if let Some(gradient) = &mut value.solved {
                made.pull_back(gradient, solved, m, temperature);
            }
            if let (Some(gradient), Some((costs, made))) = (&mut value.paid, &paid) {
                made.pull_back(gradient, costs, m, temperature);
            }
            Ok(value)
        })
    }
}

/// What is paid on a plan, with its gradients in costs: `other` says that it is not paid for the costs that it was made for.
fn evaluate(plan: &SolvedPlan, paid: &[f32], other: bool, config: &AlignConfig) -> Result<Solved> {
    let scale = if other { 1.0 } else { config.scale() };
    let transport_cost = scale * inner(plan.plan(), paid);
    let mut convergence = plan.convergence();
    let times = |factor: f64| -> Vec<f32> {
        let plan = plan.plan().par_iter();
        plan.map(|&t| (factor * f64::from(t)) as f32).collect()
    };
    let (value, solved, paid) = if config.loss == AlignLoss::Entropic {
        let entropic = plan.entropic_value().ok_or_else(minimises_nothing)?;
        (entropic.value, Some(times(entropic.weight)), None)
    } else {
        let through = config.goes_through_plan().then(|| plan.pull_back(paid));
        convergence.converged &= through.as_ref().is_none_or(|(_, solved)| *solved);
        let through = through.map(|(gradient, _)| gradient);
        if other {
            (transport_cost, through, Some(times(1.0)))
        } else {
            let mut gradient = times(scale);
            for (sum, &more) in gradient.iter_mut().zip(through.iter().flatten()) {
                *sum += scale as f32 * more;
            }
            (transport_cost, Some(gradient), None)
        }
    };
    Ok(Solved {
        outcome: Outcome {
            value,
            transport_cost,
            row_mass: plan.row_mass().to_vec(),
            convergence,
        },
        solved,
        paid,
    })
}

fn minimises_nothing() -> LossError {
    LossError::Setting {
        key: "loss",
        reason: "`entropic` is the least value of a plan that minimises something".into(),
    }
}

fn inner(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn put_together(
    problems: Vec<Solved>,
    blocks: &[Block],
    n: usize,
    m: usize,
    config: &AlignConfig,
) -> Transport {
    let weight = problem_weight(blocks, config) as f32;
    let (mut solved, mut paid) = (None, None);
    for (problem, block) in problems.iter().zip(blocks) {
        for (whole, part) in [(&mut solved, &problem.solved), (&mut paid, &problem.paid)] {
            if let Some(part) = part {
                paste(whole, (n, m), part, block, weight);
            }
        }
    }
    let outcomes = problems.into_iter().map(|problem| problem.outcome);
    Transport {
        paid: paid.map(Entries::Host),
        ..summed_up(outcomes, blocks, solved.map(Entries::Host), config)
    }
}

/// Puts a block's matrix, times a weight, in its place in the whole `[n, m]`.
fn paste(
    whole: &mut Option<Vec<f32>>,
    (n, m): (usize, usize),
    part: &[f32],
    (i, j): &Block,
    weight: f32,
) {
    let whole = whole.get_or_insert_with(|| vec![0.0; n * m]);
    for (i, row) in i.clone().zip(part.chunks(j.len())) {
        for (to, &from) in whole[i * m + j.start..].iter_mut().zip(row) {
            *to = weight * from;
        }
    }
}

/// What a problem counts in the whole.
pub(super) fn problem_weight(blocks: &[Block], config: &AlignConfig) -> f64 {
    match config.reduction {
        Reduction::Mean => 1.0 / blocks.len() as f64,
        Reduction::Sum => 1.0,
    }
}

/// The whole of its problems, with their gradients put together already.
pub(super) fn summed_up(
    outcomes: impl IntoIterator<Item = Outcome>,
    blocks: &[Block],
    solved: Option<Entries>,
    config: &AlignConfig,
) -> Transport {
    let weight = problem_weight(blocks, config);
    let n = blocks.last().map_or(0, |(i, _)| i.end);
    let mut whole = Transport {
        value: 0.0,
        solved,
        paid: None,
        row_mass: vec![0.0; n],
        report: SolverReport {
            problems: blocks.len(),
            ..SolverReport::default()
        },
    };
    let mut ignorant_cost = 0.0;
    for (outcome, (i, j)) in outcomes.into_iter().zip(blocks) {
        let report = &mut whole.report;
        report.convergence.add(outcome.convergence);
        report.transport_cost += weight * outcome.transport_cost;
        whole.value += weight * outcome.value;
        ignorant_cost += weight * (1.0 - 1.0 / j.len() as f64);
        for (mass, row) in whole.row_mass[i.clone()].iter_mut().zip(&outcome.row_mass) {
            *mass += weight * row;
        }
    }
    whole.report.uninformative = config.paid() == Cost::SoftmaxSimilarity
        && (whole.report.transport_cost - ignorant_cost).abs() <= 0.01 * ignorant_cost;
    whole
}
