//! Expressions of templates against what `transformers`' engine prints for them (tests/fixtures/make_templates.py).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::*;

/// Where the engine differs from Jinja2 in what no chat template in use needs.
const KNOWN: &[&str] = &[
    // Filters, tests, functions and methods that the engine does not have; a template that needs them is refused by name.
    "{{ words | random is string }}",
    "{{ 'a b' | urlencode }}",
    "{{ 'a&b' | forceescape }}",
    "{{ '<i>a</i>' | striptags }}",
    "{{ 1000 | filesizeformat }}",
    "{{ {'a': 'b'} | xmlattr }}",
    "{{ 'a b c' | wordwrap(3) }}",
    "{{ 'http://a.b' | urlize }}",
    "{{ range is callable }}",
    "{{ d.get is callable }}",
    "{{ 'a' is callable }}",
    "{{ none is callable }}",
    "{{ lipsum is defined }}",
    "{{ cycler is defined }}",
    "{{ 'tab\\tx'.expandtabs(4) }}",
    "{{ 'a\\tb'.expandtabs() }}",
    "{{ 'é'.encode('utf-8') }}",
    // Arguments that the engine does not take; the same.
    "{{ 'abc'.startswith('b', 1) }}",
    "{{ 'ab'.find('b', 1) }}",
    "{{ {'b': 2, 'a': 3} | dictsort(false, 'value') }}",
    "{{ dict([('a', 1)]) }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}{{ ns['a'] }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, a=3) }}",
    // `%` is for numbers but behind a text in quotes, and does not know every conversion; it is an error that says so.
    "{% set f = '%s!' %}{{ f % 'a' }}",
    "{{ ('%s' ~ '!') % 'a' }}",
    "{{ '%r' % 'x' }}",
    "{{ '%i' % 3.7 }}",
    // What Python refuses is let through.
    "{{ none | list }}",
    "{{ [3, 'a'] | sort }}",
    "{{ [none, 1] | sort }}",
    "{{ d | dictsort(by='value') }}",
    "{% if undefined_name > 1 %}1{% endif %}",
    // Methods are no attributes, a namespace prints as a dictionary, nothing is escaped, and defaults do not see arguments.
    "{{ d.items is defined }}",
    "{{ namespace(a=1) }}",
    "{{ d | pprint }}",
    "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(1) }}",
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
