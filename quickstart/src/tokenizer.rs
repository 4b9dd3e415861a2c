/*! Provides the small tokenizer of the embedded models: byte-level BPE shaped like Qwen2's, trained on the problems.

Two things differ from Qwen2's: the vocabulary is about a thousand tokens, and a Chinese character is a token of its own, as a
digit is in both, so that a sentence of familiar characters is made of familiar tokens wherever its words end.
*/

#[cfg(test)]
mod tests;

use std::path::Path;

use distill_program::{files, output};
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

use crate::{Error, Result, corpus::Problem};

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
    files::create_directory(dir)?;
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
        output::write(&path, text.as_bytes())?;
    }
    Ok(())
}
