//! Provides the host's hands on tensors: a function over the rows of a matrix in place, and a look at its numbers.

use std::sync::Mutex;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Tensor};
use distill_model::lend;
use rayon::prelude::*;

use super::error::Result;

/// Applies `row(i, z_i)` to every row of a contiguous f32 matrix on the CPU in place, on all cores, and returns what it
/// returns.
///
/// # Shapes
/// `matrix`: `[n, columns]`. The returned tensor is the changed matrix.
pub(crate) fn each_row<T: Send>(
    matrix: Tensor,
    row: impl Fn(usize, &mut [f32]) -> T + Sync,
) -> Result<(Tensor, Vec<T>)> {
    let (_, columns) = matrix.dims2()?;
    let op = EachRow {
        columns,
        row,
        results: Mutex::new(Vec::new()),
    };
    matrix.inplace_op1(&op)?;
    let results = op
        .results
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    Ok((matrix, results))
}

struct EachRow<F, T> {
    columns: usize,
    row: F,
    results: Mutex<Vec<T>>,
}

impl<F: Fn(usize, &mut [f32]) -> T + Sync, T: Send> InplaceOp1 for EachRow<F, T> {
    fn name(&self) -> &'static str {
        "each-row"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(data), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("each-row needs a contiguous f32 matrix");
        };
        let results = data[start..end]
            .par_chunks_mut(self.columns)
            .enumerate()
            .map(|(i, z)| (self.row)(i, z))
            .collect();
        if let Ok(mut slot) = self.results.lock() {
            *slot = results;
        }
        Ok(())
    }
}

/// Lends the numbers of a contiguous f32 tensor on the CPU.
pub(crate) fn with_f32<T>(tensor: &Tensor, look: impl FnOnce(&[f32]) -> T) -> Result<T> {
    Ok(look(lend(tensor).numbers()?))
}

/// The numbers of a float tensor, on the host, row-major.
pub(crate) fn to_host(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Of each tensor the sum of its magnitudes, `[1]` in f64 where the tensor is: finite where all its numbers are.
pub(crate) fn magnitudes(tensors: &[&Tensor]) -> Result<Vec<Tensor>> {
    let magnitude = |tensor: &&Tensor| {
        let sum = tensor.abs()?.sum_all()?;
        Ok(sum.to_dtype(DType::F64)?.reshape(1)?)
    };
    tensors.iter().map(magnitude).collect()
}
