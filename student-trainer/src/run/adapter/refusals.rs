//! Provides the keys of PEFT's configuration that this build does not follow: refused where they change what is computed.

use serde_json::{Map, Value};

/// Keys that are understood, or that say nothing about what is computed.
const KNOWN: [&str; 27] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// Keys that change what is computed, with what to do.
const REFUSED: [(&str, &str); 16] = [
    (
        "use_dora",
        "train plain LoRA, or merge the adapter with PEFT and use the result as the base",
    ),
    (
        "bias",
        "only \"none\" is; merge the adapter with PEFT and use the result as the base",
    ),
    (
        "lora_bias",
        "merge the adapter with PEFT and use the result as the base",
    ),
    (
        "fan_in_fan_out",
        "it belongs to Conv1D layers, which this model does not have",
    ),
    (
        "modules_to_save",
        "only adapters are kept; merge with PEFT and use the result as the base",
    ),
    (
        "trainable_token_indices",
        "embeddings are frozen; merge with PEFT and use the result as the base",
    ),
    ("target_parameters", "name linear layers in target_modules"),
    (
        "layer_replication",
        "build the model with the repeated layers first, and adapt that",
    ),
    ("alora_invocation_tokens", "adapters count at every token"),
    ("use_qalora", "train plain LoRA"),
    ("use_bdlora", "train plain LoRA"),
    ("arrow_config", "use one of the routed adapters by itself"),
    ("kasa_config", "train plain LoRA"),
    ("monteclora_config", "train plain LoRA"),
    ("velora_config", "train plain LoRA"),
    (
        "megatron_config",
        "save the adapter from an unsharded model",
    ),
];

/// Ways to initialise that leave the base alone. The others subtract the initial adapter from it, so that the saved one
/// belongs to a base that is on no disk.
const INITIALISATIONS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// What makes a configuration unusable here, the key first.
pub(super) fn refusal(fields: &Map<String, Value>) -> Option<String> {
    if let Some(kind) = fields.get("peft_type")
        && kind != "LORA"
    {
        return Some(format!("peft_type {kind} is not supported; \"LORA\" is"));
    }
    for (key, remedy) in REFUSED {
        if let Some(value) = fields.get(key)
            && is_asked(value)
            && !(key == "bias" && value == "none")
        {
            return Some(format!("{key} is not supported: {remedy}"));
        }
    }
    match fields.get("init_lora_weights") {
        Some(Value::String(way)) if !INITIALISATIONS.contains(&way.as_str()) => Some(format!(
            "init_lora_weights \"{way}\" is not supported: such an adapter belongs to a changed base; convert it with PEFT \
             (save_pretrained with path_initial_model_for_weight_conversion)"
        )),
        _ => None,
    }
}

/// Keys that neither this build nor, as far as it knows, PEFT has; PEFT ignores such keys too.
pub(super) fn unknown(fields: &Map<String, Value>) -> Vec<&str> {
    let known = |key: &str| KNOWN.contains(&key) || REFUSED.iter().any(|(name, _)| *name == key);
    let asked = fields.iter().filter(|(_, value)| is_asked(value));
    asked
        .map(|(key, _)| key.as_str())
        .filter(|key| !known(key))
        .collect()
}

/// Whether a value asks for anything: PEFT writes every key, most of them with one of these.
fn is_asked(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}
