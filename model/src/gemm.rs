//! Provides a bounds-checked f32 matrix product on strided slices: the `gemm` crate, called as candle calls it.

use candle_core::{Result, bail};
use gemm::Parallelism;

/// A row-major matrix inside a longer slice.
pub(crate) struct View<'a> {
    pub data: &'a [f32],
    pub row_stride: usize,
}

/// How the right operand lies in memory.
#[derive(Clone, Copy)]
pub(crate) enum Right {
    /// [k, n], row-major.
    AsIs,
    /// [n, k], row-major: the product takes its transpose.
    Transposed,
}

/// out [m, n] (+)= left [m, k] right, where `right` is contiguous.
///
/// # Errors
/// When a slice is too short for the sizes.
pub(crate) fn multiply(
    (m, n, k): (usize, usize, usize),
    out: &mut [f32],
    out_row_stride: usize,
    left: &View,
    right: (&[f32], Right),
    accumulate: bool,
) -> Result<()> {
    let (right, orientation) = right;
    let span = |rows: usize, columns: usize, stride: usize| match rows {
        0 => Some(0),
        _ => (rows - 1).checked_mul(stride)?.checked_add(columns),
    };
    let fits = |len: usize, rows, columns, stride| {
        columns <= stride && span(rows, columns, stride).is_some_and(|needed| needed <= len)
    };
    if !fits(out.len(), m, n, out_row_stride)
        || !fits(left.data.len(), m, k, left.row_stride)
        || k.checked_mul(n).is_none_or(|needed| needed > right.len())
    {
        bail!("matrix product {m}x{k} by {k}x{n}: an operand is too short");
    }
    let (right_row_stride, right_column_stride) = match orientation {
        Right::AsIs => (n, 1),
        Right::Transposed => (1, k),
    };
    call(
        (m, n, k),
        (out, out_row_stride),
        left,
        (right, right_row_stride, right_column_stride),
        accumulate,
    );
    Ok(())
}

#[allow(unsafe_code)]
fn call(
    (m, n, k): (usize, usize, usize),
    (out, out_row_stride): (&mut [f32], usize),
    left: &View,
    (right, right_row_stride, right_column_stride): (&[f32], usize, usize),
    accumulate: bool,
) {
    let parallelism = match candle_core::utils::get_num_threads() {
        0 | 1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    // SAFETY: `multiply`, the only caller, has checked that every index (row * row_stride + column * column_stride) of the
    // three operands lies inside its slice; `out` is exclusively borrowed, so it aliases neither operand. Slice lengths
    // are at most isize::MAX, so no stride overflows.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_row_stride as isize,
            accumulate,
            left.data.as_ptr(),
            1,
            left.row_stride as isize,
            right.as_ptr(),
            right_column_stride as isize,
            right_row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
