//! Compares what a teacher on the card says of every token with what it says on the CPU, for every estimator and type.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, ensure};
use distill_proto::{Frame, FrameContext};
use distill_tests::fixtures;
use teacher_server::{
    cache::{Access, Cache},
    store::BlockStore,
};

use crate::{
    card::Card,
    harness::{teacher, text},
};

/// Logits may be off by this much in f32: one step of f16, in which they are stored, where sums in another order lie at its edge.
const F32_TOLERANCE: f32 = 4e-3;
/// And in bf16, whose activations have 8 bits.
const BF16_TOLERANCE: f32 = 0.15;
/// Of the kept ids, at least this share is the same: near-ties and draws at an edge may fall otherwise.
const F32_SHARED: f64 = 0.99;
const BF16_SHARED: f64 = 0.80;

/// Every frame of a cache.
fn frames(path: &Path) -> Result<Vec<Frame>> {
    let cache = Cache::open(path, Access::Read)?.expect("a cache");
    let store = cache.store()?;
    let frame = |index| {
        let block = store.get(index)?.expect("a whole cache");
        let context = FrameContext {
            plan: cache.plan(),
            shard: block.shard,
            index,
        };
        Ok(Frame::decode(&block.frame, &context)?)
    };
    (0..cache.entries().len() as u64).map(frame).collect()
}

/// Computes the corpus on `device` and reads what was said.
fn computed(
    card: &Card,
    model: &Path,
    name: &str,
    device: &str,
    flags: &[&str],
) -> Result<Vec<Frame>> {
    let work = tempfile::tempdir()?;
    let out = work.path().join(name);
    let corpus = fixtures::path("corpus/documents.txt");
    let mut command = teacher(&["precompute", "--seq-len", "48", "--device", device]);
    command
        .arg("--model")
        .arg(model)
        .arg("--corpus")
        .arg(&corpus);
    command.arg("--out").arg(&out).args(flags);
    let output = card.run(command).output()?;
    ensure!(
        output.status.success(),
        "{device} {flags:?}: {}",
        text(&output)
    );
    frames(&out)
}

/// Ids and logits of a row, without what only fills it up.
fn row(frame: &Frame, row: usize) -> BTreeMap<u32, f32> {
    let rows = &frame.rows;
    let kept = |at: &usize| {
        let count = rows.counts.get(*at);
        !count.is_some_and(|count| rows.estimator.is_padding(*count))
    };
    let entries = (row * rows.k..(row + 1) * rows.k).filter(kept);
    entries.map(|at| (rows.ids[at], rows.logits[at])).collect()
}

/// The share of ids that both rows keep, and the largest difference of anything both say.
fn compare(card: &[Frame], cpu: &[Frame]) -> (f64, f32) {
    let (mut shared, mut kept, mut worst) = (0usize, 0usize, 0f32);
    assert_eq!(card.len(), cpu.len());
    for (card, cpu) in card.iter().zip(cpu) {
        assert_eq!(card.rows.rows, cpu.rows.rows);
        for at in 0..cpu.rows.rows {
            let (there, here) = (row(card, at), row(cpu, at));
            kept += here.len();
            for (id, logit) in &here {
                if let Some(other) = there.get(id) {
                    shared += 1;
                    worst = worst.max((logit - other).abs());
                }
            }
            let statistics = |rows: &distill_proto::Rows| {
                let mut all = vec![rows.max[at], rows.mean[at], rows.std[at]];
                all.extend(rows.logsumexp.iter().map(|by_row| by_row[at]));
                all
            };
            let pairs = statistics(&card.rows)
                .into_iter()
                .zip(statistics(&cpu.rows));
            worst = pairs.fold(worst, |worst, (a, b)| worst.max((a - b).abs()));
        }
    }
    (shared as f64 / kept.max(1) as f64, worst)
}

#[test]
fn rows_of_every_estimator_are_those_of_the_cpu() -> Result<()> {
    let model = fixtures::model_directory("qwen2-untied", "tokenizer")?;
    let estimators: [&[&str]; 4] = [
        &["--estimator", "top-k", "--top-k", "16"],
        &["--estimator", "sampled", "--draws", "32"],
        &["--estimator", "head+sampled"],
        &["--estimator", "head+sampled", "--state", "sketch:24"],
    ];
    for (dtype, tolerance, wanted) in [
        ("f32", F32_TOLERANCE, F32_SHARED),
        ("bf16", BF16_TOLERANCE, BF16_SHARED),
    ] {
        for flags in estimators {
            let card = Card::new()?;
            let flags = [flags, &["--value-coding", "f16", "--dtype", dtype]].concat();
            let there = computed(&card, model.path(), "card", "cuda", &flags)?;
            card.accepted_all()?;
            let here = computed(&card, model.path(), "cpu", "cpu", &flags)?;
            let (shared, worst) = compare(&there, &here);
            println!("{flags:?}: {shared:.4} of the ids, worst difference {worst:.2e}");
            ensure!(
                shared >= wanted,
                "{flags:?}: only {shared} of the ids are kept by both"
            );
            ensure!(worst <= tolerance, "{flags:?}: off by {worst}");
        }
    }
    Ok(())
}
