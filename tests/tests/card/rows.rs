//! Compares what a teacher on the card says of every token with what it says on the CPU, for every estimator and type.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, ensure};
use distill_proto::{Frame, FrameContext};
use distill_tests::{fixtures, hashed_model};
use teacher_server::{
    cache::{Access, Cache},
    store::BlockStore,
};

use crate::{
    card::Card,
    harness::{teacher, text},
    programs::MANY_IDS,
};

/// Logits may be off by this much in f32: one step of f16, in which they are stored, where sums in another order lie at its edge.
const TOLERANCE: f32 = 4e-3;
/// Of the kept ids, at least this share is the same in f32: near-ties and draws at an edge may fall otherwise.
const SHARED: f64 = 0.99;
/// In bf16 the card may be off from f32 by so many times what the CPU is off by, and a little more where that is nearly nothing.
const MARGIN: f32 = 2.0;
const FLOOR: f32 = 0.02;

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
    same_rows(model.path(), &estimators)
}

#[test]
fn rows_over_several_blocks_of_ids_are_those_of_the_cpu() -> Result<()> {
    let model = hashed_model::with_tokenizer(MANY_IDS, false)?;
    same_rows(
        model.path(),
        &[&["--estimator", "top-k"], &["--estimator", "head+sampled"]],
    )
}

/// Refuses rows that the card says otherwise than the CPU, in f32 and in bf16.
fn same_rows(model: &Path, estimators: &[&[&str]]) -> Result<()> {
    for flags in estimators {
        let of = |device: &str, dtype: &str| {
            let flags = [*flags, &["--value-coding", "f16", "--dtype", dtype]].concat();
            let card = Card::new()?;
            let found = computed(&card, model, device, device, &flags)?;
            card.accepted_all()?;
            anyhow::Ok(found)
        };
        let exact = of("cpu", "f32")?;
        let (shared, worst) = compare(&of("cuda", "f32")?, &exact);
        ensure!(
            shared >= SHARED,
            "{flags:?}: both keep only {shared} of the ids"
        );
        ensure!(worst <= TOLERANCE, "{flags:?}: off by {worst}");

        let (there, card_off) = compare(&of("cuda", "bf16")?, &exact);
        let (here, cpu_off) = compare(&of("cpu", "bf16")?, &exact);
        let (missed, cpu_missed) = (1.0 - there as f32, 1.0 - here as f32);
        println!(
            "{flags:?}: off by {worst:.1e} in f32, {card_off:.2} in bf16 (the CPU {cpu_off:.2}), {missed:.3} of the ids others (the CPU {cpu_missed:.3})"
        );
        ensure!(
            card_off <= MARGIN * cpu_off + FLOOR && missed <= MARGIN * cpu_missed + FLOOR,
            "{flags:?}: in bf16 off by {card_off} and {missed}, on the CPU by {cpu_off} and {cpu_missed}"
        );
    }
    Ok(())
}
