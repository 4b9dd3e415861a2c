//! Writes the logits of a base with an adapter, to compare them with those of Hugging Face PEFT (tests/fixtures/check_peft.py):
//!
//! ```text
//! cargo run --release -p student-trainer --example adapter_logits -- MODEL_DIR ADAPTER_DIR ids.safetensors out.safetensors
//! ```
//!
//! `ids.safetensors` holds a tensor `ids` [1, T]; `out.safetensors` gets `logits` [1, T, V] in f32. The base is computed as it
//! is stored, in f32; with `-` for the adapter it is computed alone.

use std::{collections::HashMap, path::PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use distill_model::{Decoder, LoadOptions, ModelConfig, Weights};
use student_trainer::run::{AdapterConfig, load_adapter};

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, adapter, ids, out] = &arguments[..] else {
        bail!("usage: adapter_logits MODEL_DIR ADAPTER_DIR ids.safetensors out.safetensors");
    };
    let adapter = (adapter.as_os_str() != "-").then_some(adapter);
    let lora = adapter
        .map(|directory| AdapterConfig::read(directory))
        .transpose()?
        .map(|config| config.lora());
    let options = LoadOptions {
        lora,
        ..LoadOptions::reference()
    };
    let config = ModelConfig::load(model)?;
    let decoder = Decoder::load(&config, &Weights::open(model)?, &options)?;
    if let Some(directory) = adapter {
        load_adapter(directory, &decoder.parameters())?;
    }
    let ids = candle_core::safetensors::load(ids, &Device::Cpu)?;
    let ids = ids.get("ids").context("no tensor `ids`")?;
    let hidden = decoder.hidden_states(&ids.to_dtype(DType::U32)?)?;
    let head = decoder.head()?.to_dtype(DType::F32)?.t()?;
    let logits = hidden.broadcast_matmul(&head)?;
    candle_core::safetensors::save(&HashMap::from([("logits", logits)]), out)?;
    Ok(())
}
