//! Provides the teacher's rows for sequences that this side brings.

use distill_proto::{
    Frame, FrameContext, Rows,
    v1::{ScoreTokensRequest, TokenSequence},
};

use super::{ServerInfo, Teacher};
use crate::{Error, Result};

/// One sequence to be scored.
#[derive(Clone, Debug)]
pub struct SequenceToScore<'a> {
    /// T token ids.
    pub token_ids: &'a [u32],
    /// T flags, true where the token is a target.
    pub target_mask: &'a [bool],
}

impl Teacher {
    /// Scores sequences with the teacher's weights; the answers come in the order of the questions.
    ///
    /// # Errors
    /// A lost connection, a refusal, or an answer about other tokens than those asked for.
    pub async fn score(
        &self,
        info: &ServerInfo,
        sequences: &[SequenceToScore<'_>],
    ) -> Result<Vec<Rows>> {
        let asked = sequences.iter().map(|sequence| TokenSequence {
            token_ids: sequence.token_ids.to_vec(),
            target_mask: sequence.target_mask.to_vec(),
        });
        let request = ScoreTokensRequest {
            sequences: asked.collect(),
            tokenizer_fingerprint: info.tokenizer.to_hex(),
        };
        let answer = self.service().score_tokens(request).await;
        let blocks = answer
            .map_err(|status| self.failed("ScoreTokens", &status))?
            .into_inner()
            .blocks;
        if blocks.len() != sequences.len() {
            return Err(Error::Stream(format!(
                "ScoreTokens answered {} of {} sequences",
                blocks.len(),
                sequences.len()
            )));
        }
        let mut scored = Vec::with_capacity(blocks.len());
        for (block, sequence) in blocks.iter().zip(sequences) {
            let context = FrameContext {
                plan: info.plan,
                shard: block.shard,
                index: block.index,
            };
            let frame = Frame::decode(&block.frame, &context)?;
            if frame.token_ids != sequence.token_ids || frame.target_mask != sequence.target_mask {
                return Err(Error::Stream(
                    "ScoreTokens answered about other tokens".into(),
                ));
            }
            scored.push(frame.rows);
        }
        Ok(scored)
    }
}
