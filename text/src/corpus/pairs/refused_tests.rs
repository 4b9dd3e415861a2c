//! Tests of the pairs that cannot be used: each is refused by line and field, or skipped and named.

use serde_json::{Value, json};

use super::tests::{cups, read_lines};
use crate::{
    Windowing,
    limits::SHOWN_CHARS_MAX,
    testing::{CHATML, shared, tokenizer_json, tokenizer_with},
};

/// Asserts that `line` is refused as the second one, with all of these words, and skipped where the reading is not strict.
fn refused(line: &Value, words: &[&str]) {
    let fine = json!({"text": "hello there"});
    let lines = [fine, line.clone()];
    let strictly = Windowing::new(512).strict(true);
    let error = read_lines(shared(), &lines, &strictly)
        .unwrap_err()
        .to_string();
    assert!(error.contains("c.jsonl:2: "), "{error}");
    for word in words {
        assert!(error.contains(word), "{word} in {error}");
    }
    let corpus = read_lines(shared(), &lines, &Windowing::new(512)).unwrap();
    assert_eq!((corpus.sequences.len(), corpus.skipped.rows), (1, 1));
    assert!(corpus.skipped.named[0].contains("c.jsonl:2: "));
}

fn edited(edit: impl FnOnce(&mut Value)) -> Value {
    let mut line = cups();
    edit(&mut line);
    line
}

#[test]
fn a_side_that_is_missing_or_no_record_is_refused() {
    let side = json!({"text": "hello there"});
    refused(&json!({"teacher": side}), &["`teacher` without `student`"]);
    refused(
        &json!({"student": side, "teacher": null}),
        &["`student` without `teacher`"],
    );
    refused(
        &json!({"teacher": side, "text": "x"}),
        &["`teacher` without `student`"],
    );
    refused(
        &json!({"teacher": "hello", "student": side}),
        &["`teacher` must be a record", "is a text"],
    );
    refused(
        &json!({"teacher": side, "student": [side]}),
        &["`student` must be a record", "is a list"],
    );
    refused(
        &json!({"teacher": side, "student": {"question": "x"}}),
        &["`student`: expected `messages`", "[\"question\"]"],
    );
    refused(
        &json!({"teacher": {"text": 3}, "student": side}),
        &["`teacher`: `text` must be a text, but is a number"],
    );
    refused(
        &json!({"teacher": {"messages": [{"role": "user", "content": "q"}]}, "student": side}),
        &["`teacher`: no turn with the role \"assistant\""],
    );
}

#[test]
fn a_pair_within_a_pair_is_refused() {
    let inner = cups();
    refused(
        &json!({"teacher": inner, "student": {"text": "x y"}}),
        &["`teacher` has `teacher` in it", "a pair within a pair"],
    );
    refused(
        &json!({"teacher": {"text": "x y"}, "student": {"prompt": "a", "completion": "b", "teacher_prompt": "c"}}),
        &[
            "`student` has `teacher_prompt` in it",
            "a pair within a pair",
        ],
    );
}

#[test]
fn fields_beside_a_pair_that_nobody_reads_are_refused() {
    for (name, value) in [
        ("prompt", json!("x")),
        ("completion", json!("x")),
        ("text", json!("x")),
        ("messages", json!([])),
        ("system", json!("x")),
        ("tools", json!([])),
        ("input", json!("")),
    ] {
        let line = edited(|line| line[name] = value);
        let beside = format!("`{name}` stands beside `teacher` and `student`");
        refused(&line, &[&beside, "take it out"]);
    }
    let fine = edited(|line| {
        line["prompt"] = Value::Null;
        line["id"] = json!(3);
    });
    let corpus = read_lines(shared(), &[fine], &Windowing::new(512)).unwrap();
    assert_eq!(corpus.skipped.rows, 0);
}

#[test]
fn an_answer_that_is_taken_out_of_the_targets_is_not_told_as_an_empty_one() {
    let side = |switch: &str, off: Value, answer: &str| {
        let mut last = json!({"role": "assistant", "content": answer});
        last[switch] = off;
        json!({"messages": [{"role": "user", "content": "q"}, last]})
    };
    let whole = json!({"text": "hello there"});
    let taken_out = "its answers are taken out of the targets by `weight`, `train` or `loss`";
    for (switch, off) in [
        ("weight", json!(0)),
        ("train", json!(false)),
        ("loss", json!(0.0)),
    ] {
        let muted = side(switch, off, "a b");
        refused(
            &json!({"teacher": whole, "student": muted}),
            &["`student`: ", taken_out, "nothing to learn"],
        );
        refused(
            &json!({"teacher": muted, "student": whole}),
            &["`teacher`: ", taken_out, "no row to give"],
        );
    }
    refused(
        &json!({"teacher": whole, "student": side("weight", json!(0), "")}),
        &["`student`: its completion is empty"],
    );
}

#[test]
fn entries_of_shared_and_links_are_checked() {
    for (list, value, words) in [
        (
            "shared",
            json!({}),
            "`shared` must be a list of objects with `teacher` and `student`, but is an object",
        ),
        (
            "links",
            json!("x"),
            "`links` must be a list of objects with `teacher` and `student`, but is a text",
        ),
        (
            "shared",
            json!([3]),
            "`shared[0]` must be an object with `teacher` and `student`, but is a number",
        ),
        (
            "shared",
            json!([{"teacher": "completion[12:21]", "student": "completion[0:9]", "weight": 1}]),
            "`shared[0]` has a field `weight`, which is not known",
        ),
        (
            "links",
            json!([{"teacher": "prompt[8:9]", "student": "prompt[6:7]"}, {"teacher": "prompt[0:1]"}]),
            "`links[1].student` is missing",
        ),
        (
            "links",
            json!([{"teacher": 3, "student": "prompt[6:7]"}]),
            "`links[0].teacher` must be a field with a range of its bytes, as \"completion[0:9]\", but is a number",
        ),
    ] {
        refused(&edited(|line| line[list] = value), &[words]);
    }
    for spelt in [
        "prompt",
        "prompt[8]",
        "prompt[8:9",
        "prompt[-1:9]",
        "prompt[8:+9]",
        "prompt[:9]",
    ] {
        let line = edited(|line| line["links"][0]["teacher"] = json!(spelt));
        refused(
            &line,
            &["`links[0].teacher` must be a field with a range", spelt],
        );
    }
}

#[test]
fn ranges_that_name_no_text_are_refused() {
    for range in ["prompt[8:99999999999]", "prompt[4294967296:4294967297]"] {
        let line = edited(|line| line["links"][0]["teacher"] = json!(range));
        refused(&line, &["`links[0].teacher` is out of bounds", range]);
    }
    for (list, side, range, words) in [
        (
            "shared",
            "teacher",
            "completion[14:23]",
            "goes beyond the 21 bytes of `completion`",
        ),
        (
            "links",
            "student",
            "prompt[6:99]",
            "goes beyond the 22 bytes of `prompt`",
        ),
        ("links", "student", "prompt[7:6]", "ends before it begins"),
        ("links", "teacher", "prompt[8:8]", "is empty"),
        ("links", "student", "prompt[1:3]", "byte 1 is inside of one"),
        ("links", "student", "prompt[0:4]", "byte 4 is inside of one"),
        (
            "links",
            "teacher",
            "text[0:1]",
            "has no text `text`; it has [\"prompt\", \"completion\"]",
        ),
        (
            "links",
            "student",
            "messages[0].content[0:1]",
            "has no text `messages[0].content`",
        ),
    ] {
        let line = edited(|line| line[list][0][side] = json!(range));
        refused(&line, &[&format!("`{list}[0].{side}`: the {side}"), words]);
    }
    let chat = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]});
    for range in [
        "messages[2].content[0:1]",
        "messages[0].role[0:1]",
        "messages[01].content[0:1]",
    ] {
        let line = json!({
            "teacher": chat, "student": chat, "shared": [],
            "links": [{"teacher": range, "student": "messages[0].content[0:1]"}],
        });
        refused(
            &line,
            &[
                "`links[0].teacher`: the teacher has no text",
                "messages[1].content",
            ],
        );
    }
}

#[test]
fn shared_parts_that_differ_are_shown() {
    let line = edited(|line| line["shared"][0]["teacher"] = json!("completion[0:9]"));
    refused(
        &line,
        &[
            "`shared[0]`",
            "completion[0:9] is \"3+5=8\\n8-1\"",
            "is \"Answer: 7\"",
            "not the same bytes",
        ],
    );
    let long = "x".repeat(10 * SHOWN_CHARS_MAX);
    let line = json!({
        "teacher": {"text": long}, "student": {"text": "yy"},
        "shared": [{"teacher": "text[0:400]", "student": "text[0:2]"}],
    });
    let shown = format!("\"{}…\"", "x".repeat(SHOWN_CHARS_MAX));
    refused(&line, &[&shown]);
}

#[test]
fn another_word_for_targets_is_refused() {
    refused(
        &edited(|line| line["targets"] = json!("prompt")),
        &[
            "`targets` must be \"completion\", or \"all\"",
            "is \"prompt\"",
        ],
    );
    refused(
        &edited(|line| line["targets"] = json!(true)),
        &["`targets`", "is true or false"],
    );
}

#[test]
fn a_context_of_the_teacher_beside_another_form_is_refused() {
    let text = json!({"text": "hello there", "teacher_prompt": "p"});
    refused(
        &text,
        &[
            "`teacher_prompt` goes with `prompt` and `completion` as texts",
            "has `text`",
        ],
    );
    let chat = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    refused(
        &json!({"messages": chat, "teacher_prompt": "p"}),
        &["`teacher_prompt` goes with", "has `messages`"],
    );
    refused(
        &json!({"prompt": [chat[0]], "completion": [chat[1]], "teacher_prompt": "p"}),
        &["`teacher_prompt` goes with", "has lists of messages"],
    );
    refused(
        &json!({"prompt": "a", "completion": "b", "teacher_messages": chat}),
        &["`teacher_messages` goes with `messages`, or", "has texts"],
    );
    refused(
        &json!({"instruction": "a", "output": "b", "teacher_messages": chat}),
        &["`teacher_messages` goes with", "has `instruction`"],
    );
    refused(
        &json!({"prompt": "a", "completion": "b", "teacher_prompt": 3}),
        &["`teacher_prompt` must be a text, but is a number"],
    );
    refused(
        &json!({"messages": chat, "teacher_messages": "x"}),
        &["`teacher_messages` must be a list of messages, but is a text"],
    );
    refused(
        &json!({"teacher_prompt": "x"}),
        &["beside `teacher_prompt`: expected `messages`"],
    );
    refused(
        &json!({"messages": chat, "teacher_messages": [{"content": "x"}]}),
        &["`teacher_messages`: `messages[0]` has no `role`"],
    );
}

#[test]
fn the_teachers_side_is_given_once() {
    refused(
        &edited(|line| line["teacher_prompt"] = json!("x")),
        &["both `teacher_prompt` and `teacher`"],
    );
    let line =
        json!({"prompt": "a", "completion": "b", "teacher_prompt": "x", "teacher_messages": []});
    refused(&line, &["both `teacher_prompt` and `teacher_messages`"]);
}

#[test]
fn shared_parts_without_a_pair_are_refused() {
    let parts = json!([{"teacher": "completion[0:1]", "student": "completion[0:1]"}]);
    for name in ["shared", "links"] {
        let mut line = json!({"prompt": "a", "completion": "b"});
        line[name] = parts.clone();
        refused(
            &line,
            &[&format!(
                "`{name}` joins two sides, but the line is no pair"
            )],
        );
    }
}

#[test]
fn a_side_with_nothing_to_say_or_to_learn_is_refused() {
    let empty = json!({"prompt": "a", "completion": ""});
    let full = json!({"prompt": "a", "completion": "b"});
    refused(
        &json!({"teacher": empty, "student": full}),
        &["`teacher`: its completion is empty, so it has no row to give"],
    );
    let nothing = "`student`: its completion is empty, so there is nothing to learn";
    refused(&json!({"teacher": full, "student": empty}), &[nothing]);
}

#[test]
fn words_that_the_chat_template_changes_are_refused_by_name() {
    let shouting = CHATML.replace("message.content +", "(message.content | upper | trim) +");
    let (_dir, files) = tokenizer_with(&tokenizer_json(), &shouting);
    let chat = |answer: &str| json!({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]});
    let read = |answer: &str, range: &str| {
        let line = json!({
            "teacher": chat(answer), "student": chat(answer), "shared": [],
            "links": [{"teacher": format!("messages[1].content[{range}]"), "student": "messages[1].content[0:1]"}],
        });
        read_lines(&files, &[line], &Windowing::new(512).strict(true))
    };
    let error = read("hello", "0:5").unwrap_err().to_string();
    assert!(
        error.contains("c.jsonl:1: `teacher`: the chat template does not write `messages[1].content` as it stands")
            && error.contains("messages[1].content[0:5]"),
        "{error}"
    );
    // What it leaves as it is can be named; what it trims cannot.
    let corpus = read(" OK 世 ", "1:7").unwrap();
    let (start, end) = corpus.sequences[0].view.as_ref().unwrap().links[0].teacher;
    assert_eq!(
        &corpus.sequences[0].text[start as usize..end as usize],
        "OK 世"
    );
    assert!(read(" OK ", "0:3").is_err());
}

#[test]
fn parts_inside_a_side_are_refused_and_not_forgotten() {
    let side = json!({"prompt": "a", "completion": "b", "links": [{"teacher": "prompt[0:1]", "student": "prompt[0:1]"}]});
    let line = json!({"teacher": {"prompt": "a", "completion": "b"}, "student": side});
    refused(
        &line,
        &[
            "`student` has `links` in it",
            "beside `teacher` and `student`",
        ],
    );
}
