/*! Provides similarities of whole logit rows as `S = scale (left anchors^T) / norms`, with their way back.

With `state` the V axis is summed out beforehand: `left` is the hidden states H and the anchors are the teacher's
positions seen from the student's hidden space. With dense logits `left` is X or its centred form.

```text
 scaled-dot    X Y^T / sqrt V:    Y_j = B c_j + mean_j 1    anchor_j = P c_j + mean_j W^T 1
 centered-dot  Xc Yc^T / sqrt V:                            anchor_j = (W - 1 w^T)^T B c_j
 cosine        Xc Yc^T / (|Xc| |Yc|):  the same / (std_j sqrt V),   |Xc_i| = sqrt(h_i^T G h_i)
```
*/

use candle_core::{D, DType, Tensor};
use distill_proto::State;

use super::config::Similarity;
use super::error::{LossError, Result};
use super::geometry::{HeadGeometry, LogitSpace, row_norms};
use super::targets::Targets;

/// A similarity that is bilinear up to the norms of the student's rows.
pub(crate) struct Bilinear {
    /// `[n, e]`.
    left: Tensor,
    /// `[m, e]`, the scale already in it.
    anchors: Tensor,
    /// Under cosine: norms `[n, 1]`, and half the gradient of their squares `[n, e]`.
    norms: Option<(Tensor, Tensor)>,
}

impl Bilinear {
    /// From hidden states `[n, d]` (f32) and the teacher's `state`.
    pub(crate) fn from_state(
        kind: Similarity,
        hidden: &Tensor,
        targets: &Targets,
        geometry: &HeadGeometry,
    ) -> Result<Self> {
        let root = (geometry.vocab_size() as f64).sqrt();
        let rows = targets.rows();
        let mut norms = None;
        let anchors = match kind {
            Similarity::ScaledDot => (raw_anchors(hidden, targets, geometry)?.0 / root)?,
            Similarity::CenteredDot => (centered_anchors(hidden, targets, geometry)?.0 / root)?,
            Similarity::Cosine => {
                let (anchors, space) = centered_anchors(hidden, targets, geometry)?;
                check_statistic("teacher std", &targets.std, rows, |s| {
                    s.is_finite() && s > 0.0
                })?;
                let normal = hidden.matmul(&space.gram)?;
                norms = Some((row_norms(hidden, &normal)?, normal));
                let std = Tensor::from_slice(&targets.std, (rows, 1), hidden.device())?;
                anchors.broadcast_div(&(std * root)?)?
            }
            Similarity::Bhattacharyya | Similarity::HiddenScaledDot | Similarity::HiddenCosine => {
                return Err(missing("this one is none of whole logits"));
            }
        };
        Ok(Self {
            left: hidden.clone(),
            anchors,
            norms,
        })
    }

    /// From dense logits X `[n, V]` and Y `[m, V]` (f32).
    pub(crate) fn from_logits(kind: Similarity, x: &Tensor, y: &Tensor) -> Result<Self> {
        let root = (x.dims2()?.1 as f64).sqrt();
        let centered = |x: &Tensor| x.broadcast_sub(&x.mean_keepdim(D::Minus1)?);
        let (left, anchors, norms) = match kind {
            Similarity::Cosine => {
                let (x, y) = (centered(x)?, centered(y)?);
                let norms = row_norms(&x, &x)?;
                let anchors = y.broadcast_div(&row_norms(&y, &y)?)?;
                (x.clone(), anchors, Some((norms, x)))
            }
            Similarity::CenteredDot => (centered(x)?, (centered(y)? / root)?, None),
            _ => (x.clone(), (y / root)?, None),
        };
        Ok(Self {
            left,
            anchors,
            norms,
        })
    }

    /// S `[n, m]`.
    pub(crate) fn forward(&self) -> Result<Tensor> {
        let s = self.left.matmul(&self.anchors.t()?)?;
        Ok(match &self.norms {
            Some((norms, _)) => s.broadcast_div(norms)?,
            None => s,
        })
    }

    /// From S and dL/dS `[n, m]` to dL/dleft `[n, e]`: `(dS / n) anchors - rowsum(dS o S) / n^2 normal`.
    pub(crate) fn backward(&self, s: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let Some((norms, normal)) = &self.norms else {
            return Ok(gradient.matmul(&self.anchors)?);
        };
        let along = gradient.broadcast_div(norms)?.matmul(&self.anchors)?;
        let share = (gradient * s)?
            .sum_keepdim(D::Minus1)?
            .broadcast_div(&norms.sqr()?)?;
        Ok((along - normal.broadcast_mul(&share)?)?)
    }
}

fn missing(reason: &str) -> LossError {
    LossError::Unsupported {
        what: "a similarity of logits",
        reason: reason.into(),
    }
}

/// c `[m, r]`, with what the head and the basis make of each other.
fn coordinates_and_space<'a>(
    hidden: &Tensor,
    targets: &Targets,
    geometry: &'a HeadGeometry,
) -> Result<(Tensor, &'a LogitSpace)> {
    let state = targets.state.as_ref().ok_or_else(|| {
        missing("the rows carry no `state`; use cost `kl`, or capture the teacher with a state")
    })?;
    let space = geometry
        .space()
        .ok_or_else(|| missing("the teacher's basis was not given to the head's geometry"))?;
    let rank = space.projection.dims()[1];
    Ok((state_matrix(state, targets.rows(), rank, hidden)?, space))
}

/// `anchor_j` with `h_i . anchor_j = x_i . y_j` of raw logits, `[m, d]`.
pub(crate) fn raw_anchors<'a>(
    hidden: &Tensor,
    targets: &Targets,
    geometry: &'a HeadGeometry,
) -> Result<(Tensor, &'a LogitSpace)> {
    let (coordinates, space) = coordinates_and_space(hidden, targets, geometry)?;
    let rows = targets.rows();
    check_statistic("teacher mean", &targets.mean, rows, f32::is_finite)?;
    let mean = Tensor::from_slice(&targets.mean, (rows, 1), hidden.device())?;
    let anchors = coordinates.matmul(&space.projection.t()?)?;
    Ok(((anchors + mean.matmul(&space.row_sum)?)?, space))
}

/// The same for centred logits.
fn centered_anchors<'a>(
    hidden: &Tensor,
    targets: &Targets,
    geometry: &'a HeadGeometry,
) -> Result<(Tensor, &'a LogitSpace)> {
    let (coordinates, space) = coordinates_and_space(hidden, targets, geometry)?;
    Ok((coordinates.matmul(&space.centered_projection.t()?)?, space))
}

/// The teacher's `state` `[rows, rank]`, on the student's device.
pub(crate) fn state_matrix(
    state: &State,
    rows: usize,
    rank: usize,
    like: &Tensor,
) -> Result<Tensor> {
    if state.rank != rank || state.values.len() != rows * rank {
        return Err(LossError::shape(
            "teacher state",
            format!("{rows} rows of {rank}, as the basis or the projection has"),
            format!("{} values of rank {}", state.values.len(), state.rank),
        ));
    }
    Ok(Tensor::from_slice(&state.values, (rows, rank), like.device())?.to_dtype(DType::F32)?)
}

/// One number that fits for each row.
pub(crate) fn check_statistic(
    what: &'static str,
    values: &[f32],
    rows: usize,
    good: impl Fn(f32) -> bool,
) -> Result<()> {
    if values.len() != rows {
        return Err(LossError::shape(what, rows, values.len()));
    }
    match values.iter().position(|&value| !good(value)) {
        Some(position) => Err(LossError::NonFinite { what, position }),
        None => Ok(()),
    }
}
