//! Provides the frames of all epochs, a step's worth at a time.

use std::collections::VecDeque;

use bytes::Bytes;
use distill_proto::LeftOut;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::runtime::Handle;

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
        Self::new(
            self.runtime.clone(),
            self.teacher.clone(),
            self.info.clone(),
            options,
            Order {
                buffer: 1,
                share: Share::ALL,
                ..self.order
            },
            self.shutdown.clone(),
            DataCursor::default(),
        )
    }

    /// Another one that goes on as this one would, and hands out everything.
    pub fn another_of_all(&self) -> Self {
        Self::new(
            self.runtime.clone(),
            self.teacher.clone(),
            self.info.clone(),
            self.options.clone(),
            Order {
                share: Share::ALL,
                ..self.order
            },
            self.shutdown.clone(),
            self.cursor.clone(),
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
mod tests {
    use super::*;
    use crate::client::{self, mock::MockTeacher};

    /// Indices of the frames of two passes over five, two at a time, put into order `buffer` at a time, with a new source after
    /// `stop_after` takes.
    fn indices(buffer: usize, stop_after: Option<usize>) -> (Vec<Vec<u64>>, DataCursor) {
        let (all, cursor, _) = indices_of(Share::ALL, 2, buffer, stop_after);
        (all, cursor)
    }

    /// Of one rank, in steps of so many; with the number of frames that were sent to it.
    fn indices_of(
        share: Share,
        step: usize,
        buffer: usize,
        stop_after: Option<usize>,
    ) -> (Vec<Vec<u64>>, DataCursor, usize) {
        let runtime = client::runtime().unwrap();
        let mock = runtime.block_on(MockTeacher::start(5));
        let connect = || {
            let shutdown = Shutdown::default();
            runtime.block_on(async {
                let teacher = Teacher::connect(&mock.connect_options(), &shutdown).await;
                let teacher = teacher.unwrap();
                let info = teacher.info().await.unwrap();
                (teacher, info, shutdown)
            })
        };
        let source = |cursor: DataCursor| {
            let (teacher, info, shutdown) = connect();
            let options = StreamOptions {
                prefetch_frames: 3,
                reconnect_attempts: 1,
                token_ids: 1000,
                ..StreamOptions::default()
            };
            let handle = runtime.handle().clone();
            let order = Order {
                buffer,
                seed: 7,
                step,
                share,
            };
            FrameSource::new(handle, teacher, info, options, order, shutdown, cursor)
        };
        let mut frames = source(DataCursor::default());
        let mut all = Vec::new();
        for take in 0..2 * 5usize.div_ceil(step) {
            if Some(take) == stop_after {
                // As state.toml would carry it.
                let text = toml::to_string(frames.cursor()).unwrap();
                frames = source(toml::from_str(&text).unwrap());
            }
            let Next::Frames(taken) = frames.next(step, None).unwrap() else {
                panic!("the frames stopped");
            };
            all.push(taken.iter().map(|one| one.context.index).collect());
        }
        (all, frames.cursor().clone(), mock.frames_sent())
    }

    #[test]
    fn a_source_that_starts_behind_a_cursor_loses_and_repeats_nothing() {
        let whole = indices(1, None);
        let pass = [vec![0, 1], vec![2, 3], vec![4]];
        assert_eq!(whole.0, [pass.clone(), pass].concat());
        assert_eq!(whole.1.frames, 10);
        for buffer in [1, 2, 3, 5, 100] {
            let whole = indices(buffer, None);
            for stop_after in 0..6 {
                assert_eq!(
                    indices(buffer, Some(stop_after)),
                    whole,
                    "{buffer}, after {stop_after} takes"
                );
            }
        }
    }

    #[test]
    fn every_pass_has_every_frame_in_an_order_of_its_own() {
        let (taken, cursor) = indices(100, None);
        let passes: Vec<Vec<u64>> = taken.chunks(3).map(<[_]>::concat).collect();
        assert!(passes[0] != passes[1], "{passes:?}");
        for mut pass in passes {
            assert!(pass != [0, 1, 2, 3, 4], "{pass:?}");
            pass.sort_unstable();
            assert_eq!(pass, [0, 1, 2, 3, 4]);
        }
        assert_eq!((cursor.frames, cursor.taken), (10, 0));
        // Those that are not taken together stay in the teacher's order among each other.
        let (taken, _) = indices(2, None);
        let mut first: Vec<u64> = taken[0].clone();
        first.sort_unstable();
        assert_eq!(first, [0, 1]);
        assert_eq!(taken[2], [4]);
    }

    #[test]
    fn every_frame_of_a_step_is_one_rank_s_and_no_other_is_sent() {
        for (step, buffer, stop_after) in [
            (2, 1, None),
            (4, 1, Some(1)),
            (3, 4, None),
            (3, 4, Some(1)),
            (4, 100, Some(3)),
        ] {
            let whole = indices_of(Share::ALL, step, buffer, stop_after);
            for of in [2, 3] {
                let ranks: Vec<_> = (0..of)
                    .map(|rank| indices_of(Share { rank, of }, step, buffer, stop_after))
                    .collect();
                for (step, frames) in whole.0.iter().enumerate() {
                    let of_ranks: Vec<u64> =
                        ranks.iter().flat_map(|one| one.0[step].clone()).collect();
                    assert_eq!(&of_ranks, frames, "{of} ranks, step {step}");
                }
                let kept = |one: &(Vec<Vec<u64>>, DataCursor, usize)| one.0.concat().len();
                for one in &ranks {
                    assert_eq!(one.1, whole.1);
                    // What was held ready when it stopped is asked for again.
                    let again = if stop_after.is_some() { 5 } else { 0 };
                    assert!(
                        (kept(one)..=kept(one) + again).contains(&one.2),
                        "{}",
                        one.2
                    );
                }
            }
        }
    }

    #[test]
    fn a_cursor_that_is_none_is_an_error() {
        assert!(from_hex("0g").is_err() && from_hex("012").is_err());
        assert_eq!(from_hex("00ff").unwrap(), Bytes::from_static(&[0, 255]));
    }
}
