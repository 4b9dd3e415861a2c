//! Provides a model, a corpus and caches in a directory of their own, for the tests of loading over a cache.

use std::{
    collections::BTreeMap,
    fs,
    future::pending,
    path::{Path, PathBuf},
    time::Duration,
};

use distill_program::Outcome;
use distill_proto::{Frame, FrameContext};
use serde_json::{Value, json};

use crate::{
    Error,
    cache::{Access, Cache, Verdict},
    config::Config,
    inspect, precompute,
    store::BlockStore,
    testing::{serve, write_model},
};

pub struct Bench {
    dir: tempfile::TempDir,
}

/// Pairs of every length, some of which share nothing, and ordinary records between them.
pub fn corpus(count: usize, edited: &str) -> Vec<Value> {
    let lines = (0..count).map(|at| {
        let answer = format!("{at} cups");
        match at % 5 {
            4 => json!({"prompt": format!("How many, {at}?"), "completion": answer}),
            3 => json!({
                "teacher": {"text": format!("It is said that there were {at} cups.")},
                "student": {"text": format!("{edited} said {at}")}, "shared": [], "targets": "all",
            }),
            rest => json!({
                "teacher": {"prompt": "long ".repeat(rest * 3 + 1), "completion": format!("So: {answer}")},
                "student": {"prompt": format!("{edited}短{at}"), "completion": answer},
                "links": [{"teacher": "prompt[0:4]", "student": format!("prompt[{}:{}]", edited.len(), edited.len() + 3)}],
            }),
        }
    });
    lines.collect()
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path());
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, lines: &[Value]) {
        let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        fs::write(self.path("corpus.jsonl"), lines.join("\n")).unwrap();
    }

    pub fn config(&self, cache: &str, batch_size: &str) -> Config {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let (model, corpus) = (text(self.path("")), text(self.path("corpus.jsonl")));
        serve(&[
            "--model",
            &model,
            "--corpus",
            &corpus,
            "--cache",
            &text(self.path(cache)),
            "--device",
            "cpu",
            "--seq-len",
            "64",
            "--batch-size",
            batch_size,
            "--shard-bytes",
            "2000",
            "--strict",
        ])
        .unwrap()
    }

    pub fn run(&self, config: Config) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let run = || runtime.block_on(precompute::run(config.clone(), pending()));
        // What was interrupted while it loaded may hold the lock for a moment more.
        let outcome = loop {
            match run() {
                Err(Error::Cache { reason, .. }) if reason.contains("is writing") => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                outcome => break outcome,
            }
        };
        assert_eq!(outcome.unwrap(), Outcome::Complete);
    }

    pub fn copy(&self, from: &str, to: &str) {
        let files = files(&self.path(from));
        for (name, bytes) in files {
            let path = self.path(to).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    pub fn verify(&self, cache: &str) -> Verdict {
        inspect::verify(&self.path(cache), &|| false).unwrap()
    }

    /// All frames by sequence id.
    pub fn frames(&self, cache: &str) -> BTreeMap<u64, Frame> {
        let cache = Cache::find(&self.path(cache), Access::Read).unwrap();
        let store = cache.store().unwrap();
        let frames = (0..cache.entries().len() as u64).map(|index| {
            let block = store.get(index).unwrap().unwrap();
            let context = FrameContext {
                plan: cache.plan(),
                shard: block.shard,
                index,
            };
            let frame = Frame::decode(&block.frame, &context).unwrap();
            (frame.sequence_id, frame)
        });
        frames.collect()
    }
}

/// Every file below a directory, by its name, but the lock.
pub fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if !path.ends_with("LOCK") {
                let name = path.strip_prefix(root).unwrap().to_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}
