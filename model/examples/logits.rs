//! Writes a model's hidden states and logits of one sequence, to compare them with another
//! implementation's:
//!
//! ```text
//! cargo run --release -p distill-model --example logits -- \
//!     --model DIR --ids ids.safetensors --dtype f32|bf16|f16 --out out.safetensors
//! ```
//!
//! `ids.safetensors` holds a tensor `ids` [1, T] (i64, i32 or u32); a file of any other name holds T
//! little-endian u32. `out.safetensors` gets `hidden` [T, d] and `logits` [T, V], both f32.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use distill_model::{Decoder, LoadOptions, ModelConfig, Weights};

/// Rows of logits computed at once.
const CHUNK_ROWS: usize = 64;

struct Args {
    model: PathBuf,
    ids: PathBuf,
    dtype: DType,
    out: PathBuf,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut values = HashMap::new();
        let mut arguments = std::env::args().skip(1);
        while let Some(flag) = arguments.next() {
            let value = arguments
                .next()
                .with_context(|| format!("{flag} needs a value"))?;
            values.insert(flag, value);
        }
        let mut take = |flag: &str| {
            values
                .remove(flag)
                .with_context(|| format!("{flag} is missing"))
        };
        let args = Self {
            model: take("--model")?.into(),
            ids: take("--ids")?.into(),
            out: take("--out")?.into(),
            dtype: match take("--dtype")?.as_str() {
                "f32" => DType::F32,
                "bf16" => DType::BF16,
                "f16" => DType::F16,
                other => bail!("--dtype {other}: use f32, bf16 or f16"),
            },
        };
        match values.keys().next() {
            Some(unknown) => bail!("{unknown} is unknown"),
            None => Ok(args),
        }
    }
}

fn read_ids(path: &Path) -> Result<Tensor> {
    if path.extension().is_some_and(|end| end == "safetensors") {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        let ids = tensors.get("ids").context("no tensor `ids`")?;
        return Ok(ids.to_dtype(DType::U32)?);
    }
    let bytes = std::fs::read(path)?;
    let (words, _) = bytes.as_chunks::<{ size_of::<u32>() }>();
    let ids: Vec<u32> = words.iter().copied().map(u32::from_le_bytes).collect();
    Ok(Tensor::from_vec(ids, (1, words.len()), &Device::Cpu)?)
}

fn main() -> Result<()> {
    let args = Args::parse()?;
    let config = ModelConfig::load(&args.model)?;
    let options = LoadOptions {
        dtype: args.dtype,
        ..LoadOptions::reference()
    };
    let started = Instant::now();
    let decoder = Decoder::load(&config, &Weights::open(&args.model)?, &options)?;
    let load_seconds = started.elapsed().as_secs_f64();

    let ids = read_ids(&args.ids)?;
    let started = Instant::now();
    let hidden = decoder.hidden_states(&ids)?;
    let seconds = started.elapsed().as_secs_f64();
    let tokens = ids.elem_count();
    println!(
        "loaded in {load_seconds:.1} s; {tokens} tokens in {seconds:.2} s ({:.0} hidden tokens/s)",
        tokens as f64 / seconds
    );

    // As the teacher forms them: from hidden states in the model's dtype, but never rounded to it themselves.
    let rows = hidden.flatten_to(1)?.to_dtype(DType::F32)?;
    let head = decoder.head()?.to_dtype(DType::F32)?.t()?;
    let logits = (0..tokens)
        .step_by(CHUNK_ROWS)
        .map(|start| {
            let rows = rows.narrow(0, start, CHUNK_ROWS.min(tokens - start))?;
            rows.matmul(&head)
        })
        .collect::<candle_core::Result<Vec<Tensor>>>()?;
    let out = HashMap::from([("hidden", rows), ("logits", Tensor::cat(&logits, 0)?)]);
    candle_core::safetensors::save(&out, &args.out)?;
    Ok(())
}
