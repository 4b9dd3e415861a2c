//! Provides one sequence as the student sees it: its tokens, its targets, and what the teacher says about them.

use distill_proto::Frame;

use crate::loss::Targets;

/// One sequence, ready for a forward pass.
#[derive(Clone, Debug)]
pub struct Example {
    /// T ids of the student's tokenizer.
    pub token_ids: Vec<u32>,
    /// Positions of the N targets, increasing, none of them 0: the output at t - 1 speaks of the token at t.
    pub target_positions: Vec<usize>,
    /// The teacher's M rows.
    pub targets: Targets,
}

impl Example {
    /// From a frame of a teacher with the student's vocabulary.
    pub fn from_frame(frame: &Frame) -> Self {
        Self {
            token_ids: frame.token_ids.clone(),
            target_positions: frame.target_positions(),
            targets: Targets::from_rows(&frame.rows),
        }
    }

    /// The ids of the targets, `[N]`.
    pub fn labels(&self) -> Vec<u32> {
        let targets = self.target_positions.iter();
        targets.map(|&t| self.token_ids[t]).collect()
    }
}
