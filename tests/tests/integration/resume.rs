//! Kills and stops the real trainer at random moments and compares what it ends with to a run that nobody disturbed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;

use crate::{
    harness::{Listen, Teacher, send_signal, text, trainer, trainer_refuses, trainer_succeeds},
    pipeline::{Setup, metrics, path_text},
};

/// Every step that may differ between two runs: several passes, more than one forward pass a step, a learned projection,
/// evaluations, and checkpoints that lie across the ends of passes.
const SETTINGS: [&str; 20] = [
    "--epochs",
    "3",
    "--grad-accumulation",
    "2",
    "--ot-weight",
    "0.1",
    "--align-cost",
    "hidden",
    "--lr",
    "1e-3",
    "--save-steps",
    "2",
    "--eval-steps",
    "3",
    "--eval-max-sequences",
    "2",
    "--best-metric",
    "kl",
    "--prefetch-frames",
    "4",
];
/// What a server sends for them.
const SERVER: [&str; 4] = ["--top-k", "24", "--state", "exact"];
/// What differs between two runs on the same machine.
const NOT_COMPARED: [&str; 5] = [
    "seconds",
    "wait_seconds",
    "tokens_per_second",
    "rss_bytes",
    "peak_rss_bytes",
];

/// Starts the run in `out`, or goes on with it.
fn command<'a>(setup: &'a Setup, teacher: &'a Teacher, out: &'a Path) -> Vec<&'a str> {
    if out.join("config.toml").is_file() {
        return vec![
            "train",
            "--resume",
            path_text(out),
            "--teacher",
            teacher.address(),
        ];
    }
    let corpus = ["--eval-data", path_text(&setup.corpus)];
    let flags = [SETTINGS.as_slice(), &corpus].concat();
    setup.train_args(teacher, out, &flags)
}

/// Everything that two equal runs must share.
#[derive(Debug, PartialEq)]
struct Outcome {
    metrics: Vec<Value>,
    evals: Vec<Value>,
    /// Name and bytes of what was trained, in the result and in the last checkpoint.
    files: Vec<(String, Vec<u8>)>,
    /// Step, data cursor and evaluations.
    state: Vec<String>,
    best: PathBuf,
}

impl Outcome {
    fn read(run: &Path) -> Result<Self> {
        let mut checkpoints: Vec<PathBuf> = fs::read_dir(run.join("checkpoints"))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        checkpoints.sort();
        let last = checkpoints.last().context("there is a checkpoint")?;
        let mut files = Vec::new();
        for (directory, name) in [
            (run.join("adapter"), "adapter_model.safetensors"),
            (run.join("adapter"), "hidden_projection.safetensors"),
            (last.clone(), "adapter_model.safetensors"),
            (last.clone(), "optimizer.safetensors"),
            (last.clone(), "projection_optimizer.safetensors"),
        ] {
            let path = directory.join(name);
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            files.push((name.to_owned(), bytes));
        }
        // The log's length differs with the digits of its times; the settings name each run's directory and teacher.
        let state = fs::read_to_string(last.join("state.toml"))?;
        let compared = |line: &&str| !line.contains("_bytes") && !line.contains("settings.toml");
        Ok(Self {
            metrics: without_times(metrics(run)?),
            evals: without_times(lines(&run.join("eval.jsonl"))?),
            files,
            state: state.lines().filter(compared).map(str::to_owned).collect(),
            best: fs::read_link(run.join("best"))?,
        })
    }

    /// Says which part differs rather than printing all bytes.
    fn assert_eq(&self, expected: &Self, context: &str) {
        assert_eq!(self.metrics, expected.metrics, "metrics, {context}");
        assert_eq!(self.evals, expected.evals, "evaluations, {context}");
        for ((name, bytes), (_, expected)) in self.files.iter().zip(&expected.files) {
            assert!(bytes == expected, "{name} differs, {context}");
        }
        assert_eq!(self.state, expected.state, "state, {context}");
        assert_eq!(self.best, expected.best, "best, {context}");
    }
}

fn lines(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path)?;
    text.lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

fn without_times(mut lines: Vec<Value>) -> Vec<Value> {
    for line in lines.iter_mut().filter_map(Value::as_object_mut) {
        line.retain(|key, _| !NOT_COMPARED.contains(&key.as_str()));
    }
    lines
}

/// The run that nobody disturbs, and how long it took.
fn undisturbed(setup: &Setup, teacher: &Teacher) -> Result<(Outcome, Duration)> {
    let out = setup.work.path().join("undisturbed");
    let start = Instant::now();
    trainer_succeeds(&command(setup, teacher, &out));
    let took = start.elapsed();
    let outcome = Outcome::read(&out)?;
    let steps = outcome.metrics.len();
    assert!(steps >= 9, "{steps} steps are too few to be interrupted");
    assert!(outcome.evals.len() >= 3 && outcome.evals[0]["kl"].is_f64());
    Ok((outcome, took))
}

/// Waits for the end, up to `patience`.
fn ends_within(child: &mut Child, patience: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    while start.elapsed() < patience {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(None)
}

/// Kills trainers until `kills` of them are dead, and compares every run that came to its end.
fn killed_again_and_again(kills: usize) -> Result<()> {
    let seed = match std::env::var("OT_DISTILL_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => rand::random(),
    };
    println!("OT_DISTILL_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let setup = Setup::new()?;
    let teacher = setup.serve(&Listen::Loopback, &SERVER);
    let (expected, took) = undisturbed(&setup, &teacher)?;
    let (mut killed, mut runs) = (0, 0);
    while killed < kills {
        runs += 1;
        let out = setup.work.path().join(format!("killed-{runs}"));
        let mut kills_of_this = 0;
        loop {
            let log = fs::File::create(setup.work.path().join("trainer.log"))?;
            let mut command = trainer(&command(&setup, &teacher, &out));
            let mut child = command.stderr(log).spawn()?;
            // The last ones of all run to their end.
            let patience = match killed < kills {
                true => took.mul_f64(random.random_range(0.0..1.2)),
                false => Duration::from_secs(600),
            };
            match ends_within(&mut child, patience)? {
                None => {
                    child.kill()?;
                    child.wait()?;
                    killed += 1;
                    kills_of_this += 1;
                    println!("kill {killed}: {}", remains(&out));
                }
                Some(status) => {
                    let log = fs::read_to_string(setup.work.path().join("trainer.log"))?;
                    assert!(status.success(), "seed {seed}, kill {killed}: {log}");
                    break;
                }
            }
        }
        let context = format!("seed {seed}, run {runs} after {kills_of_this} kills");
        Outcome::read(&out)?.assert_eq(&expected, &context);
        println!("run {runs}: {kills_of_this} kills, the same to the bit");
    }
    Ok(())
}

/// What a killed trainer left, for people who wonder where the kills fell.
fn remains(out: &Path) -> String {
    let names = fs::read_dir(out.join("checkpoints")).into_iter().flatten();
    let mut names: Vec<String> = names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let steps = metrics(out).map_or("a torn line".to_owned(), |lines| lines.len().to_string());
    format!("{steps} steps in the log, checkpoints {names:?}")
}

#[test]
fn a_trainer_that_is_killed_anywhere_ends_as_if_it_had_not_been() -> Result<()> {
    killed_again_and_again(5)
}

#[test]
#[ignore = "minutes: fifty kills, for a change of checkpoints; run with --ignored --nocapture"]
fn a_trainer_that_is_killed_at_fifty_points_ends_as_if_it_had_not_been() -> Result<()> {
    killed_again_and_again(50)
}

#[test]
fn a_run_goes_on_after_sigterm_and_a_restart_of_the_teacher_and_refuses_to_become_another()
-> Result<()> {
    let setup = Setup::new()?;
    let socket = Listen::Socket(setup.work.path().join("teacher.sock"));
    let mut teacher = setup.serve(&socket, &SERVER);
    let (expected, _) = undisturbed(&setup, &teacher)?;

    let out = setup.work.path().join("stopped");
    let mut child = trainer(&command(&setup, &teacher, &out)).spawn()?;
    while metrics(&out).map_or(0, |lines| lines.len()) < 3 {
        assert!(child.try_wait()?.is_none(), "the trainer ended early");
        std::thread::sleep(Duration::from_millis(1));
    }
    let second = trainer_refuses(&["train", "--resume", path_text(&out)]);
    let holder = format!("process {}", child.id());
    assert!(second.contains(&holder), "{second}");
    send_signal(&child, libc::SIGTERM);
    assert_eq!(child.wait()?.code(), Some(143));
    let steps = metrics(&out)?.len();
    assert!(
        steps < expected.metrics.len(),
        "it was done before the signal"
    );
    let checkpoint = out.join(format!("checkpoints/step-{steps:06}"));
    assert!(checkpoint.is_dir() && out.join("adapter/adapter_model.safetensors").is_file());

    // Nothing of this changes the run.
    let lr = [&command(&setup, &teacher, &out), ["--lr", "0.5"].as_slice()].concat();
    let lr = trainer_refuses(&lr);
    assert!(lr.contains("lr:") && lr.contains("0.001"), "{lr}");
    teacher.kill();
    teacher = setup.serve(&socket, &["--top-k", "23", "--state", "exact"]);
    let plan = trainer_refuses(&command(&setup, &teacher, &out));
    assert!(
        plan.contains("the teacher's plan was") && plan.contains("start the teacher with"),
        "{plan}"
    );
    assert_eq!(metrics(&out)?.len(), steps);

    teacher.kill();
    teacher = setup.serve(&socket, &SERVER);
    trainer_succeeds(&command(&setup, &teacher, &out));
    let outcome = Outcome::read(&out)?;
    outcome.assert_eq(&expected, "after SIGTERM and a restart of the teacher");
    let again = trainer_succeeds(&command(&setup, &teacher, &out));
    assert!(text(&again).contains("nothing to do"), "{}", text(&again));
    Outcome::read(&out)?.assert_eq(&outcome, "after another --resume");
    Ok(())
}
