/*! Provides the teacher's forward pass: batches of sequences in, rows of their targets out.

```text
 ids [B, T] ──> Backbone ─> hidden [B, T, D] ──> rows before targets [N, D] ──┬─ chunk ──> logits [c, V] ──> select_rows
                                                                              └─ states.rs ──────────> state [N, R]
```

The head is cut to the effective vocabulary before anything else, and logits exist for `chunk_rows` rows at a time.
*/

mod states;

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use distill_model::{Decoder, ModelConfig, TokenMatrix, head_rows, lend};
use distill_proto::{Rows, State};

use crate::{
    Error, Result,
    backbone::Backbone,
    config::{Config, StateSetting},
    production::{Forward, Tokens},
    selection::{Keep, NotFinite, RowKey, Selected, select_on_device, select_rows},
};

/// Rows of logits at a time where nothing else is asked.
const LOGIT_ROWS: usize = 64;

/// A loaded teacher with what to keep of its logits.
pub struct Teacher {
    backbone: Box<dyn Backbone>,
    /// Rows of lm_head inside the effective vocabulary, `[V, D]`.
    head: TokenMatrix,
    vocab_size: u32,
    capture: Capture,
    /// Takes a hidden state to its coordinates in a sketch, `[D, R]` f32.
    projection: Option<Tensor>,
}

/// What to keep of every row.
#[derive(Debug, Clone)]
pub struct Capture {
    /// Which logits.
    pub keep: Keep,
    /// Temperatures of logsumexp.
    pub temperatures: Vec<f32>,
    /// How kept logits will be stored.
    pub coding: distill_proto::ValueCoding,
    /// Whether, of which layer and how hidden states are kept.
    pub state: StateSetting,
    /// Rows of logits at a time.
    pub chunk_rows: usize,
}

impl Capture {
    /// The largest logit and nothing else, for whoever wants the teacher's logits themselves.
    pub fn largest() -> Self {
        Self {
            keep: Keep::top_k(1),
            temperatures: vec![1.0],
            coding: distill_proto::ValueCoding::F16,
            state: StateSetting::None,
            chunk_rows: LOGIT_ROWS,
        }
    }

    /// Refuses what a model of this shape cannot give, before its weights are in memory.
    ///
    /// # Errors
    /// `Mismatch` where the tokenizer knows more ids than the head has rows; `Config` where K is larger than the vocabulary,
    /// or the model has no such layer or too few dimensions for the state.
    pub fn check(&self, model: &ModelConfig, vocab_size: u32) -> Result<()> {
        let head_rows = model.vocab_size;
        if vocab_size as usize > head_rows {
            return Err(Error::Mismatch(format!(
                "the tokenizer knows {vocab_size} ids but the model's head has {head_rows} rows; tokenizer.json and the weights belong to different models"
            )));
        }
        let kept = self.keep.head();
        if kept > vocab_size as usize {
            return Err(Error::config(
                "top-k",
                format!("{kept} is more than the vocabulary of {vocab_size}"),
            ));
        }
        states::check(self.state, model)
    }

    /// From the settings.
    pub fn new(config: &Config) -> Self {
        Self {
            keep: Keep {
                estimator: config.estimator.0,
                top_k: config.top_k,
                draws: config.draws,
                sample_seed: config.sample_seed,
            },
            temperatures: config.temperatures.clone(),
            coding: config.value_coding.0,
            state: config.state,
            chunk_rows: config.chunk_rows,
        }
    }
}

impl Teacher {
    /// Cuts the head of `backbone` to `vocab_size` rows, as [`Capture::check`] has found that it has.
    ///
    /// # Errors
    /// A tensor error.
    pub fn new(backbone: Box<dyn Backbone>, vocab_size: u32, capture: Capture) -> Result<Self> {
        let head = backbone.head_matrix().narrow(vocab_size as usize)?;
        Ok(Self {
            backbone,
            head,
            vocab_size,
            capture,
            projection: None,
        })
    }

    /// Keeps the coordinates `h projection` of every hidden state; `projection` is `[D, R]`, f32 on the CPU.
    pub fn with_projection(self, projection: Tensor) -> Self {
        Self {
            projection: Some(projection),
            ..self
        }
    }

    /// Memory that the weights take.
    pub fn weight_bytes(&self) -> usize {
        self.backbone.weight_bytes()
    }

    /// The head inside the effective vocabulary, `[V, D]`.
    pub fn head(&self) -> &TokenMatrix {
        &self.head
    }

    /// Logits of a few rows where the model is; f32 on the CPU.
    ///
    /// # Shapes
    /// `[c, D]` to `[c, stride]`, contiguous; columns from V on are not to be looked at, and only a card has any.
    fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let head = match &self.head {
            TokenMatrix::Dense(head) => head.tensor(),
            // The product is formed in f32 and rounded to the type of the states.
            TokenMatrix::Packed(head) => {
                let logits = head.product(&states.to_dtype(DType::F32)?)?;
                return Ok(logits.contiguous()?);
            }
        };
        Ok(head_rows(states, head)?)
    }

    /// Hands `take` the logits of a sequence's targets, `[c, V]` row-major, a chunk of rows at a time with the number of its
    /// first row.
    ///
    /// # Errors
    /// What the model says.
    pub fn each_logits(
        &self,
        tokens: &Tokens<'_>,
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        let batch = [Tokens { ..*tokens }];
        let states = self.target_states(&batch)?.last;
        let rows = states.dim(0)?;
        for start in (0..rows).step_by(self.capture.chunk_rows) {
            let count = self.capture.chunk_rows.min(rows - start);
            let logits = self.logits(&states.narrow(0, start, count)?)?;
            let logits = logits.narrow(1, 0, self.vocab_size as usize)?;
            let logits = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            take(start, lend(&logits).numbers()?);
        }
        Ok(())
    }

    /// Selection over all rows of a batch, a chunk of logits at a time.
    fn select(&self, states: &Tensor, batch: &[Tokens<'_>]) -> Result<Selected> {
        let rows = states.dim(0)?;
        let keys: Vec<RowKey> = batch.iter().flat_map(row_keys).collect();
        let Capture {
            keep, temperatures, ..
        } = &self.capture;
        let mut all = Selected::default();
        for start in (0..rows).step_by(self.capture.chunk_rows) {
            let count = self.capture.chunk_rows.min(rows - start);
            let logits = self.logits(&states.narrow(0, start, count)?)?;
            let vocab = self.vocab_size as usize;
            let keys = keys.get(start..start + count).unwrap_or_default();
            let selected = match logits.device() {
                Device::Cpu => {
                    let logits = lend(&logits);
                    select_rows(logits.numbers()?, vocab, keep, temperatures, keys)
                }
                _ => select_on_device(&logits, vocab, keep, temperatures, keys)?,
            };
            let selected = selected.map_err(|NotFinite { row }| not_finite(batch, start + row))?;
            all.extend(selected);
        }
        Ok(all)
    }

    /// One sequence's part of a batch.
    fn sequence_rows(
        &self,
        selected: &Selected,
        state: Option<State>,
        rows: Range<usize>,
    ) -> Result<Rows> {
        let Capture {
            keep,
            temperatures,
            coding,
            ..
        } = &self.capture;
        let outside = || Error::Internal("selection lost rows of its batch".into());
        let statistics = selected.statistics.get(rows.clone()).ok_or_else(outside)?;
        let block = selected.block(rows.clone(), keep.estimator);
        let block = block.ok_or_else(outside)?;
        let logsumexp_at = |i: usize| statistics.iter().map(move |row| row.logsumexp[i]).collect();
        Ok(Rows {
            rows: rows.len(),
            k: block.k,
            vocab_size: self.vocab_size,
            estimator: keep.estimator,
            coding: *coding,
            ids: block.ids,
            logits: block.logits,
            counts: block.counts,
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
        let device = self.backbone.device();
        self.computed(batch)
            .map_err(|error| error.explained(device))
    }

    fn decoder(&self) -> Option<&Decoder> {
        self.backbone.decoder()
    }
}

impl Teacher {
    fn computed(&self, batch: &[Tokens<'_>]) -> Result<Vec<Rows>> {
        let states = self.target_states(batch)?;
        let selected = self.select(&states.last, batch)?;
        let mut end = 0;
        batch
            .iter()
            .map(|tokens| {
                let start = end;
                end += targets(tokens).count();
                let state = self.state(&states, start..end, tokens.id)?;
                self.sequence_rows(&selected, state, start..end)
            })
            .collect()
    }
}

/// Names of a sequence's rows, for their draws.
fn row_keys<'a>(tokens: &Tokens<'a>) -> impl Iterator<Item = RowKey> + use<'a> {
    let sequence = tokens.draw_id;
    targets(tokens).map(move |position| RowKey {
        sequence,
        position: position as u64,
    })
}

/// Positions of the targets. Position 0 has no predecessor and is never one.
pub(crate) fn targets<'a>(tokens: &Tokens<'a>) -> impl Iterator<Item = usize> + use<'a> {
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

#[cfg(test)]
mod tests;
