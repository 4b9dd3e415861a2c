//! Streams a whole plan twice from a running server, checks every frame and prints rates and sizes:
//! `cargo run --release -p teacher-server --example stream_blocks -- http://127.0.0.1:50051`.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use anyhow::{Context, Result, bail};
use distill_proto::{
    Fingerprint, Frame, FrameContext,
    limits::MESSAGE_BYTES_MAX,
    v1::{
        GetServerInfoRequest, StreamBlocksRequest, stream_blocks_response::Event,
        teacher_service_client::TeacherServiceClient,
    },
};

#[tokio::main]
async fn main() -> Result<()> {
    let address = std::env::args()
        .nth(1)
        .context("name the server, e.g. http://127.0.0.1:50051")?;
    let channel = tonic::transport::Endpoint::from_shared(address)?
        .connect()
        .await?;
    let mut client =
        TeacherServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let info = client
        .get_server_info(GetServerInfoRequest {})
        .await?
        .into_inner();
    let plan = Fingerprint::from_hex(&info.plan_fingerprint).context("plan fingerprint")?;
    for pass in ["computed or kept", "kept"] {
        let start = Instant::now();
        let request = StreamBlocksRequest {
            cursor: Default::default(),
            plan_fingerprint: info.plan_fingerprint.clone(),
            ..Default::default()
        };
        let mut stream = client.stream_blocks(request).await?.into_inner();
        let (mut tokens, mut bytes, mut covered, mut rows) = (0, 0, 0.0, 0);
        loop {
            let message = stream
                .message()
                .await?
                .context("the stream ended without an end")?;
            let Some(Event::Block(block)) = message.event else {
                match message.event {
                    Some(Event::End(end)) if end.count == info.sequence_count => break,
                    Some(Event::End(end)) => bail!("{} of {}", end.count, info.sequence_count),
                    _ => continue,
                }
            };
            let context = FrameContext {
                plan,
                shard: block.shard,
                index: block.index,
            };
            let frame = Frame::decode(&block.frame, &context)?;
            tokens += frame.token_ids.len();
            bytes += block.frame.len();
            rows += frame.rows.rows;
            covered += kept_mass(&frame);
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{pass}: {tokens} tokens in {seconds:.1} s, {:.0} tokens/s, {:.1} bytes/token, kept mass {:.4}",
            tokens as f64 / seconds,
            bytes as f64 / tokens.max(1) as f64,
            covered / rows.max(1) as f64,
        );
    }
    Ok(())
}

/// Probability that the kept entries carry at the first temperature, summed over rows.
fn kept_mass(frame: &Frame) -> f64 {
    let rows = &frame.rows;
    let (Some(tau), Some(logsumexp)) = (rows.temperatures.first(), rows.logsumexp.first()) else {
        return 0.0;
    };
    let of_row = |(logits, lse): (&[f32], &f32)| {
        logits
            .iter()
            .map(|y| f64::from(y / tau - lse).exp())
            .sum::<f64>()
    };
    rows.logits
        .chunks_exact(rows.k)
        .zip(logsumexp)
        .map(of_row)
        .sum()
}
