//! Provides a teacher's answer to a prompt, piece by piece.

use distill_model::answers::Finish;
use distill_proto::{
    limits::TEXT_BYTES_MAX,
    v1::{FinishReason, GenerateRequest, GenerateResponse, generate_response::Event},
};
use tonic::{Code, Status, Streaming};

use super::{
    Teacher,
    connect::{SILENCE_MAX, within},
    retry,
};
use crate::{Error, Result};

/// What comes of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerEvent {
    /// More of its text.
    Text(String),
    /// Nothing more, why, and how many tokens it has.
    Finished(Finish, usize),
}

/// An answer that is being written; dropping it ends the work.
#[derive(Debug)]
pub struct AnswerStream {
    teacher: Teacher,
    stream: Streaming<GenerateResponse>,
    /// Of the text so far.
    bytes: usize,
}

impl Teacher {
    /// Asks for an answer.
    ///
    /// # Errors
    /// A refusal, by name, or a lost connection.
    pub async fn generate(&self, request: GenerateRequest) -> Result<AnswerStream> {
        let mut service = self.service();
        let answer = within(SILENCE_MAX, service.generate(request)).await;
        let answer = answer.map_err(|status| self.refused(&status))?;
        Ok(AnswerStream {
            teacher: self.clone(),
            stream: answer.into_inner(),
            bytes: 0,
        })
    }

    /// Why there is no answer: what is wrong with the question where it is that, for whoever asked may ask another one.
    fn refused(&self, status: &Status) -> Error {
        match status.code() {
            Code::Unimplemented => self.error(
                "this teacher-server answers no prompts: it is older than this student-trainer; use programs of one release",
            ),
            Code::InvalidArgument | Code::ResourceExhausted => {
                Error::Config(self.error(retry::describe(status)).to_string())
            }
            _ => self.failed("Generate", status),
        }
    }
}

impl AnswerStream {
    /// What comes next; nothing is to be asked for after the end.
    ///
    /// # Errors
    /// A lost connection, a teacher that fails, or one that answers otherwise than it may.
    pub async fn next(&mut self) -> Result<AnswerEvent> {
        loop {
            let message = within(SILENCE_MAX, self.stream.message()).await;
            let message = message.map_err(|status| self.teacher.refused(&status))?;
            let lie = |what: &str| Error::Stream(format!("Generate: {what}"));
            let message = message.ok_or_else(|| lie("the stream ended within an answer"))?;
            match message.event {
                Some(Event::Heartbeat(_)) => {}
                Some(Event::Text(text)) => {
                    self.bytes = self.bytes.saturating_add(text.len());
                    if self.bytes > TEXT_BYTES_MAX {
                        return Err(lie("the answer is longer than any text may be"));
                    }
                    return Ok(AnswerEvent::Text(text));
                }
                Some(Event::Finished(finished)) => {
                    let finish = match finished.reason() {
                        FinishReason::End => Finish::End,
                        FinishReason::Length => Finish::Length,
                        FinishReason::Stop => Finish::Stop,
                        FinishReason::Unspecified => return Err(lie("an end without a reason")),
                    };
                    return Ok(AnswerEvent::Finished(finish, finished.tokens as usize));
                }
                None => return Err(lie("a message without a part of an answer")),
            }
        }
    }
}
