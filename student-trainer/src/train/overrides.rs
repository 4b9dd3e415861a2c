//! Provides the check that a run which is resumed stays the same one: settings that say `may_resume: no` are as they were.

use distill_program::settings::lookup;
use toml::{Table, Value};

use crate::{
    Error, Result,
    config::{Keys, TrainConfig},
};

/// Refuses a change that would make another run. What may change is where things are, what is kept in memory, and how often
/// something is saved or measured. `steps` and `epochs` may not: the learning rate and the loss's schedule run over all
/// steps, so a longer run is another run from its first step on.
///
/// # Errors
/// The first setting that differs and may not, with both values.
pub(super) fn check(before: &TrainConfig, now: &TrainConfig) -> Result<()> {
    let table = |config: &TrainConfig| {
        let mut config = config.clone();
        // A release before this one wrote lambda beside an epsilon that did not count.
        config.loss.align.epsilon = config.loss.align.epsilon();
        config.loss.align.lambda = None;
        Table::try_from(config)
            .map_err(|e| Error::Config(format!("the configuration cannot be written as TOML: {e}")))
    };
    let (before, now) = (table(before)?, table(now)?);
    let show = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
    for key in TrainConfig::keys().iter().filter(|key| key.is_bound) {
        let (before, now) = (lookup(&before, &key.path), lookup(&now, &key.path));
        if before != now {
            return Err(Error::Config(format!(
                "{}: the run was started with {}, and {} would make it another one; leave the flag out, or undo the change in \
                 config.toml, or start a new run with --out NEW_DIR",
                key.path,
                show(before),
                show(now)
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Key;

    #[test]
    fn what_changes_the_mathematics_is_refused_by_name_with_both_values() {
        let before = TrainConfig::default();
        let mut now = before.clone();
        now.prefetch_frames = 99;
        now.out = "elsewhere".into();
        now.save_steps = 1;
        check(&before, &now).unwrap();
        type Change = fn(&mut TrainConfig);
        let changes: [(Change, [&str; 3]); 4] = [
            (|c| c.lr = 0.5, ["lr:", "0.0002", "0.5"]),
            (|c| c.steps = Some(7), ["steps:", "nothing", "7"]),
            (
                |c| c.loss.kl_weight = 0.25,
                ["loss.kl_weight:", "1.0", "0.25"],
            ),
            (|c| c.lora_rank = 3, ["lora_rank:", "16", "3"]),
        ];
        for (change, words) in changes {
            let mut now = before.clone();
            change(&mut now);
            let message = check(&before, &now).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }

    /// Another value of the same kind that the setting may have.
    fn other(key: &Key, value: Option<&Value>) -> Value {
        const WORDS: &str = "x none full f32 adamw8bit kl softmax-similarity cosine scaled-dot row entropy sum sharp random sequence \
                             squared-euclidean rows 127.0.0.1:1 {\"a\":1}";
        let words = WORDS.split(' ').map(Value::from);
        let candidates = match value {
            Some(Value::Integer(number)) => vec![Value::Integer(number + 1)],
            Some(Value::Float(number)) => vec![Value::Float(number + 0.25)],
            Some(Value::Boolean(on)) => vec![Value::Boolean(!on)],
            Some(Value::Array(_)) => ["y", "0:3"]
                .map(|entry| Value::Array(vec![entry.into()]))
                .into(),
            _ => [Value::from(7), Value::from(0.5)]
                .into_iter()
                .chain(words)
                .collect(),
        };
        let usable =
            |value: &&Value| with(&TrainConfig::default(), key, (*value).clone()).is_some();
        candidates
            .iter()
            .filter(|other| Some(*other) != value)
            .find(usable)
            .unwrap_or_else(|| panic!("{}: no other value than {value:?}", key.path))
            .clone()
    }

    fn with(config: &TrainConfig, key: &Key, value: Value) -> Option<TrainConfig> {
        let mut table = Table::try_from(config).unwrap();
        let (section, leaf) = key.path.rsplit_once('.').unwrap_or(("", &key.path));
        let mut inner = &mut table;
        for name in section.split('.').filter(|name| !name.is_empty()) {
            inner = inner.get_mut(name)?.as_table_mut()?;
        }
        inner.insert(leaf.to_owned(), value);
        table.try_into().ok()
    }

    #[test]
    fn every_setting_is_refused_or_free_as_it_is_declared() {
        let before = TrainConfig::default();
        let table = Table::try_from(&before).unwrap();
        let mut bound = 0;
        for key in TrainConfig::keys() {
            // Is 1 / epsilon.
            if key.path == "loss.align.lambda" {
                continue;
            }
            let value = other(&key, lookup(&table, &key.path));
            let now = with(&before, &key, value).unwrap();
            assert_ne!(now, before, "{}", key.path);
            match check(&before, &now) {
                Ok(()) => assert!(!key.is_bound, "{}", key.path),
                Err(error) => {
                    let error = error.to_string();
                    let named = error.starts_with(&format!("{}: ", key.path));
                    assert!(key.is_bound && named, "{}: {error}", key.path);
                    bound += 1;
                }
            }
        }
        assert!(bound > 40, "{bound}");
    }
}
