//! Provides the encoding of a text with the exact byte range of every token.

use tokenizers::{Encoding, Model, OffsetType, PreTokenizer, Tokenizer};

use super::{guard::guarded, normalize::Rules};
use crate::{Error, Result};

/// Token ids of a text and the bytes each one stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Byte range of every token in the text. A range may begin or end inside a character where a byte-level tokenizer
    /// divides one; other tokenizers give all tokens of one character that character's range.
    pub ranges: Vec<(u32, u32)>,
}

/// A place in a text, as ranges hold it.
///
/// # Errors
/// `Encode` where the text is too long for such ranges.
pub(crate) fn offset(bytes: usize) -> Result<u32> {
    u32::try_from(bytes).map_err(|_| Error::Encode(format!("{bytes} bytes in one text")))
}

/// Encodes as [`Tokenizer::encode`] does without special tokens around the text, but with the normaliser bounded.
pub(super) fn encode(tokenizer: &Tokenizer, rules: &Rules, text: &str) -> Result<Encoded> {
    offset(text.len())?;
    let encoding = guarded(|| encoding_of(tokenizer, rules, text)).map_err(Error::Encode)?;
    let ranges = match exact_ranges(tokenizer, &encoding, text.len()) {
        Some(ranges) => ranges,
        None => encoding
            .get_offsets()
            .iter()
            .map(|&(start, end)| Ok((offset(start)?, offset(end)?)))
            .collect::<Result<_>>()?,
    };
    Ok(Encoded {
        ids: encoding.get_ids().to_vec(),
        ranges,
    })
}

fn encoding_of(tokenizer: &Tokenizer, rules: &Rules, text: &str) -> Result<Encoding, String> {
    let reason = |e: tokenizers::Error| e.to_string();
    let bounded = rules.bounded(text.len());
    let added = tokenizer.get_added_vocabulary();
    let mut pieces = added.extract_and_normalize(bounded.as_ref(), text);
    if let Some(bounded) = bounded {
        bounded.finish()?;
    }
    if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut pieces).map_err(reason)?;
    }
    let model = tokenizer.get_model();
    model
        .tokenize_in_pretokenized(&mut pieces, None)
        .map_err(reason)?;
    pieces
        .into_encoding(None, 0, OffsetType::Byte)
        .map_err(reason)
}

/// Ranges from the tokens' own lengths.
///
/// The library gives every token of a divided character the range of the whole character. In a byte-level vocabulary each
/// character of a token stands for one byte, so the running sum of token lengths is exact. `None` where that does not
/// agree with the library's ranges: another kind of vocabulary, or a normaliser that changed the text.
fn exact_ranges(
    tokenizer: &Tokenizer,
    encoding: &Encoding,
    text_bytes: usize,
) -> Option<Vec<(u32, u32)>> {
    let added = tokenizer.get_added_vocabulary();
    let mut position = 0;
    let mut ranges = Vec::with_capacity(encoding.len());
    let tokens = encoding.get_tokens().iter().zip(encoding.get_ids());
    for ((token, id), &(start, end)) in tokens.zip(encoding.get_offsets()) {
        let length = if added.simple_id_to_token(*id).is_some() {
            end.checked_sub(start)?
        } else {
            token.chars().count()
        };
        let stop = position + length;
        if start > position || stop > end {
            return None;
        }
        ranges.push((offset(position).ok()?, offset(stop).ok()?));
        position = stop;
    }
    (position == text_bytes).then_some(ranges)
}
