/*! Provides the judge of losses: arms, with the controls that go with them, over seeds and one teacher.

```text
 ARMS.toml ──> arms: settings of `train`, controls ──> scale: teacher's terms of equal gradient ──> runs: a process each
                                                                                                      │ eval.jsonl
 table.md, report.html, results.json <── table: paired differences, standard errors, what may be claimed <┘
```

Every run is a run directory of its own that goes on where it stopped, so the whole does too.
*/

mod arms;
mod page;
mod runs;
mod scale;
mod table;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Instant,
};

use distill_program::lock::{Attempt, Lock};
use serde::Serialize;

use crate::{
    Error, Result,
    config::TrainConfig,
    files::{self, write_atomically, write_json},
    run::SUMMARY_FILE,
    shutdown::Shutdown,
    train::look_for_teacher,
};
use arms::{ArmsFile, Metric, Trial};
use page::{Page, Seen};
use runs::{Planned, train_all};
use scale::Scale;
use table::{Results, Row, Verdict, markdown};

/// What `ablate` is asked for.
#[derive(Clone, Debug)]
pub struct AblateArgs {
    /// The file with the arms.
    pub arms: PathBuf,
    /// Where the runs and the table go.
    pub out: PathBuf,
    /// How many runs are trained side by side.
    pub jobs: NonZeroUsize,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Ablation {
    metric: Metric,
    baseline: String,
    rows: Vec<Row>,
    verdicts: Vec<Verdict>,
    /// Whether every run was done.
    pub complete: bool,
    #[serde(skip)]
    table: String,
}

impl std::fmt::Display for Ablation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.table)
    }
}

/// Runs what is not there yet, and writes `table.md`, `results.json` and `report.html`.
///
/// # Errors
/// A file of arms that cannot be followed; a run that fails.
pub fn run(args: &AblateArgs, shutdown: &Shutdown) -> Result<Ablation> {
    let file = ArmsFile::read(&args.arms)?;
    let _lock = take(&args.out)?;
    let trials = file.trials(&args.out.join("arms"))?;
    let judge = Judge {
        file: &file,
        out: &args.out,
        jobs: args.jobs,
        shutdown,
    };
    judge.run(&trials)
}

/// Keeps other judges out of `out`, as long as the lock lives.
fn take(out: &Path) -> Result<Lock> {
    files::create_directory(out)?;
    match Lock::take(&out.join("lock"))? {
        Attempt::Taken(lock) => Ok(lock),
        Attempt::HeldBy(holder) => Err(Error::file(
            out,
            format!("{holder} judges in it; wait for it or stop it, or name another --out"),
        )),
    }
}

struct Judge<'a> {
    file: &'a ArmsFile,
    out: &'a Path,
    jobs: NonZeroUsize,
    shutdown: &'a Shutdown,
}

impl Judge<'_> {
    fn run(&self, trials: &[Trial]) -> Result<Ablation> {
        let seeds = [&self.file.screening[..], &self.file.seeds].concat();
        let count = trials.len() * seeds.len();
        tracing::info!(
            "{} arms with {} controls, {} seeds ({} to look at first): {count} runs",
            self.file.arm.len(),
            trials.len() - self.file.arm.len(),
            seeds.len(),
            self.file.screening.len()
        );
        if !self.is_all_done(trials, &seeds)? {
            self.look_for_teacher(trials)?;
        }
        let Some(settings) = self.settings(trials, seeds.first().copied().unwrap_or_default())?
        else {
            return self.conclude(&[], &[], false);
        };
        let row = |trial: &Trial| Row {
            name: trial.name.clone(),
            control_of: trial.control_of.clone(),
            ..Row::default()
        };
        let mut rows: Vec<Row> = trials.iter().map(row).collect();
        let mut seen = vec![Seen::default(); trials.len()];
        let directory = self.out.join("runs");
        files::create_directory(&directory)?;
        let mut planned = Vec::with_capacity(count);
        for &seed in &seeds {
            for (trial, settings) in trials.iter().zip(&settings) {
                planned.push(Planned::new(&directory, &trial.name, seed, settings)?);
            }
        }
        let was_there = planned.iter().map(Planned::is_done);
        let was_there = was_there.collect::<Result<Vec<bool>>>()?;
        let (begun, mut done, mut trained) = (Instant::now(), 0, 0);
        let is_complete = train_all(&planned, self.jobs, self.shutdown, |number, run| {
            let (planned, seed) = (&planned[number], seeds[number / trials.len()]);
            let at = number % trials.len();
            let counts = self.file.seeds.contains(&seed);
            let curve = run.eval_curve(self.file.metric.key());
            let Some(&(_, value)) = curve.last() else {
                return Err(self.without_metric(&planned.name));
            };
            done += 1;
            trained += usize::from(!was_there[number]);
            let seconds = begun.elapsed().as_secs_f64();
            let left = (count - done) as f64 * seconds / trained.max(1) as f64;
            tracing::info!(
                "run {done} of {count}: {}: {} {value:.4}{}{}",
                planned.name,
                self.file.metric.key(),
                if counts { "" } else { " (does not count)" },
                if was_there[number] {
                    ", was there".into()
                } else {
                    format!(", {:.0} min to go", left / 60.0)
                }
            );
            if counts {
                rows[at].values.insert(seed, value);
                seen[at].curves.push(curve);
                if let Some(plans) = planned.plans()? {
                    rows[at].on_links.insert(seed, plans.on_links);
                    rows[at].on_links_by_chance = Some(plans.by_chance);
                    if seen[at].maps.is_empty() {
                        seen[at].maps = plans.maps;
                    }
                }
            }
            if done % trials.len() == 0 {
                self.conclude(&rows, &seen, false)?;
            }
            Ok(())
        })?;
        self.conclude(&rows, &seen, is_complete)
    }

    /// Whether every run is there, so that nothing is left but the table.
    fn is_all_done(&self, trials: &[Trial], seeds: &[u64]) -> Result<bool> {
        let parent = self.out.join("runs");
        for trial in trials {
            for &seed in seeds {
                let run = Planned::new(&parent, &trial.name, seed, &trial.settings)?;
                if !run.directory.join(SUMMARY_FILE).is_file() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn look_for_teacher(&self, trials: &[Trial]) -> Result<()> {
        let Some(first) = trials.first() else {
            return Ok(());
        };
        let config = first.settings.clone().try_into::<TrainConfig>();
        let config = config.map_err(|e| Error::Config(e.to_string()))?;
        look_for_teacher(&config, self.shutdown)
    }

    /// Of every trial, with its terms as they are trained.
    fn settings(&self, trials: &[Trial], seed: u64) -> Result<Option<Vec<toml::Table>>> {
        let Some(first) = trials.first().filter(|_| self.file.equal_gradients) else {
            return Ok(Some(
                trials.iter().map(|trial| trial.settings.clone()).collect(),
            ));
        };
        let directory = self.out.join("scale");
        files::create_directory(&directory)?;
        let Some(scale) = Scale::new(&directory, first, seed, self.shutdown)? else {
            return Ok(None);
        };
        trials.iter().map(|trial| scale.apply(trial)).collect()
    }

    fn without_metric(&self, run: &str) -> Error {
        let needs = match self.file.metric {
            Metric::ExactMatch => "set eval_exact_match = true in [base]; eval_data needs prompts",
            Metric::Kl | Metric::Top1Agreement => "leave eval_kl on, with a teacher that scores",
            Metric::Ce => "name eval_data in [base]",
        };
        Error::Config(format!(
            "{run}: its evaluations have no {}; {needs}",
            self.file.metric.key()
        ))
    }

    /// Writes what is known so far.
    fn conclude(&self, rows: &[Row], seen: &[Seen], complete: bool) -> Result<Ablation> {
        let metric = self.file.metric;
        let results = Results {
            rows,
            baseline: self.file.baseline(),
            sign: metric.sign(),
            is_share: matches!(metric, Metric::ExactMatch | Metric::Top1Agreement),
        };
        let (heads, cells) = results.cells(metric.key());
        let sentences = results.sentences();
        let errors = "± one paired standard error over seeds; bold: more than three above zero";
        let text = format!(
            "{}\n{errors}.\n\n{}\n",
            markdown(&heads, &cells),
            sentences.join("\n")
        );
        write_atomically(&self.out.join("table.md"), text.as_bytes())?;
        let ablation = Ablation {
            metric,
            baseline: results.baseline.to_owned(),
            verdicts: results.verdicts(),
            rows: rows.to_vec(),
            complete,
            table: text,
        };
        write_json(&self.out.join("results.json"), &ablation)?;
        let page = Page {
            place: self.out.display().to_string(),
            metric: metric.key(),
            heads: &heads,
            cells: &cells,
            errors,
            sentences: &sentences,
            rows,
            seen,
        };
        write_atomically(&self.out.join("report.html"), page.html().as_bytes())?;
        Ok(ablation)
    }
}
