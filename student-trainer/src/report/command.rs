//! Provides the command that a run's settings come to, as people type it.

use distill_program::settings::{Key, lookup, show};
use toml::Table;

/// The program with `command`, and a flag for every setting that is not its default.
pub(super) fn command(name: &str, keys: &[Key], settings: &Table, defaults: &Table) -> String {
    let mut words = vec!["student-trainer".to_owned(), name.to_owned()];
    for key in keys {
        let Some(value) = lookup(settings, &key.path) else {
            continue;
        };
        if lookup(defaults, &key.path) != Some(value) {
            words.extend([format!("--{}", key.flag()), quoted(&show(value))]);
        }
    }
    words.join(" ")
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli,
        config::{Keys, TrainConfig},
    };

    #[test]
    fn the_command_is_taken_as_it_stands_and_gives_the_same_settings() {
        let mut config = TrainConfig {
            student: "a student's".into(),
            lr: 1e-3,
            packing: false,
            lora_targets: vec!["q_proj".to_owned(), "v_proj".to_owned()],
            eval_data: vec!["a.jsonl".into(), "b".into()],
            ..TrainConfig::default()
        };
        config.loss.kl_weight = 0.5;
        config.loss.align.kappa = 7.0;
        let table = |config: &TrainConfig| Table::try_from(config).unwrap();
        let text = command(
            "train",
            &TrainConfig::keys(),
            &table(&config),
            &table(&TrainConfig::default()),
        );
        assert_eq!(
            text,
            r"student-trainer train --student 'a student'\''s' --packing off --lr 0.001 --lora-targets q_proj,v_proj --eval-data a.jsonl,b --kl-weight 0.5 --align-kappa 7"
        );
        let words = text.replace(r"'a student'\''s'", "s");
        let matches = cli::command().try_get_matches_from(words.split(' '));
        let matches = matches.unwrap();
        let (_, matches) = matches.subcommand().unwrap();
        let again = crate::config::resolve::<TrainConfig>(matches, &cli::all_keys());
        config.student = "s".into();
        assert_eq!(again.unwrap().config, config);
    }
}
