//! Provides the model card of a result: `README.md` beside an adapter or a model, as PEFT and the hub expect it.

use std::path::Path;

use super::TeacherRecord;
use crate::{
    Result,
    config::{TrainConfig, Tune},
    files::{self, write_atomically},
    loss::{Cost, LossConfig},
};

pub(crate) const CARD_FILE: &str = "README.md";
/// Bytes of a card that are read: people write in them.
pub(crate) const CARD_BYTES_MAX: u64 = 1 << 22;
/// The tags of what a teacher taught.
pub(crate) const DISTILLED: [&str; 1] = ["distillation"];
/// The key of the base in a card's front matter.
const BASE: &str = "base_model: ";

/// What a card begins with, for programs: the base's name, the library that loads what lies beside it, and tags.
pub(crate) fn front_matter(base: Option<&str>, library: Option<&str>, tags: &[&str]) -> String {
    // JSON's strings are YAML's.
    let base = base.map(|base| format!("{BASE}{}\n", serde_json::json!(base)));
    let library = library.map(|library| format!("library_name: {library}\n"));
    let tags: String = tags.iter().map(|tag| format!("- {tag}\n")).collect();
    let tags = if tags.is_empty() {
        tags
    } else {
        format!("tags:\n{tags}")
    };
    format!(
        "---\n{}{}{tags}---\n",
        base.unwrap_or_default(),
        library.unwrap_or_default()
    )
}

/// The base that the card in a result's directory names: its name on the hub, or its path.
///
/// # Errors
/// A card that cannot be read.
pub(crate) fn base_of(directory: &Path) -> Result<Option<String>> {
    let text = files::if_there(files::read_text(&directory.join(CARD_FILE), CARD_BYTES_MAX))?;
    let text = text.unwrap_or_default();
    let base = text.lines().find_map(|line| line.strip_prefix(BASE));
    Ok(base.and_then(|base| serde_json::from_str(base).ok()))
}

/// What a card tells.
pub struct Card<'a> {
    /// The settings of the run.
    pub config: &'a TrainConfig,
    /// Who taught.
    pub teacher: &'a TeacherRecord,
    /// What the student was before: its name on the hub, or its path.
    pub base: &'a str,
    /// Its revision on the hub.
    pub revision: Option<&'a str>,
    /// Optimiser steps done.
    pub steps: usize,
    /// Sequences trained on, over all passes.
    pub sequences: u64,
}

impl Card<'_> {
    /// Writes it into the result's directory.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, directory: &Path) -> Result<()> {
        write_atomically(&directory.join(CARD_FILE), self.text().as_bytes())
    }

    fn text(&self) -> String {
        let (config, teacher) = (self.config, self.teacher);
        let (library, what) = match config.tune {
            Tune::Lora => ("peft", "LoRA adapter"),
            Tune::Full => ("transformers", "Model"),
        };
        let base = match self.revision {
            Some(revision) => format!("{} at {revision}", self.base),
            None => self.base.to_owned(),
        };
        let rows = [
            ("Base model", base),
            ("Teacher", teacher.name.clone()),
            ("Teacher's fingerprint", teacher.model_fingerprint.clone()),
            ("Teacher's capture", teacher.capture()),
            ("Plan's fingerprint", teacher.plan_fingerprint.clone()),
            ("Corpus's fingerprint", teacher.corpus_fingerprint.clone()),
            (
                "Data",
                format!(
                    "{} sequences, {} tokens, {} targets in a pass; {} sequences trained on",
                    teacher.sequences, teacher.tokens, teacher.targets, self.sequences
                ),
            ),
            ("Losses", losses(&config.loss)),
            (
                "Training",
                format!(
                    "{} steps of {} sequences, learning rate {}, seed {}",
                    self.steps,
                    config.batch_size * config.grad_accumulation,
                    config.lr,
                    config.seed
                ),
            ),
        ];
        let rows: String = rows
            .iter()
            .map(|(name, value)| format!("| {name} | {} |\n", cell(value)))
            .collect();
        let front = front_matter(Some(self.base), Some(library), &DISTILLED);
        format!(
            "{front}\n# {what} of {}\n\n\
             Distilled by student-trainer {} from the logits of a teacher.\n\n| | |\n|---|---|\n{rows}",
            cell(self.base),
            env!("CARGO_PKG_VERSION"),
        )
    }
}

/// Every part of the loss that has a weight at some step.
fn losses(loss: &LossConfig) -> String {
    let schedule = &loss.schedule;
    let align = &loss.align;
    let similarity = match align.cost {
        Cost::SoftmaxSimilarity => format!(", {}", word(align.similarity)),
        _ => String::new(),
    };
    let alignment = format!(
        "{} on the plan {} ({}{similarity})",
        word(align.loss),
        word(align.plan),
        word(align.cost)
    );
    let at_temperature =
        |divergence| format!("{divergence} at temperature {}", loss.kl_temperature);
    let parts = [
        (
            "cross-entropy".to_owned(),
            loss.ce_weight,
            schedule.ce_weight_end,
        ),
        (
            at_temperature("KL(teacher || student)"),
            loss.kl_weight,
            schedule.kl_weight_end,
        ),
        (
            at_temperature("KL(student || teacher)"),
            loss.reverse_kl_weight,
            schedule.reverse_kl_weight_end,
        ),
        (
            at_temperature("JSD"),
            loss.jsd_weight,
            schedule.jsd_weight_end,
        ),
        (alignment, loss.ot_weight, schedule.ot_weight_end),
    ];
    let part = |(what, weight, end): &(String, f64, Option<f64>)| {
        let weights = match end {
            Some(end) if end != weight => format!("{weight} to {end}"),
            _ => weight.to_string(),
        };
        let counts = *weight > 0.0 || end.is_some_and(|end| end > 0.0);
        counts.then(|| format!("{weights} x {what}"))
    };
    let parts: Vec<String> = parts.iter().filter_map(part).collect();
    parts.join(" + ")
}

/// A setting as it is typed.
fn word(setting: impl serde::Serialize) -> String {
    let word = serde_json::json!(setting);
    word.as_str().unwrap_or_default().to_owned()
}

/// A value as a cell of a table in Markdown shows it: names are anybody's, and neither markup nor HTML.
fn cell(text: &str) -> String {
    let mut cell = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => cell += "&lt;",
            '>' => cell += "&gt;",
            '&' => cell += "&amp;",
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '~' | '$' | '!' => cell.extend(['\\', c]),
            c if c.is_control() || ['\u{2028}', '\u{2029}'].contains(&c) => cell.push(' '),
            c => cell.push(c),
        }
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_teacher_was_markup_in_the_card() {
        for (name, shown) in [
            (
                "<img src=x onerror=alert(1)>",
                "&lt;img src=x onerror=alert(1)&gt;",
            ),
            ("[a](http://b) ![c](d)", "\\[a\\](http://b) \\!\\[c\\](d)"),
            (
                "*a* `b` __c__ ~~d~~ &lt; \\<b>",
                "\\*a\\* \\`b\\` \\_\\_c\\_\\_ \\~\\~d\\~\\~ &amp;lt; \\\\&lt;b&gt;",
            ),
            ("a\n\n# b\r\n| c |", "a  # b  \\| c \\|"),
            ("Qwen2.5-7B", "Qwen2.5-7B"),
        ] {
            assert_eq!(cell(name), shown);
        }
    }

    #[test]
    fn a_card_names_base_teacher_losses_and_data() {
        let mut config = TrainConfig::default();
        config.loss.ot_weight = 0.5;
        config.loss.schedule.kl_weight_end = Some(0.0);
        let teacher = TeacherRecord {
            name: "Qwen2.5-7B".into(),
            model_fingerprint: "ab12".into(),
            estimator: "head+sampled".into(),
            entries: 24,
            draws: Some(16),
            temperatures: vec![1.0, 2.0],
            state: "sketch:64".into(),
            sequences: 100,
            ..TeacherRecord::default()
        };
        let card = Card {
            config: &config,
            teacher: &teacher,
            base: "org/a \"b\" | c",
            revision: Some("main"),
            steps: 7,
            sequences: 14,
        };
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(base_of(dir.path()).unwrap(), None);
        card.write(dir.path()).unwrap();
        assert_eq!(base_of(dir.path()).unwrap().as_deref(), Some(card.base));
        let text = card.text();
        let front = text.strip_prefix("---\n").unwrap();
        let (front, body) = front.split_once("\n---\n").unwrap();
        assert_eq!(
            front.lines().collect::<Vec<_>>()[..2],
            ["base_model: \"org/a \\\"b\\\" | c\"", "library_name: peft"]
        );
        for words in [
            "# LoRA adapter of org/a \"b\" \\| c",
            "| Base model | org/a \"b\" \\| c at main |",
            "| Teacher | Qwen2.5-7B |",
            "ab12",
            "head+sampled, 24 entries a row at most, 16 of them drawn, temperatures 1, 2, state sketch:64",
            "100 sequences",
            "14 sequences trained on",
            "1 x cross-entropy + 1 to 0 x KL(teacher \\|\\| student) at temperature 1 + 0.5 x entropic on the plan sinkhorn (kl) |",
            "7 steps of 1 sequences",
        ] {
            assert!(body.contains(words), "{words} in {body}");
        }
    }
}
