//! Provides the frames of all epochs, a step's worth at a time.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::turn::Turn;
use crate::{
    Error, Result,
    checkpoint::DataCursor,
    client::{BlockStream, Position, Received, ServerInfo, StreamOptions, Teacher},
    shutdown::Shutdown,
};

/// The frames of pass after pass over the teacher's plan; the teacher computes only the first.
pub struct FrameSource {
    runtime: Handle,
    teacher: Teacher,
    info: ServerInfo,
    options: StreamOptions,
    shutdown: Shutdown,
    stream: Option<BlockStream>,
    /// Received and not handed out yet, each with the place behind it.
    pending: VecDeque<(Received, DataCursor)>,
    /// Behind `pending`.
    ahead: DataCursor,
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
        shutdown: Shutdown,
        cursor: DataCursor,
    ) -> Self {
        Self {
            runtime,
            teacher,
            info,
            options,
            shutdown,
            stream: None,
            pending: VecDeque::new(),
            ahead: cursor.clone(),
            cursor,
        }
    }

    /// Another one of the same teacher, at the start of the first pass, which does not wait long for a teacher that is gone.
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
            self.shutdown.clone(),
            DataCursor::default(),
        )
    }

    /// Up to `count` frames; fewer at the end of a pass. Does not wait any longer once `turn` is over.
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
                    frames.push(received);
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

    /// The next frames, `count` at most and of one pass, which stay to be handed out. None after a shutdown.
    ///
    /// # Errors
    /// What ended the stream early.
    pub fn look(&mut self, count: usize) -> Result<Option<impl Iterator<Item = &Received>>> {
        let is_there = self.wait(count)?;
        let pending = self.pending.iter().take(count);
        Ok(is_there.then(|| pending.map(|(received, _)| received)))
    }

    /// Receives what is lacking of `count` frames; may be dropped and called again. False after a shutdown.
    async fn fill(&mut self, count: usize) -> Result<bool> {
        while self.pending.len() < count {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None if !self.pending.is_empty() => break,
                None => {
                    let stream = self.start_pass(&self.ahead)?;
                    self.stream.insert(stream)
                }
            };
            let received = stream.next().await?;
            if self.shutdown.is_requested() {
                return Ok(false);
            }
            match received {
                Some(received) => {
                    self.ahead = behind(&received, &self.ahead);
                    self.pending.push_back((received, self.ahead.clone()));
                }
                None => {
                    self.stream = None;
                    self.ahead = next_pass(&self.ahead);
                }
            }
        }
        Ok(true)
    }

    /// Behind the last frame that was handed out.
    pub fn cursor(&self) -> &DataCursor {
        &self.cursor
    }

    /// Passes begun, with the fraction of the current one.
    pub fn epoch(&self) -> f64 {
        self.cursor.frames as f64 / self.info.sequence_count.max(1) as f64
    }

    fn start_pass(&self, cursor: &DataCursor) -> Result<BlockStream> {
        let position = Position {
            cursor: from_hex(&cursor.cursor)?,
            next_index: cursor.next_index,
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

fn behind(received: &Received, before: &DataCursor) -> DataCursor {
    DataCursor {
        pass: before.pass,
        next_index: received.context.index + 1,
        cursor: hex::encode(&received.cursor),
        sequence: format!("{:016x}", received.frame.sequence_id),
        frames: before.frames + 1,
    }
}

fn next_pass(before: &DataCursor) -> DataCursor {
    DataCursor {
        pass: before.pass + 1,
        next_index: 0,
        cursor: String::new(),
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

    /// Indices of the frames of two passes over five, two at a time, with a new source after `stop_after` takes.
    fn indices(stop_after: Option<usize>) -> (Vec<Vec<u64>>, DataCursor) {
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
            FrameSource::new(handle, teacher, info, options, shutdown, cursor)
        };
        let mut frames = source(DataCursor::default());
        let mut all = Vec::new();
        for take in 0..6 {
            if Some(take) == stop_after {
                // As state.toml would carry it.
                let text = toml::to_string(frames.cursor()).unwrap();
                frames = source(toml::from_str(&text).unwrap());
            }
            let Next::Frames(taken) = frames.next(2, None).unwrap() else {
                panic!("the frames stopped");
            };
            all.push(taken.iter().map(|one| one.context.index).collect());
        }
        (all, frames.cursor().clone())
    }

    #[test]
    fn a_source_that_starts_behind_a_cursor_loses_and_repeats_nothing() {
        let whole = indices(None);
        let pass = [vec![0, 1], vec![2, 3], vec![4]];
        assert_eq!(whole.0, [pass.clone(), pass].concat());
        assert_eq!(whole.1.frames, 10);
        for stop_after in 0..6 {
            assert_eq!(indices(Some(stop_after)), whole, "after {stop_after} takes");
        }
    }

    #[test]
    fn a_cursor_that_is_none_is_an_error() {
        assert!(from_hex("0g").is_err() && from_hex("012").is_err());
        assert_eq!(from_hex("00ff").unwrap(), Bytes::from_static(&[0, 255]));
    }
}
