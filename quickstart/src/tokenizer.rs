/*! Provides the small tokenizer of the embedded models: byte-level BPE shaped like Qwen2's, trained on the problems.

Two things differ from Qwen2's: the vocabulary is about a thousand tokens, and a Chinese character is a token of its own, as a
digit is in both, so that a sentence of familiar characters is made of familiar tokens wherever its words end.
*/

use std::{fs, path::Path};

use serde_json::json;
use tokenizers::{
    AddedToken, SplitDelimiterBehavior, Tokenizer, TokenizerBuilder,
    models::bpe::{BPE, BpeTrainer},
    normalizers::NFC,
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use crate::{Error, Result, corpus::Problem, error::io_at};

/// Vocabulary that covers every word of the problems with few spare tokens.
pub const VOCAB_SIZE_DEFAULT: usize = 1024;
/// The end of a text, and padding.
pub const EOS_TOKEN: &str = "<|endoftext|>";

/// Bytes and the end of text; a smaller vocabulary cannot write every text.
const VOCAB_SIZE_MIN: usize = 257;
const VOCAB_SIZE_MAX: usize = 65_536;
/// Longest text that the embedded models are meant for, in tokens.
const MODEL_MAX_LENGTH: usize = 512;
/// Qwen2's pattern without contractions, with Chinese characters alone.
const PATTERN: &str = r"\p{Han}|[^\r\n\p{L}\p{N}]?(?:(?!\p{Han})\p{L})+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Trains a tokenizer; the same problems make the same tokenizer.
///
/// # Errors
///
/// [`Error::Setting`] for a vocabulary that cannot be, [`Error::Tokenizer`] with the library's reason.
pub fn train(problems: &[Problem], vocab_size: usize) -> Result<Tokenizer> {
    if !(VOCAB_SIZE_MIN..=VOCAB_SIZE_MAX).contains(&vocab_size) {
        return Err(Error::Setting {
            name: "vocab_size",
            value: vocab_size.to_string(),
            reason: "between 257 (all bytes and the end of text) and 65536 are possible; 1024 fits the problems",
        });
    }
    train_bpe(problems, vocab_size).map_err(|e| Error::Tokenizer(e.to_string()))
}

fn train_bpe(problems: &[Problem], vocab_size: usize) -> tokenizers::Result<Tokenizer> {
    let pattern = SplitPattern::Regex(PATTERN.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
    // The split has cut the text already; Qwen2's files say so in the same way.
    let bytes = ByteLevel::new(false, false, false);
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .special_tokens(vec![AddedToken::from(EOS_TOKEN, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let mut tokenizer = TokenizerBuilder::default()
        .with_model(BPE::default())
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])))
        .with_post_processor(Some(bytes))
        .with_decoder(Some(bytes))
        .build()?;
    let texts = problems
        .iter()
        .map(|p| format!("{}{}", p.prompt, p.completion));
    tokenizer.train(&mut trainer, texts)?;
    Ok(tokenizer.into())
}

/// Writes `tokenizer.json`, `tokenizer_config.json` and `generation_config.json` into a directory.
///
/// # Errors
///
/// [`Error::Io`] with the path, [`Error::Tokenizer`] with the library's reason.
pub fn write(tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(io_at(dir))?;
    let text = tokenizer
        .to_string(true)
        .map_err(|e| Error::Tokenizer(e.to_string()))?;
    let eos_id = tokenizer
        .token_to_id(EOS_TOKEN)
        .ok_or_else(|| Error::Tokenizer(format!("{EOS_TOKEN} is not in the vocabulary")))?;
    let config = json!({
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": false,
        "add_bos_token": false,
        "bos_token": null,
        "eos_token": EOS_TOKEN,
        "pad_token": EOS_TOKEN,
        "unk_token": null,
        "model_max_length": MODEL_MAX_LENGTH,
        "clean_up_tokenization_spaces": false,
    });
    let generation = json!({
        "do_sample": false,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
    });
    for (name, text) in [
        ("tokenizer.json", text),
        ("tokenizer_config.json", format!("{config:#}\n")),
        ("generation_config.json", format!("{generation:#}\n")),
    ] {
        let path = dir.join(name);
        fs::write(&path, text).map_err(io_at(&path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::{Split, generate};

    /// Longest problem with its solution and the end of text, in tokens.
    const TOKENS_MAX: usize = 120;

    fn problems(split: Split) -> Vec<Problem> {
        generate(split, 3000, 5).expect("problems")
    }

    fn trained() -> Tokenizer {
        train(&problems(Split::Train), VOCAB_SIZE_DEFAULT).expect("a tokenizer")
    }

    fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        let encoding = tokenizer.encode(text, false).expect("an encoding");
        encoding.get_ids().to_vec()
    }

    #[test]
    fn problems_are_short_round_trip_and_split_at_the_completion() {
        let tokenizer = trained();
        let mut total = 0;
        for problem in Split::ALL.into_iter().flat_map(problems) {
            let text = format!("{}{}", problem.prompt, problem.completion);
            let whole = ids(&tokenizer, &text);
            assert_eq!(tokenizer.decode(&whole, false).expect("a text"), text);
            let parts = [problem.prompt, problem.completion].map(|part| ids(&tokenizer, &part));
            assert_eq!(whole, parts.concat(), "{text}");
            assert!(whole.len() < TOKENS_MAX, "{} tokens: {text}", whole.len());
            total += whole.len();
        }
        assert!(total < 9000 * 90, "{total} tokens in 9000 problems");
    }

    #[test]
    fn digits_and_chinese_characters_are_single_tokens() {
        let tokenizer = trained();
        for token in tokenizer.get_vocab(false).into_keys() {
            let Some(id) = tokenizer.token_to_id(&token) else {
                panic!("{token} has no id");
            };
            let text = tokenizer.decode(&[id], false).expect("a text");
            let single = |c: char| c.is_ascii_digit() || ('\u{4e00}'..='\u{9fff}').contains(&c);
            assert!(
                !text.contains(single) || text.chars().count() == 1,
                "{text}"
            );
        }
        assert_eq!(ids(&tokenizer, "比小明").len(), 3);
        assert_eq!(ids(&tokenizer, "128").len(), 3);
    }

    #[test]
    fn held_out_templates_use_tokens_of_the_training_problems() {
        let tokenizer = trained();
        let tokens = |split| -> std::collections::HashSet<u32> {
            let texts = problems(split)
                .into_iter()
                .map(|p| p.prompt + &p.completion);
            texts.flat_map(|text| ids(&tokenizer, &text)).collect()
        };
        let unseen = &tokens(Split::HeldoutTemplates) - &tokens(Split::Train);
        assert!(unseen.is_empty(), "{unseen:?}");
    }

    #[test]
    fn any_text_round_trips() {
        let tokenizer = trained();
        for text in [
            "",
            "naïve 1.5%\r\n\tß",
            "日本語と한국어",
            "🦀 <|im_end|>",
            "a\0b",
        ] {
            let decoded = tokenizer
                .decode(&ids(&tokenizer, text), false)
                .expect("a text");
            assert_eq!(decoded, text);
        }
    }

    #[test]
    fn training_twice_writes_the_same_files() {
        let files = || {
            let dir = tempfile::tempdir().expect("a directory");
            write(&trained(), dir.path()).expect("files");
            [
                "tokenizer.json",
                "tokenizer_config.json",
                "generation_config.json",
            ]
            .map(|name| fs::read_to_string(dir.path().join(name)).expect(name))
        };
        let [tokenizer, config, generation] = files();
        assert_eq!([&tokenizer, &config, &generation], files().each_ref());
        let tokenizer: Tokenizer = tokenizer.parse().expect("a tokenizer");
        let generation: serde_json::Value = serde_json::from_str(&generation).expect("JSON");
        let eos_id = tokenizer.token_to_id(EOS_TOKEN).map(u64::from);
        assert_eq!(generation["eos_token_id"].as_u64(), eos_id);
        assert_eq!(ids(&tokenizer, "3+4=7"), ids(&trained(), "3+4=7"));
    }

    #[test]
    fn a_vocabulary_without_room_for_bytes_is_refused() {
        let error = train(&[], 100).expect_err("refused");
        assert!(error.to_string().contains("257"), "{error}");
    }
}
