//! Provides what a teacher says about itself, checked: can this build read it, does it fit the student and the loss.

use distill_proto::{
    Estimator, FORMAT_VERSION, FORMAT_VERSION_PAIRS, Fingerprint, StateKind,
    v1::{self, GetServerInfoResponse},
};

use distill_text::TokenizerFiles;

use super::checks::{check_handshake, state_layers};
use crate::{Error, Result};

/// Whether ids mean the same tokens on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocabularies {
    /// Frames can be used as they are.
    Same,
    /// Their text is encoded again, and their ids are mapped.
    Other,
}

/// The teacher's handshake in this crate's types.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerInfo {
    /// Weights and configuration.
    pub model: Fingerprint,
    /// What the tokenizer does: equal ids for every text.
    pub tokenizer: Fingerprint,
    /// Which id means which token.
    pub vocabulary: Fingerprint,
    /// Documents.
    pub corpus: Fingerprint,
    /// Windows, masks, K, estimator, numerics: what the stream is.
    pub plan: Fingerprint,
    /// Effective vocabulary V: columns of every softmax.
    pub vocab_size: u32,
    /// Rows of the teacher's lm_head, padding included.
    pub head_rows: u32,
    /// Kept entries a row.
    pub top_k: u32,
    /// How a row stands for the distribution.
    pub estimator: Estimator,
    /// Draws among the kept entries; 0 where there are none, or the teacher does not say.
    pub draws: u32,
    /// Temperatures with a stored logsumexp.
    pub temperatures: Vec<f32>,
    /// Kind and rank of `state`, where there is one.
    pub state: Option<(StateKind, u32)>,
    /// Mean relative error of a sketch on held-out text; 0 where `state` is exact.
    pub state_error: f32,
    /// Layers whose outputs `state` holds: 0 the embeddings, their number the output after the final norm; else none.
    pub state_layers: Vec<u32>,
    /// Frames of one pass.
    pub sequence_count: u64,
    /// Tokens of one pass.
    pub token_count: u64,
    /// Targets of one pass.
    pub target_count: u64,
    /// Longest sequence in tokens.
    pub seq_len: u32,
    /// How the device is shared.
    pub vram_mode: v1::VramMode,
    /// Sequences whose student reads a text of its own.
    pub paired_sequences: u64,
    /// Of these, the ones whose sides share nothing.
    pub paired_without_shared: u64,
    /// For messages.
    pub model_name: String,
    /// For messages.
    pub server_version: String,
}

impl TryFrom<GetServerInfoResponse> for ServerInfo {
    type Error = Error;

    fn try_from(info: GetServerInfoResponse) -> Result<Self> {
        // The later version is what a corpus of pairs asks for.
        if ![FORMAT_VERSION, FORMAT_VERSION_PAIRS].contains(&info.format_version) {
            return Err(Error::Mismatch {
                what: "frame format version",
                teacher: info.format_version.to_string(),
                student: format!("{FORMAT_VERSION} and {FORMAT_VERSION_PAIRS}"),
                remedy: "use teacher-server and student-trainer of one release",
            });
        }
        let estimator = info.estimator();
        let state_kind = info.state_kind();
        let vram_mode = info.vram_mode();
        let bad =
            |what: &str| Error::Stream(format!("the handshake's {what} cannot be understood"));
        let digest = |hex: &str, what| Fingerprint::from_hex(hex).ok_or_else(|| bad(what));
        check_handshake(&info)?;
        Ok(Self {
            model: digest(&info.model_fingerprint, "model fingerprint")?,
            tokenizer: digest(&info.tokenizer_fingerprint, "tokenizer fingerprint")?,
            vocabulary: digest(&info.vocabulary_fingerprint, "vocabulary fingerprint")?,
            corpus: digest(&info.corpus_fingerprint, "corpus fingerprint")?,
            plan: digest(&info.plan_fingerprint, "plan fingerprint")?,
            vocab_size: info.effective_vocab_size,
            head_rows: info.head_rows,
            top_k: info.top_k,
            estimator: Estimator::from_schema(estimator).ok_or_else(|| bad("estimator"))?,
            draws: info.draws,
            state: match state_kind {
                v1::StateKind::None => None,
                v1::StateKind::Exact => Some((StateKind::Exact, info.state_rank)),
                v1::StateKind::Sketch => Some((StateKind::Sketch, info.state_rank)),
                v1::StateKind::Hidden => Some((StateKind::Hidden, info.state_rank)),
                v1::StateKind::Unspecified => return Err(bad("state kind")),
            },
            state_error: info.state_error,
            state_layers: state_layers(&info),
            temperatures: info.temperatures,
            sequence_count: info.sequence_count,
            paired_sequences: info.paired_sequences,
            paired_without_shared: info.paired_without_shared,
            token_count: info.token_count,
            target_count: info.target_count,
            seq_len: info.seq_len,
            vram_mode,
            model_name: info.model_name,
            server_version: info.server_version,
        })
    }
}

impl ServerInfo {
    /// Whether the device has to be asked for before anything is put there.
    pub fn lends_device(&self) -> bool {
        self.vram_mode == v1::VramMode::Swap
    }

    /// Tells whether ids mean the same tokens on both sides, and checks that the student has a head row for every one.
    ///
    /// Frames carry ids, so it is the vocabulary that decides. Uploads of one tokenizer may still cut text in another
    /// way (one Qwen2.5 normalises to NFC, another does not); that is worth a warning, and no map.
    ///
    /// `head_rows` are the rows of the student's lm_head, padding included: 151936 of Qwen2.5-1.5B under a teacher
    /// with 152064 is fine, as both stop at the 151665 ids that the tokenizer knows.
    ///
    /// # Errors
    /// `Mismatch` with both values and the remedy.
    pub fn check_student(
        &self,
        tokenizer: &TokenizerFiles,
        head_rows: usize,
    ) -> Result<Vocabularies> {
        if tokenizer.vocabulary_fingerprint() != self.vocabulary {
            check_head(self, tokenizer.size(), head_rows)?;
            return Ok(Vocabularies::Other);
        }
        if tokenizer.fingerprint() != self.tokenizer {
            tracing::warn!(
                "the tokenizers share a vocabulary but cut some texts differently (teacher {}, student {}); training \
                 uses the teacher's ids",
                self.tokenizer,
                tokenizer.fingerprint()
            );
        }
        check_head(self, self.vocab_size, head_rows)?;
        tracing::info!(
            "vocabulary: {} ids count; the rest of the teacher's {} and the student's {head_rows} head rows is padding",
            self.vocab_size,
            self.head_rows
        );
        Ok(Vocabularies::Same)
    }
}

/// The student needs a head row for each of its `tokens`.
fn check_head(info: &ServerInfo, tokens: u32, head_rows: usize) -> Result<()> {
    if tokens as usize <= head_rows {
        return Ok(());
    }
    Err(Error::Mismatch {
        what: "vocabulary",
        teacher: format!("{} ids", info.vocab_size),
        student: format!("{tokens} ids and {head_rows} rows in its lm_head"),
        remedy: "use a student whose lm_head covers every id of its tokenizer",
    })
}
