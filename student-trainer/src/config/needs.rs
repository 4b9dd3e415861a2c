//! Provides what settings need beside themselves to have an effect.

use distill_program::settings::{Is, Need};

const KL_WEIGHT: (&str, Is) = ("loss.kl_weight", Is::Above0);
const KL_WEIGHT_END: (&str, Is) = ("loss.schedule.kl_weight_end", Is::Above0);
const REVERSE_KL_WEIGHT: (&str, Is) = ("loss.reverse_kl_weight", Is::Above0);
const REVERSE_KL_WEIGHT_END: (&str, Is) = ("loss.schedule.reverse_kl_weight_end", Is::Above0);
const JSD_WEIGHT: (&str, Is) = ("loss.jsd_weight", Is::Above0);
const JSD_WEIGHT_END: (&str, Is) = ("loss.schedule.jsd_weight_end", Is::Above0);
const OT_WEIGHT: (&str, Is) = ("loss.ot_weight", Is::Above0);
const OT_WEIGHT_END: (&str, Is) = ("loss.schedule.ot_weight_end", Is::Above0);

/// A divergence from the teacher.
pub const DIVERGENCE: Need = &[
    KL_WEIGHT,
    KL_WEIGHT_END,
    REVERSE_KL_WEIGHT,
    REVERSE_KL_WEIGHT_END,
    JSD_WEIGHT,
    JSD_WEIGHT_END,
];
/// That from the mixture of teacher and student.
pub const JSD: Need = &[JSD_WEIGHT, JSD_WEIGHT_END];
/// What is learned between positions.
pub const OT: Need = &[OT_WEIGHT, OT_WEIGHT_END];
/// A cost made of similarities, to make the plan for or to pay.
pub const SIMILARITY: Need = &[
    ("loss.align.cost", Is::One(&["softmax-similarity"])),
    ("loss.align.loss", Is::One(&["similarity"])),
];
/// A cost made of divergences.
pub const COST_KL: Need = &[("loss.align.cost", Is::One(&["kl"]))];
/// Hidden states.
pub const HIDDEN: Need = &[
    ("loss.align.cost", Is::One(&["hidden"])),
    ("loss.align.loss", Is::One(&["states"])),
    (
        "loss.align.similarity",
        Is::One(&["hidden-cosine", "hidden-scaled-dot"]),
    ),
];
/// Hidden states beside their means.
pub const STATES: Need = &[
    ("loss.align.cost", Is::One(&["hidden"])),
    ("loss.align.loss", Is::One(&["states"])),
];
/// A plan that looks at costs.
pub const COSTED: Need = &[(
    "loss.align.plan",
    Is::One(&[
        "sinkhorn",
        "unbalanced",
        "partial",
        "mutual",
        "row",
        "monotone",
    ]),
)];
/// A plan that is solved by steps.
pub const SOLVED: Need = &[(
    "loss.align.plan",
    Is::One(&["sinkhorn", "unbalanced", "partial"]),
)];
/// A plan whose marginals are penalties.
pub const UNBALANCED: Need = &[("loss.align.plan", Is::One(&["unbalanced"]))];
/// A plan of a part of the mass.
pub const PARTIAL: Need = &[("loss.align.plan", Is::One(&["partial"]))];
/// A plan that gives the teacher's positions their masses.
pub const MASSES: Need = &[(
    "loss.align.plan",
    Is::One(&[
        "sinkhorn",
        "unbalanced",
        "partial",
        "mutual",
        "row",
        "uniform",
    ]),
)];
/// A payment that says by itself how far its gradient goes.
pub const HELD: Need = &[("loss.align.loss", Is::One(&["kl", "similarity", "states"]))];
/// Several problems of transport.
pub const BLOCKS: Need = &[("loss.align.block_size", Is::Above0)];

/// Adapters.
pub const LORA: Need = &[("tune", Is::One(&["lora"]))];
/// Every weight.
pub const FULL: Need = &[("tune", Is::One(&["full"]))];
/// Adapters that begin with this run.
pub const NEW_ADAPTER: Need = &[("init_adapter", Is::Unset)];
/// A length in passes.
pub const NO_STEPS: Need = &[("steps", Is::Unset)];
/// A warm-up in shares.
pub const NO_WARMUP_STEPS: Need = &[("warmup_steps", Is::Unset)];
/// Evaluations while training.
pub const EVAL_DATA: Need = &[("eval_data", Is::Set)];
/// Answers at those evaluations.
pub const EVAL_ANSWERS: Need = &[("eval_exact_match", Is::On)];
/// Answers that are drawn.
pub const EVAL_DRAWN: Need = &[("eval_temperature", Is::Above0)];

/// A teacher that is asked.
pub const TEACHER: Need = &[("teacher", Is::Set)];
/// One with a certificate.
pub const HTTPS: Need = &[("teacher", Is::Begins("https://"))];
/// One that `plan` counts.
pub const TEACHER_MODEL: Need = &[("teacher", Is::NoAddress)];
/// The machine's memory.
pub const ON_CPU: Need = &[("device", Is::One(&["cpu"]))];
/// A GPU's memory.
pub const ON_GPU: Need = &[("device", Is::Not("cpu"))];
/// Answers of `eval`.
pub const ANSWERS: Need = &[("exact_match", Is::On), ("answers_out", Is::Set)];
/// Answers of `eval` that are drawn.
pub const DRAWN: Need = &[("temperature", Is::Above0)];
/// Plans that `eval` writes.
pub const PLANS_OUT: Need = &[("plans_out", Is::Set)];
/// Weights in four bits.
pub const FOUR_BITS: Need = &[("weights", Is::One(&["4bit", "nf4"]))];
/// A directory for Hugging Face.
pub const HF: Need = &[("format", Is::One(&["hf"]))];
/// A whole model in one GGUF file.
pub const GGUF: Need = &[("format", Is::One(&["gguf"]))];
/// A whole model, which has a tokenizer.
pub const MERGED: Need = &[("format", Is::One(&["hf", "gguf"]))];
/// An adapter over the student.
pub const ADAPTER: Need = &[("adapter", Is::Set)];
/// A student that answers, not a teacher alone.
pub const STUDENT: Need = &[("student", Is::Set), ("adapter", Is::Set)];
/// What a student's answers stand beside.
pub const COMPARED: Need = &[("adapter", Is::Set), ("teacher", Is::Set)];
/// Conversations of `generate`.
pub const CHAT: Need = &[("chat", Is::On), ("prompts", Is::Set)];
