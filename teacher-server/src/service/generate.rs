//! Provides Generate: the pieces of an answer as the teacher writes them.

use std::time::Duration;

use distill_model::answers::Finish;
use distill_proto::v1::{self, FinishReason, generate_response::Event};
use tokio::time::timeout;

use super::{Messages, Source, messages};
use crate::{
    Error, Result,
    answers::{Piece, Pieces},
    connections::Ticket,
    load::Engine,
};

/// Time without text after which a stream says that the answer is still to come.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);

/// The answer to a question that can be asked.
pub(super) async fn stream(
    engine: &Engine,
    request: v1::GenerateRequest,
    ticket: Ticket,
) -> Result<Messages<v1::GenerateResponse>> {
    let answerer = engine.answerer.as_ref().ok_or(Error::NoModel)?;
    if engine.info.vram_mode() == v1::VramMode::Swap {
        return Err(Error::Lends);
    }
    let (job, pieces) = answerer.read(request).await?;
    engine.production.answer(job)?;
    Ok(messages(Answer {
        pieces,
        ended: false,
        _ticket: ticket,
    }))
}

struct Answer {
    pieces: Pieces,
    ended: bool,
    _ticket: Ticket,
}

impl Source<v1::GenerateResponse> for Answer {
    async fn next(&mut self) -> Result<Option<v1::GenerateResponse>> {
        if self.ended {
            return Ok(None);
        }
        let event = match timeout(HEARTBEAT_INTERVAL, self.pieces.recv()).await {
            Err(_) => Event::Heartbeat(v1::Heartbeat { sequences_done: 0 }),
            Ok(None) => return Err(Error::ShuttingDown),
            Ok(Some(piece)) => match piece? {
                Piece::Text(text) => Event::Text(text),
                Piece::Whole(written) => {
                    self.ended = true;
                    Event::Finished(v1::Finished {
                        reason: reason(written.finish)?.into(),
                        tokens: u32::try_from(written.tokens).unwrap_or(u32::MAX),
                    })
                }
            },
        };
        Ok(Some(v1::GenerateResponse { event: Some(event) }))
    }
}

fn reason(finish: Finish) -> Result<FinishReason> {
    match finish {
        Finish::End => Ok(FinishReason::End),
        Finish::Length => Ok(FinishReason::Length),
        Finish::Stop => Ok(FinishReason::Stop),
        Finish::Interrupted => Err(Error::ShuttingDown),
    }
}
