//! Provides the decoded form of what a teacher says about the targets of one sequence.

use crate::v1;

/// How a row stands for the teacher's distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Estimator {
    /// The K largest logits.
    TopK = 1,
    /// Draws from the teacher's distribution: ids with counts; unbiased. A row with fewer distinct ids than K is filled
    /// up with ids of count 0, which say nothing.
    Sampled = 2,
    /// The largest logits (count 0, exactly known) plus draws from the distribution without them (count 1 and more).
    HeadSampled = 3,
}

impl From<Estimator> for v1::Estimator {
    fn from(estimator: Estimator) -> Self {
        match estimator {
            Estimator::TopK => Self::TopK,
            Estimator::Sampled => Self::Sampled,
            Estimator::HeadSampled => Self::HeadSampled,
        }
    }
}

impl Estimator {
    /// The estimator of a handshake; `None` for a value that this build does not know.
    pub fn from_schema(value: v1::Estimator) -> Option<Self> {
        match value {
            v1::Estimator::TopK => Some(Self::TopK),
            v1::Estimator::Sampled => Some(Self::Sampled),
            v1::Estimator::HeadSampled => Some(Self::HeadSampled),
            v1::Estimator::Unspecified => None,
        }
    }
}

/// What `state` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum StateKind {
    /// The last hidden state; the basis is the centred lm_head.
    Exact = 2,
    /// Coordinates in the leading directions of the centred logits.
    Sketch = 3,
}

impl From<StateKind> for v1::StateKind {
    fn from(kind: StateKind) -> Self {
        match kind {
            StateKind::Exact => Self::Exact,
            StateKind::Sketch => Self::Sketch,
        }
    }
}

/// How the kept logits are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueCoding {
    /// `max - logit` in units of this many nats, rounded to the nearest u8/u16 step.
    Step(f32),
    /// `max - logit` as IEEE half precision.
    F16,
}

/// How `state` is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StateCoding {
    /// IEEE half precision.
    F16 = 1,
    /// One f32 scale a row and signed bytes.
    I8 = 2,
}

/// Coordinates of the centred teacher logits in a basis B `[V, r]`: `Y - mean(Y) = B c`.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Which basis.
    pub kind: StateKind,
    /// How it is stored.
    pub coding: StateCoding,
    /// Coordinates a row.
    pub rank: usize,
    /// `[rows, rank]`, row-major.
    pub values: Vec<f32>,
}

/// The teacher's rows for the targets of one sequence, decoded.
///
/// Row `i` belongs to the `i`-th target of the frame (`Frame::target_positions`) and describes the distribution of that
/// token, that is the output at the position before it. No temperature is baked in.
///
/// # Shapes
/// `ids`, `logits`, `counts`: `[rows, k]`; `max`, `mean`, `std`: `[rows]`; `logsumexp`: `[temperatures, rows]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// Number of rows.
    pub rows: usize,
    /// Kept entries a row.
    pub k: usize,
    /// Effective vocabulary; every id is below it.
    pub vocab_size: u32,
    /// How the rows stand for the distribution.
    pub estimator: Estimator,
    /// How `logits` are stored.
    pub coding: ValueCoding,
    /// Strictly increasing within a row.
    pub ids: Vec<u32>,
    /// Raw logits. After decoding, kept entries carry the probability mass they had before quantisation.
    pub logits: Vec<f32>,
    /// Draws per id; empty for `Estimator::TopK`. Count 0 is padding in `Sampled` rows and an exactly known head entry in
    /// `HeadSampled` rows.
    pub counts: Vec<u32>,
    /// Largest logit over the effective vocabulary, before quantisation.
    pub max: Vec<f32>,
    /// Mean over the effective vocabulary.
    pub mean: Vec<f32>,
    /// Population standard deviation over the effective vocabulary.
    pub std: Vec<f32>,
    /// Temperatures tau at which `logsumexp` is stored, e.g. 1, 2, 4.
    pub temperatures: Vec<f32>,
    /// `logsumexp(Y / tau)` per temperature, over the effective vocabulary.
    pub logsumexp: Vec<Vec<f32>>,
    /// Optional coordinates of the centred logits.
    pub state: Option<State>,
}
