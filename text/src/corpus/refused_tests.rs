//! Tests of rows that cannot be used, how they are counted and named, and of what does not make a row unusable.

use std::{fs, path::Path};

use serde_json::json;

use super::{
    Error, TokenizerFiles, Windowing, read_corpus,
    rows_tests::{read, read_strictly, refusal, user_and_assistant},
};
use crate::{
    limits::{LINE_BYTES_MAX, SKIPPED_NAMED_MAX, SKIPPED_REASON_CHARS_MAX, SKIPPED_SHOWN_MAX},
    testing::{CHATML, shared, tokenizer_json, tokenizer_with},
};

#[test]
fn a_row_that_cannot_be_used_is_skipped_counted_and_named() {
    let template = format!(
        "{{% if messages[0].content == 'no' %}}{{{{ raise_exception('roles must alternate') }}}}{{% endif %}}{CHATML}"
    );
    let (_dir, files) = tokenizer_with(&tokenizer_json(), &template);
    let refused: [(Vec<u8>, &str); 11] = [
        (b"not json".into(), "not JSON: expected a value at byte 0"),
        (b"[1]".into(), "expected a JSON object"),
        (b"{\"question\": \"x\"}".into(), "found the fields [\"question\"]"),
        (b"{\"text\": 3}".into(), "`text` must be a text, but is a number"),
        (b"{\"text\": \"\xff\"}".into(), "not UTF-8 from byte 10 on"),
        (b"{\"text\": \"\\ud83d\"}".into(), "`text` must be a text, but is a text with a lone surrogate"),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}".into(), "nothing to learn"),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"no\"}, {\"role\": \"assistant\", \"content\": \"x\"}]}".into(), "roles must alternate"),
        (b"\xef\xbb\xbf{\"text\": \"a mark in the middle of a file\"}".into(), "expected a value at byte 0"),
        ([b"{\"text\": \"", vec![b'x'; LINE_BYTES_MAX].as_slice(), b"\"}"].concat(), "the line is longer than"),
        (b"{\"text\": \"hello\"} {}".into(), "expected the end at byte 18"),
    ];
    let fine = b"{\"text\": \"hello there\"}\r\n\n".as_slice();
    let mut content = fine.to_vec();
    for (line, _) in &refused {
        content.extend(line);
        content.extend(b"\n");
        content.extend(fine);
    }
    let corpus = read_strictly(&files, &content, false).unwrap();
    assert_eq!(corpus.sequences.len(), 1 + refused.len());
    assert_eq!(corpus.documents, 1 + refused.len() as u64);
    assert_eq!(corpus.skipped.rows, refused.len() as u64);
    for (index, (named, (_, expected))) in corpus.skipped.named.iter().zip(&refused).enumerate() {
        let place = format!("c.jsonl:{}: ", 3 + 3 * index);
        assert!(
            named.contains(&place) && named.contains(expected),
            "{named}"
        );
    }
    // A byte-order mark is fine before the first line.
    let strictly = refused
        .iter()
        .filter(|(line, _)| !line.starts_with(b"\xef"));
    for (line, expected) in strictly {
        let error = refusal(&files, line);
        assert!(
            error.contains("c.jsonl:1: ") && error.contains(expected),
            "{error}"
        );
    }
    let same = read(&files, fine.repeat(1 + refused.len()));
    assert_eq!(
        corpus.fingerprint, same.fingerprint,
        "what is skipped leaves no trace"
    );
}

#[test]
fn names_of_skipped_rows_are_bounded() {
    let long = json!({"conversations": [{"from": "x".repeat(10_000), "value": ""}]});
    let with_others = |others: usize| {
        let content = format!(
            "{long}\n{}{{\"text\": \"hello there\"}}\n",
            "{}\n".repeat(others)
        );
        read_strictly(shared(), content, false).unwrap().skipped
    };
    let skipped = with_others(99);
    assert_eq!((skipped.rows, skipped.named.len()), (100, 100));
    assert_eq!(
        skipped.named[0].chars().count(),
        SKIPPED_REASON_CHARS_MAX + 1
    );
    let shown = skipped.to_string();
    assert!(
        shown.starts_with("100 rows skipped")
            && shown.ends_with("and 80 more; --json names all of them"),
        "{shown}"
    );
    assert_eq!(shown.lines().count(), 1 + SKIPPED_SHOWN_MAX + 1);
    let few = with_others(SKIPPED_SHOWN_MAX - 1).to_string();
    assert_eq!(few.lines().count(), 1 + SKIPPED_SHOWN_MAX);
    assert!(!few.contains("more") && !few.contains("--json"), "{few}");
    let many = with_others(SKIPPED_NAMED_MAX + 5);
    assert_eq!(many.named.len(), SKIPPED_NAMED_MAX);
    let more = format!(
        "and {} more; --json names the first {SKIPPED_NAMED_MAX}",
        many.rows - 20
    );
    assert!(many.to_string().ends_with(&more), "{more}");
}

#[test]
fn a_corpus_without_a_usable_row_is_an_error_that_names_the_rows() {
    let error = read_strictly(shared(), "{}\n[]\n", false).unwrap_err();
    assert!(matches!(error, Error::EmptyCorpus(_)), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("2 rows skipped") && error.contains("c.jsonl:2: expected a JSON object"),
        "{error}"
    );
}

/// It is not about one row: every conversation of the corpus would be skipped.
#[test]
fn messages_without_a_chat_template_end_the_reading() {
    let dir = tempfile::tempdir().unwrap();
    crate::testing::write(dir.path(), &tokenizer_json(), CHATML);
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    let files = TokenizerFiles::open(dir.path()).unwrap();
    let rows = format!(
        "{{\"text\": \"hello there\"}}\n{}\n",
        json!({"messages": user_and_assistant()})
    );
    let error = read_strictly(&files, rows, false).unwrap_err();
    assert!(matches!(error, Error::NoChatTemplate { .. }), "{error}");
}

#[test]
fn a_lone_surrogate_or_a_nan_in_a_field_that_nobody_reads_does_not_matter() {
    let plain = read(shared(), "{\"text\": \"hello there\"}");
    for row in [
        r#"{"id": "\ud83d", "text": "hello there"}"#,
        r#"{"score": NaN, "text": "hello there", "most": [-Infinity, Infinity, 1e999]}"#,
        r#"{"\ud800": 1, "text": "hello there"}"#,
        r#"{"id": 99999999999999999999999999999999999999999999999999, "text": "hello there"}"#,
        "\u{feff}{\"text\": \"hello there\"}\r\n",
        "\n\n \t\n{\"text\": \"hello there\"}\n\n\n",
        " {\"text\"\t: \"hello there\"} ",
        r#"{"text": "hello there"}"#,
    ] {
        assert_eq!(read(shared(), row).fingerprint, plain.fingerprint, "{row}");
    }
    let row = format!(
        "{{\"meta\": {}{}, \"text\": \"hello there\"}}",
        "[".repeat(400),
        "]".repeat(400)
    );
    assert_eq!(read(shared(), row).fingerprint, plain.fingerprint);
}

#[test]
fn a_lone_surrogate_that_is_read_refuses_its_row_by_name() {
    for (row, expected) in [
        (
            r#"{"text": "a\ud83d"}"#,
            "`text` must be a text, but is a text with a lone surrogate",
        ),
        (
            r#"{"prompt": "a\udc00", "completion": "b"}"#,
            "lone surrogate",
        ),
        (
            r#"{"instruction": "a", "output": "\ud800"}"#,
            "`output` must be a text, but is a text with a lone surrogate",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": "\ud800"}]}"#,
            "`messages[0]` has in `content` a text with a lone surrogate",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": [{"text": "\ud800"}]}]}"#,
            "`messages[0]` has in `content` a text with",
        ),
        (
            r#"{"conversations": [{"from": "gpt", "value": "\ud800"}]}"#,
            "`conversations[0]` has a `value` that is no text but",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": "x"}], "chat_template_kwargs": {"a": "\ud800"}}"#,
            "`chat_template_kwargs` has",
        ),
    ] {
        let error = refusal(shared(), row);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_text_file_that_is_no_utf8_is_refused_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.txt");
    fs::write(&path, b"hello there\nbroken \xff\n").unwrap();
    let read = |path: &Path| {
        read_corpus(
            &[path.to_owned()],
            shared(),
            &Windowing::new(64),
            &mut |_| (),
        )
    };
    let error = read(&path).unwrap_err().to_string();
    assert!(
        error.contains("c.txt:2: not UTF-8 from byte 7 on"),
        "{error}"
    );
}

/// Python's `json` takes the last of two values without a word; one of them was not meant.
#[test]
fn a_field_that_is_given_twice_is_refused_by_name_where_it_is_read() {
    let answer = r#"{"role": "assistant", "content": "x"}"#;
    for (line, expected) in [
        (
            r#"{"text": "hello", "text": "hello there"}"#.to_owned(),
            "`text` must be a text, but is a field that is given twice",
        ),
        (
            r#"{"prompt": "a", "completion": "b", "prompt": null}"#.to_owned(),
            "`prompt` and `completion` must be",
        ),
        (
            format!(r#"{{"messages": [{answer}], "messages": [{answer}]}}"#),
            "`messages` must be a list of objects with `role` and `content`, but is a field that is given twice",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": "x", "content": "y"}]}"#.to_owned(),
            "`messages[0]` has in `content` a field that is given twice",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": "x", "weight": 1, "weight": 0}]}"#
                .to_owned(),
            "`messages[0]` has in `weight` a field that is given twice",
        ),
        (
            format!(r#"{{"messages": [{answer}], "tools": [], "tools": []}}"#),
            "`tools` has a field that is given twice",
        ),
        (
            r#"{"conversations": [{"from": "gpt", "value": "x", "value": "y"}]}"#.to_owned(),
            "`conversations[0]` has a `value` that is no text but a field that is given twice",
        ),
        (
            r#"{"teacher": {"text": "a b"}, "student": {"text": "a b"}, "teacher": {"text": "c d"}}"#
                .to_owned(),
            "`teacher` must be a record, an object, but is a field that is given twice",
        ),
        (
            r#"{"teacher": {"text": "a b"}, "student": {"text": "a b", "text": "a b"}}"#.to_owned(),
            "`student`: `text` must be a text, but is a field that is given twice",
        ),
        (
            r#"{"teacher": {"text": "a b"}, "student": {"text": "a b"}, "targets": "all", "targets": "all"}"#
                .to_owned(),
            "`targets` must be",
        ),
    ] {
        let error = refusal(shared(), line.as_bytes());
        assert!(error.contains("c.jsonl:1: ") && error.contains(expected), "{error}");
        assert!(error.contains("given twice"), "{error}");
    }
    // What nobody reads may stand twice.
    let fine = br#"{"id": 1, "id": 2, "meta": {"a": 1, "a": 2}, "text": "hello there"}"#;
    assert_eq!(read(shared(), fine).sequences.len(), 1);
}
