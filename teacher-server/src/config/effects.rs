//! Provides which settings need another one to have an effect, and the warnings about those that were set without it.

use distill_proto::Estimator;

use super::{Config, VramMode, file};
use crate::{
    Error, Result,
    cli::{ServeArgs, Settings},
};

/// What has to hold for some settings to have an effect, in words and as a check of all of them. `serves` is false in
/// `precompute`.
struct Effect {
    keys: &'static [&'static str],
    needs: &'static str,
    holds: fn(config: &Config, serves: bool) -> bool,
}

const EFFECTS: [Effect; 7] = [
    Effect {
        keys: &[
            "bind",
            "token_file",
            "tls_cert",
            "tls_key",
            "vram_mode",
            "window",
            "yield_timeout_s",
            "port_file",
            "spool_dir",
        ],
        needs: "the command serve",
        holds: |_, serves| serves,
    },
    // What a cache was captured with is in it.
    Effect {
        keys: &[
            "tokenizer",
            "corpus",
            "chat_template_kwargs",
            "strict",
            "seq_len",
            "batch_size",
            "estimator",
            "top_k",
            "draws",
            "sample_seed",
            "temperatures",
            "value_coding",
            "state",
            "dtype",
            "memory_budget_bytes",
            "chunk_rows",
            "shard_bytes",
            "vram_mode",
            "window",
            "yield_timeout_s",
        ],
        needs: "--model",
        holds: |config, _| config.has_model(),
    },
    Effect {
        keys: &["draws", "sample_seed"],
        needs: "--estimator sampled or head+sampled",
        holds: |config, _| config.estimator.0 != Estimator::TopK,
    },
    Effect {
        keys: &["top_k"],
        needs: "--estimator top-k or head+sampled",
        holds: |config, _| config.estimator.0 != Estimator::Sampled,
    },
    Effect {
        keys: &["window", "yield_timeout_s"],
        needs: "--vram-mode swap",
        holds: |config, _| config.vram_mode == VramMode::Swap,
    },
    Effect {
        keys: &["shard_bytes"],
        needs: "--cache",
        holds: |config, _| config.cache.is_some(),
    },
    Effect {
        keys: &["spool_dir"],
        needs: "no --cache, which keeps the blocks",
        holds: |config, _| config.cache.is_none(),
    },
];

impl Config {
    /// What was set and has no effect, each with what is missing.
    ///
    /// # Errors
    /// As [`Config::validate`].
    pub fn idle(&self, args: &ServeArgs, serves: bool) -> Result<Vec<String>> {
        let mut given: Vec<String> = table(&args.settings)?.into_iter().map(|e| e.0).collect();
        if let Some(path) = &args.config {
            // A file that says what holds anyway was most likely printed.
            let defaults = Self::from_settings(Settings {
                model: Some("model".into()),
                corpus: Some(vec!["corpus".into()]),
                ..Settings::default()
            })?;
            let defaults = table(&defaults)?;
            let file = table(&file::read(path)?)?.into_iter();
            let changed = file.filter(|(key, value)| defaults.get(key) != Some(value));
            given.extend(changed.map(|(key, _)| key));
        }
        let lacking = |key: &String| {
            EFFECTS
                .iter()
                .find(|effect| effect.keys.contains(&key.as_str()) && !(effect.holds)(self, serves))
        };
        let idle = given.iter().filter_map(|key| {
            let needs = lacking(key)?.needs;
            let flag = key.replace('_', "-");
            Some(format!("--{flag} has no effect: it needs {needs}"))
        });
        Ok(idle.collect())
    }
}

fn table(settings: &impl serde::Serialize) -> Result<toml::Table> {
    toml::Table::try_from(settings).map_err(|e| Error::Config {
        key: "config",
        reason: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Args, Command};

    fn idle(args: &str) -> Vec<String> {
        let args = ["teacher-server"].into_iter().chain(args.split(' '));
        let (args, serves) = match Args::try_parse_from(args).unwrap().command {
            Command::Serve(args) => (args, true),
            Command::Precompute(args) => (args.serve, false),
            other => panic!("{other:?}"),
        };
        Config::validate(&args)
            .unwrap()
            .idle(&args, serves)
            .unwrap()
    }

    #[test]
    fn a_setting_without_effect_says_what_is_missing() {
        const MODEL: &str = "serve --model m --corpus c";
        for (args, expected) in [
            (
                "--estimator top-k --draws 8",
                "--draws has no effect: it needs --estimator sampled",
            ),
            (
                "--estimator top-k --sample-seed 8",
                "--sample-seed has no effect",
            ),
            (
                "--estimator sampled --top-k 8",
                "--top-k has no effect: it needs --estimator top-k",
            ),
            (
                "--window 8",
                "--window has no effect: it needs --vram-mode swap",
            ),
            ("--shard-bytes 800", "it needs --cache"),
            (
                "--cache d --spool-dir s",
                "--spool-dir has no effect: it needs no --cache",
            ),
        ] {
            let idle = idle(&format!("{MODEL} {args}"));
            assert!(
                idle.len() == 1 && idle[0].contains(expected),
                "{args}: {idle:?}"
            );
        }
        for args in [
            "",
            " --draws 8",
            " --vram-mode swap --window 8",
            " --spool-dir s",
        ] {
            assert_eq!(idle(&format!("{MODEL}{args}")), [""; 0], "{args}");
        }
        // What a served cache was captured with is in it.
        for args in ["--strict", "--chat-template-kwargs {\"a\":1}"] {
            let idle = idle(&format!("serve --cache d {args}"));
            assert!(
                idle.len() == 1 && idle[0].contains("it needs --model"),
                "{args}: {idle:?}"
            );
        }
        let idle = idle("precompute --model m --corpus c --out d --spool-dir s --bind unix:x");
        assert!(idle.iter().all(|line| line.contains("the command serve")));
        assert_eq!(idle.len(), 2);
    }

    #[test]
    fn what_print_config_writes_has_no_idle_setting() {
        let args = ["--model", "m", "--corpus", "a"];
        let printed = crate::testing::serve(&args).unwrap().to_toml().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), printed).unwrap();
        let serve = format!("serve --config {}", file.path().display());
        assert_eq!(idle(&serve), [""; 0]);
        std::fs::write(file.path(), "model = 'm'\ncorpus = ['a']\nwindow = 8").unwrap();
        assert_eq!(idle(&serve).len(), 1);
    }

    #[test]
    fn every_key_is_a_setting() {
        let known = file::known_keys();
        for key in EFFECTS.iter().flat_map(|effect| effect.keys) {
            assert!(known.contains(&(*key).to_owned()), "{key}");
        }
    }
}
