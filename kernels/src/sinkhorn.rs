//! Provides the solver of transport problems on a card: plans, their values, and gradients through them.
//!
//! Two launches take turns, `rows` on all blocks and `step` on one for each problem, until every problem is at its end. The host asks
//! for many of both at a time and then looks: what comes after the end does nothing.

use candle_core::{DType, Result, Tensor, bail};

use crate::{Call, Change, Compute, Launch, SHARED_BYTES_MAX, SINKHORN, device};

/// Threads of a block that works on rows, a warp on each, and of one that decides.
const ROWS_THREADS: usize = 256;
const STEP_THREADS: usize = 512;
/// Rows of a block at least, one for each of its warps.
const GROUP_ROWS_MIN: usize = 8;
/// Blocks of a problem at most: one of them adds up what all have found.
const GROUPS_MAX: usize = 64;
/// Bytes of shared memory in which a block joins its values.
const SHARED_JOIN: usize = 8 * 32;
/// Numbers that are said of a solved problem, before its potentials.
const FACTS: usize = 7;
/// Numbers that a problem keeps from one launch to the next, beside its vectors, and those that a gradient keeps.
const STATE: usize = 24;
const SHARP_STATE: usize = 4;
/// What a problem says that is not at its end.
const UNFINISHED: f64 = -2.0;
/// Most steps of conjugate gradients towards a gradient.
const STEPS_MAX: usize = 1_000;
/// Rounds of both launches before the host looks for the first time; each time twice as many, up to the other.
const ROUNDS_FIRST: usize = 32;
const ROUNDS_MOST: usize = 512;
/// Rounds beside those of passes: potentials before, the plan or gradient after, and a direction and a step that are under way when
/// the limit is reached.
const ROUNDS_BESIDE: usize = 8;

/// What launches the kernels.
#[derive(Debug, Clone, Copy)]
pub struct Launcher {
    /// Makes the buffers, and launches on them.
    pub compute: Compute,
    /// Launches again on the same.
    pub change: Change,
}

impl Launcher {
    /// The card.
    pub const CARD: Self = Self {
        compute: device::COMPUTE,
        change: device::CHANGE,
    };
}

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
    /// Whether a pass' vectors fit the shared memory of a block: m up to 6,000 or so.
    pub fn fits(&self) -> bool {
        self.rows_shared() <= SHARED_BYTES_MAX
    }

    /// The plans `[count, n, m]`, and what was found about each.
    ///
    /// # Shapes
    /// cost: what the plans are for, and paid: what `<T,C>` is of, `[count, n, m]` f32; marginals `[count, n + m]` f64: row masses and
    /// column masses, either summing to 1.
    ///
    /// # Errors
    /// When a problem is empty, or does not [fit](Self::fits); what a launch says.
    pub fn plans(
        &self,
        launcher: &Launcher,
        (cost, paid): (&Tensor, &Tensor),
        marginals: &Tensor,
        how: &Solving,
    ) -> Result<(Tensor, Vec<Found>)> {
        let work = STATE + 3 * self.n + (8 + self.groups()) * self.m;
        let outputs = [
            (DType::F32, self.entries()),
            (DType::F64, self.count * self.found_width()),
            (DType::F64, self.count * work),
        ];
        let rows = |x: &[usize], out: &[usize]| {
            let call = Call::new(&SINKHORN, "sinkhorn_rows", self.rows_launch()?)?;
            let call = call.buffer(x[0], DType::F32).buffer(x[1], DType::F32);
            let call = call.buffer(x[2], DType::F64).buffer(out[0], DType::F32);
            let call = call.buffer(out[1], DType::F64).buffer(out[2], DType::F64);
            let call = call.int(int(self.n)).int(int(self.m));
            Ok(call.int(int(self.group_rows())).float(how.epsilon))
        };
        let step = |x: &[usize], out: &[usize], first: bool| {
            let call = Call::new(&SINKHORN, "sinkhorn_step", self.step_launch())?;
            let call = call.buffer(x[2], DType::F64).buffer(out[0], DType::F32);
            let call = call.buffer(out[1], DType::F64).buffer(out[2], DType::F64);
            let call = call.int(int(self.n)).int(int(self.m));
            let call = call.int(int(self.groups())).float(how.epsilon);
            let call = call.float(how.tolerance).int(int(how.passes_max));
            Ok(call.int(i32::from(first)))
        };
        let rounds = Rounds {
            launcher,
            most: how.passes_max,
            width: self.found_width(),
        };
        let inputs = [cost, paid, marginals];
        let (made, said) = rounds.run(&inputs, &outputs, &rows, &step)?;
        let found = said.chunks(self.found_width()).map(|of| self.one(of));
        let plans = made[0].reshape((self.count, self.n, self.m))?;
        Ok((plans, found.collect()))
    }

    /// `dL/dC` `[count, n, m]` of `L = <T*,C>`, T* the plan for C and whatever else is not C's to change, and of each problem whether the
    /// equations were solved.
    ///
    /// # Shapes
    /// cost and plan `[count, n, m]` f32.
    ///
    /// # Errors
    /// As [`plans`](Self::plans).
    pub fn sharp_gradients(
        &self,
        launcher: &Launcher,
        (cost, plan): (&Tensor, &Tensor),
        how: &Solving,
    ) -> Result<(Tensor, Vec<bool>)> {
        let work = SHARP_STATE + 2 * self.n + (5 + 2 * self.groups()) * self.m;
        let outputs = [
            (DType::F32, self.entries()),
            (DType::F64, self.count),
            (DType::F64, self.count * work),
        ];
        let rows = |x: &[usize], out: &[usize]| {
            let call = Call::new(&SINKHORN, "sharp_rows", self.rows_launch()?)?;
            let call = call.buffer(x[0], DType::F32).buffer(x[1], DType::F32);
            let call = call.buffer(out[0], DType::F32).buffer(out[2], DType::F64);
            let call = call.int(int(self.n)).int(int(self.m));
            Ok(call.int(int(self.group_rows())).float(how.epsilon))
        };
        let step = |_: &[usize], out: &[usize], first: bool| {
            let call = Call::new(&SINKHORN, "sharp_step", self.step_launch())?;
            let call = call.buffer(out[1], DType::F64).buffer(out[2], DType::F64);
            let call = call.int(int(self.n)).int(int(self.m));
            let call = call.int(int(self.groups())).int(int(STEPS_MAX));
            Ok(call.int(i32::from(first)))
        };
        let rounds = Rounds {
            launcher,
            most: STEPS_MAX,
            width: 1,
        };
        let (made, said) = rounds.run(&[cost, plan], &outputs, &rows, &step)?;
        let gradients = made[0].reshape((self.count, self.n, self.m))?;
        Ok((gradients, said.iter().map(|met| *met == 1.0).collect()))
    }

    /// Rows of a block.
    fn group_rows(&self) -> usize {
        self.n.div_ceil(GROUPS_MAX).max(GROUP_ROWS_MIN)
    }

    fn groups(&self) -> usize {
        self.n.div_ceil(self.group_rows())
    }

    fn rows_shared(&self) -> usize {
        size_of::<f64>() * (self.m + self.group_rows())
    }

    fn rows_launch(&self) -> Result<Launch> {
        if self.n == 0 || self.m == 0 {
            bail!("a transport problem of {} x {}", self.n, self.m);
        }
        Ok(Launch {
            grid: [self.count, self.groups(), 1],
            block: ROWS_THREADS,
            shared: self.rows_shared(),
        })
    }

    fn step_launch(&self) -> Launch {
        Launch {
            grid: [self.count, 1, 1],
            block: STEP_THREADS,
            shared: SHARED_JOIN,
        }
    }

    fn entries(&self) -> usize {
        self.count * self.n * self.m
    }

    fn found_width(&self) -> usize {
        FACTS + 2 * (self.n + self.m)
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
}

/// Makes a round's launch from the indices of inputs and outputs.
type MakeRows<'a> = &'a dyn Fn(&[usize], &[usize]) -> Result<Call>;
/// The same, and whether it is the very first.
type MakeStep<'a> = &'a dyn Fn(&[usize], &[usize], bool) -> Result<Call>;

/// Both launches in turn, until all problems are at their end.
struct Rounds<'a> {
    launcher: &'a Launcher,
    /// Passes at most.
    most: usize,
    /// Numbers that are said of each problem in the second output, the first of which tells whether it is at its end.
    width: usize,
}

impl Rounds<'_> {
    /// The outputs, and what the second says.
    fn run(
        &self,
        inputs: &[&Tensor],
        outputs: &[(DType, usize)],
        rows: MakeRows<'_>,
        step: MakeStep<'_>,
    ) -> Result<(Vec<Tensor>, Vec<f64>)> {
        let round = |calls: &mut Vec<Call>, x: &[usize], out: &[usize]| {
            calls.extend([rows(x, out)?, step(x, out, false)?]);
            Ok::<_, candle_core::Error>(())
        };
        let (mut count, mut done) = (ROUNDS_FIRST, 0);
        let made = (self.launcher.compute)(inputs, outputs, &|x, out| {
            let mut calls = vec![step(x, out, true)?];
            (0..count).try_for_each(|_| round(&mut calls, x, out))?;
            Ok(calls)
        })?;
        let changed: Vec<&Tensor> = made.iter().collect();
        loop {
            let said: Vec<f64> = made[1].to_vec1()?;
            if said.iter().step_by(self.width).all(|of| *of != UNFINISHED) {
                return Ok((made, said));
            }
            done += count;
            if done >= self.most + ROUNDS_BESIDE {
                bail!("a transport problem did not end after {done} passes");
            }
            count = (2 * count).min(ROUNDS_MOST);
            (self.launcher.change)(&changed, inputs, &|out, x| {
                let mut calls = Vec::with_capacity(2 * count);
                (0..count).try_for_each(|_| round(&mut calls, x, out))?;
                Ok(calls)
            })?;
        }
    }
}

/// No number of rows, columns or passes that a kernel is given is larger than its own type.
fn int(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}
