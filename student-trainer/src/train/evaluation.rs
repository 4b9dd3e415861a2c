//! Provides the evaluation of the student on held-out text while it is trained.

use std::{collections::HashMap, fs::File, io::BufReader, time::Instant};

use distill_model::Decoder;
use distill_proto::v1::ScoreTokensResponse;
use distill_text::{Sequence, Windowing, limits::SEQ_LEN_MIN};
use tokio::runtime::Handle;

use super::agreement::Agreement;
use crate::{
    Error, Result,
    client::Vocabularies,
    config::{BestMetric, TrainConfig},
    eval::{self, EvalReport, Measure, Scorer, answers::Answerer, write_answer},
    loss::LossConfig,
    run::EvalMetrics,
    shutdown::Shutdown,
    student::StudentFiles,
};

/// Held-out sequences, and what is measured on them.
pub(super) struct Evaluation<'a> {
    config: &'a TrainConfig,
    files: &'a StudentFiles,
    sequences: Vec<Sequence>,
    loss: LossConfig,
    scorer: Option<Scorer>,
}

impl<'a> Evaluation<'a> {
    /// Reads the held-out text; none where the run has none. `answers` has what the teacher says of it, or is empty and takes that
    /// down for the processes of the run that come after this one: while they hold the device, the teacher is not there to ask.
    ///
    /// # Errors
    /// Files that cannot be read or hold nothing, or a best metric that this teacher cannot give.
    pub fn open(
        config: &'a TrainConfig,
        files: &'a StudentFiles,
        agreement: &Agreement,
        answers: Option<File>,
        runtime: Handle,
        shutdown: &Shutdown,
    ) -> Result<Option<Self>> {
        if config.eval_data.is_empty() {
            return Ok(None);
        }
        let from_teacher = (agreement.info.seq_len as usize).max(SEQ_LEN_MIN);
        let seq_len = config.eval_seq_len.unwrap_or(from_teacher);
        if config.eval_seq_len.is_none() {
            tracing::info!(
                "evaluation: held-out text is cut to {seq_len} tokens, the longest sequence of the teacher's corpus; --eval-seq-len takes another length"
            );
        }
        let limit = config.eval_max_sequences;
        let windowing = Windowing::new(seq_len).strict(config.strict).of_student();
        let (sequences, _) = eval::sequences(&config.eval_data, files, &windowing, limit)?;
        if sequences.is_empty() {
            return Err(Error::Config(
                "eval_data: there is no sequence with a target in these files".into(),
            ));
        }
        if config.eval_exact_match {
            eval::check_prompts(&sequences, &files.tokenizer)?;
        }
        let mut evaluation = Self {
            loss: eval::loss_config(true, config.loss.kl_temperature, config.loss.chunk_rows),
            scorer: scorer(config, agreement, runtime, shutdown),
            config,
            files,
            sequences,
        };
        let is_known = |file: &File| file.metadata().is_ok_and(|file| file.len() > 0);
        match answers {
            Some(file) if is_known(&file) => evaluation.recall(file)?,
            answers => {
                evaluation.ask_once()?;
                evaluation.check_best_metric()?;
                if let Some(file) = answers {
                    evaluation.ask_everything(file)?;
                }
            }
        }
        tracing::info!(
            "evaluation: {} sequences{}, {}",
            evaluation.sequences.len(),
            match config.eval_steps {
                0 => String::new(),
                steps => format!(" every {steps} steps"),
            },
            match evaluation.scorer {
                Some(_) => "with the distance to the teacher",
                None => "without the teacher",
            }
        );
        Ok(Some(evaluation))
    }

    /// Learns now, not after hours, whether the teacher says anything about other sequences than its own.
    fn ask_once(&mut self) -> Result<()> {
        let Some(scorer) = &self.scorer else {
            return Ok(());
        };
        let info = &scorer.info;
        let state = info.state.map(|(kind, _)| kind);
        let fits = self
            .loss
            .check_teacher(info.estimator, &info.temperatures, state);
        let refused = match fits {
            Ok(()) => scorer
                .score(&self.sequences[..1])
                .err()
                .map(|e| e.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = refused {
            tracing::warn!("evaluations go without KL and agreement with the teacher: {reason}");
            self.scorer = None;
        }
        if self.scorer.is_none() {
            self.loss.kl_weight = 0.0;
        }
        Ok(())
    }

    /// The teacher says the same at every evaluation.
    fn ask_everything(&mut self, mut file: File) -> Result<()> {
        match &mut self.scorer {
            Some(scorer) => scorer.keep(&self.sequences, &mut file),
            None => write_answer(&ScoreTokensResponse::default(), &mut file),
        }
    }

    /// Takes what [`Self::ask_everything`] learned.
    fn recall(&mut self, file: File) -> Result<()> {
        if let Some(scorer) = &mut self.scorer
            && !scorer.recall(&self.sequences, &mut BufReader::new(file))?
        {
            self.scorer = None;
            self.loss.kl_weight = 0.0;
        }
        Ok(())
    }

    fn check_best_metric(&self) -> Result<()> {
        let of_teacher = [BestMetric::Kl, BestMetric::Top1Agreement];
        if self.scorer.is_none() && of_teacher.contains(&self.config.best_metric) {
            return Err(Error::Config(
                "best_metric: this teacher does not score held-out text for this student; use ce or exact_match".into(),
            ));
        }
        Ok(())
    }

    /// The held-out text.
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// Measures the student as it is now. `None` after a shutdown in between.
    ///
    /// # Errors
    /// A tensor error, or a teacher that stays away.
    pub fn run(&self, decoder: &Decoder, shutdown: &Shutdown) -> Result<Option<EvalReport>> {
        let start = Instant::now();
        let mut report = EvalReport::default();
        let geometry = eval::geometry(decoder, self.files)?;
        let measure = Measure {
            decoder,
            geometry: &geometry,
            loss: &self.loss,
            scorer: self.scorer.as_ref(),
        };
        if !measure.all(&self.sequences, &mut report, shutdown, &mut |_, _| Ok(()))? {
            return Ok(None);
        }
        if self.config.eval_exact_match {
            let decoding = self.config.eval_decoding();
            let answerer = Answerer::new(decoder, self.files, decoding, shutdown)?;
            let each = &mut |_, _| {};
            if !eval::exact_answers(&answerer, &self.sequences, &mut report, each)?.complete {
                return Ok(None);
            }
        }
        report.complete = true;
        report.seconds = start.elapsed().as_secs_f64();
        Ok(Some(report))
    }
}

fn scorer(
    config: &TrainConfig,
    agreement: &Agreement,
    runtime: Handle,
    shutdown: &Shutdown,
) -> Option<Scorer> {
    let same = agreement.vocabularies == Vocabularies::Same;
    (config.eval_kl && same).then(|| Scorer {
        runtime,
        teacher: agreement.teacher.clone(),
        info: agreement.info.clone(),
        attempts: config.reconnect_attempts,
        shutdown: shutdown.clone(),
        kept: HashMap::new(),
    })
}

/// One line for people.
pub(super) fn say(metrics: &EvalMetrics) -> String {
    let mut text = format!(
        "held-out at step {}: CE {:.4}, perplexity {:.3}",
        metrics.step, metrics.ce, metrics.perplexity
    );
    if let Some(kl) = metrics.kl {
        text += &format!(", KL {kl:.4}");
    }
    for (name, share) in [
        ("top-1", metrics.top1_agreement),
        ("top-5", metrics.top5_agreement),
        ("exact", metrics.exact_match),
    ] {
        if let Some(share) = share {
            text += &format!(", {name} {:.1} %", 100.0 * share);
        }
    }
    if metrics.best {
        text += " (best)";
    }
    text
}
