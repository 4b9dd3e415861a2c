//! Provides the conversion of stored tensor bytes to the element type a model computes in, on all cores.

use crate::Result;
use crate::element::single;
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// Elements one task reads and converts at a time; small tensors stay on the calling thread.
const CHUNK_ELEMENTS: usize = 1 << 16;

/// Stored little-endian elements, taken in pieces, so that a tensor is in memory once.
pub(super) struct Stored<'a> {
    pub dtype: Dtype,
    pub bytes: usize,
    /// Fills a buffer with the bytes from this one on.
    pub read: &'a (dyn Fn(usize, &mut [u8]) -> Result<()> + Sync),
}

/// Element types that can be read and written here.
pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}

/// Stored elements as a tensor of type `target`; `None` when either type is not a plain float.
///
/// # Shapes
/// `stored` holds exactly `shape.product()` elements.
pub(super) fn to_tensor(
    stored: &Stored<'_>,
    shape: &[usize],
    target: DType,
    device: &Device,
) -> Option<Result<Tensor>> {
    fn build<T: WithDType>(
        values: Result<Vec<T>>,
        shape: &[usize],
        device: &Device,
    ) -> Result<Tensor> {
        Ok(Tensor::from_vec(values?, shape, device)?)
    }
    Some(match target {
        DType::F32 => build(floats(stored)?, shape, device),
        DType::F64 => build(
            decode(stored, 0f64, |v| v, f64::from, f64::from, f64::from)?,
            shape,
            device,
        ),
        DType::BF16 => build(
            decode(
                stored,
                bf16::ZERO,
                bf16::from_f64,
                bf16::from_f32,
                |v| v,
                |v| bf16::from_f32(v.to_f32()),
            )?,
            shape,
            device,
        ),
        DType::F16 => build(
            decode(
                stored,
                f16::ZERO,
                f16::from_f64,
                f16::from_f32,
                |v| f16::from_f32(v.to_f32()),
                |v| v,
            )?,
            shape,
            device,
        ),
        _ => return None,
    })
}

/// Stored bytes as f32 values; `None` when `dtype` is not a plain float.
pub(crate) fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let read = |start: usize, out: &mut [u8]| {
        let piece = bytes.get(start..start + out.len());
        out.copy_from_slice(piece.unwrap_or_default());
        Ok(())
    };
    let stored = Stored {
        dtype,
        bytes: bytes.len(),
        read: &read,
    };
    floats(&stored)?.ok()
}

fn floats(stored: &Stored<'_>) -> Option<Result<Vec<f32>>> {
    decode(stored, 0f32, single, |v| v, f32::from, f32::from)
}

fn decode<T: Copy + Send + Sync>(
    stored: &Stored<'_>,
    zero: T,
    from_f64: impl Fn(f64) -> T + Sync,
    from_f32: impl Fn(f32) -> T + Sync,
    from_bf16: impl Fn(bf16) -> T + Sync,
    from_f16: impl Fn(f16) -> T + Sync,
) -> Option<Result<Vec<T>>> {
    Some(match stored.dtype {
        Dtype::F64 => map(stored, zero, |b| from_f64(f64::from_le_bytes(b))),
        Dtype::F32 => map(stored, zero, |b| from_f32(f32::from_le_bytes(b))),
        Dtype::BF16 => map(stored, zero, |b| from_bf16(bf16::from_le_bytes(b))),
        Dtype::F16 => map(stored, zero, |b| from_f16(f16::from_le_bytes(b))),
        _ => return None,
    })
}

/// Reads byte-wise: offsets in a file need not be aligned to the element.
fn map<const N: usize, T: Copy + Send + Sync>(
    stored: &Stored<'_>,
    zero: T,
    convert: impl Fn([u8; N]) -> T + Sync,
) -> Result<Vec<T>> {
    let mut values = vec![zero; stored.bytes / N];
    let chunks = values.par_chunks_mut(CHUNK_ELEMENTS).enumerate();
    chunks.try_for_each_init(Vec::new, |buffer, (index, values)| -> Result<()> {
        buffer.resize(values.len() * N, 0);
        (stored.read)(index * CHUNK_ELEMENTS * N, buffer)?;
        let (elements, _) = buffer.as_chunks::<N>();
        for (value, element) in values.iter_mut().zip(elements) {
            *value = convert(*element);
        }
        Ok(())
    })?;
    Ok(values)
}
