//! Tests of what a row says: tools, thoughts, messages and what of them is learnt.

use std::fs;

use serde_json::{Value, json};

use super::{Corpus, Result, Sequence, TokenizerFiles, Windowing, read_corpus};
use crate::testing::{CHATML, shared, tokenizer_json, tokenizer_with};

/// ChatML that prints what else it is given, as templates for tools do.
const WITH_TOOLS: &str =
    "{% if tools is not none %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}";

pub(super) fn read_strictly(
    files: &TokenizerFiles,
    content: impl AsRef<[u8]>,
    strict: bool,
) -> Result<Corpus> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.jsonl");
    fs::write(&path, content).unwrap();
    read_corpus(
        &[path],
        files,
        &Windowing::new(512).strict(strict),
        &mut |_| (),
    )
}

pub(super) fn read(files: &TokenizerFiles, content: impl AsRef<[u8]>) -> Corpus {
    read_strictly(files, content, true).unwrap()
}

/// The rendering of one row, which must be usable.
fn text(files: &TokenizerFiles, row: &str) -> String {
    read(files, row).sequences.remove(0).text
}

pub(super) fn refusal(files: &TokenizerFiles, row: impl AsRef<[u8]>) -> String {
    read_strictly(files, row, true).unwrap_err().to_string()
}

fn targets(sequence: &Sequence) -> String {
    let tokens = sequence.byte_offsets.iter().zip(&sequence.target_mask);
    let bytes = tokens
        .filter(|(_, target)| **target)
        .flat_map(|(&(start, end), _)| {
            sequence.text.as_bytes()[start as usize..end as usize].to_vec()
        });
    String::from_utf8(bytes.collect()).unwrap()
}

pub(super) fn user_and_assistant() -> Value {
    json!([{"role": "user", "content": "two?"}, {"role": "assistant", "content": "four"}])
}

#[test]
fn tools_as_json_text_are_the_list_that_they_spell() {
    let (_dir, files) = tokenizer_with(&tokenizer_json(), &format!("{WITH_TOOLS}{CHATML}"));
    let tools = json!([{"type": "function", "function": {"name": "add", "x": 1.0}}]);
    let messages = user_and_assistant();
    let turns = json!([{"from": "human", "value": "two?"}, {"from": "gpt", "value": "four"}]);
    let listed = text(
        &files,
        &json!({"messages": messages, "tools": tools}).to_string(),
    );
    assert!(listed.starts_with("{\"type\": \"function\""), "{listed}");
    for row in [
        json!({"messages": messages, "tools": tools.to_string()}),
        json!({"conversations": turns, "tools": tools.to_string()}),
        json!({"conversations": turns, "tools": tools}),
        json!({"prompt": [messages[0]], "completion": [messages[1]], "tools": tools.to_string()}),
        json!({"instruction": "two?", "output": "four", "tools": tools.to_string()}),
    ] {
        assert_eq!(text(&files, &row.to_string()), listed, "{row}");
    }
}

#[test]
fn an_empty_list_of_tools_is_none_however_it_is_spelled() {
    let (_dir, files) = tokenizer_with(
        &tokenizer_json(),
        &format!("{{{{ tools is none }}}}{WITH_TOOLS}{CHATML}"),
    );
    let none = text(
        &files,
        &json!({"messages": user_and_assistant()}).to_string(),
    );
    assert!(none.starts_with("True"), "{none}");
    for tools in [
        json!("[]"),
        json!([]),
        json!(" [ ]\n"),
        json!(null),
        json!("null"),
        json!(""),
    ] {
        let row = json!({"messages": user_and_assistant(), "tools": tools});
        assert_eq!(text(&files, &row.to_string()), none, "{row}");
    }
}

#[test]
fn tools_that_are_no_list_are_refused() {
    for (tools, expected) in [
        (
            json!({"name": "x"}),
            "`tools` must be a list of objects, or such a list as JSON text, but is an object",
        ),
        (json!(r#"{"name": "x"}"#), "but is an object"),
        (
            json!("add"),
            "`tools` is a text and no list in it: not JSON",
        ),
        (json!(3), "but is a number"),
        (json!(true), "but is true or false"),
        (
            json!(["add"]),
            "must be a list of objects, but a text is in it",
        ),
        (json!([[]]), "but a list is in it"),
    ] {
        let row = json!({"messages": user_and_assistant(), "tools": tools}).to_string();
        let error = refusal(shared(), &row);
        assert!(
            error.contains("c.jsonl:1: ") && error.contains(expected),
            "{error}"
        );
    }
    // Nobody reads them beside text.
    read(
        shared(),
        json!({"text": "hello there", "tools": {"name": "x"}}).to_string(),
    );
}

/// What `datasets` writes: every key in every row. `transformers` drops such keys before the template sees them.
#[test]
fn a_null_in_a_message_is_absent() {
    let template = "{% for m in messages %}{{ m.keys() | list | tojson }}{{ 'content' in m }}{{ m.content is none }}{{ m.content | default('-') }}\n{% endfor %}";
    let (_dir, files) = tokenizer_with(&tokenizer_json(), template);
    let plain = json!([{"role": "user", "content": "a"}, {"role": "assistant"}]);
    let nulls = json!([
        {"role": "user", "content": "a", "tool_calls": null, "name": null, "weight": null},
        {"role": "assistant", "content": null, "train": null, "reasoning_content": null, "tool_calls": null},
    ]);
    let expected = text(&files, &json!({"messages": plain}).to_string());
    assert_eq!(
        expected,
        "[\"role\", \"content\"]TrueFalsea\n[\"role\"]FalseFalse-\n"
    );
    assert_eq!(
        text(&files, &json!({"messages": nulls}).to_string()),
        expected
    );
    // What lies deeper is data.
    let template = "{% for m in messages %}{{ m.tool_calls | tojson }}{% endfor %}";
    let (_dir, files) = tokenizer_with(&tokenizer_json(), template);
    let calls = json!([{"role": "assistant", "content": null, "tool_calls": [{"function": {"arguments": {"x": null}}}]}]);
    let text = text(&files, &json!({"messages": calls}).to_string());
    assert_eq!(text, r#"[{"function": {"arguments": {"x": null}}}]"#);
}

#[test]
fn a_null_column_does_not_tell_the_form_of_a_row() {
    let plain = read(shared(), json!({"text": "hello there"}).to_string());
    for row in [
        json!({"messages": null, "text": "hello there"}),
        json!({"messages": null, "conversations": null, "prompt": null, "completion": null, "instruction": null,
               "output": null, "tools": null, "text": "hello there"}),
        json!({"instruction": "x", "output": null, "text": "hello there"}),
    ] {
        assert_eq!(
            read(shared(), row.to_string()).fingerprint,
            plain.fingerprint,
            "{row}"
        );
    }
    let chat = read(
        shared(),
        json!({"messages": user_and_assistant()}).to_string(),
    );
    let row = json!({"messages": user_and_assistant(), "text": null, "tools": null, "chat_template_kwargs": null});
    assert_eq!(
        read(shared(), row.to_string()).fingerprint,
        chat.fingerprint
    );
    let error = refusal(
        shared(),
        json!({"messages": null, "text": null}).to_string(),
    );
    assert!(
        error.contains("found the fields [\"messages\", \"text\"]"),
        "{error}"
    );
}

#[test]
fn thoughts_have_the_names_that_templates_read() {
    let template = "{% for m in messages %}{{ m | tojson }}{% endfor %}";
    let (_dir, files) = tokenizer_with(&tokenizer_json(), template);
    // Printed by `_alias_reasoning_fields` of transformers.
    for (message, expected) in [
        (
            json!({"role": "assistant", "reasoning": "r"}),
            r#"{"thinking": "r", "role": "assistant", "reasoning": "r", "reasoning_content": "r"}"#,
        ),
        (
            json!({"role": "assistant", "reasoning_content": "r", "content": "c"}),
            r#"{"thinking": "r", "role": "assistant", "reasoning_content": "r", "content": "c"}"#,
        ),
        (
            json!({"role": "assistant", "thinking": "t", "reasoning_content": null}),
            r#"{"thinking": "t", "role": "assistant", "reasoning_content": "t"}"#,
        ),
        (
            json!({"role": "assistant", "thinking": "t", "reasoning_content": "r"}),
            r#"{"thinking": "t", "role": "assistant", "reasoning_content": "r"}"#,
        ),
        (json!({"role": "assistant"}), r#"{"role": "assistant"}"#),
    ] {
        assert_eq!(
            text(&files, &json!({"messages": [message]}).to_string()),
            expected
        );
    }
}

#[test]
fn prompt_and_completion_may_be_lists_of_messages() {
    let messages = user_and_assistant();
    let whole = read(shared(), json!({"messages": messages}).to_string());
    let parts = read(
        shared(),
        json!({"prompt": [messages[0]], "completion": [messages[1]]}).to_string(),
    );
    assert_eq!(parts.fingerprint, whole.fingerprint);
    // Only the completion's turns are learnt, and of it only the assistant's.
    let row = json!({
        "prompt": [messages[0], messages[1]],
        "completion": [messages[0], {"role": "assistant", "content": "b"}, messages[0], {"role": "assistant", "content": "c"}],
    });
    let corpus = read(shared(), row.to_string());
    assert_eq!(targets(&corpus.sequences[0]), "b<|im_end|>c<|im_end|>");
    for (row, expected) in [
        (
            json!({"prompt": [messages[0]], "completion": "four"}),
            "two texts or two lists of messages, but are a list and a text",
        ),
        (
            json!({"prompt": "two?", "completion": [messages[1]]}),
            "but are a text and a list",
        ),
        (
            json!({"prompt": [messages[0]], "completion": {"role": "assistant"}}),
            "but are a list and an object",
        ),
        (
            json!({"prompt": ["two?"], "completion": [messages[1]]}),
            "`prompt[0]` must be an object",
        ),
        (
            json!({"prompt": [messages[0]], "completion": ["four"]}),
            "`completion[0]` must be an object",
        ),
        (
            json!({"prompt": [messages[1]], "completion": [messages[0]]}),
            "no sequence with a target",
        ),
        (json!({"completion": [messages[1]]}), "`prompt` is missing"),
    ] {
        let error = refusal(shared(), row.to_string());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn chat_template_kwargs_of_a_row_reach_the_template() {
    let template = format!(
        "{{{{ enable_thinking | default(true) }}}}{{{{ more | tojson if more is defined }}}}{CHATML}"
    );
    let (_dir, files) = tokenizer_with(&tokenizer_json(), &template);
    let row = |kwargs: Value| {
        json!({"messages": user_and_assistant(), "chat_template_kwargs": kwargs}).to_string()
    };
    let begins = |kwargs: Value, with: &str| {
        let text = text(&files, &row(kwargs));
        assert!(text.starts_with(&format!("{with}<|im_start|>")), "{text}");
    };
    begins(json!({"enable_thinking": false}), "False");
    begins(
        json!({"enable_thinking": false, "more": [1, {"a": "é"}]}),
        r#"False[1, {"a": "é"}]"#,
    );
    begins(json!({"enable_thinking": null}), "None");
    begins(json!({}), "True");
    begins(json!(null), "True");
    for (kwargs, expected) in [
        (
            json!("{}"),
            "`chat_template_kwargs` must be an object, but is a text",
        ),
        (json!([]), "but is a list"),
        (json!({"messages": []}), "`messages` is no further variable"),
    ] {
        let error = refusal(&files, row(kwargs));
        assert!(error.contains(expected), "{error}");
    }
    let turns = json!([{"from": "human", "value": "two?"}, {"from": "gpt", "value": "four"}]);
    let kwargs = json!({"enable_thinking": false});
    for row in [
        json!({"conversations": turns, "chat_template_kwargs": kwargs}),
        json!({"instruction": "two?", "output": "four", "chat_template_kwargs": kwargs}),
    ] {
        assert!(text(&files, &row.to_string()).starts_with("False"), "{row}");
    }
}

#[test]
fn a_message_can_be_taken_out_of_the_targets() {
    let row = |switch: Value| {
        let mut bad = json!({"role": "assistant", "content": "bad"});
        bad.as_object_mut()
            .unwrap()
            .extend(switch.as_object().unwrap().clone());
        json!({"messages": [{"role": "user", "content": "a", "weight": 1}, bad, {"role": "user", "content": "b", "train": false},
                            {"role": "assistant", "content": "good", "weight": 1.0}]})
        .to_string()
    };
    for switch in [
        json!({"weight": 0}),
        json!({"weight": 0.0}),
        json!({"train": false}),
        json!({"loss": false}),
        json!({"loss": 0, "train": null}),
        json!({"weight": 1, "train": false}),
    ] {
        let corpus = read(shared(), row(switch.clone()));
        assert_eq!(targets(&corpus.sequences[0]), "good<|im_end|>", "{switch}");
    }
    for switch in [
        json!({"weight": 1}),
        json!({"train": true}),
        json!({"loss": null}),
    ] {
        let corpus = read(shared(), row(switch));
        assert_eq!(targets(&corpus.sequences[0]), "bad<|im_end|>good<|im_end|>");
    }
    for switch in [
        json!({"weight": 0.5}),
        json!({"weight": "0"}),
        json!({"train": "no"}),
        json!({"loss": -1}),
    ] {
        let error = refusal(shared(), row(switch));
        assert!(
            error.contains("`messages[1]` has a `") && error.contains("neither 0 nor 1"),
            "{error}"
        );
    }
    let turns = json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "bad", "weight": 0},
                                         {"from": "human", "value": "b"}, {"from": "gpt", "value": "good"}]});
    assert_eq!(
        targets(&read(shared(), turns.to_string()).sequences[0]),
        "good<|im_end|>"
    );
    // With nothing left to learn it is left out, as a prompt without an answer is.
    let none = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]});
    let corpus = read(shared(), format!("{none}\n{{\"text\": \"hello there\"}}"));
    assert_eq!(
        (corpus.sequences.len(), corpus.skipped.without_target),
        (1, 1)
    );
}

#[test]
fn what_says_what_is_learnt_does_not_reach_the_template() {
    let template = "{% for m in messages %}{{ m | tojson }}{% endfor %}";
    let (_dir, files) = tokenizer_with(&tokenizer_json(), template);
    let messages =
        json!([{"role": "assistant", "weight": 1, "content": "a", "train": true, "loss": 1}]);
    let text = text(&files, &json!({"messages": messages}).to_string());
    assert_eq!(text, r#"{"role": "assistant", "content": "a"}"#);
}

#[test]
fn numbers_in_tools_reach_the_template_as_they_are() {
    let (_dir, files) = tokenizer_with(&tokenizer_json(), &format!("{WITH_TOOLS}{CHATML}"));
    let messages = user_and_assistant();
    let long = "123456789012345678901234567890".repeat(2);
    let long = long.as_str();
    for tools in [
        format!("[{{\"most\": {long}, \"least\": -{long}, \"u64\": 18446744073709551615}}]"),
        json!(format!(
            "[{{\"most\": {long}, \"least\": -{long}, \"u64\": 18446744073709551615}}]"
        ))
        .to_string(),
    ] {
        let text = text(
            &files,
            &format!("{{\"messages\": {messages}, \"tools\": {tools}}}"),
        );
        let expected =
            format!("{{\"most\": {long}, \"least\": -{long}, \"u64\": 18446744073709551615}}\n");
        assert!(text.starts_with(&expected), "{text}");
    }
    let tools = r#"[{"name": "\udc00"}]"#;
    let error = refusal(
        &files,
        format!("{{\"messages\": {messages}, \"tools\": {tools}}}"),
    );
    assert!(
        error.contains("`tools` has a text with a lone surrogate"),
        "{error}"
    );
}

#[test]
fn what_sharegpt_turns_say_beside_their_words_was_lost() {
    let template = "{% for m in messages %}{{ m.role }}|{{ m.content }}|{{ m.reasoning_content }}|{{ m.name }}|{{ m.tool_calls | tojson if m.tool_calls }}|{{ m.train }}
{% endfor %}";
    let (_dir, files) = tokenizer_with(&tokenizer_json(), template);
    let calls = json!([{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]);
    let messages = json!([
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": null, "reasoning_content": "why", "tool_calls": calls},
        {"role": "tool", "name": "f", "content": "7"},
        {"role": "assistant", "content": "7", "train": true},
    ]);
    let expected = text(&files, &json!({"messages": messages}).to_string());
    assert!(
        expected.contains("why") && expected.contains("|f|"),
        "{expected}"
    );
    let turns = json!([
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": null, "reasoning_content": "why", "tool_calls": calls},
        {"from": "observation", "name": "f", "value": "7"},
        {"from": "gpt", "value": "7", "train": true},
    ]);
    let mut without = turns.clone();
    without[1].as_object_mut().unwrap().remove("value");
    for conversations in [messages, turns, without] {
        let row = json!({"conversations": conversations}).to_string();
        assert_eq!(text(&files, &row), expected, "{row}");
    }
    let nothing = json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": null, "tool_calls": null}]});
    let error = refusal(shared(), nothing.to_string());
    assert!(
        error.contains("`conversations[1]` has no `value`"),
        "{error}"
    );
}

#[test]
fn a_pipe_or_a_device_in_a_corpus_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.jsonl", "b.txt", "c.parquet"] {
        std::os::unix::fs::symlink("/dev/zero", dir.path().join(name)).unwrap();
        let path = dir.path().join(name);
        for named in [path.clone(), dir.path().to_owned()] {
            let error = super::files::expand(&[named]).err().unwrap().to_string();
            assert!(
                error.contains(name) && error.contains("a device"),
                "{error}"
            );
        }
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_null_among_the_kwargs_of_a_row_stays_one() {
    let template = format!("{{{{ x is defined }}}}{{{{ x is none }}}}{CHATML}");
    let (_dir, files) = tokenizer_with(&tokenizer_json(), &template);
    let row = json!({"messages": user_and_assistant(), "chat_template_kwargs": {"x": null}});
    let text = text(&files, &row.to_string());
    assert!(text.starts_with("TrueTrue"), "{text}");
}
