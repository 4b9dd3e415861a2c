//! Provides the decoded form of what a teacher says about the targets of one sequence.

use half::f16;

use crate::{numbers::signed_byte, v1};

/// Count that marks an entry of a head+sampled row as padding: 0 stands for an exactly known head entry there.
pub const PADDING_COUNT: u32 = u32::MAX;

/// How a row stands for the teacher's distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Estimator {
    /// The K largest logits.
    TopK = 1,
    /// Draws from the teacher's distribution: ids with counts; unbiased. A row with fewer distinct ids than K is filled
    /// up with ids of count 0, which say nothing.
    Sampled = 2,
    /// The largest logits (count 0, exactly known) plus draws from the distribution without them (count 1 and more). A row
    /// with fewer entries than K is filled up with ids of count `PADDING_COUNT`.
    HeadSampled = 3,
}

impl Estimator {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::TopK, Self::Sampled, Self::HeadSampled];

    /// The estimator with this number, in a frame or in the schema; `None` for one that this build does not know.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == code)
    }

    /// The estimator of a handshake, as [`from_code`](Self::from_code).
    pub fn from_schema(value: v1::Estimator) -> Option<Self> {
        Self::from_code(u8::try_from(i32::from(value)).ok()?)
    }

    /// Its number in a frame and in the schema.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::TopK => "top-k",
            Self::Sampled => "sampled",
            Self::HeadSampled => "head+sampled",
        }
    }

    /// Whether the largest logits are kept, whatever is drawn.
    pub fn has_head(self) -> bool {
        matches!(self, Self::TopK | Self::HeadSampled)
    }

    /// Whether entries are drawn, and so have counts.
    pub fn is_drawn(self) -> bool {
        self != Self::TopK
    }

    /// Whether an entry with this count only fills its row up: its id and its logit say nothing.
    pub fn is_padding(self, count: u32) -> bool {
        match self {
            Self::TopK => false,
            Self::Sampled => count == 0,
            Self::HeadSampled => count == PADDING_COUNT,
        }
    }

    /// The count that padding carries; `None` where rows are never padded.
    pub fn padding_count(self) -> Option<u32> {
        match self {
            Self::TopK => None,
            Self::Sampled => Some(0),
            Self::HeadSampled => Some(PADDING_COUNT),
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
    /// The output of an earlier layer, which the handshake names; there is no basis.
    Hidden = 4,
}

impl StateKind {
    /// Whether `GetBasis` has a matrix that takes `state` to the centred logits.
    pub fn has_basis(self) -> bool {
        self != Self::Hidden
    }
}

impl From<StateKind> for v1::StateKind {
    fn from(kind: StateKind) -> Self {
        match kind {
            StateKind::Exact => Self::Exact,
            StateKind::Sketch => Self::Sketch,
            StateKind::Hidden => Self::Hidden,
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
    /// `max - logit` in steps that double every two nats from this one on, up to 1 nat: an entry matters by its probability.
    /// A multiple of [`ValueCoding::GRADE`], at most 1.
    Graded(f32),
}

impl ValueCoding {
    /// Unit of graded steps in nats, 2^-10: sums of steps are exact.
    pub const GRADE: f32 = 1.0 / 1024.0;
    /// Graded steps that add about 2e-4 nats of KL to the 64 largest logits of a language model; FORMAT.md has the table.
    pub const GRADED: Self = Self::Graded(0.046875);

    /// The most by which rounding changes a distance of up to `farthest` nats.
    pub(crate) fn rounding(self, farthest: f64) -> f64 {
        match self {
            Self::Step(step) => f64::from(step) / 2.0,
            // Eleven significant bits; twice their half, since `farthest` may be rounded itself.
            Self::F16 => farthest / 1024.0 + f64::from(f16::MIN_POSITIVE_SUBNORMAL),
            Self::Graded(_) => 0.5,
        }
    }

    /// Whether the step is one that can be written.
    pub fn is_valid(self) -> bool {
        match self {
            Self::Step(step) => step.is_finite() && step > 0.0,
            Self::F16 => true,
            Self::Graded(step) => {
                (Self::GRADE..=1.0).contains(&step) && (step / Self::GRADE).fract() == 0.0
            }
        }
    }
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

/// The scale of a row of scaled bytes, and its inverse: the largest magnitude becomes 127.
pub(crate) fn byte_scale(row: &[f32]) -> (f32, f32) {
    let scale = row.iter().fold(0f32, |max, value| max.max(value.abs())) / 127.0;
    (scale, if scale > 0.0 { scale.recip() } else { 0.0 })
}

/// A coordinate as the byte that is stored for it.
pub(crate) fn scaled_byte(value: f32, inverse: f32) -> i8 {
    signed_byte((value * inverse).round().clamp(-127.0, 127.0))
}

impl StateCoding {
    /// Replaces one row by what a reader of a frame will find in its place.
    pub fn round_row(self, row: &mut [f32]) {
        match self {
            Self::F16 => row
                .iter_mut()
                .for_each(|value| *value = f16::from_f32(*value).to_f32()),
            Self::I8 => {
                let (scale, inverse) = byte_scale(row);
                row.iter_mut()
                    .for_each(|value| *value = f32::from(scaled_byte(*value, inverse)) * scale);
            }
        }
    }
}

/// Coordinates of the centred teacher logits in a basis B `[V, r]`, `Y - mean(Y) = B c`; or hidden states without a basis.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Which basis.
    pub kind: StateKind,
    /// How it is stored.
    pub coding: StateCoding,
    /// Coordinates a row.
    pub rank: usize,
    /// Parts of a row, side by side and as long as each other: the outputs of so many layers; else 1.
    pub layers: usize,
    /// `[rows, rank]`, row-major.
    pub values: Vec<f32>,
}

impl State {
    /// Coordinates of one layer's output.
    pub fn layer_rank(&self) -> usize {
        self.rank / self.layers.max(1)
    }
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
    /// `HeadSampled` rows, whose padding is `PADDING_COUNT`; `Estimator::is_padding` tells.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimator_has_one_number_in_frames_and_in_the_schema() {
        for estimator in Estimator::ALL {
            let of_schema = v1::Estimator::try_from(i32::from(estimator.code())).unwrap();
            assert_eq!(Estimator::from_schema(of_schema), Some(estimator));
            let name = estimator.name().replace(['-', '+'], "_").to_uppercase();
            assert!(of_schema.as_str_name().ends_with(&name), "{name}");
        }
        assert_eq!(Estimator::from_schema(v1::Estimator::Unspecified), None);
    }
}
