//! Provides the command line of `quickstart`.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use crate::{
    Result,
    corpus::{self, Sizes},
    run::programs,
    settings::{self, Effort},
    tokenizer,
};
use clap::{Parser, Subcommand};
use distill_program::{FileError, console};

/// Runs the main job on small embedded models, and makes what they are trained on.
#[derive(Parser)]
#[command(version)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Distils with several losses side by side, each with several seeds and its controls; prints what the judge says of them.
    Run {
        /// A minute: one task, two seeds.
        #[arg(long, conflicts_with = "full")]
        fast: bool,
        /// All losses with five seeds; more than half an hour.
        #[arg(long)]
        full: bool,
        /// Directory of the embedded models.
        #[arg(long, default_value = "assets")]
        assets: PathBuf,
        /// Directory of another teacher; needs --student, and compares cross-entropy and KL only.
        #[arg(long, requires = "student", conflicts_with_all = ["fast", "full"])]
        teacher: Option<PathBuf>,
        /// Directory of the student to distil it into.
        #[arg(long, requires = "teacher")]
        student: Option<PathBuf>,
        /// Text to distil on after the generated problems.
        #[arg(long, requires = "teacher")]
        text: Vec<PathBuf>,
        /// Run directory to create; unset: a new one in runs.
        #[arg(long)]
        out: Option<PathBuf>,
        /// Directory of teacher-server and student-trainer; unset: that of this program.
        #[arg(long)]
        programs: Option<PathBuf>,
    },
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
        /// Of the training problems, write only those with so many steps at most.
        #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
        steps_max: usize,
        /// Write what the quickstart's second task reads instead, pairs.jsonl and pairs-held-out.jsonl: the teacher's side in
        /// English, the student's in Chinese, so many with the student's solution, so many without, so many held out.
        #[arg(long, num_args = 3, value_names = ["LABELLED", "UNLABELLED", "HELD_OUT"], conflicts_with_all = ["train", "held_out", "steps_max", "seed"])]
        pairs: Option<Vec<usize>>,
        /// The same seed makes the same problems.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Writes what the embedded models are trained on, teacher-reads.jsonl and student-reads.jsonl, and what shows whether they have
    /// learned it.
    Readings {
        /// Directory to write into.
        #[arg(long)]
        out: PathBuf,
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

/// Does what the arguments say.
///
/// # Errors
/// What stopped the command.
pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Run {
            fast,
            full,
            assets,
            teacher,
            student,
            text,
            out,
            programs: directory,
        } => {
            let programs = programs(directory)?;
            let name = if teacher.is_some() {
                "real"
            } else {
                "quickstart"
            };
            let out = out.map_or_else(|| settings::new_directory(name), Ok)?;
            let effort = match (fast, full) {
                (true, _) => Effort::Fast,
                (_, true) => Effort::Full,
                _ => Effort::Default,
            };
            let job = match (teacher, student) {
                (Some(teacher), Some(student)) => {
                    settings::real(teacher, student, text, programs, out)?
                }
                _ => settings::embedded(effort, &assets, programs, out)?,
            };
            print(format_args!("{}\n", crate::run::run(&job)?))?;
        }
        Command::Corpus {
            out,
            train,
            held_out,
            steps_max,
            pairs,
            seed,
        } => {
            if let Some(&[labelled, unlabelled, held_out]) = pairs.as_deref() {
                for path in corpus::write_pairs(&out, [labelled, unlabelled, held_out])? {
                    print(format_args!("{}\n", path.display()))?;
                }
                return Ok(());
            }
            let sizes = Sizes {
                train,
                held_out,
                steps_max,
            };
            for path in corpus::write_corpus(&out, sizes, seed)? {
                print(format_args!("{}\n", path.display()))?;
            }
        }
        Command::Readings { out } => {
            for path in corpus::write_readings(&out)? {
                print(format_args!("{}\n", path.display()))?;
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
            let path = out.join("tokenizer.json");
            print(format_args!("{} ({tokens} tokens)\n", path.display()))?;
        }
    }
    Ok(())
}

/// Prints the result of a command.
fn print(result: impl Display) -> Result<()> {
    let out = Path::new("standard output");
    Ok(console::print(result).map_err(FileError::at("write to", out))?)
}
