//! Provides the product with a frozen weight, y = x W^T, as candle ops with their own backward: dX = dY W and nothing for W.
//!
//! candle's `matmul` always computes and stores the gradient of both operands, which for a frozen matrix is wasted time and
//! a matrix of memory; a custom op with one argument has no such slot.

use crate::{Error, Result};
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Result as CandleResult, Shape,
    Storage, Tensor,
};

/// y = x W^T for a dense frozen W.
///
/// # Shapes
/// x [N, in], weight [out, in] -> [N, out]; both of one type on one device
///
/// # Errors
/// When shapes, types or devices differ.
pub(crate) fn dense_forward(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let op = Dense {
        weight: weight.clone(),
        side: Side::Forward,
    };
    x.contiguous()?.apply_op1(op).map_err(Error::from)
}

/// Which product an op computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// x [N, in] -> x W^T [N, out].
    Forward,
    /// dY [N, out] -> dY W [N, in].
    Backward,
}

struct Dense {
    weight: Tensor,
    side: Side,
}

impl Dense {
    /// The layout of the right operand ([in, out] or [out, in]) and the product's size (batch, m, n, k).
    fn plan(
        &self,
        x: &Layout,
        weight: &Layout,
    ) -> CandleResult<(Layout, (usize, usize, usize, usize))> {
        let right = match self.side {
            Side::Forward => weight.transpose(0, 1)?,
            Side::Backward => weight.clone(),
        };
        let (rows, inner) = x.shape().dims2()?;
        let (k, n) = right.shape().dims2()?;
        if inner != k {
            candle_core::bail!(
                "frozen linear: input has {inner} features, the weight {:?} expects {k}",
                self.weight.dims()
            );
        }
        Ok((right, (1, rows, n, k)))
    }
}

impl CustomOp1 for Dense {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (storage, weight_layout) = self.weight.storage_and_layout();
        let Storage::Cpu(weight) = &*storage else {
            candle_core::bail!("frozen linear: the input is on the CPU, the weight is not");
        };
        let (right, size) = self.plan(layout, weight_layout)?;
        let y = x.matmul(weight, size, layout, &right)?;
        Ok((y, (size.1, size.2).into()))
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        let (storage, weight_layout) = self.weight.storage_and_layout();
        let Storage::Cuda(weight) = &*storage else {
            candle_core::bail!("frozen linear: the input is on CUDA, the weight is not");
        };
        let (right, size) = self.plan(layout, weight_layout)?;
        let y = x.matmul(weight, size, layout, &right)?;
        Ok((y, (size.1, size.2).into()))
    }

    fn metal_fwd(&self, x: &MetalStorage, layout: &Layout) -> CandleResult<(MetalStorage, Shape)> {
        let (storage, weight_layout) = self.weight.storage_and_layout();
        let Storage::Metal(weight) = &*storage else {
            candle_core::bail!("frozen linear: the input is on Metal, the weight is not");
        };
        let (right, size) = self.plan(layout, weight_layout)?;
        let y = x.matmul(weight, size, layout, &right)?;
        Ok((y, (size.1, size.2).into()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        if self.side == Side::Backward {
            candle_core::bail!("frozen linear: second derivatives are not supported");
        }
        let op = Self {
            weight: self.weight.clone(),
            side: Side::Backward,
        };
        grad.contiguous()?.apply_op1_no_bwd(&op).map(Some)
    }
}
