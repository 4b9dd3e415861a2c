//! Fetches a model by name and prints where it is: `cargo run -p distill-hub --example fetch -- org/name`.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{path::Path, process::ExitCode};

use distill_hub::{Options, resolve};

fn main() -> ExitCode {
    let Some(name) = std::env::args().nth(1) else {
        eprintln!("usage: fetch org/name[@revision]");
        return ExitCode::FAILURE;
    };
    match resolve(Path::new(&name), &Options::model(&|| false)) {
        Ok(located) => {
            println!("{}", located.path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
