//! Provides the answer to a name that other servers and trainers use: what it is called here.

use distill_program::console;
use distill_text::{foreign, nearest};

/// What to use in place of `name`, settings in backticks; `None` for a name that nobody knows.
fn explain(name: &str) -> Option<String> {
    let foreign = foreign(name)?;
    Some(match (foreign.trainer, foreign.server) {
        (trainer, "") => format!("it is the trainer's: in student-trainer use {trainer}"),
        (_, server) => format!("here use {server}"),
    })
}

/// What to use in place of `name`, else the nearest of the names that are `known`.
pub(super) fn explain_or_nearest(name: &str, known: &[&str]) -> String {
    let near = || {
        let near = nearest(name, known.iter().copied()).unwrap_or_default();
        format!("the nearest setting is `{near}`")
    };
    explain(name).unwrap_or_else(near)
}

/// A mistake of the command line, where a flag of another program is answered with ours.
pub fn with_our_name(error: clap::Error) -> clap::Error {
    console::advise(error, explain)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use distill_program::settings::Keys;
    use distill_text::FOREIGN;

    use super::*;
    use crate::{cli::Args, config::Config};

    #[test]
    fn every_advice_names_settings_that_exist() {
        let known: Vec<String> = Config::keys().into_iter().map(|key| key.path).collect();
        for foreign in FOREIGN {
            for (i, setting) in foreign.server.split('`').enumerate() {
                let exists = known.iter().any(|key| key == setting) || setting == "out";
                assert!(i % 2 == 0 || exists, "{}: {setting}", foreign.name);
            }
            assert!(
                !known.contains(&foreign.name.to_owned()),
                "{}",
                foreign.name
            );
        }
    }

    #[test]
    fn flags_of_other_programs_are_answered_with_ours() {
        for (flag, ours) in [
            ("--model_name_or_path", "here use --model"),
            ("--max-model-len", "here use --seq-len"),
            ("--max_length", "here use --seq-len"),
            ("--temperature", "here use --temperatures"),
            ("--bf16", "here use --dtype with bf16"),
            ("--port", "here use --bind"),
            ("--learning-rate", "in student-trainer use --lr"),
            ("--output_dir", "here use --cache"),
        ] {
            let args = ["teacher-server", "serve", flag, "1"];
            let error = Args::try_parse_from(args).unwrap_err();
            let message = with_our_name(error).to_string();
            assert!(
                message.contains("tip: ") && message.contains(ours),
                "{message}"
            );
        }
    }
}
