//! Provides the program `quickstart`.

use std::process::ExitCode;

use clap::Parser;
use distill_program::{Shutdown, console};
use quickstart::{cli, run};

fn main() -> ExitCode {
    let args = match cli::Args::try_parse() {
        Ok(args) => args,
        Err(usage) => return console::answer(&usage),
    };
    // Nothing that it does alone is worth finishing, and the programs that it started end with it.
    let signals = Shutdown::default().on_signals(|signal| {
        run::end_programs();
        console::say(format_args!(
            "quickstart: stopped; the same --out is made anew by the next run"
        ));
        std::process::exit(signal.exit_status().into());
    });
    let done = signals.map_err(quickstart::Error::Signals);
    match done.and_then(|()| cli::run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::say(format_args!("quickstart: {error}"));
            ExitCode::FAILURE
        }
    }
}
