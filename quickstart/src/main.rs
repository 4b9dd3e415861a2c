//! Provides the program `quickstart`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use quickstart::{
    corpus::{self, Sizes},
    tokenizer,
};

/// Makes what the quickstart trains on.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes arithmetic word problems with worked solutions: train.jsonl, heldout-numbers.jsonl, heldout-templates.jsonl.
    Corpus {
        /// Directory to write into.
        #[arg(long)]
        out: PathBuf,
        /// Training problems.
        #[arg(long, default_value_t = 100_000)]
        train: usize,
        /// Problems of each held-out split.
        #[arg(long, default_value_t = 400)]
        held_out: usize,
        /// The same seed makes the same problems.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Trains the small tokenizer on problems and writes its files.
    Tokenizer {
        /// A file that `corpus` wrote: train.jsonl.
        #[arg(long)]
        corpus: PathBuf,
        /// Directory to write into.
        #[arg(long)]
        out: PathBuf,
        /// Tokens, all bytes among them.
        #[arg(long, default_value_t = tokenizer::VOCAB_SIZE_DEFAULT)]
        vocab_size: usize,
    },
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Corpus {
            out,
            train,
            held_out,
            seed,
        } => {
            for path in corpus::write_corpus(&out, Sizes { train, held_out }, seed)? {
                println!("{}", path.display());
            }
        }
        Command::Tokenizer {
            corpus,
            out,
            vocab_size,
        } => {
            let trained = tokenizer::train(&corpus::read_problems(&corpus)?, vocab_size)?;
            tokenizer::write(&trained, &out)?;
            let tokens = trained.get_vocab_size(true);
            println!("{} ({tokens} tokens)", out.join("tokenizer.json").display());
        }
    }
    Ok(())
}
