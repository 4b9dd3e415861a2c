//! Provides `inspect` and `verify`: what is in a cache, how well it stands for the teacher, and whether it is whole.

mod pairs;

use std::{
    future::Future,
    path::{Path, PathBuf},
};

use distill_hub::Wanted;
use distill_model::{ComputeDtype, DeviceChoice, Weights};
use distill_program::Outcome;
use distill_proto::{Frame, StateKind, fingerprint::short, v1};
use serde::Serialize;

use crate::{
    Error, Result,
    cache::{Access, Cache, Sealed, Verdict},
    config::{Config, Part},
    fidelity::Fidelity,
    forward::{Capture, Teacher},
    load::{load_backbone, located},
    plan::Pairs,
    precompute,
    production::Tokens,
    progress::{Progress, Words},
    store::BlockStore,
};

pub use pairs::{LinkShown, PairShown};

const WORDS: Words = Words {
    label: "inspect",
    parts: "sequences",
    units: "tokens",
};

/// What `inspect` is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// The cache.
    pub cache: PathBuf,
    /// Teacher to compute a sample anew with, for the fidelity.
    pub model: Option<PathBuf>,
    /// Its arithmetic.
    pub dtype: ComputeDtype,
    /// Where it computes.
    pub device: DeviceChoice,
    /// Sequences of the sample, spread evenly.
    pub sample: usize,
}

/// What is in a cache.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where it is.
    pub path: PathBuf,
    /// Name of the teacher's directory.
    pub model: String,
    /// Names how it was captured.
    pub plan_fingerprint: String,
    /// Names the weights.
    pub model_fingerprint: String,
    /// Names the tokenizer.
    pub tokenizer_fingerprint: String,
    /// Names the corpus.
    pub corpus_fingerprint: String,
    /// Settings that frames depend on, TOML.
    pub settings: String,
    /// Sequences of the plan.
    pub sequences: u64,
    /// Of these the ones that are not in the corpus any more, and are not served.
    pub not_in_corpus: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their targets.
    pub targets: u64,
    /// Sequences whose record gives the student a view of its own.
    pub pairs: Pairs,
    /// The first of them in the sample.
    pub pair: Option<PairShown>,
    /// Times that documents were added, the first one counted.
    pub segments: u64,
    /// Sequences that are there.
    pub done: u64,
    /// Shards of the plan.
    pub shards: u64,
    /// Shards that are sealed.
    pub sealed_shards: u64,
    /// Bytes of shards, partial ones included.
    pub bytes: u64,
    /// Bytes a token of the sequences that are there.
    pub bytes_per_token: f64,
    /// Entries a row, at most.
    pub entries: u32,
    /// Kept mass of the sample's rows, from the frames alone.
    pub covered_mass: f64,
    /// Sequences of the sample.
    pub sampled_sequences: u64,
    /// Relative error of the sketch on held-out rows; absent without one.
    pub sketch_error: Option<f32>,
    /// Against the whole distribution, where a model was given.
    pub fidelity: Option<Fidelity>,
    /// Whether the whole sample was computed anew, where a model was given.
    pub complete: bool,
}

/// Looks into a cache; nothing is written. When `stopped` says so, the sample ends early.
///
/// # Errors
/// `Cache` where there is none, `Damaged`, or what loading the model says.
pub fn inspect(question: &Question, stopped: &dyn Fn() -> bool) -> Result<Report> {
    let cache = Cache::find(&question.cache, Access::Read)?;
    let store = cache.store()?;
    let info = cache.info();
    let entries = cache.entries();
    let there: Vec<u64> = (0..entries.len() as u64)
        .filter(|&index| store.contains(index))
        .collect();
    let tokens = there.iter().filter_map(|&i| entries.get(i as usize));
    let tokens: u64 = tokens.map(|entry| u64::from(entry.tokens)).sum();
    let sample = sample(&cache, &store, &there, question.sample)?;
    let fidelity = match &question.model {
        Some(model) => match located(model, Wanted::Model, stopped) {
            Err(Error::ShuttingDown) => None,
            directory => fidelity(&info, &directory?, question, &sample, stopped)?,
        },
        None => None,
    };
    let compared = fidelity.as_ref().map_or(0, |(_, sequences)| *sequences);
    let Sealed {
        shards,
        bytes,
        partial_bytes,
        ..
    } = store.sealed();
    let sketched = info.state_kind == i32::from(v1::StateKind::from(StateKind::Sketch));
    Ok(Report {
        path: question.cache.clone(),
        settings: cache.settings().to_owned(),
        pairs: Pairs::of(&entries),
        pair: sample.iter().find_map(PairShown::of),
        segments: cache.segments().len() as u64,
        done: there.len() as u64,
        shards: store.shards().len() as u64,
        sealed_shards: shards,
        bytes: bytes + partial_bytes,
        bytes_per_token: (bytes + partial_bytes) as f64 / tokens.max(1) as f64,
        covered_mass: covered_mass(&sample),
        sampled_sequences: sample.len() as u64,
        sketch_error: sketched.then_some(info.state_error),
        complete: question.model.is_none() || compared == sample.len(),
        fidelity: fidelity.map(|(fidelity, _)| fidelity),
        model: info.model_name,
        plan_fingerprint: info.plan_fingerprint,
        model_fingerprint: info.model_fingerprint,
        tokenizer_fingerprint: info.tokenizer_fingerprint,
        corpus_fingerprint: info.corpus_fingerprint,
        sequences: cache.count(),
        not_in_corpus: cache.count() - cache.served().count(cache.count()),
        tokens: entries.iter().map(|entry| u64::from(entry.tokens)).sum(),
        targets: entries.iter().map(|entry| u64::from(entry.targets)).sum(),
        entries: info.top_k,
    })
}

/// Frames spread evenly over what is there.
fn sample(
    cache: &Cache,
    store: &dyn BlockStore,
    there: &[u64],
    count: usize,
) -> Result<Vec<Frame>> {
    let count = count.min(there.len());
    let picks = (0..count).filter_map(|pick| there.get(pick * there.len() / count.max(1)));
    picks
        .map(|&index| {
            let none = || Error::Internal(format!("frame {index} is gone"));
            cache.decode(&store.get(index)?.ok_or_else(none)?)
        })
        .collect()
}

/// Mean over rows of the mass of the stored ids at temperature 1.
fn covered_mass(sample: &[Frame]) -> f64 {
    let (mut mass, mut count) = (0.0, 0u64);
    for frame in sample {
        let rows = &frame.rows;
        let at_one = rows.temperatures.iter().position(|&tau| tau == 1.0);
        let Some(logsumexp) = at_one.and_then(|at| rows.logsumexp.get(at)) else {
            continue;
        };
        let padding = |position: usize| {
            let count = rows.counts.get(position);
            count.is_some_and(|&count| rows.estimator.is_padding(count))
        };
        for (i, lse) in logsumexp.iter().enumerate() {
            let entries = (i * rows.k..(i + 1) * rows.k).filter(|&at| !padding(at));
            let logits = entries.filter_map(|at| rows.logits.get(at));
            mass += logits
                .map(|logit| f64::from(logit - lse).exp())
                .sum::<f64>();
            count += 1;
        }
    }
    mass / count.max(1) as f64
}

/// Runs the teacher on the sample again and compares; how many sequences of it before `stopped`, `None` before the first.
fn fidelity(
    info: &v1::GetServerInfoResponse,
    model: &Path,
    question: &Question,
    sample: &[Frame],
    stopped: &dyn Fn() -> bool,
) -> Result<Option<(Fidelity, usize)>> {
    let weights = Weights::open(model)?;
    let found = crate::load::model_fingerprint(&weights)?;
    if found.to_hex() != info.model_fingerprint {
        return Err(Error::config(
            "model",
            format!(
                "its fingerprint is {found}, the cache was captured from {}; name the directory of that model",
                short(&info.model_fingerprint)
            ),
        ));
    }
    let device = question.device.open()?;
    let config = weights.model_config()?;
    let capture = Capture::largest();
    capture.check(&config, info.effective_vocab_size)?;
    let backbone = load_backbone(&config, &weights, question.dtype.on(&device), &device, None)?;
    let teacher = Teacher::new(backbone, info.effective_vocab_size, capture)?;
    let tokens = sample
        .iter()
        .map(|frame| frame.token_ids.len() as u64)
        .sum();
    let mut progress = Progress::of(WORDS, sample.len() as u64, tokens);
    let mut fidelity = Fidelity::default();
    let mut compared = 0;
    for frame in sample {
        if stopped() {
            break;
        }
        let tokens = Tokens {
            id: frame.sequence_id,
            draw_id: frame.sequence_id,
            token_ids: &frame.token_ids,
            target_mask: &frame.target_mask,
        };
        teacher.each_logits(&tokens, |first, logits| {
            fidelity.add(&frame.rows, first, logits);
        })?;
        progress.advance(1, frame.token_ids.len() as u64);
        compared += 1;
    }
    Ok((compared > 0).then(|| (fidelity.mean(), compared)))
}

/// Reads every byte of a cache, until `stopped` says so.
///
/// # Errors
/// `Cache` where there is none or what belongs to all shards is damaged; `Io`.
pub fn verify(cache: &Path, stopped: &dyn Fn() -> bool) -> Result<Verdict> {
    Cache::find(cache, Access::Read)?.verify(stopped)
}

/// Sets damaged shards of the cache that `config` names aside and computes again what was damaged in them.
///
/// # Errors
/// As [`verify`] and [`precompute::run`].
pub async fn repair(
    mut config: Config,
    verdict: &Verdict,
    shutdown: impl Future<Output = ()>,
) -> Result<Outcome> {
    let path = config.cache.clone().unwrap_or_default();
    let damaged = verdict.damaged_shards();
    {
        let cache = Cache::find(&path, Access::Write)?;
        let store = cache.store()?;
        let shards = store.shards().to_vec();
        for shard in shards
            .iter()
            .filter(|shard| damaged.contains(&shard.number))
        {
            store.reopen(*shard)?;
        }
        store.flush()?;
    }
    config.part = Some(Part::These(damaged));
    config.any_backend = true;
    precompute::run(config, shutdown).await
}
