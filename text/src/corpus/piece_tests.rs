//! Texts above a piece, of tokenizers that put something before every text: tokens and ranges are those of the whole.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use distill_proto::limits::TEXT_BYTES_MAX;

use super::*;
use crate::limits::PIECE_BYTES;

fn opened(parts: Value) -> (TempDir, TokenizerFiles) {
    let mut json = json!({"version": "1.0", "truncation": null, "padding": null, "post_processor": null,
        "normalizer": null, "pre_tokenizer": null, "decoder": null, "added_tokens": [special("<s>", 0), special("</s>", 1)]});
    for (field, part) in parts.as_object().unwrap() {
        json[field] = part.clone();
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"eos_token": "</s>"}"#,
    )
    .unwrap();
    let files = TokenizerFiles::open(dir.path()).unwrap();
    (dir, files)
}

fn special(content: &str, id: u32) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
}

fn words() -> Vec<String> {
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let start = ["<s>", "</s>", "<unk>"].map(str::to_owned);
    let words = [
        "▁", "T", "h", "e", "Th", "The", "▁The", "▁T", "m", "i", "l", "x", "▁x", "w", "▁w", "n",
        ".",
    ];
    let words = words.map(str::to_owned);
    start.into_iter().chain(bytes).chain(words).collect()
}

/// Llama 2's kind.
fn llama(normalizers: Value, pre_tokenizer: Value) -> (TempDir, TokenizerFiles) {
    let vocab: serde_json::Map<String, Value> = words()
        .into_iter()
        .zip(0..)
        .map(|(word, id)| (word, json!(id)))
        .collect();
    opened(json!({
        "normalizer": normalizers, "pre_tokenizer": pre_tokenizer,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": ["T h", "Th e", "▁ T", "▁ The", "▁ x", "▁ w"]},
    }))
}

fn replace() -> Value {
    json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
}

fn metaspace(scheme: &str, split: bool) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split})
}

/// Above two pieces: lines that begin with a word, an added token or a character that takes several tokens.
fn text() -> String {
    let lines = "The mill\nThe x é世 win.\n世The<s> The\n  x\n\nxThe\n";
    lines.repeat(2 * PIECE_BYTES / lines.len() + 2000)
}

fn check_as_whole(files: &TokenizerFiles) {
    let text = text();
    let whole = files.encode(&text).unwrap();
    let prefix = files.prefix_ids().len();
    for (name, content) in [
        ("c.txt", text.clone()),
        ("c.jsonl", json!({ "text": text }).to_string()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        let corpus = read_corpus(&[path], files, &Windowing::new(4096), &mut |_| ()).unwrap();
        let (mut ids, mut ranges, mut at, mut bytes) =
            (Vec::<u32>::new(), Vec::new(), 0, String::new());
        for sequence in &corpus.sequences {
            assert_eq!(&sequence.token_ids[..prefix], files.prefix_ids());
            ids.extend(&sequence.token_ids[prefix..]);
            let own = sequence.byte_offsets[prefix..].iter();
            ranges.extend(own.map(|(start, end)| (start + at, end + at)));
            at += sequence.text.len() as u32;
            bytes += &sequence.text;
        }
        assert!(bytes == text);
        let first = ids.iter().zip(&whole.ids).position(|(a, b)| a != b);
        assert_eq!((ids.len(), first), (whole.ids.len(), None), "{name}");
        assert!(ranges == whole.ranges, "{name}");
    }
}

#[test]
fn a_text_above_one_piece_gets_no_second_prefix() {
    let prepend = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace()]});
    check_as_whole(&llama(prepend, Value::Null).1);
    let start = json!({"type": "Replace", "pattern": {"Regex": "^"}, "content": "▁"});
    let by_pattern = json!({"type": "Sequence", "normalizers": [start, replace()]});
    check_as_whole(&llama(by_pattern, Value::Null).1);
}

#[test]
fn a_metaspace_before_every_text_is_not_before_every_piece() {
    for (scheme, split) in [
        ("first", false),
        ("first", true),
        ("always", false),
        ("always", true),
    ] {
        check_as_whole(&llama(Value::Null, metaspace(scheme, split)).1);
    }
}

#[test]
fn a_prefix_space_of_bytes_is_not_before_every_piece() {
    let mut json = crate::testing::tokenizer_json();
    json["pre_tokenizer"]["add_prefix_space"] = json!(true);
    check_as_whole(&crate::testing::tokenizer_with(&json, crate::testing::CHATML).1);
}

#[test]
fn pieces_without_a_prefix_are_cut_as_ever() {
    let (_dir, files) = crate::testing::tokenizer();
    assert!(!files.puts_before());
    check_as_whole(&files);
    let (_dir, files) = llama(replace(), metaspace("never", true));
    assert!(!files.puts_before());
}

#[test]
fn white_space_that_becomes_no_token_is_not_kept_to_its_end() {
    let (dir, files) = opened(json!({
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "unk_token": "<unk>",
            "vocab": {"<s>": 0, "</s>": 1, "<unk>": 2, "x": 3}},
    }));
    let path = dir.path().join("blank.txt");
    let line = format!("{:1023}\n", "");
    let windowing = Windowing::new(16);
    for (lines, fits) in [(TEXT_BYTES_MAX / 1024 - 1, true), (20 << 10, false)] {
        fs::write(
            &path,
            format!("{}\n{}", "x ".repeat(10), line.repeat(lines)),
        )
        .unwrap();
        match read_corpus(std::slice::from_ref(&path), &files, &windowing, &mut |_| ()) {
            Ok(corpus) if fits => assert_eq!(corpus.sequences.len(), 1),
            Err(error) if !fits => {
                let message = error.to_string();
                assert!(message.contains("limit of 16777216"), "{message}");
                assert!(message.contains("blank.txt:"), "{message}");
            }
            other => panic!("{lines} lines: {other:?}"),
        }
    }
}
