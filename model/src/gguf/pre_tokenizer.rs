/*! Provides llama.cpp's names of the ways in which tokenizers split a text before they merge: `tokenizer.ggml.pre`.

A file names the way and nothing more, and llama.cpp has the expression behind the name. So a tokenizer can be rebuilt from a
file, and written into one, where its way is in this table: files are read and written by it. A normaliser to NFC is in no
file, and llama.cpp does not normalise; published tokenizers of one name have it or not.
*/

use serde_json::{Value, json};

/// Contractions, words, digits (`{}`), punctuation, white space: the expression of the tokenizers after GPT-4's.
const WORDS: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
/// One digit, as Qwen2 takes them.
const ONE_DIGIT: &str = r"\p{N}";
/// Up to three, as Llama 3 does.
const THREE_DIGITS: &str = r"\p{N}{1,3}";

/// llama.cpp's names, those that files are written with.
pub(super) const NAMES: [&str; 4] = ["qwen2", "llama-bpe", "smollm", "gpt-2"];

/// A way of splitting, in the words of `tokenizer.json`.
pub(super) struct Splitting {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    /// Whether a piece that is a token is taken whole, without a merge.
    pub ignore_merges: bool,
}

/// What a file with this name means; `None` where that is not known.
pub(super) fn splitting(name: &str) -> Option<Splitting> {
    let sequence = |parts: [Value; 2]| json!({"type": "Sequence", "pretokenizers": parts});
    let words = |digits: &str| {
        let [before, after] = WORDS;
        let pattern = format!("{before}{digits}{after}");
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        sequence([split, byte_level(false)])
    };
    let (normalizer, pre_tokenizer) = match name {
        "qwen2" => (json!({"type": "NFC"}), words(ONE_DIGIT)),
        "llama-bpe" => (Value::Null, words(THREE_DIGITS)),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (Value::Null, sequence([digits, byte_level(true)]))
        }
        "gpt-2" | "default" => (Value::Null, byte_level(true)),
        _ => return None,
    };
    Some(Splitting {
        normalizer,
        pre_tokenizer,
        ignore_merges: name == "llama-bpe",
    })
}

/// Whether a file with this name that does not say so puts a begin-of-text before every text.
pub(super) fn adds_bos_unsaid(name: &str) -> bool {
    name == "llama-bpe"
}

/// llama.cpp's name of how `tokenizer`, a `tokenizer.json`, splits text; `None` where it has none that is known here.
pub(super) fn name_of(tokenizer: &Value) -> Option<&'static str> {
    let nfc = json!([{"type": "NFC"}]);
    let normalizer = parts(&tokenizer["normalizer"], "normalizers");
    if normalizer != json!([]) && normalizer != nfc {
        return None;
    }
    let found = parts(&tokenizer["pre_tokenizer"], "pretokenizers");
    let ignore_merges = tokenizer["model"]["ignore_merges"] == true;
    NAMES.into_iter().find(|name| {
        splitting(name).is_some_and(|known| {
            known.ignore_merges == ignore_merges
                && parts(&known.pre_tokenizer, "pretokenizers") == found
        })
    })
}

/// Bytes as letters; where no expression stands before it, GPT-2's splits words.
pub(super) fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// The parts of a normaliser or pre-tokenizer, nested sequences unrolled, without what changes no token.
fn parts(part: &Value, list: &str) -> Value {
    fn collect(part: &Value, list: &str, found: &mut Vec<Value>) {
        if let Some(parts) = part.get(list).and_then(Value::as_array) {
            parts.iter().for_each(|part| collect(part, list, found));
        } else if let Value::Object(fields) = part {
            let mut fields = fields.clone();
            // Of offsets only.
            fields.remove("trim_offsets");
            // Every known expression fits every character, so to keep what fits is to split there.
            if fields.get("invert") == Some(&true.into())
                && fields.get("behavior") == Some(&"Removed".into())
            {
                fields.insert("invert".into(), false.into());
                fields.insert("behavior".into(), "Isolated".into());
            }
            found.push(Value::Object(fields));
        }
    }
    let mut found = Vec::new();
    collect(part, list, &mut found);
    Value::Array(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(pre_tokenizer: Value) -> Value {
        json!({"normalizer": null, "pre_tokenizer": pre_tokenizer, "model": {"ignore_merges": false}})
    }

    #[test]
    fn every_name_is_found_again_by_what_it_means() {
        for name in NAMES {
            let known = splitting(name).unwrap();
            let json = json!({
                "normalizer": known.normalizer,
                "pre_tokenizer": known.pre_tokenizer,
                "model": {"ignore_merges": known.ignore_merges},
            });
            assert_eq!(name_of(&json), Some(name));
        }
    }

    #[test]
    fn spellings_of_one_way_have_its_name() {
        let mut qwen2 = splitting("qwen2").unwrap().pre_tokenizer;
        // Some uploads have no normaliser, trim no offsets, or keep what fits instead of splitting there.
        qwen2["pretokenizers"][1]["trim_offsets"] = false.into();
        qwen2["pretokenizers"][0]["behavior"] = "Removed".into();
        qwen2["pretokenizers"][0]["invert"] = true.into();
        assert_eq!(name_of(&tokenizer(qwen2.clone())), Some("qwen2"));
        let nested = json!({"type": "Sequence", "pretokenizers": [qwen2]});
        assert_eq!(name_of(&tokenizer(nested)), Some("qwen2"));
    }

    #[test]
    fn another_way_has_no_name() {
        let mut prefix_space = byte_level(true);
        prefix_space["add_prefix_space"] = true.into();
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        let three = splitting("llama-bpe").unwrap().pre_tokenizer;
        for pre_tokenizer in [prefix_space, metaspace, Value::Null, three] {
            assert_eq!(
                name_of(&tokenizer(pre_tokenizer.clone())),
                None,
                "{pre_tokenizer}"
            );
        }
        let mut lower = tokenizer(byte_level(true));
        lower["normalizer"] = json!({"type": "Lowercase"});
        assert_eq!(name_of(&lower), None);
    }
}
