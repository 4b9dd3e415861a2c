//! Changes a teacher's weights in place while the real programs use them: nothing computed from them goes under the old name.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use serde_json::Value;

use crate::{
    harness::{Listen, Teacher, teacher_succeeds, trainer_refuses},
    pipeline::{Setup, path_text},
};

/// Longest wait for the weights to be fingerprinted.
const POLLS: usize = 2000;
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Turns every bit of the file's second half over; the length stays.
fn overwrite(file: &File) -> Result<()> {
    let bytes = file.metadata()?.len();
    let mut half = vec![0; (bytes / 2) as usize];
    let start = bytes - half.len() as u64;
    file.read_exact_at(&mut half, start)?;
    half.iter_mut().for_each(|byte| *byte = !*byte);
    Ok(file.write_all_at(&half, start)?)
}

fn cut(file: &File) -> Result<()> {
    Ok(file.set_len(1000)?)
}

fn change(setup: &Setup, change: fn(&File) -> Result<()>) -> Result<()> {
    let path = setup.teacher.path().join("model.safetensors");
    change(&File::options().read(true).write(true).open(path)?)
}

/// A server that shares its device, after it has named its weights.
fn serve(setup: &Setup, cache: &Path) -> Teacher {
    let swap = ["--vram-mode", "swap", "--window", "2"];
    let cache = ["--cache", path_text(cache)];
    let teacher = setup.serve(&Listen::Loopback, &[&swap[..], &cache].concat());
    for _ in 0..POLLS {
        if teacher.log().contains("serving on") {
            return teacher;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    panic!("the teacher does not serve: {}", teacher.log());
}

/// Sequences in the cache, and of its plan.
fn done(cache: &Path) -> Result<(u64, u64)> {
    let output = teacher_succeeds(&["inspect", path_text(cache), "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let number = |key: &str| report[key].as_u64().unwrap_or_default();
    Ok((number("done"), number("sequences")))
}

/// Expects that the trainer hears of it, the log names the file, and the server lives.
fn assert_refused(setup: &Setup, teacher: &mut Teacher, name: &str) {
    let out = setup.work.path().join(name);
    let said = trainer_refuses(&setup.train_args(teacher, &out, &["--epochs", "1"]));
    assert!(said.contains("weights were changed"), "{said}");
    assert!(!out.join("adapter").exists());
    let log = teacher.log();
    assert!(log.contains("model.safetensors was changed"), "{log}");
    assert!(teacher.signal(libc::SIGTERM).code().is_some(), "{log}");
}

#[test]
fn weights_changed_between_handshake_and_first_turn_are_not_served() -> Result<()> {
    for (name, way) in [
        ("overwritten", overwrite as fn(&File) -> Result<()>),
        ("cut", cut),
    ] {
        let setup = Setup::new()?;
        let cache = setup.work.path().join("cache");
        let mut teacher = serve(&setup, &cache);
        change(&setup, way)?;
        assert_refused(&setup, &mut teacher, name);
        assert_eq!(done(&cache)?.0, 0, "{name}");
    }
    Ok(())
}

#[test]
fn weights_changed_between_two_turns_leave_nothing_of_them_in_the_cache() -> Result<()> {
    let setup = Setup::new()?;
    let capture = |name: &str| -> Result<PathBuf> {
        let cache = setup.work.path().join(name);
        let (model, corpus) = (path_text(setup.teacher.path()), path_text(&setup.corpus));
        let given = ["precompute", "--model", model, "--corpus", corpus];
        let rest = ["--seq-len", "48", "--cache", path_text(&cache)];
        teacher_succeeds(&[&given[..], &rest].concat());
        Ok(cache.join("shards/0000000"))
    };
    let unchanged = std::fs::read(capture("unchanged")?)?;
    let cache = setup.work.path().join("cache");
    let mut teacher = serve(&setup, &cache);
    setup.train(&teacher, "before", &["--steps", "1"]);
    let (before, sequences) = done(&cache)?;
    assert!(0 < before && before < sequences, "{before} of {sequences}");
    change(&setup, overwrite)?;
    assert_refused(&setup, &mut teacher, "after");
    // A teacher that was in memory may have gone on, with what it was. The weights come back, and the capture is completed.
    assert!(done(&cache)?.0 < sequences);
    change(&setup, overwrite)?;
    assert!(std::fs::read(capture("cache")?)? == unchanged);
    Ok(())
}
