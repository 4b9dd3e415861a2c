//! Provides the text of tokens that come one at a time: what is certain of it, up to a stop string.

use super::{TokenizerFiles, guard::guarded};
use crate::{Error, Result};

/// What a decoder writes for bytes that are no character, or not yet.
const INCOMPLETE: char = '\u{fffd}';

/// The text of tokens that come one at a time, special ones left out.
///
/// All tokens are decoded each time: some decoders write a token in another way after others. That is quick beside the making of one.
pub struct TextStream<'a> {
    tokenizer: &'a TokenizerFiles,
    stops: Vec<String>,
    ids: Vec<u32>,
    /// All of it, up to a stop string.
    text: String,
    /// Bytes of it that were given away.
    given: usize,
    is_stopped: bool,
}

impl<'a> TextStream<'a> {
    /// Of no tokens yet. What begins with one of `stops` is no part of the text.
    pub fn new(tokenizer: &'a TokenizerFiles, stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty());
        Self {
            tokenizer,
            stops: stops.cloned().collect(),
            ids: Vec::new(),
            text: String::new(),
            given: 0,
            is_stopped: false,
        }
    }

    /// Takes the next token. What is certain now and was not before: characters that are whole and are not the beginning of a stop
    /// string.
    ///
    /// # Errors
    /// `Encode` where the tokenizer's decoder gives up.
    pub fn push(&mut self, id: u32) -> Result<&str> {
        if self.is_stopped {
            return Ok("");
        }
        self.ids.push(id);
        self.text = guarded(|| {
            let decoded = self.tokenizer.tokenizer().decode(&self.ids, true);
            decoded.map_err(|e| e.to_string())
        })
        .map_err(|reason| Error::Encode(format!("ids cannot be turned into text: {reason}")))?;
        if let Some(at) = self.stop() {
            self.text.truncate(at);
            self.is_stopped = true;
            return Ok(self.finish());
        }
        Ok(self.give(self.certain()))
    }

    /// Whether a stop string has come: nothing is taken any more.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// What was held back, where nothing follows.
    pub fn finish(&mut self) -> &str {
        self.give(self.text.len())
    }

    /// All of the text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where the first stop string begins.
    fn stop(&self) -> Option<usize> {
        let found = self.stops.iter().filter_map(|stop| self.text.find(stop));
        found.min()
    }

    fn certain(&self) -> usize {
        let whole = self.text.trim_end_matches(INCOMPLETE);
        let begun = self.stops.iter().filter_map(|stop| {
            let mut beginnings = stop.char_indices().map(|(at, _)| at).rev();
            beginnings.find(|&at| stop.get(..at).is_some_and(|begun| whole.ends_with(begun)))
        });
        whole.len() - begun.max().unwrap_or_default()
    }

    fn give(&mut self, until: usize) -> &str {
        // A decoder that has changed its mind about the end of what was given.
        let from = self.text.floor_char_boundary(self.given);
        self.given = until.max(from);
        self.text.get(from..until).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Of single bytes, as byte-level tokenizers have them: ids are bytes, and 256 is special.
    fn bytes_tokenizer() -> TokenizerFiles {
        // GPT-2's letters for bytes: printable ones stand for themselves, the others follow from 256 on.
        let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let mut next = 256;
        let vocabulary: serde_json::Map<_, _> = (0..256)
            .map(|byte| {
                let letter = if printable(byte) {
                    byte
                } else {
                    next += 1;
                    next - 1
                };
                (char::from_u32(letter).unwrap().to_string(), byte.into())
            })
            .collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [{"id": 256, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let config = json!({"eos_token": "<end>"}).to_string();
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        TokenizerFiles::open(dir.path()).unwrap()
    }

    /// What every byte of `text` gives, and the rest at its end.
    fn pieces(stops: &[&str], bytes: &[u8]) -> (Vec<String>, String, String) {
        let tokenizer = bytes_tokenizer();
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut stream = TextStream::new(&tokenizer, &stops);
        let mut given = Vec::new();
        for &byte in bytes {
            given.push(stream.push(u32::from(byte)).unwrap().to_owned());
            if stream.is_stopped() {
                assert_eq!(stream.push(65).unwrap(), "");
                break;
            }
        }
        let rest = stream.finish().to_owned();
        (given, rest, stream.text().to_owned())
    }

    #[test]
    fn a_character_that_is_not_whole_is_held_back() {
        let (given, rest, text) = pieces(&[], "aé世!".as_bytes());
        assert_eq!(given, ["a", "", "é", "", "", "世", "!"]);
        assert_eq!((rest.as_str(), text.as_str()), ("", "aé世!"));
        // One that never becomes whole is given at the end, and one that is none as soon as something follows.
        let (given, rest, text) = pieces(&[], b"a\xe4\xb8");
        assert_eq!((given.concat().as_str(), text.len()), ("a", 1 + rest.len()));
        assert!(rest.chars().all(|c| c == INCOMPLETE) && !rest.is_empty());
        let (given, ..) = pieces(&[], b"\xffab");
        assert_eq!(given, ["", "\u{fffd}a", "b"]);
    }

    #[test]
    fn a_stop_string_across_tokens_is_never_shown() {
        let (given, rest, text) = pieces(&["STOP", "\n\n"], "say STO no\nmore STOP x".as_bytes());
        assert_eq!(given.concat(), "say STO no\nmore ");
        assert_eq!((rest.as_str(), text.as_str()), ("", "say STO no\nmore "));
        assert_eq!(given[4..8], ["", "", "", "STO "]);
        // The first one counts, whichever it is; one that begins within another, too.
        let (given, _, text) = pieces(&["bcd", "cx"], b"abcx");
        assert_eq!((given.concat(), text), ("ab".to_owned(), "ab".to_owned()));
        // One in the middle of a character's bytes, and one that was only begun at the end.
        let (given, rest, _) = pieces(&["é!"], "aé".as_bytes());
        assert_eq!((given.concat().as_str(), rest.as_str()), ("a", "é"));
        let (given, rest, _) = pieces(&["", "é!"], "aé!".as_bytes());
        assert_eq!((given.concat().as_str(), rest.as_str()), ("a", ""));
    }

    #[test]
    fn special_tokens_are_no_text() {
        let tokenizer = bytes_tokenizer();
        let mut stream = TextStream::new(&tokenizer, &[]);
        assert_eq!(stream.push(104).unwrap(), "h");
        assert_eq!(stream.push(256).unwrap(), "");
        assert_eq!(stream.push(105).unwrap(), "i");
        assert_eq!(stream.text(), "hi");
    }
}
