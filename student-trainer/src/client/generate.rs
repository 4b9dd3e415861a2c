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

#[cfg(test)]
mod tests {
    use distill_proto::v1::{Finished, Heartbeat};

    use super::{super::mock::MockTeacher, *};
    use crate::shutdown::Shutdown;

    /// What is heard of the answer of a teacher that sends these.
    async fn heard(events: Option<Vec<Option<Event>>>) -> Result<Vec<AnswerEvent>> {
        let mock = MockTeacher::start(1).await;
        if let Some(events) = events {
            mock.set_answer(events);
        }
        let teacher = Teacher::connect(&mock.connect_options(), &Shutdown::default()).await?;
        let mut answer = teacher.generate(GenerateRequest::default()).await?;
        let mut heard = Vec::new();
        loop {
            heard.push(answer.next().await?);
            if let Some(AnswerEvent::Finished(..)) = heard.last() {
                return Ok(heard);
            }
        }
    }

    fn finished(reason: FinishReason) -> Option<Event> {
        Some(Event::Finished(Finished {
            reason: reason.into(),
            tokens: 3,
        }))
    }

    #[tokio::test]
    async fn an_answer_comes_in_pieces_between_heartbeats() {
        let text = |text: &str| Some(Event::Text(text.to_owned()));
        let beat = || Some(Event::Heartbeat(Heartbeat { sequences_done: 0 }));
        let events = vec![
            beat(),
            text("a"),
            beat(),
            text("b"),
            finished(FinishReason::Stop),
        ];
        let heard = heard(Some(events)).await.unwrap();
        let text = |text: &str| AnswerEvent::Text(text.to_owned());
        let end = AnswerEvent::Finished(Finish::Stop, 3);
        assert_eq!(heard, [text("a"), text("b"), end]);
    }

    #[tokio::test]
    async fn a_server_of_before_answers_is_said_to_be_older() {
        let message = heard(None).await.unwrap_err().to_string();
        assert!(
            message.contains("older than this student-trainer"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn a_teacher_that_lies_is_found_out() {
        let some = || Some(Event::Text("a".into()));
        let long = || Some(Event::Text("a".repeat(TEXT_BYTES_MAX / 2 + 1)));
        for (events, part) in [
            (vec![], "ended within an answer"),
            (vec![some()], "ended within an answer"),
            (vec![None], "without a part"),
            (
                vec![some(), finished(FinishReason::Unspecified)],
                "without a reason",
            ),
            (
                vec![long(), long(), finished(FinishReason::End)],
                "longer than any",
            ),
        ] {
            let message = heard(Some(events)).await.unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
