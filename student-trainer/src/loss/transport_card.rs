/*! Provides the transport loss of a sequence on a card: matrices over pairs of positions stay there, and so does the gradient.

```text
 S or C [n, m] ──> problems [B, r, c], ragged ones padded by rows and columns without mass ──> costs, with the prior
      ──> kernel: a plan for each, facts and row sums ──> host          plans, or `sharp`'s gradient ──> [n, m]
```

What is solved is what [`transport`](super::transport) solves, to the same tolerance. The host does it where a problem's matrices
would take much of a card's memory, where the plan is another than `sinkhorn` between uniform masses or pays for another cost than its own, and where epsilon is no f32.
*/

use candle_core::{DType, Tensor};
use distill_kernels::sinkhorn::{Ending, Found, Launcher, Problems, Solving};

use super::config::{AlignConfig, AlignLoss, Cost};
use super::cost::{Additions, softmax, softmax_gradient};
use super::error::{LossError, Result};
use super::sinkhorn::Convergence;
use super::targets::Alignment;
use super::transport::{Block, Entries, Outcome, Transport, blocks, problem_weight, summed_up};

/// Entries of a problem at most: a dozen matrices of them, 4 MiB each, are there at one time.
pub(crate) const CARD_ENTRIES_MAX: usize = 1 << 20;

/// The problems of a sequence, and how to solve them on a card.
pub(crate) struct CardTransport<'a> {
    config: &'a AlignConfig,
    n: usize,
    m: usize,
    blocks: Vec<Block>,
    problems: Problems,
    how: Solving,
    launcher: Launcher,
}

impl<'a> CardTransport<'a> {
    /// For a matrix `[n, m]` on a card; `None` where the host is to solve.
    pub(crate) fn of(matrix: &Tensor, config: &'a AlignConfig) -> Option<Self> {
        if !matrix.device().is_cuda() {
            return None;
        }
        Self::new(matrix.dims2().ok()?, config, Launcher::CARD)
    }

    pub(crate) fn new(
        (n, m): (usize, usize),
        config: &'a AlignConfig,
        launcher: Launcher,
    ) -> Option<Self> {
        let blocks = blocks(n, m, config);
        let (i, j) = blocks.first()?;
        let problems = Problems {
            count: blocks.len(),
            n: i.len(),
            m: j.len(),
        };
        let how = Solving {
            epsilon: config.epsilon() as f32,
            tolerance: config.tolerance as f32,
            passes_max: config.max_iterations,
        };
        let taken = problems.fits()
            && problems.n * problems.m <= CARD_ENTRIES_MAX
            && how.epsilon.is_normal()
            && config.is_for_a_card();
        taken.then_some(Self {
            config,
            n,
            m,
            blocks,
            problems,
            how,
            launcher,
        })
    }

    /// Solves the problems.
    ///
    /// # Shapes
    /// `matrix`: `[n, m]`, similarities under `softmax-similarity`, else costs.
    ///
    /// # Errors
    /// NaN or infinity in the matrix.
    pub(crate) fn transport(
        &self,
        matrix: &Tensor,
        alignment: Option<&Alignment>,
    ) -> Result<Transport> {
        let (config, whole) = (self.config, self.cut(matrix)?);
        let (cost, p) = if config.solved() == Cost::SoftmaxSimilarity {
            let p = softmax(&self.without_padding(whole)?, config.temperature)?;
            (p.affine(-1.0, 1.0)?, Some(p))
        } else {
            (whole, None)
        };
        let additions = Additions::new(config, self.n, self.m, alignment);
        let solved_for = if additions.is_any() {
            let additions = self.cut(&additions.tensor(cost.device())?)?;
            (cost.to_dtype(DType::F64)? + additions)?.to_dtype(DType::F32)?
        } else {
            cost.clone()
        };
        let (plan, found) = self.solve(&solved_for, &cost)?;
        let (gradient, met) = if config.goes_through_plan() {
            let given = (&cost, &plan);
            self.problems
                .sharp_gradients(&self.launcher, given, &self.how)?
        } else {
            (plan, vec![true; found.len()])
        };
        let gradient = match p {
            Some(p) => softmax_gradient(&gradient, &p, config.temperature)?,
            None => gradient,
        };
        let weight = problem_weight(&self.blocks, config) * config.scale();
        let gradient = Entries::Tensor((self.put_together(&gradient)? * weight)?);
        let outcomes = found.into_iter().zip(met);
        let outcomes = outcomes.map(|(found, met)| self.outcome(found, met));
        Ok(summed_up(outcomes, &self.blocks, Some(gradient), config))
    }

    fn outcome(&self, found: Found, met: bool) -> Outcome {
        let transport_cost = self.config.scale() * found.transport_cost;
        Outcome {
            value: match self.config.loss {
                AlignLoss::Entropic => found.entropic_value,
                _ => transport_cost,
            },
            transport_cost,
            row_mass: found.row_mass,
            convergence: Convergence {
                iterations: found.passes,
                newton_steps: found.newton_steps,
                marginal_error: found.marginal_error,
                converged: met && found.error <= f64::from(self.how.tolerance),
            },
        }
    }

    /// The plans `[B, r, c]`.
    fn solve(&self, cost: &Tensor, paid: &Tensor) -> Result<(Tensor, Vec<Found>)> {
        let marginals = self.marginals(cost)?;
        let costs = (cost, paid);
        let (plans, found) = self
            .problems
            .plans(&self.launcher, costs, &marginals, &self.how)?;
        for found in &found {
            let (what, position) = match found.ending {
                Ending::Solved => continue,
                Ending::CostNotFinite(row) => ("transport cost", row),
                Ending::PlanNotFinite => ("transport plan", 0),
            };
            return Err(LossError::NonFinite { what, position });
        }
        Ok((plans, found))
    }

    /// Uniform over the rows and columns that a problem has, `[B, r + c]`.
    fn marginals(&self, like: &Tensor) -> Result<Tensor> {
        let Problems { count, n, m } = self.problems;
        let side = |len: usize, of: usize| {
            (0..of).map(move |k| if k < len { 1.0 / len as f64 } else { 0.0 })
        };
        let problem = |(i, j): &Block| side(i.len(), n).chain(side(j.len(), m));
        let masses: Vec<f64> = self.blocks.iter().flat_map(problem).collect();
        Ok(Tensor::from_vec(masses, (count, n + m), like.device())?)
    }

    /// Rows and columns of blocks.
    fn grid(&self) -> (usize, usize) {
        let Problems { n, m, .. } = self.problems;
        (self.n.div_ceil(n), self.m.div_ceil(m))
    }

    /// `[n, m]` to `[B, r, c]`, 0 beyond the last position.
    fn cut(&self, whole: &Tensor) -> Result<Tensor> {
        let Problems { count, n, m } = self.problems;
        let (rows, columns) = self.grid();
        let padded = whole.pad_with_zeros(0, 0, rows * n - self.n)?;
        let padded = padded.pad_with_zeros(1, 0, columns * m - self.m)?;
        let blocks = padded
            .reshape((rows, n, columns, m))?
            .transpose(1, 2)?
            .contiguous()?;
        Ok(blocks.reshape((count, n, m))?)
    }

    /// And back.
    fn put_together(&self, blocks: &Tensor) -> Result<Tensor> {
        let Problems { n, m, .. } = self.problems;
        let (rows, columns) = self.grid();
        let whole = blocks.reshape((rows, columns, n, m))?.transpose(1, 2)?;
        let whole = whole.contiguous()?.reshape((rows * n, columns * m))?;
        let whole = whole.narrow(0, 0, self.n)?.narrow(1, 0, self.m)?;
        Ok(whole.contiguous()?)
    }

    /// Similarities with the columns that a problem has not at -inf.
    fn without_padding(&self, blocks: Tensor) -> Result<Tensor> {
        let Problems { count, m, .. } = self.problems;
        if self.m.is_multiple_of(m) {
            return Ok(blocks);
        }
        let bound = |(_, j): &Block| {
            let len = j.len();
            (0..m).map(move |k| if k < len { 0.0 } else { f32::NEG_INFINITY })
        };
        let bounds: Vec<f32> = self.blocks.iter().flat_map(bound).collect();
        let bounds = Tensor::from_vec(bounds, (count, 1, m), blocks.device())?;
        Ok(blocks.broadcast_add(&bounds)?)
    }
}
