//! Provides which files of a repository are needed: configuration, tokenizer and one form of the weights, never pickles.

use std::{collections::BTreeSet, path::Path};

use distill_program::files;
use serde::Deserialize;

use crate::{
    Error, Reference, Result,
    limits::{INDEX_BYTES_MAX, SHARDS_MAX, TEMPLATES_MAX},
    name::is_file_name,
};

pub(crate) const CONFIG: &str = "config.json";
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// What a tokenizer may consist of. `tokenizer.json` alone is read here; the rest is for those that load the directory later.
const TOKENIZER: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];
/// The folder of chat templates beside `chat_template.jinja`, as transformers names it; the only one that is looked into.
pub(crate) const TEMPLATES: &str = "additional_chat_templates";
/// GGUF files that a message lists.
const LISTED_MAX: usize = 12;

/// What is needed of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Configuration, tokenizer and weights; of a repository with GGUF files only, its one file.
    Model,
    /// `config.json` alone.
    Config,
    /// The tokenizer's files alone.
    Tokenizer,
    /// An adapter of PEFT's.
    Adapter,
}

/// The form in which the weights are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    /// None are wanted.
    None,
    /// `model.safetensors`.
    Single,
    /// An index and what it names.
    Sharded,
    /// One file that holds everything.
    Gguf(String),
}

/// What of a repository is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    /// All but the weights, the index of shards included; small files.
    pub small: Vec<String>,
    /// The weights.
    pub weights: Weights,
}

impl Selection {
    /// Chooses among the files of a repository; like the reading of a directory, a single file wins over an index.
    ///
    /// # Errors
    /// A repository without what is wanted, or with several GGUF files and none named.
    pub fn choose(reference: &Reference, wanted: Wanted, listing: &[String]) -> Result<Self> {
        let has = |name: &str| listing.iter().any(|file| file == name);
        let present = |names: &[&str]| -> Vec<String> {
            let there = names.iter().filter(|name| has(name));
            there.map(|name| (*name).to_owned()).collect()
        };
        if let Some(file) = &reference.file {
            let found = has(file).then(|| Self::gguf(file.clone()));
            return found
                .ok_or_else(|| unusable(reference, several("no such file", &ggufs(listing))));
        }
        let small: Vec<String> = match wanted {
            Wanted::Config => present(&[CONFIG]),
            Wanted::Tokenizer => [present(&TOKENIZER), templates(reference, listing)?].concat(),
            Wanted::Adapter => present(&ADAPTER),
            Wanted::Model => {
                let weights = weights(reference, listing)?;
                if matches!(weights, Weights::Gguf(_)) {
                    return Ok(Self {
                        small: Vec::new(),
                        weights,
                    });
                }
                let mut small = present(&[CONFIG]);
                small.extend(present(&TOKENIZER));
                small.extend(templates(reference, listing)?);
                if weights == Weights::Sharded {
                    small.push(INDEX.to_owned());
                }
                let needed = Self { small, weights };
                return needed.with(reference, CONFIG);
            }
        };
        let mut needed = Self {
            small,
            weights: Weights::None,
        };
        let indispensable: &[&str] = match wanted {
            Wanted::Config => &[CONFIG],
            Wanted::Adapter => &ADAPTER,
            Wanted::Model | Wanted::Tokenizer => &["tokenizer.json"],
        };
        for name in indispensable {
            needed = needed.with(reference, name)?;
        }
        Ok(needed)
    }

    /// The names of the weights' files; `snapshot` holds the index already.
    pub fn weight_files(&self, snapshot: &Path) -> Result<Vec<String>> {
        Ok(match &self.weights {
            Weights::None => Vec::new(),
            Weights::Single => vec![SINGLE.to_owned()],
            Weights::Sharded => shards(&snapshot.join(INDEX))?.into_iter().collect(),
            Weights::Gguf(file) => vec![file.clone()],
        })
    }

    fn gguf(file: String) -> Self {
        Self {
            small: Vec::new(),
            weights: Weights::Gguf(file),
        }
    }

    /// Itself, if `name` is among the small files.
    fn with(self, reference: &Reference, name: &str) -> Result<Self> {
        if self.small.iter().any(|file| file == name) {
            return Ok(self);
        }
        Err(unusable(reference, format!("no {name}")))
    }
}

/// The chat templates in [`TEMPLATES`]; like transformers, none from folders within it.
///
/// # Errors
/// A name that would lead out of the folder, or too many of them.
fn templates(reference: &Reference, listing: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in listing.iter().filter(|file| file.ends_with(".jinja")) {
        let inside = file.strip_prefix(TEMPLATES);
        let Some(name) = inside.and_then(|rest| rest.strip_prefix('/')) else {
            continue;
        };
        if is_file_name(name) {
            found.push(file.clone());
        } else if name.split('/').any(|part| ["", ".", ".."].contains(&part)) {
            return Err(unusable(
                reference,
                format!("{file:?} in its list of files, which leads out of its folder"),
            ));
        }
    }
    if found.len() > TEMPLATES_MAX {
        return Err(unusable(
            reference,
            format!(
                "{} chat templates in {TEMPLATES}, above the limit of {TEMPLATES_MAX}",
                found.len()
            ),
        ));
    }
    Ok(found)
}

fn weights(reference: &Reference, listing: &[String]) -> Result<Weights> {
    let has = |name: &str| listing.iter().any(|file| file == name);
    let ggufs = ggufs(listing);
    match ggufs.as_slice() {
        _ if has(SINGLE) => Ok(Weights::Single),
        _ if has(INDEX) => Ok(Weights::Sharded),
        [] => Err(unusable(
            reference,
            format!("no {SINGLE}, no {INDEX} and no .gguf file; other formats are not read"),
        )),
        [file] => Ok(Weights::Gguf(file.clone())),
        _ => Err(unusable(
            reference,
            several("several models; name one, as org/name/file.gguf", &ggufs),
        )),
    }
}

fn ggufs(listing: &[String]) -> Vec<String> {
    let ours = listing
        .iter()
        .filter(|file| is_file_name(file) && file.ends_with(".gguf"));
    ours.cloned().collect()
}

fn several(what: &str, files: &[String]) -> String {
    let listed: Vec<&str> = files.iter().take(LISTED_MAX).map(String::as_str).collect();
    let more = if files.len() > LISTED_MAX {
        ", ..."
    } else {
        ""
    };
    format!("{what}; its .gguf files are [{}{more}]", listed.join(", "))
}

fn unusable(reference: &Reference, reason: String) -> Error {
    let reference = reference.to_string();
    Error::Unusable { reference, reason }
}

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// The files that an index names.
fn shards(path: &Path) -> Result<BTreeSet<String>> {
    let unusable = |reason: String| Error::Unusable {
        reference: path.display().to_string(),
        reason,
    };
    let text = files::read(path, INDEX_BYTES_MAX)?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|e| unusable(format!("no readable weight_map: {e}")))?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    if let Some(odd) = files
        .iter()
        .find(|file| !is_file_name(file) || !file.ends_with(".safetensors"))
    {
        return Err(unusable(format!(
            "{odd:?} in its weight_map, which is no plain name of a .safetensors file"
        )));
    }
    if (1..=SHARDS_MAX).contains(&files.len()) {
        return Ok(files);
    }
    Err(unusable(format!(
        "{} files in its weight_map, outside 1..={SHARDS_MAX}",
        files.len()
    )))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn choose(
        name: &str,
        wanted: Wanted,
        listing: &[&str],
    ) -> std::result::Result<Selection, String> {
        let listing: Vec<String> = listing.iter().map(|name| (*name).to_owned()).collect();
        Selection::choose(&Reference::parse(name).unwrap(), wanted, &listing)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn pickles_duplicates_and_papers_are_left_out() {
        let listing = [
            "README.md",
            ".gitattributes",
            "config.json",
            "tokenizer.json",
            "merges.txt",
            "pytorch_model.bin",
            "model.pth",
            "consolidated.safetensors",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "onnx/model.onnx",
        ];
        let selection = choose("a/b", Wanted::Model, &listing).unwrap();
        assert_eq!(selection.weights, Weights::Sharded);
        assert_eq!(
            selection.small,
            [
                "config.json",
                "tokenizer.json",
                "merges.txt",
                "model.safetensors.index.json"
            ]
        );
        assert_eq!(
            choose("a/b", Wanted::Config, &listing).unwrap().small,
            ["config.json"]
        );
        assert_eq!(
            choose("a/b", Wanted::Tokenizer, &listing).unwrap().small,
            ["tokenizer.json", "merges.txt"]
        );
        let both = [&listing[..], &["model.safetensors"]].concat();
        assert_eq!(
            choose("a/b", Wanted::Model, &both).unwrap().weights,
            Weights::Single
        );
    }

    #[test]
    fn templates_come_from_one_folder_and_never_from_outside_it() {
        let choose = |names: &[&str]| {
            choose(
                "a/b",
                Wanted::Tokenizer,
                &[&["tokenizer.json"], names].concat(),
            )
            .map(|selection| selection.small)
        };
        let small = choose(&[
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/rag.jinja",
            "additional_chat_templates/notes.txt",
            "additional_chat_templates/deeper/x.jinja",
            "additional_chat_templates/odd name.jinja",
            "additional_chat_templatesx.jinja",
            "other/x.jinja",
            "/additional_chat_templates/x.jinja",
        ]);
        assert_eq!(
            small.unwrap(),
            [
                "tokenizer.json",
                "additional_chat_templates/tool_use.jinja",
                "additional_chat_templates/rag.jinja"
            ]
        );
        for name in [
            "additional_chat_templates/../x.jinja",
            "additional_chat_templates/../../../x.jinja",
            "additional_chat_templates/a/../../x.jinja",
            "additional_chat_templates//etc/x.jinja",
            "additional_chat_templates/./x.jinja",
        ] {
            let error = choose(&[name]).unwrap_err();
            assert!(
                error.contains(name) && error.contains("leads out"),
                "{error}"
            );
        }
        let many: Vec<String> = (0..=TEMPLATES_MAX)
            .map(|i| format!("additional_chat_templates/{i}.jinja"))
            .collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        choose(&many[1..]).unwrap();
        let error = choose(&many).unwrap_err();
        assert!(error.contains("above the limit"), "{error}");
    }

    #[test]
    fn an_adapter_is_its_configuration_and_its_weights() {
        let adapter = [
            "adapter_config.json",
            "adapter_model.safetensors",
            "README.md",
        ];
        let chosen = choose("a/b", Wanted::Adapter, &adapter).unwrap();
        assert_eq!(chosen.small, adapter[..2]);
        let error = choose("a/b", Wanted::Adapter, &adapter[..1]).unwrap_err();
        assert!(error.contains("no adapter_model.safetensors"), "{error}");
    }

    #[test]
    fn one_gguf_is_taken_and_of_several_one_must_be_named() {
        let one = choose("a/b", Wanted::Model, &["x.gguf", "README.md"]).unwrap();
        assert_eq!(one.weights, Weights::Gguf("x.gguf".into()));
        let error = choose("a/b", Wanted::Model, &["x.gguf", "y.gguf"]).unwrap_err();
        assert!(
            error.contains("org/name/file.gguf") && error.contains("[x.gguf, y.gguf]"),
            "{error}"
        );
        let named = choose("a/b/y.gguf", Wanted::Model, &["x.gguf", "y.gguf"]).unwrap();
        assert_eq!(named.weights, Weights::Gguf("y.gguf".into()));
        let error = choose("a/b/z.gguf", Wanted::Model, &["x.gguf"]).unwrap_err();
        assert!(
            error.contains("no such file") && error.contains("[x.gguf]"),
            "{error}"
        );
        let error =
            choose("a/b", Wanted::Model, &["config.json", "pytorch_model.bin"]).unwrap_err();
        assert!(error.contains("no model.safetensors"), "{error}");
    }

    #[test]
    fn an_index_cannot_name_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(INDEX);
        for name in [
            "../../x.safetensors",
            "/x.safetensors",
            "a/b.safetensors",
            "x.bin",
            ".safetensors",
        ] {
            fs::write(&path, format!("{{\"weight_map\": {{\"w\": {name:?}}}}}")).unwrap();
            let error = shards(&path).unwrap_err().to_string();
            assert!(error.contains("plain name"), "{error}");
        }
        fs::write(&path, "{\"weight_map\": {}}").unwrap();
        assert!(
            shards(&path)
                .unwrap_err()
                .to_string()
                .contains("has 0 files")
        );
    }
}
