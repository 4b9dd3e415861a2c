//! Provides the template engine as `transformers` sets up Jinja2: its options, functions, filters and way of printing.

use std::{
    collections::BTreeMap,
    thread::{self, ScopedJoinHandle},
};

use minijinja::{
    AutoEscape, Environment, ErrorKind, Output, State, UndefinedBehavior, Value as Jinja,
    syntax::SyntaxConfig,
};

use super::{filters, functions, json, methods, source, spaces, values};
use crate::limits::TEMPLATE_FUEL;

/// Name of the only template of an engine.
const NAME: &str = "chat";

/// Stack of the thread that compiles: the compiler goes down an expression and a chain of `elif` by recursion, which
/// `TEMPLATE_OPERATORS_MAX` and `TEMPLATE_TAGS_MAX` bound.
const COMPILER_STACK_BYTES: usize = 256 << 20;

/// A compiled template.
pub(super) struct Engine {
    environment: Environment<'static>,
    /// As its author wrote it.
    pub source: String,
    pub marks_generation: bool,
}

impl Engine {
    /// Compiles a template; `special` are its variables `bos_token`, `eos_token` and so on.
    pub fn compile(source: &str, special: &BTreeMap<String, String>) -> Result<Self, String> {
        let prepared = source::prepare(source)?;
        let mut environment = environment()?;
        for (name, content) in special {
            environment.add_global(name.clone(), content.clone());
        }
        let compiler = thread::Builder::new().stack_size(COMPILER_STACK_BYTES);
        let compiled = thread::scope(|scope| {
            let add = || environment.add_template_owned(NAME, prepared.source);
            compiler
                .spawn_scoped(scope, add)
                .map(ScopedJoinHandle::join)
        });
        let compiled = compiled.map_err(|error| format!("no thread to compile it: {error}"))?;
        let compiled = compiled.map_err(|_| "the compiler gave up on it".to_owned())?;
        compiled.map_err(|error| describe(&error))?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            marks_generation: prepared.marks_generation,
        })
    }

    /// Renders the template.
    pub fn render(&self, variables: Jinja) -> Result<String, String> {
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(variables))
            .map_err(|error| describe(&error))
    }
}

fn environment() -> Result<Environment<'static>, String> {
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
    environment.set_unknown_method_callback(methods::method);
    environment.set_formatter(print);
    environment.add_function("raise_exception", functions::raise_exception);
    environment.add_function("strftime_now", functions::strftime_now);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", functions::text);
    environment.add_filter("int", functions::int);
    environment.add_filter("float", functions::float);
    environment.add_test("iterable", functions::is_iterable);
    environment.add_test("sequence", functions::is_sequence);
    environment.add_test("number", functions::is_number);
    environment.add_test("integer", functions::is_integer);
    environment.add_filter("length", functions::length);
    environment.add_filter("count", functions::length);
    environment.add_filter("trim", spaces::trim);
    environment.add_filter("join", methods::join);
    environment.add_filter("format", methods::printf);
    environment.add_filter("center", methods::center);
    environment.add_filter("indent", filters::indent);
    environment.add_filter("truncate", filters::truncate);
    environment.add_filter("wordcount", filters::wordcount);
    environment.add_function("joiner", filters::joiner);
    environment.add_filter(source::TEXT, functions::text);
    environment.add_filter(source::PERCENT, methods::percent);
    environment.add_filter(source::BOUND, values::bound);
    environment.add_filter(source::BOUND_FOR_NAMESPACE, values::bound_for_namespace);
    environment.add_global(source::ONE, 1);
    Ok(environment)
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

/// Prints a value as Python does; templates compare and concatenate such text.
fn print(
    out: &mut Output<'_>,
    _: &mut State<'_, '_>,
    value: &Jinja,
) -> Result<(), minijinja::Error> {
    match value.as_str() {
        Some(text) => out.write_str(text)?,
        None => out.write_str(&super::python::str(value)?)?,
    }
    Ok(())
}
