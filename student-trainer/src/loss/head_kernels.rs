//! Provides the device's share in a chunk of the fused head's rows on a card: two kernels, which read the logits twice.

use candle_core::{DType, Device, Tensor};
use distill_kernels::{Compute, device, head::HeadRows, head::TAIL_NUMBERS};

use super::device_rows::{ChunkRows, Places};
use super::error::Result;

/// Whether the kernels take these logits, [c, V or more].
pub(crate) fn fits(z: &Tensor) -> bool {
    let sizes = |(rows, stride): (usize, usize)| HeadRows {
        rows,
        vocab: stride,
        stride,
        width: 0,
        rate: 1.0,
    };
    matches!(z.device(), Device::Cuda(_)) && z.dims2().is_ok_and(|z| sizes(z).fits())
}

/// Logits on a card, with what was seen of them.
pub(crate) struct KernelRows {
    z: Tensor,
    sizes: HeadRows,
    seen: Tensor,
    /// The type of the gradient.
    dtype: DType,
    compute: Compute,
}

impl KernelRows {
    /// Of logits [c, V or more], of which the first `vocab` count; their gradient is to be of type `dtype`.
    pub(crate) fn on_card(z: Tensor, vocab: usize, dtype: DType, places: &Places) -> Result<Self> {
        Self::new(z, vocab, dtype, places, device::COMPUTE)
    }

    pub(crate) fn new(
        z: Tensor,
        vocab: usize,
        dtype: DType,
        places: &Places,
        compute: Compute,
    ) -> Result<Self> {
        let (rows, stride) = z.dims2()?;
        let sizes = HeadRows {
            rows,
            vocab,
            stride,
            width: places.width(),
            rate: (1.0 / places.temperature) as f32,
        };
        let width = places.width() + 1 + TAIL_NUMBERS;
        let made = compute(
            &[&z, &places.all],
            &[(DType::F32, rows * width)],
            &|x, out| Ok(vec![sizes.parts(x[0], x[1], out[0])?]),
        )?;
        Ok(Self {
            seen: made[0].reshape((rows, width))?,
            z,
            sizes,
            dtype,
            compute,
        })
    }
}

impl ChunkRows for KernelRows {
    fn seen(&self) -> &Tensor {
        &self.seen
    }

    fn gradient(self, places: &Places, factors: &Tensor) -> Result<Tensor> {
        let made = (self.compute)(
            &[&self.z, &places.all, &self.seen, factors],
            &[(self.dtype, self.z.elem_count())],
            &|x, out| {
                Ok(vec![self.sizes.gradient(
                    (x[0], x[1], x[2]),
                    x[3],
                    out[0],
                )?])
            },
        )?;
        Ok(made[0].reshape(self.z.shape())?)
    }
}
