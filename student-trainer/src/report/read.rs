//! Provides a run directory as the report reads it: its settings, its steps, its evaluations.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use toml::Table;

use super::command::command;
use crate::{
    Error, Result,
    config::{Keys, TrainConfig},
    files,
    pretrain::PretrainConfig,
    run::{MEMORY_FILE, TeacherRecord, TensorBoard, require_run},
    train::Sample,
};

/// Bytes of one of a run's files that are read: 100,000 steps take a tenth of it.
const FILE_BYTES_MAX: u64 = 1 << 29;

/// Settings that say where something is, and nothing about what was trained.
const OF_THE_MACHINE: [&str; 5] = [
    "teacher",
    "ca_cert",
    "token_file",
    "out",
    "first_step_grad_out",
];
/// The setting that is the base of what was trained.
const STUDENT: &str = "student";

/// What a run left behind.
pub(crate) struct Run {
    /// Its directory's name.
    pub name: String,
    /// The resolved settings, by dotted path, and the defaults of the command that wrote them.
    pub settings: Vec<(String, String)>,
    pub defaults: Vec<(String, String)>,
    /// Lines of `metrics.jsonl`.
    pub steps: Vec<Map<String, Value>>,
    /// Lines of `eval.jsonl`.
    pub evals: Vec<Map<String, Value>>,
    /// What was planned of its memory; empty where nothing was.
    pub memory: Map<String, Value>,
    /// Its teacher; none where there was none, or a release before wrote the run.
    pub teacher: Option<TeacherRecord>,
    /// What the student answered; empty where it was not asked.
    pub samples: Vec<Sample>,
    /// When it began, in seconds since 1970, where that is known.
    pub began: Option<u64>,
    /// The command that its settings come to.
    pub command: String,
}

impl Run {
    /// Reads what is there.
    ///
    /// # Errors
    /// A directory without `config.toml` or `metrics.jsonl`, or with something else in them.
    pub fn read(directory: &Path) -> Result<Self> {
        Self::read_with(directory, |_, _| {})
    }

    /// As [`read`](Self::read), for others to see: the run is called after what it made and its student as the hub calls it, files
    /// have no way to them, and what is about this machine is as nobody had set it.
    pub fn read_public(directory: &Path, name: &str, base: Option<&str>) -> Result<Self> {
        let run = Self::read_with(directory, |settings, defaults| {
            let base = base.filter(|_| settings.contains_key(STUDENT));
            for (key, value) in settings.iter_mut() {
                match base {
                    Some(base) if key == STUDENT => *value = base.into(),
                    _ => without_ways(value),
                }
            }
            for key in OF_THE_MACHINE {
                match defaults.get(key) {
                    Some(default) => settings.insert(key.to_owned(), default.clone()),
                    None => settings.remove(key),
                };
            }
        })?;
        let name = name.to_owned();
        Ok(Self { name, ..run })
    }

    /// Reads what is there, of settings that are changed first: these, beside the defaults.
    fn read_with(directory: &Path, change: impl FnOnce(&mut Table, &Table)) -> Result<Self> {
        require_run(directory)?;
        let mut config: Table = files::read_toml(&directory.join("config.toml"), FILE_BYTES_MAX)?;
        let (name, keys, defaults) = if config.contains_key("teacher") {
            let defaults = Table::try_from(TrainConfig::default());
            ("train", TrainConfig::keys(), defaults)
        } else {
            let defaults = Table::try_from(PretrainConfig::default());
            ("pretrain", PretrainConfig::keys(), defaults)
        };
        let defaults = defaults
            .map_err(|e| Error::Config(format!("the defaults cannot be written as TOML: {e}")))?;
        change(&mut config, &defaults);
        let evals = directory.join("eval.jsonl");
        let memory = directory.join(MEMORY_FILE);
        Ok(Self {
            command: command(name, &keys, &config, &defaults),
            name: name_of(directory),
            settings: flat("", &config),
            defaults: flat("", &defaults),
            steps: lines(&directory.join("metrics.jsonl"))?,
            evals: if evals.exists() {
                lines(&evals)?
            } else {
                Vec::new()
            },
            memory: files::read_json_if_there(&memory, FILE_BYTES_MAX)?.unwrap_or_default(),
            teacher: TeacherRecord::read(directory)?,
            samples: Sample::read(directory)?,
            began: TensorBoard::begun(&directory.join("tensorboard"))?,
        })
    }

    /// The numbers `key` of the steps, with their steps.
    pub fn curve(&self, key: &str) -> Vec<(f64, f64)> {
        points(&self.steps, key)
    }

    /// The numbers `key` of the evaluations, with their steps.
    pub fn eval_curve(&self, key: &str) -> Vec<(f64, f64)> {
        points(&self.evals, key)
    }

    /// The setting of this dotted path; empty where it is unset.
    pub fn setting<'a>(settings: &'a [(String, String)], key: &str) -> &'a str {
        let found = settings.iter().find(|(path, _)| path == key);
        found.map_or("", |(_, value)| value)
    }
}

/// Files and directories by their names alone, in a setting.
fn without_ways(value: &mut toml::Value) {
    match value {
        toml::Value::String(text) if text.contains('/') => {
            let name = Path::new(text.as_str()).file_name().unwrap_or_default();
            *text = name.to_string_lossy().into_owned();
        }
        toml::Value::Array(values) => values.iter_mut().for_each(without_ways),
        toml::Value::Table(table) => table.iter_mut().for_each(|(_, value)| without_ways(value)),
        _ => {}
    }
}

fn points(lines: &[Map<String, Value>], key: &str) -> Vec<(f64, f64)> {
    let point =
        |line: &Map<String, Value>| Some((line.get("step")?.as_f64()?, line.get(key)?.as_f64()?));
    lines.iter().filter_map(point).collect()
}

fn name_of(directory: &Path) -> String {
    // `.` has no name of its own.
    let whole = directory
        .canonicalize()
        .unwrap_or_else(|_| PathBuf::from(directory));
    let name = whole.file_name().unwrap_or(whole.as_os_str());
    name.to_string_lossy().into_owned()
}

/// A file of one object a line. The last line may be half written, by a run that goes on or was killed.
fn lines(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let text = files::read_text(path, FILE_BYTES_MAX)?;
    let count = text.lines().count();
    let mut objects = Vec::with_capacity(count);
    for (i, line) in text.lines().enumerate() {
        match serde_json::from_str(line) {
            Ok(object) => objects.push(object),
            Err(_) if i + 1 == count => {}
            Err(error) => {
                let reason = format!("line {}: {error}", i + 1);
                return Err(Error::file(path, reason));
            }
        }
    }
    Ok(objects)
}

/// Every value with its dotted path, as text.
fn flat(prefix: &str, table: &Table) -> Vec<(String, String)> {
    let mut values = Vec::new();
    for (name, value) in table {
        let path = format!("{prefix}{name}");
        match value {
            toml::Value::Table(inner) => values.extend(flat(&format!("{path}."), inner)),
            toml::Value::String(text) => values.push((path, text.clone())),
            other => values.push((path, other.to_string())),
        }
    }
    values
}
