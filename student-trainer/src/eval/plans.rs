//! Provides the transport plan of one sequence, for people to look at.

use candle_core::Tensor;
use distill_proto::Rows;
use distill_text::Sequence;

use crate::{
    Result,
    loss::{AlignConfig, HeadGeometry, LossConfig, Targets, transport_plan},
};

/// A transport plan with what its rows and columns stand for.
#[derive(Debug, serde::Serialize)]
pub(super) struct Plan {
    /// The targets, in order: both sides have the same here.
    tokens: Vec<String>,
    /// `[N, N]`, rows of the student, columns of the teacher.
    plan: Vec<Vec<f32>>,
}

/// The `kl` cost's plan of one sequence, without the position prior, so that it shows what the distributions say.
pub(super) fn plan(
    sequence: &Sequence,
    hidden: &Tensor,
    rows: &Rows,
    geometry: &HeadGeometry,
) -> Result<Plan> {
    let config = LossConfig {
        kl_weight: 0.0,
        align: AlignConfig {
            position: Some(0.0),
            ..AlignConfig::default()
        },
        ..LossConfig::default()
    };
    let plan = transport_plan(hidden, &Targets::from_rows(rows), geometry, &config)?;
    let targets = (0..sequence.token_ids.len()).filter(|&t| sequence.target_mask[t]);
    let text = |t: usize| {
        let (start, end) = sequence.byte_offsets[t];
        let text = sequence.text.get(start as usize..end as usize);
        text.unwrap_or_default().to_owned()
    };
    Ok(Plan {
        tokens: targets.map(text).collect(),
        plan: plan.chunks(rows.rows).map(<[f32]>::to_vec).collect(),
    })
}
