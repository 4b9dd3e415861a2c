//! Provides the student's head and what follows from it alone: logits and their way back, chunk by chunk, and the small
//! matrices that let similarities of whole logit rows be computed without the V axis.

use candle_core::{D, DType, Device, Tensor};
use distill_kernels::{Compute, device, head::VOCAB_MAX};
use distill_model::{head_gradient_dtype, head_rows, head_rows_backward, head_tiles};
use rayon::prelude::*;

use super::error::{LossError, Result};
use super::head_pass::chunks;
use super::rowwise::{each_row, to_host, with_f32};
use super::simd::{add_row, exp_in_place, max, vectorized};
use super::sparse::DeviceEntries;
use super::teacher::Teacher;

/// The frozen head W `[V, d]` of the student, made once a run.
///
/// Full-parameter training moves W: make it anew after each step.
#[derive(Clone, Debug)]
pub struct HeadGeometry {
    head: Tensor,
    logit_space: Option<LogitSpace>,
    /// What works on rows of logits on a card; without it the CPU does, where they are.
    card: Option<Compute>,
}

/// Inner products of student and teacher logits, with the V axis summed out.
#[derive(Clone, Debug)]
pub(crate) struct LogitSpace {
    /// `P = W^T B`, `[d, r]`.
    pub(crate) projection: Tensor,
    /// The same of the centred head, `(W - 1 w^T)^T B`.
    pub(crate) centered_projection: Tensor,
    /// `V w = W^T 1`, `[1, d]`.
    pub(crate) row_sum: Tensor,
    /// `G = (W - 1 w^T)^T (W - 1 w^T)`, `[d, d]`: `h^T G h` is the squared norm of the centred logits.
    pub(crate) gram: Tensor,
}

impl HeadGeometry {
    /// From the head's effective rows and, for similarities of logits, the teacher's basis.
    ///
    /// # Shapes
    /// `head`: `[V, d]` in any float dtype, rows beyond the effective vocabulary already cut; `basis`: B `[V, r]`.
    ///
    /// # Errors
    /// Shapes that do not fit; NaN in the head or the basis.
    pub fn new(head: &Tensor, basis: Option<&Tensor>) -> Result<Self> {
        let (vocab_size, hidden_size) = head.dims2()?;
        if vocab_size == 0 || hidden_size == 0 {
            return Err(LossError::shape(
                "student head",
                "[V, d], neither 0",
                format!("{:?}", head.dims()),
            ));
        }
        let mut geometry = Self {
            head: head.detach().contiguous()?,
            logit_space: None,
            card: None,
        };
        if !head.device().is_cpu() {
            geometry = geometry.with_rows_on_card(device::COMPUTE)?;
        }
        if let Some(basis) = basis {
            geometry.logit_space = Some(geometry.logit_space(basis)?);
        }
        Ok(geometry)
    }

    /// The head, `[V, d]`.
    pub fn head(&self) -> &Tensor {
        &self.head
    }

    /// V.
    pub fn vocab_size(&self) -> usize {
        self.head.dims()[0]
    }

    /// d.
    pub fn hidden_size(&self) -> usize {
        self.head.dims()[1]
    }

    /// Whether the teacher's basis was given.
    pub fn has_basis(&self) -> bool {
        self.logit_space.is_some()
    }

    pub(crate) fn device(&self) -> &Device {
        self.head.device()
    }

    pub(crate) fn card(&self) -> Option<Compute> {
        self.card
    }

    /// With rows of logits worked on by kernels; in tests the emulator's, on the CPU.
    pub(crate) fn with_rows_on_card(self, compute: Compute) -> Result<Self> {
        let vocab_size = self.vocab_size();
        if vocab_size > VOCAB_MAX {
            return Err(LossError::Unsupported {
                what: "the loss on a card",
                reason: format!(
                    "the student's vocabulary has {vocab_size} ids, and a row of logits at most {VOCAB_MAX} there; use `--device cpu`"
                ),
            });
        }
        Ok(Self {
            card: Some(compute),
            ..self
        })
    }

    pub(crate) fn space(&self) -> Option<&LogitSpace> {
        self.logit_space.as_ref()
    }

    /// `h W^T`, `[c, V]` in f32.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self.wide_logits(hidden)?;
        Ok(logits.narrow(1, 0, self.vocab_size())?.contiguous()?)
    }

    /// As [`logits`](Self::logits); on a card rows may be longer, and hold anything past V.
    pub(crate) fn wide_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(head_rows(hidden, &self.head)?)
    }

    /// `logsumexp(h W^T)` of every row, `[N]`, a chunk of rows at a time.
    pub(crate) fn logsumexp(&self, hidden: &Tensor, chunk_rows: usize) -> Result<Vec<f64>> {
        let mut rows = Vec::with_capacity(hidden.dims()[0]);
        for (start, count) in chunks(hidden.dims()[0], chunk_rows) {
            let z = self.logits(&hidden.narrow(0, start, count)?)?;
            if self.card.is_none() {
                let row = |_, z: &mut [f32]| {
                    let largest = max(z);
                    f64::from(largest) + exp_in_place(z, largest, 1.0).ln()
                };
                rows.extend(each_row(z, row)?.1);
            } else {
                let largest = z.max_keepdim(D::Minus1)?;
                let sum = z.broadcast_sub(&largest)?.exp()?.sum_keepdim(D::Minus1)?;
                rows.extend(
                    to_host(&(largest + sum.log()?)?)?
                        .into_iter()
                        .map(f64::from),
                );
            }
        }
        Ok(rows)
    }

    /// The type that dL/dZ is multiplied in on its device.
    pub(crate) fn gradient_dtype(&self) -> DType {
        head_gradient_dtype(&self.head)
    }

    /// `D W`, `[c, d]` in f32, of D [c, V], or wider.
    pub(crate) fn backward(&self, gradient: &Tensor) -> Result<Tensor> {
        Ok(head_rows_backward(gradient, &self.head)?)
    }

    /// `E [M, d]`, `e_j = sum_v p_jv W_v` by the weights of the teacher's entries.
    pub(crate) fn expectation(&self, teacher: &Teacher) -> Result<Tensor> {
        let d = self.hidden_size();
        if self.card.is_none() && self.head.dtype() == DType::F32 {
            let targets = teacher.targets;
            let mut sums = vec![0.0_f32; teacher.rows() * d];
            with_f32(&self.head, |head| {
                sums.par_chunks_mut(d).enumerate().for_each(|(j, sum)| {
                    let entries = targets.entries(j);
                    let ids = &targets.ids[entries.clone()];
                    add_head_rows(sum, head, ids, &teacher.weights[entries]);
                });
            })?;
            return Ok(Tensor::from_vec(sums, (teacher.rows(), d), self.device())?);
        }
        let entries = DeviceEntries::new(teacher.targets, &teacher.weights, self.device())?;
        entries.times(&self.head, teacher.rows())
    }

    /// The way back from E to the head: `dW_v = sum_j p_jv dE_j`, `[V, d]` from dE `[M, d]`.
    pub(crate) fn expectation_backward(&self, teacher: &Teacher, grad: &Tensor) -> Result<Tensor> {
        let entries = DeviceEntries::new(teacher.targets, &teacher.weights, self.device())?;
        entries.transposed_times(grad, self.vocab_size())
    }

    fn logit_space(&self, basis: &Tensor) -> Result<LogitSpace> {
        let (basis_rows, rank) = basis.dims2()?;
        let (vocab_size, d) = (self.vocab_size(), self.hidden_size());
        if basis_rows != vocab_size {
            return Err(LossError::shape(
                "rows of the teacher's basis",
                vocab_size,
                basis_rows,
            ));
        }
        let device = self.device();
        // Sums over V are added in f64 from tile to tile.
        let mut row_sum = Tensor::zeros((1, d), DType::F64, device)?;
        for (_, tile) in head_tiles(&self.head) {
            let tile = tile?.sum_keepdim(0)?;
            row_sum = (row_sum + tile.to_dtype(DType::F64)?)?;
        }
        let mean_row = (&row_sum / vocab_size as f64)?.to_dtype(DType::F32)?;
        let mut projection = Tensor::zeros((d, rank), DType::F32, device)?;
        let mut centered_projection = projection.clone();
        let mut gram = Tensor::zeros((d, d), DType::F32, device)?;
        for (start, tile) in head_tiles(&self.head) {
            let tile = tile?;
            let basis = basis
                .narrow(0, start, tile.dims()[0])?
                .to_device(device)?
                .to_dtype(DType::F32)?;
            let centered = tile.broadcast_sub(&mean_row)?;
            let centered_t = centered.t()?;
            centered_projection = (centered_projection + centered_t.matmul(&basis)?)?;
            gram = (gram + centered_t.matmul(&centered)?)?;
            projection = (projection + mean_row.t()?.matmul(&basis.sum_keepdim(0)?)?)?;
        }
        projection = (projection + &centered_projection)?;
        let finite =
            gram.sum_all()?.to_scalar::<f32>()? + projection.sum_all()?.to_scalar::<f32>()?;
        if !finite.is_finite() {
            return Err(LossError::NonFinite {
                what: "the student's head or the teacher's basis",
                position: 0,
            });
        }
        Ok(LogitSpace {
            projection,
            centered_projection,
            row_sum: row_sum.to_dtype(DType::F32)?,
            gram,
        })
    }
}

vectorized! {
    /// `sum += sum_k p_k W_(id_k)`.
    fn add_head_rows<'a>(sum: &'a mut [f32], head: &'a [f32], ids: &'a [u32], p: &'a [f32]) -> () {
        let d = sum.len();
        for (&id, &p) in ids.iter().zip(p) {
            let row = &head[id as usize * d..(id as usize + 1) * d];
            add_row(sum, row, p);
        }
    }
}

/// Euclidean norms of the rows, `[n, 1]`, from `sum(x o y)`.
pub(crate) fn row_norms(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    Ok((x * y)?.sum_keepdim(D::Minus1)?.sqrt()?)
}
