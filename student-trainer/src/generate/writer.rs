//! Provides the answers of a student: the writer of both programs, with the student's files, until somebody asks to stop.

use distill_model::{
    Decoder,
    answers::{self, Asked, Decoding, Heard, Written, end_ids},
};

use crate::{Result, shutdown::Shutdown, student::StudentFiles};

/// Writes answers with a student.
pub struct Writer<'a>(answers::Writer<'a>);

impl<'a> Writer<'a> {
    /// Of the student in `files`; answers end before a string of `stops`, too.
    ///
    /// # Errors
    /// A configuration that does not say at which tokens an answer ends.
    pub fn new(
        decoder: &'a Decoder,
        files: &'a StudentFiles,
        decoding: Decoding,
        stops: &[String],
        shutdown: &'a Shutdown,
    ) -> Result<Self> {
        let (tokenizer, ends) = (&files.tokenizer, end_ids(&files.dir, &files.tokenizer)?);
        let is_over = move || shutdown.is_requested();
        let model = (decoder, tokenizer);
        Ok(Self(answers::Writer::new(
            model, ends, decoding, stops, is_over,
        )))
    }

    /// As [`answers::Writer::write`].
    ///
    /// # Errors
    /// As [`answers::Writer::write`].
    pub fn write(
        &self,
        prompts: &[Asked],
        each: &mut dyn FnMut(Heard<'_>) -> Result<bool>,
    ) -> Result<Vec<Written>> {
        self.0.write(prompts, each)
    }
}
