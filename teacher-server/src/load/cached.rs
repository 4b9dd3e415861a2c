//! Provides the loading over a cache: what is in it is served as it is, and only what is missing needs the model.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use candle_core::Tensor;
use distill_proto::{Fingerprint, Rows, v1};
use distill_text::Sequence;

use super::{
    Beginning, Engine, Opened, Origin, States,
    taken::{find_sources, take_rows},
};
use crate::{
    Error, Result,
    basis::Basis,
    cache::{Access, Cache, CacheStore, Matrices, Segment},
    config::{Config, StateSetting},
    plan::{self, Entry, Plan},
    production::{Forward, Production, Tokens},
    progress::Progress,
    report::Reporter,
    store::BlockStore,
};

/// Stands where no model is in memory.
struct NoTeacher;

impl Forward for NoTeacher {
    fn rows(&self, _batch: &[Tokens<'_>]) -> Result<Vec<Rows>> {
        Err(Error::NoModel)
    }
}

/// What answers, and the matrix behind `state`.
struct Answers {
    /// None where everything is kept.
    origin: Option<Origin>,
    basis: Option<Basis>,
}

/// Opens or makes the cache in `path`.
///
/// # Errors
/// As [`Engine::load`]; `Cache` where it was captured otherwise, is incomplete without a model, or somebody writes to it.
pub(super) fn load(
    config: &Config,
    path: &Path,
    reporter: &Reporter,
    stopped: &dyn Fn() -> bool,
) -> Result<Engine> {
    if !config.has_model() {
        return without_model(config, path, reporter);
    }
    Cache::check_place(path)?;
    let device = config.device.open()?;
    let config = &config.on(&device);
    let mut opened = Opened::read(config, device, reporter, stopped)?;
    let found = match Cache::open(path, Access::Write)? {
        Some(cache) => go_on(config, &mut opened, cache)?,
        None => None,
    };
    let mut engine = match found {
        Some((mut cache, projection)) => {
            add_sequences(config, &opened, &mut cache, reporter)?;
            let ids = opened.corpus.sequences.iter().map(|sequence| sequence.id);
            cache.set_members(opened.corpus.fingerprint, &ids.collect::<Vec<u64>>())?;
            let store = cache.store()?;
            let sequences = std::mem::take(&mut opened.corpus.sequences);
            let plan = plan(&cache, sequences)?;
            let taken = take_rows(&plan, &store, |shard| config.is_mine(shard), stopped)?;
            reporter.rows_taken(taken);
            let complete = missing(&plan, &store).next().is_none();
            let answers = match complete {
                true => Answers {
                    origin: None,
                    basis: cache.basis()?,
                },
                false => answers(config, &opened, &cache, projection)?,
            };
            start(config, (cache, store), plan, answers, reporter)?
        }
        None => {
            let (cache, states, sequences) = create(config, path, &mut opened, reporter, stopped)?;
            let store = cache.store()?;
            let answers = Answers {
                origin: Some(states.origin),
                basis: states.basis,
            };
            let plan = plan(&cache, sequences)?;
            start(config, (cache, store), plan, answers, reporter)?
        }
    };
    if engine.info.vram_mode() != v1::VramMode::Cached {
        engine.answerer = Some(Arc::new(opened.answerer(config)));
    }
    Ok(engine)
}

/// The cache with its projection; `None` where it was begun otherwise, holds nothing yet and was removed.
///
/// # Errors
/// `Cache` where it was captured otherwise.
fn go_on(
    config: &Config,
    opened: &mut Opened,
    cache: Cache,
) -> Result<Option<(Cache, Option<Tensor>)>> {
    let own = opened.identity.backend.clone();
    if config.any_backend {
        opened.identity.backend = captured_backend(cache.settings());
    }
    let projection = cache.projection()?;
    let (changed, plans) = compare_plans(config, opened, &cache, projection.as_ref())?;
    if !begins_anew(&cache, &changed, &plans)? {
        return Ok(Some((cache, projection)));
    }
    opened.identity.backend = own;
    cache.discard()?;
    Ok(None)
}

/// Serves a complete cache; nothing is written.
fn without_model(config: &Config, path: &Path, reporter: &Reporter) -> Result<Engine> {
    let cache = Cache::find(path, Access::Read)?;
    let store = cache.store()?;
    let plan = plan(&cache, Vec::new())?;
    let missing = missing(&plan, &store).count();
    if missing > 0 {
        return Err(Error::Cache {
            path: path.to_owned(),
            reason: format!(
                "{missing} of {} sequences are missing; finish `teacher-server precompute`, or give --model and --corpus to compute them when they are asked for",
                plan.served_count()
            ),
        });
    }
    let answers = Answers {
        origin: None,
        basis: cache.basis()?,
    };
    start(config, (cache, store), plan, answers, reporter)
}

/// Makes a cache for the corpus.
fn create(
    config: &Config,
    path: &Path,
    opened: &mut Opened,
    reporter: &Reporter,
    stopped: &dyn Fn() -> bool,
) -> Result<(Cache, States, Vec<Sequence>)> {
    let Beginning { plan, states, info } = opened.begin(config, reporter, stopped)?;
    let header = v1::CacheHeader {
        info: Some(info),
        settings: plan::settings(config, &opened.identity)?,
        positions_max: opened.model.max_position_embeddings as u32,
        ..Default::default()
    };
    let vocabulary = opened.tokenizer.vocabulary();
    let matrices = Matrices {
        basis: states.basis.as_ref(),
        projection: states.projection.as_ref(),
        vocabulary: &vocabulary,
    };
    let state_rank = header.info.as_ref().map_or(0, |info| info.state_rank);
    let (entries, sizes) = (plan.entries().to_vec(), sizes(config, state_rank));
    let first = Segment::cut(None, plan.corpus, entries, config.batch_size, sizes);
    let cache = Cache::create(path, header, &matrices, &first)?;
    let sequences = plan.into_sequences();
    Ok((cache, states, sequences))
}

/// Bytes of a target, about, and of a shard.
pub(super) fn sizes(config: &Config, state_rank: u32) -> (u64, u64) {
    (plan::target_bytes(config, state_rank), config.shard_bytes)
}

/// What of settings, model and tokenizer is not as the cache was captured, and both plans; nothing where the plan is the same.
fn compare_plans(
    config: &Config,
    opened: &Opened,
    cache: &Cache,
    projection: Option<&Tensor>,
) -> Result<(Vec<String>, String)> {
    let sketch = match (projection, config.state) {
        (Some(projection), StateSetting::Sketch { .. }) => {
            Some(crate::cache::projection_digest(projection)?)
        }
        _ => None,
    };
    let asked = plan::fingerprint(config, &opened.identity, sketch)?;
    if asked == cache.plan() {
        return Ok(Default::default());
    }
    let now = plan::settings(config, &opened.identity)?;
    let mut changed = plan::differences(cache.settings(), &now, &[]);
    if changed.is_empty() {
        changed.push("by another build".to_owned());
    }
    let plans = format!("; its plan is {}, this would be {asked}", cache.plan());
    Ok((changed, plans))
}

/// Whether a cache with `changed` settings is to be begun anew, since nothing is in it yet; false where nothing changed.
///
/// # Errors
/// `Cache` where it has frames, which were captured otherwise.
pub(super) fn begins_anew(cache: &Cache, changed: &[String], plans: &str) -> Result<bool> {
    if changed.is_empty() {
        return Ok(false);
    }
    let (path, changed) = (cache.path(), changed.join(", "));
    // Others may be at work on one that is shared, with frames that are not sealed yet.
    if !cache.is_shared() && cache.is_empty()? {
        tracing::warn!(
            "{}: was begun otherwise ({changed}) and holds no frame yet; it is begun anew",
            path.display()
        );
        return Ok(true);
    }
    Err(Error::Cache {
        path: path.to_owned(),
        reason: format!(
            "was captured otherwise ({changed}){plans}. Use what it was captured with, or name another directory"
        ),
    })
}

/// The backend that the settings of a cache name.
fn captured_backend(settings: &str) -> String {
    let table: toml::Table = settings.parse().unwrap_or_default();
    let backend = table.get("backend").and_then(toml::Value::as_str);
    backend.unwrap_or_default().to_owned()
}

/// Adds the sequences of the corpus that the cache does not know.
fn add_sequences(
    config: &Config,
    opened: &Opened,
    cache: &mut Cache,
    reporter: &Reporter,
) -> Result<()> {
    let store = cache.store()?;
    let contains = |index| store.contains(index);
    let new = new_entries(cache, contains, &opened.corpus.sequences, reporter);
    drop(store);
    if new.is_empty() {
        return Ok(());
    }
    let sizes = sizes(config, cache.info().state_rank);
    cache.add(opened.corpus.fingerprint, new, config.batch_size, sizes)
}

/// The sequences that the cache does not know, in order, with what they take their rows from.
pub(super) fn new_entries(
    cache: &Cache,
    contains: impl Fn(u64) -> bool,
    sequences: &[Sequence],
    reporter: &Reporter,
) -> Vec<Entry> {
    let entries = cache.entries();
    let known: HashSet<u64> = entries.iter().map(|entry| entry.id).collect();
    let new = sequences
        .iter()
        .filter(|sequence| !known.contains(&sequence.id));
    let mut new: Vec<Entry> = new.map(Entry::of).collect();
    find_sources(&entries, contains, &mut new);
    let taken = new.iter().filter(|entry| entry.source.is_some()).count();
    let gone = known.len() + new.len() - sequences.len();
    reporter.cache_corpus(known.len(), (new.len(), taken), gone);
    new
}

/// The teacher that computes what is missing, with the cache's own sketch.
fn answers(
    config: &Config,
    opened: &Opened,
    cache: &Cache,
    projection: Option<Tensor>,
) -> Result<Answers> {
    let origin = opened.origin(config)?;
    let (origin, basis) = match projection {
        Some(projection) => (origin.with_projection(projection), cache.basis()?),
        None => {
            let exact = matches!(config.state, StateSetting::Exact(_));
            let basis = exact.then(|| opened.head_basis(config, &origin));
            (origin, basis.transpose()?)
        }
    };
    Ok(Answers {
        origin: Some(origin),
        basis,
    })
}

fn start(
    config: &Config,
    (cache, store): (Cache, CacheStore),
    plan: Plan,
    answers: Answers,
    reporter: &Reporter,
) -> Result<Engine> {
    let plan = Arc::new(plan);
    let missing = missing(&plan, &store).filter(|&place| config.is_mine(store.shard_of(place)));
    let missing = missing.filter_map(|place| plan.entries().get(place as usize));
    let (sequences, tokens) = missing.fold((0, 0), |(count, tokens), entry| {
        (count + 1, tokens + u64::from(entry.tokens))
    });
    reporter.cache(&cache, store.sealed());
    let digest = |hex: &str| Fingerprint::from_hex(hex).unwrap_or_default();
    let captured = cache.info();
    let origin = answers.origin.as_ref();
    let info = v1::GetServerInfoResponse {
        vram_mode: origin
            .map_or(v1::VramMode::Cached, Origin::vram_mode)
            .into(),
        ..captured
    };
    let progress = Progress::new(sequences, tokens);
    let (store, shared) = (Box::new(store), plan.clone());
    let production = match answers.origin {
        Some(origin) => origin.start(config, *reporter, shared, store, progress)?,
        None => Production::start(Box::new(NoTeacher), shared, store, config.queue, progress)?,
    };
    Ok(Engine {
        production,
        plan,
        basis: answers.basis.map(Arc::new),
        tokenizer: digest(&info.tokenizer_fingerprint),
        vocabulary: digest(&info.vocabulary_fingerprint),
        info,
        tokens: Arc::new(cache.vocabulary()?),
        positions_max: cache.positions_max(),
        answerer: None,
        cache: Some(cache),
    })
}

/// The cache's plan, with the texts that are at hand.
fn plan(cache: &Cache, sequences: Vec<Sequence>) -> Result<Plan> {
    let mut texts: HashMap<u64, Sequence> = sequences
        .into_iter()
        .map(|sequence| (sequence.id, sequence))
        .collect();
    let entries = cache.entries();
    let sequences = entries
        .iter()
        .map(|entry| texts.remove(&entry.id))
        .collect();
    let part = |segment: &Segment| (segment.batch_size, segment.entries.len());
    let parts: Vec<(usize, usize)> = cache.segments().iter().map(part).collect();
    let plan = Plan::of_parts(cache.plan(), cache.corpus(), entries, sequences, &parts)?;
    Ok(plan.serving(cache.served().clone()))
}

/// Places of the sequences that are to be served and are not there.
fn missing(plan: &Plan, store: &CacheStore) -> impl Iterator<Item = u64> {
    let served = (0..plan.served_count()).filter_map(|position| plan.place(position));
    served.filter(|&place| !store.contains(place))
}

#[cfg(test)]
#[path = "served_tests.rs"]
mod tests;
