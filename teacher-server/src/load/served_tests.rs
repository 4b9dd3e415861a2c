//! Tests of what is served of a cache: the corpus as it is now, in its order.

use std::{fs, path::PathBuf};

use distill_proto::{Fingerprint, Frame, FrameContext, v1};

use crate::{
    cache::{self, Verdict},
    config::{Config, Part},
    load::{
        Engine,
        bench::{Bench, corpus, files},
        look_ahead,
    },
    production::Order,
    report::Reporter,
};

/// Sequences as a stream from the start sends them, each checked at its place, and the digest that ends it.
fn served(engine: &Engine) -> (Vec<u64>, Option<Fingerprint>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut reader = engine.production.reader(Order::From(0)).unwrap();
        let (mut ids, mut sum) = (Vec::new(), blake3::Hasher::new());
        while reader.upcoming().is_some() {
            reader.ready().await.unwrap();
            let block = reader.take().await.unwrap().unwrap();
            assert_eq!(block.index, ids.len() as u64);
            let context = FrameContext {
                plan: engine.plan.fingerprint,
                shard: block.shard,
                index: block.index,
            };
            ids.push(Frame::decode(&block.frame, &context).unwrap().sequence_id);
            sum.update(&block.frame);
        }
        let digest = reader.digest().await.unwrap();
        assert_eq!(digest, Some(Fingerprint(*sum.finalize().as_bytes())));
        assert_eq!(reader.sequences_done(), engine.info.sequence_count);
        (ids, digest)
    })
}

#[test]
fn what_is_served_is_the_corpus_as_it_is_now() {
    let bench = Bench::new();
    let whole = corpus(15, "once");
    // Edited in part; one record went, the others changed places, and one is new.
    let mut edited = corpus(16, "twice");
    edited[..5].clone_from_slice(&whole[..5]);
    edited.remove(2);
    edited.swap(0, 9);
    let config = bench.config("cache", "2");
    let alone = Config {
        model: PathBuf::new(),
        corpus: Vec::new(),
        ..config.clone()
    };
    let load = |config: &Config| Engine::load(config, &Reporter::new(true), &|| false).unwrap();
    bench.write(&whole);
    bench.run(config.clone());
    let unedited = files(&bench.path("cache"));
    let first = served(&load(&config));
    assert_eq!(served(&load(&alone)), first);
    // Where nothing was edited a cache holds what it always did.
    let is_list = |name: &PathBuf| name.starts_with("members");
    assert!(!unedited.keys().any(is_list), "{:?}", unedited.keys());
    assert!(files(&bench.path("cache")) == unedited);

    for (lines, lists) in [(&edited, 1), (&edited, 1), (&whole, 2), (&edited, 3)] {
        bench.write(lines);
        bench.run(config.clone());
        let live = load(&Config {
            cache: None,
            ..config.clone()
        });
        let now = served(&load(&config));
        let expected: Vec<u64> = live.plan.entries().iter().map(|entry| entry.id).collect();
        assert_eq!(now.0, expected);
        // The cache says so without the corpus.
        let engine = load(&alone);
        assert_eq!(served(&engine), now);
        let told = |info: &v1::GetServerInfoResponse| {
            let counts = (info.sequence_count, info.token_count, info.target_count);
            (counts, info.corpus_fingerprint.clone(), info.seq_len)
        };
        assert_eq!(told(&engine.info), told(&live.info));
        for entry in engine.plan.entries() {
            let asked = engine.plan.position_of(entry.id);
            let expected = expected.iter().position(|&id| id == entry.id);
            assert_eq!(asked, expected.map(|position| position as u64));
        }
        let verdict = bench.verify("cache");
        assert!(verdict.complete && verdict.damage.is_empty(), "{verdict:?}");
        let files = files(&bench.path("cache"));
        assert_eq!(files.keys().filter(|&name| is_list(name)).count(), lists);
        // A merged cache serves the same.
        let (from, to) = (bench.path("cache"), bench.path("merged"));
        cache::merge(&to, &[from], &|| false).unwrap();
        let merged = Config {
            cache: Some(to.clone()),
            ..alone.clone()
        };
        assert_eq!(served(&load(&merged)), now);
        fs::remove_dir_all(to).unwrap();
    }
}

#[test]
fn a_capture_goes_on_after_a_record_that_it_lacked_has_gone() {
    let bench = Bench::new();
    let lines = corpus(12, "once");
    bench.write(&lines);
    let config = bench.config("cache", "3");
    bench.run(Config {
        part: Some(Part::These(vec![1])),
        ..config.clone()
    });
    let lacking = |verdict: &Verdict| (verdict.missing, verdict.complete);
    let begun = bench.verify("cache");
    assert!(begun.sealed == 1 && !begun.complete, "{begun:?}");
    bench.write(&lines[1..11]);
    let counted = look_ahead(&config, &bench.path("cache"), &Reporter::new(true)).unwrap();
    assert!((1..10).contains(&counted.entries.len()));
    bench.run(config.clone());
    assert_eq!(lacking(&bench.verify("cache")), (0, true));
    let engine = Engine::load(&config, &Reporter::new(true), &|| false).unwrap();
    assert_eq!(served(&engine).0.len(), 10);
    drop(engine);
    // What went is computed when it comes back.
    bench.write(&lines);
    bench.run(config.clone());
    assert_eq!(lacking(&bench.verify("cache")), (0, true));
    let engine = Engine::load(&config, &Reporter::new(true), &|| false).unwrap();
    assert_eq!(served(&engine).0.len(), 12);
}
