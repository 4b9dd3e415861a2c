//! Provides the chat template of a model directory: which one is taken for a conversation, and what it is given.

use std::{collections::BTreeMap, ops::Range, path::Path};

use minijinja::Value as Jinja;
use serde_json::{Map, Value};

use super::{
    ChatTemplateKwargs,
    engine::Engine,
    generation,
    kwargs::{self, OWN_VARIABLES},
    values,
};
use crate::{Error, Result, limits::RENDERING_BYTES_MAX, tokenizer::Origin};

/// The template that is taken for conversations with tools, where there is one.
const TOOL_USE: &str = "tool_use";
const DEFAULT: &str = "default";

/// The file of the template [`DEFAULT`].
const FILE: &str = "chat_template.jinja";
/// The file of the template [`TOOL_USE`].
const TOOL_USE_FILE: &str = "additional_chat_templates/tool_use.jinja";

/// The chat templates of a model directory, compiled.
pub struct ChatTemplate {
    default: Option<Engine>,
    tool_use: Option<Engine>,
    kwargs: Map<String, Value>,
}

/// What a template renders.
#[derive(Clone, Copy, Debug)]
pub struct RenderInput<'a> {
    /// List of objects with `role` and `content`.
    pub messages: &'a Value,
    /// List of JSON schemas; null for none.
    pub tools: &'a Value,
    /// Further variables of the template, such as `enable_thinking`; they replace special tokens of the same name.
    pub kwargs: &'a Map<String, Value>,
    /// Whether the text ends where an assistant's turn begins.
    pub add_generation_prompt: bool,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendering {
    /// The text.
    pub text: String,
    /// Bytes of `text` that `{% generation %}` blocks wrote, in order; empty where the template has none.
    pub generation: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Reads the files `chat_template.jinja` and `additional_chat_templates/tool_use.jinja`, or, where there is neither, the
    /// `chat_template` of `tokenizer_config.json`: a text, or a list of named templates. `None` where nothing is there.
    pub(crate) fn read(
        origin: Origin<'_>,
        special: &BTreeMap<String, String>,
    ) -> Result<Option<Self>> {
        let compile_file = |name: &str| -> Result<Option<Engine>> {
            let Some(source) = origin.text(name)? else {
                return Ok(None);
            };
            let compiled = Engine::compile(&source, special);
            let engine = compiled.map_err(|reason| at(&origin.path_of(name), "file", reason))?;
            Ok(Some(engine))
        };
        let from_files = Self {
            default: compile_file(FILE)?,
            tool_use: compile_file(TOOL_USE_FILE)?,
            kwargs: Map::new(),
        };
        if from_files.default.is_some() || from_files.tool_use.is_some() {
            return Ok(Some(from_files));
        }
        let Some((path, config)) = origin.json("tokenizer_config.json")? else {
            return Ok(None);
        };
        let field = config.get("chat_template").filter(|field| !field.is_null());
        let templates = field.map(|field| Self::of_field(field, special));
        templates
            .transpose()
            .map_err(|reason| at(&path, "chat_template", reason))
    }

    /// Compiles the `chat_template` of a `tokenizer_config.json`.
    fn of_field(
        field: &Value,
        special: &BTreeMap<String, String>,
    ) -> std::result::Result<Self, String> {
        let compile = |source: &str| Engine::compile(source, special);
        let (default, tool_use) = match field {
            Value::String(source) => (Some(compile(source)?), None),
            list => (
                named(list, DEFAULT).map(compile).transpose()?,
                named(list, TOOL_USE).map(compile).transpose()?,
            ),
        };
        if default.is_none() && tool_use.is_none() {
            let reason = "neither a text nor a list with a template named \"default\"";
            return Err(reason.to_owned());
        }
        Ok(Self {
            default,
            tool_use,
            kwargs: Map::new(),
        })
    }

    /// Compiles one template.
    #[cfg(test)]
    pub(crate) fn compile(
        source: &str,
        special: &BTreeMap<String, String>,
    ) -> std::result::Result<Self, String> {
        Self::of_field(&Value::from(source), special)
    }

    /// Sets variables that every conversation is rendered with, unless a row's own say otherwise.
    pub(crate) fn set_kwargs(&mut self, kwargs: &ChatTemplateKwargs) {
        self.kwargs.clone_from(&kwargs.0);
    }

    /// The source of the template for conversations without tools.
    pub(crate) fn source(&self) -> Option<&str> {
        Some(&self.default.as_ref()?.source)
    }

    /// Whether the template taken for `tools` says with `{% generation %}` what the assistant wrote.
    pub fn marks_generation(&self, tools: &Value) -> bool {
        self.engine(tools)
            .is_ok_and(|engine| engine.marks_generation)
    }

    /// The template for conversations with `tools`; as in `transformers`, an empty list says that there are tools.
    fn engine(&self, tools: &Value) -> Result<&Engine> {
        let tool_use = self.tool_use.as_ref().filter(|_| !tools.is_null());
        tool_use.or(self.default.as_ref()).ok_or_else(|| {
            Error::ChatTemplate(format!(
                "the model has only a template named \"{TOOL_USE}\", and this conversation has no `tools`"
            ))
        })
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// `ChatTemplate` with what the template or the engine says.
    pub fn render(&self, input: &RenderInput<'_>) -> Result<Rendering> {
        let engine = self.engine(input.tools)?;
        let mut variables = self.variables(input)?;
        let mut render = |call: Jinja| {
            variables.insert(generation::CALL.to_owned(), call);
            render_bounded(engine, Jinja::from(variables.clone()))
        };
        let mut rendering = Rendering {
            text: render(Jinja::from_function(generation::plain))?,
            generation: Vec::new(),
        };
        if engine.marks_generation {
            let marked = render(Jinja::from_function(generation::marked))?;
            rendering.generation = match generation::take_marks(&marked) {
                Some((text, ranges)) if text == rendering.text => ranges,
                _ => {
                    let reason = "it cuts or counts the text of its {% generation %} blocks (or the conversation has \
                                  U+FDD0 or U+FDD1 in it), so what the assistant wrote cannot be told apart";
                    return Err(Error::ChatTemplate(reason.to_owned()));
                }
            };
        }
        Ok(rendering)
    }

    fn variables(&self, input: &RenderInput<'_>) -> Result<BTreeMap<String, Jinja>> {
        let mut variables = BTreeMap::from([("documents".to_owned(), Jinja::from(()))]);
        kwargs::check(input.kwargs)
            .map_err(|reason| Error::ChatTemplate(format!("`chat_template_kwargs`: {reason}")))?;
        for (name, value) in self.kwargs.iter().chain(input.kwargs) {
            variables.insert(name.clone(), values::to_jinja(value));
        }
        let own = [
            values::messages(input.messages),
            values::to_jinja(input.tools),
            Jinja::from(input.add_generation_prompt),
        ];
        variables.extend(OWN_VARIABLES.map(str::to_owned).into_iter().zip(own));
        Ok(variables)
    }
}

fn render_bounded(engine: &Engine, variables: Jinja) -> Result<String> {
    let rendered = engine.render(variables).map_err(Error::ChatTemplate)?;
    if rendered.len() > RENDERING_BYTES_MAX {
        let (found, limit) = (rendered.len(), RENDERING_BYTES_MAX);
        let reason = format!("the conversation has {found} bytes, above the limit of {limit}");
        return Err(Error::ChatTemplate(reason));
    }
    Ok(rendered)
}

fn at(path: &Path, field: &str, reason: String) -> Error {
    Error::TokenizerFile {
        path: path.to_owned(),
        field: field.to_owned(),
        reason,
    }
}

fn named<'a>(list: &'a Value, name: &str) -> Option<&'a str> {
    let mut entries = list.as_array()?.iter();
    let entry = entries.find(|entry| entry.get("name").is_some_and(|found| found == name))?;
    entry.get("template")?.as_str()
}
