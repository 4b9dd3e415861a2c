//! Provides the projection of hidden states, fitted before the first step on what both sides share.

use candle_core::{DType, Device, Tensor};
use distill_model::Decoder;
use serde::Serialize;

use super::source::FrameSource;
use crate::{
    Error, Result,
    align::FrameReader,
    files,
    loss::{HiddenProjection, ProjectionFit, StateLayer},
    run::RunDirectory,
    train::Example,
};

/// Sequences that are looked at, at most.
const SEQUENCES_MAX: usize = 256;
/// What is known of the fit, in the run's directory.
const PROJECTION_REPORT: &str = "projection.json";

/// How well P takes the teacher's states to the student's.
#[derive(Serialize)]
struct Report {
    /// Share of the variance of held-out rows that is explained.
    r_squared: f64,
    rows: usize,
    held_out: usize,
    /// Strength of the ridge, relative to the mean of the diagonal.
    lambda: f64,
    sequences: usize,
}

/// Fits P on the first sequences, which stay to be trained on. False after a shutdown.
///
/// # Errors
/// Too few positions that both sides share.
pub(super) fn fit(
    projection: &HiddenProjection,
    layer: StateLayer,
    decoder: &Decoder,
    reader: &FrameReader<'_>,
    frames: &mut FrameSource,
    run_directory: &RunDirectory,
) -> Result<bool> {
    let Some(found) = frames.look(SEQUENCES_MAX)? else {
        return Ok(false);
    };
    let (teacher_size, student_size) = projection.sizes();
    let mut fit = ProjectionFit::new(teacher_size, student_size)?;
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
        let x = states(decoder, layer, &example)?.index_select(&indices(&outputs, decoder)?, 0)?;
        let y = projection.teacher_states(&example.targets, &x)?;
        fit.add(&y.index_select(&indices(&rows, decoder)?, 0)?, &x)?;
    }
    let fitted = fit.solve().map_err(|error| {
        Error::Config(format!(
            "align.projection: fitted: {error}; a projection that is trained along needs nothing shared: --align-projection random"
        ))
    })?;
    projection.set(&fitted.projection)?;
    tracing::info!(
        "hidden states: P from {teacher_size} to {student_size} numbers, fitted on {} positions of {sequences} sequences; it explains \
         {:.1} % of the variance of {} held-out ones (R^2 {:.4})",
        fitted.rows,
        100.0 * fitted.r_squared.max(0.0),
        fitted.held_out,
        fitted.r_squared
    );
    let report = Report {
        r_squared: fitted.r_squared,
        rows: fitted.rows,
        held_out: fitted.held_out,
        lambda: fitted.lambda,
        sequences,
    };
    files::write_json(&run_directory.join(PROJECTION_REPORT), &report)?;
    Ok(true)
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

/// The student's states `[T, d]` of a layer, f32.
fn states(decoder: &Decoder, layer: StateLayer, example: &Example) -> Result<Tensor> {
    let ids = Tensor::new(example.token_ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
    let states = match layer.student_layer {
        None => decoder.hidden_states(&ids)?,
        Some(layer) => {
            let (_, mut taken) = decoder.hidden_states_and_layers(&ids, &[layer])?;
            taken.remove(0)
        }
    };
    Ok(states.squeeze(0)?.to_dtype(DType::F32)?)
}
