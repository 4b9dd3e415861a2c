//! Provides the leading eigenvectors of S G by subspace iteration, orthonormal in the inner product of G.

use candle_core::{DType, Device, Tensor};
use nalgebra::{DMatrix, SymmetricEigen};

use super::check;
use crate::{
    Error, Result,
    selection::{RowKey, Uniforms},
};

/// Directions beside the wanted ones: they carry what the start has of the next ones, and so speed convergence.
const OVERSAMPLING: usize = 16;
/// Rounds at most; spectra of centred logits take about ten.
const ROUNDS_MAX: usize = 60;
/// Relative growth of the captured energy in a round that ends the iteration.
const GROWTH_MIN: f64 = 1e-9;
/// Directions whose length in G is below this share of the longest are taken for none.
const LENGTH_SHARE_MIN: f64 = 1e-12;
/// Share of the largest eigenvalue that is added to all: directions without energy stay, instead of turning to noise.
const SHIFT: f64 = 1e-10;
/// Sweeps of an eigenvalue solver; it needs a few for each eigenvalue.
const SWEEPS_MAX: usize = 100_000;

/// V `[D, rank]` with V^T G V = I, the leading eigenvectors of S G, the largest first.
///
/// Halko, Martinsson and Tropp, "Finding structure with randomness" (SIAM Review 2011), algorithm 4.4, with a
/// Rayleigh-Ritz step a round; S and G `[D, D]` are symmetric, f64.
///
/// # Errors
/// `Config` where G has a smaller rank; `ShuttingDown` once `stopped` says so.
pub(super) fn leading(
    s: &Tensor,
    g: &Tensor,
    rank: usize,
    stopped: &dyn Fn() -> bool,
) -> Result<Tensor> {
    let size = s.dim(0)?;
    let mut x = orthonormal(start(size, (rank + OVERSAMPLING).min(size))?, g)?;
    if x.dim(1)? < rank {
        return Err(Error::Config {
            key: "state",
            reason: format!(
                "a sketch of {rank} directions is more than the {} of this model's head; use exact",
                x.dim(1)?
            ),
        });
    }
    let mut captured = 0.0;
    for _ in 0..ROUNDS_MAX {
        check(stopped)?;
        let gx = g.matmul(&x)?;
        let z = s.matmul(&gx)?;
        let Eigen { values, vectors } = Eigen::of(&gx.t()?.matmul(&z)?)?;
        x = x.matmul(&vectors)?;
        let energy: f64 = values.iter().take(rank).sum();
        let grown = energy - captured;
        captured = energy;
        // The whole space is its own leading subspace.
        if x.dim(1)? == size || grown <= GROWTH_MIN * energy {
            break;
        }
        let shift = SHIFT
            * values
                .first()
                .copied()
                .unwrap_or_default()
                .max(f64::MIN_POSITIVE);
        let next = (z.matmul(&vectors)? + (&x * shift)?)?;
        // Brings eigenvectors to length one, so that their Gram matrix is well-conditioned.
        let scales = values.iter().map(|value| 1.0 / (value.max(0.0) + shift));
        let scales = Tensor::from_iter(scales, &Device::Cpu)?;
        x = orthonormal(next.broadcast_mul(&scales)?, g)?;
    }
    Ok(x.narrow(1, 0, rank)?.contiguous()?)
}

/// Where the iteration starts: `[size, count]`, the same on every run.
fn start(size: usize, count: usize) -> Result<Tensor> {
    if count == size {
        return Ok(Tensor::eye(size, DType::F64, &Device::Cpu)?);
    }
    let key = RowKey {
        sequence: size as u64,
        position: count as u64,
    };
    let mut uniforms = Uniforms::new(0, key);
    let values = (0..size * count).map(|_| uniforms.next() - 0.5).collect();
    Ok(Tensor::from_vec(values, (size, count), &Device::Cpu)?)
}

/// A basis of the columns of `x` that is orthonormal in G; fewer columns where some are none in G.
fn orthonormal(x: Tensor, g: &Tensor) -> Result<Tensor> {
    let pass = |x: &Tensor| {
        let Eigen { values, vectors } = Eigen::of(&x.t()?.matmul(&g.matmul(x)?)?)?;
        let least = LENGTH_SHARE_MIN * values.first().copied().unwrap_or_default();
        let kept = values.iter().take_while(|value| **value > least).count();
        let scales = values.iter().take(kept).map(|value| value.sqrt().recip());
        let scales = Tensor::from_iter(scales, &Device::Cpu)?;
        let vectors = vectors.narrow(1, 0, kept)?.broadcast_mul(&scales)?;
        Ok::<_, Error>(x.matmul(&vectors)?)
    };
    // The first pass loses digits to the condition of the Gram matrix; the second one has a good one.
    pass(&pass(&x)?)
}

/// Eigenvalues of a symmetric matrix, the largest first, and its eigenvectors as columns.
struct Eigen {
    values: Vec<f64>,
    vectors: Tensor,
}

impl Eigen {
    fn of(matrix: &Tensor) -> Result<Self> {
        let size = matrix.dim(0)?;
        // Rounding leaves the halves of a product a little apart.
        let symmetric = ((matrix + matrix.t()?)? * 0.5)?;
        let values = symmetric.flatten_all()?.to_vec1::<f64>()?;
        let failed = || {
            Error::Internal(
                "the eigenvalues behind the sketch did not converge; check the weights, or use --state exact".into(),
            )
        };
        if !values.iter().all(|value| value.is_finite()) {
            return Err(failed());
        }
        let matrix = DMatrix::from_row_slice(size, size, &values);
        let eigen = SymmetricEigen::try_new(matrix, f64::EPSILON, SWEEPS_MAX).ok_or_else(failed)?;
        let found = eigen.eigenvalues.as_slice();
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|&a, &b| {
            let value = |i: usize| found.get(i).copied().unwrap_or_default();
            value(b).total_cmp(&value(a))
        });
        // Columns of nalgebra are contiguous: as rows, in order, they are the transpose.
        let columns = eigen.eigenvectors.as_slice();
        let mut rows = Vec::with_capacity(size * size);
        for &i in &order {
            rows.extend_from_slice(columns.get(i * size..(i + 1) * size).unwrap_or_default());
        }
        let values = order.iter().filter_map(|&i| found.get(i).copied());
        Ok(Self {
            values: values.collect(),
            vectors: Tensor::from_vec(rows, (size, size), &Device::Cpu)?
                .t()?
                .contiguous()?,
        })
    }
}
