//! Provides the projections of hidden states, fitted before the first step on what both sides share.

use candle_core::Tensor;
use distill_model::Decoder;
use serde::Serialize;

use super::{source::FrameSource, states::hidden_states};
use crate::{
    Error, Result,
    align::FrameReader,
    files,
    loss::{FittedProjection, HiddenProjection, ProjectionFit},
    run::{PROJECTION_REPORT, RunDirectory},
    train::Example,
};

/// Sequences that are looked at, at most.
const SEQUENCES_MAX: usize = 256;

/// What the fits were made of, and how well each P takes the teacher's states to the student's.
#[derive(Serialize)]
pub(super) struct Report {
    sequences: usize,
    /// Rows that were fitted, and those held out.
    rows: usize,
    held_out: usize,
    pairs: Vec<PairReport>,
}

/// Of one pair of layers.
#[derive(Serialize)]
struct PairReport {
    /// TEACHER_STATE:STUDENT_LAYER.
    layers: String,
    /// Share of the variance of held-out rows that is explained.
    r_squared: f64,
    /// Strength of the ridge, relative to the mean of the diagonal.
    lambda: f64,
}

/// Fits every P on the first sequences, which stay to be trained on. None after a shutdown.
///
/// # Errors
/// Too few positions that both sides share.
pub(super) fn fit(
    projections: &[HiddenProjection],
    decoder: &Decoder,
    reader: &FrameReader<'_>,
    frames: &mut FrameSource,
) -> Result<Option<Report>> {
    let Some(found) = frames.look(SEQUENCES_MAX)? else {
        return Ok(None);
    };
    let begin = |projection: &HiddenProjection| {
        let (teacher_size, student_size) = projection.sizes();
        Ok(ProjectionFit::new(teacher_size, student_size)?)
    };
    let mut fits: Vec<ProjectionFit> = projections.iter().map(begin).collect::<Result<_>>()?;
    let mut sequences = 0;
    for received in found {
        let Some(example) = reader.read(&received.frame)? else {
            continue;
        };
        let (outputs, rows) = shared(&example);
        if outputs.is_empty() {
            continue;
        }
        sequences += 1;
        let (outputs, rows) = (indices(&outputs, decoder)?, indices(&rows, decoder)?);
        let (_, states) = hidden_states(decoder, projections, &example)?;
        for ((projection, fit), x) in projections.iter().zip(&mut fits).zip(states) {
            let x = x.index_select(&outputs, 0)?;
            let y = projection.teacher_states(&example.targets, &x)?;
            fit.add(&y.index_select(&rows, 0)?, &x)?;
        }
    }
    let mut report = Report {
        sequences,
        rows: 0,
        held_out: 0,
        pairs: Vec::new(),
    };
    for (projection, fit) in projections.iter().zip(fits) {
        let fitted = fit.solve().map_err(|error| {
            Error::Config(format!(
                "align.projection: fitted: {error}; a projection that is trained along needs nothing shared: --align-projection random"
            ))
        })?;
        projection.set(&fitted)?;
        report.add(projection, &fitted);
    }
    Ok(Some(report))
}

impl Report {
    /// Leaves it in the directory of the run.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, run_directory: &RunDirectory) -> Result<()> {
        files::write_json(&run_directory.join(PROJECTION_REPORT), self)
    }

    fn add(&mut self, projection: &HiddenProjection, fitted: &FittedProjection) {
        let (teacher_size, student_size) = projection.sizes();
        let layers = projection.layer().ends();
        tracing::info!(
            "hidden states {layers}: P from {teacher_size} to {student_size} numbers, fitted on {} positions of {} sequences; it \
             explains {:.1} % of the variance of {} held-out ones (R^2 {:.4})",
            fitted.rows,
            self.sequences,
            100.0 * fitted.r_squared.max(0.0),
            fitted.held_out,
            fitted.r_squared
        );
        (self.rows, self.held_out) = (fitted.rows, fitted.held_out);
        self.pairs.push(PairReport {
            layers,
            r_squared: fitted.r_squared,
            lambda: fitted.lambda,
        });
    }
}

/// Outputs that predict the targets with a teacher's row beside them, and these rows.
fn shared(example: &Example) -> (Vec<u32>, Vec<u32>) {
    let targets = example.target_positions.iter().enumerate();
    let both = targets.filter_map(|(i, &t)| Some((t as u32 - 1, example.targets.pair(i)? as u32)));
    both.unzip()
}

fn indices(of: &[u32], decoder: &Decoder) -> Result<Tensor> {
    Ok(Tensor::new(of, decoder.device())?)
}
