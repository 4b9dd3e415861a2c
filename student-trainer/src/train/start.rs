//! Provides what a process of a run begins with: nothing, the newest checkpoint, or what the process before has handed over.

use super::{overrides, turn::Turn, warnings::Warnings};
use crate::{
    Error, Result,
    checkpoint::{Checkpoints, Identity, RunState, Saved},
    config::TrainConfig,
};

/// Where a process begins.
pub(super) struct Start {
    /// None at the start of a run.
    pub saved: Option<Box<dyn Saved>>,
    /// What was said already.
    pub warnings: Warnings,
    /// Whether it goes on with another process's turn.
    pub is_handed: bool,
}

impl Start {
    /// What is there.
    ///
    /// # Errors
    /// A checkpoint that is damaged or of other settings.
    pub fn find(
        config: &TrainConfig,
        checkpoints: &Checkpoints,
        turn: Option<&Turn>,
    ) -> Result<Self> {
        if let Some(handed) = turn.map(Turn::handed).transpose()?.flatten() {
            let warnings = serde_json::from_str(&handed.said);
            return Ok(Self {
                warnings: warnings.map_err(|e| Error::file(&handed.path("warnings"), e))?,
                saved: Some(Box::new(handed)),
                is_handed: true,
            });
        }
        let checkpoint = checkpoints.latest()?;
        if let Some(checkpoint) = &checkpoint
            && let Some(before) = checkpoint.settings()?
        {
            overrides::check(&before, config)?;
        }
        Ok(Self {
            saved: checkpoint.map(|checkpoint| Box::new(checkpoint) as Box<dyn Saved>),
            warnings: Warnings::default(),
            is_handed: false,
        })
    }

    /// The state to go on at.
    ///
    /// # Errors
    /// It is that of another run.
    pub fn state(
        &self,
        identity: Identity,
        total_steps: usize,
        frames: (u64, u64),
    ) -> Result<RunState> {
        let Some(saved) = &self.saved else {
            return Ok(RunState::start(total_steps, identity));
        };
        let state = saved.state();
        state.identity.check(&identity)?;
        let (a_step, a_pass) = frames;
        let sizes = state.check_sizes(total_steps, a_step, a_pass);
        sizes.map_err(|reason| saved.refuse(reason))?;
        Ok(state.clone())
    }
}
