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
/// Rounds at most; ten are many.
const ROUNDS_MAX: usize = 40;
/// Relative growth of the captured energy in a round that ends the iteration.
const GROWTH_MIN: f64 = 1e-8;
/// Directions whose length in G is below this share of the longest are taken for none.
const LENGTH_SHARE_MIN: f64 = 1e-12;
/// Share of the largest eigenvalue below which one counts as zero: such directions stay, instead of turning to noise.
const FLOOR_SHARE: f64 = 1e-10;
/// Decimal digits by which a filter may favour the first direction: rounding must not grow to more than the others hold.
const GROWTH_DIGITS: f64 = 12.0;
/// Degree of a filter.
const DEGREE_MAX: f64 = 8.0;
/// Sweeps of an eigenvalue solver; it needs a few for each eigenvalue.
const SWEEPS_MAX: usize = 100_000;

/// V `[D, rank]` with V^T G V = I, the leading eigenvectors of S G, the largest first.
///
/// Halko, Martinsson and Tropp, "Finding structure with randomness" (SIAM Review 2011), algorithm 4.4, with a
/// Rayleigh-Ritz step and a polynomial of S G a round; S and G `[D, D]` are symmetric, f64.
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
    let (mut x, mut gx) = orthonormal(start(size, (rank + OVERSAMPLING).min(size))?, g)?;
    if x.dim(1)? < rank {
        return Err(Error::config(
            "state",
            format!(
                "a sketch of {rank} directions is more than the {} of this model's head; use exact",
                x.dim(1)?
            ),
        ));
    }
    let (mut captured, mut applied) = (0.0, 0);
    for _ in 0..ROUNDS_MAX {
        check(stopped)?;
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
        let apply = |x: &Tensor| Ok(s.matmul(&g.matmul(x)?)?);
        let filter = Filter::of(&values, applied);
        applied += filter.degree;
        let filtered = filter.apply(&x, z.matmul(&vectors)?, &values, apply)?;
        (x, gx) = orthonormal(filtered, g)?;
    }
    Ok(x.narrow(1, 0, rank)?.contiguous()?)
}

/// A Chebyshev polynomial of S G that stays within one on the eigenvalues still outside the subspace, and grows as fast as
/// any beyond (Zhou, Saad, Tiago and Chelikowsky, Journal of Computational Physics 2006): plain powers of S G take several
/// times the rounds where eigenvalues fall slowly.
struct Filter {
    /// Half of the largest unwanted eigenvalue; the smallest one is 0.
    half: f64,
    degree: u32,
}

impl Filter {
    /// From the eigenvalues found so far, the largest first, by polynomials whose degrees add up to `applied`.
    ///
    /// What a column holds of the first direction has fallen by about that power, so no more growth than that is safe: the
    /// first direction would drown the others.
    fn of(values: &[f64], applied: u32) -> Self {
        let largest = values.first().copied().unwrap_or_default();
        let floor = (FLOOR_SHARE * largest).max(f64::MIN_POSITIVE);
        let bound = values.last().copied().unwrap_or_default().max(floor);
        let growth = (4.0 * largest / bound).max(4.0).log10();
        let degree = (GROWTH_DIGITS / growth).floor().clamp(1.0, DEGREE_MAX);
        Self {
            half: bound / 2.0,
            degree: (degree as u32).min(applied).max(1),
        }
    }

    /// The filter on `x` `[D, p]`, whose columns belong to `values`, with `ax` = S G x at hand.
    fn apply(
        &self,
        x: &Tensor,
        ax: Tensor,
        values: &[f64],
        apply: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        // T_1(t) = t and T_n+1(t) = 2 t T_n(t) - T_n-1(t), with t = S G / half - 1.
        let shifted = |ax: Tensor, x: &Tensor| Ok::<_, Error>(((ax / self.half)? - x)?);
        let mut before = x.clone();
        let mut now = shifted(ax, x)?;
        for _ in 1..self.degree {
            let next = ((shifted(apply(&now)?, &now)? * 2.0)? - before)?;
            before = std::mem::replace(&mut now, next);
        }
        // Brings eigenvectors back to length one, so that their Gram matrix is well-conditioned.
        let growth = |value: f64| {
            let t = (value / self.half - 1.0).max(1.0);
            (f64::from(self.degree) * t.acosh()).cosh()
        };
        let scales = values.iter().map(|&value| growth(value).recip());
        let scales = Tensor::from_iter(scales, &Device::Cpu)?;
        Ok(now.broadcast_mul(&scales)?)
    }
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

/// A basis of the columns of `x` that is orthonormal in G, and G times it; fewer columns where some are none in G.
fn orthonormal(x: Tensor, g: &Tensor) -> Result<(Tensor, Tensor)> {
    let gx = g.matmul(&x)?;
    let pass = |x: &Tensor, gx: &Tensor| {
        let Eigen { values, vectors } = Eigen::of(&x.t()?.matmul(gx)?)?;
        let least = LENGTH_SHARE_MIN * values.first().copied().unwrap_or_default();
        let kept = values.iter().take_while(|value| **value > least).count();
        let scales = values.iter().take(kept).map(|value| value.sqrt().recip());
        let scales = Tensor::from_iter(scales, &Device::Cpu)?;
        let vectors = vectors.narrow(1, 0, kept)?.broadcast_mul(&scales)?;
        Ok::<_, Error>((x.matmul(&vectors)?, gx.matmul(&vectors)?))
    };
    // The first pass loses digits to the condition of the Gram matrix; the second one has a good one.
    let (x, gx) = pass(&x, &gx)?;
    pass(&x, &gx)
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
