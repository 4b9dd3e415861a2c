//! Runs the real programs over caches and corpora in object storage: several machines, a kill, a race, damage, a merge.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::Result;
use distill_tests::storage::{SECRET, Storage};
use serde_json::Value;

use crate::{
    cache::{arguments, objects},
    harness::{
        Listen, Teacher, send_signal, teacher, teacher_succeeds, text, trainer, trainer_succeeds,
        wait_until,
    },
    monitor::{ANY_PORT, shown, value},
    pipeline::{Setup, path_text},
};

/// Object storage with the corpus in it, and machines that have nothing but their own folders.
struct Cloud {
    setup: Setup,
    storage: Storage,
}

impl Cloud {
    fn new() -> Result<Self> {
        let setup = Setup::new()?;
        let storage = Storage::serve(&setup.work.path().join("storage"), "127.0.0.1:0")?;
        fs::create_dir_all(storage.file("corpus"))?;
        let name = setup.corpus.file_name().unwrap_or_default();
        fs::copy(&setup.corpus, storage.file("corpus").join(name))?;
        Ok(Self { setup, storage })
    }

    /// Environment of a machine.
    fn variables(&self, machine: &str) -> Vec<(&'static str, String)> {
        let folder = self.setup.work.path().join(machine);
        let own = ("OT_DISTILL_OBJECTS", folder.display().to_string());
        self.storage.variables().into_iter().chain([own]).collect()
    }

    /// `precompute` on a machine, of the corpus in storage into `s3://bucket/OUT`.
    fn precompute(&self, machine: &str, out: &str, flags: &[&str]) -> Command {
        let out = PathBuf::from(format!("s3://bucket/{out}"));
        let corpus = ["--corpus", "s3://bucket/corpus"];
        let args = arguments(&self.setup, &out, &[]);
        self.teacher(machine, &with(args, &[&corpus, flags].concat()))
    }

    fn teacher(&self, machine: &str, args: &[&str]) -> Command {
        let mut command = teacher(args);
        command.envs(self.variables(machine));
        command
    }

    fn runs(&self, machine: &str, args: &[&str]) -> Result<Output> {
        succeeds(&mut self.teacher(machine, args))
    }

    fn repair(&self, machine: &str, cache: &str) -> Result<Output> {
        let model = path_text(self.setup.teacher.path());
        let corpus = "s3://bucket/corpus/documents.txt";
        let flags = ["--repair", "--model", model, "--corpus", corpus];
        self.runs(machine, &[&["verify", cache], flags.as_slice()].concat())
    }

    /// A cache on this machine's disk, for comparison.
    fn local(&self, flags: &[&str]) -> PathBuf {
        let out = self.setup.work.path().join("local");
        teacher_succeeds(&with(arguments(&self.setup, &out, &[]), flags));
        out
    }

    /// The adapter of a short training from a cache.
    fn trained(&self, cache: &str, name: &str, more: &[(&str, &str)]) -> Result<Vec<u8>> {
        let variables = self.variables("server");
        let variables = variables
            .iter()
            .map(|(name, value)| (*name, value.as_str()));
        let variables: Vec<(&str, &str)> = variables.chain(more.iter().copied()).collect();
        let folder = self.setup.work.path();
        let flags = ["--cache", cache, ANY_PORT[0], ANY_PORT[1]];
        let server = Teacher::serve_with(folder, &Listen::Loopback, &flags, &variables);
        let run = folder.join(name);
        trainer_succeeds(&self.setup.train_args(&server, &run, &["--epochs", "2"]));
        assert!(!server.log().contains(SECRET));
        let shown = shown(&server.log())?;
        for metric in [
            "requests_total{action=\"read\"} ",
            "blocks_total{copied=\"false\"} ",
            "read_bytes_total ",
        ] {
            let counted = value(&shown, &format!("ot_distill_storage_{metric}"));
            assert_eq!(
                counted > Some(0.0),
                cache.starts_with("s3://"),
                "{metric}: {shown}"
            );
        }
        Ok(fs::read(run.join("adapter/adapter_model.safetensors"))?)
    }
}

/// Flags with their values, some of them in the place of those that are there.
fn with<'a>(mut args: Vec<&'a str>, flags: &[&'a str]) -> Vec<&'a str> {
    for flag in flags.chunks(2) {
        if let Some(at) = args.iter().position(|arg| *arg == flag[0]) {
            args.drain(at..at + 2);
        }
        args.extend(flag);
    }
    args
}

fn succeeds(command: &mut Command) -> Result<Output> {
    let output = command.output()?;
    let said = text(&output);
    assert!(output.status.success() && !said.contains(SECRET), "{said}");
    Ok(output)
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

#[test]
fn machines_that_fill_one_cache_end_in_the_bytes_of_one_process() -> Result<()> {
    let cloud = Cloud::new()?;
    let local = cloud.local(&[]);
    let expected = objects(&local)?;
    let parts = [("one", "0/3"), ("two", "1/3"), ("three", "2/3")];
    let spawned = parts.map(|(machine, part)| {
        let mut command = cloud.precompute(machine, "cache", &["--shard", part]);
        command.stdout(std::process::Stdio::null()).spawn()
    });
    for (at, child) in spawned.into_iter().enumerate() {
        let mut child = child?;
        if at == 1 {
            std::thread::sleep(Duration::from_millis(300));
            send_signal(&child, libc::SIGKILL);
            child.wait()?;
        } else {
            assert!(child.wait()?.success());
        }
    }
    // What was killed is taken over by a machine that has nothing of it.
    succeeds(&mut cloud.precompute("four", "cache", &["--shard", "1/3"]))?;
    assert!(objects(&cloud.storage.file("cache"))? == expected);

    let address = "s3://bucket/cache";
    let report = cloud.runs("reader", &["inspect", address, "--json"])?;
    let report: Value = serde_json::from_slice(&report.stdout)?;
    assert_eq!(report["done"], report["sequences"]);
    cloud.runs("reader", &["verify", address])?;

    let from_disk = cloud.trained(path_text(&local), "from-disk", &[])?;
    let few = [("OT_DISTILL_OBJECTS_BYTES", "4000")];
    assert!(cloud.trained(address, "from-storage", &few)? == from_disk);
    let server = cloud.setup.work.path().join("server");
    let folder = server.join(&names(&server)?[0]).join("copies");
    let copied = names(&folder)?.into_iter();
    let copied = copied.map(|name| Ok(fs::metadata(folder.join(name))?.len()));
    let copied: u64 = copied.sum::<Result<u64>>()?;
    assert!((1..=4000).contains(&copied), "{copied} bytes of copies");
    Ok(())
}

#[test]
fn of_ten_machines_that_make_one_shard_one_is_first() -> Result<()> {
    let cloud = Cloud::new()?;
    let one = ["--shard-bytes", "100000000"];
    let expected = objects(&cloud.local(&one))?;
    let machines: Vec<String> = (0..10)
        .map(|machine| format!("machine-{machine}"))
        .collect();
    let spawned = machines.iter().map(|machine| {
        let mut command = cloud.precompute(machine, "cache", &one);
        command.stdout(std::process::Stdio::null()).spawn()
    });
    let spawned: Vec<_> = spawned.collect();
    for child in spawned {
        assert!(child?.wait()?.success());
    }
    let cache = cloud.storage.file("cache");
    assert_eq!(names(&cache.join("shards"))?, ["0000000"]);
    assert!(objects(&cache)? == expected);
    // Settings that differ are told from these, and nothing is begun anew.
    let other = cloud
        .precompute("other", "cache", &["--top-k", "3"])
        .output()?;
    let said = text(&other);
    assert!(
        !other.status.success() && said.contains("top_k: 8 -> 3"),
        "{said}"
    );
    assert!(objects(&cache)? == expected);
    Ok(())
}

#[test]
fn an_object_that_was_corrupted_is_found_and_repaired() -> Result<()> {
    let cloud = Cloud::new()?;
    succeeds(&mut cloud.precompute("one", "cache", &[]))?;
    let cache = cloud.storage.file("cache");
    let expected = objects(&cache)?;
    // Read once, so that there is a copy which is whole.
    cloud.runs("one", &["inspect", "s3://bucket/cache"])?;
    let shard = cache.join("shards/0000001");
    let mut bytes = fs::read(&shard)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 16;
    fs::write(&shard, &bytes)?;
    let found = cloud
        .teacher("one", &["verify", "s3://bucket/cache"])
        .output()?;
    let said = text(&found);
    assert!(
        !found.status.success() && said.contains("shard 1, byte"),
        "{said}"
    );
    cloud.repair("one", "s3://bucket/cache")?;
    assert!(objects(&cache)? == expected);
    assert_eq!(fs::read(cache.join("damaged/0000001.0"))?, bytes);
    cloud.runs("two", &["verify", "s3://bucket/cache"])?;
    Ok(())
}

#[test]
fn a_merge_of_caches_in_storage_copies_no_shard() -> Result<()> {
    let cloud = Cloud::new()?;
    let local = cloud.local(&[]);
    for (part, name) in [("0/2", "even"), ("1/2", "odd")] {
        succeeds(&mut cloud.precompute(name, name, &["--shard", part]))?;
    }
    let merge = |inputs: &[&str]| {
        let args = ["merge", "--out", "s3://bucket/all"];
        Ok::<_, anyhow::Error>(text(&cloud.runs("one", &[&args, inputs].concat())?))
    };
    let said = merge(&["s3://bucket/even"])?;
    assert!(said.starts_with("0 shards copied, "), "{said}");
    let said = merge(&["s3://bucket/even", "s3://bucket/odd"])?;
    assert!(
        said.contains("listed where they are, which must stay"),
        "{said}"
    );
    assert!(!cloud.storage.file("all/shards").exists());
    cloud.runs("two", &["verify", "s3://bucket/all"])?;
    // What a cache lists it does not hold: another merge lists where it is.
    let again = ["merge", "--out", "s3://bucket/again", "s3://bucket/all"];
    cloud.runs("one", &again)?;
    cloud.runs("two", &["verify", "s3://bucket/again"])?;
    let from_disk = cloud.trained(path_text(&local), "from-disk", &[])?;
    assert!(cloud.trained("s3://bucket/all", "from-storage", &[])? == from_disk);

    // A shard that another cache holds is made anew in this one where it is damaged.
    let odd = cloud.storage.file("odd");
    let mut bytes = fs::read(odd.join("shards/0000001"))?;
    let whole = bytes.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 16;
    fs::write(odd.join("shards/0000001"), &bytes)?;
    let verify = ["verify", "s3://bucket/all"];
    let found = text(&cloud.teacher("two", &verify).output()?);
    assert!(found.contains("shard 1, byte"), "{found}");
    cloud.repair("two", "s3://bucket/all")?;
    cloud.runs("two", &verify)?;
    assert!(fs::read(cloud.storage.file("all/shards/0000001"))? == whole);
    assert!(fs::read(odd.join("shards/0000001"))? == bytes);
    Ok(())
}

#[test]
fn a_shard_that_storage_refuses_ends_a_capture_and_is_put_by_the_next() -> Result<()> {
    let cloud = Cloud::new()?;
    let local = cloud.local(&[]);
    cloud.storage.refuse(Some("cache/shards/"));
    let refused = cloud.precompute("one", "cache", &[]).output()?;
    let said = text(&refused);
    assert!(
        !refused.status.success()
            && said.contains("shards/0000000")
            && !said.contains(": complete"),
        "{said}"
    );
    cloud.storage.refuse(None);
    succeeds(&mut cloud.precompute("one", "cache", &[]))?;
    assert!(objects(&cloud.storage.file("cache"))? == objects(&local)?);
    Ok(())
}

#[test]
fn a_copy_that_was_damaged_is_read_anew() -> Result<()> {
    let cloud = Cloud::new()?;
    succeeds(&mut cloud.precompute("one", "cache", &[]))?;
    let before = objects(&cloud.storage.file("cache"))?;
    let machine = cloud.setup.work.path().join("one");
    let mut damaged = 0;
    for folder in names(&machine)? {
        let copies = machine.join(folder).join("copies");
        for copy in names(&copies).unwrap_or_default() {
            let mut bytes = fs::read(copies.join(&copy))?;
            bytes.iter_mut().for_each(|byte| *byte ^= 16);
            fs::write(copies.join(&copy), bytes)?;
            damaged += 1;
        }
    }
    assert!(damaged > 2, "{damaged} copies");
    cloud.runs("one", &["inspect", "s3://bucket/cache"])?;
    succeeds(&mut cloud.precompute("one", "cache", &[]))?;
    assert!(objects(&cloud.storage.file("cache"))? == before);
    Ok(())
}

#[test]
fn what_storage_refuses_is_said_without_secrets() -> Result<()> {
    let cloud = Cloud::new()?;
    let refused = |variable: &str, value: &str, address: &str| -> Result<String> {
        let mut command = cloud.teacher("one", &["verify", address]);
        let output = command.env(variable, value).output()?;
        let said = text(&output);
        assert!(
            !output.status.success() && !said.contains("panicked"),
            "{said}"
        );
        assert!(
            !said.contains(SECRET) && !said.contains("another-secret"),
            "{said}"
        );
        Ok(said)
    };
    let none = refused("NOTHING", "", "s3://bucket/none")?;
    assert!(none.contains("there is no cache here"), "{none}");
    let wrong = refused(
        "AWS_SECRET_ACCESS_KEY",
        "another-secret",
        "s3://bucket/cache",
    )?;
    assert!(wrong.contains("s3://bucket/cache"), "{wrong}");
    let inside = refused("NOTHING", "", "s3://me:another-secret@bucket/cache")?;
    assert!(inside.contains("AWS_ACCESS_KEY_ID"), "{inside}");
    for endpoint in ["127.0.0.1:39771", "HTTP://host"] {
        let strange = refused("AWS_ENDPOINT_URL", endpoint, "s3://bucket/cache")?;
        assert!(strange.contains("https://HOST"), "{strange}");
    }
    let unknown = refused("NOTHING", "", "ftp://bucket/cache")?;
    assert!(unknown.contains("s3://BUCKET/PREFIX"), "{unknown}");
    Ok(())
}

#[test]
fn storage_that_does_not_answer_is_told_and_keeps_nobody_from_stopping() -> Result<()> {
    let cloud = Cloud::new()?;
    let log = cloud.setup.work.path().join("away.log");
    let mut command = cloud.precompute("one", "cache", &[]);
    command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
    let mut child = command.stderr(fs::File::create(&log)?).spawn()?;
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_until("a word about storage", || {
        said().contains("storage has not answered for 5 seconds")
    });
    send_signal(&child, libc::SIGTERM);
    let asked = Instant::now();
    assert!(!child.wait()?.success());
    assert!(asked.elapsed() < Duration::from_secs(60), "{}", said());
    assert!(said().contains("asked to stop"), "{}", said());
    Ok(())
}

#[test]
fn a_run_at_an_address_goes_on_on_another_machine() -> Result<()> {
    let cloud = Cloud::new()?;
    let teacher = cloud.setup.serve(&Listen::Loopback, &[]);
    let flags = ["--steps", "60", "--save-steps", "5", "--lr", "1e-3"];
    let near = cloud.setup.train(&teacher, "near", &flags);
    let command = |machine: &str, args: &[&str]| {
        let mut command = trainer(args);
        command
            .envs(cloud.variables(machine))
            .stderr(std::process::Stdio::piped());
        command
    };
    let out = PathBuf::from("s3://bucket/run");
    let mut first = command("one", &cloud.setup.train_args(&teacher, &out, &flags)).spawn()?;
    let checkpoints = cloud.storage.file("run/checkpoints");
    let is_kept = || {
        let steps = names(&checkpoints).unwrap_or_default().into_iter();
        steps
            .map(|step| checkpoints.join(step))
            .any(|step| step.join("state.toml").exists())
    };
    wait_until("a checkpoint in storage", is_kept);
    send_signal(&first, libc::SIGKILL);
    // On a fast machine it may be done by then, and what follows holds all the same.
    first.wait()?;
    // Nobody begins another run there.
    let again = command("two", &cloud.setup.train_args(&teacher, &out, &flags)).output()?;
    assert!(
        !again.status.success() && text(&again).contains("earlier run"),
        "{}",
        text(&again)
    );
    let resumed = succeeds(&mut command(
        "three",
        &["train", "--resume", "s3://bucket/run"],
    ))?;
    let said = text(&resumed);
    assert!(said.contains("kept at s3://bucket/run"), "{said}");
    let adapter = "adapter/adapter_model.safetensors";
    let kept = fs::read(cloud.storage.file("run").join(adapter))?;
    assert!(kept == fs::read(near.join(adapter))?);
    assert_eq!(
        fs::read_to_string(cloud.storage.file("run/metrics.jsonl"))?
            .lines()
            .count(),
        60
    );
    Ok(())
}
