//! Provides what outlives the process: the log's lines, how far the run is, and its checkpoints.

use super::{guard::GradientWatch, source::FrameSource};
use crate::{
    Result,
    checkpoint::{Best, Checkpoints, Content, RunState, SETTINGS_FILE},
    config::{BestMetric, TrainConfig},
    eval::EvalReport,
    run::{EvalMetrics, RunDirectory, RunLog, StepMetrics, config_text},
};

/// Log, state and checkpoints of one run.
pub(super) struct Keeper {
    pub state: RunState,
    /// None where another rank writes.
    files: Option<Files>,
    save_steps: usize,
    /// Step of the newest checkpoint; 0 without one.
    saved: usize,
    best_metric: BestMetric,
}

/// What is written.
struct Files {
    log: RunLog,
    checkpoints: Checkpoints,
    /// The run's settings as every checkpoint holds them.
    settings: Vec<u8>,
}

impl Keeper {
    /// Goes on at `state`.
    pub fn open(
        config: &TrainConfig,
        run: &RunDirectory,
        checkpoints: Checkpoints,
        mut state: RunState,
    ) -> Result<Self> {
        if let Some(best) = state.evals.best
            && !checkpoints.find_best(best.step)?
        {
            state.evals.best = None;
        }
        let saved = checkpoints.newest()?;
        let files = Files {
            log: RunLog::resume(run, state.log, state.step)?,
            checkpoints,
            settings: config_text(config)?.into(),
        };
        Ok(Self {
            files: Some(files),
            saved,
            ..Self::follow(config, state)
        })
    }

    /// Goes on at `state`, and leaves all files to another rank.
    pub fn follow(config: &TrainConfig, state: RunState) -> Self {
        Self {
            files: None,
            save_steps: config.save_steps,
            saved: state.step,
            best_metric: config.best_metric,
            state,
        }
    }

    /// Writes a step down.
    pub fn step(&mut self, line: &StepMetrics) -> Result<()> {
        match &mut self.files {
            Some(files) => files.log.step(line),
            None => Ok(()),
        }
    }

    /// Whether no step is left to do.
    pub fn has_all_steps(&self, config: &TrainConfig) -> bool {
        self.state.step == self.state.total_steps || self.is_stopped_early(config)
    }

    /// Whether evaluations have not got better for too long.
    pub fn is_stopped_early(&self, config: &TrainConfig) -> bool {
        let patience = config.early_stopping_patience;
        patience > 0 && self.state.evals.without_best >= patience
    }

    /// Whether `save_steps` ask for a checkpoint now.
    pub fn is_due(&self) -> bool {
        self.save_steps > 0 && self.is_unsaved() && self.state.step.is_multiple_of(self.save_steps)
    }

    /// Whether there are steps that no checkpoint has.
    pub fn is_unsaved(&self) -> bool {
        self.state.step > self.saved
    }

    /// Writes a checkpoint of this moment. A step that has one keeps it: an evaluation that was caught up on after it finds
    /// the same again.
    pub fn save(
        &mut self,
        mut files: Vec<(&'static str, Content)>,
        watch: &GradientWatch,
        frames: &FrameSource,
    ) -> Result<()> {
        if !self.is_unsaved() {
            let best = self.state.evals.best.map(|best| best.step);
            let own = self.files.as_ref();
            return own.map_or(Ok(()), |own| own.checkpoints.point_to_best(best));
        }
        let state = self.moment(watch, frames)?.clone();
        if let Some(own) = &self.files {
            files.push((SETTINGS_FILE, Content::Bytes(own.settings.clone())));
            let path = own.checkpoints.save(state, files)?;
            tracing::debug!("checkpoint in {}", path.display());
        }
        self.saved = self.state.step;
        Ok(())
    }

    /// The state of this moment, with the log on the disk.
    pub fn moment(&mut self, watch: &GradientWatch, frames: &FrameSource) -> Result<&RunState> {
        self.state.silent = watch.silent();
        self.state.data = frames.cursor().clone();
        if let Some(files) = &mut self.files {
            self.state.log = files.log.sync()?;
        }
        Ok(&self.state)
    }

    /// Writes an evaluation down. True where it is the best so far.
    pub fn record(&mut self, report: &EvalReport, epoch: f64) -> Result<EvalMetrics> {
        let step = self.state.step;
        let value = self.best_metric.value(report);
        let evals = &mut self.state.evals;
        // A NaN is no better than anything.
        let best = value.is_some_and(|value| {
            value.is_finite()
                && evals
                    .best
                    .is_none_or(|best| self.best_metric.is_better(value, best.value))
        });
        evals.evaluated = step;
        match value.filter(|_| best) {
            Some(value) => {
                evals.best = Some(Best { step, value });
                evals.without_best = 0;
            }
            None => evals.without_best += 1,
        }
        let (sequences, targets) = report.counts();
        let metrics = EvalMetrics {
            step,
            epoch,
            ce: report.ce(),
            perplexity: report.perplexity(),
            kl: report.kl(),
            top1_agreement: report.top1_agreement(),
            top5_agreement: report.top5_agreement(),
            exact_match: report.exact_match(),
            sequences,
            targets,
            seconds: report.seconds,
            best,
        };
        if let Some(files) = &mut self.files {
            files.log.eval(&metrics)?;
        }
        Ok(metrics)
    }
}

impl BestMetric {
    fn value(self, report: &EvalReport) -> Option<f64> {
        match self {
            Self::Ce => Some(report.ce()),
            Self::Kl => report.kl(),
            Self::Top1Agreement => report.top1_agreement(),
            Self::ExactMatch => report.exact_match(),
        }
    }

    fn is_better(self, value: f64, than: f64) -> bool {
        match self {
            Self::Ce | Self::Kl => value < than,
            Self::Top1Agreement | Self::ExactMatch => value > than,
        }
    }
}
