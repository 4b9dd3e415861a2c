//! Provides the answer to a name that other trainers use, or that this one used before: what it is called here.

use distill_program::console;
use distill_text::foreign;

use super::renamed::renamed;

/// What to use in place of `name`, a flag or a path, settings in backticks; `None` for a name that nobody knows.
pub(super) fn explain(name: &str) -> Option<String> {
    if let Some(now) = renamed(name) {
        return Some(now);
    }
    let foreign = foreign(name.rsplit('.').next().unwrap_or(name))?;
    Some(match (foreign.trainer, foreign.server) {
        ("", server) => format!("it is the teacher's: in teacher-server use {server}"),
        (trainer, _) => format!("here use {trainer}"),
    })
}

/// An error of clap, in which a flag of another trainer is answered with ours.
pub fn with_our_name(error: clap::Error) -> clap::Error {
    console::advise(error, explain)
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;
    use distill_text::FOREIGN;

    use super::*;
    use crate::cli;

    #[test]
    fn every_advice_names_settings_that_exist() {
        let keys = cli::all_keys();
        for foreign in FOREIGN {
            for (i, setting) in foreign.trainer.split('`').enumerate() {
                // `best` is a file.
                if i % 2 == 1 && !["best", "model", "corpus"].contains(&setting) {
                    let known = keys.iter().any(|key| key.path == setting)
                        || (setting == "seq_len" && foreign.trainer.contains("teacher-server"));
                    assert!(known, "{}: {setting}", foreign.name);
                }
            }
        }
    }

    #[test]
    fn no_setting_of_ours_is_told_to_be_another_one() {
        let train = cli::command();
        let train = train.find_subcommand("train").unwrap();
        for foreign in FOREIGN {
            let flag = foreign.name.replace('_', "-");
            let ours = train
                .get_arguments()
                .any(|arg| arg.get_long() == Some(flag.as_str()));
            // Of transport here, of KL there: as a flag it is ours, as a key it is in a section.
            assert!(!ours || foreign.name == "temperature", "{}", foreign.name);
        }
    }

    #[test]
    fn flags_of_other_trainers_are_answered_with_ours() {
        for (flag, ours) in [
            ("--learning-rate", "here use --lr"),
            ("--learning_rate", "here use --lr"),
            ("--per_device_train_batch_size", "--batch-size"),
            ("--gradient_accumulation_steps", "--grad-accumulation"),
            ("--max_steps", "--steps"),
            ("--num_train_epochs", "--epochs"),
            ("--lora_r", "--lora-rank"),
            ("--output_dir", "--out"),
            ("--model_name_or_path", "--student"),
            ("--lr_scheduler_type", "--warmup-ratio"),
            ("--bf16", "--dtype with bf16"),
            ("--beta", "--jsd-beta"),
            ("--kl-divergence", "--reverse-kl-weight for reverse"),
            ("--scope", "--align-block-size: 0 for row"),
            ("--hidden-lr", "--align-projection-lr"),
            ("--max_length", "teacher-server"),
            ("--max_model_len", "in teacher-server use --seq-len"),
        ] {
            let joined = format!("{flag}=1");
            for args in [vec![flag, "1"], vec![joined.as_str()]] {
                let args = [vec!["student-trainer", "train"], args].concat();
                let error = cli::command().try_get_matches_from(args).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::UnknownArgument);
                let message = with_our_name(error).to_string();
                assert!(message.contains("tip: "), "{message}");
                assert!(message.contains(ours), "{flag}: {message}");
            }
        }
        // A slip of the pen is clap's.
        let args = ["student-trainer", "train", "--lora-rnak", "8"];
        let error = cli::command().try_get_matches_from(args).unwrap_err();
        assert!(with_our_name(error).to_string().contains("--lora-rank"));
    }
}
