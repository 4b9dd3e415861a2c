//! Tests of rows that cannot be used, how they are counted and named, and of what does not make a row unusable.

use std::{fs, path::Path};

use serde_json::json;

use super::{
    Error, TokenizerFiles, Windowing, read_corpus,
    rows_tests::{read, read_strictly, refusal, user_and_assistant},
};
use crate::{
    limits::{LINE_BYTES_MAX, SKIPPED_NAMED_MAX, SKIPPED_REASON_CHARS_MAX},
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
    let content = format!(
        "{long}\n{}{{\"text\": \"hello there\"}}\n",
        "{}\n".repeat(99)
    );
    let skipped = read_strictly(shared(), content, false).unwrap().skipped;
    assert_eq!(
        (skipped.rows, skipped.named.len()),
        (100, SKIPPED_NAMED_MAX)
    );
    assert_eq!(
        skipped.named[0].chars().count(),
        SKIPPED_REASON_CHARS_MAX + 1
    );
    let shown = skipped.to_string();
    assert!(
        shown.starts_with("100 rows skipped") && shown.ends_with("and 80 more"),
        "{shown}"
    );
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
        r#"{"text": "other", "text": "hello there"}"#,
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
            "`messages[0]` has a text with a lone surrogate",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": [{"text": "\ud800"}]}]}"#,
            "`messages[0]` has a text with",
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
