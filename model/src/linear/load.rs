//! Provides the choice of a linear layer's weight: as the checkpoint stores it, quantised while loading, or trainable.

use super::Weight;
use crate::{Base, Error, LoadOptions, Nf4Matrix, Result, Rounding, Weights, weights};
use candle_core::{DType, Device, Tensor, Var};
use safetensors::Dtype;
use std::sync::Arc;

/// Reads the matrix `name` as `options.base` wants it.
pub(super) fn weight(weights: &Weights, name: &str, options: &LoadOptions) -> Result<Weight> {
    if Nf4Matrix::is_stored(weights, name) {
        if options.base == Base::Trainable {
            return Err(Error::Unsupported {
                what: format!("full-parameter training of `{name}`, which is stored in four bits,"),
                remedy: "a 4-bit matrix cannot be trained; train LoRA adapters, or start from the unquantised model"
                    .into(),
            });
        }
        return placed(Nf4Matrix::read(weights, name)?, options);
    }
    if options.base == Base::AsStored
        && let Some(matrix) = weights.packed(name, &options.device)?
    {
        return Ok(Weight::Packed(matrix));
    }
    refuse_other_quantization(weights, name)?;
    let shape = weights.shape(name)?;
    let [rows, columns] = *shape else {
        return Err(weights.error(
            name,
            format!("has shape {shape:?}, a linear layer's weight is [out, in]"),
        ));
    };
    match options.base {
        Base::Trainable => {
            let value = weights.tensor(name, DType::F32, &options.device)?;
            Ok(Weight::Trainable(Var::from_tensor(&value)?))
        }
        // In a checkpoint that is quantised already, a dense matrix is one that someone decided to skip.
        Base::QuantizeNf4 if !Nf4Matrix::any_stored(weights) => {
            placed(quantize(weights, name, rows, columns)?, options)
        }
        Base::AsStored | Base::QuantizeNf4 => {
            let value = weights.tensor(name, options.dtype, &options.device)?;
            Ok(Weight::Dense(value))
        }
    }
}

/// A 4-bit weight, in the card's memory too where the model is on a card.
fn placed(matrix: Nf4Matrix, options: &LoadOptions) -> Result<Weight> {
    matrix.place(&options.device)?;
    Ok(Weight::Nf4(Arc::new(matrix)))
}

/// The tensor `name` in f32, dequantised where it is stored in four bits.
///
/// # Errors
/// Names the tensor and the file, or the quantisation that is not read here.
pub fn dequantized(weights: &Weights, name: &str) -> Result<Tensor> {
    if Nf4Matrix::is_stored(weights, name) {
        return Nf4Matrix::read(weights, name)?.dequantize(DType::F32, &Device::Cpu);
    }
    refuse_other_quantization(weights, name)?;
    weights.tensor(name, DType::F32, &Device::Cpu)
}

/// Double-quantised NF4 of a stored matrix, what bitsandbytes makes of it with `bnb_4bit_use_double_quant`.
fn quantize(weights: &Weights, name: &str, rows: usize, columns: usize) -> Result<Nf4Matrix> {
    let (dtype, _, bytes) = weights.raw(name)?;
    let rounding = match dtype {
        Dtype::F32 => Rounding::F32,
        Dtype::BF16 => Rounding::BF16,
        Dtype::F16 => Rounding::F16,
        _ => {
            return Err(weights.error(
                name,
                format!("{dtype} cannot be quantised to NF4; use f32, bf16 or f16 weights"),
            ));
        }
    };
    let values = weights::to_f32(dtype, &bytes).unwrap_or_default();
    Nf4Matrix::quantize(&values, rows, columns, true, rounding)
        .map_err(|e| weights.error(name, e.to_string()))
}

/// Names the quantisation formats that leave other tensors beside the weight, instead of reading their codes as values.
fn refuse_other_quantization(weights: &Weights, name: &str) -> Result<()> {
    let prefix = name.strip_suffix(".weight").unwrap_or(name);
    let formats = [
        (format!("{prefix}.SCB"), "bitsandbytes LLM.int8()"),
        (format!("{prefix}.qweight"), "GPTQ or AWQ"),
    ];
    for (tensor, format) in formats {
        if weights.contains(&tensor) {
            return Err(Error::Unsupported {
                what: format!(
                    "{format} (tensor `{tensor}` in {})",
                    weights.path().display()
                ),
                remedy: "use the unquantised model, or a bitsandbytes 4-bit checkpoint".into(),
            });
        }
    }
    Ok(())
}
