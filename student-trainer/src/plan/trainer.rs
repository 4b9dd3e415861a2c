//! Provides the trainer's parts: what is always there, and what a step adds in its loss, on its way back and in its update.

use distill_model::{LoraConfig, ModelConfig};

use super::{
    config::{Place, PlanConfig},
    counts::Counts,
    head::Head,
    layer::Layer,
    pair::{FourBit, Pair, Shape},
    part::{Part, Phase, Process},
    process::{Base, slack},
};
use crate::{
    Result,
    config::{Quantize, TrainConfig},
    loss::LossConfig,
    run::{AdapterConfig, refuse_unused, warn_of_unused},
};

const F32: u64 = 4;
/// f32 copies of the largest trained matrix while it is updated on a device: itself and its moments, as they become; and, on
/// the CPU, what its norm in f64 takes.
const UPDATE_COPIES: u64 = 3;
const NORM_COPIES: u64 = 4;
/// f32 copies of a trained head's gradient while a sequence's is added to it.
const HEAD_GRADIENT_COPIES: u64 = 3;
/// Bytes of an entry of a row, of a token beside them, and of a coordinate of a state, in a decoded frame.
const ENTRY_BYTES: u64 = 12;
const TOKEN_BYTES: u64 = 100;

/// What was kept goes, layer by layer, as gradients come.
const KEPT: &[Phase] = &[Phase::Transport, Phase::Loss, Phase::Backward];
const BACKWARD: &[Phase] = &[Phase::Backward, Phase::Lowest];
/// Optimisers are made when the weights are in.
const LOADED: &[Phase] = &[
    Phase::Transport,
    Phase::Loss,
    Phase::Backward,
    Phase::Lowest,
    Phase::Update,
    Phase::Saving,
];

/// The trainer's process.
///
/// # Errors
/// Adapters that cannot be read, or an expression whose matching does not end in time.
pub fn trainer(pair: &Pair, config: &PlanConfig) -> Result<Process> {
    let lora = match config.is_full() {
        true => None,
        false => Some(adapters(&config.train, &pair.student.model)?),
    };
    let loss = config.loss();
    let teacher = pair.teacher.as_ref().map(|teacher| &teacher.model);
    let trainer = Trainer {
        shape: &pair.student,
        counts: Counts::new(&pair.student.model, lora.as_ref())?,
        config,
        head: head(&pair.student.model, teacher, config, &loss),
    };
    let mut parts = trainer.weights();
    parts.extend(trainer.trained());
    parts.extend(trainer.step());
    let base = Base {
        place: config.place(),
        vocab_size: pair.student.model.vocab_size as u64,
    };
    parts.extend(base.parts());
    parts.extend(trainer.host());
    Ok(Process::new("trainer", parts, slack(config.place())))
}

/// The adapters of a run; those of `init_adapter` decide themselves. What `train` would refuse is not counted.
fn adapters(train: &TrainConfig, student: &ModelConfig) -> Result<LoraConfig> {
    let Some(directory) = &train.init_adapter else {
        let lora = train.lora()?;
        refuse_unused(&lora, student)?;
        return Ok(lora);
    };
    let lora = AdapterConfig::read(directory)?.lora();
    warn_of_unused(directory, &lora, student)?;
    Ok(lora)
}

fn head<'a>(
    student: &ModelConfig,
    teacher: Option<&ModelConfig>,
    config: &PlanConfig,
    loss: &'a LossConfig,
) -> Head<'a> {
    Head {
        loss,
        place: config.place(),
        element: config.element(),
        rows: config.seq_len(),
        tokens: config.tokens(),
        hidden_size: student.hidden_size as u64,
        vocab_size: student.vocab_size as u64,
        state_rank: config.state_rank(teacher),
        entries: config.options.entries as u64,
    }
}

struct Trainer<'a> {
    shape: &'a Shape,
    counts: Counts,
    config: &'a PlanConfig,
    head: Head<'a>,
}

impl Trainer<'_> {
    /// The base.
    fn weights(&self) -> Vec<Part> {
        let (counts, element) = (&self.counts, self.config.element());
        if self.config.is_full() {
            return vec![Part::always("weights, f32", F32 * counts.elements())];
        }
        let quantized = self.config.train.quantize == Quantize::Nf4;
        let four_bit = self.shape.stored.four_bit;
        let four_bit = four_bit.or(quantized.then_some(FourBit::Double));
        let dense = counts.dense_elements() * element;
        let others = Part::always("embeddings, head, norms, biases", dense);
        match four_bit {
            Some(scales) => vec![
                Part::always("linears in 4 bits", counts.four_bit_bytes(scales)),
                others,
                Part::during(
                    "one linear, dequantised",
                    self.dequantized(),
                    &[Phase::Lowest],
                ),
            ],
            None => {
                let linears = counts.linear_elements() * element;
                vec![Part::always("linears", linears), others]
            }
        }
    }

    /// A card dequantises a whole matrix at a time; the CPU a tile, of a megabyte or so.
    fn dequantized(&self) -> u64 {
        match self.config.place() {
            Place::Card => self.layer(0).largest_linear() * self.config.element(),
            Place::Cpu => 0,
        }
    }

    /// What is trained, with gradients and moments.
    fn trained(&self) -> Vec<Part> {
        let (counts, train) = (&self.counts, &self.config.train);
        let on_card = self.config.place() == Place::Card;
        let full = self.config.is_full();
        let projection = self.head.projection_elements();
        let (elements, moments) = match full {
            true => (counts.elements(), counts.moments(train.optimizer)),
            false => (
                counts.adapter_elements(),
                counts.adapter_moments(train.optimizer),
            ),
        };
        let moments = moments + train.optimizer.state_bytes(projection);
        let largest = counts.largest_trained(full).max(projection);
        // From the second pass of a step on, the gradients of the first are there.
        let gradients = match train.grad_accumulation {
            1 => &[Phase::Lowest, Phase::Update][..],
            _ => LOADED,
        };
        let mut parts = vec![
            Part::during("gradients, f32", F32 * (elements + projection), gradients),
            Part::during("AdamW's moments", moments, LOADED),
        ];
        if !full {
            parts.insert(0, Part::always("adapters, f32", F32 * elements));
        }
        parts.push(Part::always(
            "projection of hidden states, f32",
            F32 * projection,
        ));
        let copies = if on_card { UPDATE_COPIES } else { NORM_COPIES };
        parts.push(Part::during(
            "update of one matrix",
            copies * F32 * largest,
            &[Phase::Update],
        ));
        if !on_card {
            parts.push(Part::during(
                "moments, copied for a checkpoint",
                moments,
                &[Phase::Saving],
            ));
        }
        parts
    }

    /// What a pass adds.
    fn step(&self) -> Vec<Part> {
        let (kept, recomputed) = self.activations();
        let head = &self.head;
        let mut parts = vec![
            Part::during("kept of the layers for the way back", kept, KEPT),
            Part::during("one piece of layers, on the way back", recomputed, BACKWARD),
            Part::during("logits of a chunk, f32", head.chunk(), &[Phase::Loss]),
            Part::during(
                "hidden states with their gradient",
                head.hidden(),
                &[Phase::Transport, Phase::Loss],
            ),
            Part::during(
                "transport",
                head.transport(),
                &[Phase::Transport, Phase::Loss],
            ),
            Part::during(
                "rows of the head behind the teacher's entries",
                head.gathered(),
                &[Phase::Transport],
            ),
            Part::always("similarity of logits: P, G", head.logit_space()),
        ];
        if self.config.is_full() {
            let matrix = head.vocab_size * head.hidden_size * F32;
            parts.push(Part::during(
                "gradient of the head, added up",
                HEAD_GRADIENT_COPIES * matrix,
                &[Phase::Loss],
            ));
        }
        parts
    }

    fn layer(&self, index: usize) -> Layer<'_> {
        let linears = self.counts.layers.get(index).map_or(&[][..], Vec::as_slice);
        Layer::new(&self.shape.model, linears)
    }

    /// Kept of all layers, and what the widest piece of them adds while it goes back.
    fn activations(&self) -> (u64, u64) {
        let train = &self.config.train;
        let (tokens, element) = (self.config.tokens(), self.config.element());
        let count = self.counts.layers.len();
        let layers = || (0..count).map(|index| self.layer(index));
        let direct = self.config.place() == Place::Cpu && element == F32 && !self.config.is_full();
        let one = |layer: Layer<'_>| match direct {
            true => layer.direct(),
            false => layer.graph(element),
        };
        let back = |layer: Layer<'_>| match direct {
            true => layer.direct_backward(count as u64),
            false => layer.graph_gradients(element),
        };
        // The residual stream is f32 in every compute type.
        let input = F32 * self.shape.model.hidden_size as u64;
        let back = layers().map(back).max().unwrap_or(0);
        if !train.checkpointing {
            let kept: u64 = layers().map(|layer| input + one(layer)).sum();
            return (tokens * kept, tokens * back);
        }
        let every = train.checkpoint_every.min(count.max(1));
        let pieces = count.div_ceil(every.max(1)) as u64;
        let widest = layers().map(one).max().unwrap_or(0);
        // The hand-written pass counts the first layer of a piece among its buffers.
        let again = match direct {
            true => (every as u64 - 1) * (widest + input),
            false => every as u64 * (widest + input),
        };
        (tokens * pieces * input, tokens * (again + back))
    }

    /// What is in the machine's memory and on no card.
    fn host(&self) -> Vec<Part> {
        if self.config.place() == Place::Card {
            return Vec::new();
        }
        let (head, train) = (&self.head, &self.config.train);
        let row = ENTRY_BYTES * head.entries + TOKEN_BYTES + F32 * head.state_rank;
        let step = train.batch_size as u64 * train.grad_accumulation as u64;
        // Those of a step are there twice: as they came, and as examples.
        let frames = (train.prefetch_frames as u64 + 2 * step) * head.rows * row;
        let basis = match head.loss.needs_state() {
            true => F32 * head.vocab_size * head.state_rank,
            false => 0,
        };
        vec![
            Part::always("frames, decoded", frames),
            Part::during(
                "one matrix, while it is quantised",
                self.loading(),
                &[Phase::Loading],
            ),
            Part::during("the teacher's basis", basis, &[Phase::Loading]),
        ]
    }

    /// A matrix that is quantised when it is read is there as it is stored and in f32; others are read in pieces.
    fn loading(&self) -> u64 {
        let (stored, train) = (self.shape.stored, &self.config.train);
        let quantizes = train.quantize == Quantize::Nf4 && !self.config.is_full();
        match quantizes && stored.four_bit.is_none() {
            true => self.layer(0).largest_linear() * (stored.dense_bytes + F32),
            false => 0,
        }
    }
}

#[cfg(test)]
#[path = "trainer_tests.rs"]
mod tests;
