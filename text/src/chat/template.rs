//! Provides a chat template: the Jinja of a model directory, with what `transformers` gives such templates.

use std::{collections::BTreeMap, ops::Range, path::Path};

use minijinja::{
    AutoEscape, Environment, ErrorKind, Output, State, UndefinedBehavior, Value as Jinja,
    syntax::SyntaxConfig, value::ValueKind,
};
use serde_json::Value;

use super::{functions, generation};
use crate::{
    Error, Result,
    limits::{RENDERING_BYTES_MAX, TEMPLATE_FUEL},
    tokenizer::Origin,
};

/// Variables of the template that a row's `chat_template_kwargs` may not replace: `transformers` takes them by name.
const OWN_VARIABLES: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

/// A compiled chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    marks_generation: bool,
}

/// What a template renders.
#[derive(Clone, Debug)]
pub(crate) struct RenderInput {
    /// List of objects with `role` and `content`.
    pub messages: Jinja,
    /// List of JSON schemas; none for none.
    pub tools: Jinja,
    /// Further variables of the template, such as `enable_thinking`; they replace special tokens of the same name.
    pub kwargs: BTreeMap<String, Jinja>,
    /// Whether the text ends where an assistant's turn begins.
    pub add_generation_prompt: bool,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendering {
    /// The text.
    pub text: String,
    /// Bytes of `text` that `{% generation %}` blocks wrote, in order; empty where the template has none.
    pub generation: Vec<Range<usize>>,
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
        let (source, marks_generation) = generation::as_calls(source);
        environment
            .add_template_owned("chat", source)
            .map_err(|e| describe(&e))?;
        Ok(Self {
            environment,
            marks_generation,
        })
    }

    /// Whether the template taken for `tools` says with `{% generation %}` what the assistant wrote.
    pub fn marks_generation(&self, _tools: &Jinja) -> bool {
        self.marks_generation
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// `ChatTemplate` with what the template or the engine says.
    pub fn render(&self, input: &RenderInput) -> Result<Rendering> {
        let variables = variables(input)?;
        let text = self.run(&variables, Jinja::from_function(generation::plain))?;
        let mut rendering = Rendering {
            text,
            generation: Vec::new(),
        };
        if self.marks_generation {
            let marked = self.run(&variables, Jinja::from_function(generation::marked))?;
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

    fn run(&self, variables: &BTreeMap<String, Jinja>, call: Jinja) -> Result<String> {
        let mut variables = variables.clone();
        variables.insert(generation::CALL.to_owned(), call);
        let rendered = self
            .environment
            .get_template("chat")
            .and_then(|template| template.render(Jinja::from(variables)))
            .map_err(|e| Error::ChatTemplate(describe(&e)))?;
        if rendered.len() > RENDERING_BYTES_MAX {
            let (found, limit) = (rendered.len(), RENDERING_BYTES_MAX);
            let reason = format!("the conversation has {found} bytes, above the limit of {limit}");
            return Err(Error::ChatTemplate(reason));
        }
        Ok(rendered)
    }
}

fn variables(input: &RenderInput) -> Result<BTreeMap<String, Jinja>> {
    if let Some(name) = OWN_VARIABLES
        .into_iter()
        .find(|name| input.kwargs.contains_key(*name))
    {
        let reason = format!(
            "`chat_template_kwargs` has `{name}`, which is no extra variable; say it beside `chat_template_kwargs`"
        );
        return Err(Error::ChatTemplate(reason));
    }
    let mut variables = BTreeMap::from([("documents".to_owned(), Jinja::from(()))]);
    variables.extend(input.kwargs.clone());
    let own = [
        input.messages.clone(),
        input.tools.clone(),
        Jinja::from(input.add_generation_prompt),
    ];
    variables.extend(OWN_VARIABLES.map(str::to_owned).into_iter().zip(own));
    Ok(variables)
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
