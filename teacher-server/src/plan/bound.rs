/*! Provides what a capture is bound to: the settings that say `changes_bytes: yes`, and what the teacher is.

```text
 Config::keys() ──> those that are bound and have an effect ──┬─> fingerprint: one for all
                                      Identity ───────────────┴─> settings: a line each, for people, to say what differs
```
*/

use std::collections::HashMap;

use distill_program::settings::{Key, Keys, lookup, table};
use distill_proto::{
    Estimator, Fingerprint, ValueCoding,
    fingerprint::{FingerprintBuilder, short},
};
use toml::{Table, Value};

use super::Identity;
use crate::{
    Error, Result,
    config::{Config, EstimatorSetting},
};

/// Every setting that changes bytes, in the order of the declaration, with its value; without one where nothing depends on
/// it: that must not make another plan.
fn bound(config: &Config) -> Result<Vec<(Key, Option<Value>)>> {
    let values = table(config)?;
    let mut keys = Config::keys();
    keys.retain(|key| key.is_bound);
    let with_value = |key: Key| {
        let has_effect = key.idle("", &values).is_none();
        let value = lookup(&values, &key.path).filter(|_| has_effect).cloned();
        (key, value)
    };
    Ok(keys.into_iter().map(with_value).collect())
}

/// Everything that the bytes of a frame depend on beside its sequence. `sketch` names the directions of a sketch, which come
/// from a sample of the corpus.
///
/// # Errors
/// `Config` where a setting cannot be written as TOML.
pub fn fingerprint(
    config: &Config,
    identity: &Identity,
    sketch: Option<Fingerprint>,
) -> Result<Fingerprint> {
    let mut builder = FingerprintBuilder::new("plan")
        .field("format", &distill_proto::FORMAT_VERSION.to_le_bytes())
        .field("model", &identity.model.0)
        .field("tokenizer", &identity.tokenizer.0)
        .field("vocabulary", &identity.vocab_size.to_le_bytes());
    for (key, value) in bound(config)? {
        if let Some(bytes) = encode(config, &key.path, value) {
            builder = builder.field(&key.path, &bytes);
        }
    }
    Ok(builder
        .field("sketch", sketch.as_ref().map_or(&[], |digest| &digest.0))
        .field("backend", identity.backend.as_bytes())
        .finish())
}

/// How a setting enters the fingerprint. Some are spelt as the caches that people have know them; whatever is declared anew
/// goes by its value.
fn encode(config: &Config, key: &str, value: Option<Value>) -> Option<Vec<u8>> {
    match (key, value) {
        ("estimator", _) => Some(estimator(config).into_bytes()),
        // They are in the estimator's.
        ("draws" | "sample_seed", _) => None,
        ("value_coding", _) => Some(coding(config.value_coding.0).into_bytes()),
        ("top_k", None) => Some(0u64.to_le_bytes().to_vec()),
        ("temperatures", _) => {
            let bytes = config.temperatures.iter().flat_map(|tau| tau.to_le_bytes());
            Some(bytes.collect())
        }
        (_, Some(Value::Integer(number))) => Some(number.to_le_bytes().to_vec()),
        (_, Some(Value::String(text))) => Some(text.into_bytes()),
        (_, value) => value.map(|value| value.to_string().into_bytes()),
    }
}

/// The estimator with what its draws depend on.
fn estimator(config: &Config) -> String {
    match config.estimator {
        EstimatorSetting(Estimator::TopK) => "top_k".to_owned(),
        drawn => format!("{drawn} {} {}", config.draws, config.sample_seed),
    }
}

fn coding(coding: ValueCoding) -> String {
    match coding {
        ValueCoding::Step(step) => format!("step {:08x}", step.to_bits()),
        ValueCoding::F16 => "f16".to_owned(),
        ValueCoding::Graded(step) => format!("graded {:08x}", step.to_bits()),
    }
}

/// Lines of [`settings`] that are no settings.
const IDENTITY_KEYS: [&str; 3] = ["model_fingerprint", "tokenizer_fingerprint", "backend"];

/// What frames depend on, a line each, for people: to say later what differs.
///
/// # Errors
/// As [`fingerprint`].
pub fn settings(config: &Config, identity: &Identity) -> Result<String> {
    let mut lines = String::new();
    for (key, value) in bound(config)? {
        if let Some(value) = value {
            lines += &format!("{} = {value}\n", key.path);
        }
    }
    let identity = [
        identity.model.to_hex(),
        identity.tokenizer.to_hex(),
        identity.backend.clone(),
    ];
    for (key, value) in IDENTITY_KEYS.into_iter().zip(identity) {
        lines += &format!("{key} = \"{value}\"\n");
    }
    Ok(lines)
}

/// The settings among the lines of [`settings`].
///
/// # Errors
/// `Config` where they are no TOML.
pub fn captured_settings(lines: &str) -> Result<Table> {
    let refuse = |e: toml::de::Error| Error::config("cache", e.to_string());
    let mut table: Table = lines.parse().map_err(refuse)?;
    table.retain(|key: &str, _| !IDENTITY_KEYS.contains(&key));
    Ok(table)
}

/// The settings whose lines differ, as `key: before -> now`, but those that are `unknown` now.
pub fn differences(before: &str, now: &str, unknown: &[&str]) -> Vec<String> {
    let lines = |text: &str| -> Vec<(String, String)> {
        let pairs = text.lines().filter_map(|line| line.split_once(" = "));
        pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    };
    let before: HashMap<String, String> = lines(before).into_iter().collect();
    let changed = lines(now).into_iter().filter_map(|(key, value)| {
        let old = before.get(&key).map_or("unset", String::as_str);
        let differs = old != value && !unknown.contains(&key.as_str());
        differs.then(|| format!("{key}: {} -> {}", shown(&key, old), shown(&key, &value)))
    });
    changed.collect()
}

/// A value in a message.
fn shown<'a>(key: &str, value: &'a str) -> &'a str {
    if key.ends_with("_fingerprint") {
        return short(value.trim_matches('"'));
    }
    value
}

/// Bytes that a target takes in a frame, about: text, tokens and statistics, what is kept of the logits, and a state of
/// `state_rank` coordinates. Fitted to the table in proto/FORMAT.md.
pub fn target_bytes(config: &Config, state_rank: u32) -> u64 {
    let (top_k, draws) = (config.top_k as u64, config.draws as u64);
    // Hundredths of a byte; draws from the tail are rarely of the same id, and their ids are rare ones.
    let estimator = config.estimator.0;
    let kept = match (estimator.has_head(), estimator.is_drawn()) {
        (head, false) => 120 * top_k * u64::from(head),
        (false, true) => 55 * draws,
        (true, true) => 120 * top_k + 175 * draws,
    };
    let rest = match config.value_coding.0 {
        ValueCoding::Graded(_) | ValueCoding::Step(_) => 14 + kept / 100,
        ValueCoding::F16 => 30 + kept * 8 / 500,
    };
    rest + u64::from(state_rank) * config.state.coordinate_bytes()
}

#[cfg(test)]
#[path = "fingerprint_tests.rs"]
mod tests;
