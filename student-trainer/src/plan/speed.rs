/*! Provides how fast both processes would be on an RTX 4090, by count and never timed.

```text
 card:  products' FLOP / 165 TFLOP/s  +  bytes of everything between them / 1008 GB/s  ──┐
 host:  (launches + products) x 12 us  ──────────────────────────────────────────────────┴──> the longer one
```

A product's bytes are not counted: from a few hundred tokens on it is bound by its FLOP. The card's figures are the maker's, which no
product quite reaches, and the host's is an assumption; so this says which side waits for which, and what a change of shape
would do, rather than how long a night it will be.
*/

use distill_model::ModelConfig;
use serde::Serialize;

use super::{
    config::PlanConfig,
    counts::{Counts, LinearShape, four_bit_bytes},
    layer::Layer,
    pair::{FourBit, Pair, Shape},
    trainer::{adapters, four_bit},
};
use crate::Result;

/// Of an RTX 4090: bf16 products with f32 sums.
const FLOP_A_SECOND: f64 = 165e12;
/// Of its memory.
const BYTES_A_SECOND: f64 = 1008e9;
/// What a launch takes the host, with the allocations around it. An estimate.
pub(super) const HOST_SECONDS: f64 = 12e-6;

/// Launches and products, as `tests/card/counts.py` counts them and compares: of a layer of the trainer forward, once more to have
/// what its way back reads, and back.
const FORWARD: u64 = 22;
const RECOMPUTED: u64 = 20;
const BACKWARD: u64 = 37;
/// Of a chunk of rows in the loss, and of what a step does once.
const LOSS_CHUNK: u64 = 8;
const STEP: u64 = 16;
/// Of the teacher: of a layer, of a chunk of rows, of a batch.
const TEACHER_LAYER: u64 = 12;
const TEACHER_CHUNK: u64 = 3;
const TEACHER_BATCH: u64 = 4;

/// Bytes of an element of f32 and of bf16.
const F32: u64 = 4;
const BF16: u64 = 2;

/// What one process does in a step or a batch, and how long that takes at least.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// `teacher` or `trainer`.
    pub process: &'static str,
    /// Tokens of one pass of the trainer, or of a batch of the teacher.
    pub tokens: u64,
    /// Floating-point operations of its products and of attention.
    pub flop: u64,
    /// Bytes that everything else reads and writes.
    pub moved_bytes: u64,
    /// Launches and products.
    pub operations: u64,
    /// What the card needs for that at its full figures.
    pub card_seconds: f64,
    /// What the host needs to ask for it.
    pub host_seconds: f64,
    /// By the longer of the two.
    pub tokens_per_second: f64,
}

impl Speed {
    fn new(
        process: &'static str,
        tokens: u64,
        flop: u64,
        moved_bytes: u64,
        operations: u64,
    ) -> Self {
        let card_seconds = flop as f64 / FLOP_A_SECOND + moved_bytes as f64 / BYTES_A_SECOND;
        let host_seconds = operations as f64 * HOST_SECONDS;
        Self {
            process,
            tokens,
            flop,
            moved_bytes,
            operations,
            card_seconds,
            host_seconds,
            tokens_per_second: tokens as f64 / card_seconds.max(host_seconds),
        }
    }
}

/// Of both processes under these settings; of the trainer alone where there is no teacher.
///
/// # Errors
/// Adapters that cannot be read, or a pattern whose matching does not end in time.
pub fn speeds(pair: &Pair, config: &PlanConfig) -> Result<Vec<Speed>> {
    let teacher = pair.teacher.as_ref();
    let teacher = teacher
        .map(|shape| teacher_speed(shape, config))
        .transpose()?;
    Ok(teacher
        .into_iter()
        .chain([trainer_speed(pair, config)?])
        .collect())
}

fn teacher_speed(shape: &Shape, config: &PlanConfig) -> Result<Speed> {
    let (model, options) = (&shape.model, &config.options);
    let counts = Counts::new(model, None)?;
    let tokens = config.seq_len() * options.teacher_batch_size as u64;
    let chunks = tokens.div_ceil(options.teacher_chunk_rows as u64);
    let (layers, logits) = (
        model.num_hidden_layers as u64,
        tokens * model.vocab_size as u64,
    );
    let flop = 2 * tokens * counts.linear_elements()
        + attention_flop(model, tokens, config.seq_len())
        + 2 * logits * model.hidden_size as u64;
    // Logits come in f32; the selection reads them once.
    let moved = layers * tokens * between(&counts, model, config.teacher_element())
        + unpacked(&counts, shape.stored.four_bit)
        + 2 * F32 * logits;
    let operations = TEACHER_LAYER * layers + TEACHER_CHUNK * chunks + TEACHER_BATCH;
    Ok(Speed::new("teacher", tokens, flop, moved, operations))
}

fn trainer_speed(pair: &Pair, config: &PlanConfig) -> Result<Speed> {
    let (model, train) = (&pair.student.model, &config.train);
    let lora = match config.is_full() {
        true => None,
        false => Some(adapters(train, model)?),
    };
    let counts = Counts::new(model, lora.as_ref())?;
    let (tokens, element) = (config.tokens(), config.element());
    let (linears, adapters) = (counts.linear_elements(), counts.adapter_elements());
    let (layers, logits) = (
        model.num_hidden_layers as u64,
        tokens * model.vocab_size as u64,
    );
    let attention = attention_flop(model, tokens, config.seq_len());
    // The way back asks for no output of the last linear of a layer.
    let last = |linear: &LinearShape| linear.columns == model.intermediate_size as u64;
    let down: u64 = counts
        .linears()
        .filter(last)
        .map(LinearShape::elements)
        .sum();

    let mut flop = 2 * tokens * (linears + adapters) + attention;
    let mut visits = 1;
    let mut in_a_layer = FORWARD + BACKWARD;
    if train.checkpointing {
        flop += 2 * tokens * (linears - down + adapters) + attention;
        visits += 1;
        in_a_layer += RECOMPUTED;
    }
    // Gradients of inputs and of adapters, or of all weights; attention computes its scores twice more.
    flop += 2 * tokens * (linears + 2 * adapters) + 7 * attention / 2;
    if config.is_full() {
        flop += 2 * tokens * linears;
    }
    flop += 2 * 2 * logits * model.hidden_size as u64;

    let trained = match config.is_full() {
        true => counts.elements(),
        false => adapters,
    };
    let moved = (visits + 2) * layers * tokens * between(&counts, model, element)
        + (visits + 1) * unpacked(&counts, four_bit(&pair.student, train))
        // Written, read for the sums and for the gradient, which is written and read.
        + logits * (3 * F32 + 2 * BF16)
        // Read for its norm; then parameter, gradient and both moments are read, and all but the gradient written.
        + 8 * F32 * trained;
    let chunks = tokens.div_ceil(train.loss.chunk_rows as u64);
    let operations = in_a_layer * layers + LOSS_CHUNK * chunks + STEP;
    Ok(Speed::new("trainer", tokens, flop, moved, operations))
}

/// Of causal attention forward: two products of which half is needed.
fn attention_flop(model: &ModelConfig, tokens: u64, seq_len: u64) -> u64 {
    2 * tokens * seq_len * model.query_size() as u64 * model.num_hidden_layers as u64
}

/// Bytes that a token's activations of a layer are written and read again.
fn between(counts: &Counts, model: &ModelConfig, element: u64) -> u64 {
    let linears = counts.layers.first().map_or(&[][..], Vec::as_slice);
    2 * Layer::new(model, linears).forward(element)
}

/// Bytes that all linears in four bits are read and written as bf16, once.
fn unpacked(counts: &Counts, scales: Option<FourBit>) -> u64 {
    let of = |scales| {
        let linear = |linear: LinearShape| {
            four_bit_bytes(linear.elements(), scales) + BF16 * linear.elements()
        };
        counts.linears().map(linear).sum()
    };
    scales.map_or(0, of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(change: impl FnOnce(&mut PlanConfig)) -> [Speed; 2] {
        let mut config = PlanConfig::default();
        change(&mut config);
        let speeds = speeds(&Pair::reference().unwrap(), &config).unwrap();
        speeds.try_into().unwrap()
    }

    /// Attention is no product of cuBLAS, whose FLOP the card in software counts.
    fn products(speed: &Speed, model: &ModelConfig, seq_len: u64, times: f64) -> f64 {
        let attention = attention_flop(model, speed.tokens, seq_len) as f64;
        (speed.flop as f64 - times * attention) / 1e12
    }

    #[test]
    fn flop_and_operations_are_those_that_were_counted() {
        let pair = Pair::reference().unwrap();
        for (seq_len, of_teacher, of_trainer) in [
            (512, (7.24, 352), (4.18, 2260)),
            (2048, (28.95, 388), (16.72, 2356)),
        ] {
            let [teacher, trainer] = reference(|c| c.options.seq_len = seq_len);
            let tokens = seq_len as u64;
            let near = |ours: f64, counted: f64| (ours / counted - 1.0).abs() < 0.01;
            let of_teacher = (&teacher, pair.teacher.as_ref().unwrap(), 1.0, of_teacher);
            let of_trainer = (&trainer, &pair.student, 5.5, of_trainer);
            for (speed, shape, attention, (tera, operations)) in [of_teacher, of_trainer] {
                let ours = products(speed, &shape.model, tokens, attention);
                assert!(near(ours, tera), "{speed:?}");
                let ours = speed.operations as f64;
                assert!(near(ours, f64::from(operations)), "{speed:?}");
            }
        }
    }

    #[test]
    fn packing_saves_what_every_pass_costs() {
        let [_, short] = reference(|_| {});
        let [_, packed] = reference(|c| {
            c.train.batch_size = 4;
            c.train.pack_tokens = Some(2048);
        });
        assert_eq!((short.tokens, packed.tokens), (512, 2048));
        assert!(packed.card_seconds > packed.host_seconds, "{packed:?}");
        assert!(packed.tokens_per_second > short.tokens_per_second);
        // Nothing is recomputed, and all weights' gradients are formed.
        let [_, kept] = reference(|c| c.train.checkpointing = false);
        assert!(kept.flop < short.flop && kept.operations < short.operations);
    }
}
