/*! Provides the principal sketch: R coordinates of a row's centred logits in their leading directions.

```text
 sample of the plan ──> hidden states ──> S = E[h h^T] ──┐
                                                         ├─> subspace: V [D, R] ──┬─> projection G V: c = (G V)^T h
 head ──> Basis B [V, D] ─────────────> G = B^T B ───────┘                        └─> basis B V [V, R]: B h ~ (B V) c
 held-out sequences ──> hidden states ──> error
```

With centred logits Y = B h, the directions that hold most of E|Y|^2 are the leading eigenvectors of E[Y Y^T] = B S B^T. They
are B v with S G v = lambda v, so only matrices of the hidden size are needed, never one of the vocabulary's. V^T G V = I makes
the columns of B V orthonormal, and c = (B V)^T Y = V^T G h the coordinates of the projection.
*/

mod accuracy;
mod sample;
mod subspace;

use candle_core::{DType, Device, Tensor};
use distill_proto::StateCoding;

use crate::{
    Error, Result,
    basis::Basis,
    forward::Teacher,
    plan::Plan,
    progress::{Progress, Words},
};
use accuracy::Projected;
use sample::{Choice, hidden_rows};

/// Rows of the basis that are widened to f64 at a time.
const GRAM_ROWS: usize = 2048;

/// The teacher on the sample.
const SAMPLING: Words = Words {
    label: "sketch",
    parts: "sequences",
    units: "tokens",
};
/// Products over the rows of the head: one pass before the directions are found, one after.
const MATRICES: Words = Words {
    label: "sketch",
    parts: "parts of the head",
    units: "rows",
};

/// A sketch and how good it is.
pub struct Sketch {
    /// Takes a hidden state to its coordinates, `[D, R]` f32.
    pub projection: Tensor,
    /// Takes coordinates to centred logits, `[V, R]`.
    pub basis: Basis,
    /// What it was made of, and what it loses.
    pub summary: Summary,
}

/// What a sketch was made of, and what it loses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Directions, R.
    pub rank: usize,
    /// Rows whose hidden states it was made from.
    pub rows: usize,
    /// Rows that the error was measured on.
    pub held_out_rows: usize,
    /// Whether the corpus was too small to hold any out: then both are the same rows.
    pub shared: bool,
    /// Mean over rows of |Y - B c| / |Y|, with the rounding of c and of the basis.
    pub error: f32,
}

impl Sketch {
    /// Makes a sketch of `rank` directions from a sample of the plan; the same one for the same plan.
    ///
    /// # Errors
    /// `ShuttingDown` once `stopped` says so; `NotFinite` where the teacher's hidden states are; `Config` where the head has
    /// no such rank.
    pub fn make(
        teacher: &Teacher,
        plan: &Plan,
        rank: usize,
        coding: StateCoding,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Self> {
        let choice = Choice::of(plan);
        let (sequences, tokens) = choice.work(plan);
        let mut progress = Progress::of(SAMPLING, sequences, tokens);
        let mut moment = Moment::default();
        hidden_rows(
            teacher,
            plan,
            &choice.training,
            stopped,
            &mut progress,
            |h| moment.add(&h),
        )?;
        let mut held_out = Vec::new();
        hidden_rows(
            teacher,
            plan,
            &choice.held_out,
            stopped,
            &mut progress,
            |h| {
                held_out.push(h);
                Ok(())
            },
        )?;
        let exact = Basis::new(teacher.head().clone())?;
        let chunks = exact.rows().div_ceil(GRAM_ROWS) as u64;
        let mut progress = Progress::of(MATRICES, 2 * chunks, 2 * exact.rows() as u64);
        let gram = gram(&exact, stopped, &mut progress)?;
        let rows = moment.rows;
        let directions = subspace::leading(&moment.mean()?, &gram, rank, stopped)?;
        let projected = Projected::new(&exact, &directions, &gram, stopped, &mut progress)?;
        let held_out = Tensor::cat(&held_out, 0)?;
        let error = projected.mean_error(&held_out, &gram, coding)? as f32;
        Ok(Self {
            summary: Summary {
                rank,
                rows,
                held_out_rows: held_out.dim(0)?,
                shared: choice.shared,
                error,
            },
            projection: projected.projection,
            basis: projected.basis,
        })
    }
}

/// Sum of h h^T over rows, f64.
#[derive(Default)]
struct Moment {
    sum: Option<Tensor>,
    rows: usize,
}

impl Moment {
    /// Adds the rows of `hidden` `[n, D]`.
    fn add(&mut self, hidden: &Tensor) -> Result<()> {
        let hidden = hidden.to_dtype(DType::F64)?;
        let part = hidden.t()?.matmul(&hidden)?;
        self.rows += hidden.dim(0)?;
        self.sum = Some(match self.sum.take() {
            Some(sum) => (sum + part)?,
            None => part,
        });
        Ok(())
    }

    /// S = E[h h^T] `[D, D]`.
    fn mean(self) -> Result<Tensor> {
        let empty = || Error::Internal("no row was sampled for the sketch".into());
        Ok((self.sum.ok_or_else(empty)? / self.rows.max(1) as f64)?)
    }
}

/// G = B^T B `[D, D]`, f64.
fn gram(basis: &Basis, stopped: &dyn Fn() -> bool, progress: &mut Progress) -> Result<Tensor> {
    let rank = basis.rank();
    let mut gram = Tensor::zeros((rank, rank), DType::F64, &Device::Cpu)?;
    for start in (0..basis.rows()).step_by(GRAM_ROWS) {
        check(stopped)?;
        let rows = start..basis.rows().min(start + GRAM_ROWS);
        let part = basis.values(rows)?.to_dtype(DType::F64)?;
        gram = (gram + part.t()?.matmul(&part)?)?;
        progress.advance(1, part.dim(0)? as u64);
    }
    Ok(gram)
}

/// Ends the work where the server was told to stop.
fn check(stopped: &dyn Fn() -> bool) -> Result<()> {
    if stopped() {
        return Err(Error::ShuttingDown);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
