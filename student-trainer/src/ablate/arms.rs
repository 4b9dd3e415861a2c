//! Provides the arms of an ablation: what their file says, the controls that go with them, and each one's settings.

use std::path::Path;

use clap::Command;
use distill_program::settings::{insert, lookup, number, overlay};
use serde::Deserialize;
use toml::{Table, Value};

use super::scale::TERMS;
use crate::{
    Error, Result,
    cli::all_keys,
    config::{FILE_BYTES_MAX, TrainConfig, resolve_over, with_flags},
    files::{self, write_atomically},
};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of held-out prompts whose answer is exactly the corpus's.
    ExactMatch,
    /// Cross-entropy on held-out text.
    Ce,
    /// KL to the teacher there.
    Kl,
    /// Share of targets with the teacher's favourite.
    Top1Agreement,
}

impl Metric {
    /// Its key in `eval.jsonl`.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::ExactMatch => "exact_match",
            Self::Ce => "ce",
            Self::Kl => "kl",
            Self::Top1Agreement => "top1_agreement",
        }
    }

    /// Checks before anything is trained that evaluations will have it.
    fn check(self, config: &TrainConfig) -> Result<()> {
        let missing = |what: &str| Err(Error::Config(what.to_owned()));
        if config.eval_data.is_empty() {
            return missing(
                "eval_data: name the held-out text that the arms are compared on, in [base]",
            );
        }
        for path in &config.eval_data {
            std::fs::metadata(path).map_err(Error::io("read", path))?;
        }
        match self {
            Self::ExactMatch if !config.eval_exact_match => {
                missing("metric: exact_match needs eval_exact_match = true in [base]")
            }
            Self::Kl | Self::Top1Agreement if !config.eval_kl => {
                missing("metric: kl and top1_agreement need eval_kl = true in [base]")
            }
            _ => Ok(()),
        }
    }

    /// 1 where more is better, else -1.
    pub(super) fn sign(self) -> f64 {
        match self {
            Self::ExactMatch | Self::Top1Agreement => 1.0,
            Self::Ce | Self::Kl => -1.0,
        }
    }
}

/// The file of an ablation.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ArmsFile {
    /// Seeds that count; every one trains every arm.
    pub seeds: Vec<u64>,
    /// Seeds that are looked at first and do not count.
    #[serde(default)]
    pub screening: Vec<u64>,
    /// What is compared at the end of a run.
    #[serde(default = "exact_match")]
    pub metric: Metric,
    /// The arm that differences are taken from; unset: the first.
    pub baseline: Option<String>,
    /// Whether a teacher's term of weight 1 is given the gradient of KL at the first step.
    #[serde(default = "yes")]
    pub equal_gradients: bool,
    /// Settings of `train` that all arms have.
    #[serde(default)]
    pub base: Table,
    pub arm: Vec<Arm>,
}

/// One arm as its file gives it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Arm {
    pub name: String,
    /// What it has otherwise than the others.
    #[serde(flatten)]
    pub settings: Table,
}

fn exact_match() -> Metric {
    Metric::ExactMatch
}

fn yes() -> bool {
    true
}

/// One arm, or a control of it, as it is trained.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Trial {
    pub name: String,
    /// The arm that this is a control of.
    pub control_of: Option<String>,
    /// Resolved settings of `train`.
    pub settings: Table,
}

/// Plans that a transport has to beat: no constraint on columns, none at all, and the product of both softmaxes.
const CONTROL_PLANS: [&str; 3] = ["row", "uniform", "mutual"];
/// The order of a run's sequences comes from its seed, where nothing else is said: without it, seeds of `tune = "full"` would be
/// one run many times.
const SHUFFLE: &str = "shuffle_buffer";
const SHUFFLED: i64 = 4096;
/// Nobody reads the answers of so many runs.
const ANSWERS: &str = "sample_answers";
/// Where the plan is set, and what is paid on it.
const PLAN: &str = "loss.align.plan";
const LOSS: &str = "loss.align.loss";

impl ArmsFile {
    pub fn read(path: &Path) -> Result<Self> {
        let file: Self = files::read_toml(path, FILE_BYTES_MAX)?;
        file.check().map_err(|reason| Error::file(path, reason))?;
        Ok(file)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.arm.is_empty() {
            return Err("there is no [[arm]]".to_owned());
        }
        if self.seeds.len() < 2 {
            let reason = "a difference has no error without at least two";
            return Err(format!("seeds: {:?}; {reason}", self.seeds));
        }
        let mut seeds: Vec<u64> = [&self.seeds[..], &self.screening].concat();
        seeds.sort_unstable();
        if let Some(twice) = seeds.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("seeds, screening: {} is there twice", twice[0]));
        }
        for (at, arm) in self.arm.iter().enumerate() {
            if arm.name.trim().is_empty() || arm.name.contains('|') {
                return Err(format!("arm {at}: `{}` is no name of a row", arm.name));
            }
            if self.arm[..at]
                .iter()
                .any(|other| slug(&other.name) == slug(&arm.name))
            {
                return Err(format!(
                    "arm {at}: there is another `{}` before it",
                    arm.name
                ));
            }
        }
        for (place, settings) in self.tables() {
            for (key, instead) in [("seed", "`seeds`"), ("out", "--out")] {
                if settings.contains_key(key) {
                    return Err(format!("{place}: `{key}` comes from {instead}"));
                }
            }
            if settings.contains_key("metrics_addr") {
                return Err(format!(
                    "{place}: `metrics_addr` is one run's; leave it out where runs stand side by side"
                ));
            }
        }
        if let Some(baseline) = &self.baseline
            && !self.arm.iter().any(|arm| arm.name == *baseline)
        {
            return Err(format!("baseline: there is no arm `{baseline}`"));
        }
        Ok(())
    }

    /// Every table of settings, by what it is.
    fn tables(&self) -> impl Iterator<Item = (String, &Table)> {
        let arms = self.arm.iter();
        let arms = arms.map(|arm| (format!("arm `{}`", arm.name), &arm.settings));
        std::iter::once(("base".to_owned(), &self.base)).chain(arms)
    }

    pub fn baseline(&self) -> &str {
        let first = self.arm.first().map(|arm| arm.name.as_str());
        self.baseline.as_deref().or(first).unwrap_or_default()
    }

    /// Every arm with its controls, each with all its settings. Their files are written into `directory`.
    ///
    /// # Errors
    /// A setting that `train` does not take, with the arm's name.
    pub fn trials(&self, directory: &Path) -> Result<Vec<Trial>> {
        files::create_directory(directory)?;
        let mut trials: Vec<Trial> = Vec::new();
        for arm in &self.arm {
            let mut settings = Table::from_iter([
                (SHUFFLE.to_owned(), Value::from(SHUFFLED)),
                (ANSWERS.to_owned(), Value::from(0)),
            ]);
            overlay(&mut settings, self.base.clone());
            overlay(&mut settings, arm.settings.clone());
            let place = (directory, self.metric);
            let own = trial(place, &arm.name, None, settings.clone())?;
            let controls = controls(&own.settings);
            trials.push(own);
            for (what, changes) in controls {
                let mut settings = settings.clone();
                for (path, value) in changes {
                    insert(&mut settings, path, value);
                }
                let name = format!("{}, {what}", arm.name);
                trials.push(trial(place, &name, Some(&arm.name), settings)?);
            }
        }
        Ok(trials)
    }
}

/// What each control of an arm with these settings is called, and has otherwise.
fn controls(arm: &Table) -> Vec<(String, Vec<(&'static str, Value)>)> {
    let plan = lookup(arm, PLAN).and_then(Value::as_str);
    let has_transport = weight(arm, "ot_weight") > 0.0;
    let others = CONTROL_PLANS.into_iter();
    let others = others.filter(|control| has_transport && plan != Some(control));
    let mut controls: Vec<_> = others
        .map(|control| {
            let mut changes = vec![(PLAN, Value::from(control))];
            changes.extend(held_loss(arm).map(|held| (LOSS, Value::from(held))));
            (format!("plan {control}"), changes)
        })
        .collect();
    let has_divergence = TERMS[..3].iter().any(|term| weight(arm, term) > 0.0);
    let another = match (has_divergence, has_transport) {
        (false, false) => None,
        // Rows of another text would spoil what KL learns too, and say nothing of the states.
        (true, true) if compares_states_alone(arm) => Some(("another text's states", "states")),
        _ => Some(("another text's teacher", "rows")),
    };
    controls.extend(another.map(|(name, what)| {
        let shuffled = vec![("shuffle_teacher", Value::from(what))];
        (name.to_owned(), shuffled)
    }));
    controls
}

/// Whether transport looks at hidden states and at nothing else that a teacher says.
fn compares_states_alone(arm: &Table) -> bool {
    let word = |path: &str| lookup(arm, path).and_then(Value::as_str);
    let is_paid = matches!(word(LOSS), Some("states" | "entropic" | "sharp"));
    is_paid && word("loss.align.cost") == Some("hidden")
}

fn trial(
    (directory, metric): (&Path, Metric),
    name: &str,
    of: Option<&str>,
    settings: Table,
) -> Result<Trial> {
    let path = directory.join(format!("{}.toml", slug(name)));
    write_settings(&path, &settings)?;
    let in_arm = |error: Error| Error::Config(format!("arm `{name}`: {error}"));
    let matches = with_flags::<TrainConfig>(Command::new("train")).get_matches_from(["train"]);
    let resolved = resolve_over::<TrainConfig>(Some(&path), &matches, &all_keys());
    let mut config = resolved.map_err(in_arm)?.config;
    // Every run gets one of its own.
    config.out = directory.to_owned();
    config.validate().map_err(in_arm)?;
    metric.check(&config).map_err(in_arm)?;
    let settings = Table::try_from(&config)
        .map_err(|e| Error::Config(format!("arm `{name}` cannot be written as TOML: {e}")))?;
    Ok(Trial {
        name: name.to_owned(),
        control_of: of.map(str::to_owned),
        settings,
    })
}

/// Writes settings of `train` as a file.
pub(super) fn write_settings(path: &Path, settings: &Table) -> Result<()> {
    write_atomically(path, settings.to_string().as_bytes())
}

/// A weight of the loss; 0 where there is none.
pub(super) fn weight(settings: &Table, name: &str) -> f64 {
    let weight = lookup(settings, &format!("loss.{name}"));
    weight.and_then(number).unwrap_or_default()
}

/// What a control pays in place of `entropic`, which is the least value of what its plan would have to minimise: the same cost
/// with the plan held, whose gradient is that of `entropic` with another plan. None where the loss can stay.
fn held_loss(settings: &Table) -> Option<&'static str> {
    let word = |path: &str| lookup(settings, path)?.as_str();
    if word(LOSS) != Some("entropic") {
        return None;
    }
    match word("loss.align.cost") {
        Some("kl") => Some("kl"),
        Some("hidden") => Some("states"),
        Some("softmax-similarity") => Some("similarity"),
        _ => Some("sharp"),
    }
}

/// A name as that of a file.
pub(super) fn slug(name: &str) -> String {
    let word = |c: char| if c.is_alphanumeric() { c } else { '-' };
    name.to_lowercase().chars().map(word).collect()
}

#[cfg(test)]
#[path = "arms_tests.rs"]
mod tests;
