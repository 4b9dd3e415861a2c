//! Provides the frames of one pass in order, decoded ahead of the training loop, across lost connections.

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use distill_proto::{
    Frame, FrameContext, LeftOut,
    v1::{Block, End, StreamBlocksRequest, StreamBlocksResponse, stream_blocks_response::Event},
};
use tokio::{sync::mpsc, task};
use tonic::Status;

use super::{
    ServerInfo, Teacher,
    connect::{SILENCE_MAX, within},
    retry,
};
use crate::{Error, Result, shutdown::Shutdown};

/// Heartbeats alone for this long, without a frame here or a sequence more there: the teacher gets nowhere.
const STALL_MAX: Duration = Duration::from_secs(3600);
/// The same of a teacher that waits for its turn on a device, which another trainer may have for long.
const STALL_MAX_SHARED: Duration = Duration::from_secs(24 * 3600);
/// Longest cursor, in bytes; checkpoints keep them.
const CURSOR_BYTES_MAX: usize = 1024;

/// One frame with what is needed to go on after it, or to write it down.
#[derive(Clone, Debug)]
pub struct Received {
    /// Decoded and checked.
    pub frame: Frame,
    /// As it came.
    pub bytes: Bytes,
    /// What its checksum covers beside the bytes.
    pub context: FrameContext,
}

/// What a pass brings of one frame.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its place in the plan.
    pub index: u64,
    /// What it is about.
    pub sequence_id: u64,
    /// Where a stream goes on after it.
    pub cursor: Bytes,
    /// The frame itself, unless it is left out.
    pub received: Option<Received>,
}

/// Where a pass starts.
#[derive(Clone, Debug, Default)]
pub struct Position {
    /// Cursor of the last frame that was used; empty for the start.
    pub cursor: Bytes,
    /// Index of the next frame.
    pub next_index: u64,
    /// Frames that others take; they need not come.
    pub left_out: LeftOut,
}

/// How a pass is taken.
#[derive(Clone, Debug, Default)]
pub struct StreamOptions {
    /// Decoded frames held ready.
    pub prefetch_frames: usize,
    /// Lost connections in a row, without a frame in between, before giving up.
    pub reconnect_attempts: u32,
    /// Every token id must be below: the rows of the student's embedding, or the ids of a teacher with another vocabulary.
    pub token_ids: usize,
    /// Heartbeats alone before giving up; unset: an hour, or a day of a teacher that shares its device.
    pub stall_max: Option<Duration>,
    /// What the first whole pass came to: every later one has to be the same.
    pub first_pass: Arc<OnceLock<blake3::Hash>>,
}

/// The receiving end of a pass.
pub struct BlockStream {
    receiver: mpsc::Receiver<Result<Arrival>>,
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
        let stall_max = options.stall_max.unwrap_or(if info.lends_device() {
            STALL_MAX_SHARED
        } else {
            STALL_MAX
        });
        let pump = Pump {
            teacher,
            info,
            // Sums cover the whole plan, so they can only be checked on a whole pass from its start.
            sums: (position.next_index == 0 && position.left_out.is_empty()).then(Sums::default),
            position,
            options,
            sender,
            stall_max,
            seen: HashSet::new(),
            last: None,
        };
        tokio::spawn(pump.run(shutdown));
        Self { receiver }
    }

    /// The next frame; `None` after the last one, or after a shutdown. May be dropped and called again.
    ///
    /// # Errors
    /// What ended the stream early.
    pub async fn next(&mut self) -> Result<Option<Arrival>> {
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
    sender: mpsc::Sender<Result<Arrival>>,
    stall_max: Duration,
    sums: Option<Sums>,
    /// Sequences of this pass so far.
    seen: HashSet<u64>,
    /// The last frame of the plan, until the end of the stream has been checked: nothing is trained on a pass that is not
    /// what the teacher says at its end.
    last: Option<Arrival>,
}

/// What the frames of a whole pass add up to.
#[derive(Default)]
struct Sums {
    digest: blake3::Hasher,
    tokens: u64,
    targets: u64,
}

impl Pump {
    async fn run(mut self, shutdown: Shutdown) {
        let sender = self.sender.clone();
        let result = tokio::select! {
            // A pass that waits for its teacher hears of it as well, and would call it an error.
            biased;
            () = shutdown.requested() => Ok(()),
            result = self.pass(&shutdown) => result,
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
            self.recheck().await?;
        }
    }

    /// Who answers after a broken connection may be another teacher, or the same one with other words.
    async fn recheck(&self) -> Result<()> {
        match self.teacher.info().await {
            Ok(now) => now.check_same_plan(&self.info),
            // Lost again: the next attempt says so.
            Err(Error::Teacher { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes frames until the connection ends.
    async fn connection(&mut self) -> Result<Stop> {
        let request = StreamBlocksRequest {
            cursor: self.position.cursor.clone(),
            plan_fingerprint: self.info.plan.to_hex(),
            left_out: self.position.left_out.bits_from(self.position.next_index),
        };
        let mut service = self.teacher.service();
        let mut stream = match within(SILENCE_MAX, service.stream_blocks(request)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return self.interrupted(status).await,
        };
        let (mut moved, mut done) = (Instant::now(), 0);
        loop {
            let message = match within(SILENCE_MAX, stream.message()).await {
                Err(status) => return self.interrupted(status).await,
                Ok(None) => return Ok(Stop::Lost("it closed before its end".into())),
                Ok(Some(StreamBlocksResponse { event })) => event,
            };
            match message {
                Some(Event::Block(block)) => {
                    let arrival = self.accept(block).await?;
                    if self.position.next_index == self.info.sequence_count {
                        self.last = Some(arrival);
                    } else if self.sender.send(Ok(arrival)).await.is_err() {
                        return Ok(Stop::Finished);
                    }
                    moved = Instant::now();
                }
                Some(Event::Heartbeat(beat)) if beat.sequences_done > done => {
                    tracing::debug!("the teacher is at sequence {}", beat.sequences_done);
                    (moved, done) = (Instant::now(), self.check_beat(beat.sequences_done)?);
                }
                Some(Event::End(end)) => {
                    self.check_end(&end)?;
                    if let Some(last) = self.last.take() {
                        // Nobody is left to hear it when the receiver is gone.
                        let _ = self.sender.send(Ok(last)).await;
                    }
                    return Ok(Stop::Finished);
                }
                Some(Event::Heartbeat(_)) | None => {}
            }
            if moved.elapsed() > self.stall_max {
                return Err(self.teacher.error(format!(
                    "nothing but heartbeats for {} s before frame {}; see why it computes nothing, then go on with --resume",
                    self.stall_max.as_secs_f64(),
                    self.position.next_index
                )));
            }
        }
    }

    fn check_beat(&self, done: u64) -> Result<u64> {
        let count = self.info.sequence_count;
        if done > count {
            return Err(Error::Stream(format!(
                "a heartbeat counts {done} sequences done of {count}"
            )));
        }
        Ok(done)
    }

    /// Decides whether a failed call is worth another. A restarted server with another plan refuses the request; asking
    /// it for its handshake gives the message with both plans.
    async fn interrupted(&self, status: Status) -> Result<Stop> {
        if retry::is_transient(status.code()) {
            return Ok(Stop::Lost(retry::describe(&status)));
        }
        self.recheck().await?;
        Err(self.teacher.failed("StreamBlocks", &status))
    }

    /// Checks the place of a block, and its frame if it has one, and moves the position behind it.
    async fn accept(&mut self, block: Block) -> Result<Arrival> {
        let expected = self.position.next_index;
        let what = format!("frame {expected}");
        if block.index != expected {
            return Err(Error::Stream(format!(
                "expected {what}, the teacher sent {}; frames would be lost or used twice",
                block.index
            )));
        }
        if expected >= self.info.sequence_count {
            let count = self.info.sequence_count;
            return Err(Error::Stream(format!(
                "{what} comes after all {count} of the handshake"
            )));
        }
        if !(1..=CURSOR_BYTES_MAX).contains(&block.cursor.len()) {
            let bytes = block.cursor.len();
            return Err(Error::Stream(format!(
                "{what} has a cursor of {bytes} bytes; 1 to {CURSOR_BYTES_MAX} are taken"
            )));
        }
        let received = match (block.frame.is_empty(), self.position.left_out.has(expected)) {
            (true, true) => None,
            (true, false) => {
                return Err(Error::Stream(format!(
                    "{what} came without its bytes; only those that other ranks take may"
                )));
            }
            (false, _) => Some(self.decode(&what, &block).await?),
        };
        let sequence_id = received
            .as_ref()
            .map_or(block.sequence_id, |received| received.frame.sequence_id);
        if !self.seen.insert(sequence_id) {
            return Err(Error::Stream(format!(
                "{what} is about sequence {sequence_id:016x}, which came before; it would be trained on twice"
            )));
        }
        self.position.cursor.clone_from(&block.cursor);
        self.position.next_index = expected + 1;
        Ok(Arrival {
            index: expected,
            sequence_id,
            cursor: block.cursor,
            received,
        })
    }

    /// Decodes a frame on a thread for blocking work, and checks it against the handshake.
    async fn decode(&mut self, what: &str, block: &Block) -> Result<Received> {
        let tokens_max = self.info.seq_len as usize;
        self.info.check_size(what, &block.frame, tokens_max)?;
        let context = FrameContext {
            plan: self.info.plan,
            shard: block.shard,
            index: block.index,
        };
        let bytes = block.frame.clone();
        let decoded = task::spawn_blocking(move || Frame::decode(&bytes, &context)).await;
        let frame =
            decoded.map_err(|e| Error::Stream(format!("decoding {what} failed: {e}")))??;
        frame.check_tokens(self.options.token_ids)?;
        self.info.check_rows(what, &frame.rows)?;
        if let Some(sums) = &mut self.sums {
            sums.digest.update(&block.frame);
            sums.tokens += frame.token_ids.len() as u64;
            sums.targets += frame.rows.rows as u64;
        }
        Ok(Received {
            frame,
            bytes: block.frame.clone(),
            context,
        })
    }

    fn check_end(&self, end: &End) -> Result<()> {
        let (count, received, info) = (end.count, self.position.next_index, &self.info);
        if count != received || count != info.sequence_count {
            return Err(Error::Stream(format!(
                "the teacher counts {count} frames at the end and {} in the handshake, {received} arrived",
                info.sequence_count
            )));
        }
        let Some(sums) = &self.sums else {
            return Ok(());
        };
        if (sums.tokens, sums.targets) != (info.token_count, info.target_count) {
            return Err(Error::Stream(format!(
                "all {count} frames have {} tokens and {} targets, the handshake said {} and {}",
                sums.tokens, sums.targets, info.token_count, info.target_count
            )));
        }
        let own = sums.digest.finalize();
        // A server that was restarted in mid-plan has no digest over the whole.
        if !end.digest.is_empty() && own.as_bytes() != &end.digest[..] {
            return Err(Error::Stream(format!(
                "the digest over all {count} frames differs from the teacher's; start the pass again"
            )));
        }
        if *self.options.first_pass.get_or_init(|| own) != own {
            return Err(Error::Stream(format!(
                "the {count} frames of this pass are not those of the pass before; the teacher was changed"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
