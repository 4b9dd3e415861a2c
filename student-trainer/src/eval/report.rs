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
        json!({
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
        })
    }
}

impl fmt::Display for EvalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.complete {
            writeln!(f, "stopped: this is not the result of all sequences")?;
        }
        if self.targets > 0 {
            writeln!(f, "cross-entropy    {:.4} nats a target", self.ce())?;
            writeln!(f, "perplexity       {:.3}", self.perplexity())?;
        }
        if let (Some(kl), Some(agreement)) = (self.kl(), self.top1_agreement()) {
            writeln!(f, "KL to teacher    {kl:.4} nats a target")?;
            writeln!(f, "top-1 agreement  {:.1} %", 100.0 * agreement)?;
        }
        if let Some(agreement) = self.top5_agreement() {
            writeln!(f, "top-5 agreement  {:.1} %", 100.0 * agreement)?;
        }
        if let (Some(exact), Some((asked, correct))) = (self.exact_match(), self.answered) {
            writeln!(
                f,
                "exact answers    {:.1} % ({correct} of {asked}, {:.1} s)",
                100.0 * exact,
                self.answer_seconds
            )?;
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
