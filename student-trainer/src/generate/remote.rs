//! Provides the answers of a teacher by address, as they come over the wire.

use std::{path::PathBuf, time::Duration};

use distill_model::answers::{Decoding, Finish, Heard, Written};
use distill_proto::v1::{GenerateRequest, generate_request};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::prompts::{Prompt, Question};
use crate::{
    Result,
    client::{self, AnswerEvent, ConnectOptions, Teacher},
    shutdown::Shutdown,
};

/// A teacher that answers prompts.
pub(super) struct RemoteTeacher {
    runtime: Runtime,
    teacher: Teacher,
    decoding: Decoding,
    stops: Vec<String>,
    shutdown: Shutdown,
}

/// Where a teacher is, as `generate` and `chat` are told.
pub(super) struct Address<'a> {
    pub teacher: &'a str,
    pub ca_cert: &'a Option<PathBuf>,
    pub token_file: &'a Option<PathBuf>,
    pub connect_timeout_seconds: u64,
}

impl RemoteTeacher {
    /// Reaches the teacher, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Teacher::connect`].
    pub fn connect(
        address: &Address<'_>,
        decoding: Decoding,
        stops: &[String],
        shutdown: &Shutdown,
    ) -> Result<Self> {
        let options = ConnectOptions {
            address: address.teacher.to_owned(),
            ca_cert: address.ca_cert.clone(),
            token_file: address.token_file.clone(),
            timeout: Duration::from_secs(address.connect_timeout_seconds),
        };
        let runtime = client::runtime()?;
        let teacher = runtime.block_on(Teacher::connect(&options, shutdown))?;
        Ok(Self {
            runtime,
            teacher,
            decoding,
            stops: stops.to_vec(),
            shutdown: shutdown.clone(),
        })
    }

    /// Answers every question, one after another; the first one draws by `seed`, the others by those after it. `each` hears of the
    /// answers as they grow, and says whether to go on; after it does not, or after a shutdown, the others are `Interrupted`.
    ///
    /// # Errors
    /// A refusal, a lost connection, what `each` says.
    pub fn write(
        &self,
        questions: &[Question],
        seed: u64,
        each: &mut dyn FnMut(Heard<'_>) -> Result<bool>,
    ) -> Result<Vec<Written>> {
        let nothing = || Written {
            text: String::new(),
            finish: Finish::Interrupted,
            tokens: 0,
        };
        let mut all: Vec<Written> = questions.iter().map(|_| nothing()).collect();
        for (number, (question, written)) in questions.iter().zip(&mut all).enumerate() {
            let request = self.request(question, seed.wrapping_add(number as u64));
            let goes_on = self.runtime.block_on(async {
                tokio::select! {
                    // A shutdown that was asked for before is heard first.
                    biased;
                    () = self.shutdown.requested() => Ok(false),
                    goes_on = self.answer(number, request, written, each) => goes_on,
                }
            })?;
            if !goes_on {
                break;
            }
        }
        Ok(all)
    }

    fn request(&self, question: &Question, seed: u64) -> GenerateRequest {
        let prompt = match &question.prompt {
            Prompt::Text(text) => generate_request::Prompt::Text(text.clone()),
            Prompt::Messages(messages) => {
                let messages = Value::Array(messages.clone());
                generate_request::Prompt::MessagesJson(messages.to_string())
            }
        };
        let Decoding {
            max_new_tokens,
            sampling,
            ..
        } = self.decoding;
        GenerateRequest {
            prompt: Some(prompt),
            // What is more than the wire can say is more than any teacher writes.
            max_new_tokens: max_new_tokens.try_into().unwrap_or(u32::MAX),
            temperature: sampling.temperature,
            top_k: sampling.top_k.try_into().unwrap_or(u32::MAX),
            top_p: Some(sampling.top_p),
            min_p: sampling.min_p,
            seed,
            stop: self.stops.clone(),
        }
    }

    /// One answer, as far as it gets; whether `each` wants to go on.
    async fn answer(
        &self,
        number: usize,
        request: GenerateRequest,
        written: &mut Written,
        each: &mut dyn FnMut(Heard<'_>) -> Result<bool>,
    ) -> Result<bool> {
        let mut answer = self.teacher.generate(request).await?;
        loop {
            match answer.next().await? {
                AnswerEvent::Text(text) => {
                    written.text += &text;
                    if !each(Heard::Text(number, &text))? {
                        return Ok(false);
                    }
                }
                AnswerEvent::Finished(finish, tokens) => {
                    (written.finish, written.tokens) = (finish, tokens);
                    return each(Heard::Whole(number, written));
                }
            }
        }
    }
}
