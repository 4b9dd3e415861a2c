//! Provides the settings of the whole loss, their presets, and what a teacher's rows cannot feed.

use distill_proto::{Estimator, StateKind};
use serde::{Deserialize, Serialize};

pub use super::align_config::{
    AlignConfig, AlignLoss, Centering, Cost, EPSILON_DEFAULT, Marginals, POSITIONS_MAX, Projection,
    Reduction, Similarity,
};
use super::divergence::Divergences;
use super::error::{LossError, Result};
pub use super::schedule::LossSchedule;
use super::targets::Targets;

/// Default of [`LossConfig::chunk_rows`]: 128 rows of 151,936 f32 logits are 78 MB.
pub const CHUNK_ROWS_DEFAULT: usize = 128;

/// Settings of the whole loss: `ce_weight CE + kl_weight KL + reverse_kl_weight RKL + jsd_weight JSD + ot_weight OT`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "snake_case")]
pub struct LossConfig {
    /// Weight of cross-entropy with the corpus' own tokens.
    pub ce_weight: f64,
    /// Weight of `tau^2 KL(teacher || student)`: covers all the teacher says.
    pub kl_weight: f64,
    /// Weight of `tau^2 KL(student || teacher)`: avoids what the teacher would not say.
    pub reverse_kl_weight: f64,
    /// Weight of `tau^2 (jsd_beta KL(teacher || m) + (1 - jsd_beta) KL(student || m))`, m their mixture with the teacher's
    /// share `jsd_beta`.
    pub jsd_weight: f64,
    /// The teacher's share of that mixture, between 0 and 1.
    pub jsd_beta: f64,
    /// tau of all three; must be one of the temperatures stored at capture.
    pub kl_temperature: f64,
    /// Weight of what is learned between positions, optimal transport unless another plan is asked for.
    pub ot_weight: f64,
    /// Its settings.
    pub align: AlignConfig,
    /// How weights and temperatures change over the run.
    pub schedule: LossSchedule,
    /// Rows whose logits exist at one time.
    pub chunk_rows: usize,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            ce_weight: 1.0,
            kl_weight: 1.0,
            reverse_kl_weight: 0.0,
            jsd_weight: 0.0,
            jsd_beta: 0.5,
            kl_temperature: 1.0,
            ot_weight: 0.0,
            align: AlignConfig::default(),
            schedule: LossSchedule::default(),
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
            align: AlignConfig {
                cost: Cost::SoftmaxSimilarity,
                loss: AlignLoss::Detached,
                similarity: Similarity::ScaledDot,
                temperature: 1.0,
                epsilon: 10.0,
                block_size: 64,
                position: Some(0.0),
                ..AlignConfig::default()
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

    /// Checks every setting on its own, and that something would be trained.
    ///
    /// # Errors
    /// [`LossError::Setting`] names the first key that has no meaning.
    pub fn validate(&self) -> Result<()> {
        self.check_settings()?;
        if self.ce_weight + self.divergence_weight() + self.ot_weight == 0.0 {
            return Err(setting(
                "ce_weight",
                "all weights are 0: nothing would be trained".into(),
            ));
        }
        Ok(())
    }

    fn check_settings(&self) -> Result<()> {
        for (key, weight) in [
            ("ce_weight", self.ce_weight),
            ("kl_weight", self.kl_weight),
            ("reverse_kl_weight", self.reverse_kl_weight),
            ("jsd_weight", self.jsd_weight),
            ("ot_weight", self.ot_weight),
        ] {
            if !((weight as f32).is_finite() && weight >= 0.0) {
                return Err(setting(
                    key,
                    format!("{weight} is not a number of at least 0"),
                ));
            }
        }
        positive("kl_temperature", self.kl_temperature)?;
        if !(is_positive(self.jsd_beta) && (self.jsd_beta as f32) < 1.0) {
            return Err(setting(
                "jsd_beta",
                format!("{} is not between 0 and 1", self.jsd_beta),
            ));
        }
        self.schedule.validate()?;
        if self.chunk_rows == 0 {
            return Err(setting("chunk_rows", "must be at least 1".into()));
        }
        self.align.validate()
    }

    /// Whether the teacher must send coordinates of whole logits (or be dense) for these settings.
    pub fn needs_state(&self) -> bool {
        self.ot_weight > 0.0 && self.align.needs_logits()
    }

    /// Whether the teacher must send hidden states.
    pub fn needs_states(&self) -> bool {
        self.ot_weight > 0.0 && self.align.needs_states()
    }

    /// Checks the settings against what the teacher stores, before the first step.
    ///
    /// `temperatures` are those at which `logsumexp` is stored; `state` says what comes with the rows.
    ///
    /// # Errors
    /// [`LossError::Unsupported`] with the reason and the remedy; [`LossError::Setting`] as [`Self::validate`].
    pub fn check_teacher(
        &self,
        estimator: Estimator,
        temperatures: &[f32],
        state: Option<StateKind>,
    ) -> Result<()> {
        self.validate()?;
        self.check_rows(estimator, temperatures, state)?;
        if self.needs_states() && matches!(state, None | Some(StateKind::Sketch)) {
            return Err(no_states());
        }
        Ok(())
    }

    /// What the losses on logits ask of rows.
    fn check_rows(
        &self,
        estimator: Estimator,
        temperatures: &[f32],
        state: Option<StateKind>,
    ) -> Result<()> {
        if estimator.is_drawn() {
            self.check_drawn()?;
        }
        let stored = stored_temperature(temperatures, self.kl_temperature);
        if self.divergence_weight() > 0.0 && stored.is_none() {
            return Err(unsupported(
                "KL",
                format!(
                    "kl_temperature {} is not stored: the teacher kept logsumexp at {temperatures:?} only, and the \
                     mass of the tail is not known at others; choose one of these or capture again",
                    self.kl_temperature
                ),
            ));
        }
        let at_one = self.align.needs_roots() || estimator.is_drawn();
        if self.ot_weight > 0.0 && at_one && stored_temperature(temperatures, 1.0).is_none() {
            return Err(unsupported(
                "similarity `bhattacharyya`, or drawn rows",
                format!(
                    "it needs the teacher's logsumexp at temperature 1, and {temperatures:?} are stored"
                ),
            ));
        }
        if self.needs_state() && !state.is_some_and(StateKind::has_basis) {
            return Err(unsupported(
                "a similarity or distance of logits",
                "the top logits hold about 1 % of the centred logits' energy, so the rows must carry `state`; capture \
                 the teacher with `--state exact` or `sketch:R`, or use cost `kl` or similarity `bhattacharyya`"
                    .into(),
            ));
        }
        Ok(())
    }

    /// What drawn rows cannot feed.
    fn check_drawn(&self) -> Result<()> {
        let refuse = |what, reason: &str| Err(unsupported(what, reason.into()));
        if self.reverse_kl_weight + self.jsd_weight > 0.0 {
            return refuse(
                "reverse KL and JSD on drawn rows",
                "they need the teacher's probability of ids that were not drawn; use kl_weight alone (reverse_kl_weight \
                 0, jsd_weight 0), or capture the teacher with the estimator `top-k`",
            );
        }
        if self.kl_weight > 0.0 && (self.kl_temperature - 1.0).abs() > 1e-6 {
            return refuse(
                "KL of drawn rows at another temperature",
                "ids are drawn at temperature 1; use kl_temperature 1, or capture the teacher with the estimator \
                 `top-k`",
            );
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

    /// Checks the losses on logits against rows that have arrived. At some step of a schedule all weights may be 0, and
    /// costs of hidden states look at their rows themselves.
    ///
    /// # Errors
    /// As [`Self::check_teacher`].
    pub(crate) fn check_targets(&self, targets: &Targets, has_basis: bool) -> Result<()> {
        self.check_settings()?;
        let kind = targets.state.as_ref().map(|state| state.kind);
        let of_logits = kind.filter(|_| has_basis);
        self.check_rows(targets.estimator, &targets.temperatures, of_logits)
    }

    /// Weight of all divergences from the teacher together.
    pub(crate) fn divergence_weight(&self) -> f64 {
        self.kl_weight + self.reverse_kl_weight + self.jsd_weight
    }

    /// Those that have a weight.
    pub(crate) fn divergences(&self) -> Divergences {
        let weights = [self.kl_weight, self.reverse_kl_weight, self.jsd_weight];
        Divergences {
            weights: weights.map(|weight| (weight > 0.0).then_some(weight)),
            beta: self.jsd_beta,
        }
    }
}

/// Index of a stored temperature; f32 on the wire, so 1e-6 relative is the same temperature.
pub(crate) fn stored_temperature(temperatures: &[f32], wanted: f64) -> Option<usize> {
    temperatures
        .iter()
        .position(|&stored| (f64::from(stored) - wanted).abs() <= 1e-6 * wanted)
}

/// Whether a number is finite and above 0 also in f32, in which most is computed: 1e-50 is 0 there, and 1e50 infinite.
pub(crate) fn is_positive(value: f64) -> bool {
    let value = value as f32;
    value.is_finite() && value > 0.0
}

pub(super) fn positive(key: &'static str, value: f64) -> Result<()> {
    if is_positive(value) {
        return Ok(());
    }
    Err(setting(
        key,
        format!("{value} is not a finite number above 0 in f32"),
    ))
}

pub(super) fn setting(key: &'static str, reason: String) -> LossError {
    LossError::Setting { key, reason }
}

fn unsupported(what: &'static str, reason: String) -> LossError {
    LossError::Unsupported { what, reason }
}

/// Rows without hidden states.
pub(super) fn no_states() -> LossError {
    unsupported(
        "a cost of hidden states",
        "the rows carry none; capture the teacher with `--state exact` or `hidden:LAYER`".into(),
    )
}
