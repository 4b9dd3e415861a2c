//! Reads a corpus as both programs do and prints what it amounts to: `cargo run -p distill-text --example corpus -- MODEL_DIR FILES`.
#![allow(clippy::print_stdout)]

use std::{error::Error, path::PathBuf, time::Instant};

use distill_text::{TokenizerFiles, Windowing, stream_corpus};

const SEQ_LEN: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let usage = "usage: corpus MODEL_DIR FILE_OR_DIR...";
    let tokenizer = TokenizerFiles::open(&arguments.next().ok_or(usage)?)?;
    let files: Vec<PathBuf> = arguments.collect();
    let start = Instant::now();
    let mut bytes = 0;
    let summary = stream_corpus(
        &files,
        &tokenizer,
        &Windowing::new(SEQ_LEN),
        &mut |progress| bytes = progress.bytes,
        &mut |_| Ok(()),
    )?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{summary:#?}");
    println!(
        "{:.1} MB in {seconds:.1} s, {:.1} MB/s",
        bytes as f64 / 1e6,
        bytes as f64 / 1e6 / seconds
    );
    Ok(())
}
