//! Provides what `train` can be told, with the defaults, and the check that it makes sense before any work.

use std::{net::SocketAddr, path::PathBuf};

use distill_model::{ComputeDtype, LORA_TARGETS, Sampling};
use distill_program::settings;
use distill_text::{ChatTemplateKwargs, limits::SEQ_LEN_MIN};
use serde::{Deserialize, Serialize};

use super::{
    loss_keys::loss_keys,
    needs::{
        EVAL_ANSWERS, EVAL_DATA, EVAL_DRAWN, FULL, HTTPS, LORA, NEW_ADAPTER, NO_STEPS,
        NO_WARMUP_STEPS,
    },
};
use crate::{
    Error, Result,
    generate::{Decoding, check_decoding},
    loss::LossConfig,
    optimizer::{LearningRateRatios, OptimizerKind, UpdateSettings, update_settings},
};

/// How a base that is stored in full precision is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantize {
    /// 4-bit NormalFloat, quantised while loading.
    #[default]
    Nf4,
    /// As stored, frozen.
    None,
}

/// What is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tune {
    /// LoRA adapters over a frozen base.
    #[default]
    Lora,
    /// Every weight of a small student that is not quantised, in f32.
    Full,
}

/// What every sequence is given of the sequence before it: a control that must not work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShuffleTeacher {
    /// Nothing.
    #[default]
    None,
    /// The teacher's states alone: what KL learns from is its own.
    States,
    /// All that the teacher says.
    Rows,
}

/// What of an evaluation decides which checkpoint is the best.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BestMetric {
    /// Cross-entropy, the lower the better.
    #[default]
    Ce,
    /// KL to the teacher, the lower the better.
    Kl,
    /// Share of targets where student and teacher prefer the same token.
    Top1Agreement,
    /// Share of exact answers.
    ExactMatch,
}

settings! {
    /// Everything `train` can be told; the resolved form is written into the run directory.
    pub struct TrainConfig: run {
        group "Teacher and data":
        /// Where the teacher listens.
        ///
        /// http://HOST:PORT, https://HOST:PORT (with ca_cert) or unix:/PATH.
        teacher: String = "http://127.0.0.1:50051".to_owned(), may_resume: yes, value: "ADDRESS", essential: true;
        /// PEM file with the authority that signed an https teacher's certificate.
        ca_cert: Option<PathBuf> = None, may_resume: yes, needs: [HTTPS];
        /// File with the token that the teacher asks for; unset: the environment's OT_DISTILL_TOKEN, if there.
        token_file: Option<PathBuf> = None, may_resume: yes;
        /// Seconds to wait for the teacher to be ready, at the start and after a lost connection.
        connect_timeout_seconds: u64 = 1800, may_resume: yes;
        /// Lost connections in a row, without a frame in between, before giving up.
        reconnect_attempts: u32 = 10, may_resume: yes;
        /// Decoded frames held ready; beyond them the teacher waits.
        prefetch_frames: usize = 8, may_resume: yes, limits: 1..;

        group "Student":
        /// The student: a directory, or a name on the hub.
        ///
        /// With a bitsandbytes NF4 checkpoint, or safetensors in bf16, f16 or f32; a name is org/name or org/name@revision.
        student: PathBuf = PathBuf::new(), may_resume: yes, value: "DIR|NAME", essential: true;
        /// How a full-precision student is held.
        quantize: Quantize as Text = Quantize::Nf4, may_resume: no, needs: [LORA];
        /// Compute type.
        dtype: ComputeDtype as Text = ComputeDtype::Auto, may_resume: no;
        /// Where to compute: auto, cpu, cuda or cuda:N.
        device: String = "auto".to_owned(), may_resume: yes;
        /// Bytes that the student's weights may take on the device; unset: what is free there.
        memory_budget_bytes: Option<u64> = None, may_resume: yes;

        group "Optimisation":
        /// Optimiser steps; unset: as many as `epochs` takes.
        steps: Option<usize> = None, may_resume: no, limits: 1..;
        /// Passes over the teacher's corpus.
        epochs: usize = 1, may_resume: no, limits: 1.., needs: [NO_STEPS], essential: true;
        /// Sequences in one forward pass.
        batch_size: usize = 1, may_resume: no, limits: 1..;
        /// Forward passes summed into one optimiser step.
        grad_accumulation: usize = 1, may_resume: no, limits: 1..;
        /// Pack the sequences of a pass into one row without padding, each with positions and attention of its own; off: rows padded to the longest.
        packing: bool = true, may_resume: no;
        /// Tokens in one packed pass at most, unless one sequence has more; unset: as many as `batch_size` sequences have.
        pack_tokens: Option<usize> = None, may_resume: no, limits: 1..;
        group "Teacher and data":
        /// Longest student's side of a pair in the student's tokens, the rest is cut off; unset: as long as the teacher's sequences.
        student_seq_len: Option<usize> = None, may_resume: no, limits: SEQ_LEN_MIN..;
        /// Sequences that are taken from the teacher together and put into random order, another in every pass; 1 keeps the order of the corpus.
        shuffle_buffer: usize = 1, may_resume: no, limits: 1..=1 << 16;
        /// What every sequence is given of the one before it, a control that must not work: all of the teacher's `rows`, or its `states` alone.
        shuffle_teacher: ShuffleTeacher as Text = ShuffleTeacher::None, may_resume: no;
        group "Optimisation":
        /// Recompute layers in the backward pass instead of keeping their activations.
        checkpointing: bool = true, may_resume: yes;
        /// Layers recomputed together: their first input is kept, and while they are recomputed the activations of all of them are.
        checkpoint_every: usize = 1, may_resume: yes, limits: 1..;

        /// Peak learning rate.
        lr: f64 = 2e-4, may_resume: no;
        /// Steps of linear warm-up; unset: `warmup_ratio` of all steps.
        warmup_steps: Option<usize> = None, may_resume: no;
        /// Share of all steps that is warm-up, where `warmup_steps` is unset.
        warmup_ratio: f64 = 0.03, may_resume: no, needs: [NO_WARMUP_STEPS];
        /// Share of the peak at which the cosine ends.
        lr_floor_ratio: f64 = 0.1, may_resume: no;
        /// How AdamW's moments are kept: in f32, or as bitsandbytes' AdamW8bit keeps them.
        optimizer: OptimizerKind as Text = OptimizerKind::AdamW, may_resume: no;
        /// Decoupled weight decay.
        weight_decay: f64 = 0.0, may_resume: no;
        /// Decay of AdamW's first moment.
        beta1: f64 = 0.9, may_resume: no;
        /// Decay of AdamW's second moment.
        beta2: f64 = 0.999, may_resume: no;
        /// Added to the root of AdamW's second moment.
        eps: f64 = 1e-8, may_resume: no;
        /// Largest norm of the whole gradient; 0 leaves it alone.
        max_grad_norm: f64 = 1.0, may_resume: no;
        /// Learning rate of LoRA's B matrices as a multiple of `lr` (LoRA+; above 1, often 16).
        lora_b_lr_ratio: f64 = 1.0, may_resume: no, needs: [LORA];
        /// Learning rate of the embeddings and the head as a multiple of `lr`, where they are trained.
        embedding_lr_ratio: f64 = 1.0, may_resume: no, needs: [FULL];

        group "Student":
        /// What is trained: adapters, or every weight of a small student that is not quantised.
        tune: Tune as Text = Tune::Lora, may_resume: no;
        /// LoRA rank r.
        lora_rank: usize = 16, may_resume: no, needs: [LORA, NEW_ADAPTER];
        /// LoRA alpha: adapters count alpha / r.
        lora_alpha: f64 = 32.0, may_resume: no, needs: [LORA, NEW_ADAPTER];
        /// Whether adapters count alpha / sqrt(r) instead (rsLoRA).
        lora_rs: bool = false, may_resume: no, needs: [LORA, NEW_ADAPTER];
        /// Ranks of some modules: EXPRESSION=RANK, where PEFT's regular expression matches the end of the name; the first counts.
        lora_rank_pattern: Vec<String> = Vec::new(), may_resume: no, needs: [LORA, NEW_ADAPTER];
        /// Alphas of some modules: EXPRESSION=ALPHA, matched likewise.
        lora_alpha_pattern: Vec<String> = Vec::new(), may_resume: no, needs: [LORA, NEW_ADAPTER];
        /// Projections that get an adapter; all-linear: every one.
        lora_targets: Vec<String> = LORA_TARGETS.map(str::to_owned).to_vec(), may_resume: no, needs: [LORA, NEW_ADAPTER];
        /// Directory of a LoRA adapter to continue: its adapter_config.json decides ranks, alphas and targets.
        init_adapter: Option<PathBuf> = None, may_resume: no;
        group "Optimisation":
        /// Seed of everything random.
        seed: u64 = 42, may_resume: no;

        group "Evaluation and output":
        /// Run directory to create.
        out: PathBuf = PathBuf::new(), may_resume: yes, value: "DIR", essential: true;
        /// Prompts that the student answers before its first step and after its last, for the report; 0 asks it nothing.
        sample_answers: usize = 4, may_resume: no, limits: 0..=64;
        /// Where Prometheus may read /metrics while it trains, such as 127.0.0.1:9465; unset: nowhere.
        metrics_addr: Option<SocketAddr> as Text = None, may_resume: yes, value: "HOST:PORT";
        /// Steps between two checkpoints; 0 writes one at the end only.
        save_steps: usize = 200, may_resume: yes;
        /// Newest checkpoints that are kept, beside the best one.
        keep_last: usize = 2, may_resume: yes, limits: 1..;
        /// Type of the weights in `model` after full-parameter training; auto is f32.
        save_dtype: ComputeDtype as Text = ComputeDtype::Auto, may_resume: yes, needs: [FULL];

        /// Held-out text to evaluate on: files, or directories.
        ///
        /// .txt, .md, .jsonl or .parquet, or directories of them; with prompts, the report shows what the student answers.
        eval_data: Vec<PathBuf> = Vec::new(), may_resume: no, value: "PATH,PATH", essential: true;
        /// Stop at the first line or row of it that cannot be used, instead of skipping and naming it.
        strict: bool = false, may_resume: yes, needs: [EVAL_DATA];
        /// Variables of the chat template for every conversation of the held-out text, as a JSON object, e.g. {"enable_thinking": false}; a row's
        /// own `chat_template_kwargs` win.
        chat_template_kwargs: ChatTemplateKwargs as Text = ChatTemplateKwargs::default(), may_resume: no, needs: [EVAL_DATA];
        /// Steps between two evaluations; 0 evaluates at the end only.
        eval_steps: usize = 200, may_resume: yes, needs: [EVAL_DATA];
        /// Longest held-out sequence in tokens; unset: as the teacher's.
        eval_seq_len: Option<usize> = None, may_resume: no, limits: SEQ_LEN_MIN.., needs: [EVAL_DATA];
        /// Held-out sequences at most.
        eval_max_sequences: Option<usize> = None, may_resume: no, limits: 1.., needs: [EVAL_DATA];
        /// Ask the teacher for its rows of the held-out text: KL, top-1 and top-5 agreement.
        eval_kl: bool = true, may_resume: no, needs: [EVAL_DATA];
        /// Let the student complete every held-out prompt, and count the answers whose last line is right.
        eval_exact_match: bool = false, may_resume: no, needs: [EVAL_DATA];
        /// Longest held-out answer in tokens.
        eval_max_new_tokens: usize = 256, may_resume: no, needs: [EVAL_DATA, EVAL_ANSWERS];
        /// Temperature of the answers' sampling; 0 takes the likeliest token every time.
        eval_temperature: f64 = 0.0, may_resume: no, needs: [EVAL_DATA, EVAL_ANSWERS];
        /// Share of the mass that sampling draws from, the likeliest tokens first.
        eval_top_p: f64 = 1.0, may_resume: no, needs: [EVAL_DATA, EVAL_ANSWERS, EVAL_DRAWN];
        /// Seed of the sampling.
        eval_sample_seed: u64 = 42, may_resume: no, needs: [EVAL_DATA, EVAL_ANSWERS, EVAL_DRAWN];
        /// What decides which evaluation is the best: exact_match needs `eval_exact_match`, kl and top1_agreement `eval_kl`.
        best_metric: BestMetric as Text = BestMetric::Ce, may_resume: no, needs: [EVAL_DATA];
        /// Evaluations in a row without a better one after which the run ends; 0 never ends it early.
        early_stopping_patience: usize = 0, may_resume: yes;

        group "Settings":
        /// Settings to start from: default, literal (the method's formula word for word) or reference-24gb (Qwen2.5-7B teaches
        /// Qwen2.5-1.5B on one card of 24 GB).
        preset: String = "default".to_owned(), may_resume: no;
        group "Evaluation and output":
        /// Safetensors file for the gradients of the first step, before clipping, to check against other implementations.
        first_step_grad_out: Option<PathBuf> = None, may_resume: no;
    }
    sections {
        /// The loss.
        loss: LossConfig = loss_keys, may_resume: no;
    }
}

impl TrainConfig {
    /// Checks what can be checked without touching the teacher or the student.
    ///
    /// # Errors
    /// The first setting that is missing or outside its meaning, by name, with what is allowed.
    pub fn validate(&self) -> Result<()> {
        let check = |fine: bool, message: &str| {
            if fine {
                Ok(())
            } else {
                Err(Error::Config(message.to_owned()))
            }
        };
        let missing = |path: &PathBuf| path.as_os_str().is_empty();
        check(
            !missing(&self.student),
            "student: name the student's directory with --student DIR",
        )?;
        check(
            !missing(&self.out),
            "out: name the run directory with --out DIR",
        )?;
        settings::check_limits(self)?;
        check(
            self.packing || self.pack_tokens.is_none(),
            "pack_tokens: has no meaning with packing off",
        )?;
        check(
            self.checkpointing || self.checkpoint_every == 1,
            "checkpoint_every: has no meaning with checkpointing off",
        )?;
        check(
            self.shuffle_teacher != ShuffleTeacher::States || self.loss.needs_states(),
            "shuffle_teacher: this loss compares no states; shuffle the rows",
        )?;
        self.lora()?;
        self.check_eval()?;
        if self.tune == Tune::Full {
            check(
                self.init_adapter.is_none(),
                "init_adapter: full-parameter training has no adapters; export the adapter and train the result",
            )?;
        }
        self.update_settings().validate()?;
        Ok(self.loss.validate()?)
    }

    /// Checks what evaluations during training are told.
    fn check_eval(&self) -> Result<()> {
        let without = self.eval_data.is_empty();
        let checks = [
            (
                self.early_stopping_patience == 0 || !without,
                "early_stopping_patience: only evaluations can end a run early; name held-out text with --eval-data",
            ),
            (
                self.best_metric != BestMetric::ExactMatch || without || self.eval_exact_match,
                "best_metric: exact_match needs --eval-exact-match",
            ),
            (
                !matches!(self.best_metric, BestMetric::Kl | BestMetric::Top1Agreement)
                    || without
                    || self.eval_kl,
                "best_metric: kl and top1_agreement need --eval-kl on",
            ),
        ];
        match checks.into_iter().find(|(fine, _)| !fine) {
            Some((_, message)) => Err(Error::Config(message.into())),
            None => check_decoding(&self.eval_decoding(), "eval_"),
        }
    }

    /// How held-out answers are written.
    pub fn eval_decoding(&self) -> Decoding {
        Decoding {
            max_new_tokens: self.eval_max_new_tokens,
            sampling: Sampling {
                temperature: self.eval_temperature,
                top_p: self.eval_top_p,
                ..Sampling::GREEDY
            },
            seed: self.eval_sample_seed,
        }
    }

    /// What the updates are told.
    pub fn update_settings(&self) -> UpdateSettings {
        update_settings!(
            self,
            LearningRateRatios {
                lora_b: self.lora_b_lr_ratio,
                embedding: self.embedding_lr_ratio,
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Keys;

    fn valid() -> TrainConfig {
        TrainConfig {
            student: "s".into(),
            out: "o".into(),
            ..Default::default()
        }
    }

    #[test]
    fn every_broken_setting_is_named() {
        valid().validate().unwrap();
        type Break = fn(&mut TrainConfig);
        let broken: [(&str, Break); 13] = [
            ("student", |c| c.student = PathBuf::new()),
            ("out", |c| c.out = PathBuf::new()),
            ("steps", |c| c.steps = Some(0)),
            ("lr", |c| c.lr = f64::NAN),
            ("beta2", |c| c.beta2 = 1.0),
            ("warmup_ratio", |c| c.warmup_ratio = 1.5),
            ("eps", |c| c.eps = 0.0),
            ("lora_targets", |c| c.lora_targets.clear()),
            ("keep_last", |c| c.keep_last = 0),
            ("eval_top_p", |c| c.eval_top_p = 0.0),
            ("early_stopping_patience", |c| c.early_stopping_patience = 1),
            ("best_metric", |c| {
                c.eval_data = vec!["held-out".into()];
                c.best_metric = BestMetric::ExactMatch;
            }),
            ("eval_max_sequences", |c| c.eval_max_sequences = Some(0)),
        ];
        for (name, breaks) in broken {
            let mut config = valid();
            breaks(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(&format!("{name}:")), "{message}");
        }
    }

    #[test]
    fn every_key_has_its_own_flag_and_help() {
        let keys = TrainConfig::keys();
        let mut flags: Vec<String> = keys.iter().map(crate::config::Key::flag).collect();
        flags.sort();
        let count = flags.len();
        flags.dedup();
        assert_eq!(flags.len(), count, "two settings share a flag");
        assert!(keys.iter().all(|key| !key.help.is_empty()));
    }

    #[test]
    fn the_resolved_file_reads_back_as_itself() {
        let config = TrainConfig {
            steps: Some(3),
            ..valid()
        };
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<TrainConfig>(&text).unwrap(), config);
    }
}
