//! Provides sample answers: what the student writes after a few prompts before it is trained, and what after.

use std::{path::Path, time::Duration};

use distill_model::{Decoder, Sampling};
use distill_text::TokenizerFiles;
use serde::{Deserialize, Serialize};

use super::{Host, Setting, trainer::frames_a_step};
use crate::{
    Result,
    eval::{answered, text_of},
    files,
    generate::{Asked, Decoding, Finish, Writer, Written},
    run::ANSWERS_FILE,
};

/// Tokens of a prompt at most; longer ones are passed over.
pub(crate) const PROMPT_TOKENS_MAX: usize = 256;
/// Tokens of an answer at most.
pub(crate) const ANSWER_TOKENS_MAX: usize = 64;
/// For how long one of several ranks waits for something to ask.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A prompt, with what was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// What was asked.
    pub prompt: String,
    /// As the student reads it.
    pub prompt_ids: Vec<u32>,
    /// The corpus's answer, its beginning where it is longer than the student's may be.
    pub reference: String,
    /// The student's before its first step.
    pub before: Option<Written>,
    /// And after its last.
    pub after: Option<Written>,
}

impl Sample {
    /// What is asked and answered in these tokens of the student; `None` where nothing is, or the prompt is long.
    fn of(ids: &[u32], mask: &[bool], tokenizer: &TokenizerFiles) -> Result<Option<Self>> {
        let answer = answered(mask, tokenizer).filter(|answer| answer.start <= PROMPT_TOKENS_MAX);
        let Some(answer) = answer else {
            return Ok(None);
        };
        let prompt = &ids[..answer.start];
        let end = answer.end.min(answer.start + ANSWER_TOKENS_MAX);
        Ok(Some(Self {
            prompt: text_of(prompt, tokenizer)?,
            prompt_ids: prompt.to_vec(),
            reference: text_of(&ids[answer.start..end], tokenizer)?,
            before: None,
            after: None,
        }))
    }

    /// Those of a run; empty where there are none.
    ///
    /// # Errors
    /// A file that cannot be read, or holds something else.
    pub(crate) fn read(run: &Path) -> Result<Vec<Self>> {
        let found = files::read_json_if_there(&run.join(ANSWERS_FILE), FILE_BYTES_MAX)?;
        Ok(found.unwrap_or_default())
    }
}

/// Asks the student that is not trained yet, where there is something to ask and it was not asked before: the first prompts of the
/// held-out text, or else those of the first step. A failure to answer is told, and ends no run.
///
/// # Errors
/// What ended the teacher's stream.
pub(super) fn ask_before(
    setting: &Setting<'_>,
    decoder: &Decoder,
    host: &mut Host<'_>,
) -> Result<()> {
    let path = setting.run_directory.join(ANSWERS_FILE);
    let wanted = setting.config.sample_answers;
    if wanted == 0 || path.exists() {
        return Ok(());
    }
    let tokenizer = &setting.files.tokenizer;
    let held_out = host
        .evaluation
        .iter()
        .flat_map(|held_out| held_out.sequences());
    let held_out = held_out.map(|one| Sample::of(&one.token_ids, &one.target_mask, tokenizer));
    let mut samples = first(wanted, held_out);
    if samples.is_empty() {
        let count = frames_a_step(setting.config);
        // Other ranks may be told to stop meanwhile.
        if !setting.ranks.is_alone() && host.frames.wait_for(count, PATIENCE)? != Some(true) {
            return Ok(());
        }
        // No more than the first step waits for anyway.
        let Some(found) = host.frames.look(count)? else {
            return Ok(());
        };
        let reader = &host.reader;
        samples = first(
            wanted,
            found.map(|received| -> Result<Option<Sample>> {
                let Some(example) = reader.read(&received.frame)? else {
                    return Ok(None);
                };
                let mut mask = vec![false; example.token_ids.len()];
                for &target in &example.target_positions {
                    mask[target] = true;
                }
                Sample::of(&example.token_ids, &mask, tokenizer)
            }),
        );
    }
    if !samples.is_empty() {
        let written = answer(setting, decoder, samples, |sample, written| {
            sample.before = Some(written);
        });
        warn_of(written);
    }
    Ok(())
}

/// Asks the trained student what it was asked before.
pub(super) fn ask_after(setting: &Setting<'_>, decoder: &Decoder) {
    let written = Sample::read(setting.run_directory.path()).and_then(|samples| {
        if samples.iter().all(|sample| sample.after.is_some()) {
            return Ok(());
        }
        answer(setting, decoder, samples, |sample, written| {
            sample.after = Some(written);
        })
    });
    warn_of(written);
}

/// Those that can be asked; what is wrong with a sequence is told where it is trained or evaluated on.
fn first(wanted: usize, samples: impl Iterator<Item = Result<Option<Sample>>>) -> Vec<Sample> {
    let samples = samples.filter_map(|sample| sample.ok().flatten());
    samples.take(wanted).collect()
}

fn warn_of(written: Result<()>) {
    if let Err(error) = written {
        tracing::warn!("{ANSWERS_FILE}: no sample answers of the student as it is now: {error}");
    }
}

/// Writes the answers to all samples, likeliest tokens only; nothing after a shutdown.
fn answer(
    setting: &Setting<'_>,
    decoder: &Decoder,
    mut samples: Vec<Sample>,
    take: fn(&mut Sample, Written),
) -> Result<()> {
    let decoding = Decoding {
        max_new_tokens: ANSWER_TOKENS_MAX,
        sampling: Sampling::GREEDY,
        seed: 0,
    };
    let writer = Writer::new(decoder, setting.files, decoding, &[], setting.shutdown)?;
    tracing::info!(
        "{ANSWERS_FILE}: the student answers {} prompts with {ANSWER_TOKENS_MAX} tokens at most",
        samples.len()
    );
    let asked = samples.iter().map(|sample| Asked {
        ids: sample.prompt_ids.clone(),
        seed: decoding.seed,
    });
    let written = writer.write(&asked.collect::<Vec<_>>(), &mut |_| Ok(true))?;
    // What the cache took is the training's.
    distill_program::memory::give_back();
    if written.iter().any(|one| one.finish == Finish::Interrupted) {
        return Ok(());
    }
    for (sample, written) in samples.iter_mut().zip(written) {
        take(sample, written);
    }
    files::write_json(&setting.run_directory.join(ANSWERS_FILE), &samples)
}
