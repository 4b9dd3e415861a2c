//! Provides the result of a run, and the look at it later: whether its files are still as they were written.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use super::{Setting, Summary, overrides, plans, samples, trainer::Trainer, tuned::Tuned};
use crate::{
    Error, Result,
    checkpoint::{Checkpoints, digest},
    config::TrainConfig,
    files, report,
    run::{CARD_FILE, Card, RunDirectory, TeacherRecord},
};

/// Digests of the files, in `summary.json`.
const FILES: &str = "files";

/// Leaves the result, and says that the run is finished where it is.
///
/// # Errors
/// The file system refuses.
pub(super) fn finish(setting: &Setting<'_>, trainer: &Trainer<'_>) -> Result<Summary> {
    let (config, run_directory) = (setting.config, setting.run_directory);
    let keeper = &trainer.keeper;
    let (state, is_done) = (&keeper.state, trainer.is_done());
    let summary = Summary {
        steps: state.step,
        loss: trainer.loss.clone(),
        adapter: trainer.tuned.publish(config, run_directory)?,
        interrupted: !is_done,
        stopped_early: keeper.is_stopped_early(config),
    };
    let card = Card {
        config,
        teacher: &TeacherRecord::of(&setting.agreement.info),
        base: &setting.files.base,
        revision: setting.files.revision.as_deref(),
        steps: state.step,
        sequences: state.data.frames,
    };
    card.write(&summary.adapter)?;
    if is_done {
        plans::write_or_warn(setting, trainer);
        samples::ask_after(setting, trainer.objective.decoder);
        let best = state.evals.best.map(|best| {
            serde_json::json!({
                "step": best.step, "metric": config.best_metric, "value": best.value,
            })
        });
        run_directory.write_summary(&serde_json::json!({
            "steps": summary.steps,
            "total_steps": state.total_steps,
            "stopped_early": summary.stopped_early,
            "best": best,
            FILES: digests(&summary.adapter)?,
        }))?;
    }
    report::write_or_warn(run_directory.path());
    Ok(summary)
}

/// What a rank says of a run whose result another one leaves.
pub(super) fn of_another(setting: &Setting<'_>, trainer: &Trainer<'_>) -> Summary {
    let config = setting.config;
    Summary {
        steps: trainer.keeper.state.step,
        loss: trainer.loss.clone(),
        adapter: setting.run_directory.join(Tuned::result_name(config.tune)),
        interrupted: !trainer.is_done(),
        stopped_early: trainer.keeper.is_stopped_early(config),
    }
}

/// The digests of the files in the directory of a result; its card is for people, who may write in it.
///
/// # Errors
/// The file system refuses.
fn digests(directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut digests = BTreeMap::new();
    for path in files::list(directory)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_file() && name != CARD_FILE {
            digests.insert(name.into_owned(), digest(&path)?);
        }
    }
    Ok(digests)
}

/// Whether nothing is left to do for the run with this summary; false where its result has to be written anew.
///
/// # Errors
/// A setting that would make it another run; a checkpoint that is damaged; a result that is, without a checkpoint.
pub(super) fn is_whole(run: &RunDirectory, config: &TrainConfig, summary: &Value) -> Result<bool> {
    let checkpoint = Checkpoints::open(run.path(), config.keep_last)?.latest()?;
    if let Some(checkpoint) = &checkpoint
        && let Some(before) = checkpoint.settings()?
    {
        overrides::check(&before, config)?;
    }
    let directory = run.join(Tuned::result_name(config.tune));
    let Some(harm) = harm(&directory, summary) else {
        return Ok(true);
    };
    if checkpoint.is_none() {
        return Err(Error::file(
            &directory,
            format!(
                "{harm}, and no checkpoint is left to restore it from; train anew with --out NEW_DIR"
            ),
        ));
    }
    tracing::warn!(
        "{}: {harm}; it is restored from the newest checkpoint",
        directory.display()
    );
    Ok(false)
}

/// Refuses a finished run's result whose files are not as they were written.
///
/// # Errors
/// What is wrong, or a file that cannot be read.
pub(crate) fn refuse_harmed(run: &Path, result: &Path) -> Result<()> {
    let Some(summary) = RunDirectory::enter(run).summary()? else {
        tracing::warn!("{}: the run is not finished", run.display());
        return Ok(());
    };
    let Some(harm) = harm(result, &summary) else {
        return Ok(());
    };
    Err(Error::file(
        result,
        format!(
            "{harm}; run `student-trainer train --resume {}` to restore it",
            run.display()
        ),
    ))
}

/// What is wrong with the files of a result.
fn harm(directory: &Path, summary: &Value) -> Option<String> {
    let Some(files) = summary.get(FILES).and_then(Value::as_object) else {
        // Of a release that wrote no digests.
        return (!directory.is_dir()).then(|| "the result is gone".to_owned());
    };
    files.iter().find_map(|(name, expected)| {
        let path = directory.join(name);
        if !path.exists() {
            return Some(format!("{name} is gone"));
        }
        let found = digest(&path);
        let is_same = found.is_ok_and(|found| expected.as_str() == Some(found.as_str()));
        (!is_same).then(|| format!("{name} is not as it was written"))
    })
}
