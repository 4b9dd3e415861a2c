//! Provides the keys and values of positions already seen, for continuing sequences of unlike length token by token.

use candle_core::{DType, Device, Tensor};

use crate::device_memory::check_fits;
use crate::layer::Pass;
use crate::ops::{Ops, Span, with_ops};
use crate::{Decoder, Error, Result};

/// Keys and values of one layer, [slots positions, KV head_dim] each; keys already turned by their positions. What a slot holds
/// lies together, from the slot's first row on.
#[derive(Debug)]
pub(crate) struct LayerCache {
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

impl LayerCache {
    fn new(rows: usize, width: usize, dtype: DType, device: &Device) -> Result<Self> {
        let zeros = || Tensor::zeros((rows, width), dtype, device);
        Ok(Self {
            k: zeros()?,
            v: zeros()?,
        })
    }

    /// Puts new rows where they belong: those of a span are the last of its keys.
    ///
    /// # Shapes
    /// k and v [N, KV head_dim], the spans' queries one after another
    pub(crate) fn write(&self, spans: &[Span], k: &Tensor, v: &Tensor) -> Result<()> {
        for span in spans {
            let first = span.first_key + span.keys - span.queries;
            for (kept, new) in [(&self.k, k), (&self.v, v)] {
                let new = new.narrow(0, span.first_query, span.queries)?;
                kept.slice_set(&new, 0, first)?;
            }
        }
        Ok(())
    }
}

/// The caches of all layers, for some sequences at a time: each has a slot, and room for as many positions as every other. Made
/// once by [`Decoder::new_cache`].
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    /// Positions that each slot holds.
    held: Vec<usize>,
    /// Positions that a slot has room for.
    positions: usize,
}

impl KvCache {
    /// Slots.
    pub fn slots(&self) -> usize {
        self.held.len()
    }

    /// Positions that a slot has room for.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Positions held in a slot, which is where its next token goes.
    pub fn held(&self, slot: usize) -> usize {
        self.held.get(slot).copied().unwrap_or_default()
    }

    /// Forgets what a slot holds from `positions` on.
    pub fn truncate(&mut self, slot: usize, positions: usize) {
        if let Some(held) = self.held.get_mut(slot) {
            *held = positions.min(*held);
        }
    }

    /// Where the rows of `pieces` lie, and what they see.
    fn spans(&self, pieces: &[Piece<'_>]) -> Result<Vec<Span>> {
        let rising = pieces.windows(2).all(|pair| pair[0].slot < pair[1].slot);
        if !rising || pieces.is_empty() {
            return Err(Error::Input(
                "pieces to extend a key-value cache with must be some, in the order of their slots"
                    .into(),
            ));
        }
        let mut first_query = 0;
        let spans = pieces.iter().map(|piece| {
            let Some(held) = self.held.get(piece.slot) else {
                let (slot, slots) = (piece.slot, self.slots());
                return Err(Error::Input(format!(
                    "slot {slot} of a key-value cache with {slots} of them"
                )));
            };
            let (queries, keys) = (piece.ids.len(), held + piece.ids.len());
            if queries == 0 || keys > self.positions {
                return Err(Error::Input(format!(
                    "{queries} tokens after {held} earlier ones in a key-value cache with room for {} positions a sequence",
                    self.positions
                )));
            }
            let span = Span {
                first_query,
                queries,
                first_key: piece.slot * self.positions,
                keys,
            };
            first_query += queries;
            Ok(span)
        });
        spans.collect()
    }
}

/// New tokens of the sequence in a slot.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Which sequence of the cache.
    pub slot: usize,
    /// What follows what the slot holds.
    pub ids: &'a [u32],
}

impl Decoder {
    /// An empty cache for [`extend`](Self::extend).
    ///
    /// # Errors
    /// More positions than the model's; no room on the device.
    pub fn new_cache(&self, slots: usize, positions: usize) -> Result<KvCache> {
        let config = self.config();
        let max = config.max_position_embeddings;
        if positions > max {
            return Err(Error::Input(format!(
                "a key-value cache of {positions} positions a sequence: this model has at most {max} (max_position_embeddings)"
            )));
        }
        // The CPU holds activations in f32 whatever they are rounded to.
        let dtype = match self.device() {
            Device::Cpu => DType::F32,
            _ => self.dtype(),
        };
        let width = config.key_value_size();
        let rows = (slots as u64).saturating_mul(positions as u64);
        let row_bytes = 2 * config.num_hidden_layers * width * dtype.size_in_bytes();
        let what = format!("a key-value cache for {slots} sequences of {positions} tokens");
        let remedy = "continue fewer sequences together, or allow fewer tokens";
        let need_bytes = rows.saturating_mul(row_bytes as u64);
        check_fits(&what, need_bytes, self.device(), remedy)?;
        let layer = |_| LayerCache::new(slots * positions, width, dtype, self.device());
        let layers = 0..config.num_hidden_layers;
        Ok(KvCache {
            layers: layers.map(layer).collect::<Result<_>>()?,
            held: vec![0; slots],
            positions,
        })
    }

    /// As [`hidden_states`](Self::hidden_states), for tokens that follow those in `cache`, which then holds these too: N rows, the
    /// pieces one after another. After an error the cache holds what it held before.
    ///
    /// Where every piece is a single token, no row of the result depends on the other pieces, in f32 on the CPU to the last bit.
    ///
    /// # Shapes
    /// -> [N, d]
    ///
    /// # Errors
    /// As [`hidden_states`](Self::hidden_states), and when a slot has no room, pieces are not in the order of their slots, or the cache
    /// belongs to a model with another number of layers.
    pub fn extend(&self, pieces: &[Piece<'_>], cache: &mut KvCache) -> Result<Tensor> {
        with_ops!(self, ops => self.extend_by(ops, pieces, cache))
    }

    /// As [`extend`](Self::extend), by these operations.
    pub(crate) fn extend_by<O: Ops>(
        &self,
        mut ops: O,
        pieces: &[Piece<'_>],
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        if cache.layers.len() != self.layers().len() {
            let (expected, actual) = (self.layers().len(), cache.layers.len());
            let what = "the key-value cache's layers";
            return Err(Error::shape(what, &[expected], &[actual]));
        }
        let spans = cache.spans(pieces)?;
        let ids: Vec<u32> = pieces.iter().flat_map(|piece| piece.ids).copied().collect();
        let rows = ids.len();
        let ids = Tensor::from_vec(ids, (1, rows), &Device::Cpu)?;
        self.config().check_ids(&ids)?;
        let positions = spans.iter().flat_map(|span| {
            let past = span.keys - span.queries;
            past..span.keys
        });
        let angles = self.angles_at(positions)?;
        if rows == pieces.len() {
            ops.keep_rows_apart();
        }
        let (mut x, dims) = self.embed_for(&mut ops, &ids)?;
        let mut pass = Pass {
            ops,
            angles: &angles,
            spans: &spans,
        };
        for (layer, cache) in self.layers().iter().zip(&cache.layers) {
            let out = layer.forward(&mut pass, &x, Some(cache))?;
            pass.ops.recycle([std::mem::replace(&mut x, out)]);
        }
        let hidden = self.finish(&mut pass.ops, &x, &dims)?;
        for (piece, span) in pieces.iter().zip(&spans) {
            cache.held[piece.slot] = span.keys;
        }
        Ok(hidden.squeeze(0)?)
    }
}
