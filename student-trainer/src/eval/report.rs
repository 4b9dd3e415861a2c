//! Provides what an evaluation found, as people and programs read it.

use std::fmt;

use distill_text::Skipped;
use serde_json::json;

use super::measure::Agreements;

/// Sums over all targets, and the means that follow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvalReport {
    sequences: usize,
    tokens: usize,
    targets: usize,
    ce_sum: f64,
    compared: usize,
    kl_sum: f64,
    agreements: Agreements,
    /// Whether all that was asked for was measured; false where somebody stopped it before.
    pub complete: bool,
    /// Entries that the teacher keeps a position; KL counts the rest as one bucket.
    pub teacher_top_k: Option<u32>,
    /// Time for all sequences.
    pub seconds: f64,
    /// Prompts answered, and those answered exactly, where answers were asked for.
    pub answered: Option<(usize, usize)>,
    /// Time for the answers.
    pub answer_seconds: f64,
    /// What of the data was left out.
    pub skipped: Skipped,
    /// The same of the base without the adapter, where both are compared.
    pub base: Option<Box<EvalReport>>,
}

impl EvalReport {
    pub(super) fn add(&mut self, tokens: usize, targets: usize, ce: f64) {
        self.sequences += 1;
        self.tokens += tokens;
        self.targets += targets;
        self.ce_sum += ce * targets as f64;
    }

    pub(super) fn add_teacher(&mut self, targets: usize, kl: f64, agreements: Agreements) {
        self.compared += targets;
        self.kl_sum += kl * targets as f64;
        self.agreements.top1 += agreements.top1;
        self.agreements.top5 += agreements.top5;
    }

    /// Mean cross-entropy in nats a target; NaN, in JSON null, before the first one.
    pub fn ce(&self) -> f64 {
        self.ce_sum / self.targets as f64
    }

    /// `e^CE`; as [`ce`](Self::ce) before the first target.
    pub fn perplexity(&self) -> f64 {
        self.ce().exp()
    }

    /// Mean KL to the teacher, where one was asked.
    pub fn kl(&self) -> Option<f64> {
        (self.compared > 0).then(|| self.kl_sum / self.compared as f64)
    }

    /// Share of targets where student and teacher prefer the same token.
    pub fn top1_agreement(&self) -> Option<f64> {
        self.share(self.agreements.top1)
    }

    /// Share of targets where the token that the teacher prefers is among the student's five likeliest.
    pub fn top5_agreement(&self) -> Option<f64> {
        self.share(self.agreements.top5)
    }

    fn share(&self, positions: usize) -> Option<f64> {
        (self.compared > 0).then(|| positions as f64 / self.compared as f64)
    }

    /// Sequences read, and the targets among their tokens.
    pub fn counts(&self) -> (usize, usize) {
        (self.sequences, self.targets)
    }

    /// Share of prompts whose answer was exactly the corpus's, of those that were answered.
    pub fn exact_match(&self) -> Option<f64> {
        let (asked, correct) = self.answered.filter(|(asked, _)| *asked > 0)?;
        Some(correct as f64 / asked as f64)
    }

    /// For programs.
    pub fn to_json(&self) -> serde_json::Value {
        let mut object = json!({
            "complete": self.complete,
            "ce": self.ce(),
            "perplexity": self.perplexity(),
            "kl": self.kl(),
            "top1_agreement": self.top1_agreement(),
            "top5_agreement": self.top5_agreement(),
            "teacher_top_k": self.teacher_top_k,
            "exact_match": self.exact_match(),
            "answers": self.answered.map(|(asked, _)| asked),
            "answer_seconds": self.answered.map(|_| self.answer_seconds),
            "sequences": self.sequences,
            "tokens": self.tokens,
            "targets": self.targets,
            "seconds": self.seconds,
            "skipped": self.skipped.rows,
            "skipped_rows": self.skipped.named,
        });
        if let Some(base) = &self.base {
            object["base"] = base.to_json();
        }
        object
    }

    /// What was measured, by name, each as a text with its unit apart.
    fn figures(&self) -> Vec<(&'static str, String, String)> {
        let mut figures = Vec::new();
        let mut add = |name, value: Option<String>, unit: &str| {
            figures.extend(value.map(|value| (name, value, unit.to_owned())));
        };
        let measured = self.targets > 0;
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let nats = |nats: f64| format!("{nats:.4}");
        add(
            "cross-entropy",
            measured.then(|| nats(self.ce())),
            "nats a target",
        );
        add(
            "perplexity",
            measured.then(|| format!("{:.3}", self.perplexity())),
            "",
        );
        add("KL to teacher", self.kl().map(nats), "nats a target");
        add("top-1 agreement", self.top1_agreement().map(percent), "");
        add("top-5 agreement", self.top5_agreement().map(percent), "");
        let counts = self.answered.map_or(String::new(), |(asked, correct)| {
            format!("({correct} of {asked}, {:.1} s)", self.answer_seconds)
        });
        add("exact answers", self.exact_match().map(percent), &counts);
        figures
    }

    /// The figures of the base and of this one, line by line.
    fn write_compared(&self, base: &Self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:17}{:>10}  {:>10}", "", "base", "adapter")?;
        let of_base = base.figures();
        for (name, value, unit) in self.figures() {
            let found = of_base.iter().find(|(other, ..)| *other == name);
            let (before, counts) = found.map_or(("", ""), |(_, value, unit)| (value, unit));
            // Counts are each one's own, units are the same.
            let unit = if counts == unit {
                unit
            } else {
                format!("{counts} {unit}")
            };
            let line = format!("{name:17}{before:>10}  {value:>10}  {unit}");
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl fmt::Display for EvalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.complete {
            writeln!(f, "stopped: this is not the result of all sequences")?;
        }
        match &self.base {
            Some(base) => self.write_compared(base, f)?,
            None => {
                for (name, value, unit) in self.figures() {
                    writeln!(f, "{}", format!("{name:17}{value} {unit}").trim_end())?;
                }
            }
        }
        write!(
            f,
            "over {} targets of {} tokens in {} sequences, {:.1} s",
            self.targets, self.tokens, self.sequences, self.seconds
        )?;
        if self.skipped.rows > 0 {
            write!(f, "\n{} rows of the data skipped", self.skipped.rows)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_over_targets_not_over_sequences() {
        let mut report = EvalReport::default();
        report.add(10, 1, 4.0);
        report.add(10, 3, 2.0);
        assert_eq!(report.ce(), 2.5);
        assert_eq!(report.kl(), None);
        report.add_teacher(4, 0.5, Agreements { top1: 3, top5: 4 });
        assert_eq!(
            (report.kl(), report.top1_agreement()),
            (Some(0.5), Some(0.75))
        );
        assert_eq!(report.top5_agreement(), Some(1.0));
        assert!(report.to_string().contains("75.0 %"));
    }

    #[test]
    fn a_stopped_evaluation_made_up_a_perplexity_of_one() {
        let mut report = EvalReport {
            answered: Some((0, 0)),
            ..EvalReport::default()
        };
        let json = report.to_json();
        assert_eq!(json["complete"], false);
        for key in ["ce", "perplexity", "kl", "exact_match"] {
            assert!(json[key].is_null(), "{key}: {json}");
        }
        let text = report.to_string();
        assert!(text.starts_with("stopped"), "{text}");
        assert!(
            !text.contains("perplexity") && !text.contains('%'),
            "{text}"
        );
        report.add(10, 2, 1.0);
        report.complete = true;
        assert_eq!(report.to_json()["complete"], true);
        assert!(report.to_string().starts_with("cross-entropy    1.0000"));
    }

    #[test]
    fn base_and_adapter_stand_beside_each_other() {
        let mut report = EvalReport::default();
        report.add(10, 2, 1.0);
        report.add_teacher(2, 0.25, Agreements { top1: 1, top5: 2 });
        report.answered = Some((4, 3));
        let mut base = EvalReport::default();
        base.add(10, 2, 2.0);
        base.add_teacher(2, 0.5, Agreements { top1: 0, top5: 1 });
        base.answered = Some((4, 0));
        report.base = Some(Box::new(base));
        report.complete = true;
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "                       base     adapter");
        assert_eq!(
            lines[1],
            "cross-entropy        2.0000      1.0000  nats a target"
        );
        assert_eq!(
            lines[3],
            "KL to teacher        0.5000      0.2500  nats a target"
        );
        assert_eq!(lines[4], "top-1 agreement       0.0 %      50.0 %");
        assert_eq!(
            lines[6],
            "exact answers         0.0 %      75.0 %  (0 of 4, 0.0 s) (3 of 4, 0.0 s)"
        );
        assert_eq!(report.to_json()["base"]["ce"], 2.0);
        assert!(report.base.unwrap().to_json().get("base").is_none());
    }

    #[test]
    fn skipped_rows_are_counted_and_named() {
        let mut report = EvalReport::default();
        assert_eq!(report.to_json()["skipped"], 0);
        assert!(!report.to_string().contains("skipped"));
        report.skipped.rows = 2;
        report.skipped.named = vec!["a.jsonl:1: not JSON".into()];
        assert_eq!(report.to_json()["skipped"], 2);
        assert_eq!(
            report.to_json()["skipped_rows"],
            json!(["a.jsonl:1: not JSON"])
        );
        assert!(report.to_string().ends_with("2 rows of the data skipped"));
    }
}
