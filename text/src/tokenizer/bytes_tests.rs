use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::testing::{CHATML, tokenizer, tokenizer_json, tokenizer_with};

const TEXTS: [&str; 6] = [
    "hello world, it's 2024.",
    "你好，世界！今天天气怎么样？",
    "😀👍🏽 \u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} é e\u{301} ü",
    "fn main() {\n\tlet x = vec![0u8; 3];\n\r\n    // ‽\n}",
    "<|im_start|>user\nhello<|im_end|>\n",
    "\0\u{7f}\u{a0}\u{ad} \u{2028}\u{feff} mixed 世hello界",
];

fn joined(files: &TokenizerFiles, text: &str) -> Vec<u8> {
    let bytes = files.token_bytes();
    let ids = files.encode(text).unwrap().ids;
    let tokens = ids.iter().map(|id| bytes[*id as usize].clone().unwrap());
    tokens.collect::<Vec<_>>().concat()
}

/// A tokenizer of its own kind, with `<s>` (0), `</s>` (1) as special tokens.
fn files(parts: Value) -> (TempDir, TokenizerFiles) {
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null, "post_processor": null, "normalizer": null,
        "pre_tokenizer": null, "decoder": null, "added_tokens": [special(0, "<s>"), special(1, "</s>")],
    });
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

fn ids(tokens: impl IntoIterator<Item = String>) -> Value {
    let pairs = tokens.into_iter().zip(0u32..);
    Value::Object(pairs.map(|(token, id)| (token, json!(id))).collect())
}

/// As Llama 2: BPE over characters with U+2581, and bytes for the rest.
fn llama(decoder: Value) -> (TempDir, TokenizerFiles) {
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let words = ["▁", "h", "e", "l", "o", "▁h", "ll", "你", "好", "A"].map(str::to_owned);
    let start = ["<s>", "</s>", "<unk>"].map(str::to_owned);
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let decoder = match decoder {
        Value::Bool(true) => json!({"type": "Sequence", "decoders": [
            replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
        other => other,
    };
    files(json!({
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]},
        "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "vocab": ids(start.into_iter().chain(bytes).chain(words)), "merges": ["▁ h", "l l"],
        },
    }))
}

#[test]
fn tokens_of_byte_level_vocabularies_join_to_the_text() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let fixture = TokenizerFiles::open(&fixtures.join("tokenizer")).unwrap();
    let (_dir, tiny) = tokenizer();
    for text in TEXTS {
        assert_eq!(joined(&tiny, text), text.as_bytes(), "{text}");
        // The fixture normalises to NFC: é of two characters becomes one.
        let composed = text.replace("e\u{301}", "é");
        assert_eq!(joined(&fixture, text), composed.as_bytes(), "{text}");
    }
    // Cut anywhere, also inside what one token would be.
    let text = TEXTS.concat();
    for (at, _) in text.char_indices() {
        assert_eq!(joined(&tiny, &text[..at]), &text.as_bytes()[..at]);
    }
    let vocabulary = tiny.vocabulary();
    assert_eq!(vocabulary.tokens.len(), tiny.size() as usize);
    let end = vocabulary.get(vocabulary.eos_id.unwrap()).unwrap();
    assert_eq!(
        (end.bytes.as_slice(), end.special),
        (&b"<|im_end|>"[..], true)
    );
    assert!(!vocabulary.get(0).unwrap().special);
}

#[test]
fn the_byte_table_is_the_librarys() {
    let (_dir, files) = tokenizer();
    let mut singles: Vec<u8> = files
        .token_bytes()
        .into_iter()
        .take(256)
        .flatten()
        .flatten()
        .collect();
    singles.sort_unstable();
    assert_eq!(singles, (0..=255).collect::<Vec<u8>>());
    let mut without_decoder = tokenizer_json();
    without_decoder["decoder"] = Value::Null;
    let (_dir, other) = tokenizer_with(&without_decoder, CHATML);
    assert_eq!(other.vocabulary(), files.vocabulary());
}

#[test]
fn a_sentencepiece_vocabulary_writes_spaces_and_lone_bytes() {
    for decoder in [json!(true), Value::Null] {
        let (_dir, files) = llama(decoder);
        for text in TEXTS {
            let expected = format!(" {text}");
            assert_eq!(joined(&files, text), expected.as_bytes(), "{text}");
        }
        let bytes = files.token_bytes();
        assert_eq!(bytes[3 + 10], Some(vec![10]));
        let special = files
            .vocabulary()
            .iter()
            .filter(|(_, token)| token.special)
            .count();
        assert_eq!(special, 2);
    }
}

#[test]
fn a_unigram_vocabulary_with_metaspace_writes_spaces() {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let tokens = ["<s>", "</s>", "<unk>", "▁", "▁hello", "h", "世", "界"];
    let vocab: Vec<Value> = tokens.iter().map(|token| json!([token, -1.0])).collect();
    let (_dir, files) = files(json!({
        "pre_tokenizer": metaspace, "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "byte_fallback": false, "vocab": vocab},
    }));
    assert_eq!(
        joined(&files, "hello 世界 hello"),
        " hello 世界 hello".as_bytes()
    );
}

#[test]
fn wordpiece_and_whole_words_join_without_the_spaces_between() {
    let words = ["<s>", "</s>", "[UNK]", "un", "##aff", "##able", "世", "#"].map(str::to_owned);
    let (_dir, pieces) = files(json!({
        "pre_tokenizer": {"type": "Whitespace"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": ids(words)},
    }));
    assert_eq!(
        joined(&pieces, "unaffable 世 un #"),
        "unaffable世un#".as_bytes()
    );
    let words = ["<s>", "</s>", "<unk>", "hello", "##x", "世界"].map(str::to_owned);
    let (_dir, level) = files(json!({
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": ids(words)},
    }));
    assert_eq!(joined(&level, "hello  世界 ##x"), "hello世界##x".as_bytes());
}

#[test]
fn an_end_of_word_mark_and_a_hole_in_the_ids_are_no_bytes() {
    let (_dir, files) = files(json!({
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false,
            "vocab": {"<s>": 0, "</s>": 1, "a": 2, "a</w>": 3, "ä": 9}, "merges": [],
        },
    }));
    let bytes = files.token_bytes();
    assert_eq!(bytes[3].as_deref(), Some(&b"a"[..]));
    assert_eq!(bytes[4], None);
    // 0xC3 is printable as ä's first byte, 0xE4 as ä itself.
    assert_eq!(bytes[9], Some(vec![0xe4]));
    assert_eq!(joined(&files, "aa"), b"aa");
}
