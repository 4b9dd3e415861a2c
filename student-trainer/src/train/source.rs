//! Provides the frames of all epochs, a step's worth at a time.

use tokio::runtime::Handle;

use crate::{
    Result,
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
    frames_taken: u64,
}

impl FrameSource {
    /// Starts before the first frame of the first pass.
    pub fn new(
        runtime: Handle,
        teacher: Teacher,
        info: ServerInfo,
        options: StreamOptions,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            runtime,
            teacher,
            info,
            options,
            shutdown,
            stream: None,
            frames_taken: 0,
        }
    }

    /// Up to `count` frames; fewer at the end of a pass. `None` after a shutdown.
    ///
    /// # Errors
    /// What ended the stream early.
    pub fn next(&mut self, count: usize) -> Result<Option<Vec<Received>>> {
        let mut frames = Vec::with_capacity(count);
        while frames.len() < count {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None if !frames.is_empty() => break,
                None => self.stream.insert(self.start_pass()),
            };
            let received = stream.blocking_next()?;
            if self.shutdown.is_requested() {
                return Ok(None);
            }
            match received {
                Some(received) => frames.push(received),
                None => self.stream = None,
            }
        }
        self.frames_taken += frames.len() as u64;
        Ok(Some(frames))
    }

    /// Passes begun, with the fraction of the current one.
    pub fn epoch(&self) -> f64 {
        self.frames_taken as f64 / self.info.sequence_count.max(1) as f64
    }

    fn start_pass(&self) -> BlockStream {
        let _inside = self.runtime.enter();
        BlockStream::start(
            self.teacher.clone(),
            self.info.clone(),
            Position::default(),
            self.options.clone(),
            self.shutdown.clone(),
        )
    }
}
