//! Provides the words of the settings of an alignment: what is compared, what is paid, and where things come from.

use serde::{Deserialize, Serialize};

/// What it costs that a student's position learns from a teacher's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cost {
    /// `C_ij = KL(p_j || q_i) / kappa` over the teacher's kept entries.
    Kl,
    /// `C_ij = 1 - cos(x_i, P y_j)` of hidden states, each side less a mean.
    Hidden,
    /// `C_ij = 1 - softmax_j(S_ij / temperature)` of a similarity S.
    SoftmaxSimilarity,
    /// `C_ij = |x_i - y_j|^2` of raw logits over the mean of all pairs.
    SquaredEuclidean,
}

/// How alike student position i and teacher position j are, for [`Cost::SoftmaxSimilarity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Similarity {
    /// `X Y^T / sqrt(V)` of raw logits: what the formula says; it changes when a row of logits is shifted.
    ScaledDot,
    /// `Xc Yc^T / sqrt(V)` of centred logits.
    CenteredDot,
    /// The cosine of centred logits.
    Cosine,
    /// `sum_v sqrt(p_jv q_iv)` over the kept ids; needs no logits beyond those kept.
    Bhattacharyya,
    /// `X P(Y)^T / sqrt(d)` of hidden states.
    HiddenScaledDot,
    /// The cosine of hidden states x_i and P(y_j).
    HiddenCosine,
}

impl Similarity {
    /// Whether whole logit rows are needed (the `state` field, or dense teacher logits).
    pub fn needs_logits(self) -> bool {
        matches!(self, Self::ScaledDot | Self::CenteredDot | Self::Cosine)
    }

    /// Whether hidden states are compared.
    pub fn is_hidden(self) -> bool {
        matches!(self, Self::HiddenScaledDot | Self::HiddenCosine)
    }
}

/// What is paid on the plan T, and so which gradient is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlignLoss {
    /// The least value of what the plan minimises, `<T,C> - epsilon H(T)` for `sinkhorn`; its gradient is T.
    Entropic,
    /// `<T,C>` with the gradient through the plan.
    Sharp,
    /// Value of `sharp`, with T held fixed in the gradient. Not a gradient of anything: only in the `literal` preset.
    Detached,
    /// `sum_ij T_ij KL(p_j || q_i)` in nats.
    Kl,
    /// `sum_ij T_ij (1 - softmax_j(S_ij / temperature))`.
    Similarity,
    /// `sum_ij T_ij (1 - cos(x_i, P y_j))`, as the cost `hidden`.
    States,
}

/// How the mass of a sequence is spread over the teacher's positions; the student's is uniform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Marginals {
    /// 1/M each.
    Uniform,
    /// As the entropy of what the teacher says there.
    Entropy,
    /// As `exp(-entropy)`.
    Confidence,
}

/// Where the projection P of hidden states comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Projection {
    /// Ridge regression on what both sides share, before the first step.
    Fitted,
    /// Normal numbers, trained along.
    Random,
}

/// Which means hidden states are compared beside, under the cost `hidden`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Centering {
    /// Those of each side over all rows that the projection was fitted on.
    Fitted,
    /// Those of each side over the sequence.
    Sequence,
}

/// How the values of several problems become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Average over the problems.
    Mean,
    /// Sum over the problems.
    Sum,
}
