//! Provides products of parts of matrices on tensors in host memory: what cuBLAS computes on a card, term by term.

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, bail};
use half::{bf16, f16};

use crate::{Matrix, Product};

/// See [`device::multiply`](crate::device::multiply).
pub(super) fn multiply(product: &Product<'_>) -> Result<()> {
    product.check()?;
    let (a, b) = (widened(product.a.tensor)?, widened(product.b.tensor)?);
    let sum = Sum { product, a, b };
    product.out.tensor.inplace_op1(&sum)
}

fn widened(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()
}

struct Sum<'a> {
    product: &'a Product<'a>,
    a: Vec<f32>,
    b: Vec<f32>,
}

/// Where element (row, column) of the `index`th factor lies.
fn at(matrix: &Matrix<'_>, offset: usize, row: usize, column: usize) -> usize {
    let (row, column) = if matrix.transposed {
        (column, row)
    } else {
        (row, column)
    };
    matrix.first + offset + row * matrix.stride + column
}

impl Sum<'_> {
    fn store(&self, read: impl Fn(usize) -> f32, mut write: impl FnMut(usize, f32)) {
        let Product {
            a,
            b,
            out,
            scale,
            add,
            count,
            steps,
        } = self.product;
        let (m, n, k) = self.product.sizes();
        for index in 0..*count {
            let offset = steps.map(|step| index * step);
            for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
                let term = |inner| {
                    let left = self.a[at(a, offset[0], row, inner)];
                    left * self.b[at(b, offset[1], inner, column)]
                };
                let sum: f32 = (0..k).map(term).sum();
                let to = at(out, offset[2], row, column);
                let before = if *add { read(to) } else { 0.0 };
                write(to, before + scale * sum);
            }
        }
    }
}

impl InplaceOp1 for Sum<'_> {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("a product goes into a tensor that is not contiguous");
        };
        // Read before anything is written: no element is read twice.
        macro_rules! into {
            ($values:expr, $widen:expr, $narrow:expr) => {{
                let held = $values[start..].to_vec();
                let values = &mut $values[start..];
                self.store(|i| $widen(held[i]), |i, value| values[i] = $narrow(value));
            }};
        }
        match storage {
            CpuStorage::F32(values) => into!(values, |x: f32| x, |x: f32| x),
            CpuStorage::BF16(values) => into!(values, bf16::to_f32, bf16::from_f32),
            CpuStorage::F16(values) => into!(values, f16::to_f32, f16::from_f32),
            _ => bail!("a product goes into floats"),
        }
        Ok(())
    }
}
