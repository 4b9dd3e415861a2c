//! Provides the messages that hold a vocabulary, the bytes behind every id, on the wire and in a cache.

use bytes::Bytes;
use distill_proto::{
    limits::{TOKEN_BYTES_MAX, VOCABULARY_CHUNK_BYTES, VOCABULARY_CHUNK_TOKENS},
    v1,
};
use distill_text::Vocabulary;

/// All of `vocabulary` in messages.
pub fn chunks(vocabulary: &Vocabulary) -> impl Iterator<Item = v1::GetVocabularyResponse> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let chunk = chunk(vocabulary, first)?;
        first += chunk.tokens.len();
        Some(chunk)
    })
}

/// Tokens from id `first` on, as many as one message takes; `None` after the last.
pub fn chunk(vocabulary: &Vocabulary, first: usize) -> Option<v1::GetVocabularyResponse> {
    let rest = vocabulary.tokens.get(first..)?;
    let mut chunk = v1::GetVocabularyResponse {
        first_id: u32::try_from(first).ok()?,
        eos_id: vocabulary.eos_id,
        ..Default::default()
    };
    let mut bytes = 0;
    for token in rest.iter().take(VOCABULARY_CHUNK_TOKENS) {
        // A token of 64 KiB is in no other vocabulary, so nothing is lost by hiding it.
        let token = token
            .as_ref()
            .filter(|token| token.bytes.len() <= TOKEN_BYTES_MAX);
        let content = token.map_or_else(Bytes::new, |token| token.bytes.clone().into());
        bytes += content.len();
        chunk.tokens.push(content);
        chunk.special.push(token.is_some_and(|token| token.special));
        if bytes >= VOCABULARY_CHUNK_BYTES {
            break;
        }
    }
    (!chunk.tokens.is_empty()).then_some(chunk)
}

#[cfg(test)]
mod tests {
    use distill_text::Token;

    use super::*;

    #[test]
    fn chunks_stay_within_their_limits_and_cover_every_id_once() {
        let token = |bytes: Vec<u8>| {
            Some(Token {
                bytes,
                special: false,
            })
        };
        let mut tokens = vec![token(vec![7; TOKEN_BYTES_MAX]); 40];
        tokens.push(token(vec![7; TOKEN_BYTES_MAX + 1]));
        tokens.extend((0..VOCABULARY_CHUNK_TOKENS + 5).map(|i| token(vec![i as u8])));
        tokens[3] = None;
        let vocabulary = Vocabulary {
            tokens,
            eos_id: None,
        };
        let mut seen = 0;
        let mut chunks = 0;
        while let Some(chunk) = chunk(&vocabulary, seen) {
            assert_eq!(chunk.first_id as usize, seen);
            assert_eq!(chunk.tokens.len(), chunk.special.len());
            let bytes: usize = chunk.tokens.iter().map(Bytes::len).sum();
            assert!(bytes < VOCABULARY_CHUNK_BYTES + TOKEN_BYTES_MAX);
            for (i, content) in chunk.tokens.iter().enumerate() {
                let expected = vocabulary.tokens[seen + i].as_ref();
                let expected = expected.filter(|token| token.bytes.len() <= TOKEN_BYTES_MAX);
                assert_eq!(expected.map_or(&[][..], |token| &token.bytes), content);
            }
            seen += chunk.tokens.len();
            chunks += 1;
        }
        assert_eq!(seen, vocabulary.tokens.len());
        assert!(chunks >= 4, "{chunks}");
    }
}
