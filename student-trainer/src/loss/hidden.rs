/*! Provides comparisons of the student's hidden states with the teacher's, through a learned projection P `[D, d]`.

```text
 Z = Y P,   S = X Z^T / sqrt(d)   or the cosines of X's and Z's rows;   1 - the cosines of rows less their mean over the sequence
 dX = dS Z / sqrt(d),   dZ = dS^T X / sqrt(d),   dP = Y^T dZ        (cosine: x^ = x / |x|, dx = (dx^ - x^ (x^ . dx^)) / |x|)
```

Hidden sizes need not agree and no vocabulary is involved, so it works between any two models and any two layers.
*/

use candle_core::{D, DType, Device, Tensor, Var};
use distill_proto::StateKind;
use rand::{SeedableRng, rngs::StdRng};

use super::config::no_states;
use super::error::{LossError, Result};
use super::geometry::row_norms;
use super::similarity::state_matrix;
use super::targets::Targets;
use crate::random::normal;

/// The learned map from the teacher's hidden states to the student's.
#[derive(Debug)]
pub struct HiddenProjection {
    projection: Var,
    /// Which of the capture's layers it takes.
    teacher_state: usize,
}

impl HiddenProjection {
    /// Its name as a parameter.
    pub const NAME: &'static str = "hidden_projection";

    /// Normal numbers of deviation 1 / sqrt(D), so that a projected row is about as long as the row; the same for a seed.
    ///
    /// # Errors
    /// A tensor error.
    pub fn new(
        teacher_size: usize,
        hidden_size: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        let deviation = (teacher_size as f64).sqrt().recip();
        let values: Vec<f32> = (0..teacher_size * hidden_size)
            .map(|_| (normal(&mut random) * deviation) as f32)
            .collect();
        Self::from_tensor(&Tensor::from_vec(
            values,
            (teacher_size, hidden_size),
            device,
        )?)
    }

    /// From P `[D, d]`.
    ///
    /// # Errors
    /// A tensor error.
    pub fn from_tensor(projection: &Tensor) -> Result<Self> {
        let projection = Var::from_tensor(&projection.to_dtype(DType::F32)?)?;
        Ok(Self {
            projection,
            teacher_state: 0,
        })
    }

    /// The same, of another of the capture's layers.
    #[must_use]
    pub fn of_state(self, teacher_state: usize) -> Self {
        Self {
            teacher_state,
            ..self
        }
    }

    /// D and d.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.projection.dims()[0], self.projection.dims()[1])
    }

    /// Puts another P in its place.
    ///
    /// # Errors
    /// Another shape.
    pub(crate) fn set(&self, projection: &Tensor) -> Result<()> {
        let projection = projection.to_device(self.projection.device())?;
        Ok(self.projection.set(&projection.to_dtype(DType::F32)?)?)
    }

    /// The teacher's states Y `[M, D]` that it takes.
    ///
    /// # Errors
    /// Rows without hidden states, or with others.
    pub(crate) fn teacher_states(&self, targets: &Targets, like: &Tensor) -> Result<Tensor> {
        let state = targets.state.as_ref();
        let state = state.filter(|state| state.kind != StateKind::Sketch);
        let state = state.ok_or_else(no_states)?;
        let size = self.projection.dims()[0];
        if state.layer_rank() != size || self.teacher_state >= state.layers {
            return Err(LossError::shape(
                "teacher state",
                format!("layer {} of {size} numbers", self.teacher_state),
                format!("{} layers of {}", state.layers, state.layer_rank()),
            ));
        }
        let all = state_matrix(state, targets.rows(), state.rank, like)?;
        Ok(all
            .narrow(1, self.teacher_state * size, size)?
            .contiguous()?)
    }

    /// P, to be trained.
    pub fn parameter(&self) -> (String, Var) {
        (Self::NAME.to_owned(), self.projection.clone())
    }
}

/// What of hidden states is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// `x_i . z_j / sqrt(d)`.
    ScaledDot,
    /// Their cosine.
    Cosine,
    /// 1 less the cosine of what they are beside the mean of their sequence.
    Centered,
}

/// A comparison of X and Z = Y P, with what its gradient needs.
pub(crate) struct Projected {
    comparison: Comparison,
    /// Y, or beside its mean.
    teacher: Tensor,
    x: Rows,
    z: Rows,
}

/// Rows, divided by their norms where cosines are asked for.
struct Rows {
    rows: Tensor,
    norms: Option<Tensor>,
}

impl Rows {
    fn new(rows: Tensor, normalized: bool) -> Result<Self> {
        if !normalized {
            return Ok(Self { rows, norms: None });
        }
        let norms = row_norms(&rows, &rows)?;
        // A row of zeros, as the only one of a sequence is beside its mean, is like no other and has no gradient.
        let infinite = (norms.ones_like()? / 0.0)?;
        let norms = norms.eq(0.0)?.where_cond(&infinite, &norms)?;
        Ok(Self {
            rows: rows.broadcast_div(&norms)?,
            norms: Some(norms),
        })
    }

    /// From the gradient in `rows` to that in the rows before their division.
    fn backward(&self, gradient: Tensor) -> Result<Tensor> {
        let Some(norms) = &self.norms else {
            return Ok(gradient);
        };
        let along = (&gradient * &self.rows)?.sum_keepdim(D::Minus1)?;
        let across = (gradient - self.rows.broadcast_mul(&along)?)?;
        Ok(across.broadcast_div(norms)?)
    }
}

/// Rows beside their mean; also the way back of a gradient.
fn centered(rows: &Tensor) -> Result<Tensor> {
    Ok(rows.broadcast_sub(&rows.mean_keepdim(0)?)?)
}

impl Projected {
    /// Between the student's states X `[N, d]`, with the projection to them, and those of the rows.
    ///
    /// # Errors
    /// Rows without hidden states, and shapes that do not fit.
    pub(crate) fn new(
        comparison: Comparison,
        student: Option<(&Tensor, &HiddenProjection)>,
        targets: &Targets,
    ) -> Result<Self> {
        let (x, projection) = student.ok_or_else(no_states)?;
        let d = projection.projection.dims()[1];
        if x.dims2()?.1 != d {
            return Err(LossError::shape("hidden size", d, x.dims()[1]));
        }
        let x = x.detach().to_dtype(DType::F32)?.contiguous()?;
        let teacher = projection.teacher_states(targets, &x)?;
        let projection = projection.projection.detach();
        let (x, teacher) = match comparison {
            Comparison::Centered => (centered(&x)?, centered(&teacher)?),
            _ => (x, teacher),
        };
        let normalized = comparison != Comparison::ScaledDot;
        Ok(Self {
            comparison,
            x: Rows::new(x, normalized)?,
            z: Rows::new(teacher.matmul(&projection)?, normalized)?,
            teacher,
        })
    }

    /// Factor of the dots.
    fn scale(&self) -> f64 {
        match self.comparison {
            Comparison::ScaledDot => (self.x.rows.dims()[1] as f64).sqrt().recip(),
            Comparison::Cosine => 1.0,
            Comparison::Centered => -1.0,
        }
    }

    /// `[N, M]`.
    pub(crate) fn forward(&self) -> Result<Tensor> {
        let one = match self.comparison {
            Comparison::Centered => 1.0,
            _ => 0.0,
        };
        let dots = self.x.rows.matmul(&self.z.rows.t()?)?;
        Ok(dots.affine(self.scale(), one)?)
    }

    /// From the gradient in that to dL/dX and dL/dP.
    pub(crate) fn backward(&self, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
        let gradient = (gradient * self.scale())?;
        let x = self.x.backward(gradient.matmul(&self.z.rows)?)?;
        let z = self.z.backward(gradient.t()?.matmul(&self.x.rows)?)?;
        let x = match self.comparison {
            Comparison::Centered => centered(&x)?,
            _ => x,
        };
        Ok((x, self.teacher.t()?.matmul(&z)?))
    }
}

#[cfg(test)]
#[path = "hidden_tests.rs"]
mod tests;
