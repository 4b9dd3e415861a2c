//! Provides `precompute`: the teacher over a whole corpus into a cache, to be interrupted and gone on with at will.

use std::{future::Future, path::Path, time::Instant};

use distill_hub::Wanted;
use distill_model::ModelConfig;
use distill_text::{Sequence, TokenizerFiles, Windowing, read_corpus};

use crate::{
    Error, Result,
    cache::{Access, Cache},
    config::{Config, StateSetting, VramMode},
    load::{Engine, located},
    plan,
    production::Order,
    report::{Reporter, Work},
    serve::load_until,
};

/// How a capture ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every sequence of this process' part is in the cache.
    Complete,
    /// Somebody asked to stop; the same command goes on.
    Interrupted,
}

/// Computes what is missing in the cache that `config` names, until it is complete or `shutdown` resolves; the batch under
/// way is finished and kept.
///
/// # Errors
/// What loading says, or the first batch or write that failed; everything before it is kept.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<Outcome> {
    // No trainer takes turns with it.
    let config = Config {
        vram_mode: VramMode::Resident,
        ..config
    };
    let Some(cache) = config.cache.clone() else {
        return Err(Error::Config {
            key: "out",
            reason: "name the cache's directory".into(),
        });
    };
    let reporter = Reporter::new(config.json);
    let mut shutdown = std::pin::pin!(shutdown);
    let Some(engine) = load_until(&config, reporter, shutdown.as_mut()).await? else {
        return Ok(Outcome::Interrupted);
    };
    let outcome = tokio::select! {
        computed = compute(&engine, &config, &cache, reporter) => computed.map(|()| Outcome::Complete),
        () = &mut shutdown => {
            reporter.stopping();
            Ok(Outcome::Interrupted)
        }
    };
    engine.production.close();
    let joined = tokio::task::spawn_blocking(move || {
        engine.production.join();
        (
            engine.production.totals(),
            engine.production.complete(),
            engine,
        )
    });
    let (totals, complete, engine) = joined.await.map_err(|e| Error::Internal(e.to_string()))?;
    reporter.totals(totals);
    let outcome = outcome?;
    if outcome == Outcome::Complete {
        reporter.captured(&cache, &engine.plan, complete);
    }
    Ok(outcome)
}

/// Waits until every sequence of the part is kept.
async fn compute(engine: &Engine, config: &Config, cache: &Path, reporter: Reporter) -> Result<()> {
    let missing = engine.production.missing(|shard| config.is_mine(shard));
    let entries = engine.plan.entries();
    let lacking = missing
        .iter()
        .filter_map(|&index| entries.get(index as usize));
    let (mut tokens, mut targets) = (0, 0);
    for entry in lacking {
        tokens += u64::from(entry.tokens);
        targets += u64::from(entry.targets);
    }
    let mut work = Work {
        sequences: missing.len() as u64,
        tokens,
        bytes: targets * plan::target_bytes(config, engine.info.state_rank),
        seconds: None,
        free_bytes: free_bytes(cache),
    };
    reporter.work(work);
    let started = Instant::now();
    let mut reader = engine.production.reader(Order::List(missing.into()))?;
    let mut first = engine.plan.batch_size();
    while reader.upcoming().is_some() {
        reader.ready().await?;
        reader.skip();
        first = first.saturating_sub(1);
        if first == 0 && work.seconds.is_none() {
            // The first batch is part of the work, and shows how long the rest takes.
            let done = engine.production.totals();
            let rate = done.tokens as f64 / started.elapsed().as_secs_f64().max(1e-9);
            work.seconds = Some((tokens.saturating_sub(done.tokens)) as f64 / rate.max(1e-9));
            reporter.work_time(work);
        }
    }
    Ok(())
}

/// What `precompute` would do, without a model in memory.
///
/// # Errors
/// As reading the tokenizer, the corpus and the cache.
pub fn dry_run(config: &Config) -> Result<()> {
    let reporter = Reporter::new(config.json);
    // The weights of a model that is named on the hub are not fetched for this.
    let found = |wanted| located(&config.model, wanted, &|| false);
    let mut tokenizer = TokenizerFiles::open(&found(Wanted::Tokenizer)?)?;
    config.set_template_kwargs(&mut tokenizer);
    let model = ModelConfig::load_teacher(&found(Wanted::Config)?)?;
    let windowing = Windowing::new(config.seq_len).strict(config.strict);
    let corpus = read_corpus(&config.corpus, &tokenizer, &windowing, &mut |_| {})?;
    reporter.corpus(&corpus);
    let path = config.cache.clone().unwrap_or_default();
    let mut known = std::collections::HashSet::new();
    if let Some(cache) = Cache::open(&path, Access::Read)? {
        let store = cache.store()?;
        reporter.cache(&cache, store.sealed());
        let done = cache.entries().into_iter().zip(0..);
        let done = done.filter(|&(_, index)| crate::store::BlockStore::contains(&store, index));
        known.extend(done.map(|(entry, _)| entry.id));
    }
    let rank = match config.state {
        StateSetting::None => 0,
        StateSetting::Sketch { rank, .. } => rank,
        StateSetting::Exact(_) | StateSetting::Hidden { .. } => model.hidden_size,
    };
    let target_bytes = plan::target_bytes(config, rank as u32);
    let missing: Vec<&Sequence> = corpus
        .sequences
        .iter()
        .filter(|sequence| !known.contains(&sequence.id))
        .collect();
    let targets: usize = missing.iter().map(|sequence| sequence.targets()).sum();
    reporter.work(Work {
        sequences: missing.len() as u64,
        tokens: missing.iter().map(|s| s.token_ids.len() as u64).sum(),
        bytes: targets as u64 * target_bytes,
        seconds: None,
        free_bytes: free_bytes(&path),
    });
    Ok(())
}

/// Bytes that can be written where `path` is or will be; `None` where the system does not say.
fn free_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists());
    let existing = match existing {
        Some(path) if path != Path::new("") => path,
        _ => Path::new("."),
    };
    let found = rustix::fs::statvfs(existing).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}
