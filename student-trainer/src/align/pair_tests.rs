//! Tests of pairs: where KL is taken, what carries mass, and which positions belong together.

use distill_proto::{FieldRange, Frame, Link, View};
use distill_text::TokenizerFiles;
use serde_json::json;

use super::{
    super::{
        Aligner,
        tests::{STUDENT, TEACHER, frame},
    },
    *,
};

const TEACHER_PROMPT: &str = "Ann has 3 cups: ";
const CHAIN: &str = "3+5=8 8-1=7 answer: 7";
const ANSWER: &str = "answer: 7";

/// The teacher's chain with the student's short answer, which is the end of it.
fn pair(prompts: bool, shared: Vec<Link>) -> Frame {
    let text = format!("{TEACHER_PROMPT}{CHAIN}");
    let first = if prompts { 0 } else { TEACHER_PROMPT.len() };
    let record = json!({"prompt": "Ann \u{6709} 3: ", "completion": ANSWER}).to_string();
    Frame {
        view: Some(View {
            record,
            prompts,
            shared,
            links: vec![link((8, 9), "prompt", 8, 9)],
        }),
        ..frame(&text, first..text.len(), true)
    }
}

fn link(teacher: (u32, u32), field: &str, start: u32, end: u32) -> Link {
    let field = field.to_owned();
    Link {
        teacher,
        student: FieldRange { field, start, end },
    }
}

fn shared_end() -> Vec<Link> {
    let end = (TEACHER_PROMPT.len() + CHAIN.len()) as u32;
    let length = ANSWER.len() as u32;
    vec![link((end - length, end), "completion", 0, length)]
}

fn read(frame: &Frame, student: &'static TokenizerFiles, limit: usize) -> Option<Example> {
    let other = !std::ptr::eq(student, &*TEACHER);
    let aligner = other.then(|| Aligner::new(&TEACHER.vocabulary(), student, 999));
    let reader = FrameReader::of(student, aligner, limit);
    reader.example(frame).unwrap()
}

fn alignment(example: &Example) -> &Alignment {
    example.targets.alignment.as_ref().unwrap()
}

#[test]
fn kl_is_taken_where_both_sides_begin_at_the_same_byte_of_what_they_share() {
    for student in [&*TEACHER, &*STUDENT] {
        let frame = pair(false, shared_end());
        let example = read(&frame, student, 999).unwrap();
        let side = student
            .encode(&format!("Ann \u{6709} 3: {ANSWER}"))
            .unwrap();
        assert_eq!(example.token_ids[..side.ids.len()], side.ids);
        let begin = side.ranges.iter().map(|range| range.0);
        let begin: Vec<u32> = begin.chain([side.ranges.last().unwrap().1]).collect();
        let answer = "Ann \u{6709} 3: ".len() as u32;
        assert!(alignment(&example).is_pair);
        let rows = frame.target_positions();
        let shift = (TEACHER_PROMPT.len() + CHAIN.len() - ANSWER.len()) as u32;
        let mut paired = 0;
        for (&t, pair) in example
            .target_positions
            .iter()
            .zip(&alignment(&example).pairs)
        {
            let theirs = |j: usize| frame.byte_offsets[rows[j]].0;
            let there = rows.iter().position(|&t_| {
                begin[t] >= answer && frame.byte_offsets[t_].0 == begin[t] - answer + shift
            });
            assert_eq!(*pair, there, "token {t} at byte {}", begin[t]);
            paired += usize::from(pair.is_some());
            if let Some(j) = *pair {
                assert_eq!(theirs(j) - shift, begin[t] - answer);
            }
        }
        // The first token of the answer, some of the others, and the end-of-text.
        assert!(paired >= 3, "{paired}");
        assert_eq!(
            alignment(&example).pairs.last().copied(),
            Some(Some(rows.len() - 1))
        );
        assert!(example.labels().ends_with(&[student.eos_id().unwrap()]));
        assert!(
            alignment(&example)
                .labelled
                .iter()
                .all(|&labelled| labelled)
        );
    }
}

#[test]
fn the_same_text_on_both_sides_is_the_ordinary_sequence() {
    let text = "say hello: hello hello";
    let shared = link(
        (10, text.len() as u32),
        "completion",
        0,
        text.len() as u32 - 10,
    );
    let record = json!({"prompt": &text[..10], "completion": &text[10..]}).to_string();
    let ordinary = frame(text, 10..text.len(), true);
    let both = Frame {
        view: Some(View {
            record,
            prompts: false,
            shared: vec![shared],
            links: vec![],
        }),
        ..ordinary.clone()
    };
    let (example, direct) = (
        read(&both, &TEACHER, 999).unwrap(),
        Example::from_frame(&ordinary),
    );
    assert_eq!(example.token_ids, direct.token_ids);
    assert_eq!(example.target_positions, direct.target_positions);
    assert_eq!(example.targets.logits, direct.targets.logits);
    let pairs = &alignment(&example).pairs;
    assert!(
        pairs.iter().enumerate().all(|(i, pair)| *pair == Some(i)),
        "{pairs:?}"
    );
}

#[test]
fn prompts_carry_mass_and_no_label() {
    let example = read(&pair(true, shared_end()), &TEACHER, 999).unwrap();
    let plain = read(&pair(false, shared_end()), &TEACHER, 999).unwrap();
    let all: Vec<usize> = (1..example.token_ids.len()).collect();
    assert_eq!(example.target_positions, all);
    let labelled = alignment(&example).labelled.iter().zip(&all);
    let labelled: Vec<usize> = labelled.filter(|(is, _)| **is).map(|(_, &t)| t).collect();
    assert_eq!(labelled, plain.target_positions);
    let of = |example: &Example| alignment(example).pairs.iter().flatten().count();
    assert_eq!(of(&example), of(&plain));
    assert!(example.targets.rows() > plain.targets.rows());
    // The three of both prompts is linked by the record, and has the same byte.
    let [(i, j)] = alignment(&example).links[..] else {
        panic!("{:?}", alignment(&example).links)
    };
    assert!(alignment(&example).equal.contains(&(i, j)));
    assert!(alignment(&plain).links.is_empty());
}

#[test]
fn sides_that_share_nothing_have_no_pair_and_are_examples_all_the_same() {
    let example = read(&pair(false, vec![]), &STUDENT, 999).unwrap();
    let pairs = &alignment(&example).pairs;
    assert!(!pairs.is_empty() && pairs.iter().all(Option::is_none));
    assert!(example.targets.rows() > 0);
}

#[test]
fn a_side_that_is_cut_shares_what_is_left() {
    let whole = read(&pair(false, shared_end()), &TEACHER, 999).unwrap();
    let prompt = whole.target_positions[0];
    for limit in 2..whole.token_ids.len() {
        let cut = read(&pair(false, shared_end()), &TEACHER, limit);
        assert_eq!(cut.is_some(), limit > prompt, "{limit}");
        let Some(cut) = cut else { continue };
        assert_eq!(cut.token_ids, whole.token_ids[..limit]);
        let pairs = &alignment(&cut).pairs;
        assert_eq!(pairs[..], alignment(&whole).pairs[..pairs.len()]);
    }
}

#[test]
fn a_record_that_this_student_cannot_read_is_named() {
    let mut frame = pair(false, vec![]);
    let reader = FrameReader::of(&STUDENT, None, 99);
    for (record, words) in [
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
            "chat template",
        ),
        ("[1]", "a record is an object"),
        ("{", "sequence 0 (id 0000000000000001)"),
    ] {
        frame.view.as_mut().unwrap().record = record.to_owned();
        let error = reader.example(&frame).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let lying = pair(false, vec![link((16, 17), "completion", 0, 99)]);
    let error = reader.example(&lying).unwrap_err().to_string();
    assert!(error.contains("completion[0:99]"), "{error}");
}
