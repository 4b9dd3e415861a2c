//! Provides the settings of optimal transport, and what is refused before anything is computed.

use serde::{Deserialize, Serialize};

use super::config::{positive, setting};
use super::error::Result;

/// What one unit of transported mass costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cost {
    /// `C_ij = 1 - softmax_j(S_ij / temperature)` of a similarity S.
    SoftmaxSimilarity,
    /// `C_ij = KL(p_j || q_i) / kappa` over the teacher's kept entries.
    Kl,
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
}

impl Similarity {
    /// Whether whole logit rows are needed (the `state` field, or dense teacher logits).
    pub fn needs_logits(self) -> bool {
        self != Self::Bhattacharyya
    }
}

/// Which positions one transport problem covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// All N by M positions of a sequence: one plan, one softmax over all M.
    Row,
    /// Every pair of blocks of `block_size` positions is a problem of its own, with uniform marginals and its own
    /// softmax; the last block of either side is as long as what is left.
    Block,
}

/// How the values of several transport problems become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Average over the problems.
    Mean,
    /// Sum over the problems.
    Sum,
}

/// What is minimised, and so which gradient is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// `F = <T,C> - epsilon H(T)`; gradient T.
    Entropic,
    /// `L = <T*,C>`; gradient through the plan.
    Sharp,
    /// Value of `sharp`, with T held fixed in the gradient. Not a gradient of anything: only in the `literal` preset.
    Detached,
}

/// What the plan is solved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlanCost {
    /// The cost that is paid.
    Same,
    /// `|x_i - y_j|^2` of raw logits over their mean, as the published code of the method solves; the cost that is paid
    /// stays what [`OtConfig::cost`] says.
    SquaredEuclidean,
}

/// Default of [`OtConfig::epsilon`].
pub const EPSILON_DEFAULT: f64 = 0.1;
/// Default of [`OtConfig::position_prior`]: at epsilon 0.1 a hundredth of the sequence costs one nat, so that a weak student's
/// plan stays near the diagonal; with 10 it wanders, and teaches a tenth of what KL does (docs/losses.md).
const POSITION_PRIOR_DEFAULT: f64 = 1000.0;
/// Largest side of a transport problem: the plan of this many positions squared is 1 GiB.
pub const POSITIONS_MAX: usize = 16_384;

/// Settings of the optimal-transport loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "snake_case")]
pub struct OtConfig {
    /// The cost.
    pub cost: Cost,
    /// What the plan is solved for.
    pub plan_cost: PlanCost,
    /// The similarity under `softmax-similarity`.
    pub similarity: Similarity,
    /// Divides the similarity before its softmax.
    pub temperature: f64,
    /// Nats of KL that count as cost 1 under `kl`. About ln V, so that a student that knows nothing costs about 1, and
    /// epsilon 0.1 is one nat: the plan is then close to the posterior of which teacher position a row speaks of.
    pub kappa: f64,
    /// Entropic regularisation, in units of the cost.
    pub epsilon: f64,
    /// `1 / epsilon`, the other usual name; it counts where it is there. Flags and settings files are resolved to `epsilon`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda: Option<f64>,
    /// Positions of one problem.
    pub scope: Scope,
    /// Block length under scope `block`.
    pub block_size: usize,
    /// Over block pairs.
    pub reduction: Reduction,
    /// What is minimised.
    pub objective: Objective,
    /// gamma of `gamma (i/N - j/M)^2`, added to C when solving; 0 switches it off.
    pub position_prior: f64,
    /// Most passes over the kernel that one problem may take.
    pub max_iterations: usize,
    /// L1 marginal error at which the solver stops (total mass is 1).
    pub tolerance: f64,
}

impl Default for OtConfig {
    fn default() -> Self {
        Self {
            cost: Cost::Kl,
            plan_cost: PlanCost::Same,
            similarity: Similarity::Cosine,
            temperature: 0.05,
            kappa: 10.0,
            epsilon: EPSILON_DEFAULT,
            lambda: None,
            scope: Scope::Row,
            block_size: 64,
            reduction: Reduction::Mean,
            objective: Objective::Entropic,
            position_prior: POSITION_PRIOR_DEFAULT,
            max_iterations: 10_000,
            tolerance: 1e-6,
        }
    }
}

impl OtConfig {
    /// Entropic regularisation, by whichever name.
    pub fn epsilon(&self) -> f64 {
        self.lambda.map_or(self.epsilon, |lambda| 1.0 / lambda)
    }

    /// Whether whole logit rows are needed: `state`, or dense teacher logits.
    pub fn needs_logits(&self) -> bool {
        let similarity = self.cost == Cost::SoftmaxSimilarity && self.similarity.needs_logits();
        similarity || self.plan_cost == PlanCost::SquaredEuclidean
    }

    /// Whether this is the formula of the method; its free numbers may differ from the preset's.
    pub(super) fn is_literal(&self) -> bool {
        self.cost == Cost::SoftmaxSimilarity
            && self.similarity == Similarity::ScaledDot
            && self.scope == Scope::Block
            && self.position_prior == 0.0
    }

    pub(super) fn validate(&self) -> Result<()> {
        positive("temperature", self.temperature)?;
        positive("kappa", self.kappa)?;
        positive("epsilon", self.epsilon)?;
        positive("tolerance", self.tolerance)?;
        if let Some(lambda) = self.lambda {
            positive("lambda", lambda)?;
        }
        if !(self.position_prior.is_finite() && self.position_prior >= 0.0) {
            return Err(setting(
                "position_prior",
                format!("{} is not a number of at least 0", self.position_prior),
            ));
        }
        if self.block_size == 0 || self.block_size > POSITIONS_MAX {
            return Err(setting(
                "block_size",
                format!("{} is outside 1..={POSITIONS_MAX}", self.block_size),
            ));
        }
        if self.plan_cost != PlanCost::Same && self.objective == Objective::Entropic {
            return Err(setting(
                "plan_cost",
                "`entropic` is the value of a plan at its own cost; with another plan cost use objective `sharp`"
                    .into(),
            ));
        }
        if self.max_iterations == 0 {
            return Err(setting("max_iterations", "must be at least 1".into()));
        }
        Ok(())
    }
}
