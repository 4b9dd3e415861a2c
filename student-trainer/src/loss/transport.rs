//! Provides the transport loss of a whole sequence: cut into problems, solved, and put together again.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::config::{Cost, OtConfig, POSITIONS_MAX, Reduction, Scope};
use super::cost::{
    PositionPrior, scale_by_mean, scale_by_mean_backward, softmax_backward, softmax_rows,
};
use super::error::{LossError, Result};
use super::euclidean::SquaredEuclidean;
use super::objective;
use super::rowwise::to_host;
use super::sinkhorn::{Convergence, SolverOptions, solve};
use super::targets::Alignment;

/// How the solver fared, over all problems of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct SolverReport {
    /// Transport problems solved; 0 when the weight of OT is 0.
    pub problems: usize,
    /// The worst of them.
    #[serde(flatten)]
    pub convergence: Convergence,
    /// `<T,C>` without the prior, reduced as the loss is.
    pub transport_cost: f64,
    /// `softmax-similarity` within 1 % of 1 - 1/M, the value of a plan that knows nothing: the loss does not teach.
    pub uninformative: bool,
}

/// The transport loss of a sequence.
pub(crate) struct Transport {
    /// The objective, reduced.
    pub(crate) value: f64,
    /// `[n, m]`: d value / dS under `softmax-similarity`, d value / dC under `kl`.
    pub(crate) gradient: Entries,
    /// `[n, m]`: d value / dD of the distances that the plan was solved for, where it has a cost of its own.
    pub(crate) plan_gradient: Option<Vec<f32>>,
    /// `[n]`: row masses of the plans, weighted as the reduction says: d value / d(constant along row i of C).
    pub(crate) row_mass: Vec<f64>,
    pub(crate) report: SolverReport,
}

/// A matrix `[n, m]`, where it was computed.
pub(crate) enum Entries {
    /// Row-major.
    Host(Vec<f32>),
    Card(Tensor),
}

impl Transport {
    /// The gradient of `count` rows from row `start` on, `[count, m]`.
    pub(crate) fn gradient_rows(&self, start: usize, count: usize) -> Result<Cow<'_, [f32]>> {
        Ok(match &self.gradient {
            Entries::Host(gradient) => {
                let m = gradient.len() / self.row_mass.len();
                Cow::Borrowed(&gradient[start * m..(start + count) * m])
            }
            Entries::Card(gradient) => Cow::Owned(to_host(&gradient.narrow(0, start, count)?)?),
        })
    }

    /// The gradient as `[n, m]` times a weight.
    pub(crate) fn gradient_tensor(&self, m: usize, weight: f64, device: &Device) -> Result<Tensor> {
        match &self.gradient {
            Entries::Host(gradient) => as_matrix(gradient, m, weight, device),
            Entries::Card(gradient) => Ok((gradient.to_device(device)? * weight)?),
        }
    }

    /// The same for the distances that the plan was solved for.
    pub(crate) fn plan_gradient_tensor(
        &self,
        m: usize,
        weight: f64,
        device: &Device,
    ) -> Result<Option<Tensor>> {
        let gradient = self.plan_gradient.as_ref();
        gradient
            .map(|gradient| as_matrix(gradient, m, weight, device))
            .transpose()
    }
}

fn as_matrix(values: &[f32], m: usize, weight: f64, device: &Device) -> Result<Tensor> {
    Ok((Tensor::from_slice(values, (values.len() / m, m), device)? * weight)?)
}

/// What a sequence's plan is made from.
pub(crate) struct Problem<'a> {
    /// `[n, m]`: similarities under `softmax-similarity`, costs under `kl`.
    pub(crate) matrix: Vec<f32>,
    /// `[n, m]`: squared distances, where the plan has a cost of its own.
    pub(crate) distances: Option<Vec<f32>>,
    pub(crate) n: usize,
    pub(crate) m: usize,
    /// Where the positions lie, if not side by side.
    pub(crate) alignment: Option<&'a Alignment>,
}

impl<'a> Problem<'a> {
    /// Of `(n, m)` positions; `distances` where the plan has a cost of its own.
    pub(crate) fn new(
        matrix: Vec<f32>,
        distances: Option<&SquaredEuclidean>,
        (n, m): (usize, usize),
        alignment: Option<&'a Alignment>,
    ) -> Result<Self> {
        let distances = distances.map(|distances| to_host(&distances.forward()?));
        Ok(Self {
            matrix,
            distances: distances.transpose()?,
            n,
            m,
            alignment,
        })
    }
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
    gradient: Vec<f32>,
    plan_gradient: Option<Vec<f32>>,
}

/// Solves the problems of a sequence.
///
/// # Errors
/// NaN or infinity in a matrix; more positions than [`POSITIONS_MAX`].
pub(crate) fn transport(problem: Problem, config: &OtConfig) -> Result<Transport> {
    let Problem {
        matrix,
        distances,
        n,
        m,
        alignment,
    } = problem;
    if n == 0 || m == 0 || n.max(m) > POSITIONS_MAX {
        return Err(LossError::shape(
            "positions of a transport problem",
            format!(
                "1..={POSITIONS_MAX} on either side (shorter sequences, or target masks, for fewer)"
            ),
            format!("{n} of the student, {m} of the teacher"),
        ));
    }
    let prior = PositionPrior::new(config.position_prior, n, m, alignment);
    let blocks = blocks(n, m, config);
    let solved: Vec<Solved> = if let [_] = blocks[..] {
        let whole = BlockProblem {
            matrix,
            distances,
            first: (0, 0),
            m,
        };
        vec![whole.solve(&prior, config)?]
    } else {
        let cut = |whole: &[f32], (i, j): &Block| -> Vec<f32> {
            let rows = i
                .clone()
                .flat_map(|i| &whole[i * m + j.start..i * m + j.end]);
            rows.copied().collect()
        };
        let block = |block: &Block| {
            let problem = BlockProblem {
                matrix: cut(&matrix, block),
                distances: distances.as_ref().map(|whole| cut(whole, block)),
                first: (block.0.start, block.1.start),
                m: block.1.len(),
            };
            problem.solve(&prior, config)
        };
        blocks.par_iter().map(block).collect::<Result<_>>()?
    };
    Ok(put_together(solved, &blocks, n, m, config))
}

/// All problems of a sequence: one, or every pair of blocks.
pub(super) fn blocks(n: usize, m: usize, config: &OtConfig) -> Vec<Block> {
    let step = match config.scope {
        Scope::Row => n.max(m),
        Scope::Block => config.block_size,
    };
    let ranges = |length: usize| {
        let starts = (0..length).step_by(step);
        starts.map(move |start| start..(start + step).min(length))
    };
    ranges(n)
        .flat_map(|i| ranges(m).map(move |j| (i.clone(), j)))
        .collect()
}

/// One problem, cut out of a sequence.
struct BlockProblem {
    matrix: Vec<f32>,
    distances: Option<Vec<f32>>,
    /// First row and column in the sequence.
    first: (usize, usize),
    m: usize,
}

impl BlockProblem {
    fn solve(self, prior: &PositionPrior, config: &OtConfig) -> Result<Solved> {
        let (n, m) = (self.matrix.len() / self.m, self.m);
        let (cost, p) = match config.cost {
            Cost::Kl => (self.matrix, None),
            Cost::SoftmaxSimilarity => {
                let mut p = self.matrix;
                softmax_rows(&mut p, m, config.temperature);
                (p.iter().map(|p| 1.0 - p).collect(), Some(p))
            }
        };
        let scaled = self.distances.map(|mut distances| {
            let mean = scale_by_mean(&mut distances);
            (distances, mean)
        });
        let options = SolverOptions::from(config);
        let plan_cost = scaled.as_ref().map_or(&cost, |(scaled, _)| scaled);
        let mut solution = if prior.gamma > 0.0 {
            solve(&prior.added(plan_cost, self.first, m), n, m, &options)?
        } else {
            solve(plan_cost, n, m, &options)?
        };
        let mut value = objective::evaluate(
            config.objective,
            &cost,
            &mut solution,
            options.epsilon,
            scaled.is_some(),
        );
        if let Some(p) = p {
            softmax_backward(&mut value.gradient, &p, m, config.temperature);
        }
        if let (Some(gradient), Some((scaled, mean))) = (&mut value.plan_gradient, &scaled) {
            scale_by_mean_backward(gradient, scaled, *mean);
        }
        Ok(Solved {
            outcome: Outcome {
                value: value.value,
                transport_cost: value.transport_cost,
                row_mass: solution.row_mass,
                convergence: Convergence {
                    converged: solution.convergence.converged && value.converged,
                    ..solution.convergence
                },
            },
            gradient: value.gradient,
            plan_gradient: value.plan_gradient,
        })
    }
}

fn put_together(
    solved: Vec<Solved>,
    blocks: &[Block],
    n: usize,
    m: usize,
    config: &OtConfig,
) -> Transport {
    let weight = problem_weight(blocks, config) as f32;
    let mut gradient = vec![0.0; n * m];
    let mut plan_gradient: Option<Vec<f32>> = None;
    for (solved, (i, j)) in solved.iter().zip(blocks) {
        let paste = |whole: &mut [f32], block: &[f32]| {
            for (i, row) in i.clone().zip(block.chunks(j.len())) {
                for (to, &from) in whole[i * m + j.start..].iter_mut().zip(row) {
                    *to = weight * from;
                }
            }
        };
        paste(&mut gradient, &solved.gradient);
        if let Some(block) = &solved.plan_gradient {
            paste(plan_gradient.get_or_insert_with(|| vec![0.0; n * m]), block);
        }
    }
    let outcomes = solved.into_iter().map(|solved| solved.outcome);
    Transport {
        plan_gradient,
        ..summed_up(outcomes, blocks, Entries::Host(gradient), config)
    }
}

/// What a problem counts in the whole.
pub(super) fn problem_weight(blocks: &[Block], config: &OtConfig) -> f64 {
    match config.reduction {
        Reduction::Mean => 1.0 / blocks.len() as f64,
        Reduction::Sum => 1.0,
    }
}

/// The whole of its problems, with their gradients put together already.
pub(super) fn summed_up(
    outcomes: impl IntoIterator<Item = Outcome>,
    blocks: &[Block],
    gradient: Entries,
    config: &OtConfig,
) -> Transport {
    let weight = problem_weight(blocks, config);
    let n = blocks.last().map_or(0, |(i, _)| i.end);
    let mut whole = Transport {
        value: 0.0,
        gradient,
        plan_gradient: None,
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
    whole.report.uninformative = config.cost == Cost::SoftmaxSimilarity
        && (whole.report.transport_cost - ignorant_cost).abs() <= 0.01 * ignorant_cost;
    whole
}
