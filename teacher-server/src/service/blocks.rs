//! Provides the streams of frames: a plan from a cursor on, or given sequences.

use std::{mem, time::Duration};

use bytes::Bytes;
use distill_proto::{Cursor, Fingerprint, LeftOut, v1};
use tokio::time::timeout;

use super::{Messages, Source, messages};
use crate::{
    Error, Result,
    connections::Ticket,
    load::Engine,
    monitor,
    production::{Order, Reader},
    store::StoredBlock,
};

/// Time without a block after which a stream says that the teacher is at work.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// Sequences of one FetchBlocks request.
pub const FETCH_IDS_MAX: usize = 1 << 16;

/// Every frame that is served after the cursor, without those that are left out.
pub(super) fn stream(
    engine: &Engine,
    request: v1::StreamBlocksRequest,
    ticket: Ticket,
) -> Result<Messages<v1::StreamBlocksResponse>> {
    let plan = engine.plan.fingerprint;
    let count = engine.plan.served_count();
    let cursor = Cursor::decode(&request.cursor, plan)?;
    if cursor.next > count {
        let reason = format!("goes on at frame {}, but the plan has {count}", cursor.next);
        return Err(Error::request("cursor", reason));
    }
    Ok(messages(WholePlan {
        blocks: Blocks::new(engine, Order::From(cursor.next), ticket)?,
        left_out: LeftOut::new(cursor.next, request.left_out),
        count,
        ended: false,
    }))
}

/// The frames of these sequences, in this order.
pub(super) fn fetch(
    engine: &Engine,
    ids: &[u64],
    ticket: Ticket,
) -> Result<Messages<v1::FetchBlocksResponse>> {
    if ids.len() > FETCH_IDS_MAX {
        let reason = format!(
            "{} ids, above the limit of {FETCH_IDS_MAX} a request",
            ids.len()
        );
        return Err(Error::request("sequence_ids", reason));
    }
    let plan = engine.plan.fingerprint;
    let unknown = |id| move || Error::UnknownSequence { id, plan };
    let positions = ids
        .iter()
        .map(|&id| engine.plan.position_of(id).ok_or_else(unknown(id)))
        .collect::<Result<Vec<u64>>>()?;
    let order = Order::List(positions.into());
    Ok(messages(Listed(Blocks::new(engine, order, ticket)?)))
}

/// A reader's blocks as they are sent.
struct Blocks {
    reader: Reader,
    plan: Fingerprint,
    /// Whether the upcoming block had to be waited for, over any number of heartbeats.
    waited: bool,
    _ticket: Ticket,
}

/// What a stream has to say.
enum Next {
    Block(v1::Block),
    /// Nothing but that the teacher is at work.
    Heartbeat,
    End,
}

impl Blocks {
    fn new(engine: &Engine, order: Order, ticket: Ticket) -> Result<Self> {
        let reader = engine.production.reader(order)?;
        Ok(Self {
            waited: !reader.is_kept(),
            reader,
            plan: engine.plan.fingerprint,
            _ticket: ticket,
        })
    }

    async fn next(&mut self) -> Result<Next> {
        self.waited |= !self.reader.is_kept();
        while self.reader.upcoming().is_some() {
            match timeout(HEARTBEAT_INTERVAL, self.reader.ready()).await {
                Ok(ready) => ready?,
                Err(_) => return Ok(Next::Heartbeat),
            }
            if let Some(block) = self.reader.take().await? {
                monitor::sent(block.frame.len(), !mem::take(&mut self.waited));
                return Ok(Next::Block(wire(block, self.plan)));
            }
        }
        Ok(Next::End)
    }
}

struct WholePlan {
    blocks: Blocks,
    left_out: LeftOut,
    count: u64,
    ended: bool,
}

impl WholePlan {
    /// The next block where it is left out.
    fn without_frame(&mut self) -> Option<v1::Block> {
        let reader = &mut self.blocks.reader;
        let (index, sequence_id) = reader.names()?;
        if !self.left_out.has(index) {
            return None;
        }
        reader.skip();
        self.blocks.waited = false;
        Some(v1::Block {
            cursor: cursor_behind(self.blocks.plan, index),
            index,
            sequence_id,
            ..v1::Block::default()
        })
    }
}

impl Source<v1::StreamBlocksResponse> for WholePlan {
    async fn next(&mut self) -> Result<Option<v1::StreamBlocksResponse>> {
        use v1::stream_blocks_response::Event;
        if self.ended {
            return Ok(None);
        }
        if let Some(block) = self.without_frame() {
            let event = Some(Event::Block(block));
            return Ok(Some(v1::StreamBlocksResponse { event }));
        }
        let event = match self.blocks.next().await? {
            Next::Block(block) => Event::Block(block),
            Next::Heartbeat => Event::Heartbeat(v1::Heartbeat {
                sequences_done: self.blocks.reader.sequences_done(),
            }),
            Next::End => {
                self.ended = true;
                // A server that was restarted in mid-plan has not seen what came before, and then sends no digest; nor to a client
                // that has not seen all.
                let digest = if self.left_out.is_empty() {
                    self.blocks.reader.digest().await?
                } else {
                    None
                };
                let digest = digest.map_or_else(Vec::new, |digest| digest.0.to_vec());
                Event::End(v1::End {
                    count: self.count,
                    digest: digest.into(),
                })
            }
        };
        Ok(Some(v1::StreamBlocksResponse { event: Some(event) }))
    }
}

struct Listed(Blocks);

impl Source<v1::FetchBlocksResponse> for Listed {
    async fn next(&mut self) -> Result<Option<v1::FetchBlocksResponse>> {
        let block = match self.0.next().await? {
            Next::Block(block) => Some(block),
            // A message without a block is this stream's heartbeat.
            Next::Heartbeat => None,
            Next::End => return Ok(None),
        };
        Ok(Some(v1::FetchBlocksResponse { block }))
    }
}

fn wire(block: StoredBlock, plan: Fingerprint) -> v1::Block {
    v1::Block {
        frame: block.frame,
        cursor: cursor_behind(plan, block.index),
        shard: block.shard,
        index: block.index,
        ..v1::Block::default()
    }
}

fn cursor_behind(plan: Fingerprint, index: u64) -> Bytes {
    let next = index + 1;
    Cursor { plan, next }.encode().into()
}
