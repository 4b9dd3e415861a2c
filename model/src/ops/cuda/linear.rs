//! Provides linear layers and their adapters on a card, forward and back: those that read one input are one product where their
//! weights lie side by side, and every product adds to where its sum belongs.

use candle_core::{DType, Tensor};
use distill_kernels::{Matrix, Product, nf4};

use super::Cuda;
use crate::{Gradients, Linear, Result, Weight};

/// The matrices of linears that read one input, in the activations' type.
enum Matrices {
    /// One below the other.
    Joined(Tensor),
    Each(Vec<Tensor>),
}

/// Outputs of the linears in all.
pub(super) fn width(linears: &[&Linear]) -> usize {
    linears.iter().map(|linear| linear.out_features()).sum()
}

impl Cuda {
    fn matrices(&self, linears: &[&Linear], x: &Tensor) -> Result<Matrices> {
        let dense = |linear: &&Linear| -> Result<Tensor> {
            Ok(match linear.weight() {
                Weight::Dense(weight) => weight.to_dtype(self.dtype)?,
                Weight::Trainable(weight) => weight.as_tensor().detach().to_dtype(self.dtype)?,
                Weight::Packed(weight) => weight.dequantize(self.dtype, x.device())?,
                Weight::Nf4(_) => self.unpacked(&[linear], x)?,
            })
        };
        let packed = linears
            .iter()
            .all(|linear| matches!(linear.weight(), Weight::Nf4(_)));
        Ok(if packed {
            Matrices::Joined(self.unpacked(linears, x)?)
        } else {
            Matrices::Each(linears.iter().map(dense).collect::<Result<_>>()?)
        })
    }

    /// Four-bit matrices, one below the other.
    fn unpacked(&self, linears: &[&Linear], x: &Tensor) -> Result<Tensor> {
        let matrices = linears.iter().filter_map(|linear| match linear.weight() {
            Weight::Nf4(matrix) => Some(matrix),
            _ => None,
        });
        let matrices: Vec<_> = matrices.collect();
        let mut parts = Vec::new();
        let mut counts = Vec::with_capacity(matrices.len());
        for matrix in &matrices {
            let own = matrix.parts_on(x.device())?;
            counts.push(own.len());
            parts.extend(own);
        }
        let shape = (width(linears), linears[0].in_features());
        let output = [(self.dtype, shape.0 * shape.1)];
        let made = (self.machine.compute)(&parts, &output, &|parts, out| {
            let mut rest = parts;
            let mut packed = Vec::with_capacity(matrices.len());
            for (matrix, count) in matrices.iter().zip(&counts) {
                let (own, others) = rest.split_at(*count);
                packed.push(matrix.packed(own));
                rest = others;
            }
            nf4::dequantize(&packed, out[0])
        })?;
        Ok(made[0].reshape(shape)?)
    }

    /// `x W^T + scale (x A^T) B^T` of all linears side by side, into `y` or added to it, and `x A^T` of all adapters. Biases are the
    /// caller's.
    ///
    /// # Shapes
    /// x [N, in], y [N, width]
    pub(super) fn linears(
        &self,
        linears: &[&Linear],
        x: &Tensor,
        y: &Tensor,
        add: bool,
    ) -> Result<Option<Tensor>> {
        let out = Matrix::of(y)?;
        let store =
            |product: Product<'_>| self.multiply(if add { product.added() } else { product });
        let left = Matrix::of(x)?;
        match self.matrices(linears, x)? {
            Matrices::Joined(weight) => {
                store(Product::new(left, Matrix::of(&weight)?.t(), out))?;
            }
            Matrices::Each(weights) => {
                let mut first = 0;
                for weight in &weights {
                    let weight = Matrix::of(weight)?;
                    let count = weight_rows(&weight);
                    store(Product::new(left, weight.t(), out.columns(first, count)?))?;
                    first += count;
                }
            }
        }
        let Some(group) = self.adapters.group(linears) else {
            return Ok(None);
        };
        let low = self.low(linears, x)?;
        if let Some(low) = &low {
            for (member, count) in group.runs() {
                let right = Matrix::part(&group.all, member.b, member.width, member.rank)?.t();
                let left = Matrix::of(low)?.columns(member.low, member.rank)?;
                let out = out.columns(member.first, member.width)?;
                let steps = [member.rank, member.width * member.rank, member.width];
                let product = Product::new(left, right, out).added();
                self.multiply(product.scaled(member.scale).times(count, steps))?;
            }
        }
        Ok(low)
    }

    /// `x A^T` of the adapters of all linears side by side: [N, sum of ranks].
    pub(super) fn low(&self, linears: &[&Linear], x: &Tensor) -> Result<Option<Tensor>> {
        let Some(group) = self.adapters.group(linears) else {
            return Ok(None);
        };
        let (rows, inputs) = x.dims2()?;
        let low = self.fresh(x, (rows, group.rank), self.dtype)?;
        let a = Matrix::part(&group.all, group.a, group.rank, inputs)?;
        self.multiply(Product::new(Matrix::of(x)?, a.t(), Matrix::of(&low)?))?;
        Ok(Some(low))
    }

    /// The way back: the gradients of what is trained, and dL/dx as `to` says, where it is wanted.
    ///
    /// With l = x A^T: dB = scale dy^T l, dl = scale dy B, dA = dl^T x, dx = dy W + dl A; dW = dy^T x.
    ///
    /// # Shapes
    /// x [N, in], dy [N, width]
    pub(super) fn linears_gradient(
        &self,
        linears: &[&Linear],
        (x, low): (&Tensor, Option<Tensor>),
        dy: &Tensor,
        to: Option<DType>,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let (rows, inputs) = x.dims2()?;
        let to_x = to.map(|dtype| self.fresh(x, (rows, inputs), dtype));
        let to_x = to_x.transpose()?;
        if let Some(to_x) = &to_x {
            self.through_weights(linears, x, dy, to_x)?;
        }
        self.own_gradients(linears, x, dy, gradients)?;
        let (Some(group), Some(low)) = (self.adapters.group(linears), low) else {
            return Ok(to_x);
        };
        let to_low = self.fresh(x, (rows, group.rank), self.dtype)?;
        let to_a = self.fresh(x, (group.rank, inputs), DType::F32)?;
        for (member, count) in group.runs() {
            let (width, rank) = (member.width, member.rank);
            let grad = Matrix::of(dy)?.columns(member.first, width)?;
            let to_b = self.fresh(x, (count * width, rank), DType::F32)?;
            let left = Matrix::of(&low)?.columns(member.low, rank)?;
            let into = Matrix::of(&to_b)?.rows(0, width)?;
            let product = Product::new(grad.t(), left, into).scaled(member.scale);
            self.multiply(product.times(count, [width, rank, width * rank]))?;
            let b = Matrix::part(&group.all, member.b, width, rank)?;
            let into = Matrix::of(&to_low)?.columns(member.low, rank)?;
            let product = Product::new(grad, b, into).scaled(member.scale);
            self.multiply(product.times(count, [width, width * rank, rank]))?;
            for index in 0..count {
                let linear = linears[member.linear + index];
                let part = to_b.narrow(0, index * width, width)?;
                add_lora_gradient(linear, 1, &part, gradients)?;
            }
        }
        let (dl, right) = (Matrix::of(&to_low)?, Matrix::of(x)?);
        self.multiply(Product::new(dl.t(), right, Matrix::of(&to_a)?))?;
        for member in &group.members {
            let part = to_a.narrow(0, member.low, member.rank)?;
            add_lora_gradient(linears[member.linear], 0, &part, gradients)?;
        }
        if let Some(to_x) = &to_x {
            let a = Matrix::part(&group.all, group.a, group.rank, inputs)?;
            self.multiply(Product::new(dl, a, Matrix::of(to_x)?).added())?;
        }
        Ok(to_x)
    }

    /// dy W of all.
    fn through_weights(
        &self,
        linears: &[&Linear],
        x: &Tensor,
        dy: &Tensor,
        to_x: &Tensor,
    ) -> Result<()> {
        let (grad, out) = (Matrix::of(dy)?, Matrix::of(to_x)?);
        match self.matrices(linears, x)? {
            Matrices::Joined(weight) => {
                self.multiply(Product::new(grad, Matrix::of(&weight)?, out))
            }
            Matrices::Each(weights) => {
                let mut first = 0;
                for weight in &weights {
                    let weight = Matrix::of(weight)?;
                    let count = weight_rows(&weight);
                    let product = Product::new(grad.columns(first, count)?, weight, out);
                    self.multiply(if first > 0 { product.added() } else { product })?;
                    first += count;
                }
                Ok(())
            }
        }
    }

    /// Of weights and biases that are trained themselves.
    fn own_gradients(
        &self,
        linears: &[&Linear],
        x: &Tensor,
        dy: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let mut first = 0;
        for linear in linears {
            let (width, inputs) = (linear.out_features(), linear.in_features());
            let grad = Matrix::of(dy)?.columns(first, width)?;
            if let Some((name, _)) = linear.trained_weight() {
                let to_weight = self.fresh(x, (width, inputs), DType::F32)?;
                let into = Matrix::of(&to_weight)?;
                self.multiply(Product::new(grad.t(), Matrix::of(x)?, into))?;
                gradients.add(&name, &to_weight)?;
            }
            if let Some((name, _)) = linear.trained_bias() {
                gradients.add(&name, &self.sum_of_rows(grad, x)?)?;
            }
            first += width;
        }
        Ok(())
    }

    /// The sum of a matrix's rows, f32, by a product with ones.
    pub(super) fn sum_of_rows(&self, rows: Matrix<'_>, like: &Tensor) -> Result<Tensor> {
        let (count, width) = rows.shape();
        let ones = Tensor::ones((1, count), rows.dtype(), like.device())?;
        let sum = self.fresh(like, (1, width), DType::F32)?;
        self.multiply(Product::new(Matrix::of(&ones)?, rows, Matrix::of(&sum)?))?;
        Ok(sum.reshape(width)?)
    }
}

fn weight_rows(weight: &Matrix<'_>) -> usize {
    weight.shape().0
}

/// Adds to the gradient of an adapter's A (0) or B (1).
fn add_lora_gradient(
    linear: &Linear,
    which: usize,
    gradient: &Tensor,
    gradients: &mut Gradients,
) -> Result<()> {
    let Some(lora) = linear.lora() else {
        return Ok(());
    };
    let (name, _) = &lora.parameters(linear.prefix())[which];
    gradients.add(name, gradient)
}
