//! Provides the keys and values of positions already seen, for decoding token by token.

use candle_core::Tensor;

use crate::Result;
use crate::ops::{Dims, Ops};

/// Keys and values of one layer: [B, T, KV head_dim] each, keys already turned by their position.
#[derive(Debug, Default)]
pub struct LayerCache {
    kept: Option<(Tensor, Tensor)>,
}

impl LayerCache {
    /// Appends new positions of `batch` sequences and returns everything kept.
    ///
    /// # Shapes
    /// k and v [B T, KV head_dim]
    pub(crate) fn append<O: Ops>(
        &mut self,
        ops: &mut O,
        dims: Dims,
        batch: usize,
        (k, v): (&O::Array, &O::Array),
    ) -> Result<(O::Array, O::Array)> {
        let width = dims.key_value_heads * dims.head_dim;
        let tensor = |x| ops.tensor(x, &[batch, ops.rows(x, width) / batch, width]);
        let (k, v) = (tensor(k)?, tensor(v)?);
        let (k, v) = match self.kept.take() {
            None => (k, v),
            Some((old_k, old_v)) => (
                Tensor::cat(&[&old_k, &k], 1)?,
                Tensor::cat(&[&old_v, &v], 1)?,
            ),
        };
        self.kept = Some((k.clone(), v.clone()));
        Ok((ops.array(&k)?, ops.array(&v)?))
    }
}

/// The caches of all layers of one batch of sequences; made by
/// [`Decoder::new_cache`](crate::Decoder::new_cache). After an error in
/// [`Decoder::extend`](crate::Decoder::extend) some layers may be ahead of others: start anew.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) layers: Vec<LayerCache>,
    pub(crate) positions: usize,
}

impl KvCache {
    pub(crate) fn new(layers: usize) -> Self {
        Self {
            layers: (0..layers).map(|_| LayerCache::default()).collect(),
            positions: 0,
        }
    }

    /// Sequences held; `None` while the cache is empty.
    pub(crate) fn batch(&self) -> Option<usize> {
        let (keys, _) = self.layers.first()?.kept.as_ref()?;
        keys.dims().first().copied()
    }

    /// Positions held, which is where the next token goes.
    pub fn positions(&self) -> usize {
        self.positions
    }
}
