//! Provides the assembly of frames: a sequence of the plan, or one that a client brought, with its rows.

use distill_proto::{Fingerprint, Frame, FrameContext, Rows, frame::Destination};

use crate::{Error, Result, plan::Plan, production::OwnedTokens, store::StoredBlock};

/// The bytes of the plan's frame at `index` with the rows of another one, in `frame`, of the same text and targets.
///
/// # Errors
/// What the frame's rules say, and where text or targets are others.
pub fn move_rows(
    plan: &Plan,
    (index, shard): (u64, u32),
    frame: &[u8],
    from: (u64, u32),
) -> Result<Vec<u8>> {
    let outside = || Error::Internal(format!("frame {index} has no sequence in the plan"));
    let sequence = plan.sequence(index as usize).ok_or_else(outside)?;
    let context = |(index, shard)| FrameContext {
        plan: plan.fingerprint,
        shard,
        index,
    };
    let to = Destination {
        sequence_id: sequence.id,
        text: &sequence.text,
        target_mask: &sequence.target_mask,
        view: sequence.view.as_ref(),
        context: &context((index, shard)),
    };
    Ok(Frame::move_to(frame, &context(from), &to)?)
}

/// The block that is served at `position`, of the one that is kept: as it is where it stands there already, else as a live
/// server would send it.
///
/// # Errors
/// What does not fit of the frame.
pub fn address(plan: Fingerprint, kept: StoredBlock, position: u64) -> Result<StoredBlock> {
    if kept.index == position {
        return Ok(kept);
    }
    let context = |shard, index| FrameContext { plan, shard, index };
    let from = context(kept.shard, kept.index);
    let frame = Frame::move_place(&kept.frame, &from, &context(LIVE_SHARD, position))?;
    Ok(StoredBlock {
        shard: LIVE_SHARD,
        index: position,
        frame: frame.into(),
    })
}

/// Shard that frames name which are in none.
const LIVE_SHARD: u32 = 0;

/// Shard that frames of `ScoreTokens` name, so that none can be taken for a frame of the plan.
pub const SCORED_SHARD: u32 = u32::MAX;

/// The bytes of the plan's frame at `index`.
///
/// # Errors
/// What the frame's rules say.
pub fn encode(plan: &Plan, index: u64, shard: u32, rows: Rows) -> Result<Vec<u8>> {
    let outside = || Error::Internal(format!("frame {index} has no sequence in the plan"));
    let sequence = plan.sequence(index as usize).ok_or_else(outside)?;
    let frame = Frame {
        sequence_id: sequence.id,
        index,
        text_digest: Fingerprint::of(sequence.text.as_bytes()),
        text: sequence.text.clone(),
        token_ids: sequence.token_ids.clone(),
        byte_offsets: sequence.byte_offsets.clone(),
        target_mask: sequence.target_mask.clone(),
        rows,
        view: sequence.view.clone(),
    };
    let context = FrameContext {
        plan: plan.fingerprint,
        shard,
        index,
    };
    Ok(frame.encode(&context)?)
}

/// The bytes of a frame for a sequence that a client brought: without text, since only ids came.
///
/// # Errors
/// What the frame's rules say.
pub fn encode_scored(
    plan: Fingerprint,
    index: u64,
    tokens: OwnedTokens,
    rows: Rows,
) -> Result<Vec<u8>> {
    let frame = Frame {
        sequence_id: index,
        index,
        text_digest: Fingerprint::of(b""),
        text: String::new(),
        byte_offsets: vec![(0, 0); tokens.token_ids.len()],
        token_ids: tokens.token_ids,
        target_mask: tokens.target_mask,
        rows,
        view: None,
    };
    let context = FrameContext {
        plan,
        shard: SCORED_SHARD,
        index,
    };
    Ok(frame.encode(&context)?)
}
