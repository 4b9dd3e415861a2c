//! Provides every setting of `serve` and `precompute`, declared once.

use std::{net::SocketAddr, path::PathBuf};

use distill_model::{ComputeDtype, DeviceChoice};
use distill_program::{
    settings,
    settings::{Is, Need},
};
use distill_proto::limits::{KEPT_ENTRIES_MAX, TEMPERATURES_MAX};
use distill_text::{
    ChatTemplateKwargs,
    limits::{SEQ_LEN_MAX, SEQ_LEN_MIN},
};

use super::{BindAddress, EstimatorSetting, Part, StateSetting, ValueCodingSetting, VramMode};

/// Sequences in one forward pass.
pub const BATCH_SIZE_MAX: usize = 4096;
/// Sequences the teacher may be ahead.
pub const QUEUE_MAX: usize = 1 << 16;
/// Sequences in a turn of the teacher.
pub const WINDOW_MAX: usize = 1 << 24;
/// Seconds that a trainer may get to leave the device: a day.
pub const YIELD_TIMEOUT_S_MAX: u64 = 86_400;
/// Rows of logits at a time.
pub const CHUNK_ROWS_MAX: usize = 1 << 16;
/// Threads for the arithmetic.
pub const THREADS_MAX: usize = 1024;
/// Bytes of a shard that is about to be written, which is in memory once.
pub const SHARD_BYTES_MAX: u64 = 4 << 30;
/// Largest logits under `top-k`.
pub(super) const TOP_K_DEFAULT: usize = 64;
/// Draws under `sampled`.
pub(super) const DRAWS_DEFAULT: usize = 32;
/// Largest logits and draws under `head+sampled`.
pub(super) const HEAD_DEFAULT: usize = 8;
pub(super) const HEAD_DRAWS_DEFAULT: usize = 16;
/// Largest seed of draws: TOML has no larger integer.
pub const SAMPLE_SEED_MAX: u64 = i64::MAX as u64;

// What settings need beside themselves to have an effect.

/// A server; `precompute` takes the same command line.
const SERVE: Need = &[("", Is::Command("serve"))];
/// A teacher: what a finished cache was captured with is in it.
const MODEL: Need = &[("model", Is::Set)];
/// Rows with draws.
const DRAWN: Need = &[
    ("estimator", Is::One(&["sampled"])),
    ("estimator", Is::One(&["head+sampled"])),
];
/// Rows with the largest logits.
const HEAD: Need = &[
    ("estimator", Is::One(&["top-k"])),
    ("estimator", Is::One(&["head+sampled"])),
];
/// A device that is lent.
const SWAP: Need = &[("vram_mode", Is::One(&["swap"]))];
/// Blocks that are kept.
const CACHE: Need = &[("cache", Is::Set)];
/// Blocks that end with the server.
const NO_CACHE: Need = &[("cache", Is::Unset)];

settings! {
    /// Everything that a teacher can be told, checked. Serialises to the TOML that `--config` reads.
    ///
    /// `changes_bytes` says whether the frame of a sequence has other bytes with another value. Files (model, tokenizer,
    /// corpus) are counted by what is in them, and a device by what computes there: [`crate::plan::Identity`]. The order of
    /// those that do is part of every capture's fingerprint.
    pub struct Config: capture {
        group "Settings":
        /// Settings to start from; file and flags win over them. `reference-24gb`: Qwen2.5-7B teaches a 4-bit Qwen2.5-1.5B
        /// windows of 512 tokens, both on one card of 24 GB.
        preset: Option<String> = None, changes_bytes: no, value: "NAME";
        group "Teacher and corpus":
        /// The teacher: a directory, a GGUF file, or a name on the hub.
        ///
        /// A directory has config.json, *.safetensors and tokenizer.json; a name is org/name or org/name@revision.
        model: PathBuf = PathBuf::new(), changes_bytes: no, value: "DIR|GGUF|NAME", essential: true;
        /// The teacher's tokenizer, where it is not beside or in the model: a directory with tokenizer.json, or a name on the
        /// hub.
        tokenizer: Option<PathBuf> = None, changes_bytes: no, needs: [MODEL], value: "DIR|NAME";
        /// Corpus files: .txt, .md, .jsonl or .parquet.
        ///
        /// Rows of .jsonl and .parquet have `text`, `prompt` + `completion`, `messages`, `conversations` of ShareGPT, or
        /// `instruction` + `output` of Alpaca.
        corpus: Vec<PathBuf> as Words = Vec::new(), changes_bytes: no, needs: [MODEL], value: "FILE", essential: true;
        /// Stop at the first line or row of the corpus that cannot be used, instead of skipping and naming it.
        strict: bool = false, changes_bytes: no, needs: [MODEL];
        /// Variables of the chat template for every conversation, as a JSON object, e.g. {"enable_thinking": false}; a row's
        /// own `chat_template_kwargs` win.
        chat_template_kwargs: Option<ChatTemplateKwargs> as Text = None, changes_bytes: no, needs: [MODEL], value: "JSON";
        /// Tokens in a window.
        seq_len: usize = 512, changes_bytes: yes, limits: SEQ_LEN_MIN..=SEQ_LEN_MAX, needs: [MODEL], value: "TOKENS";
        /// Sequences in one forward pass.
        batch_size: usize = 1, changes_bytes: yes, limits: 1..=BATCH_SIZE_MAX, needs: [MODEL];
        group "What is kept":
        /// Largest logits kept a token, K; not used by `--estimator sampled`.
        top_k: usize = HEAD_DEFAULT, changes_bytes: yes, limits: 1..=KEPT_ENTRIES_MAX, needs: [MODEL, HEAD], value: "K",
            shown: format!("{HEAD_DEFAULT} of `head+sampled`, {TOP_K_DEFAULT} of `top-k`");
        /// Rows of logits that exist at a time: this many times the vocabulary times 4 bytes.
        chunk_rows: usize = 128, changes_bytes: yes, limits: 1..=CHUNK_ROWS_MAX, needs: [MODEL], value: "ROWS";
        /// How a row stands for the teacher's distribution.
        ///
        /// `top-k`: the K largest logits; biased, what lies below them is one number. `sampled`: draws with replacement at
        /// temperature 1, ids with counts; unbiased, and about a dozen distinct ids do the work of hundreds of largest ones.
        /// `head+sampled`: the K largest logits exactly and draws from the rest; unbiased, and the draws are spent where the
        /// head does not reach.
        estimator: EstimatorSetting as Text = EstimatorSetting::default(), changes_bytes: yes, needs: [MODEL],
            value: "ESTIMATOR",
            shown: format!("{}; top-k where only --top-k is given, or --temperatures are without 1", EstimatorSetting::default());
        /// Draws a token of `--estimator sampled` and `head+sampled`.
        draws: usize = HEAD_DRAWS_DEFAULT, changes_bytes: yes, limits: 1..=KEPT_ENTRIES_MAX, needs: [MODEL, DRAWN],
            shown: format!("{HEAD_DRAWS_DEFAULT} of `head+sampled`, {DRAWS_DEFAULT} of `sampled`");
        /// Seed of the draws; with it, sequence and position decide what is drawn.
        sample_seed: u64 = 0, changes_bytes: yes, limits: 0..=SAMPLE_SEED_MAX, needs: [MODEL, DRAWN], value: "SEED";
        /// Temperatures at which logsumexp is stored, and KL can be had.
        temperatures: Vec<f32> = vec![1.0, 2.0, 4.0], changes_bytes: yes, limits: 1..=TEMPERATURES_MAX, needs: [MODEL],
            value: "LIST";
        /// How kept logits are stored: `graded`, `graded:NATS`, `step:NATS` or `f16`.
        ///
        /// `graded`: in steps that grow with the distance to the largest logit, from 0.046875 nats (or the given multiple of
        /// 1/1024) to 1; smallest at equal fidelity. `step:NATS`: in equal steps. `f16`: half precision, with exact
        /// statistics.
        value_coding: ValueCodingSetting as Text = ValueCodingSetting::default(), changes_bytes: yes, needs: [MODEL],
            value: "CODING";
        /// Hidden states sent along, in `:f16` or `:i8`: `none`, `exact`, `sketch:R`, `hidden:L,L,..` (0 embeddings, `last` after the final norm).
        ///
        /// `exact`: the last hidden state, from which every inner product of logits can be had exactly. `sketch:R`: R
        /// coordinates in the leading directions of the centred logits, made from a sample of the corpus at the start; its
        /// error is reported (R most often 64 to 256, `:i8` unless `:f16` is given). `hidden:L`: the output of decoder layer
        /// L, the first one is 1, for losses on hidden states; losses on logit similarities cannot be had then.
        state: StateSetting as Text = StateSetting::None, changes_bytes: yes, needs: [MODEL], value: "STATE";
        group "Device":
        /// Arithmetic of the teacher; `auto` is f32 on the CPU and bf16 on a GPU.
        dtype: ComputeDtype as Text = ComputeDtype::Auto, changes_bytes: yes, needs: [MODEL], value: "DTYPE";
        /// Where the teacher computes: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.
        device: DeviceChoice as Text = DeviceChoice::Auto, changes_bytes: no, value: "DEVICE";
        /// Bytes that the teacher's weights may take on the device; unset: what is free there.
        memory_budget_bytes: Option<u64> = None, changes_bytes: no, needs: [MODEL], value: "BYTES";
        group "Server":
        /// Address to listen on: HOST:PORT or unix:PATH.
        ///
        /// Port 0 takes a free one.
        bind: BindAddress as Text = BindAddress::default(), changes_bytes: no, needs: [SERVE], value: "ADDRESS",
            essential: true;
        /// File whose content every client must send as a bearer token; unset: the environment's OT_DISTILL_TOKEN, if there.
        token_file: Option<PathBuf> = None, changes_bytes: no, needs: [SERVE], value: "FILE";
        /// PEM file with the server's certificate chain.
        tls_cert: Option<PathBuf> = None, changes_bytes: no, needs: [SERVE], value: "FILE";
        /// PEM file with the certificate's private key.
        tls_key: Option<PathBuf> = None, changes_bytes: no, needs: [SERVE], value: "FILE";
        /// Sequences that the teacher may be ahead of the fastest reader.
        queue: usize = 32, changes_bytes: no, limits: 1..=QUEUE_MAX;
        group "Device":
        /// How the device is shared with trainers: `resident`, `swap`.
        ///
        /// `resident`: the teacher stays in memory, beside the student. `swap`: they take turns, for long sequences, bigger
        /// batches or smaller cards: the teacher computes a window of sequences, leaves, and comes back when the trainers need
        /// more. A complete cache needs no teacher in either. `precompute` is always resident.
        vram_mode: VramMode as Text = VramMode::Resident, changes_bytes: no, needs: [SERVE, MODEL], value: "MODE";
        /// Sequences that the teacher computes in one turn of `--vram-mode swap` for each trainer that needs some.
        window: usize = 1024, changes_bytes: no, limits: 1..=WINDOW_MAX, needs: [SERVE, MODEL, SWAP];
        /// Seconds that a trainer gets to finish its step and leave the device before others are told that it hangs; it has
        /// to be longer than a step takes.
        yield_timeout_s: u64 = 120, changes_bytes: no, limits: 1..=YIELD_TIMEOUT_S_MAX, needs: [SERVE, MODEL, SWAP],
            value: "SECONDS";
        /// Threads for the arithmetic; unset: one a core.
        threads: Option<usize> = None, changes_bytes: no, limits: 1..=THREADS_MAX;
        group "Cache":
        /// Directory of a cache, of blocks that were computed or are to be kept.
        ///
        /// What is in it is served as it is, without a model when it is complete; what is missing is computed and kept there;
        /// unset: a spool that ends with the server.
        cache: Option<PathBuf> = None, changes_bytes: no, value: "DIR", alias: "out", essential: true;
        /// Bytes of a shard of a new cache, about.
        shard_bytes: u64 = 64 << 20, changes_bytes: no, limits: 1..=SHARD_BYTES_MAX, needs: [MODEL, CACHE], value: "BYTES";
        /// Directory for the spool that keeps computed blocks while the server runs; unset: the system's.
        spool_dir: Option<PathBuf> = None, changes_bytes: no, needs: [SERVE, NO_CACHE], value: "DIR";
        group "Server":
        /// Write the port listened on into this file once it is known.
        port_file: Option<PathBuf> = None, changes_bytes: no, needs: [SERVE], value: "FILE";
        /// Where Prometheus may read /metrics while it works, and others /healthz, such as 127.0.0.1:9464; unset: nowhere.
        metrics_addr: Option<SocketAddr> as Text = None, changes_bytes: no, value: "HOST:PORT";
        /// Report on standard output as one JSON object a line.
        json: bool = false, changes_bytes: no;
    }
    beside {
        /// Which shards this process computes; absent: all.
        part: Option<Part> = None;
        /// Whether a cache of another backend or build is gone on with: its bytes will not be those of before.
        any_backend: bool = false;
    }
}
