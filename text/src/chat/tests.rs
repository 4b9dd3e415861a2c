use std::{collections::BTreeMap, fs};

use serde_json::{Map, Value, json};

use super::*;
use crate::{
    TokenizerFiles,
    testing::{CHATML, tokenizer, tokenizer_json, write},
};

fn render(source: &str, messages: Value) -> Result<String, String> {
    let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let template = ChatTemplate::compile(source, &special)?;
    let input = RenderInput {
        messages: &messages,
        tools: &Value::Null,
        kwargs: &Map::new(),
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

/// Each expectation was printed by Jinja2 for the same template.
#[test]
fn white_space_line_breaks_and_escapes_were_those_of_rust() {
    let messages = json!([
        "a\u{b}b\u{1c}c\u{85}d\u{2028}e\r\nf\n",
        "\u{1c}\u{1f} a\u{1c}b \u{1f}"
    ]);
    for (source, expected) in [
        ("{{ W.splitlines()|join('|') }}", "a|b|c|d|e|f"),
        (
            "{{ W.splitlines(true)|length }}{{ W.splitlines(keepends=true)[4] }}.",
            "6e\r\n.",
        ),
        ("{{ S.strip() }}.", "a\u{1c}b."),
        ("{{ S.lstrip() }}.", "a\u{1c}b \u{1f}."),
        ("{{ S|trim }}.", "a\u{1c}b."),
        ("{{ S.split()|join('|') }}", "a|b"),
        ("{{ S.split(none, 1)|join('|') }}.", "a|b \u{1f}."),
        ("{{ S.rsplit(none, 1)|join('|') }}", "\u{1c}\u{1f} a|b"),
        ("{{ 'xxaxx'.strip('x') }}{{ 'xxaxx'|trim('x') }}", "aa"),
        ("{{ S[0].isspace() }}", "True"),
        (r"{{ '\/\a\v\\/' }}", "\\/\u{7}\u{b}\\/"),
        (
            "{{ ''.splitlines() }}{{ '\\n'.splitlines() }}{{ ' '.split() }}",
            "[][''][]",
        ),
    ] {
        let named = format!("{{% set W, S = messages %}}{source}");
        assert_eq!(
            render(&named, messages.clone()).as_deref(),
            Ok(expected),
            "{source}"
        );
    }
    for source in ["{{ none|length }}", "{{ none|count }}"] {
        assert!(render(source, json!([])).is_err(), "{source}");
    }
    assert_eq!(render("{{ x|length }}", json!([])).as_deref(), Ok("0"));
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
    let list = json!({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]});
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

fn rendering(template: &ChatTemplate, tools: Value, kwargs: Value) -> (String, Vec<String>) {
    let input = RenderInput {
        messages: &json!([{"role": "assistant", "content": "é"}, {"role": "assistant", "content": " b "}]),
        tools: &tools,
        kwargs: kwargs.as_object().unwrap(),
        add_generation_prompt: false,
    };
    let Rendering { text, generation } = template.render(&input).unwrap();
    let covered = generation.into_iter().map(|range| text[range].to_owned());
    let covered = covered.collect();
    (text, covered)
}

#[test]
fn a_generation_block_is_found_in_loops_macros_and_filters() {
    for (source, text, covered) in [
        (
            "{% for m in messages %}<{% generation %}{{ m.content }}|{% endgeneration %}>{% endfor %}",
            "<é|>< b |>",
            vec!["é|", " b |"],
        ),
        (
            "{% macro t(m) %}<{% generation %}{{ m.content }}{% endgeneration %}>{% endmacro %}{% for m in messages %}{{ t(m) }}{% endfor %}",
            "<é>< b >",
            vec!["é", " b "],
        ),
        (
            "{% set x %}a{% generation %}b{% endgeneration %}{% endset %}{{ x }}{{ x | upper }}",
            "abAB",
            vec!["b", "B"],
        ),
        (
            "{%- for m in messages -%}  {%- generation -%}  {{ loop.index }}  {%- endgeneration -%}  {%- endfor %}",
            "12",
            vec!["1", "2"],
        ),
        (
            "{% generation %}\n  a\n{% endgeneration %}\nb",
            "  a\nb",
            vec!["  a\n"],
        ),
        (
            "{% if false %}{% generation %}a{% endgeneration %}{% endif %}b",
            "b",
            vec![],
        ),
        ("{% generation %}{% endgeneration %}", "", vec![""]),
        (
            "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}",
            "ab",
            vec!["ab", "b"],
        ),
    ] {
        let template = ChatTemplate::compile(source, &BTreeMap::new()).unwrap();
        assert!(template.marks_generation(&Value::Null));
        let found = rendering(&template, Value::Null, json!({}));
        assert_eq!(
            found,
            (
                text.to_owned(),
                covered.iter().map(|c| (*c).to_owned()).collect()
            ),
            "{source}"
        );
    }
    let plain = ChatTemplate::compile(
        "{# {% generation %} #}{{ '{% generation %}' }}",
        &BTreeMap::new(),
    )
    .unwrap();
    assert!(!plain.marks_generation(&Value::Null));
    let counts = "{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x | length }}";
    let error = render(counts, json!([])).unwrap_err();
    assert!(error.contains("cannot be told apart"), "{error}");
}

#[test]
fn rows_with_tools_take_the_template_for_tools() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &tokenizer_json(), CHATML);
    let rendered = || {
        let files = TokenizerFiles::open(dir.path()).unwrap();
        let template = files.template().unwrap();
        [Value::Null, json!([]), json!([{"name": "f"}])]
            .map(|tools| rendering(template, tools, json!({})).0)
    };
    let config = json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    // A file wins over the whole list.
    fs::write(dir.path().join("chat_template.jinja"), "f").unwrap();
    assert_eq!(rendered(), ["f", "f", "f"]);
    fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    fs::write(
        dir.path().join("additional_chat_templates/tool_use.jinja"),
        "ft",
    )
    .unwrap();
    assert_eq!(rendered(), ["f", "ft", "ft"]);
    let copy = tempfile::tempdir().unwrap();
    TokenizerFiles::open(dir.path())
        .unwrap()
        .copy_to(copy.path())
        .unwrap();
    assert!(
        copy.path()
            .join("additional_chat_templates/tool_use.jinja")
            .is_file()
    );
    fs::remove_dir_all(dir.path().join("additional_chat_templates")).unwrap();
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    assert_eq!(rendered(), ["d", "t", "t"]);
    let only = json!({"chat_template": [{"name": "tool_use", "template": "t"}]});
    fs::write(dir.path().join("tokenizer_config.json"), only.to_string()).unwrap();
    let error = TokenizerFiles::open(dir.path())
        .unwrap()
        .render_chat(&json!([]), false);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("only a template named \"tool_use\"")
    );
}

#[test]
fn further_variables_come_from_the_flag_and_the_row() {
    let source = "{{ enable_thinking }}{{ bos_token }}{{ documents }}";
    let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let mut template = ChatTemplate::compile(source, &special).unwrap();
    let found = |template: &ChatTemplate, kwargs| rendering(template, Value::Null, kwargs).0;
    assert_eq!(found(&template, json!({})), "<s>None");
    assert_eq!(
        found(&template, json!({"bos_token": "B", "documents": [1]})),
        "B[1]"
    );
    template.set_kwargs(&r#"{"enable_thinking": false}"#.parse().unwrap());
    assert_eq!(found(&template, json!({})), "False<s>None");
    assert_eq!(
        found(&template, json!({"enable_thinking": true})),
        "True<s>None"
    );
    let own = json!({"tools": []});
    let input = RenderInput {
        messages: &json!([]),
        tools: &Value::Null,
        kwargs: own.as_object().unwrap(),
        add_generation_prompt: false,
    };
    let error = template.render(&input).unwrap_err().to_string();
    assert!(error.contains("`tools` is no further variable"), "{error}");
}

#[test]
fn further_variables_that_are_no_object_are_refused() {
    for (text, expected) in [
        ("[1]", "[1] is no JSON object"),
        ("true", "true is no JSON object"),
        ("null", "null is no JSON object"),
        ("{'a': 1}", "not JSON"),
        ("", "not JSON"),
        (r#"{"messages": []}"#, "`messages` is no further variable"),
        (
            r#"{"add_generation_prompt": true}"#,
            "`add_generation_prompt` is no further variable",
        ),
    ] {
        let error = text.parse::<ChatTemplateKwargs>().unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let kwargs: ChatTemplateKwargs = r#"{"b": 1, "a": [true]}"#.parse().unwrap();
    assert_eq!(kwargs.to_string(), r#"{"b":1,"a":[true]}"#);
    let text = serde_json::to_value(&kwargs).unwrap();
    assert_eq!(
        serde_json::from_value::<ChatTemplateKwargs>(text).unwrap(),
        kwargs
    );
    let table = json!({"b": 1, "a": [true]});
    assert_eq!(
        serde_json::from_value::<ChatTemplateKwargs>(table).unwrap(),
        kwargs
    );
}

#[test]
fn a_null_entry_of_a_message_is_absent_and_thoughts_have_both_names() {
    for (message, expected) in [
        (json!({"role": "a", "content": null}), r#"{"role": "a"}"#),
        (
            json!({"role": "a", "tool_calls": null, "x": {"y": null}}),
            r#"{"role": "a", "x": {"y": null}}"#,
        ),
        (
            json!({"role": "a", "reasoning": "r"}),
            r#"{"thinking": "r", "role": "a", "reasoning": "r", "reasoning_content": "r"}"#,
        ),
        (
            json!({"role": "a", "reasoning_content": "r"}),
            r#"{"thinking": "r", "role": "a", "reasoning_content": "r"}"#,
        ),
        (
            json!({"role": "a", "thinking": "t", "reasoning_content": "r"}),
            r#"{"thinking": "t", "role": "a", "reasoning_content": "r"}"#,
        ),
        (
            json!({"role": "a", "thinking": null, "reasoning": "r"}),
            r#"{"thinking": "r", "role": "a", "reasoning": "r", "reasoning_content": "r"}"#,
        ),
    ] {
        let found = render("{{ messages[0] | tojson }}", json!([message]));
        assert_eq!(found.as_deref(), Ok(expected));
    }
}

#[test]
fn tools_that_are_not_there_are_not_iterable() {
    let source = "{% if tools is iterable and tools | length > 0 %}some{% else %}none{% endif %}\
                  {{ 'a' is iterable }}{{ [] is iterable }}{{ {} is iterable }}{{ 1 is iterable }}";
    assert_eq!(
        render(source, json!([])).as_deref(),
        Ok("noneTrueTrueTrueFalse")
    );
}
