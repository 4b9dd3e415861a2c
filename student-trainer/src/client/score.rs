//! Provides the teacher's rows for sequences that this side brings.

use std::time::{Duration, Instant};

use distill_proto::{
    Frame, FrameContext, Rows,
    v1::{ScoreTokensRequest, ScoreTokensResponse, TokenSequence},
};

use tonic::Status;
use tonic_types::StatusExt;

use super::{ServerInfo, Teacher, connect::within, retry};
use crate::{Error, Result, shutdown::Shutdown};

/// Between two questions while another has the device.
const HELD_INTERVAL: Duration = Duration::from_millis(500);
/// Between two messages about that.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);
/// Longest wait for an answer: others may be asked about first, on a slow device.
const ANSWER_MAX: Duration = Duration::from_secs(3600);
/// Reason of a teacher that has lent its device.
const DEVICE_HELD: &str = "DEVICE_HELD";

/// One sequence to be scored.
#[derive(Clone, Debug)]
pub struct SequenceToScore<'a> {
    /// T token ids.
    pub token_ids: &'a [u32],
    /// T flags, true where the token is a target.
    pub target_mask: &'a [bool],
}

impl Teacher {
    /// Asks for sequences to be scored with the teacher's weights; [`scored`] reads the answer. After a lost connection
    /// it waits for the teacher and asks again, `attempts` times at most; while another trainer has the device that the teacher
    /// needs for it, for as long as that takes.
    ///
    /// # Errors
    /// A connection that stays lost, or a refusal.
    pub async fn ask_to_score(
        &self,
        info: &ServerInfo,
        sequences: &[SequenceToScore<'_>],
        attempts: u32,
        shutdown: &Shutdown,
    ) -> Result<ScoreTokensResponse> {
        let asked = sequences.iter().map(|sequence| TokenSequence {
            token_ids: sequence.token_ids.to_vec(),
            target_mask: sequence.target_mask.to_vec(),
        });
        let request = ScoreTokensRequest {
            sequences: asked.collect(),
            tokenizer_fingerprint: info.tokenizer.to_hex(),
        };
        let mut failures = 0;
        let mut told: Option<Instant> = None;
        loop {
            let mut service = self.service();
            match within(ANSWER_MAX, service.score_tokens(request.clone())).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if is_device_held(&status) => {
                    if told.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
                        tracing::info!("waiting to score: {}", status.message());
                        told = Some(Instant::now());
                    }
                    tokio::time::sleep(HELD_INTERVAL).await;
                }
                Err(status) if failures < attempts && retry::is_transient(status.code()) => {
                    failures += 1;
                    tracing::warn!(
                        "ScoreTokens failed: {}; asking again ({failures} of {attempts})",
                        retry::describe(&status)
                    );
                    tokio::time::sleep(retry::delay(failures)).await;
                    self.wait_until_serving(shutdown).await?;
                }
                Err(status) => return Err(self.failed("ScoreTokens", &status)),
            }
        }
    }
}

/// What the teacher says of `sequences`, in their order.
///
/// # Errors
/// An answer about other tokens than those asked for.
pub fn scored(
    info: &ServerInfo,
    sequences: &[SequenceToScore<'_>],
    answer: &ScoreTokensResponse,
) -> Result<Vec<Rows>> {
    let blocks = &answer.blocks;
    if blocks.len() != sequences.len() {
        return Err(Error::Stream(format!(
            "ScoreTokens answered {} of {} sequences",
            blocks.len(),
            sequences.len()
        )));
    }
    let mut scored = Vec::with_capacity(blocks.len());
    for (number, (block, sequence)) in blocks.iter().zip(sequences).enumerate() {
        let what = format!("answer {number} of ScoreTokens");
        info.check_size(&what, &block.frame, sequence.token_ids.len())?;
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
        info.check_rows(&what, &frame.rows)?;
        scored.push(frame.rows);
    }
    Ok(scored)
}

fn is_device_held(status: &Status) -> bool {
    let info = status.get_details_error_info();
    info.is_some_and(|info| info.reason == DEVICE_HELD)
}
