/*! Provides the product with a head, whose logits and whose way back are f32 whatever type the head is in: bf16 would round logits
to steps of up to 1/8.

A card multiplies two 16-bit matrices into f32. The CPU widens a 16-bit head, some rows at a time.
*/

use candle_core::{DType, Device, Result, Tensor, bail};
use distill_kernels::{Matrix, device};

/// Rows of a 16-bit head that the CPU widens at one time.
pub const HEAD_TILE_ROWS: usize = 8_192;

/// `h W^T` in f32.
///
/// # Shapes
/// `states`: h `[c, d]`, contiguous, `head`: W `[V, d]` -> `[c, stride]`, contiguous; only a card makes rows longer than V, and what
/// is in them from there on means nothing.
///
/// # Errors
/// A tensor error.
pub fn head_rows(states: &Tensor, head: &Tensor) -> Result<Tensor> {
    if head.dtype() == DType::F32 {
        return states.to_dtype(DType::F32)?.matmul(&head.t()?);
    }
    if head.device().is_cuda() {
        let states = states.to_dtype(head.dtype())?.contiguous()?;
        return device::product_f32(&states, &head.contiguous()?);
    }
    let states = states.to_dtype(DType::F32)?;
    let parts = head_tiles(head).map(|(_, tile)| states.matmul(&tile?.t()?));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    Tensor::cat(&parts, 1)?.contiguous()
}

/// `D W`, `[c, d]` in f32: the way back of [`head_rows`] to its states.
///
/// # Shapes
/// `gradient`: D `[c, V]`, or wider, in the [type](head_gradient_dtype) that it is multiplied in; `head`: W `[V, d]`.
///
/// # Errors
/// A tensor error; a head without rows.
pub fn head_rows_backward(gradient: &Tensor, head: &Tensor) -> Result<Tensor> {
    let vocab = head.dim(0)?;
    if head_gradient_dtype(head) == DType::BF16 {
        let gradient = gradient.to_dtype(DType::BF16)?;
        let left = Matrix::of(&gradient)?.columns(0, vocab)?;
        return device::product_of(left, Matrix::of(head)?);
    }
    let gradient = &gradient.narrow(1, 0, vocab)?.contiguous()?;
    if head.dtype() == DType::F32 {
        return gradient.matmul(head);
    }
    let mut total: Option<Tensor> = None;
    for (start, tile) in head_tiles(head) {
        let tile = tile?;
        let part = gradient.narrow(1, start, tile.dim(0)?)?.contiguous()?;
        let part = part.matmul(&tile)?;
        total = Some(match total {
            Some(total) => (total + part)?,
            None => part,
        });
    }
    match total {
        Some(total) => Ok(total),
        None => bail!("a head without rows"),
    }
}

/// The type that dL/dZ is multiplied in: the head's on a card, unless what is small vanishes in it.
pub fn head_gradient_dtype(head: &Tensor) -> DType {
    match (head.dtype(), head.device()) {
        (DType::BF16, Device::Cuda(_)) => DType::BF16,
        _ => DType::F32,
    }
}

/// A head in f32, some rows at a time, each part with the number of its first row.
pub fn head_tiles(head: &Tensor) -> impl Iterator<Item = (usize, Result<Tensor>)> {
    let rows = head.dims().first().copied().unwrap_or_default();
    let tile = move |start| {
        let length = HEAD_TILE_ROWS.min(rows - start);
        head.narrow(0, start, length)?.to_dtype(DType::F32)
    };
    let starts = (0..rows).step_by(HEAD_TILE_ROWS);
    starts.map(move |start| (start, tile(start)))
}
