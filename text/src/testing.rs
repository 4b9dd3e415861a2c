//! Provides a tiny byte-level BPE tokenizer directory for the tests of this crate.

use std::{fs, path::Path, sync::LazyLock};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::TokenizerFiles;

/// ChatML, as Qwen2.5 writes it.
pub const CHATML: &str = "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";

/// `tokenizer.json` with all 256 bytes, a few merges and the ChatML tokens.
pub fn tokenizer_json() -> Value {
    let alphabet = byte_alphabet();
    let mut vocab: Vec<String> = alphabet.iter().map(char::to_string).collect();
    let merges = [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        ("Ġ", "w"),
        ("ä", "½"),
    ];
    vocab.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let first_added = vocab.len();
    let vocab: serde_json::Map<String, Value> = vocab
        .into_iter()
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    let added: Vec<Value> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        .iter()
        .enumerate()
        .map(|(i, content)| {
            json!({"id": first_added + i, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
            "merges": merges.iter().map(|(a, b)| json!([a, b])).collect::<Vec<_>>()
        }
    })
}

/// The characters that stand for bytes 0..=255 in a byte-level vocabulary, in order of byte.
pub fn byte_alphabet() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let characters = (0..256u32).map(|byte| {
        if printable(byte) {
            return byte;
        }
        next += 1;
        next - 1
    });
    characters
        .map(|code| char::from_u32(code).unwrap())
        .collect()
}

/// Writes a tokenizer directory.
pub fn write(dir: &Path, tokenizer: &Value, template: &str) {
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"eos_token": "<|im_end|>", "bos_token": {"content": "<|endoftext|>"}, "pad_token": "<|endoftext|>"});
    fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    fs::write(dir.join("chat_template.jinja"), template).unwrap();
}

/// The tiny tokenizer with a template, opened.
pub fn tokenizer_with(tokenizer: &Value, template: &str) -> (TempDir, TokenizerFiles) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), tokenizer, template);
    let files = TokenizerFiles::open(dir.path()).unwrap();
    (dir, files)
}

/// The tiny tokenizer with ChatML.
pub fn tokenizer() -> (TempDir, TokenizerFiles) {
    tokenizer_with(&tokenizer_json(), CHATML)
}

/// One tokenizer for all cases of a property.
pub fn shared() -> &'static TokenizerFiles {
    static SHARED: LazyLock<TokenizerFiles> = LazyLock::new(|| tokenizer().1);
    &SHARED
}

/// [`tokenizer_json`] with a post-processor that puts `<|endoftext|>` before every text.
pub fn tokenizer_json_with_begin_of_text() -> Value {
    let mut json = tokenizer_json();
    json["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [262], "tokens": ["<|endoftext|>"]}}
    });
    json
}
