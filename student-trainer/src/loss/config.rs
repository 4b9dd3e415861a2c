//! Provides the settings of the losses, their presets, and what is refused before anything is computed.

use distill_proto::{Estimator, Rows};
use serde::{Deserialize, Serialize};

use super::error::{LossError, Result};

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

/// Default of [`OtConfig::epsilon`], which `lambda` may replace.
pub const EPSILON_DEFAULT: f64 = 0.1;
/// Default of [`LossConfig::chunk_rows`]: 128 rows of 151,936 f32 logits are 78 MB.
pub const CHUNK_ROWS_DEFAULT: usize = 128;
/// Largest side of a transport problem: the plan of this many positions squared is 1 GiB.
pub const POSITIONS_MAX: usize = 16_384;

/// Settings of the optimal-transport loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "snake_case")]
pub struct OtConfig {
    /// The cost.
    pub cost: Cost,
    /// The similarity under `softmax-similarity`.
    pub similarity: Similarity,
    /// Divides the similarity before its softmax.
    pub temperature: f64,
    /// Nats of KL that count as cost 1 under `kl`. About ln V, so that a student that knows nothing costs about 1, and
    /// epsilon 0.1 is one nat: the plan is then close to the posterior of which teacher position a row speaks of.
    pub kappa: f64,
    /// Entropic regularisation, in units of the cost.
    pub epsilon: f64,
    /// `1 / epsilon`, the other usual name. Give one of the two.
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
            similarity: Similarity::Cosine,
            temperature: 0.05,
            kappa: 10.0,
            epsilon: EPSILON_DEFAULT,
            lambda: None,
            scope: Scope::Row,
            block_size: 64,
            reduction: Reduction::Mean,
            objective: Objective::Entropic,
            position_prior: 10.0,
            max_iterations: 2000,
            tolerance: 1e-6,
        }
    }
}

/// Settings of the whole loss: `ce_weight CE + kl_weight KL + ot_weight OT`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "snake_case")]
pub struct LossConfig {
    /// Weight of cross-entropy with the corpus' own tokens.
    pub ce_weight: f64,
    /// Weight of `tau^2 KL(teacher || student)`.
    pub kl_weight: f64,
    /// tau; must be one of the temperatures stored at capture.
    pub kl_temperature: f64,
    /// Weight of optimal transport.
    pub ot_weight: f64,
    /// Settings of optimal transport.
    pub ot: OtConfig,
    /// Rows whose logits exist at one time.
    pub chunk_rows: usize,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            ce_weight: 1.0,
            kl_weight: 1.0,
            kl_temperature: 1.0,
            ot_weight: 0.5,
            ot: OtConfig::default(),
            chunk_rows: CHUNK_ROWS_DEFAULT,
        }
    }
}

impl LossConfig {
    /// The method's formula word for word: raw scaled dots, lambda = 0.1 (epsilon 10), blocks of 64, the plan held
    /// fixed in the gradient, no position prior. It is here for comparison: it does not teach.
    pub fn literal() -> Self {
        Self {
            ot_weight: 1.0,
            ot: OtConfig {
                cost: Cost::SoftmaxSimilarity,
                similarity: Similarity::ScaledDot,
                temperature: 1.0,
                lambda: Some(0.1),
                scope: Scope::Block,
                objective: Objective::Detached,
                position_prior: 0.0,
                ..OtConfig::default()
            },
            ..Self::default()
        }
    }

    /// A preset by its name, `default` or `literal`.
    ///
    /// # Errors
    /// [`LossError::Setting`] for another name.
    pub fn preset(name: &str) -> Result<Self> {
        match name {
            "default" => Ok(Self::default()),
            "literal" => Ok(Self::literal()),
            _ => Err(setting(
                "preset",
                format!("`{name}` is not known; there are `default` and `literal`"),
            )),
        }
    }

    /// Checks every setting on its own.
    ///
    /// # Errors
    /// [`LossError::Setting`] names the first key that has no meaning.
    pub fn validate(&self) -> Result<()> {
        for (key, weight) in [
            ("ce_weight", self.ce_weight),
            ("kl_weight", self.kl_weight),
            ("ot_weight", self.ot_weight),
        ] {
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(setting(
                    key,
                    format!("{weight} is not a number of at least 0"),
                ));
            }
        }
        if self.ce_weight + self.kl_weight + self.ot_weight == 0.0 {
            return Err(setting(
                "ce_weight",
                "all weights are 0: nothing would be trained".into(),
            ));
        }
        positive("kl_temperature", self.kl_temperature)?;
        if self.chunk_rows == 0 {
            return Err(setting("chunk_rows", "must be at least 1".into()));
        }
        self.ot.validate()?;
        if self.ot.objective == Objective::Detached && !self.ot.is_literal() {
            return Err(setting(
                "objective",
                "`detached` is not a gradient of the loss and exists only inside the preset `literal`; use \
                 `entropic` or `sharp`"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Whether the teacher must send `state` (or be dense) for these settings.
    pub fn needs_state(&self) -> bool {
        self.ot_weight > 0.0
            && self.ot.cost == Cost::SoftmaxSimilarity
            && self.ot.similarity.needs_logits()
    }

    /// Checks the settings against what the teacher stores, before the first step.
    ///
    /// `temperatures` are those at which `logsumexp` is stored; `has_state` says whether coordinates of the whole
    /// logits come with the rows.
    ///
    /// # Errors
    /// [`LossError::Unsupported`] with the reason and the remedy; [`LossError::Setting`] as [`Self::validate`].
    pub fn check_teacher(
        &self,
        estimator: Estimator,
        temperatures: &[f32],
        has_state: bool,
    ) -> Result<()> {
        self.validate()?;
        if estimator != Estimator::TopK {
            return Err(unsupported(
                "a loss on `sampled` or `head+sampled` rows",
                "this build reads `top_k` rows only; capture the teacher with the estimator `top_k`"
                    .into(),
            ));
        }
        if self.kl_weight > 0.0 && stored_temperature(temperatures, self.kl_temperature).is_none() {
            return Err(unsupported(
                "KL",
                format!(
                    "kl_temperature {} is not stored: the teacher kept logsumexp at {temperatures:?} only, and the \
                     mass of the tail is not known at others; choose one of these or capture again",
                    self.kl_temperature
                ),
            ));
        }
        let bhattacharyya = self.ot_weight > 0.0
            && self.ot.cost == Cost::SoftmaxSimilarity
            && self.ot.similarity == Similarity::Bhattacharyya;
        if bhattacharyya && stored_temperature(temperatures, 1.0).is_none() {
            return Err(unsupported(
                "similarity `bhattacharyya`",
                format!(
                    "it needs the teacher's logsumexp at temperature 1, and {temperatures:?} are stored"
                ),
            ));
        }
        if self.needs_state() && !has_state {
            return Err(unsupported(
                "a similarity of logits",
                "the top logits hold about 1 % of the centred logits' energy, so the rows must carry `state`; capture \
                 the teacher with a state, or use cost `kl` or similarity `bhattacharyya`"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Checks the settings for a student whose head is trained.
    ///
    /// # Errors
    /// [`LossError::Unsupported`] for similarities of whole logit rows.
    pub fn check_trained_head(&self) -> Result<()> {
        if self.needs_state() {
            return Err(unsupported(
                "a similarity of logits under full-parameter training",
                "it is computed from P = W^T B, made once of a head W that stays; use cost `kl`, similarity \
                 `bhattacharyya`, or adapters"
                    .into(),
            ));
        }
        Ok(())
    }

    /// [`Self::check_teacher`] for rows that have arrived.
    ///
    /// # Errors
    /// As [`Self::check_teacher`].
    pub fn check_rows(&self, rows: &Rows, has_basis: bool) -> Result<()> {
        self.check_teacher(
            rows.estimator,
            &rows.temperatures,
            rows.state.is_some() && has_basis,
        )
    }
}

impl OtConfig {
    /// Entropic regularisation, from whichever of `epsilon` and `lambda` was given.
    pub fn epsilon(&self) -> f64 {
        self.lambda.map_or(self.epsilon, |lambda| 1.0 / lambda)
    }

    /// Whether this is the formula of the method; its free numbers may differ from the preset's.
    fn is_literal(&self) -> bool {
        self.cost == Cost::SoftmaxSimilarity
            && self.similarity == Similarity::ScaledDot
            && self.scope == Scope::Block
            && self.position_prior == 0.0
    }

    fn validate(&self) -> Result<()> {
        positive("temperature", self.temperature)?;
        positive("kappa", self.kappa)?;
        positive("epsilon", self.epsilon)?;
        positive("tolerance", self.tolerance)?;
        if let Some(lambda) = self.lambda {
            positive("lambda", lambda)?;
            if self.epsilon != EPSILON_DEFAULT && (self.epsilon * lambda - 1.0).abs() > 1e-9 {
                return Err(setting(
                    "lambda",
                    format!(
                        "lambda {lambda} means epsilon {}, but epsilon {} is given too; give one",
                        1.0 / lambda,
                        self.epsilon
                    ),
                ));
            }
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
        if self.max_iterations == 0 {
            return Err(setting("max_iterations", "must be at least 1".into()));
        }
        Ok(())
    }
}

/// Index of a stored temperature; f32 on the wire, so 1e-6 relative is the same temperature.
pub(crate) fn stored_temperature(temperatures: &[f32], wanted: f64) -> Option<usize> {
    temperatures
        .iter()
        .position(|&stored| (f64::from(stored) - wanted).abs() <= 1e-6 * wanted)
}

fn positive(key: &'static str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(setting(
        key,
        format!("{value} is not a finite number above 0"),
    ))
}

fn setting(key: &'static str, reason: String) -> LossError {
    LossError::Setting { key, reason }
}

fn unsupported(what: &'static str, reason: String) -> LossError {
    LossError::Unsupported { what, reason }
}
