//! Tokenizer folders of strangers: each is an error that names the file, within seconds and without much memory.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::*;
use crate::testing::{CHATML, tokenizer_json, tokenizer_with};

/// What it takes at most on a busy machine, where the patience of the reader is not what is tried.
const SECONDS: Duration = Duration::from_secs(25);

fn open(tokenizer: &Value) -> Result<TokenizerFiles> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    TokenizerFiles::open(dir.path())
}

/// The error of the tiny tokenizer after `change`.
fn refusal(change: impl FnOnce(&mut Value)) -> String {
    let mut json = tokenizer_json();
    change(&mut json);
    let start = Instant::now();
    let error = open(&json).err().map(|e| e.to_string());
    assert!(start.elapsed() < SECONDS, "{:?}", start.elapsed());
    let error = error.expect("it must be refused");
    assert!(error.contains("tokenizer.json: "), "{error}");
    error
}

fn replace(from: &str, to: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}

fn sequence(parts: Vec<Value>) -> Value {
    json!({"type": "Sequence", "normalizers": parts})
}

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

#[test]
fn replacements_that_double_sixty_times_are_refused() {
    let doubling = || sequence(vec![replace("a", "aa"); 60]);
    let long = "x".repeat(10_000);
    let cases = [
        doubling(),
        // By another way: through other letters, by a pattern, in one step, without a match.
        sequence(
            (b'a'..=b'y')
                .map(|c| {
                    replace(
                        &char::from(c).to_string(),
                        &char::from(c + 1).to_string().repeat(4),
                    )
                })
                .collect(),
        ),
        sequence(vec![
            json!({"type": "Replace", "pattern": {"Regex": "[a-z]"}, "content": "aaaa"});
            40
        ]),
        sequence(vec![
            json!({"type": "Replace", "pattern": {"Regex": "$|^|"}, "content": "ab"});
            40
        ]),
        replace("a", &long),
        json!({"type": "Replace", "pattern": {"Regex": "."}, "content": long}),
        json!({"type": "Replace", "pattern": {"String": ""}, "content": long}),
        json!({"type": "Prepend", "prepend": long}),
        sequence(vec![
            json!({"type": "ByteLevel"}),
            sequence(vec![sequence(vec![doubling()])]),
        ]),
    ];
    for (case, normalizer) in cases.into_iter().enumerate() {
        let error = refusal(|t| t["normalizer"] = normalizer);
        assert!(error.contains("times longer"), "case {case}: {error}");
    }
    // Not where nothing of it is in short texts, and then at the text that has it.
    let mut json = tokenizer_json();
    json["normalizer"] = sequence(vec![replace("Q", "QQ"); 60]);
    let (_dir, files) = tokenizer_with(&json, CHATML);
    let error = files.encode("Q").unwrap_err().to_string();
    assert!(error.contains("times longer"), "{error}");
    assert_eq!(files.encode("hello").unwrap().ids.len(), 1);
}

#[test]
fn an_added_token_that_doubles_sixty_times_is_refused_before_it_is_added() {
    let error = refusal(|t| {
        t["normalizer"] = sequence(vec![replace("Q", "QQ"); 60]);
        t["added_tokens"][0]["content"] = json!("Q");
        t["added_tokens"][0]["normalized"] = json!(true);
    });
    assert!(error.contains("added_tokens: "), "{error}");
    // Beside tokenizer.json too.
    let mut json = tokenizer_json();
    json["normalizer"] = sequence(vec![replace("Q", "QQ"); 60]);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let config = json!({"added_tokens_decoder": {"265": {"content": "Q", "normalized": true}}});
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let error = TokenizerFiles::open(dir.path()).err().unwrap().to_string();
    assert!(
        error.contains("tokenizer_config.json: added_tokens_decoder"),
        "{error}"
    );
}

#[test]
fn thousands_of_rules_are_refused() {
    let many = |part: Value| vec![part; 3000];
    for (field, list, part) in [
        ("normalizer", "normalizers", replace("a", "b")),
        ("pre_tokenizer", "pretokenizers", split("a")),
        ("decoder", "decoders", replace("a", "b")),
        ("post_processor", "processors", json!({"type": "ByteLevel"})),
    ] {
        let part = json!({"type": "Sequence", list: many(part)});
        let error = refusal(|t| t[field] = part);
        assert!(
            error.contains(field) && error.contains("more than"),
            "{error}"
        );
    }
}

#[test]
fn nested_sequences_end() {
    for (field, list) in [
        ("normalizer", "normalizers"),
        ("pre_tokenizer", "pretokenizers"),
        ("decoder", "decoders"),
        ("post_processor", "processors"),
    ] {
        for typed in [true, false] {
            let mut part = json!({"type": "Nonsense"});
            for _ in 0..60 {
                part = json!({ list: [part] });
                if typed {
                    part["type"] = json!("Sequence");
                }
            }
            let error = refusal(|t| t[field] = part);
            assert!(error.contains(field), "{error}");
        }
    }
    // Deeper than any JSON may be.
    let deep = format!("{}1{}", "[".repeat(3000), "]".repeat(3000));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), deep).unwrap();
    assert!(TokenizerFiles::open(dir.path()).is_err());
}

#[test]
fn a_pattern_that_backtracks_for_ever_is_refused() {
    // The matcher itself gives up on these.
    for regex in ["(a+)+$", "(a|aa)+$", r"(\w+\s?)+$"] {
        let error = refusal(|t| t["pre_tokenizer"] = split(regex));
        let expected = "a short text cannot be encoded";
        assert!(error.contains(expected), "{regex}: {error}");
        assert!(error.contains("retry-limit"), "{regex}: {error}");
    }
    // Short texts may not have what it takes; then the text that has it is refused.
    let mut json = tokenizer_json();
    json["pre_tokenizer"] = split("([a-z]+)*!");
    let (_dir, files) = tokenizer_with(&json, CHATML);
    let error = files.encode(&("a".repeat(60) + " !")).unwrap_err();
    assert!(error.to_string().contains("retry-limit"), "{error}");
    let error = refusal(|t| {
        t["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""});
    });
    assert!(error.contains("a short text cannot be encoded"), "{error}");
}

#[test]
fn a_pattern_is_bounded_in_length_and_depth() {
    let long = "(".repeat(40_000) + &")".repeat(40_000);
    let error = refusal(|t| t["pre_tokenizer"] = split(&long));
    assert!(error.contains("Regex of 80000 bytes"), "{error}");
    let deep = "(".repeat(30_000) + &")".repeat(30_000);
    let error = refusal(|t| t["pre_tokenizer"] = split(&deep));
    assert!(error.contains("pre_tokenizer: "), "{error}");
    // As deep as the library takes it; what matters is that it ends.
    let fine = "(".repeat(4000) + "a" + &")".repeat(4000);
    let mut json = tokenizer_json();
    json["pre_tokenizer"] = split(&fine);
    let _ = open(&json);
}

#[test]
fn a_hostile_charsmap_is_refused() {
    let table =
        |bytes: &[u8]| json!({"type": "Precompiled", "precompiled_charsmap": base64(bytes)});
    let cell = |value: u32| value.to_le_bytes().to_vec();
    // A trie of one unit that leads out of it, one that says it is longer than the file, an empty one, none at all.
    let outside = [cell(4), cell(0xffff_ffff)].concat();
    let lying = [cell(0xffff_fff0), cell(0)].concat();
    // Every first byte is a leaf that points past the texts, into the middle of a character, or at a long one.
    let leaf = |target: u32, texts: &[u8]| {
        let units: Vec<u8> = (0..512u32)
            .flat_map(|unit| {
                let label = unit & 0xff;
                let value = if unit < 256 {
                    label | 1 << 8
                } else {
                    1 << 31 | target
                };
                // The root leads to unit XOR label; each of those leads 256 further.
                let offset = if unit == 0 { 0 } else { 256 << 10 };
                (value | if unit < 256 { offset } else { 0 }).to_le_bytes()
            })
            .collect();
        [cell(units.len() as u32), units, texts.to_vec()].concat()
    };
    let long = [b"x".repeat(1 << 20), vec![0]].concat();
    for (case, bytes) in [
        outside,
        lying,
        cell(0),
        Vec::new(),
        leaf(1 << 20, b"a\0"),
        leaf(1, "é\0".as_bytes()),
        leaf(0, &long),
    ]
    .iter()
    .enumerate()
    {
        let error = refusal(|t| t["normalizer"] = table(bytes));
        assert!(error.contains("normalizer"), "case {case}: {error}");
    }
    let error = refusal(|t| t["normalizer"] = table(&vec![0; 7 << 20]));
    assert!(error.contains("precompiled_charsmap of"), "{error}");
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = |chunk: &[u8]| {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        (0..4)
            .map(|at| {
                let digit = (bits >> (18 - 6 * at)) & 63;
                if at > chunk.len() {
                    '='
                } else {
                    char::from(DIGITS[digit as usize])
                }
            })
            .collect::<String>()
    };
    bytes.chunks(3).map(digits).collect()
}

#[test]
fn a_post_processor_that_writes_without_end_or_knows_no_token_is_refused() {
    let template = |pieces: usize, ids: usize, known: &str| {
        let piece = json!({"SpecialToken": {"id": "X", "type_id": 0}});
        json!({"type": "TemplateProcessing", "single": vec![piece; pieces], "pair": [],
               "special_tokens": {known: {"id": known, "ids": vec![1; ids], "tokens": vec!["a"; ids]}}})
    };
    let error = refusal(|t| t["post_processor"] = template(400, 400, "X"));
    assert!(
        error.contains("a template of up to 160000 tokens"),
        "{error}"
    );
    let error = refusal(|t| t["post_processor"] = template(1, 1, "Y"));
    assert!(error.contains("post_processor: "), "{error}");
}

#[test]
fn byte_levels_over_byte_levels_are_refused() {
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let error = refusal(|t| {
        t["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": vec![level; 40]});
    });
    assert!(
        error.contains("ByteLevel and Metaspace 40 times"),
        "{error}"
    );
}

#[test]
fn a_decoder_that_doubles_is_refused() {
    let letters: Vec<String> = (b'a'..=b'z').map(|c| char::from(c).to_string()).collect();
    let chain = letters
        .windows(2)
        .map(|pair| replace(&pair[0], &pair[1].repeat(4)));
    let chain: Vec<Value> = chain.collect();
    let error = refusal(|t| t["decoder"] = json!({"type": "Sequence", "decoders": chain}));
    assert!(error.contains("decoder: its replacements"), "{error}");
}

#[test]
fn models_that_contradict_themselves_are_refused() {
    type Damage = fn(&mut Value);
    let unigram = |vocab: Value, unk: Value| json!({"type": "Unigram", "unk_id": unk, "vocab": vocab, "byte_fallback": false});
    let models = [
        unigram(json!([]), Value::Null),
        unigram(json!([]), json!(0)),
        unigram(json!([["a", -1.0]]), json!(7)),
        unigram(json!([["a", null]]), json!(0)),
        unigram(json!([["a", "NaN"]]), json!(0)),
        json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {}}),
        json!({"type": "WordLevel", "unk_token": "[UNK]", "vocab": {}}),
        json!({"type": "BPE", "vocab": {}, "merges": []}),
    ];
    for model in models {
        let shown = model.to_string();
        let error = refusal(|t| {
            t["added_tokens"] = json!([]);
            t["model"] = model;
        });
        assert!(error.contains("model"), "{shown}: {error}");
    }
    let damages: [Damage; 6] = [
        |t| t["model"]["merges"] = json!([["h", "nowhere"]]),
        |t| t["model"]["merges"] = json!(["a"]),
        |t| t["model"]["merges"] = json!([["h", "o"]]),
        |t| t["model"]["continuing_subword_prefix"] = json!("é".repeat(9)),
        |t| t["added_tokens"][0]["id"] = json!(1u64 << 40),
        |t| t["added_tokens"][0]["id"] = json!(-1),
    ];
    for (case, damage) in damages.into_iter().enumerate() {
        let error = refusal(damage);
        assert!(
            error.contains("model") || error.contains("added_tokens"),
            "case {case}: {error}"
        );
    }
}

#[test]
fn scores_beyond_all_numbers_end() {
    // They parse; what matters is that encoding ends with ids or an error.
    let vocab = json!([
        ["<unk>", -1e308],
        ["a", -1e308],
        ["aa", 1e308],
        ["aaa", 1e308]
    ]);
    let mut json = tokenizer_json();
    json["added_tokens"] = json!([]);
    json["pre_tokenizer"] = Value::Null;
    json["model"] = json!({"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false});
    if let Ok(files) = open(&json) {
        let _ = files.encode(&"a".repeat(5000));
    }
}

#[test]
fn absurd_truncation_and_padding_do_nothing() {
    let mut json = tokenizer_json();
    json["truncation"] = json!({"direction": "Left", "max_length": u64::MAX >> 1, "strategy": "OnlySecond", "stride": u64::MAX >> 1});
    json["padding"] = json!({"strategy": {"Fixed": u64::MAX >> 1}, "direction": "Left", "pad_to_multiple_of": 0, "pad_id": 3, "pad_type_id": 0, "pad_token": "x"});
    assert_eq!(open(&json).unwrap().encode("hello").unwrap().ids.len(), 1);
}

#[test]
fn added_tokens_of_many_megabytes_are_refused() {
    let error = refusal(|t| t["added_tokens"][0]["content"] = json!("x".repeat(17 << 20)));
    assert!(error.contains("added_tokens: tokens of"), "{error}");
}

#[test]
fn what_is_no_regular_file_is_refused_by_name() {
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "generation_config.json",
        "config.json",
        "chat_template.jinja",
    ] {
        for (make, expected) in [(0, "a device"), (1, "a directory")] {
            let dir = tempfile::tempdir().unwrap();
            crate::testing::write(dir.path(), &tokenizer_json(), CHATML);
            // Otherwise its id is not looked for elsewhere.
            fs::write(dir.path().join("tokenizer_config.json"), "{}").unwrap();
            let path = dir.path().join(name);
            let _ = fs::remove_file(&path);
            if make == 0 {
                std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
            } else {
                fs::create_dir(&path).unwrap();
            }
            let error = TokenizerFiles::open(dir.path()).err().unwrap().to_string();
            assert!(error.contains(name) && error.contains(expected), "{error}");
        }
    }
}

#[test]
fn a_reason_of_the_system_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("tokenizer.json")).unwrap();
    let error = TokenizerFiles::open(dir.path()).err().unwrap();
    // A printer that follows the chain finds nothing more.
    assert!(std::error::Error::source(&error).is_none());
}
