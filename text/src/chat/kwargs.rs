//! Provides `--chat-template-kwargs`: variables that every conversation of a corpus is rendered with.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};

/// Variables of a chat template; written as the text of a JSON object, in a settings file also as a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatTemplateKwargs(pub(super) Map<String, Value>);

/// Variables of the template that further ones may not replace: `transformers` takes them by name.
pub(super) const OWN_VARIABLES: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

/// Refuses variables that a template has anyway.
pub(super) fn check(kwargs: &Map<String, Value>) -> Result<(), String> {
    let own = kwargs
        .keys()
        .find(|name| OWN_VARIABLES.contains(&name.as_str()));
    match own {
        Some(name) => Err(format!(
            "`{name}` is no further variable of a chat template; rows have their own `messages` and `tools`"
        )),
        None => Ok(()),
    }
}

impl ChatTemplateKwargs {
    fn of(value: Value) -> Result<Self, String> {
        let Value::Object(kwargs) = value else {
            let text = value.to_string();
            let shown: String = text.chars().take(40).collect();
            return Err(format!(
                "{shown} is no JSON object; expected one such as {{\"enable_thinking\": false}}"
            ));
        };
        check(&kwargs)?;
        Ok(Self(kwargs))
    }
}

impl FromStr for ChatTemplateKwargs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let value = serde_json::from_str(text).map_err(|error| {
            format!("not JSON ({error}); expected an object such as {{\"enable_thinking\": false}}")
        })?;
        Self::of(value)
    }
}

impl fmt::Display for ChatTemplateKwargs {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", Value::Object(self.0.clone()))
    }
}

impl Serialize for ChatTemplateKwargs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The key under which the crate `toml` hands a date over.
const TOML_DATE: &str = "$__toml_private_datetime";

/// What a settings file has and JSON does not: numbers that are not finite, which come as nulls, and dates.
fn foreign(value: &Value) -> Option<&'static str> {
    match value {
        Value::Null => Some("a number that is not finite"),
        Value::Object(fields) if fields.contains_key(TOML_DATE) => Some("a date without quotes"),
        Value::Object(fields) => fields.values().find_map(foreign),
        Value::Array(items) => items.iter().find_map(foreign),
        _ => None,
    }
}

impl<'de> Deserialize<'de> for ChatTemplateKwargs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parsed = match Value::deserialize(deserializer)? {
            Value::String(text) => text.parse(),
            other => match foreign(&other) {
                Some(what) => Err(format!("{what}, which JSON does not have")),
                None => Self::of(other),
            },
        };
        parsed.map_err(de::Error::custom)
    }
}
