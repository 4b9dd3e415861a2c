//! Provides what a run needs before anything is on the device, and has beside it.

use candle_core::Tensor;
use distill_model::LoraConfig;
use tokio::runtime::Handle;

use super::{
    agreement::Agreement,
    evaluation::Evaluation,
    keeper::Keeper,
    source::FrameSource,
    start::Start,
    trainer::frames_a_step,
    turn::{Grant, Turn},
};
use crate::{
    Error, Result,
    align::FrameReader,
    config::TrainConfig,
    ranks::Ranks,
    run::RunDirectory,
    shutdown::Shutdown,
    student::{Place, StudentFiles},
};

/// What is settled before anything is on the device.
pub(super) struct Setting<'a> {
    pub config: &'a TrainConfig,
    pub ranks: &'a dyn Ranks,
    pub run_directory: &'a RunDirectory,
    pub files: &'a StudentFiles,
    pub agreement: &'a Agreement,
    /// The adapters, where it is not the whole model that is trained.
    pub lora: Option<LoraConfig>,
    /// What the loss needs of the teacher's head, on the host.
    pub basis: Option<Tensor>,
    pub turn: Option<&'a Turn>,
    pub shutdown: &'a Shutdown,
}

/// What a run has beside the student, all of it in host memory.
pub(super) struct Host<'a> {
    pub reader: FrameReader<'a>,
    pub evaluation: Option<Evaluation<'a>>,
    pub frames: FrameSource,
    pub keeper: Keeper,
}

impl Host<'_> {
    /// Waits for the device that the teacher shares.
    pub fn arrive(
        &mut self,
        config: &TrainConfig,
        turn: &Turn,
        start: &Start,
        runtime: &Handle,
        shutdown: &Shutdown,
    ) -> Result<(Place, Option<Grant>)> {
        // Frames come before the device: who holds it without any keeps the teacher from making them.
        let grant =
            if self.keeper.has_all_steps(config) || self.frames.wait(frames_a_step(config))? {
                turn.wait(runtime, shutdown)?
            } else {
                None
            };
        // Somebody stops the run while the device is another's: what there is of it is saved, for which the CPU will do.
        let device = match grant {
            Some(_) => &config.device,
            None if start.saved.is_some() => "cpu",
            None => {
                return Err(Error::Stopped(
                    "before the device was free; nothing was trained",
                ));
            }
        };
        Ok((Place::choose(device, config.dtype)?, grant))
    }
}
