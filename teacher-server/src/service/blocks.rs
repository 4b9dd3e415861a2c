//! Provides the streams of frames: a plan from a cursor on, or given sequences.

use std::time::Duration;

use distill_proto::{Cursor, Fingerprint, v1};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Messages, STREAM_MESSAGES};
use crate::{
    Error, Result,
    load::Engine,
    production::{Order, Reader},
    store::StoredBlock,
};

/// Time without a block after which a stream says that the teacher is at work.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// Time that a stream waits for its client to take the last message.
const CLOSING_GRACE: Duration = Duration::from_secs(2);
/// Sequences of one FetchBlocks request.
pub const FETCH_IDS_MAX: usize = 1 << 16;

type Sender<T> = mpsc::Sender<std::result::Result<T, Status>>;

/// Every frame of the plan after `cursor`.
pub(super) fn stream(engine: &Engine, cursor: &[u8]) -> Result<Messages<v1::StreamBlocksResponse>> {
    let plan = engine.plan.fingerprint;
    let count = engine.plan.count();
    let cursor = Cursor::decode(cursor, plan)?;
    if cursor.next > count {
        let reason = format!("goes on at frame {}, but the plan has {count}", cursor.next);
        return Err(Error::request("cursor", reason));
    }
    let mut reader = engine.production.reader(Order::From(cursor.next))?;
    let (sender, receiver) = mpsc::channel(STREAM_MESSAGES);
    tokio::spawn(async move {
        let result = send_plan(&mut reader, &sender, plan, count).await;
        drop(reader);
        finish(sender, result).await;
    });
    Ok(ReceiverStream::new(receiver))
}

/// The frames of these sequences, in this order.
pub(super) fn fetch(engine: &Engine, ids: &[u64]) -> Result<Messages<v1::FetchBlocksResponse>> {
    if ids.len() > FETCH_IDS_MAX {
        let reason = format!(
            "{} ids, above the limit of {FETCH_IDS_MAX} a request",
            ids.len()
        );
        return Err(Error::request("sequence_ids", reason));
    }
    let plan = engine.plan.fingerprint;
    let unknown = |id| move || Error::UnknownSequence { id, plan };
    let indices = ids
        .iter()
        .map(|&id| engine.plan.index_of(id).ok_or_else(unknown(id)))
        .collect::<Result<Vec<u64>>>()?;
    let mut reader = engine.production.reader(Order::List(indices.into()))?;
    let (sender, receiver) = mpsc::channel(STREAM_MESSAGES);
    tokio::spawn(async move {
        let result = send_list(&mut reader, &sender, plan).await;
        drop(reader);
        finish(sender, result).await;
    });
    Ok(ReceiverStream::new(receiver))
}

/// Why a stream ends before its end.
enum Stop {
    ClientGone,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

async fn send_plan(
    reader: &mut Reader,
    sender: &Sender<v1::StreamBlocksResponse>,
    plan: Fingerprint,
    count: u64,
) -> std::result::Result<(), Stop> {
    use v1::stream_blocks_response::Event;
    let message = |event| v1::StreamBlocksResponse { event: Some(event) };
    while reader.upcoming().is_some() {
        if !ready(reader, sender).await? {
            let sequences_done = reader.sequences_done();
            send(
                sender,
                message(Event::Heartbeat(v1::Heartbeat { sequences_done })),
            )
            .await?;
            continue;
        }
        if let Some(block) = reader.take().await? {
            send(sender, message(Event::Block(wire(block, plan)))).await?;
        }
    }
    // A server that was restarted in mid-plan has not seen what came before, and then sends no digest.
    let digest = reader.digest().await?;
    let digest = digest.map_or_else(Vec::new, |digest| digest.0.to_vec());
    let end = v1::End {
        count,
        digest: digest.into(),
    };
    send(sender, message(Event::End(end))).await
}

async fn send_list(
    reader: &mut Reader,
    sender: &Sender<v1::FetchBlocksResponse>,
    plan: Fingerprint,
) -> std::result::Result<(), Stop> {
    while reader.upcoming().is_some() {
        if !ready(reader, sender).await? {
            // A message without a block is this stream's heartbeat.
            send(sender, v1::FetchBlocksResponse { block: None }).await?;
            continue;
        }
        if let Some(block) = reader.take().await? {
            let block = Some(wire(block, plan));
            send(sender, v1::FetchBlocksResponse { block }).await?;
        }
    }
    Ok(())
}

/// True when the next frame can be taken, false when it is time for a sign of life.
async fn ready<T>(reader: &mut Reader, sender: &Sender<T>) -> std::result::Result<bool, Stop> {
    tokio::select! {
        ready = timeout(HEARTBEAT_INTERVAL, reader.ready()) => match ready {
            Ok(result) => Ok(result.map(|()| true)?),
            Err(_) => Ok(false),
        },
        () = sender.closed() => Err(Stop::ClientGone),
    }
}

async fn send<T>(sender: &Sender<T>, message: T) -> std::result::Result<(), Stop> {
    sender.send(Ok(message)).await.map_err(|_| Stop::ClientGone)
}

/// Tells the client why its stream ends early, unless it is gone or takes nothing any more.
async fn finish<T>(sender: Sender<T>, result: std::result::Result<(), Stop>) {
    if let Err(Stop::Failed(error)) = result {
        let sent = timeout(CLOSING_GRACE, sender.send(Err(error.into()))).await;
        if sent.is_err() {
            tracing::warn!("a client takes no messages; its stream is cut");
        }
    }
}

fn wire(block: StoredBlock, plan: Fingerprint) -> v1::Block {
    let next = block.index + 1;
    v1::Block {
        frame: block.frame,
        cursor: Cursor { plan, next }.encode().into(),
        shard: block.shard,
        index: block.index,
    }
}
