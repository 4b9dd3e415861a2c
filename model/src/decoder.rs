//! Provides the decoder: token ids in, hidden states of all positions out.

use candle_core::{DType, Device, Tensor, Var};

use crate::checkpoint::{Checkpointing, Tape};
use crate::layer::{DecoderLayer, Pass};
use crate::norm::RmsNorm;
use crate::ops::{Ops, Span, with_ops};
use crate::rope::{Angles, Rotary};
use crate::weights::{EMBEDDING, HEAD};
use crate::{Error, Linear, LoadOptions, ModelConfig, Result, TokenMatrix, Weights};

/// A causal language model up to its hidden states, with the head's matrix beside it.
///
/// Logits are `hidden head^T`; they are left to the caller, who forms them for a few rows at a time
/// or not at all.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    embedding: TokenMatrix,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    /// `None` when the head is the embedding, and in the same place.
    head: Option<TokenMatrix>,
    rotary: Rotary,
    dtype: DType,
    device: Device,
}

impl Decoder {
    /// Reads the weights under the names that Hugging Face checkpoints use.
    ///
    /// # Errors
    /// When `config` is of a family outside this shape, an option is invalid, a tensor is missing or has another shape than
    /// `config` says, or a card refuses the kernels.
    pub fn load(config: &ModelConfig, weights: &Weights, options: &LoadOptions) -> Result<Self> {
        options.validate()?;
        let config = weights.settled(config);
        if config.model_type.is_outside() {
            return Err(Error::Unsupported {
                what: format!("{} in this decoder", config.model_type.name()),
                remedy: "serve it with teacher-server; take another family for a student".into(),
            });
        }
        if let Device::Cuda(card) = &options.device {
            distill_kernels::device::compile_all(card)?;
        }
        let rows = [config.vocab_size, config.hidden_size];
        let matrix = |name, device| TokenMatrix::load(weights, name, &rows, options, device);
        let head_name = weights.head_name(&config)?;
        let tied = head_name == EMBEDDING;
        let own_head = (!tied).then(|| matrix(head_name, &options.device));
        let own_head = own_head.transpose()?;
        // Rows of a packed embedding are dequantised in host memory, few as they are; a head is needed where the states are.
        let embedding = matrix(EMBEDDING, &Device::Cpu)?;
        let apart = matches!(embedding, TokenMatrix::Packed(_)) && !options.device.is_cpu();
        let head = if tied && apart {
            Some(matrix(EMBEDDING, &options.device)?)
        } else {
            own_head
        };
        let layers = (0..config.num_hidden_layers)
            .map(|layer| DecoderLayer::load(&config, weights, layer, options))
            .collect::<Result<Vec<_>>>()?;
        let (hidden, eps) = (config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            embedding,
            norm: RmsNorm::load(weights, "model.norm", hidden, eps, options)?,
            head,
            rotary: Rotary::new(&config),
            layers,
            dtype: options.dtype,
            device: options.device.clone(),
            config,
        })
    }

    /// The head alone: what [`head_matrix`](Self::head_matrix) gives of a decoder that is loaded with the same options.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_head(
        config: &ModelConfig,
        weights: &Weights,
        options: &LoadOptions,
    ) -> Result<TokenMatrix> {
        let name = weights.head_name(config)?;
        let rows = [config.vocab_size, config.hidden_size];
        TokenMatrix::load(weights, name, &rows, options, &options.device)
    }

    /// The shape of this decoder.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The type of the hidden states.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The rows of the head: the embedding when tied. In the model's dtype, or f32 when trained.
    ///
    /// # Shapes
    /// [vocab_size, d]
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it is packed; [`head_matrix`](Self::head_matrix) gives its rows.
    pub fn head(&self) -> Result<&Tensor> {
        self.head_matrix().tensor()
    }

    /// As [`head`](Self::head), however it is stored.
    pub fn head_matrix(&self) -> &TokenMatrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Memory taken by the weights, adapters aside, in bytes; a head that is the embedding counts once.
    pub fn weight_bytes(&self) -> usize {
        let linears = self.layers.iter().flat_map(DecoderLayer::linears);
        let norms = self.layers.iter().flat_map(DecoderLayer::all_norms);
        let norms = norms.chain([&self.norm]).map(RmsNorm::bytes);
        let head = self.head.as_ref().map_or(0, TokenMatrix::bytes);
        linears.map(Linear::bytes).sum::<usize>()
            + norms.sum::<usize>()
            + self.embedding.bytes()
            + head
    }

    /// The name under which [`head`](Self::head) is trained: what a loss that computes the head's
    /// gradient itself must add it to.
    pub fn head_name(&self) -> &'static str {
        if self.config.tie_word_embeddings {
            EMBEDDING
        } else {
            HEAD
        }
    }

    /// Hidden states of all positions after the final norm; no graph is kept.
    ///
    /// The residual stream is f32 whatever the model's type: Qwen2.5's grows to thousands at a few positions, where bf16
    /// steps by 16, and everything that looks back at them inherits the error.
    ///
    /// Right padding is exact: a position never sees what comes after it, so pad shorter sequences at
    /// the end with any id and ignore those rows.
    ///
    /// # Shapes
    /// ids [B, T] u32, best in host memory, where they are checked -> [B, T, d]
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or T is zero or longer than the model's positions.
    pub fn hidden_states(&self, ids: &Tensor) -> Result<Tensor> {
        self.layer_by_layer(ids, |_, _| Ok(()))
    }

    /// As [`hidden_states`](Self::hidden_states), and the residual stream after some decoder layers, 0 for the embeddings,
    /// from the same forward pass. Of each of `layers` in its order.
    ///
    /// # Shapes
    /// ids [B, T] u32 -> ([B, T, d] in the model's type, [B, T, d] f32 a layer)
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states), and when there is no such layer.
    pub fn hidden_states_and_layers(
        &self,
        ids: &Tensor,
        layers: &[usize],
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let count = self.layers.len();
        if let Some(absent) = layers.iter().find(|&&layer| layer > count) {
            return Err(Error::Input(format!(
                "layer {absent} was asked for, but this model's layers are 1 to {count}"
            )));
        }
        let mut tapped: Vec<(usize, Tensor)> = Vec::new();
        let hidden = self.layer_by_layer(ids, |number, x| {
            if layers.contains(&number) {
                tapped.push((number, x()?));
            }
            Ok(())
        })?;
        let of_layer = |layer: &usize| {
            let found = tapped.iter().find(|(number, _)| number == layer);
            found.map(|(_, x)| x.clone())
        };
        Ok((hidden, layers.iter().filter_map(of_layer).collect()))
    }

    /// Hidden states after the final norm; `seen` gets the number of every layer, from 1, and the residual stream after it,
    /// and first 0 with the embeddings.
    fn layer_by_layer(
        &self,
        ids: &Tensor,
        mut seen: impl FnMut(usize, &dyn Fn() -> Result<Tensor>) -> Result<()>,
    ) -> Result<Tensor> {
        let angles = self.angles(ids, 0)?;
        let spans = spans_of(&angles, ids)?;
        with_ops!(self, ops => {
            let (mut x, dims) = self.embed_for(&mut ops, ids)?;
            let mut pass = Pass { ops, angles: &angles, spans: &spans };
            seen(0, &|| pass.ops.tensor(&x, &dims))?;
            for (index, layer) in self.layers.iter().enumerate() {
                let out = layer.forward(&mut pass, &x, None)?;
                pass.ops.recycle([std::mem::replace(&mut x, out)]);
                seen(index + 1, &|| pass.ops.tensor(&x, &dims))?;
            }
            self.finish(&mut pass.ops, &x, &dims)
        })
    }

    /// Hidden states that can be differentiated layer by layer, keeping only each layer's input.
    ///
    /// # Shapes
    /// ids [B, T] u32; [`Tape::hidden`] is [B, T, d]
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states).
    pub fn checkpointed(&self, ids: &Tensor) -> Result<Tape<'_>> {
        self.tape(ids, Checkpointing::Every(1))
    }

    /// As [`checkpointed`](Self::checkpointed), with the choice of what is kept.
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states).
    pub fn tape(&self, ids: &Tensor, checkpointing: Checkpointing) -> Result<Tape<'_>> {
        Tape::record(self, ids, self.angles(ids, 0)?, checkpointing)
    }

    /// As [`tape`](Self::tape), for documents packed into one row: each starts at position 0 and sees itself alone, so that
    /// hidden states and gradients are those of the documents one by one, without padding.
    ///
    /// # Shapes
    /// ids [1, N] u32, where N is the sum of `lengths`; [`Tape::hidden`] is [1, N, d]
    ///
    /// # Errors
    /// When an id is outside the vocabulary, or a length is zero, longer than the model's positions, or they don't add up.
    pub fn packed_tape(
        &self,
        ids: &Tensor,
        lengths: &[usize],
        checkpointing: Checkpointing,
    ) -> Result<Tape<'_>> {
        let angles = self.packed_angles(ids, lengths)?;
        Tape::record(self, ids, angles, checkpointing)
    }

    /// Everything that is trained, sorted by name.
    pub fn parameters(&self) -> Vec<(String, Var)> {
        let named = |name: &str, matrix: &TokenMatrix| {
            let var = matrix.var()?;
            Some((name.to_owned(), var.clone()))
        };
        let head = self.head.as_ref();
        let head = head.and_then(|head| named(self.head_name(), head));
        let mut parameters: Vec<_> = self
            .layers
            .iter()
            .flat_map(DecoderLayer::parameters)
            .chain(named(EMBEDDING, &self.embedding))
            .chain(self.norm.parameters())
            .chain(head)
            .collect();
        parameters.sort_by(|(a, _), (b, _)| a.cmp(b));
        parameters
    }

    pub(crate) fn layers(&self) -> &[DecoderLayer] {
        &self.layers
    }

    pub(crate) fn norm(&self) -> &RmsNorm {
        &self.norm
    }

    /// The embedding's variable, where it is trained.
    pub(crate) fn trained_embedding(&self) -> Option<(&'static str, &Var)> {
        self.embedding.var().map(|var| (EMBEDDING, var))
    }

    /// Looks ids up, wherever they are: [B, T] to the start of the residual stream, and its dimensions [B, T, d].
    pub(crate) fn embed_for<O: Ops>(
        &self,
        ops: &mut O,
        ids: &Tensor,
    ) -> Result<(O::Array, [usize; 3])> {
        let (batch, len) = ids.dims2()?;
        let rows = self.embedding_rows(&ids.flatten_all()?)?.detach();
        Ok((ops.array(&rows)?, [batch, len, self.config.hidden_size]))
    }

    /// The embedding's rows of ids, wherever those are: [n] to f32 [n, d] on this device.
    pub(crate) fn embedding_rows(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.embedding.lookup(ids)?.to_device(&self.device)?)
    }

    /// The final norm of the residual stream, rounded to the model's type: [B, T, d].
    pub(crate) fn finish<O: Ops>(
        &self,
        ops: &mut O,
        x: &O::Array,
        dims: &[usize; 3],
    ) -> Result<Tensor> {
        let normed = ops.rms_norm(&self.norm, x)?;
        Ok(ops.tensor(&normed, dims)?.to_dtype(self.dtype)?)
    }

    /// Checks `ids` and returns the rotary angles of the positions they take, from `offset` on.
    pub(crate) fn angles(&self, ids: &Tensor, offset: usize) -> Result<Angles> {
        let len = self.config.check_tokens(ids, offset)?;
        self.rotary.angles(offset, len, &self.device)
    }

    /// As [`angles`](Self::angles), for documents of these lengths in one row.
    pub(crate) fn packed_angles(&self, ids: &Tensor, lengths: &[usize]) -> Result<Angles> {
        let (batch, len) = ids.dims2()?;
        let max = self.config.max_position_embeddings;
        let packed = lengths
            .iter()
            .fold(0usize, |sum, length| sum.saturating_add(*length));
        let fits = lengths.iter().all(|length| (1..=max).contains(length));
        if batch != 1 || len != packed || len == 0 || !fits {
            return Err(Error::Input(format!(
                "documents of {lengths:?} tokens packed into {batch} rows of {len}: there must be one row, as long as all \
                 documents, each of 1 to {max} tokens (max_position_embeddings)"
            )));
        }
        self.config.check_ids(ids)?;
        self.rotary.packed_angles(lengths, &self.device)
    }

    /// As [`angles`](Self::angles), for rows at these positions.
    pub(crate) fn angles_at(&self, positions: impl Iterator<Item = usize>) -> Result<Angles> {
        self.rotary.at(positions, &self.device)
    }
}

/// Which rows of the positions of `ids` [B, T] attend to each other.
pub(crate) fn spans_of(angles: &Angles, ids: &Tensor) -> Result<Vec<Span>> {
    let (batch, len) = ids.dims2()?;
    Ok(match angles.documents() {
        Some(lengths) => Span::documents(lengths),
        None => Span::batch(batch, len, len),
    })
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
