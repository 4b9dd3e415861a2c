//! Provides the measuring of held-out sequences: cross-entropy, KL to the teacher, and how often both agree.

use candle_core::{DType, Device, Tensor};
use distill_model::Decoder;
use distill_proto::Rows;
use distill_text::Sequence;

use super::{
    EvalReport,
    scorer::{Scorer, sequences_a_call},
};
use crate::{
    Result,
    loss::{HeadGeometry, LossConfig, Targets, head_values},
    shutdown::Shutdown,
};

/// The teacher's token counts as nearly preferred among this many of the student's.
const NEAR: f32 = 5.0;

/// A student, and what is measured of it.
pub(crate) struct Measure<'a> {
    pub decoder: &'a Decoder,
    pub geometry: &'a HeadGeometry,
    pub loss: &'a LossConfig,
    /// Where there is a teacher to compare with.
    pub scorer: Option<&'a Scorer>,
}

/// One sequence that was measured.
pub(crate) struct Measured<'s> {
    pub sequence: &'s Sequence,
    /// `[N, d]`: what the student had before each target.
    pub hidden: &'s Tensor,
    pub rows: Option<&'s Rows>,
}

impl Measure<'_> {
    /// Adds `sequences` to the report; `each` hears of every one. False when a shutdown came before the last one.
    ///
    /// # Errors
    /// A tensor error, or a teacher that does not answer.
    pub fn all(
        &self,
        sequences: &[Sequence],
        report: &mut EvalReport,
        shutdown: &Shutdown,
        each: &mut dyn FnMut(Measured<'_>, &EvalReport) -> Result<()>,
    ) -> Result<bool> {
        for sequences in sequences.chunks(sequences_a_call(sequences)) {
            let rows = match self.scorer {
                Some(scorer) => match scorer.score(sequences)? {
                    Some(rows) => rows.into_iter().map(Some).collect(),
                    None => return Ok(false),
                },
                None => vec![None; sequences.len()],
            };
            for (sequence, rows) in sequences.iter().zip(&rows) {
                if shutdown.is_requested() {
                    return Ok(false);
                }
                let rows = rows.as_ref();
                let hidden = &self.add(sequence, rows, report)?;
                let measured = Measured {
                    sequence,
                    hidden,
                    rows,
                };
                each(measured, report)?;
            }
        }
        report.teacher_top_k = self.scorer.map(|scorer| scorer.info.top_k);
        Ok(true)
    }

    /// Adds one sequence to the report; gives the hidden states before its targets.
    fn add(
        &self,
        sequence: &Sequence,
        rows: Option<&Rows>,
        report: &mut EvalReport,
    ) -> Result<Tensor> {
        let targets: Vec<usize> = (0..sequence.token_ids.len())
            .filter(|&t| sequence.target_mask[t])
            .collect();
        let labels: Vec<u32> = targets.iter().map(|&t| sequence.token_ids[t]).collect();
        let device = self.decoder.device();
        let ids = Tensor::new(sequence.token_ids.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let outputs: Vec<u32> = targets.iter().map(|&t| t as u32 - 1).collect();
        let outputs = Tensor::new(outputs, device)?;
        let hidden = self
            .decoder
            .hidden_states(&ids)?
            .squeeze(0)?
            .index_select(&outputs, 0)?;
        let rows = rows.map(Targets::from_rows);
        let values = head_values(&hidden, &labels, rows.as_ref(), self.geometry, self.loss)?;
        report.add(sequence.token_ids.len(), labels.len(), values.ce);
        if let Some(rows) = &rows {
            let agreements = agreements(&hidden, rows, self.geometry, self.loss.chunk_rows)?;
            report.add_teacher(labels.len(), values.kl, agreements);
        }
        Ok(hidden)
    }
}

/// Positions where the student's likeliest token is the teacher's, and where the teacher's is among the student's five.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreements {
    pub top1: usize,
    pub top5: usize,
}

fn agreements(
    hidden: &Tensor,
    rows: &Targets,
    geometry: &HeadGeometry,
    chunk_rows: usize,
) -> Result<Agreements> {
    let teacher: Vec<u32> = (0..rows.rows()).map(|row| likeliest(rows, row)).collect();
    let mut found = Agreements::default();
    for (number, teacher) in teacher.chunks(chunk_rows).enumerate() {
        let chunk = hidden.narrow(0, number * chunk_rows, teacher.len())?;
        let logits = geometry.logits(&chunk.to_dtype(DType::F32)?)?;
        let best = logits.argmax(1)?.to_vec1::<u32>()?;
        found.top1 += best.iter().zip(teacher).filter(|(a, b)| a == b).count();
        let ids = Tensor::new(teacher, logits.device())?.unsqueeze(1)?;
        let above = logits.broadcast_gt(&logits.gather(&ids, 1)?)?;
        let above = above.to_dtype(DType::F32)?.sum(1)?.to_vec1::<f32>()?;
        found.top5 += above.iter().filter(|&&above| above < NEAR).count();
    }
    Ok(found)
}

/// The kept id with the largest logit.
fn likeliest(rows: &Targets, row: usize) -> u32 {
    let best = rows
        .entries(row)
        .max_by(|&a, &b| rows.logits[a].total_cmp(&rows.logits[b]));
    best.map_or(0, |best| rows.ids[best])
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::client::mock::made_up_frame;

    #[test]
    fn agreement_counts_the_teachers_token_first_and_among_five() {
        // The frame's rows all prefer id 1. With a head of unit rows the logits are the hidden states themselves.
        let frame = made_up_frame(2);
        let vocab = frame.rows.vocab_size as usize;
        let head = Tensor::eye(vocab, DType::F32, &Device::Cpu).unwrap();
        let geometry = HeadGeometry::new(&head, None).unwrap();
        let rank = |above: usize| {
            let mut row = vec![0.0_f32; vocab];
            row[1] = 1.0;
            row[10..10 + above].fill(2.0);
            row
        };
        let hidden: Vec<f32> = [rank(0), rank(4), rank(5)].concat();
        let hidden = Tensor::from_vec(hidden, (3, vocab), &Device::Cpu).unwrap();
        let rows = Targets::from_rows(&frame.rows);
        for chunk_rows in [1, 2, 8] {
            let found = agreements(&hidden, &rows, &geometry, chunk_rows).unwrap();
            assert_eq!(found, Agreements { top1: 1, top5: 2 });
        }
    }
}
