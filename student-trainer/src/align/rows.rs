//! Provides the teacher's rows in the student's ids.

use distill_proto::State;

use crate::loss::Targets;

/// One entry of a row: the student's id, the logit, and the draws where there are any.
type Entry = (u32, f32, Option<u32>);

/// Maps the rows that `within` accepts. Entries without a counterpart are left out: their mass stays in the tail, because
/// logsumexp is over the teacher's whole vocabulary. Rows without any entry are left out too.
///
/// Gives the rows and which of the teacher's they are, increasing.
pub(super) fn map(
    teacher: &Targets,
    vocab_size: u32,
    within: impl Fn(usize) -> bool,
    counterpart: impl Fn(u32) -> Option<u32>,
) -> (Targets, Vec<usize>) {
    let mut starts = vec![0];
    let mut entries: Vec<Entry> = Vec::with_capacity(teacher.ids.len());
    let mut kept = Vec::with_capacity(teacher.rows());
    for (j, bounds) in teacher.starts.windows(2).enumerate() {
        let (&[from, until], true) = (bounds, within(j)) else {
            continue;
        };
        let row = (from..until).filter_map(|entry| {
            let id = counterpart(*teacher.ids.get(entry)?).filter(|id| *id < vocab_size)?;
            Some((
                id,
                *teacher.logits.get(entry)?,
                teacher.counts.get(entry).copied(),
            ))
        });
        entries.extend(merged(row.collect()));
        if starts.last() != Some(&entries.len()) {
            starts.push(entries.len());
            kept.push(j);
        }
    }
    let targets = Targets {
        vocab_size,
        starts,
        ids: entries.iter().map(|entry| entry.0).collect(),
        logits: entries.iter().map(|entry| entry.1).collect(),
        counts: entries.iter().filter_map(|entry| entry.2).collect(),
        // Draws of tokens that are left out still count as draws, so that the weights of the others stay unbiased.
        draws: kept
            .iter()
            .filter_map(|&j| teacher.draws.get(j).copied())
            .collect(),
        logsumexp: teacher
            .logsumexp
            .iter()
            .map(|row| pick(row, &kept))
            .collect(),
        mean: pick(&teacher.mean, &kept),
        std: pick(&teacher.std, &kept),
        state: teacher.state.as_ref().map(|state| pick_state(state, &kept)),
        estimator: teacher.estimator,
        temperatures: teacher.temperatures.clone(),
        alignment: None,
    };
    (targets, kept)
}

/// Sorts a row by id. Two of the teacher's tokens may write the same bytes; the student's one token then has the
/// probability of both.
fn merged(mut row: Vec<Entry>) -> Vec<Entry> {
    row.sort_by_key(|entry| entry.0);
    let mut out: Vec<Entry> = Vec::with_capacity(row.len());
    for (id, logit, count) in row {
        match out.last_mut().filter(|last| last.0 == id) {
            None => out.push((id, logit, count)),
            Some(last) => {
                let (high, low) = (last.1.max(logit), last.1.min(logit));
                last.1 = high + (low - high).exp().ln_1p();
                last.2 = last.2.zip(count).map(|(a, b)| match (a, b) {
                    // The known head of `head+sampled` has count 0 and stays known; the draw beside it is of a token
                    // that the head nearly always outweighs.
                    (0, _) | (_, 0) => 0,
                    (a, b) => a.saturating_add(b),
                });
            }
        }
    }
    out
}

fn pick(values: &[f32], kept: &[usize]) -> Vec<f32> {
    kept.iter()
        .filter_map(|&j| values.get(j).copied())
        .collect()
}

fn pick_state(state: &State, kept: &[usize]) -> State {
    let row = |&j: &usize| state.values.get(j * state.rank..(j + 1) * state.rank);
    State {
        kind: state.kind,
        coding: state.coding,
        rank: state.rank,
        layers: state.layers,
        values: kept.iter().filter_map(row).flatten().copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use distill_proto::{Estimator, StateCoding, StateKind};

    use super::*;

    fn targets(estimator: Estimator, counts: Vec<u32>) -> Targets {
        Targets {
            vocab_size: 100,
            estimator,
            starts: vec![0, 3, 4, 6],
            ids: vec![1, 2, 3, 90, 4, 91],
            logits: vec![1.0, 0.5, 0.25, 7.0, 0.0, 1.0],
            draws: match estimator {
                Estimator::TopK => vec![],
                _ => vec![6, 6, 6],
            },
            counts,
            temperatures: vec![1.0],
            logsumexp: vec![vec![10.0, 11.0, 12.0]],
            mean: vec![0.0, 0.1, 0.2],
            std: vec![1.0, 1.1, 1.2],
            state: Some(State {
                kind: StateKind::Exact,
                coding: StateCoding::F16,
                rank: 2,
                layers: 1,
                values: vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
            }),
            alignment: None,
        }
    }

    /// 1 and 3 write the same bytes, order is turned around, ids from 90 on are unknown.
    fn counterpart(id: u32) -> Option<u32> {
        match id {
            1 | 3 => Some(8),
            90.. => None,
            id => Some(9 - id),
        }
    }

    #[test]
    fn entries_are_mapped_merged_and_sorted_and_empty_rows_go_everywhere() {
        let teacher = targets(Estimator::TopK, vec![]);
        let (mapped, kept) = map(&teacher, 10, |_| true, counterpart);
        assert_eq!(kept, [0, 2]);
        assert_eq!(mapped.starts, [0, 2, 3]);
        assert_eq!(mapped.ids, [7, 8, 5]);
        let both = (1f64.exp() + 0.25f64.exp()).ln();
        assert!((f64::from(mapped.logits[1]) - both).abs() < 1e-6);
        assert_eq!((mapped.logits[0], mapped.logits[2]), (0.5, 0.0));
        assert_eq!(mapped.logsumexp, [[10.0, 12.0]]);
        assert_eq!((mapped.mean, mapped.std), (vec![0.0, 0.2], vec![1.0, 1.2]));
        assert_eq!(mapped.state.unwrap().values, [0.0, 1.0, 4.0, 5.0]);
        assert_eq!((mapped.vocab_size, mapped.counts.len()), (10, 0));
        let (first, kept) = map(&teacher, 10, |j| j == 0, counterpart);
        assert_eq!((first.rows(), kept), (1, vec![0]));
        // Nothing is below 5, so no row is left.
        assert_eq!(map(&teacher, 5, |_| true, counterpart).1, [] as [usize; 0]);
    }

    #[test]
    fn draws_add_up_and_a_known_head_stays_known() {
        let drawn = targets(Estimator::Sampled, vec![2, 1, 3, 6, 4, 2]);
        let (mapped, _) = map(&drawn, 10, |_| true, counterpart);
        assert_eq!((mapped.counts, mapped.draws), (vec![1, 5, 4], vec![6, 6]));
        let head = targets(Estimator::HeadSampled, vec![0, 1, 3, 6, 4, 2]);
        let (mapped, _) = map(&head, 10, |_| true, counterpart);
        assert_eq!(mapped.counts, [1, 0, 4]);
    }
}
