use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{
    CHATML, byte_alphabet, tokenizer, tokenizer_json, tokenizer_json_with_begin_of_text,
    tokenizer_with, write,
};

/// The fingerprints of the tiny tokenizer after `change`.
fn prints(change: impl FnOnce(&mut Value)) -> (Fingerprint, Fingerprint) {
    let mut json = tokenizer_json();
    change(&mut json);
    let (_dir, files) = tokenizer_with(&json, CHATML);
    (files.fingerprint(), files.vocabulary_fingerprint())
}

fn error_of(tokenizer: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer).unwrap();
    TokenizerFiles::open(dir.path()).err().unwrap().to_string()
}

#[test]
fn size_and_special_tokens_come_from_the_files() {
    let (_dir, files) = tokenizer();
    assert_eq!(files.size(), 256 + 6 + 3);
    assert_eq!(files.eos_id(), Some(264));
    assert_eq!(files.prefix_ids(), &[] as &[u32]);
    assert!(files.has_chat_template());
}

#[test]
fn the_end_of_sequence_falls_back_to_the_generation_configuration() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &tokenizer_json(), CHATML);
    fs::write(dir.path().join("tokenizer_config.json"), "{}").unwrap();
    assert_eq!(TokenizerFiles::open(dir.path()).unwrap().eos_id(), None);
    let config = dir.path().join("generation_config.json");
    fs::write(&config, r#"{"eos_token_id": [264, 262]}"#).unwrap();
    assert_eq!(
        TokenizerFiles::open(dir.path()).unwrap().eos_id(),
        Some(264)
    );
    fs::write(&config, r#"{"eos_token_id": 9000}"#).unwrap();
    let error = TokenizerFiles::open(dir.path()).err().unwrap().to_string();
    assert!(
        error.contains("generation_config.json: eos_token_id: 9000"),
        "{error}"
    );
}

#[test]
fn what_does_not_change_the_ids_does_not_change_the_fingerprint() {
    let original = prints(|_| ());
    let same: [fn(&mut Value); 8] = [
        |t| {
            let merges = t["model"]["merges"].as_array().unwrap().iter();
            let spelled = merges.map(|m| {
                json!(format!(
                    "{} {}",
                    m[0].as_str().unwrap(),
                    m[1].as_str().unwrap()
                ))
            });
            t["model"]["merges"] = spelled.collect();
        },
        |t| t["padding"] = json!({"strategy": {"Fixed": 7}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 3, "pad_type_id": 0, "pad_token": "x"}),
        |t| {
            t["truncation"] = json!({"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0})
        },
        |t| t["decoder"] = Value::Null,
        |t| t["pre_tokenizer"]["trim_offsets"] = json!(false),
        |t| t["model"]["end_of_word_suffix"] = Value::Null,
        |t| t["normalizer"] = json!({"type": "Sequence", "normalizers": []}),
        // Some uploads list the added tokens in the model's vocabulary as well.
        |t| t["model"]["vocab"]["<|im_end|>"] = json!(264),
    ];
    for (case, change) in same.into_iter().enumerate() {
        // The last one needs its neighbours too, or there is a hole in the ids.
        let found = prints(|t| {
            change(t);
            if case == 7 {
                t["model"]["vocab"]["<|endoftext|>"] = json!(262);
                t["model"]["vocab"]["<|im_start|>"] = json!(263);
            }
        });
        assert_eq!(found, original, "case {case}");
    }
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &tokenizer_json(), CHATML);
    fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"pad_token": "<|im_end|>"}"#,
    )
    .unwrap();
    assert_eq!(
        TokenizerFiles::open(dir.path()).unwrap().fingerprint(),
        original.0
    );
}

#[test]
fn what_changes_the_ids_changes_the_fingerprint() {
    let original = prints(|_| ());
    let different: [fn(&mut Value); 6] = [
        |t| t["normalizer"] = json!({"type": "NFC"}),
        |t| t["model"]["merges"].as_array_mut().unwrap().swap(0, 1),
        |t| t["pre_tokenizer"]["add_prefix_space"] = json!(true),
        |t| t["model"]["ignore_merges"] = json!(true),
        |t| t["added_tokens"][1]["lstrip"] = json!(true),
        |t| t["pre_tokenizer"]["use_regex"] = json!(false),
    ];
    for (case, change) in different.into_iter().enumerate() {
        let (behaviour, vocabulary) = prints(change);
        assert_ne!(behaviour, original.0, "case {case}");
        assert_eq!(vocabulary, original.1, "case {case}");
    }
    let other_words: [fn(&mut Value); 2] = [
        |t| {
            t["model"]["vocab"]["!"] = json!(34);
            t["model"]["vocab"]["\""] = json!(33);
        },
        |t| t["added_tokens"][2]["content"] = json!("<|eot|>"),
    ];
    for (case, change) in other_words.into_iter().enumerate() {
        let mut json = tokenizer_json();
        change(&mut json);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
        let files = TokenizerFiles::open(dir.path()).unwrap();
        assert_ne!(files.fingerprint(), original.0, "case {case}");
        assert_ne!(files.vocabulary_fingerprint(), original.1, "case {case}");
    }
}

#[test]
fn ranges_are_the_exact_bytes_of_byte_level_tokens() {
    let (_dir, files) = tokenizer();
    let text = "hello wörld 世界 你好<|im_end|>\n😀👍🏽 é\u{301}";
    let encoded = files.encode(text).unwrap();
    let alphabet = byte_alphabet();
    let mut joined = Vec::new();
    for (id, &(start, end)) in encoded.ids.iter().zip(&encoded.ranges) {
        let covered = &text.as_bytes()[start as usize..end as usize];
        let token = files.tokenizer().id_to_token(*id).unwrap();
        let bytes: Vec<u8> = if *id >= 262 {
            token.into_bytes()
        } else {
            let byte = |c| alphabet.iter().position(|a| *a == c).unwrap() as u8;
            token.chars().map(byte).collect()
        };
        assert_eq!(bytes, covered);
        joined.extend(bytes);
    }
    assert_eq!(joined, text.as_bytes());
    // 世 is three tokens of one byte each; 你 has a merge of its first two.
    let split = |c: char| {
        let at = text.find(c).unwrap() as u32;
        let inside = encoded
            .ranges
            .iter()
            .filter(|(start, end)| *start >= at && *end <= at + 3);
        inside.count()
    };
    assert_eq!((split('世'), split('你')), (3, 2));
}

#[test]
fn tokens_of_a_normalised_character_share_its_range() {
    let mut json = tokenizer_json();
    json["normalizer"] = json!({"type": "NFC"});
    let (_dir, files) = tokenizer_with(&json, CHATML);
    // NFC makes é, two bytes, of two characters. The library gives both tokens the first of them.
    let encoded = files.encode("xe\u{301}y").unwrap();
    assert_eq!(encoded.ids.len(), 4);
    assert_eq!(encoded.ranges, [(0, 1), (1, 2), (1, 2), (4, 5)]);
}

#[test]
fn a_begin_of_text_of_the_post_processor_is_kept_as_prefix() {
    let json = tokenizer_json_with_begin_of_text();
    let (_dir, files) = tokenizer_with(&json, CHATML);
    assert_eq!(files.prefix_ids(), &[262]);
    assert_eq!(files.fingerprint(), prints(|_| ()).0);
    assert_eq!(files.encode("a").unwrap().ids.len(), 1);
}

#[test]
fn damaged_files_are_named_with_their_field() {
    let good = tokenizer_json();
    type Damage = fn(&mut Value);
    let cases: [(Damage, &str); 10] = [
        (|t| t["model"] = json!(null), "model: is missing"),
        (
            |t| t["model"]["vocab"]["a"] = json!(4_000_000_000u64),
            "model.vocab: token \"a\"",
        ),
        (
            |t| t["model"]["vocab"]["a"] = json!(-1),
            "model.vocab: token \"a\"",
        ),
        (
            |t| t["model"]["merges"] = json!([["a", "nowhere"]]),
            "model: ",
        ),
        (|t| t["model"]["type"] = json!("Nonsense"), "model: "),
        (|t| t["model"]["dropout"] = json!(0.5), "model.dropout: "),
        (
            |t| t["normalizer"] = json!({"type": "Nonsense"}),
            "normalizer: ",
        ),
        (
            |t| t["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
            "pre_tokenizer: ",
        ),
        (|t| t["decoder"] = json!(17), "decoder: "),
        (|t| t["added_tokens"] = json!([{"id": 3}]), "added_tokens"),
    ];
    for (damage, expected) in cases {
        let mut json = good.clone();
        damage(&mut json);
        let error = error_of(&json.to_string());
        assert!(
            error.contains("tokenizer.json: ") && error.contains(expected),
            "{error}"
        );
    }
    let text = good.to_string();
    let boundaries = (0..text.len()).filter(|&at| text.is_char_boundary(at));
    for length in boundaries.step_by(37) {
        assert!(error_of(&text[..length]).contains("tokenizer.json: file: not JSON"));
    }
    let nested = "[".repeat(100_000);
    assert!(error_of(&nested).contains("tokenizer.json"));
}

#[test]
fn a_missing_or_foreign_directory_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = |dir: &Path| TokenizerFiles::open(dir).err().unwrap().to_string();
    assert!(error(dir.path()).contains("tokenizer.json: file: no such file"));
    assert!(error(&dir.path().join("x")).contains("no such directory"));
    fs::write(dir.path().join("tokenizer.model"), "x").unwrap();
    assert!(error(dir.path()).contains("convert tokenizer.model"));
}

#[test]
fn an_end_of_sequence_outside_the_vocabulary_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &tokenizer_json(), CHATML);
    fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"eos_token": "</s>"}"#,
    )
    .unwrap();
    let error = TokenizerFiles::open(dir.path()).err().unwrap().to_string();
    assert!(
        error.contains("tokenizer_config.json: eos_token: \"</s>\""),
        "{error}"
    );
}

#[test]
fn a_copy_is_the_same_tokenizer() {
    let (_dir, files) = tokenizer();
    let copy = tempfile::tempdir().unwrap();
    files.copy_to(copy.path()).unwrap();
    let copied = TokenizerFiles::open(copy.path()).unwrap();
    assert_eq!(copied.fingerprint(), files.fingerprint());
    assert!(copied.has_chat_template());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_as_a_tokenizer_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            fs::write(dir.path().join(name), &bytes).unwrap();
        }
        prop_assert!(TokenizerFiles::open(dir.path()).is_err());
    }

    #[test]
    fn damage_at_any_byte_never_panics(at in 0.0f64..1.0, byte in any::<u8>()) {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = tokenizer_json().to_string().into_bytes();
        let at = ((bytes.len() - 1) as f64 * at) as usize;
        bytes[at] = byte;
        fs::write(dir.path().join("tokenizer.json"), &bytes).unwrap();
        if let Ok(files) = TokenizerFiles::open(dir.path()) {
            let _ = files.encode("hello wörld 世界");
        }
    }
}
