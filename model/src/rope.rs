//! Provides rotary position embeddings (RoPE), with angles in f32 whatever the model's dtype.
//!
//! From Su et al., "RoFormer" (2021), in the half-split form of the published Llama and Qwen2
//! weights: element i of a head turns together with element i + head_dim/2.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::{ModelConfig, Result};

/// The frequencies of one model.
#[derive(Debug, Clone)]
pub struct Rotary {
    inverse_frequencies: Vec<f32>,
}

impl Rotary {
    /// Frequencies `theta^(-2i / head_dim)`, scaled as the config says, in f64 and then rounded to f32.
    pub fn new(config: &ModelConfig) -> Self {
        let dim = config.head_dim;
        let frequency = |i| config.rope_theta.powf(-2.0 * i as f64 / dim as f64);
        let inverse_frequencies = (0..dim / 2)
            .map(|i| config.rope_scaling.scale(i, frequency(i)) as f32)
            .collect();
        Self {
            inverse_frequencies,
        }
    }

    /// With these frequencies.
    #[cfg(test)]
    pub(crate) fn of(inverse_frequencies: Vec<f32>) -> Self {
        Self {
            inverse_frequencies,
        }
    }

    /// As [`angles`](Self::angles), for documents of these lengths in one row: each starts at position 0.
    ///
    /// # Errors
    /// When the device refuses the tables.
    pub fn packed_angles(&self, lengths: &[usize], device: &Device) -> Result<Angles> {
        let positions = lengths.iter().flat_map(|length| 0..*length);
        let angles = self.at(positions, device)?;
        Ok(Angles {
            documents: Some(lengths.into()),
            ..angles
        })
    }

    /// Cosines and sines of the positions `offset..offset + len`, f32.
    ///
    /// The angle is an f32 product, as in transformers. Computed in bf16 it would be wrong from
    /// position 257 on, where bf16 no longer tells neighbouring positions apart.
    ///
    /// # Errors
    /// When the device refuses the tables.
    pub fn angles(&self, offset: usize, len: usize, device: &Device) -> Result<Angles> {
        self.at(offset..offset + len, device)
    }

    /// As [`angles`](Self::angles), for one row at each of these positions.
    pub(crate) fn at(
        &self,
        positions: impl Iterator<Item = usize>,
        device: &Device,
    ) -> Result<Angles> {
        let half = self.inverse_frequencies.len();
        let angles = positions
            .flat_map(|position| {
                let position = position as f32;
                self.inverse_frequencies.iter().map(move |f| position * f)
            })
            .collect::<Vec<f32>>();
        let positions = angles.len() / half.max(1);
        let table = |function: fn(f64) -> f64| {
            let values = angles
                .iter()
                .map(|angle| function(f64::from(*angle)) as f32);
            Tensor::from_vec(values.collect(), (positions, half), device)
        };
        Ok(Angles {
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
            positions,
            half,
            documents: None,
        })
    }
}

/// Cosines and sines for one range of positions; made once a forward pass, used by every layer. A head's elements x1 and x2, its
/// halves, become `[x1 cos - x2 sin, x2 cos + x1 sin]`; the way back turns them back.
#[derive(Debug, Clone)]
pub struct Angles {
    /// f32 [positions, half].
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
    pub(crate) positions: usize,
    /// Half of a head's elements.
    pub(crate) half: usize,
    /// Lengths of the documents of a packed row.
    documents: Option<Arc<[usize]>>,
}

impl Angles {
    /// Lengths of the documents that the row is packed from, where it is.
    pub(crate) fn documents(&self) -> Option<&Arc<[usize]>> {
        self.documents.as_ref()
    }
}
