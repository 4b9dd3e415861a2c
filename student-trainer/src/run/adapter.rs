//! Provides the adapter as Hugging Face PEFT writes and reads it: `adapter_model.safetensors` and `adapter_config.json`.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device, Tensor, Var};
use distill_model::LoraConfig;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::write_atomically;
use crate::{Error, Result, loss::HiddenProjection};

pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
pub(crate) const PROJECTION_FILE: &str = "hidden_projection.safetensors";

/// `adapter_config.json`, with the keys in the order and the defaults that PEFT writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    #[serde(default)]
    alpha_pattern: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    auto_mapping: Option<serde_json::Value>,
    /// Directory or hub name of the base.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    #[serde(default = "none")]
    bias: String,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    inference_mode: bool,
    #[serde(default)]
    init_lora_weights: serde_json::Value,
    #[serde(default)]
    layers_pattern: Option<serde_json::Value>,
    #[serde(default)]
    layers_to_transform: Option<serde_json::Value>,
    /// alpha; adapters count alpha / r.
    pub lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    modules_to_save: Option<serde_json::Value>,
    /// Always `LORA`.
    pub peft_type: String,
    /// Rank.
    pub r: usize,
    #[serde(default)]
    rank_pattern: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    revision: Option<String>,
    /// Names of the adapted projections.
    pub target_modules: Vec<String>,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    use_rslora: bool,
}

fn none() -> String {
    "none".to_owned()
}

impl AdapterConfig {
    /// The configuration of an adapter over the base in `base`.
    pub fn new(lora: &LoraConfig, base: &str) -> Self {
        Self {
            alpha_pattern: Default::default(),
            auto_mapping: None,
            base_model_name_or_path: Some(base.to_owned()),
            bias: none(),
            fan_in_fan_out: false,
            inference_mode: true,
            init_lora_weights: true.into(),
            layers_pattern: None,
            layers_to_transform: None,
            lora_alpha: lora.alpha,
            lora_dropout: 0.0,
            modules_to_save: None,
            peft_type: "LORA".to_owned(),
            r: lora.rank,
            rank_pattern: Default::default(),
            revision: None,
            target_modules: lora.targets.clone(),
            task_type: Some("CAUSAL_LM".to_owned()),
            use_dora: false,
            use_rslora: lora.rs_lora,
        }
    }

    /// Reads `adapter_config.json` of a directory.
    ///
    /// # Errors
    /// A file that is no LoRA configuration, or one that asks for what this build does not do, by name.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(CONFIG_FILE);
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let config: Self =
            serde_json::from_str(&text).map_err(|e| Error::file(&path, e.to_string()))?;
        let unsupported = [
            (config.peft_type != "LORA", "peft_type other than LORA"),
            (config.use_dora, "use_dora"),
            (config.bias != "none", "bias"),
            (config.fan_in_fan_out, "fan_in_fan_out"),
            (!config.alpha_pattern.is_empty(), "alpha_pattern"),
            (!config.rank_pattern.is_empty(), "rank_pattern"),
            (config.modules_to_save.is_some(), "modules_to_save"),
            (config.layers_to_transform.is_some(), "layers_to_transform"),
        ];
        match unsupported.iter().find(|(asked, _)| *asked) {
            Some((_, name)) => Err(Error::file(&path, format!("{name} is not supported"))),
            None => Ok(config),
        }
    }

    /// The content of `adapter_config.json`.
    ///
    /// # Errors
    /// None in practice.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|e| Error::Config(format!("{CONFIG_FILE}: {e}")))
    }

    /// What the decoder needs to grow these adapters.
    pub fn lora(&self) -> LoraConfig {
        LoraConfig {
            rank: self.r,
            alpha: self.lora_alpha,
            targets: self.target_modules.clone(),
            rs_lora: self.use_rslora,
            ..LoraConfig::default()
        }
    }
}

/// Writes both files into `directory`, creating it.
///
/// Names are PEFT's: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
///
/// # Errors
/// The file system refuses; an earlier adapter is untouched then.
pub fn save_adapter(
    directory: &Path,
    config: &AdapterConfig,
    parameters: &[(String, Var)],
) -> Result<()> {
    fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
    let tensors = parameters
        .iter()
        .map(|(name, var)| Ok((name, var.as_tensor().to_device(&Device::Cpu)?)))
        .collect::<Result<Vec<(&String, Tensor)>>>()?;
    // What PEFT and transformers write; some readers insist on it.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let weights = safetensors::serialize(tensors, Some(metadata))?;
    write_atomically(&directory.join(WEIGHTS_FILE), &weights)?;
    write_atomically(&directory.join(CONFIG_FILE), &config.to_json()?)
}

/// Writes the learned projection of hidden states beside an adapter; PEFT does not look at it.
///
/// # Errors
/// A tensor error, or a file that cannot be written.
pub fn save_projection(directory: &Path, projection: &HiddenProjection) -> Result<()> {
    let (name, var) = projection.parameter();
    let tensor = var.as_tensor().to_device(&Device::Cpu)?;
    let bytes = safetensors::serialize([(name, tensor)], None)?;
    write_atomically(&directory.join(PROJECTION_FILE), &bytes)
}

/// Fills `parameters` with the values of a saved adapter.
///
/// # Errors
/// A tensor that is missing, left over or of another shape, by name.
pub fn load_adapter(directory: &Path, parameters: &[(String, Var)]) -> Result<()> {
    let path = directory.join(WEIGHTS_FILE);
    let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::file(&path, e.to_string()))?;
    for (name, var) in parameters {
        let view = file.tensor(name).map_err(|_| {
            Error::file(
                &path,
                format!("there is no tensor {name}; the base or target_modules differ"),
            )
        })?;
        if view.shape() != var.dims() {
            return Err(Error::file(
                &path,
                format!(
                    "{name} has shape {:?}, the student needs {:?}",
                    view.shape(),
                    var.dims()
                ),
            ));
        }
        use candle_core::safetensors::Load;
        let value = view.load(var.device())?.to_dtype(DType::F32)?;
        var.set(&value)?;
    }
    let known = |name: &&str| parameters.iter().any(|(known, _)| known == name);
    match file.names().into_iter().find(|name| !known(name)) {
        Some(name) => Err(Error::file(
            &path,
            format!("tensor {name} has no place in the student"),
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(value: f32) -> Vec<(String, Var)> {
        let var = |shape: (usize, usize)| {
            let tensor = Tensor::full(value, shape, &Device::Cpu).unwrap();
            Var::from_tensor(&tensor).unwrap()
        };
        let prefix = "base_model.model.model.layers.0.self_attn.q_proj";
        vec![
            (format!("{prefix}.lora_A.weight"), var((2, 4))),
            (format!("{prefix}.lora_B.weight"), var((6, 2))),
        ]
    }

    #[test]
    fn an_adapter_reads_back_with_names_shapes_and_values() {
        let dir = tempfile::tempdir().unwrap();
        let lora = LoraConfig {
            rank: 2,
            alpha: 4.0,
            targets: vec!["q_proj".into()],
            ..LoraConfig::default()
        };
        let config = AdapterConfig::new(&lora, "/models/base");
        save_adapter(dir.path(), &config, &parameters(0.25)).unwrap();
        let read = AdapterConfig::read(dir.path()).unwrap();
        assert_eq!(read, config);
        assert_eq!(
            (read.lora().rank, read.lora().targets),
            (2, vec!["q_proj".to_owned()])
        );

        let empty = parameters(0.0);
        load_adapter(dir.path(), &empty).unwrap();
        assert_eq!(empty[1].1.to_vec2::<f32>().unwrap(), [[0.25; 2]; 6]);

        let more = [parameters(0.0), vec![("other".into(), empty[0].1.clone())]].concat();
        let message = load_adapter(dir.path(), &more).unwrap_err().to_string();
        assert!(message.contains("no tensor other"), "{message}");
        let message = load_adapter(dir.path(), &empty[..1])
            .unwrap_err()
            .to_string();
        assert!(message.contains("lora_B.weight has no place"), "{message}");
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let json = r#"{"peft_type":"LORA","r":4,"lora_alpha":8,"target_modules":["q_proj"],"use_dora":true}"#;
        fs::write(dir.path().join(CONFIG_FILE), json).unwrap();
        let message = AdapterConfig::read(dir.path()).unwrap_err().to_string();
        assert!(message.contains("use_dora"), "{message}");
    }
}
