//! Provides the settings of what is learned between positions that need not be the same: which plan, for which cost, and what
//! is paid on it.

use serde::{Deserialize, Serialize};

pub use super::align_choices::{
    AlignLoss, Centering, Cost, Marginals, Projection, Reduction, Similarity,
};
use super::config::{positive, setting};
use super::error::Result;
use super::layers::StateLayer;
use super::plan::PlanKind;

/// Default of [`AlignConfig::epsilon`].
pub const EPSILON_DEFAULT: f64 = 0.1;
/// Default of [`AlignConfig::position`] between two readings of one text: at epsilon 0.1 a hundredth of the sequence costs one
/// nat, so that a weak student's plan stays near the diagonal; with 10 it wanders, and teaches a tenth of what KL does
/// (docs/which-loss.md).
const POSITION_DEFAULT: f64 = 1000.0;
/// Default between the two texts of a pair, which may tell things in any order.
const POSITION_DEFAULT_OF_PAIRS: f64 = 0.0;
/// Default of both [`AlignConfig::rho_student`] and [`AlignConfig::rho_teacher`].
const RHO_DEFAULT: f64 = 0.3;
/// Default of [`AlignConfig::projection_lr`] for a projection that is not fitted.
const PROJECTION_LR_DEFAULT: f64 = 1e-3;
/// Largest side of a problem: the plan of this many positions squared is 1 GiB.
pub const POSITIONS_MAX: usize = 16_384;

/// Settings of the alignment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "snake_case")]
pub struct AlignConfig {
    /// How the plan is made.
    pub plan: PlanKind,
    /// What the plan is made for.
    pub cost: Cost,
    /// What is paid on it.
    pub loss: AlignLoss,
    /// Whether the gradient of `kl`, `similarity` and `states` goes through the plan too. Otherwise plan and student are
    /// minimised in turns: T is made, then held.
    pub through_plan: bool,
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
    /// What a unit of the student's mass that is not as it should be costs in the plan `unbalanced`.
    pub rho_student: f64,
    /// The same for the teacher's.
    pub rho_teacher: f64,
    /// What the plan `partial` transports, of 1.
    pub mass: f64,
    /// How the mass of a sequence is spread over the teacher's positions.
    pub marginals: Marginals,
    /// Length of the blocks whose pairs are problems of their own; 0: one problem of all positions.
    pub block_size: usize,
    /// Over block pairs.
    pub reduction: Reduction,
    /// gamma of `gamma (i/N - j/M)^2`, added to C when the plan is made; 0 switches it off. Unset: 1000, and 0 for a sequence
    /// whose sides are two texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<f64>,
    /// Taken from C then, where both sides have the same number or name.
    pub bytes: f64,
    /// Taken from C then, where the record joins both sides.
    pub links: f64,
    /// Which hidden states are compared: `TEACHER_STATE:STUDENT_LAYER`, or with `:WEIGHT`. Of several pairs of layers the
    /// weighted mean counts.
    pub layers: Vec<StateLayer>,
    /// Where the projection P of hidden states comes from.
    pub projection: Projection,
    /// Which means states are compared beside under the cost `hidden`; unset: the fitted ones of a fitted projection, the
    /// sequence's under a random one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub centering: Option<Centering>,
    /// Peak learning rate of P; unset: 0 for a fitted one, which is held, and 0.001 for a random one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection_lr: Option<f64>,
    /// Most passes over the kernel that one problem may take.
    pub max_iterations: usize,
    /// L1 marginal error at which solvers stop (total mass is 1).
    pub tolerance: f64,
}

impl Default for AlignConfig {
    fn default() -> Self {
        Self {
            plan: PlanKind::Sinkhorn,
            cost: Cost::Kl,
            loss: AlignLoss::Entropic,
            through_plan: false,
            similarity: Similarity::Cosine,
            temperature: 0.05,
            kappa: 10.0,
            epsilon: EPSILON_DEFAULT,
            lambda: None,
            rho_student: RHO_DEFAULT,
            rho_teacher: RHO_DEFAULT,
            mass: 0.8,
            marginals: Marginals::Uniform,
            block_size: 0,
            reduction: Reduction::Mean,
            position: None,
            bytes: 0.0,
            links: 0.0,
            layers: vec![StateLayer::default()],
            projection: Projection::Fitted,
            centering: None,
            projection_lr: None,
            max_iterations: 10_000,
            tolerance: 1e-6,
        }
    }
}

impl AlignConfig {
    /// Entropic regularisation, by whichever name.
    pub fn epsilon(&self) -> f64 {
        self.lambda.map_or(self.epsilon, |lambda| 1.0 / lambda)
    }

    /// gamma of the position prior, for a sequence whose sides are two texts or for another one.
    pub fn position(&self, is_pair: bool) -> f64 {
        self.position.unwrap_or(if is_pair {
            POSITION_DEFAULT_OF_PAIRS
        } else {
            POSITION_DEFAULT
        })
    }

    /// What the plan is made for. One that looks at no cost is taken to be made for what is paid.
    pub fn solved(&self) -> Cost {
        match self.plan {
            PlanKind::Uniform | PlanKind::Links => self.paid(),
            _ => self.cost,
        }
    }

    /// What is paid.
    pub fn paid(&self) -> Cost {
        match self.loss {
            AlignLoss::Kl => Cost::Kl,
            AlignLoss::Similarity => Cost::SoftmaxSimilarity,
            AlignLoss::States => Cost::Hidden,
            AlignLoss::Entropic | AlignLoss::Sharp | AlignLoss::Detached => self.cost,
        }
    }

    /// Nats of KL that count as 1 in what is paid.
    pub(crate) fn paid_kappa(&self) -> f64 {
        match self.loss {
            AlignLoss::Kl => 1.0,
            _ => self.kappa,
        }
    }

    /// What is paid for 1 of the cost that the plan is made for, where both are the same.
    pub(crate) fn scale(&self) -> f64 {
        match self.loss {
            AlignLoss::Kl => self.kappa,
            _ => 1.0,
        }
    }

    /// Whether the gradient goes through the plan, beside what is paid.
    pub(crate) fn goes_through_plan(&self) -> bool {
        match self.loss {
            AlignLoss::Sharp => true,
            AlignLoss::Entropic | AlignLoss::Detached => false,
            AlignLoss::Kl | AlignLoss::Similarity | AlignLoss::States => self.through_plan,
        }
    }

    /// Whether what is constant along a row of KL, the student's logsumexp, moves plan or gradient: then it must be known
    /// before. Plans whose rows have a mass that is given do not see it.
    pub(crate) fn sees_rows(&self) -> bool {
        let rows_are_given = matches!(
            self.plan,
            PlanKind::Sinkhorn | PlanKind::Row | PlanKind::Uniform | PlanKind::Links
        );
        let through_paid = self.paid() == Cost::Kl && self.goes_through_plan();
        !rows_are_given && (self.solved() == Cost::Kl || through_paid)
    }

    /// What the student's logsumexp, weighted with the plan's row masses, adds to what is paid, where costs are made without it.
    pub(crate) fn row_constant(&self) -> Option<f64> {
        (self.paid() == Cost::Kl && !self.sees_rows()).then(|| self.paid_kappa().recip())
    }

    /// Whether a card's kernels solve it: entropic transport between uniform masses, paid for the cost that it is made for.
    pub fn is_for_a_card(&self) -> bool {
        self.plan == PlanKind::Sinkhorn
            && self.marginals == Marginals::Uniform
            && self.solved() == self.paid()
            && self.solved() != Cost::SquaredEuclidean
    }

    fn uses(&self, cost: Cost) -> bool {
        [self.solved(), self.paid()].contains(&cost)
    }

    /// Whether KL is a cost or is paid.
    pub fn uses_kl(&self) -> bool {
        self.uses(Cost::Kl)
    }

    /// Whether whole logit rows are needed: `state`, or dense teacher logits.
    pub fn needs_logits(&self) -> bool {
        let similarity = self.uses(Cost::SoftmaxSimilarity) && self.similarity.needs_logits();
        similarity || self.uses(Cost::SquaredEuclidean)
    }

    /// Whether square roots of probabilities are.
    pub(super) fn needs_roots(&self) -> bool {
        self.uses(Cost::SoftmaxSimilarity) && self.similarity == Similarity::Bhattacharyya
    }

    /// Whether hidden states are.
    pub fn needs_states(&self) -> bool {
        let similarity = self.uses(Cost::SoftmaxSimilarity) && self.similarity.is_hidden();
        similarity || self.uses(Cost::Hidden)
    }

    /// Which means states are compared beside.
    pub fn centering(&self) -> Centering {
        self.centering.unwrap_or(match self.projection {
            Projection::Fitted => Centering::Fitted,
            Projection::Random => Centering::Sequence,
        })
    }

    /// Peak learning rate of the projection.
    pub fn projection_lr(&self) -> f64 {
        self.projection_lr.unwrap_or(match self.projection {
            Projection::Fitted => 0.0,
            Projection::Random => PROJECTION_LR_DEFAULT,
        })
    }

    /// Whether this is the formula of the method; its free numbers may differ from the preset's.
    pub(super) fn is_literal(&self) -> bool {
        self.plan == PlanKind::Sinkhorn
            && self.cost == Cost::SoftmaxSimilarity
            && self.similarity == Similarity::ScaledDot
            && self.block_size > 0
            && self.position(false) + self.bytes + self.links == 0.0
            && self.marginals == Marginals::Uniform
    }

    pub(super) fn validate(&self) -> Result<()> {
        positive("temperature", self.temperature)?;
        positive("kappa", self.kappa)?;
        positive("epsilon", self.epsilon)?;
        positive("tolerance", self.tolerance)?;
        let held = self.projection == Projection::Fitted && self.projection_lr() == 0.0;
        if !held {
            positive("projection_lr", self.projection_lr())?;
        }
        if self.projection == Projection::Random && self.centering() == Centering::Fitted {
            return Err(setting(
                "centering",
                "a random projection knows no means: use centering sequence, or projection fitted"
                    .into(),
            ));
        }
        if let Some(lambda) = self.lambda {
            positive("lambda", lambda)?;
        }
        for (key, rho) in [
            ("rho_student", self.rho_student),
            ("rho_teacher", self.rho_teacher),
        ] {
            // Infinity keeps the marginal.
            if rho.is_nan() || rho <= 0.0 {
                return Err(setting(key, format!("{rho} is not a number above 0")));
            }
        }
        if !(self.mass > 0.0 && self.mass <= 1.0) {
            return Err(setting(
                "mass",
                format!("{} is not above 0 and at most 1", self.mass),
            ));
        }
        for (key, added) in [
            ("position", self.position(false)),
            ("bytes", self.bytes),
            ("links", self.links),
        ] {
            if !(added.is_finite() && added >= 0.0) {
                return Err(setting(
                    key,
                    format!("{added} is not a number of at least 0"),
                ));
            }
        }
        if self.max_iterations == 0 {
            return Err(setting("max_iterations", "must be at least 1".into()));
        }
        self.check_blocks()?;
        self.check_loss()?;
        self.check_layers()
    }

    fn check_layers(&self) -> Result<()> {
        if self.layers.is_empty() {
            return Err(setting(
                "layers",
                "no pair of layers is named; give one such as 0:last".into(),
            ));
        }
        for (at, layer) in self.layers.iter().enumerate() {
            let ends = layer.ends();
            if self.layers[..at].iter().any(|other| other.ends() == ends) {
                return Err(setting(
                    "layers",
                    format!("{ends} is there twice; give it one weight"),
                ));
            }
        }
        Ok(())
    }

    fn check_blocks(&self) -> Result<()> {
        if self.block_size > POSITIONS_MAX {
            return Err(setting(
                "block_size",
                format!("{} is more than {POSITIONS_MAX}", self.block_size),
            ));
        }
        if self.block_size > 0 && matches!(self.plan, PlanKind::Monotone | PlanKind::Links) {
            return Err(setting(
                "block_size",
                "the plans `monotone` and `links` are of whole sequences; use block_size 0".into(),
            ));
        }
        Ok(())
    }

    fn check_loss(&self) -> Result<()> {
        let minimises_nothing = matches!(
            self.plan,
            PlanKind::Mutual | PlanKind::Uniform | PlanKind::Links
        );
        if self.loss == AlignLoss::Entropic && minimises_nothing {
            return Err(setting(
                "loss",
                "`entropic` is the least value of what a plan minimises, and `mutual`, `uniform` and `links` minimise nothing; \
                 use loss `kl`, `states`, `similarity` or `sharp`"
                    .into(),
            ));
        }
        if self.loss == AlignLoss::Detached && !self.is_literal() {
            return Err(setting(
                "loss",
                "`detached` is not a gradient of the loss and exists only inside the preset `literal`; use \
                 `entropic` or `sharp`"
                    .into(),
            ));
        }
        Ok(())
    }
}
