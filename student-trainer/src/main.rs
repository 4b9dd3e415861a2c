//! Starts `student-trainer`: logging, signals, and the command.

use std::process::ExitCode;

use distill_model::threads;
use distill_program::{Outcome, Shutdown, Signal, console, log};
use student_trainer::{cli, config::with_our_name, ranks::Launch, train};

/// Without what libraries say of attempts that they repeat.
const LOG_FILTER: &str = "info,object_store=warn";

fn main() -> ExitCode {
    let available = threads::available();
    // What cannot be understood of it is refused by the command.
    let launch = Launch::of_this_process().ok().flatten();
    let cores = launch.map_or(available, |launch| launch.cores.threads(available));
    threads::configure_for(cores);
    let matches = match cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(usage) => return console::answer(&with_our_name(usage)),
    };
    // The first of several processes that train together speaks for all.
    let follows = cli::trains(&matches) && launch.is_some_and(|launch| launch.rank > 0);
    log::start(if follows { "error" } else { LOG_FILTER });
    let stops_in_order = cli::stops_in_order(&matches);
    let survives = cli::survives_interrupts(&matches);
    let shutdown = Shutdown::default();
    let signals = shutdown.on_signals(move |signal| {
        // Who talks waits for a line most of the time, and looks out for nothing then.
        if !stops_in_order || (survives && signal != Signal::Interrupt) {
            std::process::exit(signal.exit_status().into());
        }
        if survives || follows || train::is_turn() {
            // Of a turn, the process that started this one says so, and tells it.
            return;
        }
        console::say(format_args!(
            "{signal}: stopping; a second Ctrl-C exits at once"
        ));
    });
    if let Err(error) = signals {
        console::say(format_args!("error: cannot handle signals: {error}"));
        return ExitCode::FAILURE;
    }
    match cli::run(&matches, &shutdown) {
        Ok(outcome) => shutdown.exit_code(outcome),
        Err(error) => {
            // Messages carry their causes themselves.
            console::say(format_args!("error: {error}"));
            if error.is_stop() {
                return shutdown.exit_code(Outcome::Interrupted);
            }
            ExitCode::FAILURE
        }
    }
}
