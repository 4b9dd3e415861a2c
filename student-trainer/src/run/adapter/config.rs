//! Provides `adapter_config.json`: what PEFT wrote as a choice of adapters, and a choice of adapters as PEFT reads it.

use std::path::Path;

use distill_model::{LoraConfig, LoraLayers, LoraModules, LoraPattern};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{CONFIG_FILE, refusals};
use crate::{Error, Result, files, run::directory::ADAPTER_DIRECTORY};

/// Longest configuration that is read; real ones are a few KiB.
const CONFIG_BYTES_MAX: u64 = 1 << 22;
/// PEFT's word for every linear layer but the head.
const ALL_LINEAR: &str = "all-linear";

/// What an adapter is: the choice of layers with ranks and scales, and the base that it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Directory or hub name of the base.
    pub base_model_name_or_path: Option<String>,
    /// Revision of the base on the hub.
    pub revision: Option<String>,
    lora: LoraConfig,
}

impl AdapterConfig {
    /// The configuration of an adapter over the base in `base`.
    pub fn new(lora: &LoraConfig, base: &str) -> Self {
        Self {
            base_model_name_or_path: Some(base.to_owned()),
            revision: None,
            lora: lora.clone(),
        }
    }

    /// Reads `adapter_config.json` of a directory.
    ///
    /// # Errors
    /// A file that is no LoRA configuration, or one that asks for what this build does not do, by name.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(CONFIG_FILE);
        let published = directory.join(ADAPTER_DIRECTORY);
        if !path.exists() && published.join(CONFIG_FILE).is_file() {
            return Err(Error::file(
                directory,
                format!("is a run; its adapter is {}", published.display()),
            ));
        }
        let fields: Map<String, Value> = files::read_json(&path, CONFIG_BYTES_MAX)?;
        if let Some(refusal) = refusals::refusal(&fields) {
            return Err(Error::file(&path, refusal));
        }
        let unknown = refusals::unknown(&fields);
        if !unknown.is_empty() {
            tracing::warn!(
                "{}: {} not known here and ignored, as PEFT ignores keys that it does not know",
                path.display(),
                unknown.join(", ")
            );
        }
        let written: Written =
            serde_json::from_value(Value::Object(fields)).map_err(|e| Error::file(&path, e))?;
        if written.lora_dropout > 0.0 {
            tracing::warn!(
                "{}: lora_dropout {} is ignored; there is no dropout here",
                path.display(),
                written.lora_dropout
            );
        }
        let base_model_name_or_path = written.base_model_name_or_path.clone();
        let revision = written.revision.clone();
        let lora = written
            .lora()
            .map_err(|problem| Error::file(&path, problem))?;
        Ok(Self {
            base_model_name_or_path,
            revision,
            lora,
        })
    }

    /// What the decoder needs to grow these adapters.
    pub fn lora(&self) -> LoraConfig {
        self.lora.clone()
    }

    /// The content of `adapter_config.json`, with the keys in the order and the defaults that PEFT writes.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let lora = &self.lora;
        let layers = lora.layers.as_ref();
        let after = layers
            .map(|layers| &layers.after)
            .filter(|after| !after.is_empty());
        let mut fields = json!({
            "alpha_pattern": patterns(&lora.alpha_pattern, number),
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "exclude_modules": lora.exclude.as_ref().map(modules),
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": after
                .map(|after| after.iter().map(LoraPattern::as_str).collect::<Vec<_>>()),
            "layers_to_transform": layers.map(|layers| &layers.numbers),
            "lora_alpha": number(lora.alpha),
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": lora.rank,
            "rank_pattern": patterns(&lora.rank_pattern, Value::from),
            "revision": self.revision,
            "target_modules": modules(&lora.targets),
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": lora.rs_lora,
        });
        if let Value::Object(fields) = &mut fields
            && lora.exclude.is_none()
        {
            // Older versions of PEFT do not know it.
            fields.shift_remove("exclude_modules");
        }
        serde_json::to_vec_pretty(&fields).map_err(|e| Error::Config(format!("{CONFIG_FILE}: {e}")))
    }
}

/// The keys of `adapter_config.json` that are followed, with PEFT's defaults.
#[derive(Deserialize)]
struct Written {
    base_model_name_or_path: Option<String>,
    revision: Option<String>,
    #[serde(default = "default_rank")]
    r: usize,
    #[serde(default = "default_alpha")]
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: Option<Names>,
    exclude_modules: Option<Names>,
    layers_to_transform: Option<Layers>,
    layers_pattern: Option<Names>,
    #[serde(default)]
    rank_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    alpha_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    use_rslora: bool,
}

fn default_rank() -> usize {
    8
}

fn default_alpha() -> f64 {
    8.0
}

/// A list, or one text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Many(Vec<String>),
}

/// A list, or one number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Layers {
    One(usize),
    Many(Vec<usize>),
}

impl Written {
    fn lora(self) -> std::result::Result<LoraConfig, String> {
        let targets = match self.target_modules {
            None => {
                return Err(
                    "target_modules is missing; name the adapted layers, such as [\"q_proj\"]"
                        .into(),
                );
            }
            Some(Names::One(text)) if text.eq_ignore_ascii_case(ALL_LINEAR) => {
                LoraModules::AllLinear
            }
            Some(names) => names.modules("target_modules")?,
        };
        let exclude = match self.exclude_modules {
            None => None,
            Some(Names::One(text)) if text.is_empty() => None,
            Some(Names::Many(names)) if names.is_empty() => None,
            Some(names) => Some(names.modules("exclude_modules")?),
        };
        let layers = layers(self.layers_to_transform, self.layers_pattern)?;
        if layers.is_some() && !matches!(targets, LoraModules::Names(_)) {
            return Err("layers_to_transform needs target_modules as a list".into());
        }
        let rank = |value: &Value| value.as_u64().and_then(|rank| usize::try_from(rank).ok());
        let lora = LoraConfig {
            rank: self.r,
            alpha: self.lora_alpha,
            targets,
            exclude,
            layers,
            rank_pattern: read_patterns("rank_pattern", self.rank_pattern, rank)?,
            alpha_pattern: read_patterns("alpha_pattern", self.alpha_pattern, Value::as_f64)?,
            rs_lora: self.use_rslora,
            ..LoraConfig::default()
        };
        lora.validate().map_err(|e| e.to_string())?;
        Ok(lora)
    }
}

impl Names {
    fn modules(self, key: &'static str) -> std::result::Result<LoraModules, String> {
        match self {
            Self::Many(names) => Ok(LoraModules::Names(names)),
            Self::One(text) => LoraPattern::whole(key, &text)
                .map(LoraModules::Pattern)
                .map_err(|e| e.to_string()),
        }
    }
}

/// As PEFT: an empty list of layers is no choice, and without a pattern the number may follow any component.
fn layers(
    numbers: Option<Layers>,
    after: Option<Names>,
) -> std::result::Result<Option<LoraLayers>, String> {
    let numbers = match numbers {
        None => None,
        Some(Layers::One(number)) => Some(vec![number]),
        Some(Layers::Many(numbers)) => Some(numbers),
    };
    let after = match after {
        None => Vec::new(),
        Some(Names::One(text)) => vec![text],
        Some(Names::Many(texts)) => texts,
    };
    let after: Vec<String> = after.into_iter().filter(|text| !text.is_empty()).collect();
    let Some(numbers) = numbers else {
        return if after.is_empty() {
            Ok(None)
        } else {
            Err("layers_pattern needs layers_to_transform".into())
        };
    };
    if numbers.is_empty() {
        return Ok(None);
    }
    let after = after
        .iter()
        .map(|text| LoraPattern::before_layer("layers_pattern", text));
    let after = after.collect::<distill_model::Result<_>>();
    Ok(Some(LoraLayers {
        numbers,
        after: after.map_err(|e| e.to_string())?,
    }))
}

fn read_patterns<T>(
    key: &'static str,
    written: Option<Map<String, Value>>,
    read: impl Fn(&Value) -> Option<T>,
) -> std::result::Result<Vec<(LoraPattern, T)>, String> {
    let entry = |(text, value): (String, Value)| {
        let pattern = LoraPattern::ending(key, &text).map_err(|e| e.to_string())?;
        let value = read(&value).ok_or_else(|| format!("{key}: `{text}` has the value {value}"))?;
        Ok((pattern, value))
    };
    written.unwrap_or_default().into_iter().map(entry).collect()
}

fn patterns<T: Copy>(patterns: &[(LoraPattern, T)], write: fn(T) -> Value) -> Value {
    let entry = |(pattern, value): &(LoraPattern, T)| (pattern.as_str().to_owned(), write(*value));
    Value::Object(patterns.iter().map(entry).collect())
}

fn modules(modules: &LoraModules) -> Value {
    match modules {
        LoraModules::Names(names) => json!(names),
        LoraModules::Pattern(pattern) => pattern.as_str().into(),
        LoraModules::AllLinear => ALL_LINEAR.into(),
    }
}

/// Whole numbers without a decimal point: PEFT declares alpha as an integer.
fn number(value: f64) -> Value {
    match value as i64 {
        whole if whole as f64 == value => whole.into(),
        _ => value.into(),
    }
}
