//! Provides a value as JSON text that [`parse`](super::parse) reads as the same value.

use super::{Json, Object};

impl Json {
    /// The value as text, with no white space and every field in its place.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Null | Self::Unusable(_) => *out += "null",
            Self::Bool(value) => *out += if *value { "true" } else { "false" },
            Self::Integer(value) => *out += &value.to_string(),
            Self::LongInteger(digits) => *out += digits,
            Self::Float(value) => *out += &float(*value),
            Self::String(text) => *out += &quote(text),
            Self::Array(values) => {
                out.push('[');
                for (at, value) in values.iter().enumerate() {
                    *out += if at == 0 { "" } else { "," };
                    value.write(out);
                }
                out.push(']');
            }
            Self::Object(fields) => write_fields(fields, out),
        }
    }
}

fn write_fields(fields: &Object, out: &mut String) {
    out.push('{');
    for (at, (name, value)) in fields.iter().enumerate() {
        *out += if at == 0 { "" } else { "," };
        *out += &quote(name);
        out.push(':');
        value.write(out);
    }
    out.push('}');
}

/// With a point or an exponent, or it would be read as an integer; what is no number is spelt as Python spells it.
fn float(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        let sign = if value < 0.0 { "-" } else { "" };
        format!("{sign}Infinity")
    } else {
        format!("{value:?}")
    }
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
