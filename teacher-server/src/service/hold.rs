//! Provides HoldDevice: a trainer's place in the line for the device, for as long as its stream is open.

use std::sync::Arc;

use distill_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Messages;
use crate::{Result, load::Engine};

/// Messages that a stream holds: a grant, a yield and an error, so that telling a trainer never waits.
const HOLD_MESSAGES: usize = 4;

pub(super) fn stream(
    engine: Arc<Engine>,
    request: &v1::HoldDeviceRequest,
) -> Result<Messages<v1::HoldDeviceResponse>> {
    let (sender, receiver) = mpsc::channel(HOLD_MESSAGES);
    let epoch_held = (request.epoch_held > 0).then_some(request.epoch_held);
    let production = &engine.production;
    let stream = production.hold(&request.holder, epoch_held, sender.clone())?;
    tokio::spawn(async move {
        // The client is gone, has closed, or was told the last message.
        sender.closed().await;
        engine.production.hold_ended(stream);
    });
    Ok(ReceiverStream::new(receiver))
}
