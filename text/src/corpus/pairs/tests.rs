//! Tests of what pairs become: the teacher's sequence and the student's view of it.

use std::fs;

use distill_proto::{FieldRange, Link, View};
use serde_json::{Value, json};

use crate::{
    Corpus, Result, Sequence, TokenizerFiles, Windowing, read_corpus,
    testing::{CHATML, shared, tokenizer_json, tokenizer_with},
};

pub(super) fn read_lines(
    files: &TokenizerFiles,
    lines: &[Value],
    windowing: &Windowing,
) -> Result<Corpus> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.jsonl");
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    read_corpus(&[path], files, windowing, &mut |_| ())
}

pub(super) fn sequence(files: &TokenizerFiles, line: &Value) -> Sequence {
    let windowing = Windowing::new(512).strict(true);
    let corpus = read_lines(files, std::slice::from_ref(line), &windowing);
    corpus.unwrap().sequences.remove(0)
}

fn view(line: &Value) -> View {
    sequence(shared(), line).view.unwrap()
}

pub(super) fn link(teacher: (u32, u32), field: &str, start: u32, end: u32) -> Link {
    let field = field.to_owned();
    Link {
        teacher,
        student: FieldRange { field, start, end },
    }
}

/// The text of every target.
fn targets(sequence: &Sequence) -> String {
    let tokens = sequence.byte_offsets.iter().zip(&sequence.target_mask);
    let bytes = tokens
        .filter(|(_, target)| **target)
        .flat_map(|(&(start, end), _)| &sequence.text.as_bytes()[start as usize..end as usize]);
    String::from_utf8(bytes.copied().collect()).unwrap()
}

/// The record of docs/corpus.md.
pub(super) fn cups() -> Value {
    json!({
        "teacher": {"prompt": "Ann has 3 cups ... How many?\n", "completion": "3+5=8\n8-1=7\nAnswer: 7"},
        "student": {"prompt": "安有3个杯子……", "completion": "Answer: 7"},
        "shared": [{"teacher": "completion[12:21]", "student": "completion[0:9]"}],
        "links": [{"teacher": "prompt[8:9]", "student": "prompt[6:7]"}],
        "targets": "completion",
    })
}

#[test]
fn a_line_with_two_sides_is_the_teachers_sequence_with_the_students_record() {
    let sequence = sequence(shared(), &cups());
    assert_eq!(
        sequence.text,
        "Ann has 3 cups ... How many?\n3+5=8\n8-1=7\nAnswer: 7"
    );
    assert_eq!(targets(&sequence), "3+5=8\n8-1=7\nAnswer: 7");
    let expected = View {
        record: r#"{"prompt":"安有3个杯子……","completion":"Answer: 7"}"#.to_owned(),
        prompts: false,
        // To the end of the text, and so the end-of-sequence token too.
        shared: vec![link((41, 50), "completion", 0, 9)],
        links: vec![link((8, 9), "prompt", 6, 7)],
    };
    assert_eq!(sequence.view, Some(expected));
    assert_eq!(sequence.text.len(), 50);
    // What caches hold is found by these.
    assert_eq!(
        (sequence.id, sequence.content_id),
        (4722075423305207614, 14593149053796244458)
    );
}

#[test]
fn the_short_form_gives_the_teacher_another_prompt() {
    let line = json!({
        "prompt": "q", "completion": "hello", "id": 7, "teacher_prompt": "Be brief. q",
    });
    let sequence = sequence(shared(), &line);
    assert_eq!(sequence.text, "Be brief. qhello");
    assert_eq!(targets(&sequence), "hello");
    let expected = View {
        record: r#"{"prompt":"q","completion":"hello"}"#.to_owned(),
        prompts: false,
        shared: vec![link((11, 16), "completion", 0, 5)],
        links: vec![],
    };
    assert_eq!(sequence.view, Some(expected));
    assert_eq!(
        (sequence.id, sequence.content_id),
        (1104484646837237147, 6873749613791606573)
    );
}

#[test]
fn teacher_messages_replace_what_is_before_the_final_answer() {
    let turns = json!([
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "hello"},
    ]);
    let context = json!([
        {"role": "system", "content": "s"}, {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y"}, {"role": "user", "content": "c"},
    ]);
    let line = json!({"messages": turns, "teacher_messages": context});
    let found = sequence(shared(), &line);
    assert!(found.text.starts_with("<|im_start|>system\ns<|im_end|>"));
    // The context is no answer, also where the assistant said it.
    assert_eq!(targets(&found), "hello<|im_end|>");
    let at = found.text.find("hello").unwrap() as u32;
    let view = found.view.unwrap();
    assert_eq!(view.record, json!({ "messages": turns }).to_string());
    assert_eq!(
        view.shared,
        [link((at, at + 5), "messages[3].content", 0, 5)]
    );

    let (prompt, completion) = (&turns.as_array().unwrap()[..3], &turns[3]);
    let lists = json!({"prompt": prompt, "completion": [completion], "teacher_messages": context});
    let lists = sequence(shared(), &lists);
    assert_eq!(lists.text, found.text);
    assert_eq!(lists.target_mask, found.target_mask);
    assert_eq!(
        lists.view.unwrap().shared,
        [link((at, at + 5), "completion[0].content", 0, 5)]
    );
}

#[test]
fn every_form_names_its_fields() {
    let side = json!({"prompt": "ä", "completion": "hello"});
    for (teacher, field, text) in [
        (json!({"text": "xhello"}), "text[1:6]", "hello"),
        (
            json!({"prompt": "hello", "completion": "y"}),
            "prompt[0:5]",
            "hello",
        ),
        (
            json!({"instruction": "hello", "output": "y"}),
            "instruction[0:5]",
            "hello",
        ),
        (
            json!({"instruction": "i", "input": "hello", "output": "y"}),
            "input[0:5]",
            "hello",
        ),
        (
            json!({"instruction": "i", "output": "hello", "system": "s"}),
            "output[0:5]",
            "hello",
        ),
        (
            json!({"instruction": "i", "output": "o", "system": "hello"}),
            "system[0:5]",
            "hello",
        ),
        (
            json!({"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "y"}]}),
            "conversations[0].value[0:5]",
            "hello",
        ),
        (
            json!({"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "content": "hello"}]}),
            "conversations[1].content[0:5]",
            "hello",
        ),
        (
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a hello"}]}),
            "messages[1].content[2:7]",
            "hello",
        ),
        (
            json!({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "hello"}]}),
            "completion[0].content[0:5]",
            "hello",
        ),
    ] {
        let line = json!({
            "teacher": teacher, "student": side,
            "shared": [{"teacher": field, "student": "completion[0:5]"}],
        });
        let sequence = sequence(shared(), &line);
        let [found] = sequence.view.unwrap().shared.try_into().unwrap();
        let (start, end) = found.teacher;
        assert_eq!(
            &sequence.text[start as usize..end as usize],
            text,
            "{field}"
        );
    }
}

#[test]
fn without_shared_the_longest_common_end_is_taken() {
    let of = |teacher: Value, student: Value| {
        let view = view(&json!({"teacher": teacher, "student": student}));
        let shared = view.shared.iter();
        let shared = shared.map(|link| (link.teacher, link.student.start, link.student.end));
        shared.collect::<Vec<_>>()
    };
    let plain = |completion: &str| json!({"prompt": "p", "completion": completion});
    assert_eq!(of(plain("1+1=2\n2"), plain("= 2\n2")), [((5, 8), 2, 5)]);
    assert_eq!(of(plain("a"), plain("b")), []);
    // `ä` and `Ť` end in the same byte, which is no character.
    assert_eq!(of(plain("ä"), plain("Ť")), []);
    assert_eq!(of(plain("1 ä!"), plain("2 ä!")), [((2, 6), 1, 5)]);
    assert_eq!(of(plain("same"), plain("same")), [((1, 5), 0, 4)]);
    let chat = |answer: &str| {
        json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer},
            {"role": "user", "content": "and?"}]})
    };
    let last = view(&json!({"teacher": chat("x = 7"), "student": chat("y = 7\n")}));
    let [link] = last.shared.as_slice() else {
        panic!("{last:?}")
    };
    // White space that templates trim is no part of it.
    assert_eq!((link.student.start, link.student.end), (1, 5));
    assert_eq!(
        of(json!({"text": "a bc"}), json!({"text": "d bc"})),
        [((1, 4), 1, 4)]
    );
    // What the line says counts, also where it says that nothing is shared.
    let none = json!({"teacher": plain("a"), "student": plain("a"), "shared": []});
    assert_eq!(view(&none).shared, []);
}

#[test]
fn targets_all_make_the_teacher_say_something_of_its_prompt() {
    let mut line = cups();
    line["targets"] = json!("all");
    let all = sequence(shared(), &line);
    assert!(all.view.as_ref().unwrap().prompts);
    assert_eq!(all.target_mask.len(), all.token_ids.len());
    assert_eq!(all.targets(), all.token_ids.len() - 1);
    // Then even an empty completion leaves it something to say: of the prompt, and not of an end that is not there.
    let line = json!({"teacher": {"prompt": "abc", "completion": ""}, "student": {"prompt": "d", "completion": "e"}, "targets": "all"});
    assert_eq!(sequence(shared(), &line).targets(), 2);
}

#[test]
fn ordinary_rows_may_have_fields_of_these_names() {
    for extra in [
        json!({"teacher": "Mrs Smith", "student": "Ann"}),
        json!({"teacher": {"name": "Mrs Smith"}}),
        json!({"targets": ["x"], "links": ["https://example.org"], "shared": true}),
        json!({"teacher": null, "student": null, "teacher_prompt": null, "teacher_messages": null}),
    ] {
        let mut line = json!({"text": "hello there"});
        let Value::Object(fields) = extra else {
            panic!()
        };
        line.as_object_mut().unwrap().extend(fields);
        let found = sequence(shared(), &line);
        assert_eq!(found, sequence(shared(), &json!({"text": "hello there"})));
        assert_eq!((found.view, found.id), (None, found.content_id));
    }
}

#[test]
fn an_edited_view_is_another_sequence_of_the_same_content() {
    let first = sequence(shared(), &cups());
    let windowing = Windowing::new(512).strict(true);
    let fingerprint = |line: &Value| {
        let corpus = read_lines(shared(), std::slice::from_ref(line), &windowing);
        corpus.unwrap().fingerprint
    };
    let edits: [fn(&mut Value); 4] = [
        |line| line["student"]["prompt"] = json!("安有3个杯子……?"),
        |line| line["links"] = json!([]),
        |line| {
            line["shared"][0] =
                json!({"teacher": "completion[13:21]", "student": "completion[1:9]"})
        },
        |line| line["links"][0]["student"] = json!("prompt[7:10]"),
    ];
    for edit in edits {
        let mut line = cups();
        edit(&mut line);
        let edited = sequence(shared(), &line);
        assert_ne!(edited.id, first.id, "{line}");
        assert_eq!(edited.content_id, first.content_id, "{line}");
        assert_ne!(fingerprint(&line), fingerprint(&cups()), "{line}");
    }
    // The teacher's side as an ordinary record is the same content.
    let alone = sequence(shared(), &cups()["teacher"]);
    assert_eq!(alone.id, first.content_id);
    // What nobody reads makes no other sequence, nor does another spelling.
    let mut line = cups();
    line["student"]["source"] = json!("a book");
    assert_eq!(sequence(shared(), &line), first);
    // The same again has another name, and is found by its content all the same.
    let twice = read_lines(shared(), &[cups(), cups()], &windowing).unwrap();
    let [one, other] = twice.sequences.as_slice() else {
        panic!()
    };
    assert_ne!(one.id, other.id);
    assert_ne!(one.content_id, other.content_id);
}

#[test]
fn what_is_cut_off_is_no_part_of_a_span() {
    let line = json!({
        "teacher": {"prompt": "pppp", "completion": "abcdefghijkl"},
        "student": {"prompt": "s", "completion": "abcdefghijkl"},
        "shared": [
            {"teacher": "completion[0:2]", "student": "completion[0:2]"},
            {"teacher": "completion[2:8]", "student": "completion[2:8]"},
            {"teacher": "completion[8:12]", "student": "completion[8:12]"},
        ],
        "links": [
            {"teacher": "completion[4:9]", "student": "prompt[0:1]"},
            {"teacher": "completion[9:12]", "student": "prompt[0:1]"},
        ],
    });
    let windowing = Windowing::new(10).strict(true);
    let corpus = read_lines(shared(), &[line], &windowing).unwrap();
    assert_eq!(corpus.skipped.truncated, 1);
    let view = corpus.sequences[0].view.clone().unwrap();
    assert_eq!(corpus.sequences[0].text, "ppppabcdef");
    assert_eq!(
        view.shared,
        [
            link((4, 6), "completion", 0, 2),
            link((6, 10), "completion", 2, 6)
        ]
    );
    assert_eq!(view.links, [link((8, 10), "prompt", 0, 1)]);
}

#[test]
fn a_side_of_three_tokens_beside_one_of_sixteen_thousand() {
    let long = "hello w".repeat(5500);
    let line = json!({
        "teacher": {"prompt": long, "completion": "!"}, "student": {"prompt": "", "completion": "!"},
    });
    let windowing = Windowing::new(16384).strict(true);
    let corpus = read_lines(shared(), std::slice::from_ref(&line), &windowing).unwrap();
    let sequence = &corpus.sequences[0];
    assert!(
        sequence.token_ids.len() > 10_000,
        "{}",
        sequence.token_ids.len()
    );
    let end = sequence.text.len() as u32;
    assert_eq!(
        sequence.view.as_ref().unwrap().shared,
        [link((end - 1, end), "completion", 0, 1)]
    );
    let turned = json!({"teacher": {"prompt": "q", "completion": "!"}, "student": {"prompt": long, "completion": "!"}});
    let sequence = read_lines(shared(), &[turned], &windowing)
        .unwrap()
        .sequences
        .remove(0);
    assert_eq!(sequence.token_ids.len(), 3);
}

#[test]
fn a_row_of_parquet_is_the_pair_that_its_line_is() {
    let (_dir, files) = tokenizer_with(&tokenizer_json(), CHATML);
    let directory = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/corpus/parquet"
    );
    let read = |name: &str| {
        let path = std::path::Path::new(directory).join(name);
        read_corpus(
            &[path],
            &files,
            &Windowing::new(64).strict(true),
            &mut |_| (),
        )
        .unwrap()
    };
    let (lines, rows) = (read("pair.jsonl"), read("pair.parquet"));
    assert_eq!(lines.sequences.len(), 4);
    assert_eq!(lines.sequences, rows.sequences);
    assert_eq!(lines.fingerprint, rows.fingerprint);
    let paired = rows
        .sequences
        .iter()
        .filter(|sequence| sequence.view.is_some());
    assert_eq!(paired.count(), 3);
}
