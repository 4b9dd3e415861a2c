//! Provides what `pretrain` can be told, with the defaults, and the check that it makes sense before any work.

use std::path::PathBuf;

use distill_program::settings;
use distill_text::ChatTemplateKwargs;

use crate::{
    Error, Result,
    config::{ComputeDtype, needs::NO_STEPS},
    optimizer::{LearningRateRatios, OptimizerKind, UpdateSettings, update_settings},
};

settings! {
    /// Everything `pretrain` can be told; the resolved form is written into the run directory.
    pub struct PretrainConfig: once {
        group "Model and data":
        /// The model's config.json, to start from random weights.
        model_config: Option<PathBuf> = None, value: "FILE", essential: true;
        /// Directory of a model to go on from, instead of random weights.
        from: Option<PathBuf> = None, value: "DIR", essential: true;
        /// Directory with the tokenizer; unset: that of `from`.
        tokenizer: Option<PathBuf> = None, value: "DIR", essential: true;
        /// Text to train on: .txt, .md or .jsonl files, or directories of them.
        data: Vec<PathBuf> = Vec::new(), value: "PATH,PATH", essential: true;
        /// Stop at the first line or row that cannot be used, instead of skipping and naming it.
        strict: bool = false;
        /// Variables of the chat template for every conversation, as a JSON object, e.g. {"enable_thinking": false}; a row's
        /// own `chat_template_kwargs` win.
        chat_template_kwargs: ChatTemplateKwargs as Text = ChatTemplateKwargs::default();
        group "Output":
        /// Run directory to create; the model is in its `model`.
        out: PathBuf = PathBuf::new(), value: "DIR", essential: true;
        group "Model and data":
        /// Longest sequence in tokens.
        seq_len: usize = 512;
        group "Optimisation":
        /// Optimiser steps; unset: as many as `epochs` takes.
        steps: Option<usize> = None, limits: 1..;
        /// Passes over the text.
        epochs: usize = 1, limits: 1.., needs: [NO_STEPS], essential: true;
        /// Sequences in one step.
        batch_size: usize = 16, limits: 1..;
        /// Peak learning rate.
        lr: f64 = 1e-3;
        /// Share of all steps that is linear warm-up.
        warmup_ratio: f64 = 0.02;
        /// Share of the peak at which the cosine ends.
        lr_floor_ratio: f64 = 0.02;
        /// How AdamW's moments are kept: in f32, or as bitsandbytes' AdamW8bit keeps them.
        optimizer: OptimizerKind as Text = OptimizerKind::AdamW;
        /// Decoupled weight decay of matrices.
        weight_decay: f64 = 0.05;
        /// Decay of AdamW's first moment.
        beta1: f64 = 0.9;
        /// Decay of AdamW's second moment.
        beta2: f64 = 0.98;
        /// Added to the root of AdamW's second moment.
        eps: f64 = 1e-8;
        /// Largest norm of the whole gradient; 0 leaves it alone.
        max_grad_norm: f64 = 1.0;
        /// Learning rate of the embeddings and the head as a multiple of `lr`.
        embedding_lr_ratio: f64 = 1.0;
        /// Rows whose logits exist at one time.
        chunk_rows: usize = 512, limits: 1..;
        /// Seed of the weights and of the order of the sequences.
        seed: u64 = 42;
        group "Output":
        /// Steps between two saves of the model, so that a crash loses no more; 0 saves at the end only.
        save_every: usize = 500;
        /// Type of the saved weights; auto is f32.
        save_dtype: ComputeDtype as Text = ComputeDtype::Auto;
        group "Optimisation":
        /// Where to compute: auto, cpu, cuda or cuda:N.
        device: String = "auto".to_owned();
    }
}

impl PretrainConfig {
    /// Checks what can be checked without reading anything.
    ///
    /// # Errors
    /// The first setting that is missing or outside its meaning, by name, with what is allowed.
    pub fn validate(&self) -> Result<()> {
        settings::check_limits(self)?;
        let empty = self.out.as_os_str().is_empty();
        let checks = [
            (!empty, "out: name the run directory with --out DIR"),
            (
                !self.data.is_empty(),
                "data: name at least one file with --data",
            ),
            (
                self.model_config.is_some() != self.from.is_some(),
                "model_config, from: give one of them: --model-config FILE for random weights, or --from DIR",
            ),
            (
                self.from.is_some() || self.tokenizer.is_some(),
                "tokenizer: name the tokenizer's directory with --tokenizer DIR",
            ),
        ];
        match checks.into_iter().find(|(fine, _)| !fine) {
            Some((_, message)) => Err(Error::Config(message.into())),
            None => self.update_settings().validate(),
        }
    }

    /// What the updates are told.
    pub fn update_settings(&self) -> UpdateSettings {
        update_settings!(
            self,
            LearningRateRatios {
                embedding: self.embedding_lr_ratio,
                ..LearningRateRatios::default()
            }
        )
    }
}
