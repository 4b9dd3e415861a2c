//! Provides equal terms: a teacher's term of weight 1 has, at the first step, a gradient as long as that of KL.

use std::path::Path;

use distill_program::settings::insert;
use distill_proto::Fingerprint;
use toml::{Table, Value};

use super::{
    arms::{Trial, weight},
    runs::Planned,
};
use crate::{Error, Result, loss::LossSchedule, shutdown::Shutdown};

/// Weights of the terms that a teacher has a part in.
pub(super) const TERMS: [&str; 4] = ["kl_weight", "reverse_kl_weight", "jsd_weight", "ot_weight"];
/// Weight of the term that stands in where no text is shared, so that KL has no gradient.
const CE: &str = "ce_weight";
/// Batches that a norm is a mean over.
const BATCHES: i64 = 4;
/// Digits of the fingerprint in a directory's name.
const NAME_DIGITS: usize = 12;

/// Measures gradients at the first step, each term and setting once.
pub(super) struct Scale<'a> {
    directory: &'a Path,
    seed: u64,
    shutdown: &'a Shutdown,
    /// Norm of the term that the others are brought to.
    reference: f64,
}

impl<'a> Scale<'a> {
    /// Measures KL under the settings that all arms have; `None` where someone asked to stop.
    ///
    /// # Errors
    /// A run that fails; neither KL nor cross-entropy with a gradient.
    pub fn new(
        directory: &'a Path,
        first: &Trial,
        seed: u64,
        shutdown: &'a Shutdown,
    ) -> Result<Option<Self>> {
        let mut scale = Self {
            directory,
            seed,
            shutdown,
            reference: 0.0,
        };
        for term in [TERMS[0], CE] {
            match scale.norm(&first.settings, term)? {
                None => return Ok(None),
                Some(norm) if norm > 0.0 => {
                    tracing::info!(
                        "gradients at the first step: {term} 1 has the norm {norm:.4}, to which the teacher's terms are brought"
                    );
                    scale.reference = norm;
                    return Ok(Some(scale));
                }
                Some(_) => tracing::info!("{term} has no gradient on this corpus"),
            }
        }
        Err(Error::Config(
            "equal_gradients: neither KL nor cross-entropy has a gradient at the first step".into(),
        ))
    }

    /// The settings of a trial with its teacher's terms brought to the reference; `None` where someone asked to stop.
    ///
    /// # Errors
    /// A run that fails; a term without a gradient.
    pub fn apply(&self, trial: &Trial) -> Result<Option<Table>> {
        let mut settings = trial.settings.clone();
        for term in TERMS {
            let relative = weight(&settings, term);
            if relative == 0.0 {
                continue;
            }
            let Some(norm) = self.norm(&trial.settings, term)? else {
                return Ok(None);
            };
            if norm == 0.0 {
                return Err(Error::Config(format!(
                    "arm `{}`: loss.{term} has no gradient at the first step on this corpus: nothing is shared, or nothing \
                     can be aligned; take the arm out, or set equal_gradients = false",
                    trial.name
                )));
            }
            set_weight(&mut settings, term, relative * self.reference / norm);
        }
        Ok(Some(settings))
    }

    /// Norm of the gradient of one term alone, with weight 1.
    fn norm(&self, settings: &Table, term: &str) -> Result<Option<f64>> {
        let mut alone = settings.clone();
        let over = [
            ("steps", Value::Integer(BATCHES)),
            // The step is computed and does nothing, so that every batch sees the student as it was.
            ("lr", Value::Float(1e-30)),
            ("eval_data", Value::Array(Vec::new())),
            ("eval_exact_match", Value::Boolean(false)),
            ("early_stopping_patience", Value::Integer(0)),
            ("warmup_ratio", Value::Float(0.0)),
        ];
        for (key, value) in over {
            insert(&mut alone, key, value);
        }
        // Weights that change over a run would begin elsewhere.
        let constant = Table::try_from(LossSchedule::default());
        let constant = constant.map_err(|e| Error::Config(format!("loss.schedule: {e}")))?;
        insert(&mut alone, "loss.schedule", Value::Table(constant));
        for other in TERMS.into_iter().chain([CE]) {
            set_weight(&mut alone, other, f64::from(u8::from(other == term)));
        }
        let text = alone.to_string();
        let digest = Fingerprint::of(text.as_bytes()).to_hex();
        let name = format!("{term}-{}", digest.get(..NAME_DIGITS).unwrap_or_default());
        let run = Planned::new(self.directory, &name, self.seed, &alone)?;
        let Some(run) = run.train(&|| self.shutdown.is_requested())? else {
            return Ok(None);
        };
        let norms = run.curve("grad_norm");
        Ok(Some(
            norms.iter().map(|(_, norm)| norm).sum::<f64>() / norms.len().max(1) as f64,
        ))
    }
}

fn set_weight(settings: &mut Table, name: &str, weight: f64) {
    insert(settings, &format!("loss.{name}"), Value::Float(weight));
}
