//! Provides a look at what a finished run aligns: the plans of some pairs whose records say what belongs together, and how much
//! of them lies there.

use candle_core::Tensor;
use distill_text::Vocabulary;
use serde::{Deserialize, Serialize};

use super::{Example, Setting, states::hidden_states, trainer::Trainer};
use crate::{
    Result, files,
    loss::{LayerStates, LossConfig, Student, transport_plan},
    run::PLANS_FILE,
};

/// Sequences among which those with links are looked for, from the first of the corpus on.
const READ_MAX: usize = 256;
/// Sequences with links that are looked at.
const SEQUENCES_MAX: usize = 32;
/// Plans that are kept whole.
const MAPS_MAX: usize = 3;
/// Positions of a side in a plan that is kept.
const MAP_POSITIONS_MAX: usize = 128;

/// What the plans of a run have to do with the links of its records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plans {
    /// Sequences with links.
    pub sequences: usize,
    /// The student's positions with links in them.
    pub rows: usize,
    /// Share of those rows' mass that lies on linked cells, mean over rows.
    pub on_links: f64,
    /// The same of a plan that spreads every row evenly.
    pub by_chance: f64,
    /// Some of the plans.
    pub maps: Vec<PlanMap>,
}

/// One plan, with what its rows and columns stand for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlanMap {
    /// The student's targets.
    pub student: Vec<String>,
    /// The teacher's tokens that its rows speak of.
    pub teacher: Vec<String>,
    /// Rows of the student, columns of the teacher.
    pub plan: Vec<Vec<f32>>,
    /// Cells that the record joins.
    pub links: Vec<(usize, usize)>,
}

/// Writes the plans of the student as it is, where transport has a weight and the corpus has pairs; a failure is told, and
/// ends no run.
pub(super) fn write_or_warn(setting: &Setting<'_>, trainer: &Trainer<'_>) {
    let info = &setting.agreement.info;
    // A teacher in swap mode is not there while the student is.
    if setting.agreement.most.ot_weight == 0.0 || info.paired_sequences == 0 || info.lends_device()
    {
        return;
    }
    let written = find(setting, trainer).and_then(|plans| match plans {
        Some(plans) => files::write_json(&setting.run_directory.join(PLANS_FILE), &plans),
        None => Ok(()),
    });
    if let Err(error) = written {
        tracing::warn!("{PLANS_FILE}: the plans of this run are not known: {error}");
    }
}

/// `None` where no record has links, or after a shutdown.
fn find(setting: &Setting<'_>, trainer: &Trainer<'_>) -> Result<Option<Plans>> {
    let total = trainer.keeper.state.total_steps;
    let loss = LossConfig {
        // The plan is what is asked for, whatever its weight has come to.
        ot_weight: 1.0,
        ..setting.config.loss.at(total.saturating_sub(1), total)
    };
    let mut frames = trainer.frames.another_from_the_start();
    let Some(found) = frames.look(READ_MAX)? else {
        return Ok(None);
    };
    let vocabulary = setting.files.tokenizer.vocabulary();
    let mut plans = Plans::default();
    for received in found {
        let frame = &received.frame;
        let Some(example) = trainer.reader.read(frame)? else {
            continue;
        };
        let links = links(&example);
        if links.is_empty() {
            continue;
        }
        if plans.sequences == SEQUENCES_MAX {
            break;
        }
        let plan = trainer.objective.plan(&example, &loss)?;
        plans.add(&plan, example.targets.rows(), &links);
        let is_small =
            example.target_positions.len().max(example.targets.rows()) <= MAP_POSITIONS_MAX;
        if is_small && plans.maps.len() < MAPS_MAX {
            let piece = |&t: &usize| {
                let (start, end) = frame.byte_offsets.get(t).copied().unwrap_or_default();
                let piece = frame.text.get(start as usize..end as usize);
                piece.unwrap_or_default().to_owned()
            };
            plans.maps.push(PlanMap {
                student: tokens(&example, &vocabulary),
                teacher: example.row_positions.iter().map(piece).collect(),
                plan: plan
                    .chunks(example.targets.rows())
                    .map(<[f32]>::to_vec)
                    .collect(),
                links,
            });
        }
    }
    if plans.rows == 0 {
        return Ok(None);
    }
    plans.on_links /= plans.rows as f64;
    plans.by_chance /= plans.rows as f64;
    tracing::info!(
        "plans: {:.1} % of the mass of {} positions with links lies on them ({:.1} % by chance), in {} sequences",
        100.0 * plans.on_links,
        plans.rows,
        100.0 * plans.by_chance,
        plans.sequences
    );
    Ok(Some(plans))
}

/// Cells that the record joins, by row.
fn links(example: &Example) -> Vec<(usize, usize)> {
    let alignment = example.targets.alignment.as_ref();
    let links = alignment.map_or(&[][..], |alignment| alignment.links.as_slice());
    links
        .iter()
        .map(|&(i, j)| (i as usize, j as usize))
        .collect()
}

fn tokens(example: &Example, vocabulary: &Vocabulary) -> Vec<String> {
    let text = |id: u32| {
        let token = vocabulary.get(id);
        token.map_or(String::new(), |token| {
            String::from_utf8_lossy(&token.bytes).into_owned()
        })
    };
    example.labels().into_iter().map(text).collect()
}

impl Plans {
    /// Adds the sums over the rows of a sequence that have links, which are in the order of their rows.
    fn add(&mut self, plan: &[f32], m: usize, links: &[(usize, usize)]) {
        self.sequences += 1;
        for of_row in links.chunk_by(|a, b| a.0 == b.0) {
            let Some(row) = of_row.first().and_then(|&(i, _)| plan.chunks(m).nth(i)) else {
                continue;
            };
            let mass: f64 = row.iter().map(|&t| f64::from(t)).sum();
            let linked = of_row.iter().filter_map(|&(_, j)| row.get(j));
            let linked: f64 = linked.map(|&t| f64::from(t)).sum();
            self.rows += 1;
            // A plan of a part of the mass may leave a row out.
            self.on_links += if mass > 0.0 { linked / mass } else { 0.0 };
            self.by_chance += of_row.len() as f64 / m as f64;
        }
    }
}

impl super::Objective<'_> {
    /// The plan `[N, M]` that the loss makes for a sequence, row-major.
    ///
    /// # Errors
    /// As [`forward_backward`](Self::forward_backward).
    pub(super) fn plan(&self, example: &Example, loss: &LossConfig) -> Result<Vec<f32>> {
        let projections = if loss.needs_states() {
            self.projections
        } else {
            &[]
        };
        let (last, of_layers) = hidden_states(self.decoder, projections, example)?;
        let outputs = example.target_positions.iter().map(|&t| t as u32 - 1);
        let outputs = Tensor::new(outputs.collect::<Vec<u32>>(), self.decoder.device())?;
        let at_outputs = |states: &Tensor| Ok(states.index_select(&outputs, 0)?);
        let hidden = at_outputs(&last)?;
        let of_layers: Vec<Tensor> = of_layers.iter().map(at_outputs).collect::<Result<_>>()?;
        let both = of_layers.iter().zip(projections);
        let states: Vec<LayerStates<'_>> = both
            .map(|(states, projection)| LayerStates { states, projection })
            .collect();
        let student = Student {
            hidden: &hidden,
            states: &states,
        };
        let geometry = self.geometry()?;
        let plan = transport_plan(student, &example.targets, &geometry, loss)?;
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mass_on_links_is_counted_by_rows_that_have_any() {
        let mut plans = Plans::default();
        // Row 1 has no link, row 2 no mass.
        let plan = [0.1, 0.3, 0.0, 0.0, 0.2, 0.2, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0];
        plans.add(&plan, 4, &[(0, 1), (0, 2), (2, 3)]);
        assert_eq!((plans.sequences, plans.rows), (1, 2));
        assert!((plans.on_links - 0.75).abs() < 1e-6);
        assert!((plans.by_chance - (0.5 + 0.25)).abs() < 1e-12);
    }
}
