/*! The evaluation of a student on held-out text, by itself or during training: cross-entropy, perplexity, and how far it is from the teacher.

```text
 files ──> windows ──> hidden states ──> loss::head_values: CE (and KL)   [N, V] never exists
                └──> teacher: ScoreTokens ──> rows ──┘
 prompts ──> answers: what `generate` writes ──> exact match of the last line
```
*/

pub mod answers;
mod config;
mod measure;
mod plans;
mod report;
mod scorer;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use distill_model::{Decoder, hand_back};
use distill_text::{Sequence, Skipped, Windowing, read_corpus};

use crate::{
    Error, Result,
    client::{self, ConnectOptions, DeviceLease, Teacher},
    files::write_atomically,
    generate::{Switch, find_student, load},
    loss::{HeadGeometry, LossConfig},
    run::progress,
    shutdown::Shutdown,
    student::{Place, StudentFiles},
};
use answers::{Answerer, Answers, incomplete, write_answers};
pub(crate) use answers::{answered, check_prompts, text_of};
pub use config::EvalConfig;
pub(crate) use measure::Measure;
use measure::Measured;
use plans::plan;
pub use report::EvalReport;
pub(crate) use scorer::{Scorer, write_answer};

/// Lost connections to the teacher in a row before the command gives up.
const RECONNECT_ATTEMPTS: u32 = 10;

/// Evaluates as `config` says. Blocks the thread; call it outside of an async runtime.
///
/// # Errors
/// A file that cannot be used, or a teacher that does not fit.
pub fn run(config: &EvalConfig, shutdown: &Shutdown) -> Result<EvalReport> {
    config.validate()?;
    let loss = loss_config(
        config.teacher.is_some(),
        config.kl_temperature,
        config.chunk_rows,
    );
    loss.validate()?;
    let place = Place::choose(&config.device, config.dtype)?;
    let (adapter, kwargs) = (config.adapter.as_deref(), &config.chat_template_kwargs);
    let (files, adapter) = find_student(&config.student, adapter, kwargs, shutdown)?;
    let runtime = client::runtime()?;
    let mut scorer = match &config.teacher {
        Some(address) => {
            let scorer = connect(config, address, &runtime, shutdown)?;
            scorer.check(&files, &loss)?;
            Some(scorer)
        }
        None => None,
    };
    let windowing = Windowing::new(config.seq_len)
        .strict(config.strict)
        .of_student();
    let (sequences, skipped) = sequences(&config.data, &files, &windowing, config.max_sequences)?;
    if sequences.is_empty() {
        return Err(Error::Config(
            "data: there is no sequence with a target in these files".into(),
        ));
    }
    if config.wants_answers() {
        check_prompts(&sequences, &files.tokenizer)?;
    }
    let mut lease = None;
    if let Some(scorer) = scorer.as_mut().filter(|scorer| scorer.info.lends_device()) {
        // The teacher speaks before this process takes its device.
        scorer.keep(&sequences, &mut std::io::sink())?;
        let (runtime, teacher) = (scorer.runtime.clone(), scorer.teacher.clone());
        let holder = format!("student-trainer {} (eval)", std::process::id());
        let mut device = DeviceLease::new(runtime.clone(), teacher, holder, RECONNECT_ATTEMPTS);
        if !runtime.block_on(device.acquire(shutdown))? {
            return Ok(EvalReport::default());
        }
        lease = Some(device);
    }
    let report = measure(
        config,
        (&files, adapter.as_deref()),
        &place,
        &loss,
        scorer.as_ref(),
        &sequences,
        shutdown,
    )
    .map_err(|error| place.explained(error));
    if let Some(lease) = &mut lease {
        if report.is_ok() {
            hand_back(&place.device)?;
        }
        lease.release();
    }
    let mut report = report?;
    report.skipped = skipped;
    Ok(report)
}

/// Loads the student and measures it, and before it its base, where both are compared.
fn measure(
    config: &EvalConfig,
    (files, adapter): (&StudentFiles, Option<&Path>),
    place: &Place,
    loss: &LossConfig,
    scorer: Option<&Scorer>,
    sequences: &[Sequence],
    shutdown: &Shutdown,
) -> Result<EvalReport> {
    let (decoder, switch) = load(files, adapter, config.quantize, place)?;
    let geometry = geometry(&decoder, files)?;
    let measure = Measure {
        decoder: &decoder,
        geometry: &geometry,
        loss,
        scorer,
    };
    let side = Side {
        config,
        files,
        measure,
        sequences,
        shutdown,
    };
    let Some(switch) = switch.filter(|_| config.compare) else {
        let (report, answers) = side.evaluate(config.plans_out.as_deref())?;
        side.write(answers)?;
        return Ok(report);
    };
    side.compare(&switch)
}

/// A student with its adapter on or off, and all that is measured of it.
struct Side<'a> {
    config: &'a EvalConfig,
    files: &'a StudentFiles,
    measure: Measure<'a>,
    sequences: &'a [Sequence],
    shutdown: &'a Shutdown,
}

impl Side<'_> {
    fn compare(&self, switch: &Switch) -> Result<EvalReport> {
        switch.put(false)?;
        tracing::info!("the base alone:");
        let (base, base_answers) = self.evaluate(None)?;
        switch.put(true)?;
        tracing::info!("with the adapter:");
        let (mut report, mut answers) = self.evaluate(self.config.plans_out.as_deref())?;
        if let (Some(answers), Some(base)) = (&mut answers, base_answers) {
            answers.compare(base);
        }
        self.write(answers)?;
        report.complete &= base.complete;
        report.base = Some(Box::new(base));
        Ok(report)
    }

    fn evaluate(&self, plans_out: Option<&Path>) -> Result<(EvalReport, Option<Answers>)> {
        let mut report = EvalReport::default();
        report.complete = self.read(plans_out, &mut report)?;
        if !self.config.wants_answers() {
            return Ok((report, None));
        }
        let (decoder, decoding) = (self.measure.decoder, self.config.decoding());
        let answerer = Answerer::new(decoder, self.files, decoding, self.shutdown)?;
        let mut progress = progress(self.sequences.len(), "answer");
        let each = &mut |asked, correct| {
            progress.advance(|| format!("{:.1} % exact", 100.0 * correct as f64 / asked as f64));
        };
        let answers = exact_answers(&answerer, self.sequences, &mut report, each)?;
        progress.finish();
        report.complete &= answers.complete;
        Ok((report, Some(answers)))
    }

    fn write(&self, answers: Option<Answers>) -> Result<()> {
        match (&self.config.answers_out, answers) {
            (Some(path), Some(answers)) => write_answers(path, &answers),
            _ => Ok(()),
        }
    }

    /// Reads all sequences, and writes the plans of the first ones where they were asked for. False after a shutdown in between.
    fn read(&self, plans_out: Option<&Path>, report: &mut EvalReport) -> Result<bool> {
        let mut plans = Vec::new();
        let mut progress = progress(self.sequences.len(), "sequence");
        let start = Instant::now();
        let each = &mut |measured: Measured<'_>, report: &EvalReport| -> Result<()> {
            let wanted = plans_out.is_some() && plans.len() < self.config.plans;
            if let Some(rows) = measured.rows.filter(|_| wanted) {
                let (sequence, hidden) = (measured.sequence, measured.hidden);
                plans.push(plan(sequence, hidden, rows, self.measure.geometry)?);
            }
            progress.advance(|| format!("CE {:.4}", report.ce()));
            Ok(())
        };
        let complete = self
            .measure
            .all(self.sequences, report, self.shutdown, each)?;
        progress.finish();
        report.seconds = start.elapsed().as_secs_f64();
        if let Some(path) = plans_out {
            let whole = complete || plans.len() == self.config.plans;
            write_plans(path, &plans, whole)?;
        }
        Ok(complete)
    }
}

/// The windows of `data`, `max_sequences` at most, with what was left out of all of it.
pub(crate) fn sequences(
    data: &[PathBuf],
    files: &StudentFiles,
    windowing: &Windowing,
    max_sequences: Option<usize>,
) -> Result<(Vec<Sequence>, Skipped)> {
    let corpus = read_corpus(data, &files.tokenizer, windowing, &mut |_| {})?;
    if corpus.skipped.rows > 0 {
        tracing::warn!("{}", corpus.skipped);
    }
    let mut sequences = corpus.sequences;
    sequences.truncate(max_sequences.unwrap_or(usize::MAX));
    Ok((sequences, corpus.skipped))
}

/// The head's rows that are in the softmax: one for every id that the tokenizer knows.
pub(crate) fn geometry(decoder: &Decoder, files: &StudentFiles) -> Result<HeadGeometry> {
    let rows = files.tokenizer.size() as usize;
    Ok(HeadGeometry::new(
        &decoder.head()?.narrow(0, 0, rows)?,
        None,
    )?)
}

/// CE always, KL where there is a teacher, no transport.
pub(crate) fn loss_config(has_teacher: bool, kl_temperature: f64, chunk_rows: usize) -> LossConfig {
    LossConfig {
        ce_weight: 1.0,
        kl_weight: if has_teacher { 1.0 } else { 0.0 },
        kl_temperature,
        ot_weight: 0.0,
        chunk_rows,
        ..LossConfig::default()
    }
}

/// Writes a JSON list of plans; where it is not `whole`, its last entry says so, as in answers.
fn write_plans(path: &Path, plans: &[plans::Plan], whole: bool) -> Result<()> {
    let plans = plans.iter().map(serde_json::to_value);
    let mark = (!whole).then(|| Ok(incomplete()));
    let plans: serde_json::Result<Vec<serde_json::Value>> = plans.chain(mark).collect();
    let json = plans.and_then(|plans| serde_json::to_vec(&plans));
    write_atomically(path, &json.map_err(|e| Error::file(path, e))?)
}

/// Answers every prompt and counts the exact ones into the report; `each` hears of the counts so far.
///
/// # Errors
/// A tensor error.
pub(crate) fn exact_answers(
    answerer: &Answerer<'_>,
    sequences: &[Sequence],
    report: &mut EvalReport,
    each: &mut dyn FnMut(usize, usize),
) -> Result<Answers> {
    let start = Instant::now();
    let (mut asked, mut correct) = (0_usize, 0_usize);
    let answers = answerer.answers(sequences, &mut |answer| {
        asked += 1;
        correct += usize::from(answer.correct);
        each(asked, correct);
    })?;
    report.answered = Some((asked, correct));
    report.answer_seconds = start.elapsed().as_secs_f64();
    Ok(answers)
}

fn connect(
    config: &EvalConfig,
    address: &str,
    runtime: &tokio::runtime::Runtime,
    shutdown: &Shutdown,
) -> Result<Scorer> {
    let options = ConnectOptions {
        address: address.to_owned(),
        ca_cert: config.ca_cert.clone(),
        token_file: config.token_file.clone(),
        timeout: Duration::from_secs(config.connect_timeout_seconds),
    };
    let (teacher, info) = runtime.block_on(async {
        let teacher = Teacher::connect(&options, shutdown).await?;
        let info = teacher.info().await?;
        Ok::<_, Error>((teacher, info))
    })?;
    Ok(Scorer {
        runtime: runtime.handle().clone(),
        teacher,
        info,
        attempts: RECONNECT_ATTEMPTS,
        shutdown: shutdown.clone(),
        kept: HashMap::new(),
    })
}
