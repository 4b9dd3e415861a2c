//! Provides what a run remembers of its teacher: who it was, and what was kept of what it said.

use std::path::Path;

use distill_proto::StateKind;
use serde::{Deserialize, Serialize};

use crate::{Result, client::ServerInfo, files};

/// The teacher of a run, in its directory.
pub(crate) const TEACHER_FILE: &str = "teacher.json";
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// A teacher and its capture, as the handshake told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TeacherRecord {
    /// Its directory's or file's name, or its name on the hub.
    pub name: String,
    /// Of its weights and configuration, hexadecimal, as every other fingerprint here.
    pub model_fingerprint: String,
    /// Of what its tokenizer does.
    pub tokenizer_fingerprint: String,
    /// Of its documents.
    pub corpus_fingerprint: String,
    /// Of windows, masks, capture and numerics together.
    pub plan_fingerprint: String,
    /// How a row stands for the teacher's distribution: top-k, sampled or head+sampled.
    pub estimator: String,
    /// Entries of a row at most: the K largest logits and what is drawn.
    pub entries: u32,
    /// Draws among them; none where nothing is drawn, or an older teacher does not say.
    pub draws: Option<u32>,
    /// Temperatures at which KL can be had.
    pub temperatures: Vec<f32>,
    /// Hidden states that came along: none, exact, sketch:R or hidden:L.
    pub state: String,
    /// Sequences of one pass.
    pub sequences: u64,
    /// Tokens of one pass.
    pub tokens: u64,
    /// Targets of one pass.
    pub targets: u64,
    /// Longest sequence in tokens.
    pub seq_len: u32,
    /// Ids in every softmax.
    pub vocab_size: u32,
    /// Its program, with the backend.
    pub server_version: String,
}

impl TeacherRecord {
    /// What the handshake told.
    pub fn of(info: &ServerInfo) -> Self {
        let state = match info.state {
            None => "none".to_owned(),
            Some((StateKind::Exact, _)) => "exact".to_owned(),
            Some((StateKind::Sketch, rank)) => format!("sketch:{rank}"),
            Some((StateKind::Hidden, _)) => {
                let layers = info.state_layers.iter().map(u32::to_string);
                format!("hidden:{}", layers.collect::<Vec<_>>().join(","))
            }
        };
        Self {
            name: info.model_name.clone(),
            model_fingerprint: info.model.to_hex(),
            tokenizer_fingerprint: info.tokenizer.to_hex(),
            corpus_fingerprint: info.corpus.to_hex(),
            plan_fingerprint: info.plan.to_hex(),
            estimator: info.estimator.name().to_owned(),
            entries: info.top_k,
            draws: (info.draws > 0).then_some(info.draws),
            temperatures: info.temperatures.clone(),
            state,
            sequences: info.sequence_count,
            tokens: info.token_count,
            targets: info.target_count,
            seq_len: info.seq_len,
            vocab_size: info.vocab_size,
            server_version: info.server_version.clone(),
        }
    }

    /// Reads the record of a run; none where a release before it wrote the run.
    ///
    /// # Errors
    /// A file that cannot be read or is no record.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        files::read_json_if_there(&run.join(TEACHER_FILE), RECORD_BYTES_MAX)
    }

    /// Writes it into the directory of a run.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, run: &Path) -> Result<()> {
        files::write_json(&run.join(TEACHER_FILE), self)
    }

    /// The capture in words.
    pub fn capture(&self) -> String {
        let drawn = match self.draws {
            Some(draws) => format!(", {draws} of them drawn"),
            None => String::new(),
        };
        let temperatures: Vec<String> = self.temperatures.iter().map(f32::to_string).collect();
        format!(
            "{}, {} entries a row at most{drawn}, temperatures {}, state {}",
            self.estimator,
            self.entries,
            temperatures.join(", "),
            self.state
        )
    }
}
