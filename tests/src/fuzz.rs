//! Provides every reader of outside bytes as a function of bytes, for fuzzers: none may panic, hang, or take memory without bound.
//!
//! `tests/fuzz` runs them under libFuzzer; the tests replay its corpus and go on from it for a minute. A checksum that would
//! keep changed bytes out of what lies behind it is made right first.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::Parser;
use distill_model::{Gguf, ModelConfig, Weights};
use distill_proto::{Fingerprint, Frame, FrameContext, ShardHeader, v1};
use distill_text::{TokenizerFiles, Windowing, stream_corpus};
use prost::Message;
use student_trainer::checkpoint::RunState;
use student_trainer::config::{self, TrainConfig};
use student_trainer::run::AdapterConfig;
use teacher_server::cli::{Args, Command};
use tempfile::TempDir;

use crate::fixtures;

/// A reader of outside bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its corpus is the directory of this name under `fuzz/corpus`.
    pub name: &'static str,
    /// Reads the bytes; what it refuses is refused by an error that nobody looks at here.
    pub read: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    target("frame", frame),
    target("shard", shard),
    target("safetensors", safetensors),
    target("gguf", gguf),
    target("config", model_config),
    target("tokenizer", tokenizer),
    target("template", template),
    target("jsonl", jsonl),
    target("parquet", parquet),
    target("adapter", adapter),
    target("trainer_toml", trainer_toml),
    target("server_toml", server_toml),
    target("checkpoint", checkpoint),
    target("requests", requests),
];

const fn target(name: &'static str, read: fn(&[u8])) -> Target {
    Target { name, read }
}

/// The target with this name.
pub fn named(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Where the committed corpus of a target lies.
pub fn corpus(target: &Target) -> PathBuf {
    let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    fuzz.join("corpus").join(target.name)
}

/// Bytes of a frame's checksum, and of a shard's.
const CHECKSUM_BYTES: usize = 16;

/// `bytes` with the last 16 of them replaced by the digest of what `covered` puts before the others.
fn sealed(bytes: &[u8], before: &[&[u8]]) -> Option<Vec<u8>> {
    let (covered, _) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_BYTES)?)?;
    let mut hasher = blake3::Hasher::new();
    for part in before {
        hasher.update(part);
    }
    hasher.update(covered);
    let mut digest = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut digest);
    Some([covered, &digest].concat())
}

fn frame(bytes: &[u8]) {
    let _ = Frame::peek(bytes);
    let context = FrameContext {
        plan: Fingerprint([7; 32]),
        shard: 3,
        index: Frame::peek(bytes).map_or(0, |summary| summary.index),
    };
    let before: [&[u8]; 3] = [
        &context.plan.0,
        &context.shard.to_le_bytes(),
        &context.index.to_le_bytes(),
    ];
    let Some(bytes) = sealed(bytes, &before) else {
        return;
    };
    let Ok(mut frame) = Frame::decode(&bytes, &context) else {
        return;
    };
    // What restores the kept mass may lift logits above the maximum, which a writer never does.
    let rows = &mut frame.rows;
    for (logits, max) in rows.logits.chunks_mut(rows.k).zip(&rows.max) {
        logits.iter_mut().for_each(|logit| *logit = logit.min(*max));
    }
    let again = frame.encode(&context);
    let again = again.expect("what was read can be written");
    let again = Frame::decode(&again, &context).expect("what was written can be read");
    assert_eq!(frame.token_ids, again.token_ids);
}

fn shard(bytes: &[u8]) {
    let field = |range: std::ops::Range<usize>| bytes.get(range);
    let (Some(number), Some(file), Some(plan)) = (field(8..12), field(24..32), field(32..64))
    else {
        return;
    };
    let number = number.iter().rev().fold(0, |n, &b| n << 8 | u32::from(b));
    let file = file.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
    let plan = Fingerprint(plan.try_into().unwrap_or_default());
    let Some(bytes) = sealed(bytes, &[]) else {
        return;
    };
    if let Ok(header) = ShardHeader::decode(&bytes, plan, number, file) {
        for position in 0..header.entries.len() {
            let _ = (header.extent(position), header.context(position));
        }
    }
}

/// A directory with a model and a tokenizer, whose files targets replace by bytes of the fuzzer's.
static MODEL: LazyLock<TempDir> = LazyLock::new(|| {
    fixtures::model_directory("qwen2-tied", "tokenizer").expect("fixtures are there")
});

/// A fresh directory with this one file.
fn directory(name: &str, bytes: &[u8]) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join(name), bytes).expect("a temporary file");
    directory
}

fn safetensors(bytes: &[u8]) {
    let directory = directory("model.safetensors", bytes);
    let Ok(weights) = Weights::open(directory.path()) else {
        return;
    };
    let names: Vec<String> = weights.names().map(str::to_owned).collect();
    for name in names {
        let _ = (weights.shape(&name), weights.raw(&name));
    }
    let _ = weights.fingerprint();
}

fn gguf(bytes: &[u8]) {
    let directory = directory("model.gguf", bytes);
    if let Ok(gguf) = Gguf::open(&directory.path().join("model.gguf")) {
        let _ = (gguf.tokenizer(), gguf.tokenizer_files());
    }
}

fn model_config(bytes: &[u8]) {
    let directory = directory("config.json", bytes);
    if let Ok(config) = ModelConfig::load(directory.path()) {
        let _ = config.parameter_shapes();
    }
}

fn tokenizer(bytes: &[u8]) {
    let directory = directory("tokenizer.json", bytes);
    if let Ok(files) = TokenizerFiles::open(directory.path()) {
        let _ = files.encode("He said: \"Bärenhöhle\" 3.14\n\n世界 <|im_end|>");
        let _ = (files.fingerprint(), files.token_bytes());
    }
}

fn template(bytes: &[u8]) {
    let directory = directory("chat_template.jinja", bytes);
    let copied = fs::copy(
        MODEL.path().join("tokenizer.json"),
        directory.path().join("tokenizer.json"),
    );
    copied.expect("the fixture's tokenizer");
    let Ok(files) = TokenizerFiles::open(directory.path()) else {
        return;
    };
    let messages = serde_json::json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": "two?" },
        { "role": "assistant", "content": "<think>1+1</think>2" },
        { "role": "user", "content": "three?" },
        { "role": "assistant", "content": "3", "tool_calls": [{ "function": { "name": "f", "arguments": { "x": 1.5 } } }] },
    ]);
    let _ = files.render_chat(&messages, true);
    let row = serde_json::json!({ "messages": messages }).to_string();
    read_corpus("c.jsonl", row.as_bytes(), &files);
}

fn read_corpus(name: &str, bytes: &[u8], files: &TokenizerFiles) {
    let directory = directory(name, bytes);
    let mut tokens = 0;
    let _ = stream_corpus(
        &[directory.path().join(name)],
        files,
        &Windowing::new(64),
        &mut |_| {},
        &mut |sequence| {
            assert_eq!(sequence.token_ids.len(), sequence.byte_offsets.len());
            assert!(sequence.targets() > 0);
            tokens += sequence.token_ids.len();
            Ok(())
        },
    );
}

fn jsonl(bytes: &[u8]) {
    static FILES: LazyLock<TokenizerFiles> =
        LazyLock::new(|| TokenizerFiles::open(MODEL.path()).expect("the fixture's tokenizer"));
    read_corpus("c.jsonl", bytes, &FILES);
}

fn parquet(bytes: &[u8]) {
    static FILES: LazyLock<TokenizerFiles> =
        LazyLock::new(|| TokenizerFiles::open(MODEL.path()).expect("the fixture's tokenizer"));
    read_corpus("c.parquet", bytes, &FILES);
}

fn adapter(bytes: &[u8]) {
    let directory = directory("adapter_config.json", bytes);
    if let Ok(config) = AdapterConfig::read(directory.path()) {
        let lora = config.lora();
        for layer in [0, 27] {
            let name = format!("model.layers.{layer}.self_attn.q_proj");
            let _ = (lora.rank_of(&name), lora.adapts(&name));
        }
    }
}

fn trainer_toml(bytes: &[u8]) {
    let directory = directory("run.toml", bytes);
    let path = directory.path().join("run.toml");
    let command = config::with_flags::<TrainConfig>(clap::Command::new("train"));
    let Ok(matches) = command.try_get_matches_from(["train"]) else {
        return;
    };
    let known = student_trainer::cli::all_keys();
    if let Ok(resolved) = config::resolve_over::<TrainConfig>(Some(&path), &matches, &known) {
        let _ = resolved.config.validate();
    }
}

fn server_toml(bytes: &[u8]) {
    let directory = directory("serve.toml", bytes);
    let path = directory.path().join("serve.toml");
    let args = ["teacher-server", "serve", "--config"].map(std::ffi::OsString::from);
    let args = args.into_iter().chain([path.into_os_string()]);
    if let Ok(Args {
        command: Command::Serve(args),
    }) = Args::try_parse_from(args)
    {
        let _ = args.resolve("serve");
    }
}

fn checkpoint(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok((state, _)) = RunState::from_text(text) {
        let _ = state.identity.check(&state.identity);
    }
}

/// Every request as its bytes come; the first byte says which.
fn requests(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    match which % 8 {
        0 => drop(v1::GetServerInfoRequest::decode(bytes)),
        1 => drop(v1::StreamBlocksRequest::decode(bytes)),
        2 => drop(v1::GetBasisRequest::decode(bytes)),
        3 => drop(v1::GetVocabularyRequest::decode(bytes)),
        4 => drop(v1::FetchBlocksRequest::decode(bytes)),
        5 => drop(v1::ScoreTokensRequest::decode(bytes)),
        6 => drop(v1::ReleaseDeviceRequest::decode(bytes)),
        _ => drop(v1::GenerateRequest::decode(bytes)),
    }
}
