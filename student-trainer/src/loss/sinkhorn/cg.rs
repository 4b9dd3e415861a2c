//! Provides conjugate gradients for `diag(c) - T^T diag(1/r) T`, the matrix of Newton's step and of the adjoint.

/// How far to go.
pub(crate) struct CgLimits {
    /// Residual, relative to the right-hand side, at which to stop (in the norm of the preconditioner).
    pub(crate) tolerance: f64,
    /// Most products.
    pub(crate) steps: usize,
}

/// What came out.
pub(crate) struct CgResult {
    /// The solution so far.
    pub(crate) x: Vec<f64>,
    /// Products taken.
    pub(crate) steps: usize,
    /// Whether the tolerance was met.
    pub(crate) converged: bool,
}

/// Solves `A x = rhs` for a symmetric positive semi-definite A whose kernel is the constants, preconditioned with 1/c.
///
/// `product(x, out)` writes A x. The right-hand side must sum to 0; then every iterate is a sum of directions that
/// ascend, so it is a good step even where the limit stops it early.
pub(crate) fn conjugate_gradients(
    rhs: &[f64],
    c: &[f64],
    limits: &CgLimits,
    mut product: impl FnMut(&[f64], &mut [f64]),
) -> CgResult {
    let norm = |r: &[f64]| r.iter().zip(c).map(|(r, c)| r * r / c).sum::<f64>();
    let mut x = vec![0.0; rhs.len()];
    let mut residual = rhs.to_vec();
    let mut direction: Vec<f64> = rhs.iter().zip(c).map(|(r, c)| r / c).collect();
    let mut image = vec![0.0; rhs.len()];
    let mut rz = norm(&residual);
    let stop = rz * limits.tolerance * limits.tolerance;
    let mut steps = 0;
    while rz > stop && steps < limits.steps {
        product(&direction, &mut image);
        steps += 1;
        let curvature: f64 = image.iter().zip(&direction).map(|(p, d)| p * d).sum();
        // Rounding, or NaN: what there is so far is kept.
        if curvature.is_nan() || curvature <= 0.0 {
            break;
        }
        let alpha = rz / curvature;
        for ((x, r), (d, p)) in x
            .iter_mut()
            .zip(&mut residual)
            .zip(direction.iter().zip(&image))
        {
            *x += alpha * d;
            *r -= alpha * p;
        }
        let next = norm(&residual);
        let beta = next / rz;
        rz = next;
        for ((d, r), c) in direction.iter_mut().zip(&residual).zip(c) {
            *d = r / c + beta * *d;
        }
    }
    CgResult {
        x,
        steps,
        converged: rz <= stop,
    }
}
