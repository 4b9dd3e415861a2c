//! Provides a bounds-checked f32 matrix product on strided slices, for kernels that write into parts of
//! a result and must not copy their operands: the `gemm` crate, called as candle calls it.

/// A read-only matrix inside a slice: element (i, j) lies at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `cols` adjacent elements, `row_stride` apart.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check_bounds(data.len(), rows, cols, row_stride);
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    /// The transpose, without moving anything.
    pub(crate) fn transpose(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// What happens to the values already at the destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Replace,
    Add,
}

/// Who computes a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread alone: the kernel itself runs in parallel.
    One,
    /// As many as candle uses.
    All,
}

impl Threads {
    fn parallelism(self) -> gemm::Parallelism {
        match (self, candle_core::utils::get_num_threads()) {
            (Self::One, _) | (Self::All, 0 | 1) => gemm::Parallelism::None,
            (Self::All, threads) => gemm::Parallelism::Rayon(threads),
        }
    }
}

/// `out = scale * a b`, or `out += scale * a b`. The result does not depend on `threads`.
///
/// # Shapes
/// a [m, k], b [k, n], out [m, n] with adjacent columns and rows `row_stride` apart.
///
/// # Panics
/// When the shapes disagree or `out` is too short: a mistake in the calling kernel.
pub(crate) fn product(
    out: &mut [f32],
    row_stride: usize,
    store: Store,
    scale: f32,
    threads: Threads,
    a: Matrix<'_>,
    b: Matrix<'_>,
) {
    assert_eq!(a.cols, b.rows, "inner dimensions differ");
    check_bounds(out.len(), a.rows, b.cols, row_stride);
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    // `gemm` computes `out = alpha * out + beta * a b` and ignores `out` where it is not read.
    #[expect(unsafe_code, reason = "gemm's only interface takes raw pointers")]
    // SAFETY: `Matrix::new` and `check_bounds` above proved that every (i, j) of the three operands
    // lies within its slice, and `out` is borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            row_stride as isize,
            store == Store::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            threads.parallelism(),
        );
    }
}

fn check_bounds(len: usize, rows: usize, cols: usize, row_stride: usize) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(rows == 1 || row_stride >= cols, "rows overlap");
    let needed = (rows - 1)
        .checked_mul(row_stride)
        .and_then(|start| start.checked_add(cols));
    assert!(
        needed.is_some_and(|needed| needed <= len),
        "a matrix reaches past its slice"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_of_strided_and_transposed_matrices() {
        // a = [1 2; 3 4] with a gap after each row, b = [5 6; 7 8] read from its transpose.
        let a = Matrix::new(&[1., 2., -1., 3., 4., -1.], 2, 2, 3);
        let b = Matrix::new(&[5., 7., 6., 8.], 2, 2, 2).transpose();
        let mut out = [100.; 5];
        product(&mut out, 3, Store::Replace, 1.0, Threads::One, a, b);
        assert_eq!(out, [19., 22., 100., 43., 50.]);
        product(&mut out, 3, Store::Add, 2.0, Threads::All, a, b);
        assert_eq!(out, [57., 66., 100., 129., 150.]);
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let (m, n, k) = (130, 150, 170);
        let data: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
        let other: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.11).cos()).collect();
        let run = |threads| {
            let (a, b) = (Matrix::new(&data, m, k, k), Matrix::new(&other, k, n, n));
            let mut out = vec![0f32; m * n];
            product(&mut out, n, Store::Replace, 1.0, threads, a, b);
            out
        };
        assert_eq!(run(Threads::One), run(Threads::All));
    }

    #[test]
    #[should_panic(expected = "reaches past")]
    fn a_matrix_larger_than_its_slice_is_refused() {
        let _ = Matrix::new(&[0.; 7], 2, 4, 4);
    }
}
