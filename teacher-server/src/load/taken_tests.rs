//! Tests of rows that are taken from frames that are there: no teacher is asked, and a capture ends in the same bytes.

use std::{
    fs,
    future::{pending, ready},
    sync::{Arc, Mutex},
};

use distill_program::Outcome;
use distill_proto::{Fingerprint, Frame, FrameContext, Rows, v1};
use serde_json::json;

use super::*;
use crate::{
    config::Config,
    inspect,
    load::{
        Engine,
        bench::{Bench, corpus, files},
    },
    precompute,
    production::{Forward, Order, Production, Tokens},
    report::Reporter,
    store::Spool,
    testing::{FakeTeacher, sequence},
};

#[test]
fn an_edit_of_the_students_side_alone_asks_no_teacher() {
    let bench = Bench::new();
    bench.write(&corpus(15, "once"));
    // One sequence a batch: rounding cannot depend on what else is in it.
    let config = bench.config("cache", "1");
    bench.run(config.clone());
    let before = bench.frames("cache");
    assert_eq!(before.len(), 15);

    bench.write(&corpus(15, "twice edited"));
    let engine = Engine::load(&config, &Reporter::new(true), &|| false).unwrap();
    assert!(engine.production.complete());
    assert_eq!(engine.production.sequences_computed(), 0);
    // Not even the weights were brought in.
    assert_eq!(engine.info.vram_mode, i32::from(v1::VramMode::Cached));
    // The old views stay and are not served; 12 of 15 records are pairs, 3 of these share nothing.
    let info = &engine.info;
    assert_eq!((info.sequence_count, info.format_version), (15, 3));
    assert_eq!((info.paired_sequences, info.paired_without_shared), (12, 3));
    drop(engine);
    assert!(bench.verify("cache").complete);
    let asked = inspect::Question {
        cache: bench.path("cache"),
        model: None,
        dtype: config.dtype,
        device: config.device,
        sample: 27,
    };
    let found = inspect::inspect(&asked, &|| false).unwrap();
    assert_eq!((found.pairs.sequences, found.pairs.without_shared), (24, 6));
    assert_eq!((found.sequences, found.not_in_corpus), (27, 12));
    assert!(found.pairs.shared_bytes > 0);
    let shown = found.pair.unwrap();
    assert!(
        shown.student.contains("once短0") && shown.shared[0].text == "0 cups",
        "{shown:?}"
    );

    let fresh = Config {
        cache: Some(bench.path("fresh")),
        ..config.clone()
    };
    bench.run(fresh);
    let (after, fresh) = (bench.frames("cache"), bench.frames("fresh"));
    let mut edited = 0;
    for (id, frame) in &fresh {
        let taken = &after[id];
        assert_eq!(
            taken.rows, frame.rows,
            "draws and rounding are those of the content"
        );
        assert_eq!(taken.view, frame.view);
        assert_eq!(
            (&taken.text, &taken.byte_offsets),
            (&frame.text, &frame.byte_offsets)
        );
        let record = taken.view.as_ref().map(|view| view.record.as_str());
        edited += usize::from(record.is_some_and(|record| record.contains("twice edited")));
        assert_eq!(before.contains_key(id), record.is_none());
    }
    assert_eq!(edited, 12);
    // A second start finds nothing left to do.
    let engine = Engine::load(&config, &Reporter::new(true), &|| false).unwrap();
    assert!(engine.production.complete());
    assert_eq!((engine.plan.count(), engine.plan.served_count()), (27, 15));
}

#[tokio::test]
async fn a_live_server_tells_of_pairs_and_sends_the_students_view() {
    let bench = Bench::new();
    bench.write(&corpus(10, "once"));
    let config = Config {
        cache: None,
        ..bench.config("none", "4")
    };
    let engine = Engine::load(&config, &Reporter::new(true), &|| false).unwrap();
    let info = &engine.info;
    assert_eq!((info.paired_sequences, info.paired_without_shared), (8, 2));
    assert_eq!((info.format_version, info.sequence_count), (3, 10));
    let mut reader = engine.production.reader(Order::From(0)).unwrap();
    let mut views = 0;
    while let Some(index) = reader.upcoming() {
        reader.ready().await.unwrap();
        let block = reader.take().await.unwrap().unwrap();
        let context = FrameContext {
            plan: engine.plan.fingerprint,
            shard: 0,
            index,
        };
        let frame = Frame::decode(&block.frame, &context).unwrap();
        let sequence = engine.plan.sequence(index as usize).unwrap();
        assert_eq!(frame.view, sequence.view);
        views += usize::from(frame.view.is_some());
    }
    assert_eq!(views, 8);
}

#[test]
fn a_corpus_without_pairs_is_told_as_ever() {
    let bench = Bench::new();
    bench.write(&[json!({"prompt": "a", "completion": "b"})]);
    let config = bench.config("cache", "1");
    bench.run(config.clone());
    let engine = Engine::load(&config, &Reporter::new(true), &|| false).unwrap();
    assert_eq!(
        (engine.info.format_version, engine.info.paired_sequences),
        (2, 0)
    );
}

#[test]
fn an_interrupted_capture_that_takes_rows_ends_in_the_same_bytes() {
    let bench = Bench::new();
    bench.write(&corpus(11, "once"));
    bench.run(bench.config("whole", "3"));
    bench.copy("whole", "torn");
    // Edited, and grown: batches have both kinds of sequences in them.
    let mut lines = corpus(19, "twice");
    lines.rotate_right(4);
    bench.write(&lines);
    bench.run(bench.config("whole", "3"));
    let whole = files(&bench.path("whole"));

    let config = bench.config("torn", "3");
    for stops in [0, 3, 5] {
        let asked = Mutex::new(0);
        let stopped = || {
            let mut asked = asked.lock().unwrap();
            *asked += 1;
            *asked > stops
        };
        let loaded = Engine::load(&config, &Reporter::new(true), &stopped);
        assert!(loaded.is_err_and(|error| matches!(error, Error::ShuttingDown)));
        // A crash cuts the last frame.
        let partial = bench.path("torn/partial");
        for file in fs::read_dir(&partial).into_iter().flatten() {
            let path = file.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - bytes.len().min(7)]).unwrap();
        }
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for _ in 0..3 {
        let outcome = runtime.block_on(precompute::run(config.clone(), ready(())));
        assert_eq!(outcome.unwrap(), Outcome::Interrupted);
    }
    bench.run(config);
    let torn = files(&bench.path("torn"));
    assert!(whole.keys().eq(torn.keys()));
    for (name, bytes) in &whole {
        assert!(torn[name] == *bytes, "{}", name.display());
    }
    assert!(
        whole
            .keys()
            .filter(|name| name.starts_with("segments"))
            .count()
            == 2
    );
}

#[test]
fn a_damaged_frame_that_took_its_rows_takes_them_again() {
    let bench = Bench::new();
    bench.write(&corpus(10, "once"));
    let config = bench.config("cache", "2");
    bench.run(config.clone());
    let old_shards = bench.verify("cache").shards;
    bench.write(&corpus(10, "twice"));
    bench.run(config.clone());
    let whole = files(&bench.path("cache"));
    let last = bench.verify("cache").shards - 1;
    assert!(last >= old_shards);
    let shard = bench.path(&format!("cache/shards/{last:07}"));
    let mut bytes = fs::read(&shard).unwrap();
    let end = bytes.len() - 20;
    bytes[end] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let verdict = bench.verify("cache");
    assert_eq!(verdict.damaged_shards().len(), 1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let repaired = runtime.block_on(inspect::repair(config, &verdict, pending()));
    assert_eq!(repaired.unwrap(), Outcome::Complete);
    let mended = files(&bench.path("cache"));
    for (name, bytes) in &whole {
        assert!(mended[name] == *bytes, "{}", name.display());
    }
}

#[test]
fn a_dry_run_does_not_count_what_takes_its_rows() {
    let bench = Bench::new();
    bench.write(&corpus(10, "once"));
    let config = bench.config("cache", "2");
    bench.run(config.clone());
    bench.write(&corpus(13, "twice"));
    let path = bench.path("cache");
    let counted = || {
        let outlook = crate::load::look_ahead(&config, &path, &Reporter::new(true)).unwrap();
        outlook.entries.len()
    };
    assert_eq!(counted(), 3);
    let engine = Engine::load(&config, &Reporter::new(true), &|| false).unwrap();
    assert_eq!(engine.production.missing(|_| true).len(), 3);
    drop(engine);
    assert_eq!(counted(), 3);
}

/// A teacher that keeps the ids of every batch.
#[derive(Clone, Default)]
struct Listening(Arc<Mutex<Vec<Vec<u64>>>>);

impl Forward for Listening {
    fn rows(&self, batch: &[Tokens<'_>]) -> crate::Result<Vec<Rows>> {
        let ids = batch.iter().map(|tokens| tokens.id).collect();
        self.0.lock().unwrap().push(ids);
        FakeTeacher::default().rows(batch)
    }
}

/// Four known sequences, then six of which the first, fourth and fifth are of the same content as three of these.
fn half_known() -> Plan {
    let known: Vec<_> = (0..4).map(|id| sequence(100 + id, 4)).collect();
    let mut new: Vec<_> = (0..6).map(|id| sequence(200 + id, 4)).collect();
    for (at, of) in [(0, 1), (3, 0), (4, 3)] {
        new[at] = distill_text::Sequence {
            id: new[at].id,
            ..known[of].clone()
        };
    }
    let mut entries: Vec<Entry> = known.iter().chain(&new).map(Entry::of).collect();
    let (before, after) = entries.split_at_mut(4);
    find_sources(before, |index| index != 3, after);
    let sources: Vec<_> = after.iter().map(|entry| entry.source).collect();
    // The last one is not there.
    assert_eq!(sources, [Some(1), None, None, Some(0), None, None]);
    let sequences = known.into_iter().chain(new).map(Some).collect();
    let plan = Fingerprint::of(b"plan");
    Plan::of_parts(plan, plan, entries, sequences, &[(4, 4), (3, 6)]).unwrap()
}

#[tokio::test]
async fn a_batch_is_computed_without_the_sequences_that_take_their_rows_unless_these_were_lost() {
    for lost in [false, true] {
        let plan = Arc::new(half_known());
        let store = Spool::create(None, plan.count()).unwrap();
        for index in 0..3 {
            let tokens = Tokens::of(plan.sequence(index).unwrap());
            let rows = FakeTeacher::default().rows(&[tokens]).unwrap().remove(0);
            let frame = frames::encode(&plan, index as u64, 0, rows).unwrap();
            // A source that is lost after the plan was settled.
            if !(lost && index == 1) {
                store.put(index as u64, &frame).unwrap();
            }
        }
        let taken = take_rows(&plan, &store, |_| true, &|| false).unwrap();
        assert_eq!(taken, if lost { 1 } else { 2 });
        let teacher = Listening::default();
        let batches = teacher.0.clone();
        let production = Production::start(
            Box::new(teacher),
            plan.clone(),
            Box::new(store),
            1,
            Progress::hidden(),
        )
        .unwrap();
        let mut reader = production.reader(Order::List((4..10).collect())).unwrap();
        while reader.upcoming().is_some() {
            reader.ready().await.unwrap();
            reader.skip();
        }
        let first = if lost {
            vec![200, 201, 202]
        } else {
            vec![201, 202]
        };
        assert_eq!(*batches.lock().unwrap(), [first, vec![204, 205]]);
    }
}

#[test]
fn rows_are_taken_from_a_sequence_of_the_same_text_only() {
    let known = sequence(100, 4);
    let same_name = distill_text::Sequence {
        id: 200,
        text: "yyyy".to_owned(),
        ..known.clone()
    };
    let mut entries: Vec<Entry> = [&known, &same_name].map(Entry::of).to_vec();
    let (before, after) = entries.split_at_mut(1);
    find_sources(before, |_| true, after);
    assert_eq!(after[0].source, Some(0));
    let sequences = vec![Some(known), Some(same_name)];
    let digest = Fingerprint::of(b"plan");
    let plan = Plan::of_parts(digest, digest, entries, sequences, &[(1, 1), (1, 1)]).unwrap();
    let store = Spool::create(None, 2).unwrap();
    let tokens = Tokens::of(plan.sequence(0).unwrap());
    let rows = FakeTeacher::default().rows(&[tokens]).unwrap().remove(0);
    store
        .put(0, &frames::encode(&plan, 0, 0, rows).unwrap())
        .unwrap();
    assert_eq!(take_rows(&plan, &store, |_| true, &|| false).unwrap(), 0);
    assert!(!store.contains(1));
}
