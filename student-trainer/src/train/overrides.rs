//! Provides which settings may change when a run is resumed: those that leave its mathematics alone.

use toml::{Table, Value};

use crate::{Error, Result, config::TrainConfig};

/// What may change: where things are, what is kept in memory, and how often something is saved or measured. Everything
/// else is refused, new settings included until someone thinks about them. `steps` and `epochs` are too: the learning
/// rate and the loss's schedule run over all steps, so a longer run is another run from its first step on.
const FREE: [&str; 18] = [
    "teacher",
    "ca_cert",
    "token_file",
    "connect_timeout_seconds",
    "reconnect_attempts",
    "prefetch_frames",
    "student",
    "out",
    "device",
    "memory_budget_bytes",
    "checkpointing",
    "checkpoint_every",
    "save_steps",
    "keep_last",
    "save_dtype",
    "eval_steps",
    "strict",
    "early_stopping_patience",
];

/// Refuses a change that would make another run.
///
/// # Errors
/// The first setting that differs and may not, with both values.
pub(super) fn check(before: &TrainConfig, now: &TrainConfig) -> Result<()> {
    let table = |config: &TrainConfig| {
        let mut config = config.clone();
        // A release before this one wrote lambda beside an epsilon that did not count.
        config.loss.ot.epsilon = config.loss.ot.epsilon();
        config.loss.ot.lambda = None;
        Table::try_from(config)
            .map_err(|e| Error::Config(format!("the configuration cannot be written as TOML: {e}")))
    };
    match difference("", &table(before)?, &table(now)?) {
        Some((key, before, now)) => Err(Error::Config(format!(
            "{key}: the run was started with {before}, and {now} would make it another one; leave the flag out, or undo \
             the change in config.toml, or start a new run with --out NEW_DIR"
        ))),
        None => Ok(()),
    }
}

/// The first key with different values, where it is not free.
fn difference(prefix: &str, before: &Table, now: &Table) -> Option<(String, String, String)> {
    let mut keys: Vec<&String> = before.keys().chain(now.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter().find_map(|name| {
        let key = format!("{prefix}{name}");
        match (before.get(name), now.get(name)) {
            (a, b) if a == b || FREE.contains(&key.as_str()) => None,
            (Some(Value::Table(a)), Some(Value::Table(b))) => difference(&format!("{key}."), a, b),
            (a, b) => {
                let show = |value: Option<&Value>| match value {
                    Some(value) => value.to_string(),
                    None => "nothing".to_owned(),
                };
                Some((key, show(a), show(b)))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Key, Settings};

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

    #[test]
    fn every_free_setting_exists() {
        let keys = TrainConfig::keys();
        for free in FREE {
            assert!(keys.iter().any(|key: &Key| key.path == free), "{free}");
        }
    }
}
