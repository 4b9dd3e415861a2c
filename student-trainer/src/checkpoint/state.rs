//! Provides what a checkpoint says beside its tensors: how far the run is, over what data, and what it was about.

use std::collections::BTreeMap;

use distill_proto::fingerprint::short;
use serde::{Deserialize, Serialize};
use toml::Value;

use super::sums::{self, Opened};
use crate::{Error, Result, run::LogPosition, train::LossScaleState};

/// Version of `state.toml` that is written.
const FORMAT: u32 = 2;
/// The one before it, without checksums and settings; it is read with a warning.
const FORMAT_WITHOUT_CHECKSUMS: u32 = 1;

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
    /// The factor on the loss, where the decoder computes in f16.
    #[serde(default)]
    pub loss_scale: Option<LossScaleState>,
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
    /// Of those behind the cursor that are put into order together, the ones that were trained on.
    #[serde(default)]
    pub taken: u64,
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
            loss_scale: None,
            identity,
            files: BTreeMap::new(),
        }
    }

    /// The text of `state.toml`.
    pub(super) fn to_text(&self) -> std::result::Result<String, String> {
        sums::seal(&toml::to_string(self).map_err(|e| e.to_string())?)
    }

    /// Reads the text of `state.toml`, and tells whether its checksums vouch for it.
    ///
    /// # Errors
    /// The value that is damaged, by name, or a version that this build does not read.
    pub fn from_text(text: &str) -> std::result::Result<(Self, bool), String> {
        let Opened { table, is_sealed } = sums::open(text)?;
        // Before anything else: another version may have other fields.
        let format = table.get("format").and_then(Value::as_integer);
        let expected = if is_sealed {
            FORMAT
        } else {
            FORMAT_WITHOUT_CHECKSUMS
        };
        match format {
            Some(format) if format == i64::from(expected) => {}
            Some(format) if format == i64::from(FORMAT) => {
                return Err("the checksums are missing".into());
            }
            Some(format) => {
                return Err(format!(
                    "format is {format}, this build reads {FORMAT_WITHOUT_CHECKSUMS} and {FORMAT}; if the file is whole, resume \
                     with the release that wrote it"
                ));
            }
            None => return Err("format is missing".into()),
        }
        let mut state: Self = table
            .try_into()
            .map_err(|e: toml::de::Error| e.message().to_owned())?;
        state.format = FORMAT;
        Ok((state, is_sealed))
    }

    /// Refuses a state that no run of these sizes leaves: `total_steps` of `frames_a_step` frames each, over passes of
    /// `frames_a_pass`.
    ///
    /// # Errors
    /// The first value that does not agree, by name, with what would.
    pub fn check_sizes(
        &self,
        total_steps: usize,
        frames_a_step: u64,
        frames_a_pass: u64,
    ) -> std::result::Result<(), String> {
        let (step, data) = (self.step as u64, &self.data);
        let in_pass = data.next_index.saturating_add(data.taken);
        let steps = |frames: u64| frames.div_ceil(frames_a_step.max(1));
        let steps_done = data.pass.checked_mul(steps(frames_a_pass));
        let steps_done = steps_done.and_then(|done| done.checked_add(steps(in_pass)));
        let frames = data.pass.checked_mul(frames_a_pass);
        let frames = frames.and_then(|frames| frames.checked_add(in_pass));
        let checks = [
            ("total_steps", self.total_steps == total_steps),
            ("step", self.step <= total_steps),
            ("data.next_index", data.next_index <= frames_a_pass),
            ("data.taken", in_pass <= frames_a_pass),
            ("data.frames", frames == Some(data.frames)),
            ("step", steps_done == Some(step)),
            ("evals.evaluated", self.evals.evaluated <= self.step),
            (
                "evals.best.step",
                self.evals.best.is_none_or(|best| best.step <= self.step),
            ),
        ];
        match checks.iter().find(|(_, fine)| !fine) {
            None => Ok(()),
            Some((name, _)) => Err(format!(
                "{name} does not agree with the run: {step} of {} steps done, {} frames, {} of them in pass {}, where the settings \
                 and the corpus make {total_steps} steps of {frames_a_step} frames, and passes of {frames_a_pass}",
                self.total_steps, data.frames, in_pass, data.pass
            )),
        }
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
                before: short(before).to_owned(),
                now: short(now).to_owned(),
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
        let text = state.to_text().unwrap();
        assert_eq!(RunState::from_text(&text).unwrap(), (state, true));
    }

    #[test]
    fn a_state_that_no_run_of_these_sizes_leaves_is_refused_by_field() {
        // Ten frames a pass in steps of four: three steps a pass, twelve in four passes. Step 5 ends behind frame 8 of pass 1.
        let mut fine = RunState::start(12, Identity::default());
        fine.step = 5;
        fine.data.pass = 1;
        fine.data.next_index = 8;
        fine.data.frames = 18;
        let check = |state: &RunState| state.check_sizes(12, 4, 10);
        check(&fine).unwrap();
        check(&RunState::start(12, Identity::default())).unwrap();
        type Break = fn(&mut RunState);
        let broken: [(&str, Break); 10] = [
            ("total_steps", |s| s.total_steps = 13),
            ("step", |s| s.step = 13),
            ("step", |s| s.step = 4),
            ("data.next_index", |s| s.data.next_index = 11),
            ("data.frames", |s| s.data.next_index = 7),
            ("data.frames", |s| s.data.pass = 0),
            ("data.frames", |s| s.data.pass = u64::MAX),
            ("data.frames", |s| s.data.frames = 17),
            ("evals.evaluated", |s| s.evals.evaluated = 6),
            ("evals.best.step", |s| {
                s.evals.best = Some(Best {
                    step: 6,
                    value: 0.0,
                });
            }),
        ];
        for (name, breaks) in broken {
            let mut state = fine.clone();
            breaks(&mut state);
            let message = check(&state).unwrap_err();
            assert!(message.starts_with(&format!("{name} ")), "{message}");
        }
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
