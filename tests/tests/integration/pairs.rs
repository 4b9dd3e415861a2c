//! Runs pairs, records whose sides differ, through both real programs: live and cached, resumed, swapped, with another tokenizer.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{D, Device, Tensor};
use candle_nn::ops::log_softmax;
use distill_model::{Base, Decoder, LoadOptions, LoraConfig, ModelConfig, Weights};
use distill_tests::fixtures;
use distill_text::TokenizerFiles;
use serde_json::{Value, json};

use crate::{
    harness::{Listen, Teacher, teacher_succeeds, text, trainer_refuses, trainer_succeeds},
    pipeline::{Setup, another_vocabulary, metrics, number, path_text},
};

/// Ids that the fixtures' tokenizer knows.
const VOCAB_SIZE: usize = 384;

/// A teacher that reads a chain where the student reads a question, and both end alike.
pub fn pair(number: usize) -> Value {
    json!({
        "teacher": {"prompt": "say hello: ", "completion": format!("hello {number} and so hello there the end {number}")},
        "student": {"prompt": format!("hello {number}? "), "completion": format!("so hello there the end {number}")},
        "links": [{"teacher": "prompt[4:9]", "student": "prompt[0:5]"}],
    })
}

/// A setup whose corpus is these records.
pub fn setup_with(records: &[Value]) -> Result<Setup> {
    let mut setup = Setup::new()?;
    setup.corpus = setup.work.path().join("pairs.jsonl");
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    std::fs::write(&setup.corpus, lines.join("\n") + "\n")?;
    Ok(setup)
}

pub fn setup() -> Result<Setup> {
    setup_with(&(0..6).map(pair).collect::<Vec<_>>())
}

fn precompute(setup: &Setup, cache: &str, flags: &[&str]) -> Result<(PathBuf, String)> {
    let cache = setup.work.path().join(cache);
    let base = [
        "precompute",
        "--model",
        path_text(setup.teacher.path()),
        "--corpus",
        path_text(&setup.corpus),
    ];
    let out = ["--seq-len", "64", "--out", path_text(&cache)];
    let output = teacher_succeeds(&[&base, out.as_slice(), flags].concat());
    Ok((cache.clone(), text(&output)))
}

fn serve_cache(setup: &Setup, cache: &Path) -> Teacher {
    Teacher::serve(
        setup.work.path(),
        &Listen::Loopback,
        &["--cache", path_text(cache)],
    )
}

/// Makes a finished run one that was stopped after its checkpoint before the last.
pub fn forget_the_end(run: &Path) -> Result<()> {
    let checkpoints = std::fs::read_dir(run.join("checkpoints"))?;
    let last = checkpoints
        .filter_map(|entry| Some(entry.ok()?.path()))
        .max();
    std::fs::remove_dir_all(last.context("a checkpoint")?)?;
    Ok(std::fs::remove_file(run.join("summary.json"))?)
}

/// What one side's tokens are: ids, where each begins, and the first that the completion has a byte of.
struct Read {
    ids: Vec<u32>,
    begin: Vec<usize>,
    first: usize,
}

fn read(tokenizer: &TokenizerFiles, side: &Value) -> Result<(Read, String)> {
    let field = |name: &str| side[name].as_str().context("a text");
    let (prompt, completion) = (field("prompt")?, field("completion")?);
    let whole = format!("{prompt}{completion}");
    let mut encoded = tokenizer.encode(&whole)?;
    encoded.ids.extend(tokenizer.eos_id());
    let end = whole.len() as u32;
    encoded.ranges.push((end, end));
    let first = encoded
        .ranges
        .iter()
        .position(|range| range.1 as usize > prompt.len());
    let read = Read {
        begin: encoded
            .ranges
            .iter()
            .map(|range| range.0 as usize)
            .collect(),
        ids: encoded.ids,
        first: first.context("a completion")?,
    };
    Ok((read, whole))
}

/// Log-probabilities of every token after the first, `[T - 1, V]`.
fn log_probabilities(decoder: &Decoder, ids: &[u32]) -> Result<Tensor> {
    let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
    let logits = fixtures::dense_logits(decoder, &ids)?.squeeze(0)?;
    let logits = logits
        .narrow(0, 0, logits.dim(0)? - 1)?
        .narrow(1, 0, VOCAB_SIZE)?;
    Ok(log_softmax(&logits, D::Minus1)?)
}

/// CE on the student's completion, and KL where a token of both begins at the same byte from the end, in what both end with.
fn reference(setup: &Setup, record: &Value) -> Result<(f64, f64)> {
    let tokenizer = TokenizerFiles::open(setup.teacher.path())?;
    let (ours, our_text) = read(&tokenizer, &record["teacher"])?;
    let (theirs, their_text) = read(&tokenizer, &record["student"])?;
    let completion = record["student"]["completion"].as_str().context("a text")?;
    assert!(
        our_text.ends_with(completion),
        "the student's completion is shared whole"
    );
    let student = Decoder::load(
        &ModelConfig::load(setup.student.path())?,
        &Weights::open(setup.student.path())?,
        &LoadOptions {
            base: Base::QuantizeNf4,
            lora: Some(LoraConfig {
                seed: 7,
                ..LoraConfig::default()
            }),
            ..LoadOptions::reference()
        },
    )?;
    let teacher = fixtures::decoder(setup.teacher.path(), candle_core::DType::F32)?;
    let p = log_probabilities(&teacher, &ours.ids)?;
    let q = log_probabilities(&student, &theirs.ids)?;
    let (mut ce, mut labels, mut kl, mut pairs) = (0.0, 0.0, 0.0, 0.0);
    for t in theirs.first..theirs.ids.len() {
        let row = q.get(t - 1)?;
        let log_q = row.get(theirs.ids[t] as usize)?.to_scalar::<f32>()?;
        (ce, labels) = (ce - f64::from(log_q), labels + 1.0);
        let from_end = their_text.len() - theirs.begin[t];
        let same =
            (ours.first..ours.ids.len()).find(|&s| our_text.len() - ours.begin[s] == from_end);
        // A token that begins before the completion has a byte that is not shared.
        let inside = from_end <= completion.len();
        if let Some(s) = same.filter(|_| inside) {
            let log_p = p.get(s - 1)?;
            let term = (log_p.exp()? * (&log_p - &row)?)?
                .sum_all()?
                .to_scalar::<f32>()?;
            (kl, pairs) = (kl + f64::from(term), pairs + 1.0);
        }
    }
    assert!(pairs >= 3.0, "{pairs}");
    Ok((ce / labels, kl / pairs))
}

#[test]
fn the_first_step_of_a_pair_equals_a_dense_reference() -> Result<()> {
    let setup = setup_with(&[pair(1)])?;
    let all = VOCAB_SIZE.to_string();
    let capture = [
        "--estimator",
        "top-k",
        "--top-k",
        &all,
        "--value-coding",
        "f16",
    ];
    let teacher = setup.serve(&Listen::Loopback, &capture);
    let run = setup.train(&teacher, "run", &["--steps", "1"]);
    let (ce, kl) = reference(&setup, &pair(1))?;
    let first = &metrics(&run)?[0];
    for (key, expected) in [("ce", ce), ("kl", kl), ("loss", ce + kl)] {
        let found = number(first, key)?;
        assert!(
            (found - expected).abs() < 1e-3 * expected.max(1.0),
            "{key}: {found}, not {expected}"
        );
    }
    Ok(())
}

#[test]
fn a_pair_is_the_same_from_a_cache_swapped_and_resumed() -> Result<()> {
    is_the_same_from_a_cache_swapped_and_resumed(&[])
}

#[test]
fn a_control_is_the_same_from_a_cache_swapped_and_resumed() -> Result<()> {
    is_the_same_from_a_cache_swapped_and_resumed(&["--shuffle-teacher", "rows"])
}

fn is_the_same_from_a_cache_swapped_and_resumed(of: &[&str]) -> Result<()> {
    let setup = setup()?;
    let flags = ["--steps", "6", "--ot-weight", "0.5", "--save-steps", "2"];
    let flags = [&flags[..], of].concat();
    let live = {
        let teacher = setup.serve(&Listen::Loopback, &[]);
        setup.train(&teacher, "live", &flags)
    };
    let adapter = |run: &Path| std::fs::read(run.join("adapter/adapter_model.safetensors"));
    let expected = adapter(&live)?;
    let lines = metrics(&live)?;
    assert!(
        lines
            .iter()
            .all(|line| line["kl"].as_f64() > Some(0.0) && line["ot"].as_f64() != Some(0.0))
    );

    let (cache, _) = precompute(&setup, "cache", &[])?;
    let teacher = serve_cache(&setup, &cache);
    let cached = setup.train(&teacher, "cached", &flags);
    assert!(adapter(&cached)? == expected, "from a cache");

    let half = setup.work.path().join("half");
    trainer_succeeds(&setup.train_args(&teacher, &half, &flags));
    forget_the_end(&half)?;
    std::fs::remove_dir_all(half.join("adapter"))?;
    trainer_succeeds(&["train", "--resume", path_text(&half)]);
    assert!(adapter(&half)? == expected, "resumed");
    drop(teacher);

    let teacher = setup.serve(&Listen::Loopback, &["--vram-mode", "swap", "--window", "2"]);
    let swapped = setup.train(&teacher, "swapped", &flags);
    assert!(adapter(&swapped)? == expected, "swapped");
    Ok(())
}

#[test]
fn a_student_with_another_tokenizer_reads_its_own_side() -> Result<()> {
    let mut setup = setup()?;
    setup.student = another_vocabulary()?;
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let run = setup.train(&teacher, "other", &["--steps", "6", "--ot-weight", "0.5"]);
    let lines = metrics(&run)?;
    assert!(lines.iter().all(|line| line["kl"].as_f64() > Some(0.0)));
    Ok(())
}

#[test]
fn another_text_s_teacher_is_another_run() -> Result<()> {
    let setup = setup()?;
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let own = setup.train(&teacher, "own", &["--steps", "5"]);
    let other = setup.train(
        &teacher,
        "other",
        &["--steps", "5", "--shuffle-teacher", "rows"],
    );
    let sum =
        |run: &Path| -> Result<f64> { metrics(run)?.iter().map(|line| number(line, "kl")).sum() };
    assert!(sum(&own)? != sum(&other)?);
    Ok(())
}

#[test]
fn pairs_that_share_nothing_need_transport() -> Result<()> {
    let apart = |number: usize| {
        json!({
            "teacher": {"prompt": "say hello: ", "completion": format!("hello {number}a")},
            "student": {"prompt": "there? ", "completion": format!("the end {number}b")},
        })
    };
    let setup = setup_with(&(0..4).map(apart).collect::<Vec<_>>())?;
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let out = setup.work.path().join("refused");
    let said = trainer_refuses(&setup.train_args(&teacher, &out, &["--steps", "2"]));
    assert!(
        said.contains("none of the corpus' 4 pairs shares a byte"),
        "{said}"
    );
    assert!(!out.join("config.toml").exists());
    let joined = ["--steps", "2", "--ot-weight", "1"];
    let run = setup.work.path().join("joined");
    trainer_succeeds(&setup.train_args(&teacher, &run, &joined));
    let lines = metrics(&run)?;
    assert!(lines.iter().all(|line| line["kl"].as_f64() == Some(0.0)));
    assert!(
        lines
            .iter()
            .all(|line| number(line, "ot").is_ok_and(|ot| ot != 0.0))
    );
    // Nothing is known of what lies where in two texts.
    let first_ot = |name: &str, position: &str| -> Result<f64> {
        let run = setup.train(
            &teacher,
            name,
            &[&joined[..], &["--align-position", position]].concat(),
        );
        number(&metrics(&run)?[0], "ot")
    };
    let unset = number(&lines[0], "ot")?;
    assert!(unset == first_ot("free", "0")? && unset != first_ot("held", "1000")?);
    drop(teacher);

    let mixed: Vec<Value> = (0..3).map(apart).chain((0..3).map(pair)).collect();
    let setup = setup_with(&mixed)?;
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let out = setup.work.path().join("mixed");
    let said = text(&trainer_succeeds(&setup.train_args(
        &teacher,
        &out,
        &["--steps", "2"],
    )));
    assert!(said.contains("KL is taken in 3 of 6 sequences"), "{said}");
    Ok(())
}

/// A teacher's long chain and a student's few tokens, and the other way around.
#[test]
fn sides_of_unlike_length_are_one_step() -> Result<()> {
    let long = "hello there and so on ".repeat(700);
    let sides = |teacher: &str, student: &str| {
        json!({
            "teacher": {"prompt": "say ", "completion": format!("{teacher}end")},
            "student": {"prompt": "so ", "completion": format!("{student}end")},
        })
    };
    let setup = setup_with(&[sides(&long, ""), sides("", &long)])?;
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let out = setup.work.path().join("long");
    let flags = [
        "--steps",
        "2",
        "--ot-weight",
        "0.5",
        "--student-seq-len",
        "40",
    ];
    let said = text(&trainer_succeeds(&setup.train_args(&teacher, &out, &flags)));
    assert!(
        said.contains("has more than 40 tokens: the end is cut off"),
        "{said}"
    );
    assert_eq!(metrics(&out)?.len(), 2);
    Ok(())
}

/// The rows come from the cache: a teacher that is gone is not missed.
#[test]
fn an_edited_view_takes_the_rows_that_are_there() -> Result<()> {
    let mut setup = setup()?;
    let (cache, _) = precompute(&setup, "cache", &[])?;
    let edited: Vec<String> = (0..6)
        .map(|number| {
            let mut pair = pair(number);
            pair["student"]["prompt"] = format!("so {number}? ").into();
            pair.to_string()
        })
        .collect();
    setup.corpus = setup.work.path().join("edited.jsonl");
    std::fs::write(&setup.corpus, edited.join("\n") + "\n")?;
    let (_, said) = precompute(&setup, "cache", &[])?;
    assert!(
        said.contains("6 sequences took their rows from frames that are there"),
        "{said}"
    );
    // What was there stays and is not served, which is said.
    let kept = "6 are not in this corpus: they stay in the cache and are not served";
    assert!(said.contains(kept), "{said}");
    let said = text(&teacher_succeeds(&["inspect", path_text(&cache)]));
    assert!(
        said.contains("6 of these sequences are not in the corpus any more"),
        "{said}"
    );
    let teacher = serve_cache(&setup, &cache);
    let run = setup.train(&teacher, "edited", &["--epochs", "1"]);
    assert_eq!(metrics(&run)?.len(), 6);
    Ok(())
}
