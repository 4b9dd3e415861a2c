//! Provides the teacher's vocabulary, fetched once by a student with another one: the bytes behind every id.

use distill_proto::{
    limits::{TOKEN_BYTES_MAX, VOCABULARY_BYTES_MAX},
    v1::{GetVocabularyRequest, GetVocabularyResponse},
};
use distill_text::{Token, Vocabulary};

use super::{
    ServerInfo, Teacher,
    connect::{SILENCE_MAX, within},
};
use crate::{Error, Result};

/// Fetches what every id of the teacher stands for.
///
/// # Errors
/// A lost connection, a teacher of an older release, or chunks that do not fit the handshake.
pub async fn fetch_vocabulary(teacher: &Teacher, info: &ServerInfo) -> Result<Vocabulary> {
    let request = GetVocabularyRequest {
        plan_fingerprint: info.plan.to_hex(),
    };
    let mut service = teacher.service();
    let answer = within(SILENCE_MAX, service.get_vocabulary(request)).await;
    let mut stream = teacher.answer("GetVocabulary", answer)?;
    let mut received = Received {
        vocab_size: info.vocab_size as usize,
        bytes: 0,
        vocabulary: Vocabulary::default(),
    };
    while let Some(chunk) = teacher.next(&mut stream, "GetVocabulary").await? {
        received.add(chunk)?;
    }
    received.finish()
}

/// What has arrived so far.
struct Received {
    vocab_size: usize,
    bytes: usize,
    vocabulary: Vocabulary,
}

impl Received {
    fn add(&mut self, chunk: GetVocabularyResponse) -> Result<()> {
        let next = self.vocabulary.tokens.len();
        let count = chunk.tokens.len();
        let fits = count <= self.vocab_size - next;
        if chunk.first_id as usize != next || chunk.special.len() != count || count == 0 || !fits {
            return Err(refused(format!(
                "expected ids from {next} up to {}, got {count} tokens with {} flags from id {}",
                self.vocab_size,
                chunk.special.len(),
                chunk.first_id
            )));
        }
        for (bytes, special) in chunk.tokens.into_iter().zip(chunk.special) {
            self.bytes += bytes.len();
            if bytes.len() > TOKEN_BYTES_MAX || self.bytes > VOCABULARY_BYTES_MAX {
                return Err(refused(format!(
                    "a token of {} bytes, {} in all, above the limits of {TOKEN_BYTES_MAX} and {VOCABULARY_BYTES_MAX}",
                    bytes.len(),
                    self.bytes
                )));
            }
            let token = (!bytes.is_empty()).then(|| Token {
                bytes: bytes.to_vec(),
                special,
            });
            self.vocabulary.tokens.push(token);
        }
        self.vocabulary.eos_id = chunk.eos_id;
        Ok(())
    }

    fn finish(self) -> Result<Vocabulary> {
        let (vocabulary, size) = (self.vocabulary, self.vocab_size);
        if vocabulary.tokens.len() != size {
            let found = vocabulary.tokens.len();
            return Err(refused(format!("it ended after {found} of {size} ids")));
        }
        match vocabulary.eos_id {
            Some(eos) if vocabulary.get(eos).is_none() => Err(refused(format!(
                "the end of a completion is id {eos}, which has no token"
            ))),
            _ => Ok(vocabulary),
        }
    }
}

fn refused(reason: String) -> Error {
    Error::Stream(format!("GetVocabulary: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::{
        super::mock::{MockTeacher, VOCAB_SIZE},
        *,
    };
    use crate::shutdown::Shutdown;

    fn chunk(first_id: u32, count: u32) -> GetVocabularyResponse {
        let ids = first_id..first_id + count;
        GetVocabularyResponse {
            first_id,
            tokens: ids.clone().map(|id| format!("t{id}").into()).collect(),
            special: ids.map(|id| id == 3).collect(),
            eos_id: Some(3),
        }
    }

    async fn fetch(chunks: Vec<GetVocabularyResponse>) -> Result<Vocabulary> {
        let mock = MockTeacher::start(1).await;
        mock.set_tokens(chunks);
        let teacher = Teacher::connect(&mock.connect_options(), &Shutdown::default()).await?;
        let info = teacher.info().await?;
        fetch_vocabulary(&teacher, &info).await
    }

    #[tokio::test]
    async fn chunks_become_one_vocabulary() {
        let mut second = chunk(20, VOCAB_SIZE - 20);
        second.tokens[1] = Default::default();
        let vocabulary = fetch(vec![chunk(0, 20), second]).await.unwrap();
        assert_eq!(vocabulary.tokens.len(), VOCAB_SIZE as usize);
        assert_eq!(vocabulary.get(3).map(|t| t.special), Some(true));
        assert_eq!(vocabulary.get(21), None);
        assert_eq!(vocabulary.get(22).unwrap().bytes, b"t22");
        assert_eq!(vocabulary.eos_id, Some(3));
    }

    #[tokio::test]
    async fn what_does_not_fit_the_handshake_is_refused_with_the_ids() {
        let mut flags = chunk(0, VOCAB_SIZE);
        flags.special.pop();
        let mut long = chunk(0, VOCAB_SIZE);
        long.tokens[5] = vec![0; TOKEN_BYTES_MAX + 1].into();
        let mut no_end = chunk(0, VOCAB_SIZE);
        no_end.tokens[3] = Default::default();
        let cases = [
            (vec![chunk(0, 20)], "ended after 20 of 32"),
            (vec![], "ended after 0"),
            (vec![chunk(0, VOCAB_SIZE + 1)], "33 tokens"),
            (vec![chunk(0, 4), chunk(5, 4)], "expected ids from 4"),
            (vec![flags], "31 flags"),
            (vec![long], "65537 bytes"),
            (vec![no_end], "id 3, which has no token"),
        ];
        for (chunks, expected) in cases {
            let message = fetch(chunks).await.unwrap_err().to_string();
            assert!(
                message.contains("GetVocabulary") && message.contains(expected),
                "{message}"
            );
        }
    }
}
