//! Provides what reads prompts for a teacher, of what was opened for it.

use super::Opened;
use crate::{answers::Answerer, config::Config};

impl Opened {
    /// What reads prompts for this teacher.
    pub(super) fn answerer(self, config: &Config) -> Answerer {
        let path = self.weights.path().to_owned();
        let place = (&self.device, config.dtype.on(&self.device));
        let batch_tokens = config.batch_size * config.seq_len;
        Answerer::new((self.model, path, self.tokenizer), place, batch_tokens)
    }
}
