//! Provides what is to be run: models, texts, the losses that are compared, and how long they train.

use std::path::PathBuf;

/// The split of unseen numbers, as its file is called.
pub const NUMBERS: &str = "heldout-numbers";
/// The split of unseen templates.
pub const TEMPLATES: &str = "heldout-templates";
/// Problems whose answers the report shows.
pub(super) const SAMPLES: usize = 6;

/// The two programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Path of teacher-server.
    pub teacher_server: PathBuf,
    /// Path of student-trainer.
    pub student_trainer: PathBuf,
}

/// How the students train; the same for every variant.
#[derive(Clone, Debug)]
pub struct Training {
    /// Longest sequence in tokens.
    pub seq_len: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Sequences in one step.
    pub batch_size: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// One run each; more than one gives a spread.
    pub seeds: Vec<u64>,
}

/// One loss that is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// For directories.
    pub id: &'static str,
    /// For people.
    pub name: &'static str,
    /// Flags of `student-trainer train`.
    pub args: Vec<&'static str>,
}

/// A whole run.
#[derive(Clone, Debug)]
pub struct Job {
    /// Title of the report.
    pub title: String,
    /// Where everything is written.
    pub out: PathBuf,
    /// The programs.
    pub programs: Programs,
    /// The teacher's directory.
    pub teacher: PathBuf,
    /// The student's directory.
    pub student: PathBuf,
    /// What the teacher speaks about.
    pub corpus: Vec<PathBuf>,
    /// Sequences in one forward pass of the teacher.
    pub teacher_batch_size: usize,
    /// Held-out texts by name.
    pub evaluation: Vec<(String, PathBuf)>,
    /// Sequences of each held-out text.
    pub evaluation_sequences: usize,
    /// Whether the held-out texts are problems with answers.
    pub exact_match: bool,
    /// Whether the teacher gets a row.
    pub evaluate_teacher: bool,
    /// How the students train.
    pub training: Training,
    /// What is compared.
    pub variants: Vec<Variant>,
}

impl Job {
    /// The variant whose answers and plans are shown: the default loss where it is there, else the last.
    pub(super) fn shown_variant(&self) -> Option<&Variant> {
        let default = self.variants.iter().find(|variant| variant.id == "ot-kl");
        default.or(self.variants.last())
    }
}

/// The losses of the table, in its order. OT stands beside CE and KL at a small weight: a twentieth of KL's under the cost `kl`.
pub fn variants() -> Vec<Variant> {
    let variant = |id, name, args: &[&'static str]| Variant {
        id,
        name,
        args: args.to_vec(),
    };
    vec![
        variant("ce", "CE", &["--kl-weight", "0"]),
        variant("ce-kl", "CE + KL", &[]),
        variant(
            "ot-kl",
            "CE + KL + OT (kl)",
            &["--ot-weight", "0.5", "--cost", "kl"],
        ),
        variant(
            "ot-cosine",
            "CE + KL + OT (cosine)",
            &[
                "--ot-weight",
                "0.5",
                "--cost",
                "softmax-similarity",
                "--similarity",
                "cosine",
            ],
        ),
        variant("literal", "literal preset", &["--preset", "literal"]),
    ]
}
