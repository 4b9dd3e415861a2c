//! Expressions of templates against what `transformers`' engine prints for them (tests/fixtures/make_templates.py).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::*;

/// Where the engine differs from Jinja2 in what no chat template in use needs.
const KNOWN: &[&str] = &[];

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
