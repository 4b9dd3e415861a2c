//! Provides one sequence as the student sees it: its tokens, its targets, and what the teacher says about them.

use distill_proto::{Frame, State};

use crate::loss::{Alignment, Targets};

/// One sequence, ready for a forward pass.
#[derive(Clone, Debug)]
pub struct Example {
    /// Its place in the corpus.
    pub index: u64,
    /// T ids of the student's tokenizer.
    pub token_ids: Vec<u32>,
    /// Positions of the N targets, increasing, none of them 0: the output at t - 1 speaks of the token at t.
    pub target_positions: Vec<usize>,
    /// The teacher's tokens that its M rows speak of, in the frame that the example was made of.
    pub row_positions: Vec<usize>,
    /// The teacher's M rows.
    pub targets: Targets,
}

impl Example {
    /// From a frame of a teacher with the student's vocabulary.
    pub fn from_frame(frame: &Frame) -> Self {
        Self {
            index: frame.index,
            token_ids: frame.token_ids.clone(),
            target_positions: frame.target_positions(),
            row_positions: frame.target_positions(),
            targets: Targets::from_rows(&frame.rows),
        }
    }

    /// With the teacher's rows of another sequence: row j stands where row j of its own stood, as far as there are any.
    #[must_use]
    pub(crate) fn with_rows_of_another(self, mut rows: Targets) -> Self {
        let n = self.target_positions.len();
        let m = rows.rows();
        let own = self.targets.alignment.unwrap_or_else(|| Alignment {
            pairs: (0..n).map(Some).collect(),
            student_places: evenly(n),
            ..Alignment::default()
        });
        let inside = |j: &usize| *j < m;
        rows.alignment = Some(Alignment {
            pairs: own.pairs.into_iter().map(|j| j.filter(inside)).collect(),
            student_places: own.student_places,
            teacher_places: evenly(m),
            labelled: own.labelled,
            links: Vec::new(),
            equal: Vec::new(),
            is_pair: own.is_pair,
        });
        Self {
            // They are in another frame.
            row_positions: Vec::new(),
            targets: rows,
            ..self
        }
    }

    /// With the teacher's states of another sequence, stretched over its own rows. Which positions have something in common is
    /// not known then; all else that its rows say is its own.
    #[must_use]
    pub(crate) fn with_states_of_another(mut self, other: Option<State>) -> Self {
        let m = self.targets.rows();
        self.targets.state = other.map(|mut other| {
            let rows: Vec<&[f32]> = other.values.chunks(other.rank.max(1)).collect();
            let stretched = (0..m).filter_map(|j| rows.get(j * rows.len() / m));
            other.values = stretched.copied().flatten().copied().collect();
            other
        });
        if let Some(alignment) = &mut self.targets.alignment {
            alignment.links.clear();
            alignment.equal.clear();
        }
        self
    }

    /// The ids of the targets, `[N]`.
    pub fn labels(&self) -> Vec<u32> {
        let targets = self.target_positions.iter();
        targets.map(|&t| self.token_ids[t]).collect()
    }
}

/// Places of `count` positions that lie evenly.
pub(crate) fn evenly(count: usize) -> Vec<f64> {
    (0..count).map(|i| i as f64 / count as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::testing::hidden_targets;

    #[test]
    fn states_of_another_text_are_stretched_over_the_own_rows() {
        let own = Example {
            index: 0,
            token_ids: vec![1; 5],
            target_positions: (1..5).collect(),
            row_positions: (1..5).collect(),
            targets: hidden_targets(vec![0.0; 4], 4),
        };
        let logits = own.targets.logits.clone();
        for (states, expected) in [
            (vec![1.0, 2.0], [1.0, 1.0, 2.0, 2.0]),
            (vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 4.0, 5.0]),
        ] {
            let rows = states.len();
            let other = hidden_targets(states, rows).state;
            let shuffled = own.clone().with_states_of_another(other);
            assert_eq!(shuffled.targets.state.unwrap().values, expected);
            assert_eq!(shuffled.targets.logits, logits);
        }
    }
}
