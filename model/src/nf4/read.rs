//! Provides the reader of 4-bit matrices in bitsandbytes checkpoints, NF4 or FP4, single or double quantised.
//!
//! For the weight W: `W` codes in bytes of any storage type, `W.absmax` (u8 codes when double quantised, else f32 scales), `W.nested_absmax` f32,
//! `W.nested_quant_map` f32[256], `W.quant_map` f32[16], `W.quant_state.bitsandbytes__nf4` or `__fp4` JSON text as u8.

use super::codebook::{DYNAMIC_ENTRIES, ENTRIES};
use super::{BLOCK_SIZES, NestedScales, Nf4Matrix, QuantType, Rounding, Scales};
use crate::element::single;
use crate::{Result, Weights, weights};
use safetensors::Dtype;
use serde::Deserialize;
use std::ops::RangeInclusive;

/// Sizes of nested blocks; bitsandbytes writes 256.
const NESTED_BLOCK_SIZES: RangeInclusive<usize> = 64..=4096;
/// Longest quantisation state accepted, in bytes; real ones have about 170.
const STATE_BYTES_MAX: usize = 1 << 16;
/// How far a checkpoint's table of values may be from the constant one. bitsandbytes ignores the stored table, so a larger
/// difference means that the checkpoint is something else.
const TABLE_TOLERANCE: f32 = 1e-6;

#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

impl Nf4Matrix {
    /// Whether the tensor `name` is stored in four bits.
    pub fn is_stored(weights: &Weights, name: &str) -> bool {
        let stored = |kind: &QuantType| weights.contains(&state_name(name, *kind));
        QuantType::ALL.iter().any(stored)
    }

    /// Whether any tensor of the checkpoint is stored in four bits: what is not then was left out on purpose.
    pub fn any_stored(weights: &Weights) -> bool {
        let endings = QuantType::ALL.map(|kind| state_name("", kind));
        let is_state = |name: &str| endings.iter().any(|ending| name.ends_with(ending));
        weights.names().any(is_state)
    }

    /// Bytes that the stored matrix `name` takes: its codes and their scales.
    ///
    /// # Errors
    /// Names the tensor that is missing.
    pub fn stored_bytes(weights: &Weights, name: &str) -> Result<u64> {
        let mut bytes = weights.raw_bytes(name)?;
        for scales in ["absmax", "nested_absmax"] {
            let scales = format!("{name}.{scales}");
            if weights.contains(&scales) {
                bytes += weights.raw_bytes(&scales)?;
            }
        }
        Ok(bytes)
    }

    /// Reads the matrix `name`, such as `model.layers.0.mlp.up_proj.weight`.
    ///
    /// # Errors
    /// Names the file and the tensor that is missing or inconsistent.
    pub fn read(weights: &Weights, name: &str) -> Result<Self> {
        let quant_type = match QuantType::ALL.map(|kind| weights.contains(&state_name(name, kind)))
        {
            [true, true] => return Err(weights.error(name, "has the states of both NF4 and FP4")),
            [false, true] => QuantType::Fp4,
            [_, false] => QuantType::Nf4,
        };
        let state_name = state_name(name, quant_type);
        let state = read_state(weights, &state_name, quant_type)?;
        let state_error = |message| weights.error(&state_name, message);
        let [rows, columns] = state.shape[..] else {
            return Err(state_error(format!("shape {:?} is no matrix", state.shape)));
        };
        let count = super::element_count(&state_name, rows, columns)?;
        if !state.blocksize.is_power_of_two() || !BLOCK_SIZES.contains(&state.blocksize) {
            return Err(state_error(format!(
                "blocksize {} is no power of two in {BLOCK_SIZES:?}",
                state.blocksize
            )));
        }
        let rounding = match state.dtype.as_str() {
            "float32" => Rounding::F32,
            "bfloat16" => Rounding::BF16,
            "float16" => Rounding::F16,
            other => {
                return Err(state_error(format!(
                    "dtype {other:?} is not one of float32, bfloat16, float16"
                )));
            }
        };
        check_table(weights, name, quant_type)?;
        // The storage type does not matter: FSDP checkpoints keep the same bytes as bf16.
        let (_, _, codes) = weights.raw(name)?;
        if codes.len() != count.div_ceil(2) {
            return Err(weights.error(
                name,
                format!(
                    "holds {} bytes of codes, a matrix {rows}x{columns} needs {}",
                    codes.len(),
                    count.div_ceil(2)
                ),
            ));
        }
        let blocks = count.div_ceil(state.blocksize);
        Ok(Self {
            quant_type,
            rows,
            columns,
            block_size: state.blocksize,
            codes,
            scales: read_scales(weights, name, &state, blocks)?,
            rounding,
            resident: super::Resident::default(),
        })
    }
}

/// The tensor that describes how `name` is quantised.
pub(super) fn state_name(name: &str, quant_type: QuantType) -> String {
    format!("{name}.quant_state.bitsandbytes__{}", quant_type.name())
}

fn read_state(weights: &Weights, state_name: &str, quant_type: QuantType) -> Result<QuantState> {
    let bytes = weights.raw_bytes(state_name)?;
    if bytes > STATE_BYTES_MAX as u64 {
        let message = format!("{bytes} bytes exceed the limit of {STATE_BYTES_MAX}");
        return Err(weights.error(state_name, message));
    }
    let (_, _, json) = weights.raw(state_name)?;
    let state: QuantState =
        serde_json::from_slice(&json).map_err(|e| weights.error(state_name, e.to_string()))?;
    if state.quant_type != quant_type.name() {
        let message = format!(
            "quant_type {:?} is not {}",
            state.quant_type,
            quant_type.name()
        );
        return Err(weights.error(state_name, message));
    }
    Ok(state)
}

fn check_table(weights: &Weights, name: &str, quant_type: QuantType) -> Result<()> {
    let table_name = format!("{name}.quant_map");
    let table = floats(weights, &table_name, ENTRIES)?;
    let differs = |(stored, constant): (&f32, &f32)| (stored - constant).abs() > TABLE_TOLERANCE;
    if table.iter().zip(quant_type.table()).any(differs) {
        let message = format!("is not the table of {}", quant_type.name());
        return Err(weights.error(&table_name, message));
    }
    Ok(())
}

fn read_scales(weights: &Weights, name: &str, state: &QuantState, blocks: usize) -> Result<Scales> {
    let absmax_name = format!("{name}.absmax");
    let (Some(block_size), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
        return floats(weights, &absmax_name, blocks).map(Scales::Plain);
    };
    let offset = single(offset);
    if !NESTED_BLOCK_SIZES.contains(&block_size) || !offset.is_finite() {
        let message = format!(
            "nested_blocksize {block_size} is outside {NESTED_BLOCK_SIZES:?} or nested_offset {offset} is not finite"
        );
        return Err(weights.error(&absmax_name, message));
    }
    let (dtype, _, codes) = weights.raw(&absmax_name)?;
    if dtype != Dtype::U8 || codes.len() != blocks {
        let message = format!("expected {blocks} u8 codes, got {} of {dtype}", codes.len());
        return Err(weights.error(&absmax_name, message));
    }
    let map_name = format!("{name}.nested_quant_map");
    let map = floats(weights, &map_name, DYNAMIC_ENTRIES)?;
    Ok(Scales::Nested(Box::new(NestedScales {
        codes,
        map: map
            .try_into()
            .map_err(|_| weights.error(&map_name, "has another length than 256"))?,
        absmax: floats(
            weights,
            &format!("{name}.nested_absmax"),
            blocks.div_ceil(block_size),
        )?,
        block_size,
        offset,
    })))
}

/// Exactly `count` finite floats.
fn floats(weights: &Weights, name: &str, count: usize) -> Result<Vec<f32>> {
    let (dtype, _, bytes) = weights.raw(name)?;
    let values = weights::to_f32(dtype, &bytes)
        .ok_or_else(|| weights.error(name, format!("{dtype} is not a float type")))?;
    if values.len() != count {
        let message = format!("expected {count} values, got {}", values.len());
        return Err(weights.error(name, message));
    }
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        let message = format!("value {index} is {}, not a finite number", values[index]);
        return Err(weights.error(name, message));
    }
    Ok(values)
}
