use std::{fs, path::Path};

use serde_json::{Map, Value, json};

use super::{Conversation, Dialogue, render_conversation};
use crate::{
    TokenizerFiles,
    json::{Json, parse},
    testing::{CHATML, tokenizer_json, tokenizer_with},
};

/// Tokens that end a turn in one of the templates, or could be taken for such.
const SPECIAL: [&str; 17] = [
    "<s>",
    "</s>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<end_of_turn>",
    "<start_of_turn>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|call|>",
    "<|return|>",
];

/// The tiny tokenizer with more special tokens, and a template.
fn files(template: &str) -> (tempfile::TempDir, TokenizerFiles) {
    let mut json = tokenizer_json();
    let known = json["added_tokens"].as_array().unwrap();
    let (first, mut added) = (
        known[0]["id"].as_u64().unwrap() as usize + known.len(),
        known.clone(),
    );
    for (index, content) in SPECIAL.iter().enumerate() {
        let mut token = added[0].clone();
        token["content"] = json!(content);
        token["id"] = json!(first + index);
        added.push(token);
    }
    json["added_tokens"] = Value::Array(added);
    let (dir, _) = tokenizer_with(&json, template);
    let config = json!({"eos_token": "</s>", "bos_token": "<s>"});
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let files = TokenizerFiles::open(dir.path()).unwrap();
    (dir, files)
}

fn dialogue(row: &Value) -> Result<Dialogue, String> {
    let Ok(Json::Object(mut fields)) = parse(&row.to_string()) else {
        panic!("no object")
    };
    let messages = fields.shift_remove("messages").unwrap_or(Json::Null);
    Dialogue::read("messages", messages)?.with_extras(&mut fields)
}

fn render(files: &TokenizerFiles, row: &Value) -> Result<Conversation, String> {
    render_conversation(files, dialogue(row)?).map_err(|e| e.to_string())
}

fn targets(conversation: &Conversation) -> Vec<&str> {
    let targets = conversation.targets.iter();
    targets
        .map(|range| &conversation.text[range.clone()])
        .collect()
}

fn targets_of(template: &str, row: &Value) -> Vec<String> {
    let (_dir, files) = files(template);
    let conversation = render(&files, row).unwrap();
    targets(&conversation)
        .into_iter()
        .map(str::to_owned)
        .collect()
}

fn fixtures() -> Value {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/turns");
    let mut fixtures: Value =
        serde_json::from_str(&fs::read_to_string(directory.join("expected.json")).unwrap())
            .unwrap();
    let templates: Map<String, Value> = fixtures["expected"]
        .as_object()
        .unwrap()
        .keys()
        .map(|name| {
            let path = directory.join(format!("{name}.jinja"));
            (name.clone(), json!(fs::read_to_string(path).unwrap()))
        })
        .collect();
    fixtures["templates"] = Value::Object(templates);
    fixtures
}

/// Compares every template with every conversation, and gives the ones in which a turn was not found.
fn compare(prepare: impl Fn(&str) -> String) -> Vec<String> {
    let fixtures = fixtures();
    let (mut compared, mut skipped) = (0, Vec::new());
    for (shape, cases) in fixtures["expected"].as_object().unwrap() {
        let (_dir, files) = files(&prepare(fixtures["templates"][shape].as_str().unwrap()));
        for (name, expected) in cases.as_object().unwrap() {
            let conversation = match render(&files, &fixtures["conversations"][name]) {
                Ok(conversation) => conversation,
                Err(_) => {
                    skipped.push(format!("{shape}: {name}"));
                    continue;
                }
            };
            assert_eq!(conversation.text, expected["text"], "{shape}: {name}");
            let spans = expected["spans"].as_array().unwrap().iter();
            let spans: Vec<&str> = spans
                .map(|span| &conversation.text[at(&span[0])..at(&span[1])])
                .collect();
            assert_eq!(
                targets(&joined(conversation.clone())),
                spans,
                "{shape}: {name}"
            );
            compared += 1;
        }
    }
    assert!(compared > 150, "{compared}");
    skipped
}

fn at(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// The conversation with targets that touch taken as one, as the fixtures have them.
fn joined(mut conversation: Conversation) -> Conversation {
    let mut joined: Vec<std::ops::Range<usize>> = Vec::new();
    for range in conversation.targets {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => joined.push(range),
        }
    }
    conversation.targets = joined;
    conversation
}

#[test]
fn generation_tags_say_what_the_targets_are_as_in_transformers() {
    let skipped = compare(str::to_owned);
    assert_eq!(skipped, [""; 0]);
}

/// The same places have to be found without the tags, or the conversation is refused: no place is guessed.
#[test]
fn turns_that_templates_rewrite_are_found_in_the_whole_rendering() {
    let skipped = compare(|template| {
        template
            .replace("{% generation %}", "")
            .replace("{% endgeneration %}", "")
    });
    assert_eq!(skipped, [""; 0]);
}

fn row(messages: Value) -> Value {
    json!({ "messages": messages })
}

#[test]
fn turns_end_with_their_end_of_turn_token() {
    let messages = json!([
        {"role": "user", "content": "1"}, {"role": "assistant", "content": "a \n"},
        {"role": "user", "content": "2"}, {"role": "assistant", "content": ""}
    ]);
    assert_eq!(
        targets_of(CHATML, &row(messages)),
        ["a \n<|im_end|>", "<|im_end|>"]
    );
}

#[test]
fn turns_without_an_end_token_are_kept_whole() {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let messages = json!([{"role": "user", "content": "1"}, {"role": "assistant", "content": "a"}]);
    assert_eq!(targets_of(template, &row(messages)), ["a\n\n"]);
}

#[test]
fn a_generation_prompt_that_history_does_not_have_is_no_obstacle() {
    // As templates of reasoning models do: thoughts are kept in the last turn only.
    let template = "{% for m in messages %}<{{ m.role }}>{% if loop.last and m.role == 'assistant' %}<think>{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant><think>{% endif %}";
    let turn = |role: &str| json!({"role": role, "content": "x"});
    let four = json!([
        turn("user"),
        turn("assistant"),
        turn("user"),
        turn("assistant")
    ]);
    assert_eq!(targets_of(template, &row(four)), ["x", "x"]);
}

/// Where nothing confirms a place, none is taken.
#[test]
fn a_turn_that_cannot_be_told_apart_is_refused() {
    let messages = json!([
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
    ]);
    for template in [
        // Only the last two messages are written.
        "{% for m in messages[-2:] %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        // Earlier turns end otherwise, and in no special token.
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ '##END' if loop.last else '##NEXT' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        // Everything is repeated.
        "{% for m in messages + messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        // History is written after the last turn.
        "{% for m in messages[::-1] %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        // The generation prompt is nothing like what history has.
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}thus: {% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}Answer now!{% endif %}",
    ] {
        let (_dir, files) = files(template);
        let error = render(&files, &row(messages.clone())).unwrap_err();
        assert!(
            error.contains("cannot be told apart"),
            "{template}: {error}"
        );
    }
}

#[test]
fn turns_taken_out_of_the_targets_are_taken_out_of_generation_blocks_too() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}{% generation %}\n{{ m.content }}{% endgeneration %}{% generation %}<|im_end|>\n{% endgeneration %}{% else %}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let messages = json!([
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "bad", "weight": 0},
        {"role": "user", "content": "b"}, {"role": "assistant", "content": "good"},
    ]);
    assert_eq!(
        targets_of(template, &row(messages)),
        ["good", "<|im_end|>\n"]
    );
}

#[test]
fn a_generation_block_without_the_assistant_leaves_no_target() {
    let template = "{% for m in messages %}{% if m.role == 'tool' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    assert_eq!(targets_of(template, &row(messages)), [""; 0]);
}

#[test]
fn malformed_messages_say_what_was_expected() {
    let (_dir, files) = files(CHATML);
    for (messages, expected) in [
        (
            json!("x"),
            "`messages` must be a list of objects with `role` and `content`, but is a text",
        ),
        (
            json!(["x"]),
            "`messages[0]` must be an object with `role` and `content`, but is a text",
        ),
        (json!([{"content": "x"}]), "`messages[0]` has no `role`"),
        (
            json!([{"role": null, "content": "x"}]),
            "`messages[0]` has no `role`",
        ),
        (
            json!([{"role": "user", "content": "x"}]),
            "no turn with the role \"assistant\"",
        ),
        (
            json!(vec![json!({"role": "assistant", "content": ""}); 600]),
            "above the limit",
        ),
        (
            json!([{"role": "user"}, {"role": "assistant", "content": "x"}]),
            "chat template: ",
        ),
    ] {
        let error = render(&files, &row(messages)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
