use std::{collections::BTreeMap, fs};

use minijinja::value::Serde;
use serde_json::{Value, json};

use super::*;
use crate::{
    TokenizerFiles,
    testing::{CHATML, tokenizer, tokenizer_json, write},
};

fn render(source: &str, messages: Value) -> Result<String, String> {
    let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let template = ChatTemplate::compile(source, &special)?;
    let input = RenderInput {
        messages: Jinja::from(Serde(&messages)),
        tools: Jinja::from(()),
        kwargs: BTreeMap::new(),
        add_generation_prompt: true,
    };
    let rendering = template.render(&input).map_err(|e| e.to_string())?;
    Ok(rendering.text)
}

#[test]
fn chatml_is_rendered_as_transformers_does() {
    let (_dir, files) = tokenizer();
    let messages =
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]);
    let text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n";
    assert_eq!(files.render_chat(&messages, false).unwrap(), text);
    let prompt = format!("{text}<|im_start|>assistant\n");
    assert_eq!(files.render_chat(&messages, true).unwrap(), prompt);
}

/// Each expectation was printed by `transformers`' own environment for the same template.
#[test]
fn what_templates_use_of_python_works() {
    let messages =
        json!([{"role": "user", "content": " a,b ", "b": {"z": 1, "a": [true, null, "é<&'"]}}]);
    let cases = [
        ("{{ messages[0].content.strip().split(',')[1] }}", "b"),
        ("{{ messages[0]['content'] | trim }}", "a,b"),
        (
            "{{ messages[0].b | tojson }}",
            r#"{"z": 1, "a": [true, null, "é<&'"]}"#,
        ),
        ("{{ [1, {}] | tojson(indent=2) }}", "[\n  1,\n  {}\n]"),
        ("{{ bos_token }}{{ eos_token }}", "<s>"),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{{ none }}{{ true }}{{ 1.0 }}", "NoneTrue1.0"),
        ("{{ messages[0].get('name', 'x') }}", "x"),
        (
            "{% for k, v in messages[0].items() %}{{ k }};{% endfor %}",
            "role;content;b;",
        ),
        (
            "{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
            "13",
        ),
        (
            "{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "1",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        (
            "{{ tools is none }}{{ tools is defined }}{{ x is defined }}",
            "TrueTrueFalse",
        ),
        ("a\n  {% if true %}\nb\n  {% endif %}\n", "a\nb\n"),
        (
            "x {%- generation -%} {{ messages | length }} {%- endgeneration %} y",
            "x1 y",
        ),
        (
            "{{ messages[0].role.upper() + '!' if messages[0].role is string }}",
            "USER!",
        ),
        (
            "{% if messages[0].tool_calls %}1{% else %}2{% endif %}",
            "2",
        ),
        (
            "{{ messages[::-1][0].role }}{{ messages[-1].role.startswith('us') }}",
            "userTrue",
        ),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('q') }}", "[q]"),
        ("{{ '<' + messages[0].role + '>' }}", "<user>"),
    ];
    for (source, expected) in cases {
        assert_eq!(
            render(source, messages.clone()).as_deref(),
            Ok(expected),
            "{source}"
        );
    }
}

#[test]
fn a_refusal_of_the_template_reaches_the_user() {
    let error = render("\n{{ raise_exception('roles must alternate') }}", json!([])).unwrap_err();
    assert!(
        error.contains("roles must alternate") && error.contains("line 2"),
        "{error}"
    );
    assert!(render("{% if %}", json!([])).is_err());
}

#[test]
fn a_template_without_end_is_stopped() {
    let endless =
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
    assert!(
        render(endless, json!([]))
            .unwrap_err()
            .contains("too much work")
    );
    let deep = "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}";
    assert!(render(deep, json!([])).is_err());
}

#[test]
fn a_list_of_templates_gives_the_default_one() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &tokenizer_json(), CHATML);
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    let open = |config: Value| {
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        TokenizerFiles::open(dir.path())
    };
    let list = json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
    let files = open(list).unwrap();
    assert_eq!(files.render_chat(&json!([]), false).unwrap(), "d");
    let files = open(json!({"chat_template": "s"})).unwrap();
    assert_eq!(files.render_chat(&json!([]), false).unwrap(), "s");
    let none = open(json!({})).unwrap().render_chat(&json!([]), false);
    assert!(
        none.unwrap_err()
            .to_string()
            .contains("chat_template.jinja")
    );
    let error = open(json!({"chat_template": 7})).err().unwrap().to_string();
    assert!(
        error.contains("tokenizer_config.json: chat_template: "),
        "{error}"
    );
    let error = open(json!({"chat_template": "{{"}))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("tokenizer_config.json: chat_template: "),
        "{error}"
    );
}
