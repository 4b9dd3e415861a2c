//! Provides random weights to start from: normal, small, and smaller where a layer writes into the residual stream.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};
use distill_model::ModelConfig;
use rand::{SeedableRng, rngs::StdRng};

use super::save::write_tensors;
use crate::{Result, random::normal};

/// Standard deviation of every matrix, as transformers' `initializer_range`.
const DEVIATION: f64 = 0.02;

/// Writes `model.safetensors` of a random model of this shape into `directory`, f32. The same seed gives the same weights.
///
/// Matrices are normal with deviation 0.02; `o_proj` and `down_proj` with `0.02 / sqrt(2 layers)` (Radford et al., "Language
/// Models are Unsupervised Multitask Learners", 2019). Norms are one, biases zero.
///
/// # Errors
/// The file system refuses.
pub fn write_random_model(directory: &Path, config: &ModelConfig, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let residual = DEVIATION / (2.0 * config.num_hidden_layers as f64).sqrt();
    let mut tensors = HashMap::new();
    for (name, shape) in config.parameter_shapes() {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = match shape.len() {
            1 if name.ends_with("norm.weight") => vec![1.0; count],
            1 => vec![0.0; count],
            _ => {
                let into_residual = name.contains("o_proj") || name.contains("down_proj");
                let deviation = if into_residual { residual } else { DEVIATION };
                (0..count)
                    .map(|_| (normal(&mut random) * deviation) as f32)
                    .collect()
            }
        };
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
        tensors.insert(name, tensor);
    }
    write_tensors(directory, tensors, DType::F32)
}
