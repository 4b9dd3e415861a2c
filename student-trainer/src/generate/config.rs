//! Provides what `generate` and `chat` can be told, with the defaults, and the checks that it makes sense before any work.

use std::path::{Path, PathBuf};

use distill_program::settings;
use distill_text::ChatTemplateKwargs;

use super::{Decoding, check_decoding, decoding_of, remote::Address};
use crate::{
    Error, Result,
    config::{
        ComputeDtype, Quantize,
        needs::{CHAT, COMPARED, DRAWN, HTTPS, STUDENT, TEACHER},
    },
};

/// Declares what `generate` and `chat` are told alike, around what each is told of its own.
macro_rules! answers {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident {
            $($asked:tt)+
        }
        max_new_tokens: $max_new_tokens:literal, temperature: $temperature:literal (essential: $essential:literal), top_p: $top_p:literal
        $($printed:tt)*
    ) => {
        settings! {
            $(#[doc = $about])+
            pub struct $name: once {
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
                /// Answer with the base as well, and with a teacher if named.
                ///
                /// The answers stand beside each other; in a conversation each goes on with its own.
                compare: bool = false, needs: [COMPARED], essential: true;
                group "Teacher":
                /// Address of a teacher that answers, alone or beside the student.
                ///
                /// http://HOST:PORT, https://HOST:PORT (with ca_cert) or unix:/PATH.
                teacher: Option<String> = None, value: "ADDRESS", essential: true;
                /// PEM file with the authority that signed an https teacher's certificate.
                ca_cert: Option<PathBuf> = None, needs: [HTTPS];
                /// File with the token that the teacher asks for.
                token_file: Option<PathBuf> = None, needs: [TEACHER];
                /// Seconds to wait for the teacher to be ready.
                connect_timeout_seconds: u64 = 1800, needs: [TEACHER];
                $($asked)+
                /// Variables of the student's chat template, as a JSON object, e.g. {"enable_thinking": false}.
                chat_template_kwargs: ChatTemplateKwargs as Text = ChatTemplateKwargs::default(), needs: [STUDENT];
                group "Answers":
                /// Longest answer in tokens.
                max_new_tokens: usize = $max_new_tokens, limits: 1..;
                /// Texts that end an answer and are no part of it.
                stop: Vec<String> as Words = Vec::new(), value: "TEXT";
                /// Temperature of the sampling; 0 takes the likeliest token.
                temperature: f64 = $temperature, essential: $essential;
                /// Tokens that sampling draws from, the likeliest first; 0 is all.
                top_k: usize = 0, needs: [DRAWN];
                /// Share of the mass that sampling draws from, the likeliest tokens first.
                top_p: f64 = $top_p, needs: [DRAWN];
                /// Share of the likeliest token's probability that others need to be drawn.
                min_p: f64 = 0.0, needs: [DRAWN];
                /// Seed of the sampling: the same seed gives the same answers to the same prompts.
                sample_seed: u64 = 42, needs: [DRAWN];
                $($printed)*
                group "Student":
                /// How a full-precision student is held; unset: as the run that trained it held it, else in NF4.
                quantize: Option<Quantize> as Text = None, needs: [STUDENT];
                /// Compute type.
                dtype: ComputeDtype as Text = ComputeDtype::Auto, needs: [STUDENT];
                /// Where to compute: auto, cpu, cuda or cuda:N.
                device: String = "auto".to_owned(), needs: [STUDENT];
            }
        }

        impl $name {
            /// How answers are written.
            pub(super) fn decoding(&self) -> Decoding {
                decoding_of!(self)
            }

            /// Who answers.
            pub(super) fn party(&self) -> Party<'_> {
                Party {
                    student: &self.student,
                    adapter: self.adapter.as_deref(),
                    compare: self.compare,
                    teacher: self.teacher.as_deref().map(|teacher| Address {
                        teacher,
                        ca_cert: &self.ca_cert,
                        token_file: &self.token_file,
                        connect_timeout_seconds: self.connect_timeout_seconds,
                    }),
                }
            }
        }
    };
}

answers! {
    /// Everything `generate` can be told.
    pub struct GenerateConfig {
        group "Prompts":
        /// Texts to continue, one answer each.
        prompt: Vec<String> as Words = Vec::new(), value: "TEXT", essential: true;
        /// JSON Lines file of prompts.
        ///
        /// `prompt`, a text or a list of messages, or `messages`, which a last turn of the assistant is left out of.
        prompts: Option<PathBuf> = None, value: "FILE", essential: true;
        /// Take every text as a user's turn of the model's chat template.
        chat: bool = false;
        /// What every conversation begins with.
        system: Option<String> = None, needs: [CHAT], value: "TEXT";
    }
    max_new_tokens: 256, temperature: 0.0 (essential: false), top_p: 1.0
    /// Print a JSON object a line for every prompt.
    json: bool = false;
}

answers! {
    /// Everything `chat` can be told.
    pub struct ChatConfig {
        group "Conversation":
        /// What the conversation begins with.
        system: Option<String> = None, value: "TEXT", essential: true;
    }
    max_new_tokens: 1024, temperature: 0.7 (essential: true), top_p: 0.9
}

/// Those who answer.
pub(super) struct Party<'a> {
    pub student: &'a Path,
    pub adapter: Option<&'a Path>,
    pub compare: bool,
    pub teacher: Option<Address<'a>>,
}

impl Party<'_> {
    /// Whether a student answers, or the base that an adapter names: a teacher may do so alone.
    pub fn has_student(&self) -> bool {
        self.teacher.is_none() || !self.student.as_os_str().is_empty() || self.adapter.is_some()
    }

    fn validate(&self) -> Result<()> {
        let refuse = |message: &str| Err(Error::Config(message.into()));
        match (&self.teacher, self.compare, self.has_student()) {
            (None, compare, _) => check_compare(compare, self.adapter.is_some()),
            (Some(_), true, false) => refuse(
                "compare: sets the teacher beside a student; name one with --student DIR, or its adapter with --adapter DIR",
            ),
            (Some(_), false, true) => refuse(
                "teacher: answers alone, without --student and --adapter, or beside them with --compare",
            ),
            _ => Ok(()),
        }
    }
}

impl GenerateConfig {
    /// Checks what can be checked without reading anything.
    ///
    /// # Errors
    /// The first setting that is missing or outside its meaning, by name, with what is allowed.
    pub fn validate(&self) -> Result<()> {
        settings::check_limits(self)?;
        if self.prompt.is_empty() && self.prompts.is_none() {
            return Err(Error::Config(
                "prompt: name what to continue with --prompt TEXT, or a file of prompts with --prompts FILE"
                    .into(),
            ));
        }
        self.party().validate()?;
        check_decoding(&self.decoding(), "")
    }
}

impl ChatConfig {
    /// As [`GenerateConfig::validate`].
    ///
    /// # Errors
    /// As [`GenerateConfig::validate`].
    pub fn validate(&self) -> Result<()> {
        settings::check_limits(self)?;
        self.party().validate()?;
        check_decoding(&self.decoding(), "")
    }
}

/// Refuses a comparison of a base with nothing.
///
/// # Errors
/// That, with what to do.
pub(crate) fn check_compare(compare: bool, has_adapter: bool) -> Result<()> {
    if compare && !has_adapter {
        return Err(Error::Config(
            "compare: sets the base beside its adapter; name one with --adapter DIR".into(),
        ));
    }
    Ok(())
}
