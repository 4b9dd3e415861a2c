//! Prints what frames of real rows take: bytes a token, the KL that coding adds, and the speed of encoding and decoding.
//!
//! ```text
//! python3 tests/baselines/dump_rows.py --model DIR --text FILE --out rows.safetensors
//! cargo run --release -p distill-proto --example frames -- rows.safetensors
//! ```
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use distill_proto::{Estimator, Fingerprint, Frame, FrameContext, Rows, ValueCoding};
use safetensors::SafeTensors;

/// Each frame is coded this often; the fastest time counts.
const REPEATS: usize = 7;
/// Entries a row in the file's `top`.
const STORED: usize = 64;
const PLACE: FrameContext = FrameContext {
    plan: Fingerprint([7; 32]),
    shard: 0,
    index: 0,
};

fn main() -> Result<()> {
    let path = std::env::args()
        .nth(1)
        .context("the file of rows is missing; see the top of this example")?;
    let bytes = std::fs::read(&path).with_context(|| path.clone())?;
    let windows = Windows::read(&SafeTensors::deserialize(&bytes)?)?;
    println!(
        "| rows | coding | B/token | added KL, nats | encode, tokens/s (MB/s) | decode, tokens/s (MB/s) |"
    );
    println!("|---|---|---:|---:|---:|---:|");
    let step = |step| ValueCoding::Step(step);
    let graded = |step| ValueCoding::Graded(step);
    for k in [64, 32, 16] {
        for coding in [
            ValueCoding::GRADED,
            graded(0.03125),
            graded(0.0625),
            step(0.0625),
            step(0.125),
            step(0.25),
            ValueCoding::F16,
        ] {
            measure(&format!("top-k, K = {k}"), windows.top(k, coding)?)?;
        }
    }
    let drawn = [
        ("sampled, 8 draws", "drawn_8"),
        ("sampled, 32 draws", "drawn_32"),
        ("head+sampled, 8 + 16", "head_8_16"),
    ];
    for (title, name) in drawn {
        for coding in [ValueCoding::GRADED, step(0.125), ValueCoding::F16] {
            measure(title, windows.drawn(name, coding)?)?;
        }
    }
    println!(
        "\nComputed, rows alone:\n\n| packing | K = 64 | K = 32 | K = 16 |\n|---|---:|---:|---:|"
    );
    let line = |name: &str, bytes: [f64; 3]| {
        println!(
            "| {name} | {:.0} | {:.0} | {:.0} |",
            bytes[0], bytes[1], bytes[2]
        )
    };
    line(
        "JSON, a list of [id, f32] a token",
        [windows.json(64)?, windows.json(32)?, windows.json(16)?],
    );
    line("u32 + f16", [64.0, 32.0, 16.0].map(|k| 6.0 * k));
    // Its recommended setting: 16 values in bfloat16, a polynomial of six f32 terms for the others, ids of ceil(log2 V) bits.
    let id_bits = f64::from(u32::BITS - (windows.vocab_size - 1).leading_zeros());
    let polynomial =
        |k: f64| (k * id_bits / 8.0).ceil() + 16.0 * 2.0 + if k > 16.0 { 24.0 } else { 0.0 };
    line(
        "DistillKit, recommended setting",
        [64.0, 32.0, 16.0].map(polynomial),
    );
    line(
        "Megatron-LM, before zstd",
        [64.0, 32.0, 16.0].map(|k| 5.0 * k),
    );
    Ok(())
}

/// What the file holds.
struct Windows {
    vocab_size: u32,
    frames: Vec<Frame>,
    /// Of every drawn kind and window.
    drawn: Vec<Drawn>,
}

/// Drawn rows of one window, padding included.
struct Drawn {
    name: String,
    ids: Vec<u32>,
    logits: Vec<f32>,
    counts: Vec<u32>,
}

impl Windows {
    fn read(file: &SafeTensors<'_>) -> Result<Self> {
        let u32s = |name: &str| -> Result<Vec<u32>> {
            let view = file.tensor(name).with_context(|| name.to_owned())?;
            Ok(view
                .data()
                .chunks_exact(4)
                .filter_map(|b| Some(u32::from_le_bytes(b.try_into().ok()?)))
                .collect())
        };
        let f32s = |name: &str| -> Result<Vec<f32>> {
            Ok(u32s(name)?.into_iter().map(f32::from_bits).collect())
        };
        let shape = file.tensor("tokens")?.shape().to_vec();
        let [_, tokens] = *shape.as_slice() else {
            anyhow::bail!("`tokens` is not [windows, tokens]");
        };
        let vocab_size = u32s("vocabulary")?[0];
        let (ids, starts, ends) = (u32s("tokens")?, u32s("starts")?, u32s("ends")?);
        let (kept, logits) = (u32s("top.ids")?, f32s("top.logits")?);
        let columns = [
            f32s("max")?,
            f32s("mean")?,
            f32s("std")?,
            f32s("logsumexp")?,
        ];
        let text = file.tensor("text")?.data();
        let text_ends = u32s("text.ends")?;
        let mut frames = Vec::new();
        let mut drawn = Vec::new();
        for (window, &end) in text_ends.iter().enumerate() {
            let all = window * tokens..(window + 1) * tokens;
            // Row t describes the token after t: the last one's is of no use here.
            let described = all.start..all.end - 1;
            let start = if window == 0 {
                0
            } else {
                text_ends[window - 1]
            };
            let text = String::from_utf8(text[start as usize..end as usize].to_vec());
            let text = text.unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
            let text_end = text.len() as u32;
            let column = |column: &[f32]| column[described.clone()].to_vec();
            frames.push(Frame {
                sequence_id: window as u64,
                index: 0,
                text_digest: Fingerprint::of(text.as_bytes()),
                text,
                token_ids: ids[all.clone()].to_vec(),
                byte_offsets: all
                    .clone()
                    .map(|t| (starts[t].min(text_end), ends[t].min(text_end)))
                    .collect(),
                target_mask: (0..tokens).map(|t| t > 0).collect(),
                view: None,
                rows: Rows {
                    rows: tokens - 1,
                    k: STORED,
                    vocab_size,
                    estimator: Estimator::TopK,
                    coding: ValueCoding::F16,
                    ids: kept[described.start * STORED..described.end * STORED].to_vec(),
                    logits: logits[described.start * STORED..described.end * STORED].to_vec(),
                    counts: vec![],
                    max: column(&columns[0]),
                    mean: column(&columns[1]),
                    std: column(&columns[2]),
                    temperatures: vec![1.0],
                    logsumexp: vec![column(&columns[3])],
                    state: None,
                },
            });
            for kind in ["drawn_8", "drawn_32", "head_8_16"] {
                let part = |part: &str| format!("{kind}.{part}.{window}");
                drawn.push(Drawn {
                    name: format!("{kind}.{window}"),
                    ids: u32s(&part("ids"))?,
                    logits: f32s(&part("logits"))?,
                    counts: u32s(&part("counts"))?,
                });
            }
        }
        Ok(Self {
            vocab_size,
            frames,
            drawn,
        })
    }

    /// Frames with the `k` largest logits.
    fn top(&self, k: usize, coding: ValueCoding) -> Result<Vec<Frame>> {
        let mut frames = self.frames.clone();
        for frame in &mut frames {
            let rows = &mut frame.rows;
            let (mut ids, mut logits) = (vec![], vec![]);
            for (row_ids, row_logits) in rows.ids.chunks(STORED).zip(rows.logits.chunks(STORED)) {
                let mut order: Vec<usize> = (0..STORED).collect();
                order.sort_by(|a, b| row_logits[*b].total_cmp(&row_logits[*a]));
                order.truncate(k);
                order.sort_unstable();
                ids.extend(order.iter().map(|&entry| row_ids[entry]));
                logits.extend(order.iter().map(|&entry| row_logits[entry]));
            }
            (rows.k, rows.ids, rows.logits, rows.coding) = (k, ids, logits, coding);
        }
        Ok(frames)
    }

    /// Frames with drawn rows.
    fn drawn(&self, name: &str, coding: ValueCoding) -> Result<Vec<Frame>> {
        let mut frames = self.frames.clone();
        for (window, frame) in frames.iter_mut().enumerate() {
            let own = format!("{name}.{window}");
            let found = self.drawn.iter().find(|drawn| drawn.name == own);
            let Drawn {
                ids,
                logits,
                counts,
                ..
            } = found.context(own)?;
            let rows = &mut frame.rows;
            let k = ids.len() / (rows.rows + 1);
            (rows.k, rows.coding) = (k, coding);
            rows.estimator = if name.starts_with("head") {
                Estimator::HeadSampled
            } else {
                Estimator::Sampled
            };
            rows.ids = ids[..rows.rows * k].to_vec();
            rows.logits = logits[..rows.rows * k].to_vec();
            rows.counts = counts[..rows.rows * k].to_vec();
        }
        Ok(frames)
    }

    /// Bytes a row as a list of pairs in JSON, in the shortest digits that give the f32 back.
    fn json(&self, k: usize) -> Result<f64> {
        let frames = self.top(k, ValueCoding::F16)?;
        let (mut bytes, mut rows) = (0, 0);
        for frame in frames {
            let pairs = frame.rows.ids.iter().zip(&frame.rows.logits);
            bytes += pairs
                .map(|(id, logit)| format!("[{id},{logit}],").len())
                .sum::<usize>();
            rows += frame.rows.rows;
            bytes += 2 * frame.rows.rows;
        }
        Ok(bytes as f64 / rows as f64)
    }
}

/// Prints a line of the table. MB are of ids, logits and counts, decoded.
fn measure(title: &str, frames: Vec<Frame>) -> Result<()> {
    let (mut bytes, mut tokens, mut decoded_bytes, mut kl, mut rows) = (0, 0, 0, 0.0, 0);
    let (mut encoding, mut decoding) = (Duration::ZERO, Duration::ZERO);
    let coding = frames[0].rows.coding;
    for frame in frames {
        let (mut fastest_encode, mut fastest_decode) = (Duration::MAX, Duration::MAX);
        let mut pair = None;
        for _ in 0..REPEATS {
            let start = Instant::now();
            let encoded = frame.encode(&PLACE)?;
            fastest_encode = fastest_encode.min(start.elapsed());
            let start = Instant::now();
            let read = Frame::decode(&encoded, &PLACE)?;
            fastest_decode = fastest_decode.min(start.elapsed());
            pair = Some((encoded, read));
        }
        let (encoded, read) = pair.context("no repeats")?;
        ensure!(read.rows.ids == frame.rows.ids && read.rows.counts == frame.rows.counts);
        bytes += encoded.len();
        tokens += frame.token_ids.len();
        decoded_bytes +=
            4 * (frame.rows.ids.len() + frame.rows.logits.len() + frame.rows.counts.len());
        kl += (0..frame.rows.rows)
            .map(|row| added_kl(&frame.rows, &read.rows, row))
            .sum::<f64>();
        rows += frame.rows.rows;
        encoding += fastest_encode;
        decoding += fastest_decode;
    }
    let coding = match coding {
        ValueCoding::Step(step) => format!("step {step}"),
        ValueCoding::F16 => "f16".to_owned(),
        ValueCoding::Graded(step) => format!("graded {step}"),
    };
    let speed = |time: Duration| {
        let seconds = time.as_secs_f64();
        format!(
            "{:.0}k ({:.0})",
            tokens as f64 / seconds / 1e3,
            decoded_bytes as f64 / seconds / 1e6
        )
    };
    println!(
        "| {title} | {coding} | {:.1} | {:.1e} | {} | {} |",
        bytes as f64 / tokens as f64,
        kl / rows as f64,
        speed(encoding),
        speed(decoding)
    );
    Ok(())
}

/// KL from a row to what is read of it, with all that is not kept as one bucket.
fn added_kl(rows: &Rows, read: &Rows, row: usize) -> f64 {
    let probability =
        |rows: &Rows, entry: usize| f64::from(rows.logits[entry] - rows.logsumexp[0][row]).exp();
    let term = |p: f64, q: f64| {
        if p > 0.0 {
            p * (p / q.max(1e-30)).ln()
        } else {
            0.0
        }
    };
    let (mut kl, mut kept, mut kept_read) = (0.0, 0.0, 0.0);
    for entry in row * rows.k..(row + 1) * rows.k {
        let padding = rows
            .counts
            .get(entry)
            .is_some_and(|&count| rows.estimator.is_padding(count));
        if !padding {
            let (p, q) = (probability(rows, entry), probability(read, entry));
            kl += term(p, q);
            kept += p;
            kept_read += q;
        }
    }
    // Below what f32 can tell there is no tail.
    let tail = 1.0 - kept;
    kl + if tail > 1e-6 {
        term(tail, 1.0 - kept_read)
    } else {
        0.0
    }
}
