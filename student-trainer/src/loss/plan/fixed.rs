//! Provides the plans that do not look at costs: everything to everything, and what a record joins.

use super::Supported;
use super::support::Support;
use crate::loss::error::{LossError, Result};

/// `a b^T`.
pub(super) fn uniform(problem: &Supported) -> Vec<f32> {
    let row = |&a: &f64| problem.b.iter().map(move |b| (a * b) as f32);
    problem.a.iter().flat_map(row).collect()
}

/// `a_i / links of i` at every link; nothing where a position has none. Links to a position without mass do not count,
/// and one that is there twice counts once.
pub(super) fn links(
    support: &Support,
    problem: &Supported,
    links: &[(u32, u32)],
) -> Result<Vec<f32>> {
    let ((n, m), width) = (support.size(), problem.b.len());
    let mut linked = vec![false; problem.cost.len()];
    for &(i, j) in links {
        let (row, column) = (i as usize, j as usize);
        if row >= n || column >= m {
            return Err(LossError::shape(
                "link of a record",
                format!("a position below {n} and one below {m}"),
                format!("({i}, {j})"),
            ));
        }
        if let Some((row, column)) = support.inner_entry(row, column) {
            linked[row * width + column] = true;
        }
    }
    let row = |(linked, a): (&[bool], &f64)| {
        let share = a / linked.iter().filter(|linked| **linked).count() as f64;
        let mass = move |&linked: &bool| if linked { share as f32 } else { 0.0 };
        linked.iter().map(mass).collect::<Vec<f32>>()
    };
    Ok(linked.chunks(width).zip(&problem.a).flat_map(row).collect())
}
