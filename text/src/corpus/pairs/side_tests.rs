//! Tests of a side by itself, as the trainer reads the student's.

use distill_proto::FieldRange;
use serde_json::{Value, json};

use super::read_side;
use crate::{
    Error, TokenizerFiles, Windowing,
    json::parse,
    testing::{CHATML, shared, tokenizer_json, tokenizer_json_with_begin_of_text, tokenizer_with},
};

fn range(field: &str, start: u32, end: u32) -> FieldRange {
    let field = field.to_owned();
    FieldRange { field, start, end }
}

/// The text that a range of a field became.
fn located(files: &TokenizerFiles, record: &Value, range: &FieldRange) -> Result<String, String> {
    let side = read_side(&record.to_string(), false, files, 512).map_err(|e| e.to_string())?;
    let found = side.locate(range).map_err(|e| e.to_string())?;
    Ok(side.text[found].to_owned())
}

fn chat(answers: &[&str]) -> Value {
    let turns = answers.iter().enumerate().flat_map(|(at, answer)| {
        [
            json!({"role": "user", "content": format!("q{at}")}),
            json!({"role": "assistant", "content": answer}),
        ]
    });
    json!({ "messages": turns.collect::<Vec<_>>() })
}

#[test]
fn the_labels_of_a_side_are_its_completion_and_prompts_carry_mass_where_asked() {
    let record = json!({"prompt": "hello ", "completion": "世!"}).to_string();
    let side = read_side(&record, false, shared(), 64).unwrap();
    assert_eq!(side.text, "hello 世!");
    assert_eq!(
        side.target_mask,
        [false, false, true, true, true, true, true]
    );
    assert_eq!(side.mass_mask, side.target_mask);
    assert_eq!(side.answer, Some(6..10));
    // The end-of-sequence token, which has no bytes.
    assert_eq!(side.end_token, Some(6));
    assert_eq!(side.byte_offsets[6], (10, 10));
    assert_eq!(side.locate(&range("completion", 3, 4)).unwrap(), 9..10);
    let side = read_side(&record, true, shared(), 64).unwrap();
    assert_eq!(
        side.target_mask,
        [false, false, true, true, true, true, true]
    );
    assert_eq!(side.mass_mask, [false, true, true, true, true, true, true]);
}

#[test]
fn a_tokenizer_that_begins_texts_has_its_token_before_a_side() {
    let (_dir, files) = tokenizer_with(&tokenizer_json_with_begin_of_text(), CHATML);
    let record = json!({"text": "hello"}).to_string();
    let side = read_side(&record, false, &files, 64).unwrap();
    assert_eq!(side.byte_offsets, [(0, 0), (0, 5)]);
    assert_eq!(side.target_mask, [false, true]);
    assert_eq!(side.locate(&range("text", 1, 3)).unwrap(), 1..3);
    assert_eq!((side.answer, side.end_token), (Some(0..5), None));
}

#[test]
fn the_end_of_a_turn_is_told_from_the_answer() {
    let side = read_side(&chat(&["one", "two"]).to_string(), false, shared(), 512).unwrap();
    let answer = side.answer.clone().unwrap();
    assert_eq!(&side.text[answer.clone()], "two");
    let (start, end) = side.byte_offsets[side.end_token.unwrap()];
    assert_eq!(&side.text[start as usize..end as usize], "<|im_end|>");
    assert_eq!(start as usize, answer.end);
}

#[test]
fn an_answer_that_the_template_trims_has_its_end_all_the_same() {
    let trimming = CHATML.replace("message.content +", "(message.content | trim) +");
    for (template, answer) in [(trimming.as_str(), "two"), (CHATML, " two\n")] {
        let (_dir, files) = tokenizer_with(&tokenizer_json(), template);
        let side = read_side(&chat(&[" two\n"]).to_string(), false, &files, 512).unwrap();
        let found = side.answer.clone().unwrap();
        assert_eq!(&side.text[found.clone()], answer);
        let (start, _) = side.byte_offsets[side.end_token.unwrap()];
        assert_eq!(start as usize, found.end);
    }
}

#[test]
fn what_a_limit_cuts_off_is_shorter_or_empty() {
    let record = json!({"prompt": "pp", "completion": "abcdefgh"}).to_string();
    let side = read_side(&record, false, shared(), 6).unwrap();
    assert!(side.is_truncated);
    assert_eq!((side.text.as_str(), side.end_token), ("ppabcd", None));
    assert_eq!(side.answer, Some(2..6));
    assert_eq!(side.locate(&range("completion", 2, 7)).unwrap(), 4..6);
    assert_eq!(side.locate(&range("completion", 5, 7)).unwrap(), 6..6);
    let side = read_side(&record, false, shared(), 2).unwrap();
    assert!(side.target_mask.iter().all(|&target| !target));
}

#[test]
fn words_of_a_message_are_found_where_the_template_writes_them() {
    let thinking = CHATML.replace(
        "message.content +",
        "(message.content.split('</think>')[-1].lstrip('\\n') if not loop.last else message.content) +",
    );
    let (_dir, files) = tokenizer_with(&tokenizer_json(), &thinking);
    let record = chat(&["<think>\nab\n</think>\n\nab", "<think>\nab\n</think>\n\nab"]);
    let at = |message: usize, start: u32, end: u32| {
        located(
            &files,
            &record,
            &range(&format!("messages[{message}].content"), start, end),
        )
    };
    // The same letters stand in the thought, in both answers and in no other message.
    assert_eq!(at(1, 21, 23).unwrap(), "ab");
    assert_eq!(at(3, 8, 10).unwrap(), "ab");
    assert_eq!(at(3, 0, 23).unwrap(), "<think>\nab\n</think>\n\nab");
    assert_eq!(at(0, 0, 2).unwrap(), "q0");
    let gone = at(1, 8, 10).unwrap_err();
    assert!(
        gone.contains("does not write `messages[1].content` as it stands"),
        "{gone}"
    );
    assert!(at(1, 10, 23).is_err());
    let side = read_side(&record.to_string(), false, &files, 512).unwrap();
    let (first, last) = (
        side.locate(&range("messages[1].content", 21, 23)).unwrap(),
        side.locate(&range("messages[3].content", 21, 23)).unwrap(),
    );
    assert_eq!(side.text[..first.end].matches("<|im_end|>").count(), 1);
    assert_eq!(side.text[..last.end].matches("<|im_end|>").count(), 3);
}

#[test]
fn words_that_a_template_writes_twice_or_in_other_letters_are_not_found() {
    for changed in [
        "message.content + '/' + message.content +",
        "message.content | upper +",
    ] {
        let template = CHATML.replace("message.content +", changed);
        let (_dir, files) = tokenizer_with(&tokenizer_json(), &template);
        let found = located(&files, &chat(&["ab"]), &range("messages[1].content", 0, 2));
        assert!(found.is_err(), "{found:?}");
    }
}

#[test]
fn a_thousand_places_of_one_message_take_few_renderings() {
    let words = "word ".repeat(1000);
    let record = chat(&[&words]).to_string();
    let side = read_side(&record, false, shared(), 16384).unwrap();
    for at in (0..4999).step_by(5) {
        let found = side
            .locate(&range("messages[1].content", at, at + 4))
            .unwrap();
        assert_eq!(&side.text[found], "word");
    }
}

#[test]
fn a_record_that_is_none_is_refused() {
    for (record, words) in [
        ("[]", "a record is an object, but this is a list"),
        ("{", "not JSON"),
        (r#"{"question": "x"}"#, "expected `messages`"),
    ] {
        let refused = read_side(record, false, shared(), 64);
        let Err(Error::Pair(reason)) = refused else {
            panic!("{record}")
        };
        assert!(reason.contains(words), "{reason}");
    }
    let side = read_side(r#"{"text": "hello"}"#, false, shared(), 64).unwrap();
    for wrong in [
        range("text", 0, 9),
        range("text", 3, 3),
        range("prompt", 0, 1),
    ] {
        assert!(matches!(side.locate(&wrong), Err(Error::Pair(_))));
    }
}

#[test]
fn a_record_is_written_as_the_json_that_it_was_read_from() {
    for text in [
        r#"{"a":[1,-2.0,1e300,5e-324,-0.0,123456789012345678901234567890],"b":{"c":null,"d":true},"e":"\"\\\n\u0001ä世\u2028"}"#,
        "[NaN,Infinity,-Infinity]",
        "{}",
    ] {
        let value = parse(text).unwrap();
        let written = value.to_text();
        let again = parse(&written).unwrap();
        // NaN is not equal to itself.
        assert_eq!(format!("{again:?}"), format!("{value:?}"), "{written}");
    }
}

/// A question without its answer carries mass and no label: not even the end of a completion that is not there.
#[test]
fn a_question_alone_carries_mass_and_no_label() {
    let record = r#"{"prompt": "hello there", "completion": ""}"#;
    let side = read_side(record, true, shared(), 64).unwrap();
    let encoded = shared().encode("hello there").unwrap();
    assert_eq!(side.token_ids, encoded.ids);
    assert!(side.target_mask.iter().all(|&label| !label));
    assert!(side.mass_mask.iter().skip(1).all(|&mass| mass));
    let line = json!({"teacher": {"prompt": "a", "completion": "b"}, "student": {"prompt": "a", "completion": ""}, "targets": "all"});
    let corpus =
        super::tests::read_lines(shared(), &[line], &Windowing::new(64).strict(true)).unwrap();
    assert!(corpus.sequences[0].view.as_ref().unwrap().shared.is_empty());
}
