//! Provides the teacher's rows as the losses take them: ragged, in the student's ids, and placed along the student's
//! positions.

use distill_proto::{Estimator, Rows, State};

/// What the teacher says about M positions of one sequence, in the student's vocabulary.
///
/// Frames have the same number of entries in every row; here padding is gone, and rows that were carried over from
/// another tokenizer have as many entries as found a counterpart.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets {
    /// The student's effective vocabulary; every id is below it.
    pub vocab_size: u32,
    /// How rows stand for the teacher's distribution.
    pub estimator: Estimator,
    /// `[M + 1]`: entries of row j are `starts[j]..starts[j + 1]`, at least one.
    pub starts: Vec<usize>,
    /// Strictly increasing within a row.
    pub ids: Vec<u32>,
    /// The teacher's raw logits.
    pub logits: Vec<f32>,
    /// Draws of each id: none under `top_k`, at least 1 under `sampled`, 0 for the exactly known head of `head+sampled`.
    pub counts: Vec<u32>,
    /// `[M]`: draws of each row, those of ids without a counterpart included; empty under `top_k`.
    pub draws: Vec<u32>,
    /// Temperatures at which `logsumexp` is known.
    pub temperatures: Vec<f32>,
    /// `logsumexp(Y / tau)` over the teacher's whole vocabulary, `[temperatures][M]`.
    pub logsumexp: Vec<Vec<f32>>,
    /// Mean logit of each row, `[M]`.
    pub mean: Vec<f32>,
    /// Standard deviation of the logits of each row, `[M]`.
    pub std: Vec<f32>,
    /// The teacher's `state`, `[M, r]`.
    pub state: Option<State>,
    /// How the M rows lie along the student's N; `None`: N = M, row i beside row i.
    pub alignment: Option<Alignment>,
}

/// How the student's N targets and the teacher's M rows lie to each other: two tokenizations of one text, or two texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alignment {
    /// `[N]`: the teacher's row that speaks of the same place, where there is one; KL is taken there.
    pub pairs: Vec<Option<usize>>,
    /// `[N]`: share of the text before each of the student's targets, from 0 to 1; for the position prior.
    pub student_places: Vec<f64>,
    /// `[M]`: the same for the teacher's.
    pub teacher_places: Vec<f64>,
    /// `[N]`: whether cross-entropy is taken there; empty for everywhere. The others carry mass in transport only.
    pub labelled: Vec<bool>,
    /// `(i, j)` that the record itself joins, in increasing order.
    pub links: Vec<(u32, u32)>,
    /// `(i, j)` with the same number or name as bytes, in increasing order.
    pub equal: Vec<(u32, u32)>,
    /// Whether the sides are two texts: of what lies where in them nothing is known.
    pub is_pair: bool,
}

impl Targets {
    /// The rows of a frame for a student with the teacher's vocabulary. Padding entries are left out.
    pub fn from_rows(rows: &Rows) -> Self {
        let mut targets = Self {
            vocab_size: rows.vocab_size,
            estimator: rows.estimator,
            starts: vec![0],
            ids: Vec::with_capacity(rows.ids.len()),
            logits: Vec::with_capacity(rows.logits.len()),
            counts: Vec::new(),
            draws: Vec::new(),
            temperatures: rows.temperatures.clone(),
            logsumexp: rows.logsumexp.clone(),
            mean: rows.mean.clone(),
            std: rows.std.clone(),
            state: rows.state.clone(),
            alignment: None,
        };
        for row in 0..rows.rows {
            for entry in row * rows.k..(row + 1) * rows.k {
                let count = rows.counts.get(entry).copied();
                let padding = count.is_some_and(|count| rows.estimator.is_padding(count));
                let (Some(&id), Some(&logit)) = (rows.ids.get(entry), rows.logits.get(entry))
                else {
                    continue;
                };
                if !padding {
                    targets.ids.push(id);
                    targets.logits.push(logit);
                    targets.counts.extend(count);
                }
            }
            let start = targets.starts.last().copied().unwrap_or_default();
            if rows.estimator.is_drawn() {
                let counts = targets.counts.get(start..).unwrap_or_default();
                targets.draws.push(counts.iter().sum());
            }
            targets.starts.push(targets.ids.len());
        }
        targets
    }

    /// M, the number of the teacher's rows.
    pub fn rows(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// The teacher's row beside the student's row i.
    pub(crate) fn pair(&self, i: usize) -> Option<usize> {
        match &self.alignment {
            Some(alignment) => alignment.pairs.get(i).copied().flatten(),
            None => (i < self.rows()).then_some(i),
        }
    }

    /// Whether cross-entropy is taken at the student's row i.
    pub(crate) fn is_labelled(&self, i: usize) -> bool {
        let labelled = self.alignment.as_ref().map(|alignment| &alignment.labelled);
        labelled.is_none_or(|labelled| labelled.get(i).copied().unwrap_or(true))
    }
}
