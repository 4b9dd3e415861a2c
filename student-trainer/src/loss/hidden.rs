/*! Provides transport between hidden states of student and teacher, through a learned projection P `[D, d]`.

```text
 Z = Y P,   S = X Z^T / sqrt(d)   or the cosines of X's and Z's rows,   C = 1 - softmax_j(S / temperature)
 dX = dS Z / sqrt(d),   dZ = dS^T X / sqrt(d),   dP = Y^T dZ        (cosine: x^ = x / |x|, dx = (dx^ - x^ (x^ . dx^)) / |x|)
```

Hidden sizes need not agree and no vocabulary is involved, so it works between any two models and any two layers.
*/

use candle_core::{D, DType, Device, Tensor, Var};
use distill_proto::StateKind;
use rand::{SeedableRng, rngs::StdRng};

use super::config::{Cost, LossConfig, OtConfig, PlanCost, Similarity};
use super::error::{LossError, Result};
use super::geometry::row_norms;
use super::rowwise::{magnitudes, to_host};
use super::similarity::state_matrix;
use super::targets::Targets;
use super::transport::{Problem, SolverReport, transport};
use super::transport_card::CardTransport;
use crate::random::normal;

/// The loss of one sequence with its gradients, weighted.
#[derive(Debug)]
pub struct HiddenLoss {
    /// The transport objective, without its weight.
    pub value: f64,
    /// How the solver fared.
    pub report: SolverReport,
    /// `hidden_weight` dvalue/dX `[N, d]`.
    pub grad_hidden: Tensor,
    /// `hidden_weight` dvalue/dP `[D, d]`.
    pub grad_projection: Tensor,
}

/// The learned map from the teacher's hidden states to the student's.
#[derive(Debug)]
pub struct HiddenProjection {
    projection: Var,
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
        Ok(Self { projection })
    }

    /// P, to be trained.
    pub fn parameter(&self) -> (String, Var) {
        (Self::NAME.to_owned(), self.projection.clone())
    }

    /// The loss between hidden states that predict the targets and the teacher's.
    ///
    /// # Shapes
    /// `hidden`: X `[N, d]`; the teacher's states Y `[M, D]` are the targets' `state`.
    ///
    /// # Errors
    /// Rows without hidden states, shapes that do not fit, and NaN or infinity anywhere.
    pub fn loss(
        &self,
        hidden: &Tensor,
        targets: &Targets,
        config: &LossConfig,
    ) -> Result<HiddenLoss> {
        let x = hidden.detach().to_dtype(DType::F32)?.contiguous()?;
        let y = self.teacher_states(targets, &x)?;
        let similarity = Projected::new(config.hidden_similarity, &x, &y, &self.projection)?;
        let s = similarity.forward()?;
        let (n, m) = s.dims2()?;
        let (ot, alignment) = (ot_config(config), targets.alignment.as_ref());
        let transport = match CardTransport::of(&s, &ot) {
            Some(card) => card.transport(&s, alignment)?,
            None => transport(Problem::new(to_host(&s)?, None, (n, m), alignment)?, &ot)?,
        };
        let gradient = transport.gradient_tensor(m, config.hidden_weight, x.device())?;
        let (grad_hidden, grad_projection) = similarity.backward(&gradient)?;
        let sizes = Tensor::cat(&magnitudes(&[&grad_hidden, &grad_projection])?, 0)?;
        let sizes: Vec<f64> = sizes.to_vec1()?;
        if !(transport.value + sizes.iter().sum::<f64>()).is_finite() {
            return Err(LossError::NonFinite {
                what: "transport between hidden states",
                position: 0,
            });
        }
        Ok(HiddenLoss {
            value: transport.value,
            report: transport.report,
            grad_hidden,
            grad_projection,
        })
    }

    fn teacher_states(&self, targets: &Targets, like: &Tensor) -> Result<Tensor> {
        let state = targets.state.as_ref();
        let state = state.filter(|state| state.kind != StateKind::Sketch);
        let Some(state) = state else {
            return Err(LossError::Unsupported {
                what: "transport between hidden states",
                reason: "the rows carry none; capture the teacher with `--state exact` or \
                         `hidden:LAYER`"
                    .into(),
            });
        };
        state_matrix(state, targets.rows(), self.projection.dims()[0], like)
    }
}

/// The settings of transport, with the hidden states' own cost.
fn ot_config(config: &LossConfig) -> OtConfig {
    OtConfig {
        cost: Cost::SoftmaxSimilarity,
        plan_cost: PlanCost::Same,
        similarity: config.hidden_similarity,
        temperature: config.hidden_temperature,
        ..config.ot.clone()
    }
}

/// S between X and Z = Y P, with what its gradient needs.
struct Projected<'a> {
    teacher: &'a Tensor,
    x: Rows,
    z: Rows,
    scale: f64,
}

/// Rows, divided by their norms under `cosine`.
struct Rows {
    rows: Tensor,
    norms: Option<Tensor>,
}

impl Rows {
    fn new(rows: &Tensor, normalized: bool) -> Result<Self> {
        if !normalized {
            return Ok(Self {
                rows: rows.clone(),
                norms: None,
            });
        }
        let norms = row_norms(rows, rows)?;
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

impl<'a> Projected<'a> {
    fn new(kind: Similarity, x: &Tensor, teacher: &'a Tensor, projection: &Tensor) -> Result<Self> {
        let d = projection.dims()[1];
        if x.dims2()?.1 != d {
            return Err(LossError::shape("hidden size", d, x.dims()[1]));
        }
        let cosine = kind == Similarity::Cosine;
        let scale = if cosine {
            1.0
        } else {
            (d as f64).sqrt().recip()
        };
        Ok(Self {
            x: Rows::new(x, cosine)?,
            z: Rows::new(&teacher.matmul(&projection.detach())?, cosine)?,
            teacher,
            scale,
        })
    }

    /// `[N, M]`.
    fn forward(&self) -> Result<Tensor> {
        Ok((self.x.rows.matmul(&self.z.rows.t()?)? * self.scale)?)
    }

    /// From dL/dS `[N, M]` to dL/dX and dL/dP.
    fn backward(&self, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
        let gradient = (gradient * self.scale)?;
        let x = self.x.backward(gradient.matmul(&self.z.rows)?)?;
        let z = self.z.backward(gradient.t()?.matmul(&self.x.rows)?)?;
        Ok((x, self.teacher.t()?.matmul(&z)?))
    }
}

#[cfg(test)]
#[path = "hidden_tests.rs"]
mod tests;
