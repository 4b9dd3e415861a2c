/*! Provides squared distances between raw logit rows, `D_ij = |x_i - y_j|^2`, with their way back to the student.

```text
 D_ij = |x_i|^2 + |y_j|^2 - 2 x_i . y_j,    dL/dx_i = 2 (sum_j g_ij) x_i - 2 sum_j g_ij y_j
 from `state`:  x_i = W h_i,  |x_i|^2 = h^T W^T W h,  x_i . y_j = h_i . anchor_j,  |y_j|^2 = V (std_j^2 + mean_j^2)
```
*/

use candle_core::{D, Tensor};

use super::error::Result;
use super::geometry::HeadGeometry;
use super::similarity::{check_statistic, raw_anchors};
use super::targets::Targets;

/// Squared distances that are bilinear up to squared norms.
pub(crate) struct SquaredEuclidean {
    /// `[n, e]`.
    left: Tensor,
    /// `[m, e]`.
    anchors: Tensor,
    /// Half the gradient of `|x_i|^2`, `[n, e]`.
    half_gradient: Tensor,
    /// `|y_j|^2`, `[1, m]`.
    teacher_squares: Tensor,
}

impl SquaredEuclidean {
    /// From hidden states `[n, d]` (f32) and the teacher's `state`.
    pub(crate) fn from_state(
        hidden: &Tensor,
        targets: &Targets,
        geometry: &HeadGeometry,
    ) -> Result<Self> {
        let (anchors, space) = raw_anchors(hidden, targets, geometry)?;
        let rows = targets.rows();
        check_statistic("teacher std", &targets.std, rows, |s| s.is_finite())?;
        let size = geometry.vocab_size() as f64;
        let statistics = targets.mean.iter().zip(&targets.std);
        let squares: Vec<f32> = statistics
            .map(|(&mean, &std)| (size * (f64::from(mean).powi(2) + f64::from(std).powi(2))) as f32)
            .collect();
        // W^T W = centred Gram + V w w^T.
        let along = hidden.matmul(&space.row_sum.t()?)?;
        let common = along.matmul(&(&space.row_sum / size)?)?;
        Ok(Self {
            half_gradient: (hidden.matmul(&space.gram)? + common)?,
            left: hidden.clone(),
            anchors,
            teacher_squares: Tensor::from_vec(squares, (1, rows), hidden.device())?,
        })
    }

    /// From dense logits X `[n, V]` and Y `[m, V]` (f32).
    pub(crate) fn from_logits(x: &Tensor, y: &Tensor) -> Result<Self> {
        Ok(Self {
            left: x.clone(),
            anchors: y.clone(),
            half_gradient: x.clone(),
            teacher_squares: y.sqr()?.sum_keepdim(D::Minus1)?.t()?,
        })
    }

    /// D `[n, m]`; rounding never makes a distance negative.
    pub(crate) fn forward(&self) -> Result<Tensor> {
        let squares = (&self.left * &self.half_gradient)?.sum_keepdim(D::Minus1)?;
        let dots = (self.left.matmul(&self.anchors.t()?)? * -2.0)?;
        let sum = dots
            .broadcast_add(&squares)?
            .broadcast_add(&self.teacher_squares)?;
        Ok(sum.relu()?)
    }

    /// From dL/dD `[n, m]` to dL/dleft `[n, e]`.
    pub(crate) fn backward(&self, gradient: &Tensor) -> Result<Tensor> {
        let own = self
            .half_gradient
            .broadcast_mul(&gradient.sum_keepdim(D::Minus1)?)?;
        Ok(((own - gradient.matmul(&self.anchors)?)? * 2.0)?)
    }
}
