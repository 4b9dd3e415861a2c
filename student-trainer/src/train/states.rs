//! Provides the student's hidden states of one sequence, without a way back.

use candle_core::{DType, Device, Tensor};
use distill_model::Decoder;

use crate::{Result, loss::HiddenProjection, train::Example};

/// The last states `[T, d]`, and those of each pair's layer in f32, from one forward pass.
///
/// # Errors
/// A tensor error.
pub(super) fn hidden_states(
    decoder: &Decoder,
    projections: &[HiddenProjection],
    example: &Example,
) -> Result<(Tensor, Vec<Tensor>)> {
    let ids = Tensor::new(example.token_ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
    let pairs = projections.iter().map(HiddenProjection::layer);
    let numbers: Vec<usize> = pairs
        .clone()
        .filter_map(|pair| pair.student_layer)
        .collect();
    let (last, taken) = decoder.hidden_states_and_layers(&ids, &numbers)?;
    let last = last.squeeze(0)?;
    let mut taken = taken.into_iter();
    let states = pairs.map(|pair| match pair.student_layer.and_then(|_| taken.next()) {
        Some(states) => Ok(states.squeeze(0)?.to_dtype(DType::F32)?),
        None => Ok(last.to_dtype(DType::F32)?),
    });
    let states = states.collect::<Result<_>>()?;
    Ok((last, states))
}
