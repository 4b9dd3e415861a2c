//! Provides what a run is about, agreed with the teacher before any weight is read.

use std::time::Duration;

use distill_proto::{Fingerprint, StateKind};

use crate::{
    Error, Result,
    align::check_loss,
    checkpoint::Identity,
    client::{self, ConnectOptions, ServerInfo, Teacher, Vocabularies},
    config::{TrainConfig, Tune},
    loss::{LossConfig, Projection},
    shutdown::Shutdown,
    student::StudentFiles,
};

/// How long a teacher is looked for that has to be there.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a run is about, agreed with the teacher.
pub(super) struct Agreement {
    pub teacher: Teacher,
    pub info: ServerInfo,
    pub vocabularies: Vocabularies,
    pub total_steps: usize,
    /// The loss with every part that has a weight at some step.
    pub most: LossConfig,
}

/// Reaches the teacher.
pub(super) async fn connect(config: &TrainConfig, shutdown: &Shutdown) -> Result<Teacher> {
    let timeout = Duration::from_secs(config.connect_timeout_seconds);
    Teacher::connect(&way_in(config, timeout), shutdown).await
}

/// Looks for some seconds whether a teacher is there, before runs are begun that would each wait for it for long.
///
/// # Errors
/// As [`Teacher::look`].
pub fn look_for_teacher(config: &TrainConfig, shutdown: &Shutdown) -> Result<()> {
    let options = way_in(config, PATIENCE);
    client::runtime()?.block_on(Teacher::look(&options, shutdown))
}

fn way_in(config: &TrainConfig, timeout: Duration) -> ConnectOptions {
    ConnectOptions {
        address: config.teacher.clone(),
        ca_cert: config.ca_cert.clone(),
        token_file: config.token_file.clone(),
        timeout,
    }
}

/// Checks everything that can be checked before any weight is read.
pub(super) async fn agree(
    config: &TrainConfig,
    files: &StudentFiles,
    teacher: Teacher,
) -> Result<Agreement> {
    let info = teacher.info().await?;
    let vocabularies = info.check_student(&files.tokenizer, files.config.vocab_size)?;
    let total_steps = total_steps(config, info.sequence_count)?;
    let most = config.loss.at_its_most(total_steps);
    check_loss(vocabularies, &most)?;
    most.check_teacher(
        info.estimator,
        &info.temperatures,
        info.state.map(|(kind, _)| kind),
    )?;
    if config.tune == Tune::Full {
        most.check_trained_head()?;
    }
    if most.needs_states() && most.align.projection == Projection::Fitted && info.lends_device() {
        return Err(Error::Config(
            "align.projection: fitted: the first sequences are read before the first step, while a teacher in swap mode has no \
             device to compute them on; serve a cache, or use --align-projection random"
                .into(),
        ));
    }
    introduce(&info);
    check_shared(&info, &most)?;
    Ok(Agreement {
        teacher,
        info,
        vocabularies,
        total_steps,
        most,
    })
}

/// Tokens that the student's side of a pair may have.
pub(super) fn pair_tokens_max(config: &TrainConfig, info: &ServerInfo) -> usize {
    config.student_seq_len.unwrap_or(info.seq_len as usize)
}

/// Refuses a corpus of pairs in which the teacher has no part, and says where it has less than one would think.
fn check_shared(info: &ServerInfo, loss: &LossConfig) -> Result<()> {
    let (all, apart) = (info.sequence_count, info.paired_without_shared);
    if info.paired_sequences > 0 {
        tracing::info!(
            "pairs: {} of {all} sequences give the student a text of its own",
            info.paired_sequences
        );
    }
    if apart == 0 || loss.divergence_weight() == 0.0 {
        return Ok(());
    }
    if apart == all && loss.ot_weight == 0.0 {
        return Err(Error::Config(format!(
            "kl_weight: none of the corpus' {all} pairs shares a byte between its sides, so KL has nothing to compare and \
             the teacher would teach nothing; set ot_weight, as transport needs nothing shared, or give `shared` ranges in \
             the corpus"
        )));
    }
    tracing::warn!(
        "KL is taken in {} of {all} sequences: the sides of the other {apart} share nothing{}",
        all - apart,
        if loss.ot_weight > 0.0 {
            ", and transport alone joins them"
        } else {
            ", so the teacher has no part in them (ot_weight is 0)"
        }
    );
    Ok(())
}

fn introduce(info: &ServerInfo) {
    tracing::info!(
        "teacher: {} ({}), {} sequences, {} targets of {} tokens, top {} of {} ids",
        info.model_name,
        info.server_version,
        info.sequence_count,
        info.target_count,
        info.token_count,
        info.top_k,
        info.vocab_size
    );
    match info.state {
        Some((StateKind::Sketch, rank)) => tracing::info!(
            "state: a sketch of rank {rank}, off by {:.1} % of the centred logits on held-out text",
            100.0 * info.state_error
        ),
        Some((StateKind::Hidden, size)) => tracing::info!(
            "state: the teacher's hidden states after layers {:?} ({size} numbers a row)",
            info.state_layers
        ),
        _ => {}
    }
}

/// `steps`, or as many as `epochs` passes take; a step never reaches across the end of a pass.
fn total_steps(config: &TrainConfig, sequence_count: u64) -> Result<usize> {
    if sequence_count == 0 {
        return Err(Error::Stream(
            "the teacher's corpus has no sequence with a target".into(),
        ));
    }
    let sequences_a_step = (config.batch_size * config.grad_accumulation) as u64;
    let steps_a_pass = sequence_count.div_ceil(sequences_a_step) as usize;
    Ok(config.steps.unwrap_or(config.epochs * steps_a_pass))
}

/// The fingerprints that a checkpoint names. Reads the student's weights once.
pub(super) fn identity(info: &ServerInfo, files: &StudentFiles) -> Result<Identity> {
    let student = files.weights()?.fingerprint()?;
    Ok(Identity {
        teacher: info.model.to_hex(),
        tokenizer: info.tokenizer.to_hex(),
        corpus: info.corpus.to_hex(),
        plan: info.plan.to_hex(),
        student: Fingerprint(student).to_hex(),
        student_tokenizer: files.tokenizer.fingerprint().to_hex(),
    })
}
