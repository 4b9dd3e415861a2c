//! Provides the frame that a run of a control goes on after (`shuffle_teacher`): the next sequence is given something of it, and no
//! later frame has that.

use std::collections::BTreeMap;

use bytes::Bytes;
use candle_core::{Device, Tensor};
use distill_proto::{Fingerprint, Frame, FrameContext};

use crate::{
    Error, Result,
    align::FrameReader,
    checkpoint::{BEFORE_FILE, Content, Saved},
    client::Received,
};

const FRAME: &str = "frame";
/// The plan's digest, shard and index, which the frame's checksum covers.
const CONTEXT: &str = "context";

/// What a checkpoint keeps of a frame as it came.
pub(super) fn file(received: &Received) -> Result<(&'static str, Content)> {
    let FrameContext { plan, shard, index } = received.context;
    let context = [&plan.0[..], &shard.to_le_bytes(), &index.to_le_bytes()].concat();
    let tensor = |bytes: &[u8]| Tensor::new(bytes, &Device::Cpu);
    let tensors = BTreeMap::from([
        (FRAME.to_owned(), tensor(&received.bytes)?),
        (CONTEXT.to_owned(), tensor(&context)?),
    ]);
    Ok((BEFORE_FILE, Content::Tensors(tensors)))
}

/// Has the reader go on after the frame that was kept, which is returned.
///
/// # Errors
/// There is none, or another thing.
pub(super) fn restore(saved: &dyn Saved, reader: &FrameReader<'_>) -> Result<Received> {
    let tensors = saved.tensors(BEFORE_FILE)?;
    let refused = |reason: String| Error::file(&saved.path(BEFORE_FILE), reason);
    let bytes = |name: &str| -> Result<Vec<u8>> {
        let tensor = tensors.get(name);
        let tensor = tensor.ok_or_else(|| refused(format!("there is no tensor {name}")))?;
        Ok(tensor.to_vec1()?)
    };
    let context = context(&bytes(CONTEXT)?);
    let context = context.ok_or_else(|| refused(format!("{CONTEXT} has another length")))?;
    let bytes = Bytes::from(bytes(FRAME)?);
    let frame = Frame::decode(&bytes, &context).map_err(|e| refused(e.to_string()))?;
    reader.go_on_after(&frame)?;
    Ok(Received {
        frame,
        bytes,
        context,
    })
}

fn context(bytes: &[u8]) -> Option<FrameContext> {
    let (plan, rest) = bytes.split_first_chunk()?;
    let (shard, rest) = rest.split_first_chunk()?;
    let (index, rest) = rest.split_first_chunk()?;
    rest.is_empty().then_some(FrameContext {
        plan: Fingerprint(*plan),
        shard: u32::from_le_bytes(*shard),
        index: u64::from_le_bytes(*index),
    })
}
