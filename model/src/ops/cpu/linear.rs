//! Provides a frozen linear layer and its adapter on plain f32 slices, forward and backward, without a graph: nothing is
//! copied or transposed, and every product adds to where its sum belongs.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::{Linear, Weight};
use crate::element::lend;
use crate::frozen::Side;
use crate::matmul::{Matrix, Store, Threads, product};
use crate::simd::add_to;
use crate::tiles;
use crate::{Error, Gradients, Lora, Parameter, Result};

/// Rows of the output that one task adds the bias to.
const BIAS_ROWS: usize = 32;

/// `scale x A^T` [N, rank] of a forward pass, which the gradient of B needs; empty without an adapter.
#[derive(Debug, Default)]
pub(crate) struct LowRank(Vec<f32>);

/// Whether a tensor can be lent as a slice of f32.
pub(crate) fn is_plain(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32 && tensor.is_contiguous()
}

impl Linear {
    /// Whether [`apply_into`](Self::apply_into) can take this layer: everything but the adapter is frozen, and all of it is f32
    /// on the CPU.
    pub(crate) fn is_direct(&self) -> bool {
        let weight = match &self.weight {
            Weight::Dense(weight) => is_plain(weight),
            Weight::Nf4(_) | Weight::Packed(_) => true,
            Weight::Trainable(_) => false,
        };
        let bias = match &self.bias {
            None => true,
            Some(Parameter::Frozen(bias)) => is_plain(bias),
            Some(Parameter::Trainable(_)) => false,
        };
        let lora = self.lora.as_ref();
        weight && bias && lora.is_none_or(|lora| is_plain(&lora.a) && is_plain(&lora.b))
    }

    /// As [`forward`](Self::forward), into `out` or added to it.
    ///
    /// # Shapes
    /// x [N, in], out [N, out]
    ///
    /// # Errors
    /// When the layer is not [`is_direct`](Self::is_direct).
    pub(crate) fn apply_into(&self, x: &[f32], out: &mut [f32], store: Store) -> Result<LowRank> {
        let rows = x.len() / self.in_features.max(1);
        self.weight_product(Side::Forward, x, rows, out, store)?;
        if let Some(bias) = &self.bias {
            let bias = lend(bias.tensor());
            let bias = bias.numbers()?;
            out.par_chunks_mut(BIAS_ROWS * bias.len()).for_each(|rows| {
                for row in rows.chunks_exact_mut(bias.len()) {
                    add_to(row, bias);
                }
            });
        }
        let Some(lora) = &self.lora else {
            return Ok(LowRank::default());
        };
        let _part = tracing::trace_span!("adapters, forward").entered();
        let low = self.low_rank(lora, x)?;
        let b = lend(&lora.b);
        let rank = low.0.len() / rows.max(1);
        let b = Matrix::new(b.numbers()?, self.out_features, rank, rank);
        let left = Matrix::new(&low.0, rows, rank, rank);
        product(
            out,
            self.out_features,
            Store::Add,
            1.0,
            Threads::All,
            left,
            b.transpose(),
        );
        Ok(low)
    }

    /// `scale x A^T`.
    fn low_rank(&self, lora: &Lora, x: &[f32]) -> Result<LowRank> {
        let (rank, width) = lora.a.dims2()?;
        let rows = x.len() / width.max(1);
        let mut low = vec![0f32; rows * rank];
        let a = lend(&lora.a);
        let a = Matrix::new(a.numbers()?, rank, width, width);
        let x = Matrix::new(x, rows, width, width);
        let scale = lora.scale as f32;
        product(
            &mut low,
            rank,
            Store::Replace,
            scale,
            Threads::All,
            x,
            a.transpose(),
        );
        Ok(LowRank(low))
    }

    /// From dL/dy to the adapter's gradients, and dL/dx into `to_x` or added to it, where it is wanted.
    ///
    /// With l = scale x A^T (computed again where `low` is `None`): dB = dy^T l, dl = scale dy B, dA = dl^T x, dx = dy W + dl A.
    ///
    /// # Shapes
    /// x and to_x [N, in], grad [N, out]
    ///
    /// # Errors
    /// When the layer is not [`is_direct`](Self::is_direct).
    pub(crate) fn pull_back_into(
        &self,
        x: &[f32],
        low: Option<LowRank>,
        grad: &[f32],
        mut to_x: Option<(&mut [f32], Store)>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let rows = x.len() / self.in_features.max(1);
        if let Some((to_x, store)) = &mut to_x {
            self.weight_product(Side::Backward, grad, rows, to_x, *store)?;
        }
        let Some(lora) = &self.lora else {
            return Ok(());
        };
        let _part = tracing::trace_span!("adapters, backward").entered();
        let (width, height) = (self.in_features, self.out_features);
        let low = match low {
            Some(low) => low,
            None => self.low_rank(lora, x)?,
        };
        let rank = lora.a.dims2()?.0;
        let (a, b) = (lend(&lora.a), lend(&lora.b));
        let a = Matrix::new(a.numbers()?, rank, width, width);
        let b = Matrix::new(b.numbers()?, height, rank, rank);
        let (x, grad) = (
            Matrix::new(x, rows, width, width),
            Matrix::new(grad, rows, height, height),
        );
        let low = Matrix::new(&low.0, rows, rank, rank);
        let mut to_b = vec![0f32; height * rank];
        product(
            &mut to_b,
            rank,
            Store::Replace,
            1.0,
            Threads::All,
            grad.transpose(),
            low,
        );
        let mut to_low = vec![0f32; rows * rank];
        let scale = lora.scale as f32;
        product(
            &mut to_low,
            rank,
            Store::Replace,
            scale,
            Threads::All,
            grad,
            b,
        );
        let to_low = Matrix::new(&to_low, rows, rank, rank);
        let mut to_a = vec![0f32; rank * width];
        product(
            &mut to_a,
            width,
            Store::Replace,
            1.0,
            Threads::All,
            to_low.transpose(),
            x,
        );
        if let Some((to_x, _)) = to_x {
            product(to_x, width, Store::Add, 1.0, Threads::All, to_low, a);
        }
        let [(a_name, a), (b_name, b)] = lora.parameters(&self.prefix);
        gradients.add(&a_name, &Tensor::from_vec(to_a, a.shape(), a.device())?)?;
        gradients.add(&b_name, &Tensor::from_vec(to_b, b.shape(), b.device())?)
    }

    /// x W^T or dy W.
    fn weight_product(
        &self,
        side: Side,
        x: &[f32],
        rows: usize,
        out: &mut [f32],
        store: Store,
    ) -> Result<()> {
        let _part = match side {
            Side::Forward => tracing::trace_span!("frozen weights, forward"),
            Side::Backward => tracing::trace_span!("frozen weights, backward"),
        }
        .entered();
        match &self.weight {
            Weight::Nf4(weight) => tiles::multiply(weight, side, x, rows, out, store),
            Weight::Packed(weight) => tiles::multiply(weight, side, x, rows, out, store),
            Weight::Trainable(_) => Err(Error::Input(format!(
                "{} is trained: it has no place in a pass without a graph",
                self.prefix
            ))),
            Weight::Dense(weight) => {
                let (width, height) = (self.in_features, self.out_features);
                let weight = lend(weight);
                let weight = Matrix::new(weight.numbers()?, height, width, width);
                let (right, inner, outer) = match side {
                    Side::Forward => (weight.transpose(), width, height),
                    Side::Backward => (weight, height, width),
                };
                let x = Matrix::new(x, rows, inner, inner);
                product(out, outer, store, 1.0, Threads::All, x, right);
                Ok(())
            }
        }
    }
}
