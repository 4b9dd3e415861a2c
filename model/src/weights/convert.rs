//! Provides the conversion of stored tensor bytes to the element type a model computes in, on all cores.

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// Elements one task converts at a time; small tensors stay on the calling thread.
const CHUNK_ELEMENTS: usize = 1 << 16;

/// Element types that can be read and written here.
pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}

/// Stored bytes as a tensor of type `target`; `None` when either type is not a plain float.
///
/// # Shapes
/// `bytes` holds exactly `shape.product()` little-endian elements of type `source`.
pub(super) fn to_tensor(
    source: Dtype,
    bytes: &[u8],
    shape: &[usize],
    target: DType,
    device: &Device,
) -> Option<candle_core::Result<Tensor>> {
    fn build<T: WithDType>(
        values: Vec<T>,
        shape: &[usize],
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        Tensor::from_vec(values, shape, device)
    }
    Some(match target {
        DType::F32 => build(to_f32(source, bytes)?, shape, device),
        DType::F64 => build(
            decode(source, bytes, 0f64, |v| v, f64::from, f64::from, f64::from)?,
            shape,
            device,
        ),
        DType::BF16 => build(
            decode(
                source,
                bytes,
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
                source,
                bytes,
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

/// Stored bytes as f32 values; `None` when `source` is not a plain float.
pub(crate) fn to_f32(source: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    decode(
        source,
        bytes,
        0f32,
        |v| v as f32,
        |v| v,
        f32::from,
        f32::from,
    )
}

fn decode<T: Copy + Send + Sync>(
    source: Dtype,
    bytes: &[u8],
    zero: T,
    from_f64: impl Fn(f64) -> T + Sync,
    from_f32: impl Fn(f32) -> T + Sync,
    from_bf16: impl Fn(bf16) -> T + Sync,
    from_f16: impl Fn(f16) -> T + Sync,
) -> Option<Vec<T>> {
    Some(match source {
        Dtype::F64 => map(bytes, zero, |b| from_f64(f64::from_le_bytes(b))),
        Dtype::F32 => map(bytes, zero, |b| from_f32(f32::from_le_bytes(b))),
        Dtype::BF16 => map(bytes, zero, |b| from_bf16(bf16::from_le_bytes(b))),
        Dtype::F16 => map(bytes, zero, |b| from_f16(f16::from_le_bytes(b))),
        _ => return None,
    })
}

/// Reads byte-wise: offsets in a file need not be aligned to the element.
fn map<const N: usize, T: Copy + Send + Sync>(
    bytes: &[u8],
    zero: T,
    convert: impl Fn([u8; N]) -> T + Sync,
) -> Vec<T> {
    let (elements, _) = bytes.as_chunks::<N>();
    let mut values = vec![zero; elements.len()];
    values
        .par_chunks_mut(CHUNK_ELEMENTS)
        .zip(elements.par_chunks(CHUNK_ELEMENTS))
        .for_each(|(values, elements)| {
            for (value, element) in values.iter_mut().zip(elements) {
                *value = convert(*element);
            }
        });
    values
}
