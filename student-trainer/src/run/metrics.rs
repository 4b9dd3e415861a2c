//! Provides what a run measures: a line of `metrics.jsonl` a step, a line of `eval.jsonl` an evaluation.

use serde::Serialize;

/// What one optimiser step did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: usize,
    /// Passes over the corpus, with the fraction of the current one.
    pub epoch: f64,
    /// Learning rate.
    pub lr: f64,
    /// The weighted total.
    pub loss: f64,
    /// Cross-entropy, nats a target.
    pub ce: f64,
    /// `tau^2 KL(teacher || student)`, nats a target; 0 without a weight.
    pub kl: f64,
    /// `tau^2 KL(student || teacher)`, nats a target; 0 without a weight.
    pub reverse_kl: f64,
    /// `tau^2 JSD`, nats a target; 0 without a weight.
    pub jsd: f64,
    /// What is learned between positions: optimal transport unless another plan was asked for.
    pub ot: f64,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Tokens through the model.
    pub tokens: usize,
    /// Positions of padding beside them.
    pub padding: usize,
    /// Targets among them.
    pub targets: usize,
    /// Tokens a second, this step.
    pub tokens_per_second: f64,
    /// Seconds of this step, without waiting for the teacher.
    pub seconds: f64,
    /// Seconds spent waiting for the teacher.
    pub wait_seconds: f64,
    /// Seconds from being asked for the device to having left it, where it was given back before this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_seconds: Option<f64>,
    /// Seconds from then to having the student on the device again, the teacher's turn among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acquire_seconds: Option<f64>,
    /// Of these, seconds from the grant on: the student is read again and goes on from what it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_seconds: Option<f64>,
    /// Most solver iterations of one sequence; none without transport.
    pub ot_iterations: Option<usize>,
    /// Largest marginal error.
    pub ot_marginal_error: Option<f64>,
    /// Whether every problem met its tolerance.
    pub ot_converged: Option<bool>,
    /// Resident memory now.
    pub rss_bytes: u64,
    /// Resident memory at most so far.
    pub peak_rss_bytes: u64,
}

/// What one evaluation during training found; a number that was not asked for is null.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EvalMetrics {
    /// Optimiser steps done before it.
    pub step: usize,
    /// Passes over the corpus, with the fraction of the current one.
    pub epoch: f64,
    /// Cross-entropy on the held-out text, nats a target.
    pub ce: f64,
    /// `e^CE`.
    pub perplexity: f64,
    /// KL to the teacher, nats a target.
    pub kl: Option<f64>,
    /// Share of targets where student and teacher prefer the same token.
    pub top1_agreement: Option<f64>,
    /// Share of targets where the teacher's token is among the student's five.
    pub top5_agreement: Option<f64>,
    /// Share of prompts whose answer was exactly the corpus's.
    pub exact_match: Option<f64>,
    /// Sequences read.
    pub sequences: usize,
    /// Targets among their tokens.
    pub targets: usize,
    /// Seconds of this evaluation.
    pub seconds: f64,
    /// Whether `best_metric` was never better before.
    pub best: bool,
}
