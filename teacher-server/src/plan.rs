//! Provides the plan: which sequences are computed in which batches, and the fingerprint that everything computed is bound to.

use std::{collections::HashMap, ops::Range};

use distill_proto::{Estimator, Fingerprint, ValueCoding, fingerprint::FingerprintBuilder};
use distill_text::{Corpus, Sequence};

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

/// The sequences in order, cut into batches that never change, since rounding may depend on the shape of a batch.
#[derive(Debug)]
pub struct Plan {
    /// Names everything below and how it is computed.
    pub fingerprint: Fingerprint,
    /// Names the corpus.
    pub corpus: Fingerprint,
    /// In the order in which they are streamed.
    pub sequences: Vec<Sequence>,
    batch_size: usize,
    indices: HashMap<u64, u64>,
}

impl Plan {
    /// Lays the corpus out.
    ///
    /// # Errors
    /// `Mismatch` where two sequences carry the same id.
    pub fn new(config: &Config, identity: &Identity, corpus: Corpus) -> Result<Self> {
        let fingerprint = fingerprint(config, identity, corpus.fingerprint);
        Self::of_sequences(
            fingerprint,
            corpus.fingerprint,
            corpus.sequences,
            config.batch_size,
        )
    }

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
        let mut indices = HashMap::with_capacity(sequences.len());
        for (index, sequence) in sequences.iter().enumerate() {
            if indices.insert(sequence.id, index as u64).is_some() {
                return Err(Error::Mismatch(format!(
                    "two sequences of the corpus have the id {:016x}",
                    sequence.id
                )));
            }
        }
        Ok(Self {
            fingerprint,
            corpus,
            sequences,
            batch_size: batch_size.max(1),
            indices,
        })
    }

    /// Number of sequences.
    pub fn count(&self) -> u64 {
        self.sequences.len() as u64
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
        index / self.batch_size as u64
    }

    /// Positions in the order that one batch computes.
    pub fn batch(&self, batch: u64) -> Range<usize> {
        let start = (batch as usize).saturating_mul(self.batch_size);
        let end = start.saturating_add(self.batch_size);
        start.min(self.sequences.len())..end.min(self.sequences.len())
    }

    /// Tokens over all sequences.
    pub fn token_count(&self) -> u64 {
        self.sequences
            .iter()
            .map(|s| s.token_ids.len() as u64)
            .sum()
    }

    /// Targets over all sequences: rows that will be computed.
    pub fn target_count(&self) -> u64 {
        let targets = |s: &Sequence| s.target_mask.iter().filter(|&&target| target).count() as u64;
        self.sequences.iter().map(targets).sum()
    }

    /// Longest sequence in tokens.
    pub fn longest(&self) -> usize {
        self.sequences
            .iter()
            .map(|s| s.token_ids.len())
            .max()
            .unwrap_or_default()
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

/// Everything that the bytes of a frame depend on.
fn fingerprint(config: &Config, identity: &Identity, corpus: Fingerprint) -> Fingerprint {
    let coding = match config.value_coding.0 {
        ValueCoding::Step(step) => format!("step {:08x}", step.to_bits()),
        ValueCoding::F16 => "f16".to_owned(),
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
        .field("corpus", &corpus.0)
        .field("seq_len", &(config.seq_len as u64).to_le_bytes())
        .field("batch_size", &(config.batch_size as u64).to_le_bytes())
        .field("top_k", &head(config).to_le_bytes())
        .field("chunk_rows", &(config.chunk_rows as u64).to_le_bytes())
        .field("estimator", estimator(config).as_bytes())
        .field("temperatures", &temperatures)
        .field("value_coding", coding.as_bytes())
        .field("state", config.state.to_string().as_bytes())
        .field("dtype", config.dtype.to_string().as_bytes())
        .field("backend", identity.backend.as_bytes())
        .finish()
}
