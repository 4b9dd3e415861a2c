//! Provides the frames of one pass in order, decoded ahead of the training loop, across lost connections.

use std::time::Duration;

use bytes::Bytes;
use distill_proto::{
    Frame, FrameContext,
    v1::{Block, StreamBlocksRequest, StreamBlocksResponse, stream_blocks_response::Event},
};
use tokio::{sync::mpsc, task};
use tonic::Status;

use super::{ServerInfo, Teacher, retry};
use crate::{Error, Result, shutdown::Shutdown};

/// Neither frame nor heartbeat for this long: the connection counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// One frame with what is needed to go on after it, or to write it down.
#[derive(Clone, Debug)]
pub struct Received {
    /// Decoded and checked.
    pub frame: Frame,
    /// As it came.
    pub bytes: Bytes,
    /// What its checksum covers beside the bytes.
    pub context: FrameContext,
    /// Where a stream goes on after it.
    pub cursor: Bytes,
}

/// Where a pass starts.
#[derive(Clone, Debug, Default)]
pub struct Position {
    /// Cursor of the last frame that was used; empty for the start.
    pub cursor: Bytes,
    /// Index of the next frame.
    pub next_index: u64,
}

/// How a pass is taken.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Decoded frames held ready.
    pub prefetch_frames: usize,
    /// Lost connections in a row, without a frame in between, before giving up.
    pub reconnect_attempts: u32,
    /// Every token id must be below: the rows of the student's embedding, or the ids of a teacher with another vocabulary.
    pub token_ids: usize,
}

/// The receiving end of a pass.
pub struct BlockStream {
    receiver: mpsc::Receiver<Result<Received>>,
}

impl BlockStream {
    /// Starts a pass on the current tokio runtime. The queue is bounded: a slow consumer stops the reading, and
    /// HTTP/2 flow control stops the teacher.
    pub fn start(
        teacher: Teacher,
        info: ServerInfo,
        position: Position,
        options: StreamOptions,
        shutdown: Shutdown,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(options.prefetch_frames.max(1));
        // The digest covers the whole plan, so it can only be checked on a pass from its start.
        let digest = (position.next_index == 0).then(blake3::Hasher::new);
        let pump = Pump {
            teacher,
            info,
            position,
            options,
            sender,
            digest,
        };
        tokio::spawn(pump.run(shutdown));
        Self { receiver }
    }

    /// The next frame; `None` after the last one, or after a shutdown. May be dropped and called again.
    ///
    /// # Errors
    /// What ended the stream early.
    pub async fn next(&mut self) -> Result<Option<Received>> {
        self.receiver.recv().await.transpose()
    }
}

/// Why one connection's worth of frames ended.
enum Stop {
    /// Every frame arrived, or nobody listens any more.
    Finished,
    /// The connection broke: go on after the cursor.
    Lost(String),
}

struct Pump {
    teacher: Teacher,
    info: ServerInfo,
    position: Position,
    options: StreamOptions,
    sender: mpsc::Sender<Result<Received>>,
    digest: Option<blake3::Hasher>,
}

impl Pump {
    async fn run(mut self, shutdown: Shutdown) {
        let sender = self.sender.clone();
        let result = tokio::select! {
            result = self.pass(&shutdown) => result,
            () = shutdown.requested() => Ok(()),
        };
        if let Err(error) = result {
            // Nobody is left to tell when the receiver is gone.
            let _ = sender.send(Err(error)).await;
        }
    }

    async fn pass(&mut self, shutdown: &Shutdown) -> Result<()> {
        let mut failures = 0;
        loop {
            let before = self.position.next_index;
            let reason = match self.connection().await? {
                Stop::Finished => return Ok(()),
                Stop::Lost(reason) => reason,
            };
            if self.position.next_index > before {
                failures = 0;
            }
            failures += 1;
            if failures > self.options.reconnect_attempts {
                return Err(self.teacher.error(format!(
                    "lost the stream before frame {} {failures} times in a row: {reason}",
                    self.position.next_index
                )));
            }
            tracing::warn!(
                "the stream broke before frame {}: {reason}; reconnecting ({failures} of {})",
                self.position.next_index,
                self.options.reconnect_attempts
            );
            tokio::time::sleep(retry::delay(failures)).await;
            self.teacher.wait_until_serving(shutdown).await?;
        }
    }

    /// Takes frames until the connection ends.
    async fn connection(&mut self) -> Result<Stop> {
        let request = StreamBlocksRequest {
            cursor: self.position.cursor.clone(),
            plan_fingerprint: self.info.plan.to_hex(),
        };
        let mut stream = match self.teacher.service().stream_blocks(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return self.interrupted(status).await,
        };
        loop {
            let message = match tokio::time::timeout(SILENCE_MAX, stream.message()).await {
                Err(_) => {
                    return Ok(Stop::Lost(format!(
                        "silence for {} s",
                        SILENCE_MAX.as_secs()
                    )));
                }
                Ok(Err(status)) => return self.interrupted(status).await,
                Ok(Ok(None)) => return Ok(Stop::Lost("it closed before its end".into())),
                Ok(Ok(Some(StreamBlocksResponse { event }))) => event,
            };
            match message {
                Some(Event::Block(block)) => {
                    let received = self.accept(block).await?;
                    if self.sender.send(Ok(received)).await.is_err() {
                        return Ok(Stop::Finished);
                    }
                }
                Some(Event::Heartbeat(beat)) => {
                    tracing::debug!("the teacher is at sequence {}", beat.sequences_done);
                }
                Some(Event::End(end)) => {
                    self.check_end(end.count, &end.digest)?;
                    return Ok(Stop::Finished);
                }
                None => {}
            }
        }
    }

    /// Decides whether a failed call is worth another. A restarted server with another plan refuses the request; asking
    /// it for its handshake gives the message with both plans.
    async fn interrupted(&self, status: Status) -> Result<Stop> {
        if retry::is_transient(status.code()) {
            return Ok(Stop::Lost(retry::describe(&status)));
        }
        if let Ok(now) = self.teacher.info().await {
            now.check_same_plan(&self.info)?;
        }
        Err(self.teacher.failed("StreamBlocks", &status))
    }

    /// Checks the place of a frame, decodes it on a thread for blocking work, and moves the position behind it.
    async fn accept(&mut self, block: Block) -> Result<Received> {
        let expected = self.position.next_index;
        if block.index != expected {
            return Err(Error::Stream(format!(
                "expected frame {expected}, the teacher sent {}; frames would be lost or used twice",
                block.index
            )));
        }
        let context = FrameContext {
            plan: self.info.plan,
            shard: block.shard,
            index: block.index,
        };
        let bytes = block.frame.clone();
        let decoded = task::spawn_blocking(move || Frame::decode(&bytes, &context)).await;
        let frame = decoded
            .map_err(|e| Error::Stream(format!("decoding frame {expected} failed: {e}")))??;
        frame.check_tokens(self.options.token_ids)?;
        if frame.rows.vocab_size != self.info.vocab_size {
            return Err(Error::Stream(format!(
                "frame {expected} has a vocabulary of {}, the handshake said {}",
                frame.rows.vocab_size, self.info.vocab_size
            )));
        }
        if let Some(digest) = &mut self.digest {
            digest.update(&block.frame);
        }
        self.position = Position {
            cursor: block.cursor.clone(),
            next_index: expected + 1,
        };
        Ok(Received {
            frame,
            bytes: block.frame,
            context,
            cursor: block.cursor,
        })
    }

    fn check_end(&self, count: u64, digest: &[u8]) -> Result<()> {
        let received = self.position.next_index;
        if count != received || count != self.info.sequence_count {
            return Err(Error::Stream(format!(
                "the teacher counts {count} frames at the end and {} in the handshake, {received} arrived",
                self.info.sequence_count
            )));
        }
        match &self.digest {
            // A server that was restarted in mid-plan has no digest over the whole.
            Some(own) if !digest.is_empty() && own.finalize().as_bytes() != digest => {
                Err(Error::Stream(format!(
                    "the digest over all {count} frames differs from the teacher's; start the pass again"
                )))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
