//! Measures where a teacher's time goes, beside the matrix products that it cannot do without:
//!
//! ```text
//! cargo run --release -p teacher-server --example teacher_parts -- MODEL_DIR IDS [TOP_K] [RUNS] [CHUNK_ROWS]
//! ```
//!
//! `IDS` holds little-endian u32, one sequence. Prints a JSON object of seconds, the best of `RUNS`: `hidden` (all layers),
//! `head` (logits of all targets), `selection` (top-k, statistics), `products` and `head_product` (the same shapes through
//! candle's matmul alone, weights of one shape read again and again).
#![allow(clippy::print_stdout)]

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use distill_model::{Decoder, LoadOptions, ModelConfig, Weights};
use teacher_server::{
    forward::{Capture, Teacher},
    production::{Forward, Tokens},
    selection::Keep,
};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model: PathBuf = arguments.next().context("MODEL_DIR is missing")?.into();
    let ids = std::fs::read(arguments.next().context("IDS is missing")?)?;
    let (words, _) = ids.as_chunks::<4>();
    let ids: Vec<u32> = words.iter().copied().map(u32::from_le_bytes).collect();
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (top_k, runs, chunk_rows) = (number(64)?, number(3)?, number(128)?);

    let config = ModelConfig::load(&model)?;
    let load = || -> Result<Decoder> {
        let weights = Weights::open(&model)?;
        Ok(Decoder::load(&config, &weights, &LoadOptions::reference())?)
    };
    let decoder = load()?;
    let batch = Tensor::new(ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
    let best = |run: &dyn Fn() -> Result<()>| -> Result<f64> {
        run()?;
        let mut seconds = f64::INFINITY;
        for _ in 0..runs {
            let started = Instant::now();
            run()?;
            seconds = seconds.min(started.elapsed().as_secs_f64());
        }
        Ok(seconds)
    };
    let hidden = best(&|| {
        decoder.hidden_states(&batch)?;
        Ok(())
    })?;
    let vocab_size = decoder.head_matrix().rows() as u32;
    let capture = Capture {
        keep: Keep::top_k(top_k),
        temperatures: vec![1.0, 2.0, 4.0],
        chunk_rows,
        ..Capture::largest()
    };
    let teacher = Teacher::new(Box::new(decoder), vocab_size, capture)?;
    let mut target_mask = vec![true; ids.len()];
    target_mask[0] = false;
    let tokens = Tokens {
        id: 0,
        draw_id: 0,
        token_ids: &ids,
        target_mask: &target_mask,
    };
    let logits = best(&|| Ok(teacher.each_logits(&tokens, |_, _| ())?))?;
    let rows = best(&|| {
        teacher.rows(&[tokens])?;
        Ok(())
    })?;
    drop(teacher);

    let (d, width) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.query_size(), config.key_value_size());
    let product = |rows: usize, inputs: usize, outputs: usize| -> Result<f64> {
        let x = Tensor::randn(0f32, 1.0, (rows, inputs), &Device::Cpu)?;
        let w = Tensor::randn(0f32, 1.0, (outputs, inputs), &Device::Cpu)?.t()?;
        best(&|| {
            x.matmul(&w)?;
            Ok(())
        })
    };
    let length = ids.len();
    let layer = product(length, d, queries)?
        + 2.0 * product(length, d, keys)?
        + product(length, queries, d)?
        + 2.0 * product(length, d, width)?
        + product(length, width, d)?;
    let head_product = product(length, d, vocab_size as usize)?;
    let parts = BTreeMap::from([
        ("tokens", length as f64),
        ("hidden", hidden),
        ("head", logits - hidden),
        ("selection", rows - logits),
        ("products", layer * config.num_hidden_layers as f64),
        ("head_product", head_product),
    ]);
    println!("{}", serde_json::to_string(&parts)?);
    Ok(())
}
