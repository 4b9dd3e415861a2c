use std::{fs, path::Path};

use serde_json::{Value, json};

use super::*;

/// What transformers says; made by `make_added_tokens.py`.
fn fixture() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/added-tokens.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn open(tokenizer: &Value, beside: &Value) -> Result<TokenizerFiles> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    for (name, content) in beside.as_object().unwrap() {
        fs::write(dir.path().join(name), content.to_string()).unwrap();
    }
    TokenizerFiles::open(dir.path())
}

#[test]
fn tokens_that_only_the_configuration_knows_are_matched_whole() {
    let fixture = fixture();
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let files = open(&fixture["tokenizer"], &case["files"]).unwrap();
        let ids = files.encode(case["text"].as_str().unwrap()).unwrap().ids;
        assert_eq!(json!(ids), case["ids"], "{}", case["name"]);
        assert_eq!(json!(files.size()), case["size"], "{}", case["name"]);
        assert_eq!(json!(files.eos_id()), case["eos"], "{}", case["name"]);
    }
}

#[test]
fn the_fingerprint_follows_what_the_configuration_adds() {
    let tokenizer = &fixture()["tokenizer"];
    let print = |config: Value| {
        let files = open(tokenizer, &json!({ "tokenizer_config.json": config })).unwrap();
        (files.fingerprint(), files.vocabulary_fingerprint())
    };
    let token = |lstrip: bool| json!({"content": "<|im_end|>", "lstrip": lstrip, "special": true, "normalized": false});
    let plain = print(json!({}));
    let same =
        print(json!({"added_tokens_decoder": {"262": token(false)}, "pad_token": "<|im_end|>"}));
    assert_eq!(same, plain);
    let stripping = print(json!({"added_tokens_decoder": {"262": token(true)}}));
    assert_ne!(stripping.0, plain.0);
    assert_eq!(stripping.1, plain.1);
    let more = print(json!({"extra_special_tokens": ["<e>"]}));
    assert_ne!(more.0, plain.0);
    assert_ne!(more.1, plain.1);
}

#[test]
fn added_tokens_that_are_none_are_named() {
    let tokenizer = &fixture()["tokenizer"];
    for (config, expected) in [
        (
            json!({"x": {"content": "a"}}),
            "added_tokens_decoder.x: is not an id",
        ),
        (
            json!({"5000000000": {"content": "a"}}),
            "added_tokens_decoder.5000000000: is not an id",
        ),
        (
            json!({"263": {"lstrip": true}}),
            "added_tokens_decoder.263: not an object",
        ),
        (json!({"263": 7}), "added_tokens_decoder.263: not an object"),
        (json!([]), "added_tokens_decoder: not an object"),
    ] {
        let beside = json!({"tokenizer_config.json": {"added_tokens_decoder": config}});
        let error = open(tokenizer, &beside).err().unwrap().to_string();
        assert!(
            error.contains("tokenizer_config.json") && error.contains(expected),
            "{error}"
        );
    }
    let beside = json!({"added_tokens.json": {"<a>": -1}});
    let error = open(tokenizer, &beside).err().unwrap().to_string();
    assert!(
        error.contains("added_tokens.json: <a>: -1 is not an id"),
        "{error}"
    );
    // An end that nothing knows is not a new token.
    let beside = json!({"tokenizer_config.json": {"eos_token": "</s>"}});
    let error = open(tokenizer, &beside).err().unwrap().to_string();
    assert!(
        error.contains("eos_token: \"</s>\" is not in the vocabulary"),
        "{error}"
    );
}

#[test]
fn a_copy_keeps_what_the_configuration_adds() {
    let fixture = fixture();
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("tokenizer.json"),
        fixture["tokenizer"].to_string(),
    )
    .unwrap();
    fs::write(dir.path().join("added_tokens.json"), r#"{"<tool>": 263}"#).unwrap();
    let files = TokenizerFiles::open(dir.path()).unwrap();
    let copy = tempfile::tempdir().unwrap();
    files.copy_to(copy.path()).unwrap();
    let copied = TokenizerFiles::open(copy.path()).unwrap();
    assert_eq!(copied.fingerprint(), files.fingerprint());
    assert_eq!(copied.encode("<tool>").unwrap().ids, [263]);
}

#[test]
fn a_head_with_fewer_rows_than_ids_is_named_with_both_numbers() {
    let beside = json!({"tokenizer_config.json": {"extra_special_tokens": ["<e>"]}});
    let files = open(&fixture()["tokenizer"], &beside).unwrap();
    files.check_head(264, Path::new("m/config.json")).unwrap();
    let error = files.check_head(263, Path::new("m/config.json"));
    let error = error.unwrap_err().to_string();
    for expected in ["tokenizer.json", "264 ids", "263 rows", "m/config.json"] {
        assert!(error.contains(expected), "{error}");
    }
}
