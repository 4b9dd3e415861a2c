//! Provides the calls that solve transport problems, a block for each: plans, their values, and gradients through them.
//!
//! A problem's passes are one block's work, so what they cost is hidden by other problems at the same time, not by the card's size.

use candle_core::{DType, Result, bail};

use crate::{Call, Launch, SHARED_BYTES_MAX, SINKHORN};

/// Threads of a block.
const THREADS: usize = 512;
/// Bytes of shared memory in which a block joins its values.
const SHARED_JOIN: usize = 8 * 32;
/// Numbers that are said of a solved problem, before its potentials.
const FACTS: usize = 7;
/// Numbers that a problem keeps from one launch to the next, beside its vectors.
const STATE: usize = 16;
/// Most steps of conjugate gradients towards a gradient.
const STEPS_MAX: usize = 1_000;
/// Entries that one multiprocessor looks at in a launch: a card that computes f64 at a 64th of f32's rate takes about a nanosecond
/// for each, and a driver ends what keeps a display waiting for two seconds.
const ENTRIES_A_LAUNCH: usize = 1 << 28;
/// Multiprocessors that a card has at least.
const MULTIPROCESSORS: usize = 32;

/// Transport problems of one size. A smaller one has rows or columns of mass 0 at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problems {
    /// Problems.
    pub count: usize,
    /// Rows of each.
    pub n: usize,
    /// Columns of each.
    pub m: usize,
}

/// How to solve them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Solving {
    /// Entropic regularisation, in units of the cost.
    pub epsilon: f32,
    /// L1 error of the column sums at which to stop.
    pub tolerance: f32,
    /// Most passes over a problem's matrix.
    pub passes_max: usize,
    /// Passes of a launch, after which the next goes on: see [`Problems::passes_a_launch`].
    pub passes_a_launch: usize,
}

/// Indices of the buffers of [`Problems::solve`].
#[derive(Debug, Clone, Copy)]
pub struct SolveBuffers {
    /// What the plan is for [count, n, m], f32.
    pub cost: usize,
    /// What `<T,C>` is of [count, n, m], f32; may be `cost`.
    pub paid: usize,
    /// Row masses and column masses [count, n + m], f64; either sum to 1.
    pub marginals: usize,
    /// The plan [count, n, m], f32.
    pub plan: usize,
    /// What [`Problems::found`] reads, f64.
    pub found: usize,
    /// Scratch, f64.
    pub work: usize,
}

impl SolveBuffers {
    /// Inputs are costs and masses, outputs those of [`Problems::outputs`]; `<T,C>` is of the same costs.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn of_one_cost(inputs: &[usize], outputs: &[usize]) -> Self {
        Self {
            cost: inputs[0],
            paid: inputs[0],
            marginals: inputs[1],
            plan: outputs[0],
            found: outputs[1],
            work: outputs[2],
        }
    }
}

/// What was found about one problem.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// How it ended; where it is not [`Ending::Solved`] the rest says nothing.
    pub ending: Ending,
    /// Passes over the matrix.
    pub passes: usize,
    /// Newton steps among them.
    pub newton_steps: usize,
    /// L1 error of the column sums, as the solver last saw it.
    pub error: f64,
    /// The same of the plan's entries as they are stored.
    pub marginal_error: f64,
    /// `<T,C> + epsilon sum T ln T` of the cost that the plan is for.
    pub entropic_value: f64,
    /// `<T,C>` of the paid cost.
    pub transport_cost: f64,
    /// f, in units of the cost; -inf where the mass is 0.
    pub row_potential: Vec<f64>,
    /// g.
    pub column_potential: Vec<f64>,
    /// The plan's row sums.
    pub row_mass: Vec<f64>,
    /// The plan's column sums.
    pub column_mass: Vec<f64>,
}

/// How a solve ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// At the tolerance or the limit.
    Solved,
    /// This row is the first with a cost that is not finite.
    CostNotFinite(usize),
    /// The plan is not finite.
    PlanNotFinite,
}

impl Problems {
    /// Whether a pass' vectors fit the shared memory of a block: n + m up to 6112.
    pub fn fits(&self) -> bool {
        self.shared() <= SHARED_BYTES_MAX
    }

    /// Passes that keep no display waiting for long. What is found does not depend on their number.
    pub fn passes_a_launch(&self) -> usize {
        let entries = self.n * self.m * self.count.div_ceil(MULTIPROCESSORS);
        (ENTRIES_A_LAUNCH / entries.max(1)).clamp(32, 512)
    }

    fn shared(&self) -> usize {
        SHARED_JOIN + size_of::<f64>() * (self.n + self.m)
    }

    fn entries(&self) -> usize {
        self.count * self.n * self.m
    }

    fn found_width(&self) -> usize {
        FACTS + 2 * (self.n + self.m)
    }

    fn launch(&self) -> Result<Launch> {
        if self.n == 0 || self.m == 0 {
            bail!("a transport problem of {} x {}", self.n, self.m);
        }
        Ok(Launch {
            grid: [self.count, 1, 1],
            block: THREADS,
            shared: self.shared(),
        })
    }

    /// Types and lengths of plan, found and work.
    pub fn outputs(&self) -> [(DType, usize); 3] {
        let work = STATE + 2 * self.n + 8 * self.m + self.m.max(THREADS);
        [
            (DType::F32, self.entries()),
            (DType::F64, self.count * self.found_width()),
            (DType::F64, self.count * work),
        ]
    }

    /// The plans.
    ///
    /// # Errors
    /// When a problem is empty, or does not [fit](Self::fits).
    pub fn solve(&self, at: SolveBuffers, how: &Solving) -> Result<Vec<Call>> {
        self.launches(how.passes_max, how.passes_a_launch, |launch| {
            let call = Call::new(&SINKHORN, "sinkhorn", launch)?;
            let call = call.buffer(at.cost, DType::F32).buffer(at.paid, DType::F32);
            let call = call
                .buffer(at.marginals, DType::F64)
                .buffer(at.plan, DType::F32);
            let call = call
                .buffer(at.found, DType::F64)
                .buffer(at.work, DType::F64);
            let call = call.int(int(self.n)).int(int(self.m));
            Ok(call.float(how.epsilon).float(how.tolerance))
        })
    }

    /// As many launches of `call` as `most` passes take, each with where it is in their row. A launch after all is done ends at once.
    fn launches(
        &self,
        most: usize,
        a_launch: usize,
        call: impl Fn(Launch) -> Result<Call>,
    ) -> Result<Vec<Call>> {
        let a_launch = a_launch.max(1);
        let launches = 0..most.div_ceil(a_launch).max(1);
        launches
            .map(|launch| {
                let call = call(self.launch()?)?.int(int(most));
                Ok(call.int(int(launch)).int(int(a_launch)))
            })
            .collect()
    }

    /// What the buffer of that name says of every problem.
    ///
    /// # Errors
    /// When it is not of these problems' length.
    pub fn found(&self, found: &[f64]) -> Result<Vec<Found>> {
        if found.len() != self.count * self.found_width() {
            bail!("{} numbers about {self:?}", found.len());
        }
        Ok(found
            .chunks(self.found_width())
            .map(|of| self.one(of))
            .collect())
    }

    fn one(&self, of: &[f64]) -> Found {
        let (facts, vectors) = of.split_at(FACTS);
        let (potentials, masses) = vectors.split_at(self.n + self.m);
        let (row_potential, column_potential) = potentials.split_at(self.n);
        let (row_mass, column_mass) = masses.split_at(self.n);
        Found {
            ending: match facts[0] {
                0.0 => Ending::Solved,
                status if status > 0.0 => Ending::CostNotFinite(status as usize - 1),
                _ => Ending::PlanNotFinite,
            },
            passes: facts[1] as usize,
            newton_steps: facts[2] as usize,
            error: facts[3],
            marginal_error: facts[4],
            entropic_value: facts[5],
            transport_cost: facts[6],
            row_potential: row_potential.to_vec(),
            column_potential: column_potential.to_vec(),
            row_mass: row_mass.to_vec(),
            column_mass: column_mass.to_vec(),
        }
    }

    /// Types and lengths of gradient, met and work of [`sharp_gradient`](Self::sharp_gradient).
    pub fn sharp_outputs(&self) -> [(DType, usize); 3] {
        let work = STATE + 3 * self.n + 6 * self.m + self.m.max(THREADS);
        [
            (DType::F32, self.entries()),
            (DType::F64, self.count),
            (DType::F64, self.count * work),
        ]
    }

    /// `dL/dC` of `L = <T*,C>`, T* the plan for C and whatever else is not C's to change.
    ///
    /// # Shapes
    /// cost, plan and gradient `[count, n, m]` f32; met `[count]` f64: 1 where the equations were solved, else 0.
    ///
    /// # Errors
    /// When a problem is empty, or does not [fit](Self::fits).
    pub fn sharp_gradient(
        &self,
        (cost, plan): (usize, usize),
        (gradient, met, work): (usize, usize, usize),
        how: &Solving,
    ) -> Result<Vec<Call>> {
        self.launches(STEPS_MAX, how.passes_a_launch, |launch| {
            let call = Call::new(&SINKHORN, "sharp_gradient", launch)?;
            let call = call.buffer(cost, DType::F32).buffer(plan, DType::F32);
            let call = call.buffer(gradient, DType::F32).buffer(met, DType::F64);
            let call = call.buffer(work, DType::F64);
            let call = call.int(int(self.n)).int(int(self.m));
            Ok(call.float(how.epsilon))
        })
    }
}

/// No number of rows, columns or passes that a kernel is given is larger than its own type.
fn int(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
