//! Provides what is pushed: the files of a result with the base by its name, the card, and nothing that is about this machine.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use distill_hub::{Content, Reference, Upload};
use serde::Serialize;
use serde_json::{Map, Value};

use super::card;
use crate::{
    Error, Result,
    files::{self, read_json},
    run::{
        ADAPTER_CONFIG_FILE, ADAPTER_DIRECTORY, CARD_BYTES_MAX, CARD_FILE, CONFIG_FILE,
        PROJECTION_FILE, TeacherRecord, base_of, run_above,
    },
    train::refuse_harmed,
};

/// What a model's files are called, beside its shards, llama.cpp's file and further chat templates. Whatever else lies there is
/// nobody's business.
const NAMES: [&str; 14] = [
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    MODELFILE,
];
/// What llama.cpp's files begin with.
const GGUF_MAGIC: &[u8] = b"GGUF";
/// What llama.cpp's file lies beside.
const MODELFILE: &str = "Modelfile";
/// The one folder of a model that holds files: chat templates.
const TEMPLATES: &str = "additional_chat_templates";
/// The files in which transformers notes where it found something.
const NOTED_IN: [&str; 4] = [
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
];
/// Bytes of one of them.
const JSON_BYTES_MAX: u64 = 1 << 24;

/// A file by its name in the repository.
type Named = (String, Content);

/// Everything of one push.
#[derive(Debug)]
pub(super) struct Contents {
    /// The files, the card among them.
    pub files: Vec<Upload>,
    /// The card's text.
    pub card: String,
    /// What lies there and is not pushed, with the reason.
    pub left_out: Vec<String>,
}

impl Contents {
    /// Those of a run's result, or of a directory that `export` wrote, for the repository `to`.
    ///
    /// # Errors
    /// Neither of both; a result that is damaged; an adapter whose base has no name.
    pub fn find(from: &Path, to: &Reference, base: Option<&Reference>) -> Result<Self> {
        if !from.join(CONFIG_FILE).is_file() {
            return Self::of_export(from, to, base);
        }
        let adapter = from.join(ADAPTER_DIRECTORY);
        if adapter.join(ADAPTER_CONFIG_FILE).is_file() {
            return Self::of_run(from, &adapter, to, base);
        }
        let model = from.join("model");
        if model.join("config.json").is_file() {
            return Self::of_run(from, &model, to, base);
        }
        Err(Error::file(
            from,
            "has no result yet, neither `adapter` nor `model`; let the run finish first",
        ))
    }

    fn of_run(run: &Path, result: &Path, to: &Reference, base: Option<&Reference>) -> Result<Self> {
        // A run without a teacher notes no digests.
        if TeacherRecord::read(run)?.is_some() {
            refuse_harmed(run, result)?;
        }
        let config = result.join(ADAPTER_CONFIG_FILE);
        let is_adapter = config.is_file();
        let (mut files, left_out) = files_of(result)?;
        let base = if is_adapter {
            let mut fields: Map<String, Value> = read_json(&config, JSON_BYTES_MAX)?;
            let base = name_base(&mut fields, &config, base)?;
            files.push((
                ADAPTER_CONFIG_FILE.to_owned(),
                json_bytes(&config, &fields)?,
            ));
            Some(base)
        } else {
            let known = base_of(result)?.filter(|name| is_on_hub(name));
            base.map(|base| base.repo.clone()).or(known)
        };
        let library = if is_adapter { "peft" } else { "transformers" };
        let card = card::of_run(run, &to.repo, base.as_deref(), library)?;
        Self::new(files, card, left_out)
    }

    fn of_export(from: &Path, to: &Reference, base: Option<&Reference>) -> Result<Self> {
        if from.join(ADAPTER_CONFIG_FILE).is_file() || run_above(from).is_some() {
            return Err(Error::file(
                from,
                "is a run's result; name the run that made it, whose report becomes the card",
            ));
        }
        let refusal = || {
            Error::file(
                from,
                "is neither a run directory nor one that `student-trainer export` wrote, with config.json and safetensors, or with a \
                 .gguf file",
            )
        };
        if !from.is_dir() {
            return Err(refusal());
        }
        let (files, left_out) = files_of(from)?;
        let has = |ending: &str| files.iter().any(|(name, _)| name.ends_with(ending));
        let library = has(".safetensors").then_some("transformers");
        let config = files::read_json_if_there(&from.join("config.json"), JSON_BYTES_MAX)?;
        let config: Value = config.unwrap_or_default();
        let is_model = library.is_some() && config.get("model_type").is_some_and(Value::is_string);
        if !is_model && !has(".gguf") {
            return Err(refusal());
        }
        let own = from.join(CARD_FILE);
        if own.is_symlink() {
            return Err(Error::file(
                &own,
                "is a link to another file; put the card itself there",
            ));
        }
        let own = files::read_text(&own, CARD_BYTES_MAX);
        let base = base.map(|base| base.repo.as_str());
        let card = files::if_there(own)?;
        let card = card.unwrap_or_else(|| card::of_export(&to.repo, base, library));
        Self::new(files, card, left_out)
    }

    fn new(mut files: Vec<Named>, card: String, mut left_out: Vec<String>) -> Result<Self> {
        files.push((
            CARD_FILE.to_owned(),
            Content::Bytes(card.clone().into_bytes()),
        ));
        files.sort_by(|a, b| a.0.cmp(&b.0));
        let mut uploads = Vec::new();
        for (name, content) in files {
            match Upload::new(&name, content) {
                Some(upload) => uploads.push(upload),
                None => left_out.push(format!("{name:?}, which is no name for the hub")),
            }
        }
        Ok(Self {
            files: uploads,
            card,
            left_out,
        })
    }
}

/// A model's files in a directory, but for card and adapter's configuration, and what else lies there.
fn files_of(directory: &Path) -> Result<(Vec<Named>, Vec<String>)> {
    let mut paths = files::list(directory)?;
    let templates = directory.join(TEMPLATES);
    paths.retain(|path| *path != templates);
    paths.extend(files::if_there(files::list(&templates))?.unwrap_or_default());
    let (mut found, mut left_out) = (Vec::new(), Vec::new());
    for path in paths {
        let name = path.strip_prefix(directory).unwrap_or(&path);
        let name = name.to_string_lossy().into_owned();
        // Hidden files are nobody's business; the others are made anew, or of no use to anybody.
        let is_own = [CARD_FILE, ADAPTER_CONFIG_FILE, PROJECTION_FILE].contains(&name.as_str());
        if name.starts_with('.') || is_own {
            continue;
        }
        if !is_of_model(&name, &path)? {
            left_out.push(format!("{name}, which is no file of a model"));
        } else if name == MODELFILE && names_elsewhere(&path)? {
            left_out.push(format!("{name}, which names files of this machine"));
        } else if NOTED_IN.contains(&name.as_str()) {
            let content = without_places(path)?;
            found.push((name, content));
        } else {
            found.push((name, Content::File(path)));
        }
    }
    Ok((found, left_out))
}

/// Whether it is a model's file by its name, and no link to one elsewhere.
fn is_of_model(name: &str, path: &Path) -> Result<bool> {
    let read = || Error::io("read", path);
    if !path.symlink_metadata().map_err(read())?.is_file() {
        return Ok(false);
    }
    if name.ends_with(".gguf") {
        let mut first = Vec::new();
        let file = File::open(path).map_err(read())?;
        let magic = GGUF_MAGIC.len() as u64;
        file.take(magic).read_to_end(&mut first).map_err(read())?;
        return Ok(first == GGUF_MAGIC);
    }
    let is_shard = name.starts_with("model-") && name.ends_with(".safetensors");
    let is_template = name.starts_with(TEMPLATES) && name.ends_with(".jinja");
    Ok(is_shard || is_template || NAMES.contains(&name))
}

/// Gives an adapter's base its name on the hub, which is returned.
fn name_base(
    fields: &mut Map<String, Value>,
    config: &Path,
    base: Option<&Reference>,
) -> Result<String> {
    const BASE: &str = "base_model_name_or_path";
    let known = fields.get(BASE).and_then(Value::as_str).unwrap_or_default();
    let Some(base) = base else {
        if is_on_hub(known) {
            return Ok(known.to_owned());
        }
        return Err(Error::file(
            config,
            format!(
                "the base is {known:?}, which others do not have; say what the hub calls it with --base org/name"
            ),
        ));
    };
    fields.insert(BASE.to_owned(), base.repo.clone().into());
    fields.insert("revision".to_owned(), base.revision.clone().into());
    Ok(base.repo.clone())
}

/// Whether a base was given by its name on the hub; a directory is noted with its whole path.
fn is_on_hub(base: &str) -> bool {
    Reference::parse(base).is_some()
}

/// The file without what says where something was on this machine: transformers notes where it loaded from.
fn without_places(path: PathBuf) -> Result<Content> {
    let as_written: Value = read_json(&path, JSON_BYTES_MAX)?;
    let mut value = as_written.clone();
    take_places_out(&mut value);
    if value == as_written {
        return Ok(Content::File(path));
    }
    json_bytes(&path, &value)
}

fn take_places_out(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !is_place(value));
            fields.values_mut().for_each(take_places_out);
        }
        Value::Array(values) => {
            values.retain(|value| !is_place(value));
            values.iter_mut().for_each(take_places_out);
        }
        _ => {}
    }
}

fn is_place(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    let is_drive = |rest: &str| rest.starts_with(":\\") || rest.starts_with(":/");
    text.starts_with('/') && text.matches('/').count() > 1
        || ["~/", "./", "../"].iter().any(|way| text.starts_with(way))
        || text.get(1..).is_some_and(is_drive)
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
}

fn json_bytes(path: &Path, value: &impl Serialize) -> Result<Content> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::file(path, e))?;
    Ok(Content::Bytes(bytes))
}

/// Whether a Modelfile names a model that does not lie beside it.
fn names_elsewhere(path: &Path) -> Result<bool> {
    let text = files::read_text(path, CARD_BYTES_MAX)?;
    let mut named = text.lines().filter_map(|line| {
        ["FROM ", "ADAPTER "]
            .iter()
            .find_map(|word| line.strip_prefix(word))
    });
    Ok(named.any(|file| !file.starts_with("./")))
}
