//! Provides products of parts of matrices: any rows and columns of row-major tensors, stored in a part of another or added to it.

use candle_core::{DType, Result, Tensor, bail};

/// Rows of neighbouring elements of a contiguous tensor: a factor, or where a product goes.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    pub(crate) tensor: &'a Tensor,
    /// Element of the tensor that is the first of the matrix.
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    pub(crate) transposed: bool,
}

impl<'a> Matrix<'a> {
    /// The whole of a tensor [rows, columns].
    ///
    /// # Errors
    /// When it has another number of dimensions, or gaps.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (rows, columns) = tensor.dims2()?;
        Self::part(tensor, 0, rows, columns)
    }

    /// Rows of `columns` elements, one after the other from element `first` of a tensor on.
    ///
    /// # Errors
    /// When the tensor has gaps.
    pub fn part(tensor: &'a Tensor, first: usize, rows: usize, columns: usize) -> Result<Self> {
        if !tensor.is_contiguous() {
            bail!(
                "a product of a tensor that is not contiguous: {:?}",
                tensor.layout()
            );
        }
        Ok(Self {
            tensor,
            first,
            rows,
            columns,
            stride: columns,
            transposed: false,
        })
    }

    /// The columns from `first` on.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn columns(self, first: usize, count: usize) -> Result<Self> {
        if self.transposed || first + count > self.columns {
            bail!("columns {first} to {} of {self:?}", first + count);
        }
        Ok(Self {
            first: self.first + first,
            columns: count,
            ..self
        })
    }

    /// The rows from `first` on.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn rows(self, first: usize, count: usize) -> Result<Self> {
        if self.transposed || first + count > self.rows {
            bail!("rows {first} to {} of {self:?}", first + count);
        }
        Ok(Self {
            first: self.first + first * self.stride,
            rows: count,
            ..self
        })
    }

    /// The transpose; nothing is moved.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            transposed: !self.transposed,
            ..self
        }
    }

    /// Rows and columns as they are stored.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// The type of its elements.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// Rows and columns as a factor has them.
    pub(crate) fn dims(&self) -> (usize, usize) {
        if self.transposed {
            (self.columns, self.rows)
        } else {
            (self.rows, self.columns)
        }
    }

    /// Elements of the tensor up to the last one of the last of `count` matrices, `step` apart.
    fn end(&self, count: usize, step: usize) -> usize {
        let last = self.rows.saturating_sub(1) * self.stride + self.columns;
        self.first + count.saturating_sub(1) * step + last
    }
}

/// `out = scale a b`, or `out += scale a b`, for one or several neighbouring matrices.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// The left factor [m, k].
    pub a: Matrix<'a>,
    /// The right factor [k, n].
    pub b: Matrix<'a>,
    /// Where the product goes, [m, n]; nothing else may use these elements at the time.
    pub out: Matrix<'a>,
    /// Factor on the product.
    pub scale: f32,
    /// Whether what `out` holds is added.
    pub add: bool,
    /// How many products, and elements from one's a, b and out to the next one's.
    pub count: usize,
    /// See `count`.
    pub steps: [usize; 3],
}

/// Computes a product: on a card [`device::multiply`](crate::device::multiply), in tests the emulator's.
pub type Multiply = fn(&Product<'_>) -> Result<()>;

/// Whoever runs kernels and products on tensors.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Kernels.
    pub compute: crate::Compute,
    /// Products.
    pub multiply: Multiply,
}

impl<'a> Product<'a> {
    /// `out = a b`.
    pub fn new(a: Matrix<'a>, b: Matrix<'a>, out: Matrix<'a>) -> Self {
        Self {
            a,
            b,
            out,
            scale: 1.0,
            add: false,
            count: 1,
            steps: [0; 3],
        }
    }

    /// The same, added to what is there.
    #[must_use]
    pub fn added(self) -> Self {
        Self { add: true, ..self }
    }

    /// The same, times `scale`.
    #[must_use]
    pub fn scaled(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    /// `count` of it, each so many elements after the one before in a, b and out.
    #[must_use]
    pub fn times(self, count: usize, steps: [usize; 3]) -> Self {
        Self {
            count,
            steps,
            ..self
        }
    }

    /// m, n and k.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        let ((m, k), (_, n)) = (self.a.dims(), self.b.dims());
        (m, n, k)
    }

    /// # Errors
    /// Shapes that do not fit each other or their tensors, types that no product takes.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { a, b, out, .. } = self;
        let (m, n, k) = self.sizes();
        let fits = b.dims().0 == k && (out.rows, out.columns) == (m, n) && !out.transposed;
        let inside = [a, b, out].into_iter().zip(self.steps);
        let inside = inside.into_iter().all(|(matrix, step)| {
            matrix.end(self.count, step) <= matrix.tensor.elem_count()
                && matrix.stride >= matrix.columns
        });
        let (left, right, stored) = (a.tensor.dtype(), b.tensor.dtype(), out.tensor.dtype());
        let floats = matches!(left, DType::F32 | DType::BF16 | DType::F16);
        let types = left == right && floats && (stored == DType::F32 || stored == left);
        if !(fits && inside && types) {
            bail!("a product of {a:?} and {b:?} does not go into {out:?}");
        }
        Ok(())
    }
}
