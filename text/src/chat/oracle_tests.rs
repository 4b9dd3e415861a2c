//! Expressions of templates against what `transformers`' engine prints for them (tests/fixtures/make_templates.py).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::*;

/// Where the engine differs from Jinja2 in what no chat template in use needs.
const KNOWN: &[&str] = &[
    // Filters, tests and functions that the engine does not have; a template that needs them is refused by name.
    "{{ words | random is string }}",
    "{{ 'a b' | wordcount }}",
    "{{ 'abcdef' | truncate(5) }}",
    "{{ code | indent('>> ') }}",
    "{{ d.get is callable }}",
    "{{ 'tab\\tx'.expandtabs(4) }}",
    "{{ 'é'.encode('utf-8') }}",
    "{{ lipsum is defined }}",
    "{{ cycler is defined }}",
    "{{ joiner is defined }}",
    // Texts have no `%` here; it is an error that says so.
    "{{ '%s' % 'x' }}",
    "{{ '%d items' % 3 }}",
    "{{ '%s and %s' % ('a', 'b') }}",
    // Methods are no attributes, a namespace prints as a dictionary, nothing is escaped, and undefined values compare.
    "{{ d.items is defined }}",
    "{{ namespace(a=1) }}",
    "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    "{% if undefined_name > 1 %}1{% endif %}",
];

#[test]
fn expressions_print_as_transformers_prints_them() {
    let text = include_str!("../../../tests/fixtures/templates/expressions.json");
    let oracle: Value = serde_json::from_str(text).unwrap();
    let kwargs: &Map<String, Value> = oracle["variables"].as_object().unwrap();
    let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let mut differing = BTreeSet::new();
    let mut report = String::new();
    for case in oracle["cases"].as_array().unwrap() {
        let source = case[0].as_str().unwrap();
        let input = RenderInput {
            messages: &oracle["messages"],
            tools: &Value::Null,
            kwargs,
            add_generation_prompt: false,
        };
        let found = ChatTemplate::compile(source, &special)
            .and_then(|template| template.render(&input).map_err(|e| e.to_string()));
        let found = found.map(|rendering| rendering.text);
        if found.as_deref().ok() != case[1].as_str() {
            differing.insert(source);
            report += &format!("{source}\n   is {found:?}\n   not {}\n", case[1]);
        }
    }
    let known: BTreeSet<&str> = KNOWN.iter().copied().collect();
    assert!(differing == known, "{report}");
}
