//! Provides what `eval` can be told, with the defaults, and the check that it makes sense before any work.

use std::path::PathBuf;

use distill_program::settings;
use distill_text::ChatTemplateKwargs;

use crate::{
    Error, Result,
    config::{
        ComputeDtype, Quantize,
        needs::{ADAPTER, ANSWERS, DRAWN, HTTPS, PLANS_OUT, TEACHER},
    },
    generate::{Decoding, check_compare, check_decoding, decoding_of},
};

settings! {
    /// Everything `eval` can be told.
    pub struct EvalConfig: once {
        group "Student":
        /// The student: a directory, or a name on the hub.
        ///
        /// A directory holds its base, a merged model or a checkpoint of a full-parameter run; a name is org/name or
        /// org/name@revision.
        student: PathBuf = PathBuf::new(), value: "DIR|NAME", essential: true;
        /// The adapter over it: a directory of PEFT's, or a name on the hub.
        ///
        /// A run's `adapter` or `best`, or a checkpoint.
        adapter: Option<PathBuf> = None, value: "DIR|NAME", essential: true;
        /// Measure the base as well.
        ///
        /// That is without the adapter; both stand beside each other.
        compare: bool = false, needs: [ADAPTER], essential: true;
        group "Data":
        /// Text to evaluate on: files, or directories.
        ///
        /// .txt, .md, .jsonl or .parquet, or directories of them.
        data: Vec<PathBuf> = Vec::new(), value: "PATH,PATH", essential: true;
        /// Stop at the first line or row that cannot be used, instead of skipping and naming it.
        strict: bool = false;
        /// Variables of the chat template for every conversation, as a JSON object, e.g. {"enable_thinking": false}; a row's
        /// own `chat_template_kwargs` win.
        chat_template_kwargs: ChatTemplateKwargs as Text = ChatTemplateKwargs::default();
        /// Longest sequence in tokens.
        seq_len: usize = 512, limits: 2..;
        /// Stop after this many sequences.
        max_sequences: Option<usize> = None, limits: 1..;
        group "Teacher":
        /// Address of a teacher to compare with, through ScoreTokens.
        teacher: Option<String> = None, value: "ADDRESS", essential: true;
        /// PEM file with the authority that signed an https teacher's certificate.
        ca_cert: Option<PathBuf> = None, needs: [HTTPS];
        /// File with the token that the teacher asks for.
        token_file: Option<PathBuf> = None, needs: [TEACHER];
        /// Seconds to wait for the teacher to be ready.
        connect_timeout_seconds: u64 = 1800, needs: [TEACHER];
        /// Temperature of the KL to the teacher; one of those that the teacher stores.
        kl_temperature: f64 = 1.0, needs: [TEACHER];
        group "Student":
        /// Rows whose logits exist at one time.
        chunk_rows: usize = 128;
        /// How a full-precision student is held; unset: as the run that trained it held it, else in NF4.
        quantize: Option<Quantize> as Text = None;
        /// Compute type.
        dtype: ComputeDtype as Text = ComputeDtype::Auto;
        /// Where to compute: auto, cpu, cuda or cuda:N.
        device: String = "auto".to_owned();
        group "Answers":
        /// Let the student answer prompts; count the exact answers.
        ///
        /// A prompt is completed, and what a conversation's last turn of the assistant answers is answered; those whose last
        /// line is the corpus's count.
        exact_match: bool = false, essential: true;
        /// Longest answer in tokens.
        max_new_tokens: usize = 256, needs: [ANSWERS];
        /// Temperature of the answers' sampling; 0 takes the likeliest token every time.
        temperature: f64 = 0.0, needs: [ANSWERS];
        /// Tokens that sampling draws from, the likeliest first; 0 is all.
        top_k: usize = 0, needs: [ANSWERS, DRAWN];
        /// Share of the mass that sampling draws from, the likeliest tokens first.
        top_p: f64 = 1.0, needs: [ANSWERS, DRAWN];
        /// Share of the likeliest token's probability that others need to be drawn.
        min_p: f64 = 0.0, needs: [ANSWERS, DRAWN];
        /// Seed of the sampling: the same seed gives the same answers.
        sample_seed: u64 = 42, needs: [ANSWERS, DRAWN];
        /// JSON Lines file for the answers: prompt, reference, generated, correct, and with `compare` the base's; of a stopped run, `complete` false at its end.
        answers_out: Option<PathBuf> = None, value: "FILE";
        group "Output":
        /// JSON file for the transport plans of a few sequences; needs a teacher.
        plans_out: Option<PathBuf> = None, value: "FILE";
        /// Sequences whose plans are written.
        plans: usize = 3, needs: [PLANS_OUT];
        /// Print a JSON object.
        json: bool = false;
    }
}

impl EvalConfig {
    /// Checks what can be checked without reading anything.
    ///
    /// # Errors
    /// The first setting that is missing or outside its meaning, by name, with what is allowed.
    pub fn validate(&self) -> Result<()> {
        settings::check_limits(self)?;
        let checks = [
            (
                !self.data.is_empty(),
                "data: name at least one file with --data",
            ),
            (
                self.plans_out.is_none() || self.teacher.is_some(),
                "plans_out: a plan is between a student and a teacher; name one with --teacher",
            ),
        ];
        check_compare(self.compare, self.adapter.is_some())?;
        match checks.into_iter().find(|(fine, _)| !fine) {
            Some((_, message)) => Err(Error::Config(message.into())),
            None => check_decoding(&self.decoding(), ""),
        }
    }

    /// How answers are written.
    pub(super) fn decoding(&self) -> Decoding {
        decoding_of!(self)
    }

    /// Whether prompts are answered.
    pub(super) fn wants_answers(&self) -> bool {
        self.exact_match || self.answers_out.is_some()
    }
}
