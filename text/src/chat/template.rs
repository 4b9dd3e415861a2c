//! Provides a chat template: the Jinja of a model directory, with what `transformers` gives such templates.

use std::{collections::BTreeMap, path::Path};

use minijinja::{
    AutoEscape, Environment, ErrorKind, Output, State, UndefinedBehavior, Value as Jinja, context,
    syntax::SyntaxConfig,
    value::{Serde, ValueKind},
};
use serde_json::Value;

use super::functions;
use crate::{
    Error, Result,
    limits::{RENDERING_BYTES_MAX, TEMPLATE_FUEL},
    tokenizer::Origin,
};

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja` or the `chat_template` of `tokenizer_config.json` (a text, or a list in which the one
    /// named `default` is taken); `None` where there is neither.
    pub(crate) fn read(
        origin: Origin<'_>,
        special: &BTreeMap<String, String>,
    ) -> Result<Option<Self>> {
        let name = "chat_template.jinja";
        if let Some(source) = origin.text(name)? {
            return Self::compile(&source, special)
                .map(Some)
                .map_err(|reason| at(&origin.path_of(name), "file", reason));
        }
        let Some((path, config)) = origin.json("tokenizer_config.json")? else {
            return Ok(None);
        };
        let source = match config.get("chat_template") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(source)) => source.as_str(),
            Some(list) => default_of(list).ok_or_else(|| {
                let reason = "neither a text nor a list with a template named \"default\"";
                at(&path, "chat_template", reason.to_owned())
            })?,
        };
        Self::compile(source, special)
            .map(Some)
            .map_err(|reason| at(&path, "chat_template", reason))
    }

    /// Compiles a template; `special` are its variables `bos_token`, `eos_token` and so on.
    pub(crate) fn compile(
        source: &str,
        special: &BTreeMap<String, String>,
    ) -> std::result::Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| e.to_string())?;
        environment.set_syntax(syntax);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(TEMPLATE_FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(python_print);
        environment.add_function("raise_exception", functions::raise_exception);
        environment.add_function("strftime_now", functions::strftime_now);
        environment.add_filter("tojson", functions::tojson);
        for (name, content) in special {
            environment.add_global(name.clone(), content.clone());
        }
        environment
            .add_template_owned("chat", without_generation_tags(source))
            .map_err(|e| describe(&e))?;
        Ok(Self { environment })
    }

    /// Renders `messages` and `tools` (null for none).
    ///
    /// # Errors
    /// `ChatTemplate` with what the template or the engine says.
    pub fn render(
        &self,
        messages: &Value,
        tools: &Value,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let variables = context! {
            messages => Jinja::from(Serde(messages)),
            tools => Jinja::from(Serde(tools)),
            documents => (),
            add_generation_prompt,
        };
        let rendered = self
            .environment
            .get_template("chat")
            .and_then(|template| template.render(variables))
            .map_err(|e| Error::ChatTemplate(describe(&e)))?;
        if rendered.len() > RENDERING_BYTES_MAX {
            let (found, limit) = (rendered.len(), RENDERING_BYTES_MAX);
            let reason = format!("the conversation has {found} bytes, above the limit of {limit}");
            return Err(Error::ChatTemplate(reason));
        }
        Ok(rendered)
    }
}

fn at(path: &Path, field: &str, reason: String) -> Error {
    Error::TokenizerFile {
        path: path.to_owned(),
        field: field.to_owned(),
        reason,
    }
}

fn default_of(list: &Value) -> Option<&str> {
    let named = list.as_array()?.iter();
    let mut default = named.filter(|entry| entry.get("name").is_some_and(|n| n == "default"));
    default.next()?.get("template")?.as_str()
}

/// The engine's words with the line of the template and the cause.
fn describe(error: &minijinja::Error) -> String {
    let mut text = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => {
            return "it does too much work for one conversation; does it loop without end?".into();
        }
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    if let Some(line) = error.line() {
        text += &format!(" (line {line} of the template)");
    }
    text
}

/// Prints null, true and false as Python does; templates compare and concatenate such text.
fn python_print(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Jinja,
) -> std::result::Result<(), minijinja::Error> {
    let word = match (value.is_none(), bool::try_from(value.clone())) {
        (true, _) => "None",
        (false, Ok(true)) if value.kind() == ValueKind::Bool => "True",
        (false, Ok(false)) if value.kind() == ValueKind::Bool => "False",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(minijinja::Error::from)
}

/// `{% generation %}` marks the assistant's text for `transformers`; what is a target is found by [`super::turns`] here, so
/// the tags become a block that always renders, whitespace control included.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end);
        let word = tag
            .trim_start_matches("{%")
            .trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        match word {
            "generation" => out.push_str(&tag.replacen(word, "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen(word, "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
