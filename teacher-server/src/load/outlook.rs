//! Provides what a capture has before it, without a model in memory.

use std::{collections::HashSet, path::Path};

use distill_model::{ComputeDtype, ModelConfig};
use distill_text::{Corpus, TokenizerFiles, Windowing, read_corpus};

use super::{
    cached::{begins_anew, new_entries, sizes},
    check_shape,
    files::Shape,
    taken::is_to_take,
};
use crate::{
    Result,
    cache::{Access, Cache, Segment},
    config::{Config, StateSetting},
    plan::{self, Entry, Identity, Plan},
    report::Reporter,
    store::BlockStore,
};

/// What is known only with the weights in memory, or on the device that computes.
const UNKNOWN: [&str; 2] = ["model_fingerprint", "backend"];

/// What is to be computed.
pub(crate) struct Outlook {
    /// The sequences that are missing in this process' part.
    pub entries: Vec<Entry>,
    /// Coordinates a row in `state`.
    pub state_rank: u32,
}

/// Finds what `precompute` with these settings would compute, by the same files, plan and shards; nothing is written.
///
/// # Errors
/// As loading says, as far as it can be known without the weights.
pub(crate) fn look_ahead(config: &Config, path: &Path, reporter: &Reporter) -> Result<Outlook> {
    let Shape { tokenizer, model } = Shape::find(config, &|| false)?;
    check_shape(config, &model, &tokenizer)?;
    let windowing = Windowing::new(config.seq_len).strict(config.strict);
    let corpus = read_corpus(&config.corpus, &tokenizer, &windowing, &mut |_| {})?;
    reporter.corpus(&corpus);
    let mut cache = Cache::open(path, Access::Look)?;
    if let Some(found) = &cache {
        let changed = changed_settings(config, found, &tokenizer)?;
        if begins_anew(found, &changed, "")? {
            cache = None;
        }
    }
    let texts = corpus.sequences.iter().map(|sequence| sequence.id);
    let texts: HashSet<u64> = texts.collect();
    let Some(cache) = cache else {
        let state_rank = state_rank(config, &model);
        let plan = Plan::of_sequences(
            Default::default(),
            corpus.fingerprint,
            corpus.sequences,
            config.batch_size,
        )?;
        let (entries, sizes) = (plan.entries().to_vec(), sizes(config, state_rank));
        let whole = Segment::cut(None, corpus.fingerprint, entries, config.batch_size, sizes);
        return Ok(Outlook {
            entries: missing(config, &[whole], |_| false, &texts),
            state_rank,
        });
    };
    let state_rank = cache.info().state_rank;
    let store = cache.store()?;
    reporter.cache(&cache, store.sealed());
    let contains = |index| store.contains(index);
    let segments = with_new(config, (&cache, contains), &corpus, reporter);
    Ok(Outlook {
        entries: missing(config, &segments, contains, &texts),
        state_rank,
    })
}

/// Coordinates a row of a capture that is yet to begin.
fn state_rank(config: &Config, model: &ModelConfig) -> u32 {
    let rank = match config.state {
        StateSetting::None => 0,
        StateSetting::Sketch { rank, .. } => rank,
        StateSetting::Exact(_) | StateSetting::Hidden { .. } => {
            config.state.layers() * model.hidden_size
        }
    };
    rank as u32
}

/// The segments of the cache, and the one that the corpus would add.
fn with_new(
    config: &Config,
    (cache, contains): (&Cache, impl Fn(u64) -> bool),
    corpus: &Corpus,
    reporter: &Reporter,
) -> Vec<Segment> {
    let mut segments = cache.segments().to_vec();
    let new = new_entries(cache, contains, &corpus.sequences, reporter);
    if !new.is_empty() {
        let sizes = sizes(config, cache.info().state_rank);
        let before = segments.last();
        let (fingerprint, batch_size) = (corpus.fingerprint, config.batch_size);
        segments.push(Segment::cut(before, fingerprint, new, batch_size, sizes));
    }
    segments
}

/// What is not there of the shards that are this process', and is to be computed: of the corpus, whose `texts` these are, what
/// takes no rows from a frame that is there.
fn missing(
    config: &Config,
    segments: &[Segment],
    contains: impl Fn(u64) -> bool,
    texts: &HashSet<u64>,
) -> Vec<Entry> {
    let mut missing = Vec::new();
    for segment in segments {
        let mut entries = (segment.first_index..).zip(&segment.entries);
        for shard in segment.shard_plans() {
            let shard_entries = entries.by_ref().take(shard.count);
            let lacking = shard_entries.filter(|&(index, entry)| {
                config.is_mine(shard.number)
                    && texts.contains(&entry.id)
                    && !contains(index)
                    && !is_to_take(entry, index, &contains)
            });
            missing.extend(lacking.map(|(_, entry)| *entry));
        }
    }
    missing
}

/// What of the settings and the tokenizer is not as the cache was captured.
fn changed_settings(
    config: &Config,
    cache: &Cache,
    tokenizer: &TokenizerFiles,
) -> Result<Vec<String>> {
    let identity = Identity {
        model: Default::default(),
        tokenizer: tokenizer.fingerprint(),
        vocabulary: tokenizer.vocabulary_fingerprint(),
        vocab_size: tokenizer.size(),
        backend: String::new(),
    };
    let now = plan::settings(config, &identity)?;
    let mut unknown = UNKNOWN.to_vec();
    if config.dtype == ComputeDtype::Auto {
        unknown.push("dtype");
    }
    Ok(plan::differences(cache.settings(), &now, &unknown))
}

#[cfg(test)]
#[path = "outlook_tests.rs"]
mod tests;
