//! Provides the encoding of a text with the exact byte range of every token.

use tokenizers::{Encoding, Tokenizer};

use super::load::guarded;
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

pub(super) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Encoded> {
    if u32::try_from(text.len()).is_err() {
        return Err(Error::Encode(format!("{} bytes in one text", text.len())));
    }
    let encoding = guarded(|| tokenizer.encode(text, false).map_err(|e| e.to_string()))
        .map_err(Error::Encode)?;
    let ranges = exact_ranges(tokenizer, &encoding, text.len()).unwrap_or_else(|| {
        let offsets = encoding.get_offsets().iter();
        offsets
            .map(|&(start, end)| (start as u32, end as u32))
            .collect()
    });
    Ok(Encoded {
        ids: encoding.get_ids().to_vec(),
        ranges,
    })
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
        ranges.push((position as u32, stop as u32));
        position = stop;
    }
    (position == text_bytes).then_some(ranges)
}
