//! Provides GetVocabulary: the bytes behind every id, for a student that reads text in another way.

use std::sync::Arc;

use distill_proto::v1;
use distill_text::Vocabulary;

use super::{Messages, Source, messages};
use crate::{Result, vocabulary::chunk};

/// Sends all of `vocabulary`.
pub(super) fn stream(vocabulary: Arc<Vocabulary>) -> Messages<v1::GetVocabularyResponse> {
    messages(Tokens {
        vocabulary,
        first: 0,
    })
}

struct Tokens {
    vocabulary: Arc<Vocabulary>,
    /// Id of the next one.
    first: usize,
}

impl Source<v1::GetVocabularyResponse> for Tokens {
    async fn next(&mut self) -> Result<Option<v1::GetVocabularyResponse>> {
        let chunk = chunk(&self.vocabulary, self.first);
        self.first += chunk.as_ref().map_or(0, |chunk| chunk.tokens.len());
        Ok(chunk)
    }
}
