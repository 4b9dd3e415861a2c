//! Provides the command line: what a person may type, before anything is checked.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};

use crate::config::{Precision, StateSetting, ValueCodingSetting};

/// Runs a teacher model over a corpus and serves what it says about every token.
#[derive(Parser, Debug)]
#[command(name = "teacher-server", version, about, arg_required_else_help = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the teacher once over the corpus and stream top-k logit blocks over gRPC.
    Serve(ServeArgs),
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
    /// Directory of the teacher: config.json, *.safetensors, tokenizer.json.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Corpus files: .txt, .md or .jsonl (`text`, `prompt` + `completion`, or `messages`).
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub corpus: Option<Vec<PathBuf>>,
    /// Tokens in a window [default: 512].
    #[arg(long, value_name = "TOKENS")]
    pub seq_len: Option<usize>,
    /// Sequences in one forward pass [default: 1].
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Kept logits a token, K [default: 64].
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Temperatures at which logsumexp is stored, and KL can be had [default: 1,2,4].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub temperatures: Option<Vec<f32>>,
    /// How kept logits are stored: `step:NATS` or `f16` [default: step:0.125].
    #[arg(long, value_name = "CODING")]
    pub value_coding: Option<ValueCodingSetting>,
    /// Hidden state sent along for losses on logit similarities: `none`, `exact:f16`, `exact:i8` [default: exact:f16].
    #[arg(long, value_name = "STATE")]
    pub state: Option<StateSetting>,
    /// Arithmetic of the teacher: `f32`, `bf16`, `f16` [default: f32 on the CPU].
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<Precision>,
    /// Address to listen on: HOST:PORT (port 0 takes a free one) or unix:PATH [default: 127.0.0.1:50051].
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<String>,
    /// File whose content every client must send as a bearer token.
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
    /// Rows of logits that exist at a time: this many times the vocabulary times 4 bytes [default: 128].
    #[arg(long, value_name = "ROWS")]
    pub chunk_rows: Option<usize>,
    /// Threads for the arithmetic [default: one a core].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
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
