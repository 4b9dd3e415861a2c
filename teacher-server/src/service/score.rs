//! Provides ScoreTokens: the checks on what a client brings, and frames for what the teacher says.

use distill_proto::{limits::SEQUENCE_TOKENS_MAX, v1};

use super::check_fingerprint;
use crate::{
    Error, Result,
    frames::{SCORED_SHARD, encode_scored},
    load::Engine,
    production::OwnedTokens,
};

/// Sequences of one request.
pub const SCORE_SEQUENCES_MAX: usize = 256;
/// Tokens of one request over all its sequences.
pub const SCORE_TOKENS_MAX: usize = 1 << 16;

pub(super) async fn score(
    engine: &Engine,
    client: u64,
    request: v1::ScoreTokensRequest,
) -> Result<v1::ScoreTokensResponse> {
    // Where only the vocabularies agree, ids mean the same, and nothing else came.
    check_fingerprint(
        "tokenizer",
        &[engine.tokenizer, engine.vocabulary],
        &request.tokenizer_fingerprint,
        "tokenize with the teacher's tokenizer and send its fingerprint",
    )?;
    let sequences = check(engine, request.sequences)?;
    let rows = engine.production.score(client, sequences.clone()).await?;
    let plan = engine.plan.fingerprint;
    let encode = move || {
        let numbered = (0u64..).zip(sequences.into_iter().zip(rows));
        let block = |(index, (tokens, rows))| {
            Ok(v1::Block {
                frame: encode_scored(plan, index, tokens, rows)?.into(),
                shard: SCORED_SHARD,
                index,
                ..v1::Block::default()
            })
        };
        numbered.map(block).collect::<Result<Vec<_>>>()
    };
    let blocks = tokio::task::spawn_blocking(encode)
        .await
        .map_err(|e| Error::Internal(e.to_string()))??;
    Ok(v1::ScoreTokensResponse { blocks })
}

/// Checks every length and id before the teacher sees one.
fn check(engine: &Engine, sequences: Vec<v1::TokenSequence>) -> Result<Vec<OwnedTokens>> {
    if sequences.is_empty() || sequences.len() > SCORE_SEQUENCES_MAX {
        let reason = format!(
            "{} of them; send 1 to {SCORE_SEQUENCES_MAX}",
            sequences.len()
        );
        return Err(Error::request("sequences", reason));
    }
    let total: usize = sequences
        .iter()
        .map(|sequence| sequence.token_ids.len())
        .sum();
    if total > SCORE_TOKENS_MAX {
        let reason = format!("{total} tokens, above the limit of {SCORE_TOKENS_MAX} a request");
        return Err(Error::request("sequences", reason));
    }
    let vocab_size = engine.info.effective_vocab_size;
    let tokens_max = engine.positions_max.min(SEQUENCE_TOKENS_MAX);
    let check = |(number, sequence): (usize, v1::TokenSequence)| {
        let tokens = OwnedTokens {
            token_ids: sequence.token_ids,
            target_mask: sequence.target_mask,
        };
        match complaint(&tokens, vocab_size, tokens_max) {
            None => Ok(tokens),
            Some((field, reason)) => Err(Error::request(
                format!("sequences[{number}].{field}"),
                reason,
            )),
        }
    };
    sequences.into_iter().enumerate().map(check).collect()
}

/// What is wrong with a sequence, if anything is.
fn complaint(
    tokens: &OwnedTokens,
    vocab_size: u32,
    tokens_max: usize,
) -> Option<(&'static str, String)> {
    let OwnedTokens {
        token_ids,
        target_mask,
    } = tokens;
    let count = token_ids.len();
    if count < 2 || count > tokens_max {
        return Some((
            "token_ids",
            format!("{count} tokens; the teacher takes 2 to {tokens_max}"),
        ));
    }
    let outside = token_ids.iter().position(|&id| id >= vocab_size);
    if let Some((at, id)) = outside.and_then(|at| Some((at, token_ids.get(at)?))) {
        let reason = format!("id {id} at {at} is outside the vocabulary of {vocab_size}");
        return Some(("token_ids", reason));
    }
    if target_mask.len() != count {
        let reason = format!("{} flags for {count} tokens", target_mask.len());
        return Some(("target_mask", reason));
    }
    if target_mask.first() == Some(&true) {
        let reason = "the first token has nothing before it and cannot be a target";
        return Some(("target_mask", reason.to_owned()));
    }
    let none = !target_mask.contains(&true);
    none.then(|| ("target_mask", "names no target".to_owned()))
}
