//! Provides the frames of all epochs, a step's worth at a time.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use distill_proto::LeftOut;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::{runtime::Handle, time::timeout};

use super::turn::Turn;
use crate::{
    Error, Result,
    checkpoint::DataCursor,
    client::{Arrival, BlockStream, Position, Received, ServerInfo, StreamOptions, Teacher},
    ranks::Share,
    shutdown::Shutdown,
};

/// In which order the frames of a pass are trained on, and by whom.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Frames that are taken together and put into an order of the seed's; 1 keeps the teacher's.
    pub buffer: usize,
    /// With pass and place, it decides the order.
    pub seed: u64,
    /// Frames of a step, of which this source hands out its share.
    pub step: usize,
    /// The rest is left out.
    pub share: Share,
}

impl Order {
    /// Puts what was taken together, from the frame at `next_index` on, into its order.
    fn put<T>(self, together: &mut [T], pass: u64, next_index: u64) {
        let place = [self.seed, pass, next_index];
        let mut random = StdRng::from_seed(*hash_of(place).as_bytes());
        together.shuffle(&mut random);
    }

    /// Whether this source hands out the frame that is trained on after `place` others, of `count`.
    fn is_own(self, place: u64, count: u64) -> bool {
        let step = self.step.max(1) as u64;
        let (before, at) = (place - place % step, place % step);
        let frames = step.min(count.saturating_sub(before));
        self.share.places(frames).contains(&at)
    }
}

/// The frames of pass after pass over the teacher's plan; the teacher computes only the first.
pub struct FrameSource {
    runtime: Handle,
    teacher: Teacher,
    info: ServerInfo,
    options: StreamOptions,
    order: Order,
    shutdown: Shutdown,
    stream: Option<BlockStream>,
    /// Not handed out yet, each with the place behind it; nothing of those that are not its own.
    pending: VecDeque<(Option<Received>, DataCursor)>,
    /// Arrived after `pending`, while there are fewer than are put into order together.
    buffer: Vec<Arrival>,
    /// Frames of this pass since its start, or since where the source was started, that were put into their order.
    placed: u64,
    /// Behind `pending`, before `buffer`.
    ahead: DataCursor,
    /// Behind `buffer`.
    read: DataCursor,
    /// Behind the last frame that was handed out; those held ready by the stream are not counted.
    cursor: DataCursor,
    /// The same, before frames were handed out last.
    cursor_before: DataCursor,
}

/// What comes next.
pub enum Next {
    /// The frames of a step.
    Frames(Vec<Received>),
    /// Nothing, after a shutdown, which leaves the cursor where it was.
    Stopped,
    /// The device is to be given back before more frames can come.
    GiveBack,
}

impl FrameSource {
    /// Starts behind `cursor`; the default is the start of the first pass.
    pub fn new(
        runtime: Handle,
        teacher: Teacher,
        info: ServerInfo,
        options: StreamOptions,
        order: Order,
        shutdown: Shutdown,
        cursor: DataCursor,
    ) -> Self {
        let start = DataCursor {
            frames: cursor.frames - cursor.taken.min(cursor.frames),
            ..cursor.clone()
        };
        Self {
            runtime,
            teacher,
            info,
            options,
            order,
            shutdown,
            stream: None,
            pending: VecDeque::new(),
            buffer: Vec::new(),
            placed: 0,
            ahead: start.clone(),
            read: DataCursor { taken: 0, ..start },
            cursor_before: cursor.clone(),
            cursor,
        }
    }

    /// Another one of the same teacher, at the start of the first pass and in its order, so that nothing is read that is not looked at;
    /// it does not wait long for a teacher that is gone.
    pub fn another_from_the_start(&self) -> Self {
        let options = StreamOptions {
            reconnect_attempts: 1,
            ..self.options.clone()
        };
        self.another(options, 1, DataCursor::default())
    }

    /// Another one that goes on as this one would, and hands out everything.
    pub fn another_of_all(&self) -> Self {
        self.another(self.options.clone(), self.order.buffer, self.cursor.clone())
    }

    /// Of the same teacher, for whoever needs every frame.
    fn another(&self, options: StreamOptions, buffer: usize, cursor: DataCursor) -> Self {
        Self::new(
            self.runtime.clone(),
            self.teacher.clone(),
            self.info.clone(),
            options,
            Order {
                buffer,
                share: Share::ALL,
                ..self.order
            },
            self.shutdown.clone(),
            cursor,
        )
    }

    /// Its own of the next `count` frames, and of fewer at the end of a pass. Does not wait any longer once `turn` is over.
    ///
    /// # Errors
    /// What ended the stream early.
    pub fn next(&mut self, count: usize, turn: Option<&Turn>) -> Result<Next> {
        let runtime = self.runtime.clone();
        let there = runtime.block_on(async {
            let asked_for = async {
                match turn {
                    Some(turn) => turn.over().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                there = self.fill(count) => there.map(Some),
                () = asked_for => Ok(None),
            }
        })?;
        match there {
            Some(true) => {
                self.cursor_before.clone_from(&self.cursor);
                let taken = self.pending.len().min(count);
                let mut frames = Vec::with_capacity(taken);
                for (received, behind) in self.pending.drain(..taken) {
                    frames.extend(received);
                    self.cursor = behind;
                }
                if self.pending.is_empty() {
                    self.cursor = self.ahead.clone();
                }
                Ok(Next::Frames(frames))
            }
            Some(false) => Ok(Next::Stopped),
            None => Ok(Next::GiveBack),
        }
    }

    /// Waits until `next` has its frames at hand. False after a shutdown.
    ///
    /// # Errors
    /// What ended the stream early.
    pub fn wait(&mut self, count: usize) -> Result<bool> {
        let runtime = self.runtime.clone();
        runtime.block_on(self.fill(count))
    }

    /// As [`wait`](Self::wait), but for so long at most: `None` where they are not at hand by then.
    ///
    /// # Errors
    /// As there.
    pub fn wait_for(&mut self, count: usize, time: Duration) -> Result<Option<bool>> {
        let runtime = self.runtime.clone();
        let filled = runtime.block_on(async { timeout(time, self.fill(count)).await });
        filled.ok().transpose()
    }

    /// Its own of the next frames, `count` at most and of one pass, which stay to be handed out. None after a shutdown.
    ///
    /// # Errors
    /// What ended the stream early.
    pub fn look(&mut self, count: usize) -> Result<Option<impl Iterator<Item = &Received>>> {
        let is_there = self.wait(count)?;
        let pending = self.pending.iter().take(count);
        Ok(is_there.then(|| pending.filter_map(|(received, _)| received.as_ref())))
    }

    /// Receives what is lacking of `count` frames; may be dropped and called again. False after a shutdown.
    async fn fill(&mut self, count: usize) -> Result<bool> {
        while self.pending.len() < count {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None if !self.pending.is_empty() => break,
                None => {
                    let stream = self.start_pass(&self.read)?;
                    self.stream.insert(stream)
                }
            };
            let arrival = stream.next().await?;
            if self.shutdown.is_requested() {
                return Ok(false);
            }
            match arrival {
                Some(arrival) => {
                    self.read = behind(&arrival, &self.read);
                    self.buffer.push(arrival);
                    if self.buffer.len() >= self.order.buffer {
                        self.put_in_order();
                    }
                }
                None => {
                    self.put_in_order();
                    self.stream = None;
                    self.placed = 0;
                    self.read = next_pass(&self.read);
                    self.ahead = self.read.clone();
                }
            }
        }
        Ok(true)
    }

    /// Hands what was taken together on, in the order of its place, without those that were trained on before a resume.
    fn put_in_order(&mut self) {
        let start = self.ahead.clone();
        let mut frames = std::mem::take(&mut self.buffer);
        self.order.put(&mut frames, start.pass, start.next_index);
        let count = frames.len() as u64;
        let of_pass = self.left_of_pass(&start);
        for (taken, arrival) in (1..).zip(frames) {
            if taken <= start.taken {
                continue;
            }
            let cursor = if taken == count {
                self.read.clone()
            } else {
                DataCursor {
                    taken,
                    sequence: sequence(&arrival),
                    frames: start.frames + taken,
                    ..start.clone()
                }
            };
            let is_own = self.order.is_own(self.placed, of_pass);
            self.placed += 1;
            self.pending
                .push_back((arrival.received.filter(|_| is_own), cursor));
        }
        self.ahead = self.read.clone();
    }

    /// Behind the last frame that was handed out.
    pub fn cursor(&self) -> &DataCursor {
        &self.cursor
    }

    /// Passes begun, with the fraction of the current one.
    pub fn epoch(&self) -> f64 {
        self.cursor.frames as f64 / self.info.sequence_count.max(1) as f64
    }

    /// Frames of the pass from where the source began with it, if it is at `at` now.
    fn left_of_pass(&self, at: &DataCursor) -> u64 {
        let left = self.info.sequence_count.saturating_sub(at.next_index);
        self.placed + left.saturating_sub(at.taken)
    }

    /// What others take of the pass that begins behind `ahead`.
    fn left_out(&self) -> LeftOut {
        let start = &self.ahead;
        if self.order.share == Share::ALL {
            return LeftOut::default();
        }
        let (first, end, of_pass) = (
            start.next_index,
            self.info.sequence_count,
            self.left_of_pass(start),
        );
        let named = end.saturating_sub(first).min(LeftOut::FRAMES_MAX as u64);
        let mut left_out = vec![true; named as usize];
        let (mut place, mut taken) = (0, start.taken);
        for begin in (first..first + named).step_by(self.order.buffer.max(1)) {
            let together = end.min(begin + self.order.buffer.max(1) as u64);
            let mut together: Vec<u64> = (begin..together).collect();
            self.order.put(&mut together, start.pass, begin);
            for index in together.into_iter().skip(taken as usize) {
                let is_own = self.order.is_own(place, of_pass);
                if let Some(left_out) = left_out.get_mut((index - first) as usize) {
                    *left_out = !is_own;
                }
                place += 1;
            }
            taken = 0;
        }
        LeftOut::of(first, &left_out)
    }

    /// Counts what was handed out last as not handed out, for a checkpoint: it does not come again here.
    pub fn step_back(&mut self) {
        self.cursor.clone_from(&self.cursor_before);
    }

    fn start_pass(&self, cursor: &DataCursor) -> Result<BlockStream> {
        let position = Position {
            cursor: from_hex(&cursor.cursor)?,
            next_index: cursor.next_index,
            left_out: self.left_out(),
        };
        Ok(BlockStream::start(
            self.teacher.clone(),
            self.info.clone(),
            position,
            self.options.clone(),
            self.shutdown.clone(),
        ))
    }
}

fn behind(arrival: &Arrival, before: &DataCursor) -> DataCursor {
    DataCursor {
        pass: before.pass,
        next_index: arrival.index + 1,
        cursor: hex::encode(&arrival.cursor),
        sequence: sequence(arrival),
        frames: before.frames + 1,
        taken: 0,
    }
}

fn sequence(arrival: &Arrival) -> String {
    format!("{:016x}", arrival.sequence_id)
}

fn hash_of(numbers: [u64; 3]) -> blake3::Hash {
    let bytes: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
    blake3::hash(&bytes)
}

fn next_pass(before: &DataCursor) -> DataCursor {
    DataCursor {
        pass: before.pass + 1,
        next_index: 0,
        cursor: String::new(),
        taken: 0,
        ..before.clone()
    }
}

fn from_hex(text: &str) -> Result<Bytes> {
    let bytes = hex::decode(text).map(Bytes::from);
    bytes.map_err(|e| Error::Stream(format!("the checkpoint's cursor `{text}`: {e}")))
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
