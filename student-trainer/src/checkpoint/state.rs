//! Provides what a checkpoint says beside its tensors: how far the run is, over what data, and what it was about.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, run::LogPosition};

/// Version of `state.toml`; another one is refused.
const FORMAT: u32 = 1;

/// Everything of a run that is no tensor. Nothing random is drawn after the start: adapters and projection come from the
/// seed in `config.toml` and are overwritten by a checkpoint, an evaluation's draws start from its own seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    format: u32,
    /// Steps done; the learning rate and the loss's schedule follow from it.
    pub step: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// Parameters that have not shown a gradient yet.
    pub silent: Vec<String>,
    /// Behind the last frame that was trained on.
    pub data: DataCursor,
    /// Ends of the log's files.
    pub log: LogPosition,
    /// What evaluations have found.
    pub evals: EvalState,
    /// What the run is about.
    pub identity: Identity,
    /// BLAKE3 of every other file of the checkpoint.
    #[serde(default)]
    pub(super) files: BTreeMap<String, String>,
}

/// Where the teacher's frames go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataCursor {
    /// Passes before the current one.
    pub pass: u64,
    /// Index of the next frame in it.
    pub next_index: u64,
    /// The teacher's cursor behind the last frame, hexadecimal; empty at the start of a pass.
    pub cursor: String,
    /// Id of the last frame's sequence, hexadecimal.
    pub sequence: String,
    /// Frames of all passes so far.
    pub frames: u64,
}

/// What evaluations during training have found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalState {
    /// The last step that was evaluated.
    pub evaluated: usize,
    /// Evaluations in a row that did not improve on the best.
    pub without_best: usize,
    /// The best one.
    pub best: Option<Best>,
}

/// The best evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps done before it.
    pub step: usize,
    /// Value of `best_metric`.
    pub value: f64,
}

/// Digests of everything that a step's result depends on beside the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The teacher's weights and configuration.
    pub teacher: String,
    /// What its tokenizer does.
    pub tokenizer: String,
    /// Its documents.
    pub corpus: String,
    /// Its windows, masks, K, estimator, numerics.
    pub plan: String,
    /// The student's weights and configuration.
    pub student: String,
    /// What the student's tokenizer does.
    pub student_tokenizer: String,
}

impl RunState {
    /// The state of a run before its first step.
    pub fn start(total_steps: usize, identity: Identity) -> Self {
        Self {
            format: FORMAT,
            step: 0,
            total_steps,
            silent: Vec::new(),
            data: DataCursor::default(),
            log: LogPosition::default(),
            evals: EvalState::default(),
            identity,
            files: BTreeMap::new(),
        }
    }

    pub(super) fn check_format(&self) -> std::result::Result<(), String> {
        if self.format == FORMAT {
            return Ok(());
        }
        Err(format!(
            "the checkpoint has format {}, this build reads {FORMAT}; resume with the release that wrote it",
            self.format
        ))
    }
}

impl Identity {
    /// Refuses to go on over anything else than before.
    ///
    /// # Errors
    /// The first digest that differs, with both values and what to do.
    pub fn check(&self, now: &Self) -> Result<()> {
        const TEACHER: &str = "start the teacher with the model, corpus and settings of before, or train anew with --out NEW_DIR";
        const STUDENT: &str =
            "name the student of before with --student DIR, or train anew with --out NEW_DIR";
        let pairs = [
            ("teacher's weights", &self.teacher, &now.teacher, TEACHER),
            (
                "teacher's tokenizer",
                &self.tokenizer,
                &now.tokenizer,
                TEACHER,
            ),
            ("corpus", &self.corpus, &now.corpus, TEACHER),
            ("teacher's plan", &self.plan, &now.plan, TEACHER),
            ("student's weights", &self.student, &now.student, STUDENT),
            (
                "student's tokenizer",
                &self.student_tokenizer,
                &now.student_tokenizer,
                STUDENT,
            ),
        ];
        match pairs.into_iter().find(|(_, before, now, _)| before != now) {
            Some((what, before, now, remedy)) => Err(Error::Resume {
                what,
                before: before.clone(),
                now: now.clone(),
                remedy,
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reads_back_bit_for_bit() {
        let mut state = RunState::start(9, Identity::default());
        state.silent = vec!["a.weight".into()];
        state.evals.best = Some(Best {
            step: 3,
            value: 0.1 + 0.2,
        });
        state.data.cursor = "00ff".into();
        let text = toml::to_string(&state).unwrap();
        assert_eq!(toml::from_str::<RunState>(&text).unwrap(), state);
    }

    #[test]
    fn another_teacher_or_student_is_refused_with_both_values() {
        let before = Identity {
            plan: "aa".into(),
            student: "bb".into(),
            ..Identity::default()
        };
        before.check(&before).unwrap();
        for (now, what) in [
            (
                Identity {
                    plan: "cc".into(),
                    ..before.clone()
                },
                ["plan", "aa", "cc", "start the teacher"],
            ),
            (
                Identity {
                    student: "cc".into(),
                    ..before.clone()
                },
                ["student's weights", "bb", "cc", "--student"],
            ),
        ] {
            let message = before.check(&now).unwrap_err().to_string();
            assert!(what.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
