//! Provides tiny plans, a fake teacher, and a model directory with a byte-level tokenizer, for this crate's tests.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use candle_core::{DType, Device};
use clap::Parser;
use distill_model::{
    Base, Decoder, LoadOptions, ModelConfig, Weights,
    testing::{TinyModel, write_tiny_model},
};
use distill_proto::{Estimator, Fingerprint, Rows, ValueCoding};
use distill_text::Sequence;
use serde_json::{Value, json};

use crate::{
    Error, Result,
    cli::{Args, Command},
    config::Config,
    plan::Plan,
    production::{Forward, Tokens},
};

/// Rows of the tiny model's head: more than its tokenizer knows ids, as with real models.
pub const HEAD_ROWS: usize = 272;
/// Ids that the tiny tokenizer knows: all bytes and two special tokens.
pub const VOCAB_SIZE: u32 = 258;

/// A sequence of `tokens` tokens, all but the first of them targets, whose ids depend on `id`.
pub fn sequence(id: u64, tokens: usize) -> Sequence {
    Sequence {
        id,
        content_id: id,
        text: "x".repeat(tokens),
        token_ids: (0..tokens as u64)
            .map(|t| ((id * 7 + t * 3) % 10) as u32)
            .collect(),
        byte_offsets: (0..tokens as u32).map(|t| (t, t + 1)).collect(),
        target_mask: (0..tokens).map(|t| t > 0).collect(),
        view: None,
    }
}

/// A plan of `count` sequences with ids 100, 101, ...
pub fn plan(count: u64, batch_size: usize) -> Arc<Plan> {
    let sequences = (0..count)
        .map(|i| sequence(100 + i, 3 + i as usize % 3))
        .collect();
    let fingerprint = Fingerprint::of(b"plan");
    Arc::new(Plan::of_sequences(fingerprint, fingerprint, sequences, batch_size).unwrap())
}

/// A teacher without a model: K = 1 rows made from the token ids. Fails on the sequence id in `fails_on`.
#[derive(Default, Clone)]
pub struct FakeTeacher {
    /// Batches computed so far.
    pub batches: Arc<AtomicU64>,
    /// Sequence that fails; zero for none.
    pub fails_on: Arc<AtomicU64>,
}

impl Forward for FakeTeacher {
    fn rows(&self, batch: &[Tokens<'_>]) -> Result<Vec<Rows>> {
        self.batches.fetch_add(1, Ordering::SeqCst);
        let fails_on = self.fails_on.load(Ordering::SeqCst);
        batch
            .iter()
            .map(|tokens| match tokens.id {
                id if fails_on != 0 && id == fails_on => Err(Error::NotFinite {
                    sequence: id,
                    position: 1,
                }),
                _ => Ok(rows(tokens)),
            })
            .collect()
    }
}

fn rows(tokens: &Tokens<'_>) -> Rows {
    let pairs = tokens.token_ids.iter().zip(tokens.target_mask);
    let ids: Vec<u32> = pairs
        .filter(|(_, target)| **target)
        .map(|(id, _)| *id)
        .collect();
    let n = ids.len();
    Rows {
        rows: n,
        k: 1,
        vocab_size: VOCAB_SIZE,
        estimator: Estimator::TopK,
        coding: ValueCoding::Step(0.125),
        ids,
        logits: vec![1.0; n],
        counts: vec![],
        max: vec![1.0; n],
        mean: vec![0.0; n],
        std: vec![0.5; n],
        temperatures: vec![1.0],
        logsumexp: vec![vec![1.5; n]],
        state: None,
    }
}

/// What `serve` makes of these flags, or says of them.
pub fn serve(flags: &[&str]) -> Result<Config> {
    let args = ["teacher-server", "serve"].iter().chain(flags);
    let usage = |error: clap::Error| Error::Internal(error.to_string());
    let Command::Serve(args) = Args::try_parse_from(args).map_err(usage)?.command else {
        panic!("not serve");
    };
    Ok(args.resolve("serve")?.config)
}

/// The decoder of such a directory.
pub fn decoder(dtype: DType) -> Box<Decoder> {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let options = LoadOptions {
        dtype,
        device: Device::Cpu,
        base: Base::AsStored,
        lora: None,
    };
    let weights = Weights::open(dir.path()).unwrap();
    let config = ModelConfig::load(dir.path()).unwrap();
    Box::new(Decoder::load(&config, &weights, &options).unwrap())
}

/// A model directory: tiny Qwen2 weights and a tokenizer whose ids are bytes.
pub fn write_model(dir: &Path) {
    let model = TinyModel {
        vocab_size: HEAD_ROWS,
        ..TinyModel::qwen2()
    };
    write_model_of(dir, &model);
}

/// The same of another shape.
pub fn write_model_of(dir: &Path, model: &TinyModel) {
    write_tiny_model(dir, model, 7).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    let config = json!({"eos_token": "<|end|>"});
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
}

fn tokenizer() -> Value {
    // The characters that byte-level tokenizers write bytes as: printable ones as they are, the rest from U+0100 on.
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    let characters = (0..256u32).map(|byte| match printable(byte) {
        true => byte,
        false => others.next().unwrap(),
    });
    let vocab: serde_json::Map<String, Value> = characters
        .zip(0u32..)
        .map(|(code, id)| (char::from_u32(code).unwrap().to_string(), json!(id)))
        .collect();
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(256, "<|start|>"), special(257, "<|end|>")],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []
        }
    })
}
