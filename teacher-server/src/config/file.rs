//! Provides the reading of the TOML file: unknown keys are errors that name the nearest known one.

use std::path::Path;

use clap::Args;

use crate::{Error, Result, cli::Settings};

/// Bytes of a configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads settings from a TOML file.
///
/// # Errors
/// `Io`, or `ConfigFile` naming the key and what was expected.
pub(super) fn read(path: &Path) -> Result<Settings> {
    let refuse = |reason: String| Error::ConfigFile {
        path: path.to_owned(),
        reason,
    };
    let bytes = std::fs::metadata(path)
        .map_err(Error::io("read", path))?
        .len();
    if bytes > FILE_BYTES_MAX {
        return Err(refuse(format!(
            "{bytes} bytes are more than a settings file holds"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| refuse(e.to_string()))?;
    let known = known_keys();
    for key in table.keys() {
        if !known.contains(key) {
            let nearest = known.iter().min_by_key(|known| edit_distance(key, known));
            let nearest = nearest.map(String::as_str).unwrap_or_default();
            return Err(refuse(format!(
                "unknown key `{key}`; the nearest known one is `{nearest}`"
            )));
        }
    }
    table
        .try_into()
        .map_err(|e: toml::de::Error| refuse(e.to_string()))
}

impl Settings {
    /// These settings, replaced where `over` names a value.
    ///
    /// # Errors
    /// `Config` where a path is not UTF-8 and so cannot go through TOML.
    pub(super) fn overlaid_with(&self, over: &Settings) -> Result<Settings> {
        let table =
            |settings: &Settings| toml::Table::try_from(settings).map_err(|e| e.to_string());
        let merge = || -> std::result::Result<Settings, String> {
            let mut merged = table(self)?;
            merged.extend(table(over)?);
            merged
                .try_into()
                .map_err(|e: toml::de::Error| e.to_string())
        };
        merge().map_err(|reason| super::refuse("config", reason))
    }
}

/// Names of all settings, from the definition of the flags.
fn known_keys() -> Vec<String> {
    let command = Settings::augment_args(clap::Command::new("settings"));
    command
        .get_arguments()
        .map(|argument| argument.get_id().to_string())
        .collect()
}

/// Levenshtein distance, one row of the table at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (j, to) in b.chars().enumerate() {
            let above = row.get(j + 1).copied().unwrap_or(usize::MAX - 1);
            let best = (diagonal + usize::from(from != to))
                .min(above + 1)
                .min(left + 1);
            diagonal = above;
            if let Some(cell) = row.get_mut(j) {
                *cell = left;
            }
            left = best;
        }
        if let Some(last) = row.last_mut() {
            *last = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance_counts_changes() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", ""), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("seq_len", "seq_len"), 0);
    }

    #[test]
    fn every_setting_is_a_known_key() {
        let known = known_keys();
        assert!(known.contains(&"tls_cert".to_owned()) && known.contains(&"seq_len".to_owned()));
        assert!(!known.contains(&"config".to_owned()));
    }
}
