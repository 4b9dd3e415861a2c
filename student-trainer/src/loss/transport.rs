//! Provides the transport loss of a whole sequence: cut into problems, solved, and put together again.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::config::{Cost, OtConfig, POSITIONS_MAX, Reduction, Scope};
use super::cost::{PositionPrior, softmax_backward, softmax_rows};
use super::error::{LossError, Result};
use super::objective;
use super::sinkhorn::{SolverOptions, solve};

/// How the solver fared, over all problems of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct SolverReport {
    /// Transport problems solved; 0 when the weight of OT is 0.
    pub problems: usize,
    /// Most passes over a kernel that any of them took.
    pub iterations: usize,
    /// Newton steps of all of them.
    pub newton_steps: usize,
    /// Largest L1 marginal error.
    pub marginal_error: f64,
    /// Whether all met the tolerance, and the adjoint of `sharp` was solved.
    pub converged: bool,
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
    pub(crate) gradient: Vec<f32>,
    /// `[n]`: row masses of the plans, weighted as the reduction says: d value / d(constant along row i of C).
    pub(crate) row_mass: Vec<f64>,
    pub(crate) report: SolverReport,
}

impl Transport {
    /// The gradient as `[n, m]` times a weight.
    pub(crate) fn gradient_tensor(&self, m: usize, weight: f64, device: &Device) -> Result<Tensor> {
        let shape = (self.gradient.len() / m, m);
        Ok((Tensor::from_slice(&self.gradient, shape, device)? * weight)?)
    }
}

/// One problem's rows and columns.
type Block = (Range<usize>, Range<usize>);

struct Solved {
    value: objective::Value,
    row_mass: Vec<f64>,
    iterations: usize,
    newton_steps: usize,
    marginal_error: f64,
    converged: bool,
}

/// Solves the problems of a sequence.
///
/// # Shapes
/// `matrix`: `[n, m]`: similarities under `softmax-similarity`, costs under `kl`.
///
/// # Errors
/// NaN or infinity in the matrix; more positions than [`POSITIONS_MAX`].
pub(crate) fn transport(
    matrix: Vec<f32>,
    n: usize,
    m: usize,
    config: &OtConfig,
) -> Result<Transport> {
    if n == 0 || m == 0 || n.max(m) > POSITIONS_MAX {
        return Err(LossError::shape(
            "positions of a transport problem",
            format!(
                "1..={POSITIONS_MAX} on either side (shorter sequences, or target masks, for fewer)"
            ),
            format!("{n} of the student, {m} of the teacher"),
        ));
    }
    let prior = PositionPrior {
        gamma: config.position_prior,
        positions: n,
        teacher_positions: m,
    };
    let blocks = blocks(n, m, config);
    let solved: Vec<Solved> = if let [_] = blocks[..] {
        vec![solve_block(matrix, (0, 0), m, &prior, config)?]
    } else {
        let cut = |(i, j): &Block| {
            let rows = i
                .clone()
                .flat_map(|i| &matrix[i * m + j.start..i * m + j.end]);
            solve_block(
                rows.copied().collect(),
                (i.start, j.start),
                j.len(),
                &prior,
                config,
            )
        };
        blocks.par_iter().map(cut).collect::<Result<_>>()?
    };
    Ok(put_together(solved, &blocks, n, m, config))
}

/// All problems of a sequence: one, or every pair of blocks.
fn blocks(n: usize, m: usize, config: &OtConfig) -> Vec<Block> {
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

fn solve_block(
    matrix: Vec<f32>,
    first: (usize, usize),
    m: usize,
    prior: &PositionPrior,
    config: &OtConfig,
) -> Result<Solved> {
    let n = matrix.len() / m;
    let (cost, p) = match config.cost {
        Cost::Kl => (matrix, None),
        Cost::SoftmaxSimilarity => {
            let mut p = matrix;
            softmax_rows(&mut p, m, config.temperature);
            (p.iter().map(|p| 1.0 - p).collect(), Some(p))
        }
    };
    let options = SolverOptions::from(config);
    let mut solution = if prior.gamma > 0.0 {
        solve(&prior.added(&cost, first, m), n, m, &options)?
    } else {
        solve(&cost, n, m, &options)?
    };
    let mut value = objective::evaluate(config.objective, &cost, &mut solution, options.epsilon);
    if let Some(p) = p {
        softmax_backward(&mut value.gradient, &p, m, config.temperature);
    }
    Ok(Solved {
        converged: solution.converged && value.converged,
        value,
        row_mass: solution.row_mass,
        iterations: solution.iterations,
        newton_steps: solution.newton_steps,
        marginal_error: solution.marginal_error,
    })
}

fn put_together(
    solved: Vec<Solved>,
    blocks: &[Block],
    n: usize,
    m: usize,
    config: &OtConfig,
) -> Transport {
    let weight = match config.reduction {
        Reduction::Mean => 1.0 / blocks.len() as f64,
        Reduction::Sum => 1.0,
    };
    let mut whole = Transport {
        value: 0.0,
        gradient: vec![0.0; n * m],
        row_mass: vec![0.0; n],
        report: SolverReport {
            problems: blocks.len(),
            converged: true,
            ..SolverReport::default()
        },
    };
    let mut ignorant_cost = 0.0;
    for (solved, (i, j)) in solved.into_iter().zip(blocks) {
        let report = &mut whole.report;
        report.iterations = report.iterations.max(solved.iterations);
        report.newton_steps += solved.newton_steps;
        report.marginal_error = report.marginal_error.max(solved.marginal_error);
        report.converged &= solved.converged;
        report.transport_cost += weight * solved.value.transport_cost;
        whole.value += weight * solved.value.value;
        ignorant_cost += weight * (1.0 - 1.0 / j.len() as f64);
        for (mass, row) in whole.row_mass[i.clone()].iter_mut().zip(&solved.row_mass) {
            *mass += weight * row;
        }
        for (i, row) in i.clone().zip(solved.value.gradient.chunks(j.len())) {
            for (to, &from) in whole.gradient[i * m + j.start..].iter_mut().zip(row) {
                *to = weight as f32 * from;
            }
        }
    }
    whole.report.uninformative = config.cost == Cost::SoftmaxSimilarity
        && (whole.report.transport_cost - ignorant_cost).abs() <= 0.01 * ignorant_cost;
    whole
}
