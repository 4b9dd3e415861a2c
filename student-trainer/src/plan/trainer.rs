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
    config::{Quantize, TrainConfig, Tune},
    loss::LossConfig,
    run::{AdapterConfig, refuse_unused, warn_of_unused},
    train::{ANSWER_TOKENS_MAX, PROMPT_TOKENS_MAX},
};

const F32: u64 = 4;
/// f32 copies of the largest trained matrix that its norm in f64 takes on the CPU. A card changes all where they are.
const NORM_COPIES: u64 = 4;
/// f32 copies of a trained head's gradient while a sequence's is added to it.
const HEAD_GRADIENT_COPIES: u64 = 3;
/// Bytes of an entry of a row, of a token beside them, and of a coordinate of a state, in a decoded frame.
const ENTRY_BYTES: u64 = 12;
const TOKEN_BYTES: u64 = 100;

/// What was kept goes, layer by layer, as gradients come.
const KEPT: &[Phase] = &[Phase::Transport, Phase::Loss, Phase::Backward];
const BACKWARD: &[Phase] = &[Phase::Backward, Phase::Lowest];
/// While there is a tape.
const PASS: &[Phase] = &[
    Phase::Transport,
    Phase::Loss,
    Phase::Backward,
    Phase::Lowest,
];
/// Optimisers are made when the weights are in.
const LOADED: &[Phase] = &[
    Phase::Transport,
    Phase::Loss,
    Phase::Backward,
    Phase::Lowest,
    Phase::Update,
    Phase::Saving,
    Phase::Answers,
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
    parts.push(trainer.answers());
    let base = Base {
        place: config.place(),
        vocab_size: pair.student.model.vocab_size as u64,
    };
    parts.extend(base.parts());
    parts.extend(trainer.host());
    Ok(Process::new("trainer", parts, slack(config.place())))
}

/// The adapters of a run; those of `init_adapter` decide themselves. What `train` would refuse is not counted.
pub(super) fn adapters(train: &TrainConfig, student: &ModelConfig) -> Result<LoraConfig> {
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

/// The scales of the student's linears, where these are in four bits.
pub(super) fn four_bit(student: &Shape, train: &TrainConfig) -> Option<FourBit> {
    let quantized = !matches!(train.tune, Tune::Full) && train.quantize == Quantize::Nf4;
    let stored = student.stored.four_bit;
    stored.or(quantized.then_some(FourBit::Double))
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
        let dense = counts.dense_elements() * element;
        let others = Part::always("embeddings, head, norms, biases", dense);
        match four_bit(self.shape, &self.config.train) {
            Some(scales) => vec![
                Part::always("linears in 4 bits", counts.four_bit_bytes(scales)),
                others,
            ],
            None => {
                let linears = counts.linear_elements() * element;
                vec![Part::always("linears", linears), others]
            }
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
        let gradients = match self.config.passes() {
            1 => &[Phase::Lowest, Phase::Update][..],
            _ => &[
                Phase::Transport,
                Phase::Loss,
                Phase::Backward,
                Phase::Lowest,
                Phase::Update,
            ],
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
        if !on_card {
            parts.push(Part::during(
                "norm of one matrix",
                NORM_COPIES * F32 * largest,
                &[Phase::Update],
            ));
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
        let (kept, recomputed, weights) = self.activations();
        let head = &self.head;
        let mut parts = vec![
            Part::during("kept of the layers for the way back", kept, KEPT),
            Part::during("one piece of layers, on the way back", recomputed, BACKWARD),
            Part::during("linears of one product, dequantised", weights, BACKWARD),
            Part::during(
                "adapters, as products take them",
                self.adapters_in_compute_type(),
                PASS,
            ),
            Part::during("logits of a chunk, f32", head.chunk(), &[Phase::Loss]),
            Part::during(
                "hidden states with their gradient",
                head.hidden(),
                &[Phase::Transport, Phase::Loss],
            ),
            Part::during(
                "transport",
                head.transport_kept(),
                &[Phase::Transport, Phase::Loss],
            ),
            Part::during(
                "transport, until its plan is made",
                head.transport_made(),
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

    /// What the answers for the report take, which every run gives that has prompts: their keys and values, and the layers over one
    /// prompt.
    fn answers(&self) -> Part {
        let model = &self.shape.model;
        let element = match self.config.place() {
            Place::Card => self.config.element(),
            Place::Cpu => F32,
        };
        let prompt = self.config.seq_len().min(PROMPT_TOKENS_MAX as u64);
        let positions = self.config.sample_answers() * (prompt + ANSWER_TOKENS_MAX as u64);
        let layers = model.num_hidden_layers as u64;
        let kept = positions * layers * 2 * element * model.key_value_size() as u64;
        let layer = prompt * self.layer(0).forward(element);
        Part::during("answers for the report", kept + layer, &[Phase::Answers])
    }

    /// A card has all adapters once more in the compute type, from the forward pass to the end of the way back.
    fn adapters_in_compute_type(&self) -> u64 {
        match self.config.place() {
            Place::Card if !self.config.is_full() => {
                self.config.element() * self.counts.adapter_elements()
            }
            _ => 0,
        }
    }

    fn layer(&self, index: usize) -> Layer<'_> {
        let linears = self.counts.layers.get(index).map_or(&[][..], Vec::as_slice);
        Layer::new(&self.shape.model, linears)
    }

    /// Kept of all layers; what the widest piece of them adds while it goes back; and the unpacked weights beside that.
    fn activations(&self) -> (u64, u64, u64) {
        let train = &self.config.train;
        let (tokens, element) = (self.config.tokens(), self.config.element());
        let count = self.counts.layers.len();
        let layers = || (0..count).map(|index| self.layer(index));
        let on_cpu = self.config.place() == Place::Cpu;
        let one = |layer: Layer<'_>| {
            if on_cpu {
                layer.kept_on_cpu()
            } else {
                layer.kept_on_card(element)
            }
        };
        let back = |layer: Layer<'_>| {
            if on_cpu {
                (tokens * layer.backward_on_cpu(count as u64), 0)
            } else {
                layer.backward_on_card(element, tokens, self.unpacks())
            }
        };
        // The residual stream is f32 in every compute type.
        let input = F32 * self.shape.model.hidden_size as u64;
        let back = layers()
            .map(back)
            .max_by_key(|(bytes, weights)| bytes + weights);
        let (back, weights) = back.unwrap_or_default();
        if !train.checkpointing {
            let kept: u64 = layers().map(|layer| input + one(layer)).sum();
            return (tokens * kept, back, weights);
        }
        let every = train.checkpoint_every.min(count.max(1));
        let pieces = count.div_ceil(every.max(1)) as u64;
        let widest = layers().map(one).max().unwrap_or(0);
        // The CPU counts the first layer of a piece among its buffers; the first one's input is kept anyway.
        let again = if on_cpu {
            (every as u64 - 1) * (widest + input)
        } else {
            every as u64 * (widest + input) - input
        };
        (tokens * pieces * input, tokens * again + back, weights)
    }

    /// Whether weights that are not in the compute type are unpacked, or converted, for each product.
    fn unpacks(&self) -> bool {
        let quantized = self.config.train.quantize == Quantize::Nf4;
        let four_bit = self.shape.stored.four_bit.is_some() || quantized;
        self.config.is_full() || four_bit
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
        let frames = (train.prefetch_frames as u64
            + (train.shuffle_buffer as u64).saturating_sub(1)
            + 2 * step)
            * head.rows
            * row;
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
