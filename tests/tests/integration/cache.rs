//! Runs `precompute` and serves its cache with the real programs: interruptions, parts, growth, damage.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Result;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;

use crate::{
    harness::{Listen, Teacher, send_signal, teacher, teacher_refuses, teacher_succeeds, text},
    pipeline::{Setup, metrics, path_text},
};

/// So small that the corpus makes several shards.
const SHARD_BYTES: &str = "3000";
/// Interruptions of a capture, at least.
const INTERRUPTIONS: usize = 12;

/// `precompute` of the setup's corpus into `out`; `flags` come last.
pub fn arguments<'a>(setup: &'a Setup, out: &'a Path, flags: &[&'a str]) -> Vec<&'a str> {
    let base = [
        "precompute",
        "--model",
        path_text(setup.teacher.path()),
        "--corpus",
        path_text(&setup.corpus),
        "--seq-len",
        "48",
        "--batch-size",
        "2",
        "--shard-bytes",
        SHARD_BYTES,
        "--out",
        path_text(out),
    ];
    [&base, flags].concat()
}

/// Every sealed object of a cache.
pub fn objects(cache: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for directory in ["", "segments", "shards", "basis"] {
        let Ok(entries) = fs::read_dir(cache.join(directory)) else {
            continue;
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_file() && entry.file_name() != "LOCK" {
                let name = Path::new(directory).join(entry.file_name());
                found.insert(name, fs::read(entry.path())?);
            }
        }
    }
    Ok(found)
}

fn captured(setup: &Setup, name: &str, flags: &[&str]) -> PathBuf {
    let out = setup.work.path().join(name);
    teacher_succeeds(&arguments(setup, &out, flags));
    out
}

/// Serves a cache and nothing else.
fn serve(setup: &Setup, cache: &Path) -> Teacher {
    let flags = ["--cache", path_text(cache)];
    Teacher::serve(setup.work.path(), &Listen::Loopback, &flags)
}

fn sealed(cache: &Path) -> Result<Value> {
    let output = teacher_succeeds(&["verify", path_text(cache), "--json"]);
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn a_capture_killed_interrupted_and_out_of_room_ends_in_the_same_bytes() -> Result<()> {
    let setup = Setup::new()?;
    let started = Instant::now();
    let whole = captured(&setup, "whole", &["--state", "sketch:4"]);
    let once = started.elapsed();
    let expected = objects(&whole)?;
    assert!(expected.len() > 6, "{:?}", expected.keys());

    let seed: u64 = std::env::var("KILL_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    println!("KILL_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let out = setup.work.path().join("interrupted");
    let args = arguments(&setup, &out, &["--state", "sketch:4"]);
    let mut interruptions = 0;
    for attempt in 0.. {
        assert!(attempt < 20 * INTERRUPTIONS, "it never gets further");
        let room = attempt % 4 == 3;
        let mut command = teacher(&args);
        if room {
            // A file may grow to so much only, as on a full disk.
            let blocks = random.random_range(1..8);
            command = limited(&args, blocks);
        }
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        if !room {
            // The first attempts end early, so that there are enough of them.
            let most = once.mul_f64(((attempt + 4) as f64 / INTERRUPTIONS as f64).min(1.2));
            std::thread::sleep(most.mul_f64(random.random()));
            let signal = [libc::SIGKILL, libc::SIGINT, libc::SIGTERM][attempt % 3];
            send_signal(&child, signal);
        }
        let status = child.wait()?;
        if status.success() && interruptions >= INTERRUPTIONS {
            break;
        }
        interruptions += usize::from(!status.success());
        if status.success() {
            // Done too soon: the rest of the interruptions is on a cache of its own.
            fs::remove_dir_all(&out)?;
        }
        if attempt > 10 * INTERRUPTIONS {
            teacher_succeeds(&args);
            break;
        }
    }
    assert!(interruptions >= INTERRUPTIONS, "{interruptions}");
    assert!(objects(&out)? == expected, "KILL_SEED={seed}");
    Ok(())
}

/// The command under a limit on file sizes, in blocks of 512 or 1024 bytes.
fn limited(args: &[&str], blocks: u32) -> std::process::Command {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let mut command = std::process::Command::new("sh");
    command
        .args([
            "-c",
            &script,
            env!("CARGO_BIN_EXE_teacher-server-under-test"),
        ])
        .args(args)
        .stdin(Stdio::null());
    command
}

#[test]
fn a_trainer_cannot_tell_a_cache_from_a_live_teacher() -> Result<()> {
    let setup = Setup::new()?;
    let flags = ["--steps", "6", "--batch-size", "2", "--lr", "1e-3"];
    let live = setup.serve(&Listen::Loopback, &["--batch-size", "2"]);
    let from_live = setup.train(&live, "from-live", &flags);
    drop(live);
    let cache = captured(&setup, "cache", &[]);
    // Two trainers, one after the other, and the server has no model to run.
    let server = serve(&setup, &cache);
    let losses = |run: &Path| -> Result<Vec<Value>> {
        let lines = metrics(run)?.into_iter();
        Ok(lines.map(|mut line| line["loss"].take()).collect())
    };
    for name in ["first", "second"] {
        let run = setup.train(&server, name, &flags);
        let adapter = |run: &Path| fs::read(run.join("adapter/adapter_model.safetensors"));
        assert!(adapter(&run)? == adapter(&from_live)?, "{name}");
        assert_eq!(losses(&run)?, losses(&from_live)?);
    }
    Ok(())
}

#[test]
fn a_partial_cache_is_served_and_what_was_missing_is_kept() -> Result<()> {
    let setup = Setup::new()?;
    let expected = objects(&captured(&setup, "whole", &[]))?;
    let out = captured(&setup, "part", &["--shard", "1/2"]);
    let refused = teacher_refuses(&["serve", "--bind", "127.0.0.1:0", "--cache", path_text(&out)]);
    assert!(
        refused.contains("are missing") && refused.contains("--model"),
        "{refused}"
    );
    // Settings that nobody names are those of the cache.
    let mut server = setup.serve(&Listen::Loopback, &["--cache", path_text(&out)]);
    setup.train(&server, "run", &["--epochs", "1"]);
    assert!(server.signal(libc::SIGTERM).success(), "{}", server.log());
    assert!(objects(&out)? == expected);
    assert_eq!(sealed(&out)?["damage"], Value::Array(vec![]));
    Ok(())
}

#[test]
fn parts_of_several_machines_merge_into_the_whole() -> Result<()> {
    let setup = Setup::new()?;
    let expected = objects(&captured(&setup, "whole", &[]))?;
    let written =
        ["0/3", "1/3"].map(|part| captured(&setup, &part.replace('/', "-"), &["--shard", part]));
    // A scheduler says the same.
    let said = setup.work.path().join("auto");
    let mut auto = teacher(&arguments(&setup, &said, &["--shard", "auto"]));
    auto.env("JOB_COMPLETION_INDEX", "2");
    let refused = text(&auto.output()?);
    assert!(refused.contains("no JOB_COMPLETIONS"), "{refused}");
    let output = auto.env("JOB_COMPLETIONS", "3").output()?;
    assert!(
        text(&output).contains("to compute of part 2/3: "),
        "{}",
        text(&output)
    );
    let parts = [&written[0], &written[1], &said];
    let out = setup.work.path().join("merged");
    let [first, second, third] = parts.map(|path| path_text(path));
    teacher_succeeds(&["merge", "--out", path_text(&out), first, second]);
    let part = teacher(&["verify", path_text(&out), "--json"]).output()?;
    let verdict: Value = serde_json::from_slice(&part.stdout)?;
    assert!(verdict["sealed"].as_u64() < verdict["shards"].as_u64());
    assert_eq!(
        (&verdict["complete"], part.status.code()),
        (&Value::Bool(false), Some(130))
    );
    teacher_succeeds(&["merge", "--out", path_text(&out), third]);
    assert!(objects(&out)? == expected);
    let other = captured(&setup, "other", &["--top-k", "3"]);
    let refused = teacher_refuses(&["merge", "--out", path_text(&out), path_text(&other)]);
    assert!(refused.contains("plans"), "{refused}");
    Ok(())
}

#[test]
fn only_documents_that_were_added_are_computed() -> Result<()> {
    let mut setup = Setup::new()?;
    let out = captured(&setup, "cache", &[]);
    let before = objects(&out)?;
    let more = setup.work.path().join("more.txt");
    let text =
        fs::read_to_string(&setup.corpus)? + "\nA document that was added on the next day.\n";
    fs::write(&more, text)?;
    setup.corpus = more;
    let output = teacher_succeeds(&arguments(&setup, &out, &["--json"]));
    let events = String::from_utf8(output.stdout)?;
    let events = events.lines().map(serde_json::from_str::<Value>);
    let events = events.collect::<Result<Vec<_>, _>>()?;
    let event = |name: &str| events.iter().find(|event| event["event"] == name);
    let work = event("work").expect("what there is to compute");
    let known = event("cache_corpus").expect("what is known");
    assert!(known["known"].as_u64() > Some(3) && work["sequences"].as_u64() < Some(3));
    let after = objects(&out)?;
    assert!(after.len() > before.len());
    assert!(
        before
            .iter()
            .all(|(name, bytes)| after.get(name) == Some(bytes))
    );
    let server = serve(&setup, &out);
    setup.train(&server, "run", &["--epochs", "1"]);
    Ok(())
}

#[test]
fn damage_is_named_kept_from_trainers_and_repaired() -> Result<()> {
    let setup = Setup::new()?;
    let out = captured(&setup, "cache", &[]);
    let expected = objects(&out)?;
    let shard = out.join("shards/0000001");
    let mut bytes = fs::read(&shard)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 16;
    fs::write(&shard, &bytes)?;
    let named = teacher_refuses(&["verify", path_text(&out)]);
    assert!(
        named.contains("shard 1, byte") && named.contains("checksum"),
        "{named}"
    );
    {
        let server = serve(&setup, &out);
        let run = setup.work.path().join("run");
        let args = setup.train_args(&server, &run, &["--epochs", "1"]);
        let refused = crate::harness::trainer_refuses(&args);
        assert!(
            refused.contains("shard 1") && refused.contains("--repair"),
            "{refused}"
        );
        let log = server.log();
        assert_eq!(log.matches("shard 1, byte").count(), 1, "{log}");
    }
    let (model, corpus) = (path_text(setup.teacher.path()), path_text(&setup.corpus));
    let repair = ["--repair", "--model", model, "--corpus", corpus];
    let output = teacher_succeeds(&[&["verify", path_text(&out)], repair.as_slice()].concat());
    assert!(text(&output).contains("to compute: "), "{}", text(&output));
    assert!(objects(&out)? == expected);
    teacher_succeeds(&["verify", path_text(&out)]);
    Ok(())
}

#[test]
fn other_settings_and_a_second_writer_are_refused_by_name() -> Result<()> {
    let setup = Setup::new()?;
    let out = captured(&setup, "cache", &["--shard", "0/2"]);
    let args = arguments(&setup, &out, &["--top-k", "5"]);
    let refused = teacher_refuses(&args);
    assert!(refused.contains("top_k: 8 -> 5"), "{refused}");
    let server = setup.serve(&Listen::Loopback, &["--cache", path_text(&out)]);
    let started = Instant::now();
    while !server.log().contains("serving on") {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{}",
            server.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let refused = teacher_refuses(&arguments(&setup, &out, &[]));
    assert!(
        refused.contains("is writing to it") && refused.contains("process"),
        "{refused}"
    );
    Ok(())
}
