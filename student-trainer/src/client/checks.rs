//! Provides what a teacher's words are held to: its handshake to named limits, everything it sends later to its handshake.

use distill_proto::{
    Frame, Rows,
    limits::{
        KEPT_ENTRIES_MAX, PLAN_SEQUENCES_MAX, SEQUENCE_TOKENS_MAX, STATE_LAYERS_MAX,
        STATE_RANK_MAX, TEMPERATURES_MAX, VOCAB_SIZE_MAX,
    },
    v1::{GetServerInfoResponse, StateKind},
};

use super::ServerInfo;
use crate::{Error, Result};

/// Longest name in a handshake, in bytes; names end up in logs.
const NAME_BYTES_MAX: usize = 1024;

/// Refuses a handshake with a number or a name that no teacher can mean.
pub(super) fn check_handshake(info: &GetServerInfoResponse) -> Result<()> {
    let vocab_size = u64::from(info.effective_vocab_size);
    let (sequences, tokens) = (info.sequence_count, info.token_count);
    within("effective_vocab_size", vocab_size, 1, VOCAB_SIZE_MAX as u64)?;
    let head_rows = u64::from(info.head_rows);
    within("head_rows", head_rows, vocab_size, u64::from(u32::MAX))?;
    let kept = vocab_size.min(KEPT_ENTRIES_MAX as u64);
    within("top_k", info.top_k.into(), 1, kept)?;
    within("sequence_count", sequences, 0, PLAN_SEQUENCES_MAX)?;
    let longest = u64::from(info.seq_len);
    within("seq_len", longest, 0, SEQUENCE_TOKENS_MAX as u64)?;
    within("token_count", tokens, sequences, sequences * longest)?;
    within("target_count", info.target_count, 0, tokens)?;
    let paired = info.paired_sequences;
    within("paired_sequences", paired, 0, sequences)?;
    within(
        "paired_without_shared",
        info.paired_without_shared,
        0,
        paired,
    )?;
    let rank = info.state_rank.into();
    match info.state_kind() {
        StateKind::None => within("state_rank", rank, 0, 0)?,
        // Refused by its own name.
        StateKind::Unspecified => {}
        _ => {
            let layers = info.state_layers.len().clamp(1, STATE_LAYERS_MAX);
            within("state_rank", rank, 1, (layers * STATE_RANK_MAX) as u64)?;
        }
    }
    match info.state_kind() {
        StateKind::Hidden => check_layers(info)?,
        _ => {
            within("state_layer", info.state_layer.into(), 0, 0)?;
            within(
                "number of state_layers",
                info.state_layers.len() as u64,
                0,
                0,
            )?;
        }
    }
    if !(info.state_error.is_finite() && info.state_error >= 0.0) {
        let found = info.state_error;
        return Err(refused("state_error", &found, "a number from 0 on"));
    }
    check_temperatures(&info.temperatures)?;
    check_name("model_name", &info.model_name)?;
    check_name("server_version", &info.server_version)
}

/// Which layers `state` is of; servers before `state_layers` name one, and not the embeddings.
pub(super) fn state_layers(info: &GetServerInfoResponse) -> Vec<u32> {
    let one = (info.state_kind() == StateKind::Hidden).then_some(info.state_layer);
    if info.state_layers.is_empty() {
        return one.into_iter().collect();
    }
    info.state_layers.clone()
}

fn check_layers(info: &GetServerInfoResponse) -> Result<()> {
    let layers = &info.state_layers;
    if layers.is_empty() {
        return within(
            "state_layer",
            info.state_layer.into(),
            1,
            u64::from(u32::MAX),
        );
    }
    let count = layers.len() as u64;
    within("number of state_layers", count, 1, STATE_LAYERS_MAX as u64)?;
    if !layers.is_sorted_by(|a, b| a < b) {
        return Err(refused(
            "state_layers",
            &format!("{layers:?}"),
            "increasing",
        ));
    }
    if !u64::from(info.state_rank).is_multiple_of(count) {
        let wanted = format!("a multiple of its {count} layers");
        return Err(refused("state_rank", &info.state_rank, &wanted));
    }
    Ok(())
}

fn within(field: &str, value: u64, least: u64, most: u64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(refused(field, &value, &format!("from {least} to {most}")))
}

fn check_temperatures(temperatures: &[f32]) -> Result<()> {
    let count = temperatures.len() as u64;
    within("number of temperatures", count, 1, TEMPERATURES_MAX as u64)?;
    let usable = |tau: &f32| tau.is_finite() && *tau > 0.0;
    match temperatures.iter().find(|tau| !usable(tau)) {
        Some(tau) => Err(refused("temperatures", tau, "positive and finite")),
        None => Ok(()),
    }
}

/// A name is printed: it must not move the cursor of a terminal or turn the text around.
fn check_name(field: &str, name: &str) -> Result<()> {
    if name.len() > NAME_BYTES_MAX {
        let most = format!("{NAME_BYTES_MAX} bytes at most");
        return Err(refused(field, &format!("{} bytes", name.len()), &most));
    }
    match name.chars().find(|&c| !is_printable(c)) {
        Some(c) => Err(refused(
            field,
            &format!("{name:?}"),
            &format!("without {c:?}"),
        )),
        None => Ok(()),
    }
}

/// Whether a character only stands for itself: no control character, and no mark of writing direction.
pub(super) fn is_printable(c: char) -> bool {
    !(c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
}

fn refused(field: &str, found: &dyn std::fmt::Display, allowed: &str) -> Error {
    Error::Stream(format!(
        "the handshake's {field} is {found}, but has to be {allowed}; this teacher cannot be trained with"
    ))
}

impl ServerInfo {
    /// Refuses a frame that is larger than agreed before it is unpacked.
    ///
    /// # Errors
    /// No frame at all, or more than `tokens_max` tokens or the agreed entries a row.
    pub(super) fn check_size(&self, what: &str, frame: &[u8], tokens_max: usize) -> Result<()> {
        let summary = Frame::peek(frame)?;
        if summary.tokens as usize > tokens_max {
            let message = format!("{} tokens, {tokens_max} at most", summary.tokens);
            return Err(not_agreed(what, "sequence", &message));
        }
        if summary.k > self.top_k {
            let message = format!("{} entries a row, {} at most", summary.k, self.top_k);
            return Err(not_agreed(what, "K", &message));
        }
        Ok(())
    }

    /// Refuses rows of another kind than agreed: a loss would take them for what they are not.
    ///
    /// # Errors
    /// Names what differs, with both values.
    pub(super) fn check_rows(&self, what: &str, rows: &Rows) -> Result<()> {
        let state = rows.state.as_ref();
        let state = state.map(|state| (state.kind, state.rank, state.layers));
        let layers = self.state_layers.len().max(1);
        let agreed = self.state.map(|(kind, rank)| (kind, rank as usize, layers));
        let pairs = [
            (
                "vocabulary",
                rows.vocab_size.to_string(),
                self.vocab_size.to_string(),
            ),
            (
                "estimator",
                format!("{:?}", rows.estimator),
                format!("{:?}", self.estimator),
            ),
            (
                "temperatures",
                format!("{:?}", rows.temperatures),
                format!("{:?}", self.temperatures),
            ),
            ("state", format!("{state:?}"), format!("{agreed:?}")),
        ];
        match pairs.iter().find(|(_, found, agreed)| found != agreed) {
            None => Ok(()),
            Some((field, found, agreed)) => {
                let message = format!("{found}, the handshake said {agreed}");
                Err(not_agreed(what, field, &message))
            }
        }
    }

    /// Refuses another plan than `before`, or other words about the same one, after a reconnection.
    ///
    /// # Errors
    /// `Mismatch` with both fingerprints, or `Stream` with the field that differs.
    pub fn check_same_plan(&self, before: &ServerInfo) -> Result<()> {
        let pairs = [
            (
                "plan fingerprint after reconnecting",
                self.plan,
                before.plan,
            ),
            (
                "corpus fingerprint after reconnecting",
                self.corpus,
                before.corpus,
            ),
        ];
        if let Some((what, now, before)) = pairs.into_iter().find(|(_, now, before)| now != before)
        {
            return Err(Error::Mismatch {
                what,
                teacher: now.to_string(),
                student: before.to_string(),
                remedy: "start the teacher again with the settings and corpus of before, or start a new run",
            });
        }
        let mut fields = self.agreed_fields().into_iter().zip(before.agreed_fields());
        let changed = fields.find(|((_, now), (_, before))| now != before);
        match changed {
            None => Ok(()),
            Some(((field, now), (_, before))) => Err(Error::Stream(format!(
                "after reconnecting the handshake's {field} is {now}, it was {before}; start the teacher again as it was"
            ))),
        }
    }

    /// Everything that a plan fixes, in words. How the device is shared and the names are free to change.
    fn agreed_fields(&self) -> [(&'static str, String); 17] {
        let Self {
            model,
            tokenizer,
            vocabulary,
            corpus: _,
            plan: _,
            vocab_size,
            head_rows,
            top_k,
            estimator,
            draws,
            temperatures,
            state,
            state_error,
            state_layers,
            sequence_count,
            paired_sequences,
            paired_without_shared,
            token_count,
            target_count,
            seq_len,
            vram_mode: _,
            model_name: _,
            server_version: _,
        } = self;
        [
            ("model fingerprint", model.to_hex()),
            ("tokenizer fingerprint", tokenizer.to_hex()),
            ("vocabulary fingerprint", vocabulary.to_hex()),
            (
                "vocabulary",
                format!("{vocab_size} ids, {head_rows} head rows"),
            ),
            ("top_k", top_k.to_string()),
            ("estimator", format!("{estimator:?}")),
            ("draws", draws.to_string()),
            ("temperatures", format!("{temperatures:?}")),
            ("state", format!("{state:?}")),
            ("state_error", state_error.to_string()),
            ("state_layers", format!("{state_layers:?}")),
            ("sequence_count", sequence_count.to_string()),
            ("paired_sequences", paired_sequences.to_string()),
            ("paired_without_shared", paired_without_shared.to_string()),
            ("token_count", token_count.to_string()),
            ("target_count", target_count.to_string()),
            ("seq_len", seq_len.to_string()),
        ]
    }
}

fn not_agreed(what: &str, field: &str, message: &str) -> Error {
    Error::Stream(format!("{what} is not as agreed: {field}: {message}"))
}
