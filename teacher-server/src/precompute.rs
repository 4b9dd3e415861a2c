//! Provides `precompute`: the teacher over a whole corpus into a cache, to be interrupted and gone on with at will.

use std::{future::Future, path::Path, sync::Arc, time::Instant};

use distill_objects::is_remote;
use distill_program::{Outcome, console};

use crate::{
    Error, Result,
    config::{Config, Part, VramMode},
    load::{Engine, look_ahead},
    monitor,
    plan::{self, Entry},
    production::Order,
    report::{Reporter, Work},
    serve::load_until,
    service::Service,
};

/// Computes what is missing in the cache that `config` names, until it is complete or `shutdown` resolves; the batch under
/// way is finished and kept, and the same command goes on.
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
        return Err(Error::config("out", "name the cache's directory"));
    };
    let reporter = Reporter::new(config.json);
    // Of all that a server has, what shows how far it is.
    let service = Service::default();
    monitor::start(&config, reporter, service.clone())?;
    let mut shutdown = std::pin::pin!(shutdown);
    let Some(engine) = load_until(&config, reporter, shutdown.as_mut()).await? else {
        reporter.interrupted(&cache);
        return Ok(Outcome::Interrupted);
    };
    let engine = Arc::new(engine);
    service.set_engine(engine.clone());
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
        let flushed = engine.production.flush();
        (engine, flushed)
    });
    let (engine, flushed) = joined.await.map_err(|e| Error::Internal(e.to_string()))?;
    reporter.totals(engine.production.totals());
    let complete = engine.production.complete();
    let outcome = outcome?;
    flushed?;
    match outcome {
        Outcome::Complete => reporter.captured(&cache, &engine.plan, complete),
        _ => reporter.interrupted(&cache),
    }
    Ok(outcome)
}

/// Waits until every sequence of the part is kept.
async fn compute(engine: &Engine, config: &Config, cache: &Path, reporter: Reporter) -> Result<()> {
    let missing = engine.production.missing(|shard| config.is_mine(shard));
    let entries = engine.plan.entries();
    let lacking = missing
        .iter()
        .filter_map(|&position| entries.get(engine.plan.place(position)? as usize));
    let mut work = work(config, cache, engine.info.state_rank, lacking);
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
            work.seconds = Some(work.tokens.saturating_sub(done.tokens) as f64 / rate.max(1e-9));
            reporter.work_time(work);
        }
    }
    Ok(())
}

/// What `precompute` would do, without a model in memory.
///
/// # Errors
/// As reading the tokenizer, the corpus and the cache; nobody can be told.
pub fn dry_run(config: &Config) -> Result<()> {
    let reporter = Reporter::new(config.json);
    let path = config.cache.clone().unwrap_or_default();
    let found = look_ahead(config, &path, &reporter)?;
    reporter.work(work(config, &path, found.state_rank, found.entries.iter()));
    console::reported().map_err(Error::io("write to", Path::new("standard output")))
}

/// What is to be computed, added up.
fn work<'a>(
    config: &Config,
    cache: &Path,
    state_rank: u32,
    entries: impl Iterator<Item = &'a Entry>,
) -> Work {
    let (mut sequences, mut tokens, mut targets) = (0, 0, 0);
    for entry in entries {
        sequences += 1;
        tokens += u64::from(entry.tokens);
        targets += u64::from(entry.targets);
    }
    let part = match config.part {
        Some(Part::Every { index, of }) => Some([index, of]),
        _ => None,
    };
    Work {
        part,
        sequences,
        tokens,
        bytes: targets * plan::target_bytes(config, state_rank),
        seconds: None,
        free_bytes: free_bytes(cache),
    }
}

/// Bytes that can be written where `path` is or will be; `None` where the system does not say.
fn free_bytes(path: &Path) -> Option<u64> {
    if is_remote(path) {
        return None;
    }
    let existing = path.ancestors().find(|path| path.exists());
    let existing = match existing {
        Some(path) if path != Path::new("") => path,
        _ => Path::new("."),
    };
    let found = rustix::fs::statvfs(existing).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}
