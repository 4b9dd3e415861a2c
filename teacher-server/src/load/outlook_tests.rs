//! Provides the comparison of what a dry run says with what a run finds to compute.

use std::{fs, future::pending, path::PathBuf};

use super::*;
use distill_program::Outcome;

use crate::{
    config::Part,
    load::Engine,
    precompute,
    testing::{serve, write_model},
};

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path());
        let bench = Self { dir };
        bench.write("corpus.txt", &"Some text to be taught. ".repeat(20));
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn config(&self, flags: &[&str]) -> Config {
        self.config_of(self.dir.path(), flags)
    }

    fn config_of(&self, model: &Path, flags: &[&str]) -> Config {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let (corpus, cache) = (self.path("corpus.txt"), self.path("cache"));
        let (model, corpus, cache) = (text(model), text(&corpus), text(&cache));
        let given = [
            "--model",
            &model,
            "--corpus",
            &corpus,
            "--cache",
            &cache,
            "--device",
            "cpu",
            "--seq-len",
            "16",
            "--batch-size",
            "2",
            "--shard-bytes",
            "3000",
        ];
        serve(&[&given[..], flags].concat()).unwrap()
    }

    fn outlook(&self, config: &Config) -> Result<Outlook> {
        look_ahead(config, &self.path("cache"), &Reporter::new(true))
    }

    /// What the dry run says, after checking it against the run.
    fn compared(&self, config: &Config, case: &str) -> Vec<Entry> {
        let before = files(&self.path("cache"));
        let found = self.outlook(config).unwrap();
        assert_eq!(
            files(&self.path("cache")),
            before,
            "{case}: wrote something"
        );
        let engine = Engine::load(config, &Reporter::new(true), &|| false).unwrap();
        let missing = engine.production.missing(|shard| config.is_mine(shard));
        let entries = engine.plan.entries();
        let run: Vec<Entry> = missing
            .iter()
            .map(|&index| entries[index as usize])
            .collect();
        assert_eq!(found.entries, run, "{case}");
        assert_eq!(found.state_rank, engine.info.state_rank, "{case}");
        found.entries
    }

    fn run(&self, config: Config) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let outcome = runtime.block_on(precompute::run(config, pending()));
        assert_eq!(outcome.unwrap(), Outcome::Complete);
    }
}

/// Every file of a cache with its length.
fn files(cache: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut open = vec![cache.to_owned()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        for entry in entries.map(|entry| entry.unwrap()) {
            let metadata = entry.metadata().unwrap();
            match metadata.is_dir() {
                true => open.push(entry.path()),
                false => found.push((entry.path(), metadata.len())),
            }
        }
    }
    found.sort();
    found
}

fn half(config: Config, index: u32) -> Config {
    Config {
        part: Some(Part::Every { index, of: 2 }),
        ..config
    }
}

#[test]
fn a_dry_run_counts_what_the_run_computes() {
    let bench = Bench::new();
    let plain = bench.compared(&bench.config(&["--state", "exact"]), "fresh");
    assert!(plain.len() > 20, "{}", plain.len());
    fs::remove_dir_all(bench.path("cache")).unwrap();

    // Another tokenizer, for which some words are one token.
    fs::create_dir(bench.path("other")).unwrap();
    let tokenizer = fs::read_to_string(bench.path("tokenizer.json")).unwrap();
    bench.write(
        "other/tokenizer.json",
        &tokenizer
            .replace("<|start|>", "text to be")
            .replace("\"special\":true", "\"special\":false"),
    );
    bench.write("other/tokenizer_config.json", r#"{"eos_token": "<|end|>"}"#);
    let other = bench.path("other");
    let flags = ["--tokenizer", other.to_str().unwrap()];
    let with = bench.compared(&bench.config(&flags), "--tokenizer");
    assert!(with.len() < plain.len());
    fs::remove_dir_all(bench.path("cache")).unwrap();

    let config = bench.config(&[]);
    let first = bench.compared(&half(config.clone(), 0), "the first half, fresh");
    assert!(!first.is_empty() && first.len() < plain.len());
    bench.run(half(config.clone(), 0));
    assert!(bench.compared(&half(config.clone(), 0), "done").is_empty());
    let rest = bench.compared(&config, "half done");
    assert_eq!(rest.len() + first.len(), plain.len());
    bench.compared(&half(config.clone(), 1), "the other half");

    let grown = "Some text to be taught. ".repeat(20) + &"And another story. ".repeat(9);
    bench.write("corpus.txt", &grown);
    assert!(bench.compared(&config, "grown").len() > rest.len());
    bench.compared(&half(config, 1), "grown, the other half");
}

#[test]
fn a_dry_run_counts_a_damaged_shard_as_the_run_does() {
    let bench = Bench::new();
    let config = bench.config(&[]);
    bench.run(config.clone());
    assert!(bench.compared(&config, "whole").is_empty());
    let shard = bench.path("cache/shards/0000000");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[20] ^= 1;
    fs::write(shard, bytes).unwrap();
    assert!(!bench.compared(&config, "damaged").is_empty());
}

#[test]
fn a_dry_run_refuses_what_the_run_refuses() {
    let bench = Bench::new();
    bench.run(half(bench.config(&[]), 0));
    let refused = |config: &Config| {
        let outcome = bench.outlook(config);
        outcome.err().map(|error| error.to_string())
    };
    let changed = refused(&bench.config(&["--top-k", "3"])).unwrap();
    assert!(changed.contains("top_k: 8 -> 3"), "{changed}");
    let as_captured = bench.config(&[]);
    assert_eq!(refused(&as_captured), None);
    let too_long = Config {
        seq_len: 60_000,
        ..as_captured
    };
    let too_long = refused(&too_long).unwrap();
    assert!(too_long.contains("--seq-len"), "{too_long}");
}

/// The first start ended after it had made the cache and before its first frame.
#[test]
fn a_cache_begun_with_other_settings_and_never_filled_is_begun_anew() {
    let bench = Bench::new();
    let begin = |flags: &[&str]| {
        let engine = Engine::load(&bench.config(flags), &Reporter::new(true), &|| false).unwrap();
        engine.production.close();
        engine.production.join();
        engine.info
    };
    let sketch = ["--state", "sketch:2", "--top-k", "3"];
    let first = begin(&sketch);
    assert_eq!(first.top_k, 3);
    // What a crash leaves of the first frame is none.
    fs::create_dir_all(bench.path("cache/partial")).unwrap();
    bench.write("cache/partial/0000000", "DSTF torn");
    // What is not given is as it was begun.
    let other = ["--state", "none", "--top-k", "8"];
    let fresh = bench.compared(&bench.config(&other), "begun otherwise");
    assert!(fresh.len() > 20);
    let left = files(&bench.path("cache"));
    let is_sketch =
        |path: &Path| path.ends_with("projection") || path.starts_with(bench.path("cache/basis"));
    assert!(!left.iter().any(|(path, _)| is_sketch(path)), "{left:?}");
    bench.run(bench.config(&other));
    let whole = files(&bench.path("cache"));
    fs::rename(bench.path("cache"), bench.path("anew")).unwrap();
    bench.run(bench.config(&other));
    for (path, _) in whole {
        let name = path.strip_prefix(bench.path("cache")).unwrap();
        assert!(
            fs::read(bench.path("anew").join(name)).unwrap() == fs::read(&path).unwrap(),
            "{name:?}"
        );
    }
    // With frames it is refused, whatever way they are kept, and nothing is removed.
    let refused = |place: &str| {
        let before = files(&bench.path("cache"));
        let config = bench.config(&sketch);
        let error = Engine::load(&config, &Reporter::new(true), &|| false).err();
        let error = error.unwrap().to_string();
        assert!(error.contains("captured otherwise"), "{place}: {error}");
        assert!(error.contains("top_k: 8 -> 3"), "{place}: {error}");
        assert_eq!(files(&bench.path("cache")), before, "{place}");
    };
    refused("sealed");
    let shards = bench.path("cache/shards");
    fs::create_dir_all(bench.path("cache/damaged")).unwrap();
    for (index, shard) in fs::read_dir(&shards).unwrap().enumerate() {
        let aside = bench.path(&format!("cache/damaged/{index}"));
        fs::rename(shard.unwrap().path(), aside).unwrap();
    }
    refused("set aside");
}

#[test]
fn a_dry_run_knows_gguf_files() {
    let bench = Bench::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/gguf/qwen2");
    let config = bench.config_of(&fixtures.join("quantised.gguf"), &[]);
    assert!(!bench.compared(&config, "GGUF").is_empty());
    let broken = bench.path("x.gguf");
    fs::write(&broken, b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0").unwrap();
    let error = bench.outlook(&bench.config_of(&broken, &[])).err().unwrap();
    let message = error.to_string();
    assert!(
        message.contains("x.gguf: general.architecture"),
        "{message}"
    );
}
