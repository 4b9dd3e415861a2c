//! Provides the command line: what a person may type, before anything is checked.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};

use distill_model::{ComputeDtype, DeviceChoice};
use distill_text::ChatTemplateKwargs;

use crate::config::{
    EstimatorSetting, Part, StateSetting, ValueCodingSetting, VramMode, with_our_name,
};

/// Runs a teacher model over a corpus and serves what it says about every token.
#[derive(Parser, Debug)]
#[command(name = "teacher-server", version, about, arg_required_else_help = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Args {
    /// Reads the process's arguments.
    ///
    /// # Errors
    /// clap's; a flag of another program is answered with ours.
    pub fn read() -> Result<Self, clap::Error> {
        Self::try_parse().map_err(with_our_name)
    }
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the teacher once over the corpus and stream blocks of logits over gRPC.
    Serve(ServeArgs),
    /// Run the teacher once over the corpus into a cache; run it again after any interruption.
    Precompute(PrecomputeArgs),
    /// Say what is in a cache and, with the model, how well it stands for the teacher.
    Inspect(InspectArgs),
    /// Read every byte of a cache and name what is damaged; fails where something is.
    Verify(VerifyArgs),
    /// Put caches of one plan together, as `precompute --shard` makes them.
    Merge(MergeArgs),
}

/// Flags of `inspect`.
#[derive(clap::Args, Debug)]
pub struct InspectArgs {
    /// Directory of the cache.
    #[arg(value_name = "CACHE")]
    pub cache: PathBuf,
    /// The teacher, a directory or a name on the hub: a sample is computed anew and compared with what is stored.
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    /// Arithmetic of the teacher: `auto`, `f32`, `bf16`, `f16` [default: auto: f32 on the CPU, bf16 on a GPU].
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<ComputeDtype>,
    /// Where the teacher computes: `auto`, `cpu`, `cuda` or `cuda:N` [default: auto: a GPU where there is one].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Sequences of the sample, spread evenly.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub sample: usize,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `verify`.
#[derive(clap::Args, Debug)]
pub struct VerifyArgs {
    /// Directory of the cache.
    #[arg(value_name = "CACHE")]
    pub cache: PathBuf,
    /// Set damaged shards aside and compute again what was damaged in them; needs --model and --corpus.
    #[arg(long, requires = "model", requires = "corpus")]
    pub repair: bool,
    /// The teacher, a directory or a name on the hub.
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    /// Corpus files that the cache was made from.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub corpus: Option<Vec<PathBuf>>,
    /// Where the teacher computes: `auto`, `cpu`, `cuda` or `cuda:N` [default: auto: a GPU where there is one].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Stop at the first line or row of the corpus that cannot be used, instead of skipping and naming it.
    #[arg(long)]
    pub strict: bool,
    /// Threads for the arithmetic [default: one a core].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `merge`.
#[derive(clap::Args, Debug)]
pub struct MergeArgs {
    /// Cache to make or to complete.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Caches with some of the shards each.
    #[arg(value_name = "CACHE", required = true)]
    pub inputs: Vec<PathBuf>,
}

/// Flags of `precompute`.
#[derive(clap::Args, Debug, Default)]
pub struct PrecomputeArgs {
    /// Compute only every N-th shard, from the I-th on, counted from 0: for several machines, each with a cache of its own
    /// that `merge` puts together.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Part>,
    /// Say what there is to compute and how much room it takes, and exit.
    #[arg(long)]
    pub dry_run: bool,
    /// Settings, as for `serve`.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Flags of `serve`.
#[derive(clap::Args, Debug, Default)]
pub struct ServeArgs {
    /// TOML file with any of the settings below, e.g. `seq_len = 512`; flags win over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the resolved settings as TOML and exit.
    #[arg(long)]
    pub print_config: bool,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// Every setting, absent where neither flag nor file names it. Field names are the keys of the file.
#[derive(clap::Args, Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Settings to start from; file and flags win over them. `reference-24gb`: Qwen2.5-7B teaches a 4-bit Qwen2.5-1.5B
    /// windows of 512 tokens, both on one card of 24 GB.
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// The teacher: a directory with config.json, *.safetensors and tokenizer.json, a GGUF file, or a name on the hub
    /// (org/name, org/name@revision).
    #[arg(long, value_name = "DIR|GGUF|NAME")]
    pub model: Option<PathBuf>,
    /// The teacher's tokenizer, where it is not beside or in the model: a directory with tokenizer.json, or a name on the hub.
    #[arg(long, value_name = "DIR|NAME")]
    pub tokenizer: Option<PathBuf>,
    /// Corpus files: .txt, .md, or .jsonl and .parquet (`text`, `prompt` + `completion`, `messages`, `conversations` of
    /// ShareGPT, or `instruction` + `output` of Alpaca).
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub corpus: Option<Vec<PathBuf>>,
    /// Stop at the first line or row of the corpus that cannot be used, instead of skipping and naming it.
    #[arg(long, num_args = 0, default_missing_value = "true")]
    pub strict: Option<bool>,
    /// Variables of the chat template for every conversation, as a JSON object, e.g. {"enable_thinking": false}; a row's own
    /// `chat_template_kwargs` win.
    #[arg(long, value_name = "JSON")]
    pub chat_template_kwargs: Option<ChatTemplateKwargs>,
    /// Tokens in a window [default: 512].
    #[arg(long, value_name = "TOKENS")]
    pub seq_len: Option<usize>,
    /// Sequences in one forward pass [default: 1].
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// How a row stands for the teacher's distribution [default: head+sampled; top-k where only --top-k is given, or
    /// --temperatures are without 1].
    ///
    /// `top-k`: the K largest logits; biased, what lies below them is one number. `sampled`: draws with replacement at
    /// temperature 1, ids with counts; unbiased, and about a dozen distinct ids do the work of hundreds of largest ones.
    /// `head+sampled`: the K largest logits exactly and draws from the rest; unbiased, and the draws are spent where the
    /// head does not reach.
    #[arg(long, value_name = "ESTIMATOR")]
    pub estimator: Option<EstimatorSetting>,
    /// Largest logits kept a token, K; not used by `--estimator sampled` [default: 8 of `head+sampled`, 64 of `top-k`].
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Draws a token of `--estimator sampled` and `head+sampled` [default: 16 of `head+sampled`, 32 of `sampled`].
    #[arg(long, value_name = "N")]
    pub draws: Option<usize>,
    /// Seed of the draws; with it, sequence and position decide what is drawn [default: 0].
    #[arg(long, value_name = "SEED")]
    pub sample_seed: Option<u64>,
    /// Temperatures at which logsumexp is stored, and KL can be had [default: 1,2,4].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub temperatures: Option<Vec<f32>>,
    /// How kept logits are stored: `graded`, `graded:NATS`, `step:NATS` or `f16` [default: graded].
    ///
    /// `graded`: in steps that grow with the distance to the largest logit, from 0.046875 nats (or the given multiple of
    /// 1/1024) to 1; smallest at equal fidelity. `step:NATS`: in equal steps. `f16`: half precision, with exact statistics.
    #[arg(long, value_name = "CODING")]
    pub value_coding: Option<ValueCodingSetting>,
    /// Hidden states sent along, in `:f16` or `:i8`: `none`, `exact`, `sketch:R`, `hidden:L` [default: none].
    ///
    /// `exact`: the last hidden state, from which every inner product of logits can be had exactly. `sketch:R`: R
    /// coordinates in the leading directions of the centred logits, made from a sample of the corpus at the start; its error
    /// is reported (R most often 64 to 256, `:i8` unless `:f16` is given). `hidden:L`: the output of decoder layer L, the
    /// first one is 1, for losses on hidden states; losses on logit similarities cannot be had then.
    #[arg(long, value_name = "STATE")]
    pub state: Option<StateSetting>,
    /// Arithmetic of the teacher: `auto`, `f32`, `bf16`, `f16` [default: auto: f32 on the CPU, bf16 on a GPU].
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<ComputeDtype>,
    /// Where the teacher computes: `auto`, `cpu`, `cuda` or `cuda:N` [default: auto: a GPU where there is one].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Bytes that the teacher's weights may take on the device [default: what is free there].
    #[arg(long, value_name = "BYTES")]
    pub memory_budget_bytes: Option<u64>,
    /// Address to listen on: HOST:PORT (port 0 takes a free one) or unix:PATH [default: 127.0.0.1:50051].
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<String>,
    /// File whose content every client must send as a bearer token [default: the environment's OT_DISTILL_TOKEN, if there].
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// PEM file with the server's certificate chain.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's private key.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Sequences that the teacher may be ahead of the fastest reader [default: 32].
    #[arg(long, value_name = "N")]
    pub queue: Option<usize>,
    /// How the device is shared with trainers: `resident`, `swap` [default: resident].
    ///
    /// `resident`: the teacher stays in memory, beside the student. `swap`: they take turns, for long sequences, bigger batches
    /// or smaller cards: the teacher computes a window of sequences, leaves, and comes back when the trainers need more. A
    /// complete cache needs no teacher in either. `precompute` is always resident.
    #[arg(long, value_name = "MODE")]
    pub vram_mode: Option<VramMode>,
    /// Sequences that the teacher computes in one turn of `--vram-mode swap` for each trainer that needs some
    /// [default: 1024].
    #[arg(long, value_name = "N")]
    pub window: Option<usize>,
    /// Seconds that a trainer gets to finish its step and leave the device before others are told that it hangs; it has to be
    /// longer than a step takes [default: 120].
    #[arg(long, value_name = "SECONDS")]
    pub yield_timeout_s: Option<u64>,
    /// Rows of logits that exist at a time: this many times the vocabulary times 4 bytes [default: 128].
    #[arg(long, value_name = "ROWS")]
    pub chunk_rows: Option<usize>,
    /// Threads for the arithmetic [default: one a core].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Directory of a cache: what is in it is served as it is, without a model when it is complete; what is missing is
    /// computed and kept there [default: a spool that ends with the server].
    #[arg(long, visible_alias = "out", value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Bytes of a shard of a new cache, about [default: 67108864].
    #[arg(long, value_name = "BYTES")]
    pub shard_bytes: Option<u64>,
    /// Directory for the spool that keeps computed blocks while the server runs [default: the system's].
    #[arg(long, value_name = "DIR")]
    pub spool_dir: Option<PathBuf>,
    /// Write the port listened on into this file once it is known.
    #[arg(long, value_name = "FILE")]
    pub port_file: Option<PathBuf>,
    /// Report on standard output as one JSON object a line.
    #[arg(long, num_args = 0, default_missing_value = "true")]
    pub json: Option<bool>,
}
