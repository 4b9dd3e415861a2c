//! Provides the reading of the TOML file: unknown keys are errors that name the nearest known one.

use std::path::Path;

use clap::Args;
use distill_program::files;
use distill_text::nearest;

use super::foreign::explain;
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
    let text = files::read_text(path, FILE_BYTES_MAX)?;
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| refuse(e.to_string()))?;
    let known = known_keys();
    for key in table.keys() {
        if !known.contains(key) {
            let near = || {
                let near = nearest(key, known.iter().map(String::as_str)).unwrap_or_default();
                format!("the nearest known one is `{near}`")
            };
            let hint = explain(key).unwrap_or_else(near);
            return Err(refuse(format!("unknown key `{key}`; {hint}")));
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
pub(super) fn known_keys() -> Vec<String> {
    let command = Settings::augment_args(clap::Command::new("settings"));
    command
        .get_arguments()
        .map(|argument| argument.get_id().to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_no_file_are_refused_by_name() {
        for path in ["/dev/zero", "/"] {
            let error = read(Path::new(path)).unwrap_err().to_string();
            assert!(
                error.contains(path) && error.contains("a regular file"),
                "{error}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.toml");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(FILE_BYTES_MAX + 1).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(
            error.contains("large.toml") && error.contains("more than the"),
            "{error}"
        );
    }

    #[test]
    fn keys_of_other_programs_are_answered_with_ours() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (line, ours) in [
            ("max_model_len = 512", "here use `seq_len`"),
            ("learning_rate = 1", "in student-trainer use `lr`"),
            ("topk = 3", "the nearest known one is `top_k`"),
        ] {
            std::fs::write(file.path(), line).unwrap();
            let message = read(file.path()).unwrap_err().to_string();
            assert!(message.contains(ours), "{message}");
        }
    }

    #[test]
    fn every_setting_is_a_known_key() {
        let known = known_keys();
        assert!(known.contains(&"tls_cert".to_owned()) && known.contains(&"seq_len".to_owned()));
        assert!(!known.contains(&"config".to_owned()));
    }
}
