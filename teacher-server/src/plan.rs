//! Provides the plan: which sequences are computed in which batches, and the fingerprint that everything computed is bound to.

use std::{collections::HashMap, ops::Range};

use distill_proto::{Estimator, Fingerprint, ValueCoding, fingerprint::FingerprintBuilder};
use distill_text::Sequence;

use crate::{
    Error, Result,
    config::{Config, EstimatorSetting},
};

/// What the plan depends on beside the settings and the corpus.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Weights and configuration of the teacher.
    pub model: Fingerprint,
    /// What the tokenizer does.
    pub tokenizer: Fingerprint,
    /// Which id means which token; follows from the tokenizer, so the plan does not count it again.
    pub vocabulary: Fingerprint,
    /// Effective vocabulary: ids that logits are computed for.
    pub vocab_size: u32,
    /// Device and arithmetic library: bytes are promised equal for equal backends only.
    pub backend: String,
}

/// What the plan knows of a sequence without its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Content-derived id.
    pub id: u64,
    /// Tokens.
    pub tokens: u32,
    /// Targets, one row each.
    pub targets: u32,
}

impl Entry {
    /// Of a sequence.
    pub fn of(sequence: &Sequence) -> Self {
        Self {
            id: sequence.id,
            tokens: sequence.token_ids.len() as u32,
            targets: sequence.targets() as u32,
        }
    }
}

/// The sequences in order, cut into batches that never change, since rounding may depend on the shape of a batch.
///
/// Its fingerprint says *how* they are captured and leaves out which they are: sequences are told apart by their content, so
/// what a cache holds stays valid when documents are added.
#[derive(Debug)]
pub struct Plan {
    /// Names how everything below is computed.
    pub fingerprint: Fingerprint,
    /// Names the corpus.
    pub corpus: Fingerprint,
    entries: Vec<Entry>,
    /// One for every entry; absent where only its frames are at hand.
    sequences: Vec<Option<Sequence>>,
    batch_size: usize,
    /// First sequence of every batch.
    batch_starts: Vec<usize>,
    indices: HashMap<u64, u64>,
}

impl Plan {
    /// Lays sequences out under given fingerprints.
    ///
    /// # Errors
    /// `Mismatch` where two sequences carry the same id.
    pub fn of_sequences(
        fingerprint: Fingerprint,
        corpus: Fingerprint,
        sequences: Vec<Sequence>,
        batch_size: usize,
    ) -> Result<Self> {
        let entries = sequences.iter().map(Entry::of).collect::<Vec<_>>();
        let parts = [(batch_size, entries.len())];
        let sequences = sequences.into_iter().map(Some).collect();
        Self::of_parts(fingerprint, corpus, entries, sequences, &parts)
    }

    /// Lays out parts that are cut into batches each by itself: batch size and number of entries of every part.
    ///
    /// # Errors
    /// `Mismatch` where two entries carry the same id.
    pub fn of_parts(
        fingerprint: Fingerprint,
        corpus: Fingerprint,
        entries: Vec<Entry>,
        sequences: Vec<Option<Sequence>>,
        parts: &[(usize, usize)],
    ) -> Result<Self> {
        let mut indices = HashMap::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            if indices.insert(entry.id, index as u64).is_some() {
                return Err(Error::Mismatch(format!(
                    "two sequences of the corpus have the id {:016x}",
                    entry.id
                )));
            }
        }
        let mut batch_starts = Vec::new();
        let mut first = 0;
        for &(batch_size, count) in parts {
            batch_starts.extend((first..first + count).step_by(batch_size.max(1)));
            first += count;
        }
        let batch_size = parts.last().map_or(1, |&(batch_size, _)| batch_size.max(1));
        Ok(Self {
            fingerprint,
            corpus,
            entries,
            sequences,
            batch_size,
            batch_starts,
            indices,
        })
    }

    /// Number of sequences.
    pub fn count(&self) -> u64 {
        self.entries.len() as u64
    }

    /// What is known of every sequence, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The sequence at `index`; `None` where its text is not at hand.
    pub fn sequence(&self, index: usize) -> Option<&Sequence> {
        self.sequences.get(index)?.as_ref()
    }

    /// The sequences whose texts are at hand, in order.
    pub fn into_sequences(self) -> Vec<Sequence> {
        self.sequences.into_iter().flatten().collect()
    }

    /// Sequences of a full batch.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Position in the order of the sequence with this id.
    pub fn index_of(&self, id: u64) -> Option<u64> {
        self.indices.get(&id).copied()
    }

    /// The batch that computes the sequence at `index`.
    pub fn batch_of(&self, index: u64) -> u64 {
        let after = self
            .batch_starts
            .partition_point(|&start| start as u64 <= index);
        after.saturating_sub(1) as u64
    }

    /// Positions in the order that one batch computes.
    pub fn batch(&self, batch: u64) -> Range<usize> {
        let all = self.entries.len();
        let start = |batch: usize| self.batch_starts.get(batch).copied().unwrap_or(all);
        start(batch as usize)..start((batch as usize).saturating_add(1))
    }

    /// Tokens over all sequences.
    pub fn token_count(&self) -> u64 {
        self.entries.iter().map(|e| u64::from(e.tokens)).sum()
    }

    /// Targets over all sequences: rows that will be computed.
    pub fn target_count(&self) -> u64 {
        self.entries.iter().map(|e| u64::from(e.targets)).sum()
    }

    /// Longest sequence in tokens.
    pub fn longest(&self) -> usize {
        let longest = self.entries.iter().map(|entry| entry.tokens).max();
        longest.unwrap_or_default() as usize
    }
}

/// The estimator with what its draws depend on. Top-k draws nothing, so seeds and draws leave its plan alone.
fn estimator(config: &Config) -> String {
    match config.estimator {
        EstimatorSetting(Estimator::TopK) => "top_k".to_owned(),
        drawn => format!("{drawn} {} {}", config.draws, config.sample_seed),
    }
}

/// Largest logits kept; a setting that nothing depends on must not make another plan.
fn head(config: &Config) -> u64 {
    match config.estimator.0 {
        Estimator::Sampled => 0,
        Estimator::TopK | Estimator::HeadSampled => config.top_k as u64,
    }
}

/// Everything that the bytes of a frame depend on beside its sequence. `sketch` names the directions of a sketch, which come
/// from a sample of the corpus.
pub fn fingerprint(
    config: &Config,
    identity: &Identity,
    sketch: Option<Fingerprint>,
) -> Fingerprint {
    let coding = match config.value_coding.0 {
        ValueCoding::Step(step) => format!("step {:08x}", step.to_bits()),
        ValueCoding::F16 => "f16".to_owned(),
        ValueCoding::Graded(step) => format!("graded {:08x}", step.to_bits()),
    };
    let temperatures: Vec<u8> = config
        .temperatures
        .iter()
        .flat_map(|tau| tau.to_le_bytes())
        .collect();
    FingerprintBuilder::new("plan")
        .field("format", &distill_proto::FORMAT_VERSION.to_le_bytes())
        .field("model", &identity.model.0)
        .field("tokenizer", &identity.tokenizer.0)
        .field("vocabulary", &identity.vocab_size.to_le_bytes())
        .field("seq_len", &(config.seq_len as u64).to_le_bytes())
        .field("batch_size", &(config.batch_size as u64).to_le_bytes())
        .field("top_k", &head(config).to_le_bytes())
        .field("chunk_rows", &(config.chunk_rows as u64).to_le_bytes())
        .field("estimator", estimator(config).as_bytes())
        .field("temperatures", &temperatures)
        .field("value_coding", coding.as_bytes())
        .field("state", config.state.to_string().as_bytes())
        .field("dtype", config.dtype.to_string().as_bytes())
        .field("sketch", sketch.as_ref().map_or(&[], |digest| &digest.0))
        .field("backend", identity.backend.as_bytes())
        .finish()
}

/// Bytes that a target takes in a frame, about: text, tokens and statistics, what is kept of the logits, and a state of
/// `state_rank` coordinates. Fitted to the table in proto/FORMAT.md.
pub fn target_bytes(config: &Config, state_rank: u32) -> u64 {
    let draws = config.draws as u64;
    // Hundredths of a byte; draws from the tail are rarely of the same id, and their ids are rare ones.
    let drawn = match config.estimator.0 {
        Estimator::TopK => 0,
        Estimator::Sampled => 55 * draws,
        Estimator::HeadSampled => 175 * draws,
    };
    let kept = 120 * head(config) + drawn;
    let rest = match config.value_coding.0 {
        ValueCoding::Graded(_) | ValueCoding::Step(_) => 14 + kept / 100,
        ValueCoding::F16 => 30 + kept * 8 / 500,
    };
    rest + u64::from(state_rank) * config.state.coordinate_bytes()
}

/// Lines of [`settings`] that are no settings.
pub const IDENTITY_KEYS: [&str; 3] = ["model_fingerprint", "tokenizer_fingerprint", "backend"];

/// What frames depend on, a line each, for people: to say later what differs.
///
/// # Errors
/// `Config` where a setting cannot be written as TOML.
pub fn settings(config: &Config, identity: &Identity) -> Result<String> {
    let wanted = [
        "seq_len",
        "batch_size",
        "estimator",
        "top_k",
        "draws",
        "sample_seed",
        "temperatures",
        "value_coding",
        "state",
        "dtype",
        "chunk_rows",
    ];
    let refuse = |reason: String| Error::Config {
        key: "cache",
        reason,
    };
    let table = toml::Table::try_from(config).map_err(|e| refuse(e.to_string()))?;
    let mut lines = String::new();
    for key in wanted {
        if let Some(value) = table.get(key) {
            lines += &format!("{key} = {value}\n");
        }
    }
    let identity = [
        identity.model.to_hex(),
        identity.tokenizer.to_hex(),
        identity.backend.clone(),
    ];
    for (key, value) in IDENTITY_KEYS.into_iter().zip(identity) {
        lines += &format!("{key} = \"{value}\"\n");
    }
    Ok(lines)
}

#[cfg(test)]
#[path = "plan/fingerprint_tests.rs"]
mod fingerprint_tests;
