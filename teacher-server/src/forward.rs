/*! Provides the teacher's forward pass: batches of sequences in, top-k rows of their targets out.

```text
 ids [B, T] ──> Decoder ──> hidden [B, T, D] ──> rows before targets [N, D] ──┬─ chunk ──> logits [c, V] ──> select_rows
                                                                              └──────────> state [N, D]
```

The head is cut to the effective vocabulary before anything else, and logits exist for `chunk_rows` rows at a time.
*/

use std::ops::Range;

use candle_core::{DType, Device, IndexOp, Storage, Tensor};
use distill_model::Decoder;
use distill_proto::{Estimator, Rows, State, StateKind};

use crate::{
    Error, Result,
    config::{Config, StateSetting},
    production::{Forward, Tokens},
    selection::{NotFinite, Selected, select_rows},
};

/// Rows of a half-precision head that are widened to f32 at a time, on the CPU.
const WIDENED_HEAD_ROWS: usize = 8192;

/// A loaded teacher with what to keep of its logits.
pub struct Teacher {
    decoder: Decoder,
    /// Rows of lm_head inside the effective vocabulary, `[V, D]`.
    head: Tensor,
    vocab_size: u32,
    capture: Capture,
}

/// What to keep of every row.
#[derive(Debug, Clone)]
pub struct Capture {
    /// Kept logits.
    pub k: usize,
    /// Temperatures of logsumexp.
    pub temperatures: Vec<f32>,
    /// How kept logits will be stored.
    pub coding: distill_proto::ValueCoding,
    /// Whether and how the hidden state is kept.
    pub state: StateSetting,
    /// Rows of logits at a time.
    pub chunk_rows: usize,
}

impl Capture {
    /// From the settings.
    pub fn new(config: &Config) -> Self {
        Self {
            k: config.top_k,
            temperatures: config.temperatures.clone(),
            coding: config.value_coding.0,
            state: config.state,
            chunk_rows: config.chunk_rows,
        }
    }
}

impl Teacher {
    /// Cuts the head of `decoder` to `vocab_size` rows.
    ///
    /// # Errors
    /// `Mismatch` where the tokenizer knows more ids than the head has rows, or K is larger than the vocabulary.
    pub fn new(decoder: Decoder, vocab_size: u32, capture: Capture) -> Result<Self> {
        let head_rows = decoder.head().dim(0)?;
        if vocab_size as usize > head_rows {
            return Err(Error::Mismatch(format!(
                "the tokenizer knows {vocab_size} ids but the model's head has {head_rows} rows; tokenizer.json and the weights belong to different models"
            )));
        }
        if capture.k > vocab_size as usize {
            return Err(Error::Config {
                key: "top-k",
                reason: format!("{} is more than the vocabulary of {vocab_size}", capture.k),
            });
        }
        let head = decoder.head().narrow(0, 0, vocab_size as usize)?.detach();
        Ok(Self {
            decoder,
            head,
            vocab_size,
            capture,
        })
    }

    /// The head inside the effective vocabulary, `[V, D]`.
    pub fn head(&self) -> &Tensor {
        &self.head
    }

    /// Hidden states at the positions that predict targets, over the batch in order.
    ///
    /// # Shapes
    /// `[N, D]` in the model's dtype, N the number of targets.
    fn target_states(&self, batch: &[Tokens<'_>]) -> Result<Tensor> {
        let longest = batch
            .iter()
            .map(|tokens| tokens.token_ids.len())
            .max()
            .unwrap_or(1);
        let mut ids = Vec::with_capacity(batch.len() * longest);
        let mut rows: Vec<u32> = Vec::new();
        for tokens in batch {
            let first = ids.len() as u32;
            ids.extend_from_slice(tokens.token_ids);
            // Right padding changes nothing to its left in a causal model; any id will do.
            ids.resize(first as usize + longest, 0);
            // The output at t-1 is about the token at t.
            rows.extend(targets(tokens).map(|t| first + t as u32 - 1));
        }
        let device = self.decoder.device();
        let ids = Tensor::from_vec(ids, (batch.len(), longest), device)?;
        let hidden = self.decoder.hidden_states(&ids)?.flatten_to(1)?;
        let rows = Tensor::new(rows, device)?;
        Ok(hidden.index_select(&rows, 0)?)
    }

    /// Logits of a few rows, f32 on the host.
    ///
    /// # Shapes
    /// `[c, D]` to `[c, V]`, contiguous.
    fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let half_on_cpu = self.head.dtype() != DType::F32 && self.head.device().is_cpu();
        if !half_on_cpu {
            let logits = states.matmul(&self.head.t()?)?;
            let logits = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            return Ok(logits.contiguous()?);
        }
        // A half-precision product would round logits to steps of up to 1/8; the CPU widens for it anyway.
        let states = states.to_dtype(DType::F32)?;
        let rows = self.vocab_size as usize;
        let parts = (0..rows)
            .step_by(WIDENED_HEAD_ROWS)
            .map(|start| {
                let head = self
                    .head
                    .narrow(0, start, WIDENED_HEAD_ROWS.min(rows - start))?;
                Ok(states.matmul(&head.to_dtype(DType::F32)?.t()?)?)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 1)?.contiguous()?)
    }

    /// Selection over all rows of a batch, a chunk of logits at a time.
    fn select(&self, states: &Tensor, batch: &[Tokens<'_>]) -> Result<Selected> {
        let rows = states.dim(0)?;
        let mut all = Selected::default();
        for start in (0..rows).step_by(self.capture.chunk_rows) {
            let count = self.capture.chunk_rows.min(rows - start);
            let logits = self.logits(&states.narrow(0, start, count)?)?;
            let selected = on_host(&logits, |logits| {
                let Capture {
                    k, temperatures, ..
                } = &self.capture;
                select_rows(logits, self.vocab_size as usize, *k, temperatures)
            })?
            .map_err(|NotFinite { row }| not_finite(batch, start + row))?;
            all.ids.extend(selected.ids);
            all.logits.extend(selected.logits);
            all.statistics.extend(selected.statistics);
        }
        Ok(all)
    }

    /// One sequence's part of a batch.
    fn sequence_rows(
        &self,
        selected: &Selected,
        states: &Tensor,
        rows: Range<usize>,
    ) -> Result<Rows> {
        let Capture {
            k,
            temperatures,
            coding,
            state,
            ..
        } = &self.capture;
        let kept = rows.start * k..rows.end * k;
        let outside = || Error::Internal("selection lost rows of its batch".into());
        let statistics = selected.statistics.get(rows.clone()).ok_or_else(outside)?;
        let logsumexp_at = |i: usize| statistics.iter().map(move |row| row.logsumexp[i]).collect();
        let state = match state {
            StateSetting::None => None,
            StateSetting::Exact(coding) => {
                let values = states.i(rows.clone())?.to_dtype(DType::F32)?;
                Some(State {
                    kind: StateKind::Exact,
                    coding: *coding,
                    rank: states.dim(1)?,
                    values: values.flatten_all()?.to_vec1()?,
                })
            }
        };
        Ok(Rows {
            rows: rows.len(),
            k: *k,
            vocab_size: self.vocab_size,
            estimator: Estimator::TopK,
            coding: *coding,
            ids: selected.ids.get(kept.clone()).ok_or_else(outside)?.to_vec(),
            logits: selected.logits.get(kept).ok_or_else(outside)?.to_vec(),
            counts: Vec::new(),
            max: statistics.iter().map(|row| row.max).collect(),
            mean: statistics.iter().map(|row| row.mean).collect(),
            std: statistics.iter().map(|row| row.std).collect(),
            temperatures: temperatures.clone(),
            logsumexp: (0..temperatures.len()).map(logsumexp_at).collect(),
            state,
        })
    }
}

impl Forward for Teacher {
    fn rows(&self, batch: &[Tokens<'_>]) -> Result<Vec<Rows>> {
        let states = self.target_states(batch)?;
        let selected = self.select(&states, batch)?;
        let mut end = 0;
        batch
            .iter()
            .map(|tokens| {
                let start = end;
                end += targets(tokens).count();
                self.sequence_rows(&selected, &states, start..end)
            })
            .collect()
    }
}

/// Positions of the targets. Position 0 has no predecessor and is never one.
fn targets<'a>(tokens: &Tokens<'a>) -> impl Iterator<Item = usize> + use<'a> {
    let flags = tokens.target_mask.iter().enumerate().skip(1);
    flags.filter_map(|(t, &target)| target.then_some(t))
}

/// Names the sequence and token behind a row of the batch.
fn not_finite(batch: &[Tokens<'_>], row: usize) -> Error {
    let mut all = batch
        .iter()
        .flat_map(|tokens| targets(tokens).map(|position| (tokens.id, position)));
    let (sequence, position) = all.nth(row).unwrap_or_default();
    Error::NotFinite { sequence, position }
}

/// Hands the values of a contiguous f32 tensor in host memory to `f` without copying them.
fn on_host<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => {
            let values = storage.as_slice::<f32>()?.get(start..end);
            Ok(f(values.unwrap_or_default()))
        }
        _ => Err(Error::Internal(
            "logits are not contiguous in host memory".into(),
        )),
    }
}

#[cfg(test)]
mod tests;
