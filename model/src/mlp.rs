//! Provides the gated MLP of Shazeer, "GLU Variants Improve Transformer" (2020):
//! `down(silu(gate(x)) * up(x))`.

use crate::layer::{load_projection, load_stacked};
use crate::{Linear, LoadOptions, ModelConfig, Result, Weights};

/// The gated MLP of one layer.
#[derive(Debug)]
pub struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    /// Reads the projections below `prefix`, such as `model.layers.0.mlp`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        config: &ModelConfig,
        weights: &Weights,
        prefix: &str,
        options: &LoadOptions,
    ) -> Result<Self> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let load = |name: &str, inputs, outputs| {
            let prefix = format!("{prefix}.{name}");
            load_projection(
                weights,
                &prefix,
                (inputs, outputs),
                config.mlp_bias,
                options,
            )
        };
        let [gate_proj, up_proj] = match config.model_type.stacks_projections() {
            true => {
                let parts = [("gate_proj", intermediate), ("up_proj", intermediate)];
                load_stacked(weights, (prefix, "gate_up_proj"), hidden, parts, options)?
            }
            false => [
                load("gate_proj", hidden, intermediate)?,
                load("up_proj", hidden, intermediate)?,
            ],
        };
        Ok(Self {
            gate_proj,
            up_proj,
            down_proj: load("down_proj", intermediate, hidden)?,
        })
    }

    /// The projection back to the stream.
    pub(crate) fn down(&self) -> &Linear {
        &self.down_proj
    }

    pub(crate) fn linears(&self) -> [&Linear; 3] {
        [&self.gate_proj, &self.up_proj, &self.down_proj]
    }
}
