//! Provides HoldDevice: a trainer's place in the line for the device, for as long as its stream is open.

use std::sync::Arc;

use distill_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Messages;
use crate::{Error, Result, connections::Ticket, lease::Grant, load::Engine};

/// Messages that a stream holds: a grant, a yield and an error, so that telling a trainer never waits.
const HOLD_MESSAGES: usize = 4;

pub(super) fn stream(
    engine: Arc<Engine>,
    request: &v1::HoldDeviceRequest,
    ticket: Ticket,
) -> Result<Messages<v1::HoldDeviceResponse>> {
    if !request.keeps_secret {
        return Err(Error::NoSecret);
    }
    let (sender, receiver) = mpsc::channel(HOLD_MESSAGES);
    let held = (request.epoch_held > 0).then_some(Grant {
        epoch: request.epoch_held,
        secret: &request.secret,
    });
    let production = &engine.production;
    let stream = production.hold(&request.holder, held, sender.clone())?;
    tokio::spawn(async move {
        // The client is gone, has closed, or was told the last message.
        sender.closed().await;
        engine.production.hold_ended(stream);
        drop(ticket);
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}
