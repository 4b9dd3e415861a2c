//! Provides a checkpoint's tensors to the models of candle-transformers, with the errors of this project's own reader.

use std::sync::OnceLock;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use distill_model::{Base, Error, LoadOptions, Result, Weights, load_parameter};

/// The embedding's name in every family of Hugging Face's.
const EMBEDDING: &str = "model.embed_tokens.weight";

/// The tensors of `weights` by their names.
struct Checkpoint<'a> {
    weights: &'a Weights,
    /// The embedding, where it is in memory already.
    embedding: Option<Tensor>,
    /// What went wrong first: candle's errors carry no more than its text.
    failure: &'a OnceLock<Error>,
}

/// Builds a model from `weights`; `embedding` is used where it is the head, so that both are in memory once.
///
/// # Errors
/// A tensor that is missing or has another shape than the model asks for; what `build` says.
pub(super) fn build<M>(
    weights: &Weights,
    embedding: Option<Tensor>,
    options: &LoadOptions,
    build: impl FnOnce(VarBuilder<'_>) -> candle_core::Result<M>,
) -> Result<M> {
    let failure = OnceLock::new();
    let checkpoint = Checkpoint {
        weights,
        embedding,
        failure: &failure,
    };
    let device = options.device.clone();
    let built = build(VarBuilder::from_backend(
        Box::new(checkpoint),
        options.dtype,
        device,
    ));
    built.map_err(|error| failure.into_inner().unwrap_or(Error::Candle(error)))
}

impl Checkpoint<'_> {
    fn read(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        if let (EMBEDDING, Some(embedding)) = (name, &self.embedding) {
            return Ok(embedding.clone());
        }
        let options = LoadOptions {
            dtype,
            device: device.clone(),
            base: Base::AsStored,
            lora: None,
        };
        let parameter = load_parameter(self.weights, name, shape, &options)?;
        Ok(parameter.tensor().clone())
    }

    /// Keeps the error, and gives candle its text.
    fn kept<T>(&self, result: Result<T>) -> candle_core::Result<T> {
        result.map_err(|error| {
            let text = error.to_string();
            // The first one is the cause; a later one follows from it.
            let _ = self.failure.set(error);
            candle_core::Error::Msg(text)
        })
    }
}

impl SimpleBackend for Checkpoint<'_> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.kept(self.read(name, shape.dims(), dtype, device))
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let stored = self.weights.shape(name);
        self.kept(stored.and_then(|shape| self.read(name, shape, dtype, device)))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.weights.contains(name)
    }
}
