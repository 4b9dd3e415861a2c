//! Provides the basis behind `state`: rows of lm_head minus their mean, or a sketch's, so that centred logits are `B c`.

use std::ops::Range;

use bytes::Bytes;
use candle_core::{DType, Device, Tensor};
use distill_model::{Parameter, TokenMatrix};
use distill_proto::limits::BASIS_CHUNK_BYTES;
use half::f16;

use crate::Result;

/// Rows of the head widened at a time while its mean is taken.
const MEAN_ROWS: usize = 8192;

/// B = W - 1 w^T with W `[V, D]` the head inside the effective vocabulary and w its mean row, made chunk by chunk; or a
/// matrix of its own, which has no mean to take off.
#[derive(Debug, Clone)]
pub struct Basis {
    head: TokenMatrix,
    mean: Tensor,
    rows: usize,
    rank: usize,
}

impl Basis {
    /// Takes the mean row of `head` `[V, D]`, in f64.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn new(head: TokenMatrix) -> Result<Self> {
        let (rows, rank) = (head.rows(), head.columns());
        let mut sum = vec![0f64; rank];
        for start in (0..rows).step_by(MEAN_ROWS) {
            let part = head.values(start..rows.min(start + MEAN_ROWS))?;
            for row in part.to_vec2::<f32>()? {
                for (sum, value) in sum.iter_mut().zip(row) {
                    *sum += f64::from(value);
                }
            }
        }
        let mean: Vec<f32> = sum.iter().map(|sum| (sum / rows as f64) as f32).collect();
        let mean = Tensor::from_vec(mean, (1, rank), &Device::Cpu)?;
        Ok(Self {
            head,
            mean,
            rows,
            rank,
        })
    }

    /// Serves `values` `[V, R]` as they are.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn stored(values: Tensor) -> Result<Self> {
        let (rows, rank) = values.dims2()?;
        Ok(Self {
            mean: Tensor::zeros((1, rank), DType::F32, &Device::Cpu)?,
            head: TokenMatrix::Dense(Parameter::Frozen(values)),
            rows,
            rank,
        })
    }

    /// V, the effective vocabulary.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Coordinates a row: D, the teacher's hidden size, or R of a sketch.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The rows of every chunk, about `BASIS_CHUNK_BYTES` each.
    pub fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = self.rows;
        let step = (BASIS_CHUNK_BYTES / (2 * self.rank.max(1))).max(1);
        (0..rows)
            .step_by(step)
            .map(move |start| start..(start + step).min(rows))
    }

    /// Rows of B, f32 on the CPU.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn values(&self, rows: Range<usize>) -> Result<Tensor> {
        Ok(self.head.values(rows)?.broadcast_sub(&self.mean)?)
    }

    /// Rows of B as f16, row-major, little-endian.
    ///
    /// # Errors
    /// What the tensor library says.
    pub fn bytes(&self, rows: Range<usize>) -> Result<Bytes> {
        let values = self.values(rows)?.flatten_all()?.to_vec1::<f32>()?;
        let bytes = values
            .into_iter()
            .flat_map(|value| f16::from_f32(value).to_le_bytes());
        Ok(bytes.collect::<Vec<u8>>().into())
    }
}
