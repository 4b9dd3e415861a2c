/*! Provides comparisons of the student's hidden states with the teacher's, through a learned projection P `[D, d]` for each
pair of layers.

```text
 Z = Y P,   S = X Z^T / sqrt(d)   or the cosines of X's and Z's rows;   1 - the cosines of rows less their mean
 dX = dS Z / sqrt(d),   dZ = dS^T X / sqrt(d),   dP = Y^T dZ        (cosine: x^ = x / |x|, dx = (dx^ - x^ (x^ . dx^)) / |x|)
 of several pairs of layers k: S = sum_k w_k S_k / sum_k w_k
```

Hidden sizes need not agree and no vocabulary is involved, so it works between any two models and any two layers.
*/

use candle_core::{D, DType, Device, Tensor, Var};
use distill_proto::StateKind;
use rand::{SeedableRng, rngs::StdRng};

use super::config::no_states;
use super::error::{LossError, Result};
use super::geometry::row_norms;
use super::head::LayerStates;
use super::layers::StateLayer;
use super::projection::FittedProjection;
use super::similarity::state_matrix;
use super::targets::Targets;
use crate::random::normal;

/// The learned map from one of the teacher's hidden states to those of a layer of the student.
#[derive(Debug)]
pub struct HiddenProjection {
    projection: Var,
    layer: StateLayer,
    /// What both sides are compared beside; `None`: each sequence's own means.
    means: Option<Means>,
}

/// Means over the rows that a projection was fitted on.
#[derive(Debug)]
struct Means {
    /// `[D]`.
    teacher: Var,
    /// `[d]`.
    student: Var,
}

impl HiddenProjection {
    /// One for each pair of layers: normal numbers of deviation 1 / sqrt(D), so that a projected row is about as long as the
    /// row; the same for a seed.
    ///
    /// # Errors
    /// A tensor error.
    pub fn random(
        layers: &[StateLayer],
        (teacher_size, hidden_size): (usize, usize),
        seed: u64,
        device: &Device,
    ) -> Result<Vec<Self>> {
        let mut random = StdRng::seed_from_u64(seed);
        let deviation = (teacher_size as f64).sqrt().recip();
        let mut one = |&layer: &StateLayer| {
            let values: Vec<f32> = (0..teacher_size * hidden_size)
                .map(|_| (normal(&mut random) * deviation) as f32)
                .collect();
            let values = Tensor::from_vec(values, (teacher_size, hidden_size), device)?;
            Self::from_tensor(&values, layer)
        };
        layers.iter().map(&mut one).collect()
    }

    /// From P `[D, d]`.
    ///
    /// # Errors
    /// A tensor error.
    pub fn from_tensor(projection: &Tensor, layer: StateLayer) -> Result<Self> {
        let projection = Var::from_tensor(&projection.to_dtype(DType::F32)?)?;
        Ok(Self {
            projection,
            layer,
            means: None,
        })
    }

    /// The same, to compare states beside fitted means in place of each sequence's own.
    ///
    /// # Shapes
    /// `teacher`: `[D]`; `student`: `[d]`.
    ///
    /// # Errors
    /// A tensor error.
    pub fn with_means(self, teacher: &Tensor, student: &Tensor) -> Result<Self> {
        let var = |mean: &Tensor| Var::from_tensor(&mean.to_dtype(DType::F32)?);
        let means = Means {
            teacher: var(teacher)?,
            student: var(student)?,
        };
        Ok(Self {
            means: Some(means),
            ..self
        })
    }

    /// Which layers it is between.
    pub fn layer(&self) -> StateLayer {
        self.layer
    }

    /// D and d.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.projection.dims()[0], self.projection.dims()[1])
    }

    /// Becomes what was fitted.
    ///
    /// # Errors
    /// Another shape.
    pub(crate) fn set(&self, fitted: &FittedProjection) -> Result<()> {
        let set = |var: &Var, value: &Tensor| {
            let value = value.to_device(var.device())?;
            var.set(&value.to_dtype(DType::F32)?)
        };
        set(&self.projection, &fitted.projection)?;
        if let Some(means) = &self.means {
            set(&means.teacher, &fitted.teacher_mean)?;
            set(&means.student, &fitted.student_mean)?;
        }
        Ok(())
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
        let layer = self.layer.teacher_state;
        if state.layer_rank() != size || layer >= state.layers {
            return Err(LossError::shape(
                "teacher state",
                format!("layer {layer} of {size} numbers"),
                format!("{} layers of {}", state.layers, state.layer_rank()),
            ));
        }
        let all = state_matrix(state, targets.rows(), state.rank, like)?;
        Ok(all.narrow(1, layer * size, size)?.contiguous()?)
    }

    /// Its name as a parameter: the layers that it is between are in it.
    pub fn name(&self) -> String {
        format!("hidden_projection.{}", self.layer.ends())
    }

    /// P, to be trained.
    pub fn parameter(&self) -> (String, Var) {
        (self.name(), self.projection.clone())
    }

    /// All that a checkpoint holds of it: P, and the means where there are any.
    pub fn saved(&self) -> Vec<(String, Var)> {
        let mut saved = vec![self.parameter()];
        if let Some(Means { teacher, student }) = &self.means {
            saved.push((format!("{}.teacher_mean", self.name()), teacher.clone()));
            saved.push((format!("{}.student_mean", self.name()), student.clone()));
        }
        saved
    }
}

/// What of hidden states is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// `x_i . z_j / sqrt(d)`.
    ScaledDot,
    /// Their cosine.
    Cosine,
    /// 1 less the cosine of what they are beside their means.
    Centered,
}

/// A comparison of X and Z = Y P, with what its gradient needs.
pub(crate) struct Projected {
    comparison: Comparison,
    /// Whether the student's mean is that of its rows, which moves with them.
    own_mean: bool,
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
    fn new(comparison: Comparison, student: LayerStates<'_>, targets: &Targets) -> Result<Self> {
        let LayerStates {
            states: x,
            projection,
        } = student;
        let d = projection.projection.dims()[1];
        if x.dims2()?.1 != d {
            return Err(LossError::shape("hidden size", d, x.dims()[1]));
        }
        let x = x.detach().to_dtype(DType::F32)?.contiguous()?;
        let teacher = projection.teacher_states(targets, &x)?;
        let own_mean = comparison == Comparison::Centered && projection.means.is_none();
        let (x, teacher) = match (comparison, &projection.means) {
            (Comparison::Centered, Some(means)) => (
                x.broadcast_sub(&means.student.detach())?,
                teacher.broadcast_sub(&means.teacher.detach())?,
            ),
            (Comparison::Centered, None) => (centered(&x)?, centered(&teacher)?),
            _ => (x, teacher),
        };
        let projection = projection.projection.detach();
        let normalized = comparison != Comparison::ScaledDot;
        Ok(Self {
            comparison,
            own_mean,
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
    fn forward(&self) -> Result<Tensor> {
        let one = match self.comparison {
            Comparison::Centered => 1.0,
            _ => 0.0,
        };
        let dots = self.x.rows.matmul(&self.z.rows.t()?)?;
        Ok(dots.affine(self.scale(), one)?)
    }

    /// From the gradient in that to dL/dX and dL/dP.
    fn backward(&self, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
        let gradient = (gradient * self.scale())?;
        let x = self.x.backward(gradient.matmul(&self.z.rows)?)?;
        let z = self.z.backward(gradient.t()?.matmul(&self.x.rows)?)?;
        let x = if self.own_mean { centered(&x)? } else { x };
        Ok((x, self.teacher.t()?.matmul(&z)?))
    }
}

/// The weighted mean of a comparison over pairs of layers.
pub(crate) struct Comparisons {
    /// Each with its share; the shares' sum is 1.
    pairs: Vec<(f64, Projected)>,
}

impl Comparisons {
    /// Between the student's states and those of the rows.
    ///
    /// # Errors
    /// No hidden states on either side, and shapes that do not fit.
    pub(crate) fn new(
        comparison: Comparison,
        student: &[LayerStates<'_>],
        targets: &Targets,
    ) -> Result<Self> {
        if student.is_empty() {
            return Err(no_states());
        }
        let weight = |states: &LayerStates<'_>| states.projection.layer.weight;
        let all: f64 = student.iter().map(weight).sum();
        let pair = |states: &LayerStates<'_>| {
            let projected = Projected::new(comparison, *states, targets)?;
            Ok((weight(states) / all, projected))
        };
        let pairs = student.iter().map(pair).collect::<Result<_>>()?;
        Ok(Self { pairs })
    }

    /// `[N, M]`.
    pub(crate) fn forward(&self) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for (share, pair) in &self.pairs {
            let part = (pair.forward()? * *share)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        sum.ok_or_else(no_states)
    }

    /// From the gradient in that to dL/dX and dL/dP of each pair.
    pub(crate) fn backward(&self, gradient: &Tensor) -> Result<Vec<StatesGradient>> {
        let pairs = self.pairs.iter();
        pairs
            .map(|(share, pair)| {
                let (states, projection) = pair.backward(&(gradient * *share)?)?;
                Ok(StatesGradient { states, projection })
            })
            .collect()
    }
}

/// Gradients of what is compared in one pair of layers.
#[derive(Clone, Debug)]
pub struct StatesGradient {
    /// dL/dX `[N, d]`, f32.
    pub states: Tensor,
    /// dL/dP `[D, d]`.
    pub projection: Tensor,
}

impl StatesGradient {
    /// The sum with another one of the same pair.
    ///
    /// # Errors
    /// Another shape.
    pub(crate) fn plus(&self, other: &Self) -> Result<Self> {
        Ok(Self {
            states: (&self.states + &other.states)?,
            projection: (&self.projection + &other.projection)?,
        })
    }

    /// Both tensors.
    pub(crate) fn tensors(&self) -> [&Tensor; 2] {
        [&self.states, &self.projection]
    }
}

#[cfg(test)]
#[path = "hidden_tests.rs"]
mod tests;
