//! Provides how the sequences of a step are cut into forward passes: padded to the longest, or packed without padding.

use super::example::Example;

/// How sequences share a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// So many rows, each padded at the end to the longest.
    Padded {
        /// Sequences in a pass.
        sequences: usize,
    },
    /// One row, sequence after sequence; each has positions of its own and sees itself alone.
    Packed {
        /// Sequences in a pass, at most.
        sequences: usize,
        /// Tokens in a pass, at most, unless one sequence alone has more.
        tokens: usize,
    },
}

impl Passes {
    /// The sequences of a step, pass by pass, in their order.
    pub fn cut(self, examples: &[Example]) -> Vec<&[Example]> {
        match self {
            Self::Padded { sequences } => examples.chunks(sequences.max(1)).collect(),
            Self::Packed { sequences, tokens } => {
                let lengths: Vec<usize> = examples.iter().map(|one| one.token_ids.len()).collect();
                let mut rest = examples;
                let counts = pack(&lengths, sequences.max(1), tokens);
                let passes = counts.into_iter().map(|count| {
                    let (pass, later) = rest.split_at(count);
                    rest = later;
                    pass
                });
                passes.collect()
            }
        }
    }
}

/// How many of the next sequences go into each pass.
fn pack(lengths: &[usize], sequences_max: usize, tokens_max: usize) -> Vec<usize> {
    let mut counts = Vec::new();
    let (mut count, mut tokens) = (0, 0usize);
    for length in lengths {
        let full = count == sequences_max || tokens.saturating_add(*length) > tokens_max;
        if count > 0 && full {
            counts.push(count);
            (count, tokens) = (0, 0);
        }
        count += 1;
        tokens = tokens.saturating_add(*length);
    }
    counts.extend((count > 0).then_some(count));
    counts
}

#[cfg(test)]
mod tests {
    use super::pack;

    #[test]
    fn a_pass_holds_whole_sequences_up_to_both_limits() {
        assert_eq!(pack(&[3, 3, 3, 3], 2, 100), [2, 2]);
        assert_eq!(pack(&[3, 3, 3, 3], 9, 7), [2, 2]);
        assert_eq!(pack(&[9, 1, 1, 9, 2], 9, 4), [1, 2, 1, 1]);
        assert_eq!(pack(&[5; 3], 9, usize::MAX), [3]);
        assert!(pack(&[], 9, 4).is_empty());
    }
}
