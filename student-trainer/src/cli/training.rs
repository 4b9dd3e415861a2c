//! Provides the command `train`: a run that begins or goes on, of one process or of several ranks, and what is said at its end.

use std::path::{Path, PathBuf};

use clap::ArgMatches;

use super::{all_keys, with_config, with_resolved};
use crate::{
    Error, Result,
    config::{TrainConfig, resolve_over},
    ranks::{self, Ranks},
    run::{kept, require_run},
    shutdown::{Outcome, Shutdown},
    train::{self, Ending, Turn},
};

/// Trains, alone or as one of several processes. What ends one of those with an error ends all, by the rank's name.
pub(super) fn train(matches: &ArgMatches, shutdown: &Shutdown) -> Result<Outcome> {
    let ranks = ranks::join()?;
    let ranks = &*ranks;
    let ending = train_on(ranks, matches, shutdown);
    if ranks.is_alone() {
        return ending;
    }
    match ending {
        Ok(outcome) => {
            ranks.meet();
            Ok(outcome)
        }
        Err(error) => ranks::end_all(ranks, &error, shutdown),
    }
}

fn train_on(ranks: &dyn Ranks, matches: &ArgMatches, shutdown: &Shutdown) -> Result<Outcome> {
    if !ranks.is_first() && matches.get_flag("print_config") {
        return Ok(Outcome::Complete);
    }
    let Some(run) = matches.get_one::<PathBuf>("resume") else {
        return with_config(matches, |config: &TrainConfig| {
            let named = &config.out;
            kept_on(ranks, &config.out, shutdown, |out| {
                let config = TrainConfig {
                    out: out.to_owned(),
                    ..config.clone()
                };
                let ending = train::run_on(ranks, &config, shutdown)?;
                Ok(say(&ending, named, shutdown))
            })
        });
    };
    if let Some(turn) = Turn::of_this_process(shutdown)? {
        return Ok(say(&train::take_turn(run, &turn, shutdown)?, run, shutdown));
    }
    let named = run;
    kept_on(ranks, run, shutdown, |run| {
        require_run(run)?;
        let file = run.join("config.toml");
        let mut resolved = resolve_over::<TrainConfig>(Some(&file), matches, &all_keys())?;
        // The directory may have been moved since.
        resolved.config.out = run.to_owned();
        with_resolved(matches, resolved, |config| {
            let ending = train::resume_on(ranks, config, shutdown)?;
            Ok(say(&ending, named, shutdown))
        })
    })
}

/// Works on a run, which several ranks cannot where it is kept at an address: each needs the files of the first.
fn kept_on<T>(
    ranks: &dyn Ranks,
    out: &Path,
    shutdown: &Shutdown,
    work: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    if !ranks.is_alone() && distill_objects::is_remote(out) {
        return Err(Error::Config(format!(
            "out: {} is at an address, which one process can keep a run at, and these are {} ranks; name a directory on a disk that \
             all of them see",
            out.display(),
            ranks.count()
        )));
    }
    kept(out, shutdown, work)
}

/// What is said of a run, by the name that it was given by.
fn say(ending: &Ending, run: &Path, shutdown: &Shutdown) -> Outcome {
    let summary = match ending {
        Ending::Trained(summary) => summary,
        Ending::FinishedBefore => {
            tracing::info!(
                "the run in {} is finished; there is nothing to do",
                run.display()
            );
            return Outcome::Complete;
        }
        Ending::Elsewhere(status) => return Outcome::Status(*status),
    };
    let how = match (summary.interrupted, summary.stopped_early) {
        (true, _) => "stopped",
        (false, true) => "stopped early, as evaluations got no better,",
        (false, false) => "done",
    };
    // A run that is stopped as soon as it goes on has none.
    let loss = if summary.loss.tokens > 0 {
        format!(", loss {:.4}", summary.loss.total)
    } else {
        String::new()
    };
    tracing::info!(
        "{how} after {} steps{loss}; results in {}",
        summary.steps,
        summary.adapter.display()
    );
    if summary.interrupted {
        tracing::info!(
            "run `student-trainer train --resume {}` to go on",
            run.display()
        );
    }
    shutdown.outcome(!summary.interrupted)
}
