//! Provides what a process of a run begins with: nothing, the newest checkpoint, or what the process before has handed over.

use candle_core::Var;

use super::{lora, overrides, setup::adapter_config, tuned::Tuned, turn::Turn, warnings::Warnings};
use crate::{
    Error, Result,
    checkpoint::{
        BEFORE_FILE, Checkpoints, Content, Identity, OPTIMIZER_FILE, PROJECTION_OPTIMIZER_FILE,
        RunState, SETTINGS_FILE, Saved,
    },
    config::{TrainConfig, Tune},
    run::{PROJECTION_FILE, config_text},
    student::StudentFiles,
};

/// What a checkpoint holds beside the weights, as far as a run has it.
const BESIDE: [&str; 4] = [
    OPTIMIZER_FILE,
    PROJECTION_FILE,
    PROJECTION_OPTIMIZER_FILE,
    BEFORE_FILE,
];

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

    /// Writes a checkpoint of what was handed over before this error ends the run; a checkpoint that it began with is there already.
    pub fn kept_before(
        &self,
        error: Error,
        config: &TrainConfig,
        files: &StudentFiles,
        checkpoints: &Checkpoints,
    ) -> Error {
        match &self.saved {
            Some(handed) if self.is_handed => {
                if let Err(lost) = keep(&**handed, config, files, checkpoints) {
                    tracing::error!("no checkpoint could be written either: {lost}");
                }
            }
            _ => {}
        }
        error
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

/// Makes a checkpoint of what was handed over, unless there is one of that step.
fn keep(
    handed: &dyn Saved,
    config: &TrainConfig,
    files: &StudentFiles,
    checkpoints: &Checkpoints,
) -> Result<()> {
    let state = handed.state();
    if state.step <= checkpoints.newest()? {
        return Ok(());
    }
    let is_adapter = config.tune == Tune::Lora;
    let adapter = if is_adapter {
        Some(adapter_config(&lora::choose(config)?, files))
    } else {
        None
    };
    let weights = handed.tensors(Tuned::weights_file(is_adapter))?.into_iter();
    let parameters = weights.map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?)));
    let tuned = Tuned {
        files,
        adapter,
        parameters: parameters.collect::<Result<_>>()?,
        projections: &[],
    };
    let mut contents = tuned.checkpoint_files()?;
    for name in BESIDE {
        if let Ok(tensors) = handed.tensors(name) {
            contents.push((name, Content::Tensors(tensors)));
        }
    }
    let settings = config_text(config)?.into();
    contents.push((SETTINGS_FILE, Content::Bytes(settings)));
    checkpoints.save(state.clone(), contents)?;
    tracing::info!(
        "step {} is in a checkpoint, and --resume goes on with it",
        state.step
    );
    Ok(())
}
