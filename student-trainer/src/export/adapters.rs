//! Provides the update that an adapter makes to each matrix of its base.

use std::{collections::BTreeMap, path::Path};

use candle_core::{Device, Tensor};
use distill_model::{Lora, ModelConfig};

use crate::{
    Result,
    model_files::Source,
    run::{AdapterConfig, load_adapter, warn_of_unused},
};

/// The adapters of a model, by the name of the matrix that each belongs to. Small beside the model: all are in memory.
#[derive(Default)]
pub(super) struct Adapters(BTreeMap<String, Lora>);

impl Adapters {
    /// Reads the adapter in `directory` for this model.
    ///
    /// # Errors
    /// An adapter of another kind or for another model, by the name of what does not fit.
    pub fn read(directory: &Path, model: &ModelConfig) -> Result<Self> {
        let lora = AdapterConfig::read(directory)?.lora();
        warn_of_unused(directory, &lora, model)?;
        let mut adapters = BTreeMap::new();
        let mut values = Vec::new();
        for (name, shape) in model.parameter_shapes() {
            let (Some(module), [rows, columns]) = (name.strip_suffix(".weight"), &shape[..]) else {
                continue;
            };
            if module.starts_with("model.layers.") && lora.adapts(module)? {
                let adapter = Lora::new(module, *columns, *rows, &lora, &Device::Cpu)?;
                values.extend(adapter.parameters(module));
                adapters.insert(name.clone(), adapter);
            }
        }
        load_adapter(directory, &values)?;
        Ok(Self(adapters))
    }

    /// Number of matrices that change.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Each matrix that changes, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Lora)> {
        self.0.iter().map(|(name, lora)| (name.as_str(), lora))
    }

    /// scale B A, which is added to the matrix `name`; `None` for any other tensor.
    ///
    /// # Shapes
    /// [out, in], f32
    pub fn update(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(lora) = self.0.get(name) else {
            return Ok(None);
        };
        Ok(Some((lora.b.matmul(&lora.a)? * lora.scale)?))
    }

    /// The matrix `name` of `source` with its update.
    pub fn merged(&self, source: &Source, name: &str) -> Result<Tensor> {
        let weight = source.tensor(name)?;
        Ok(match self.update(name)? {
            Some(update) => (weight + update)?,
            None => weight,
        })
    }
}
