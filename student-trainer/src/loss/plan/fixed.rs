//! Provides the plans that do not look at costs: everything to everything, and what a record joins.

use super::PlanProblem;
use crate::loss::error::{LossError, Result};

/// `a b^T`.
pub(super) fn uniform(problem: &PlanProblem) -> Vec<f32> {
    let row = |&a: &f64| problem.b.iter().map(move |b| (a * b) as f32);
    problem.a.iter().flat_map(row).collect()
}

/// `a_i / links of i` at every link; nothing where a position has none. Links to a position without mass do not count,
/// and one that is there twice counts once.
pub(super) fn links(problem: &PlanProblem) -> Result<Vec<f32>> {
    let (n, m) = (problem.a.len(), problem.b.len());
    let mut linked = vec![false; n * m];
    let mut degree = vec![0_usize; n];
    for &(i, j) in problem.links {
        let (row, column) = (i as usize, j as usize);
        if row >= n || column >= m {
            return Err(LossError::shape(
                "link of a record",
                format!("a position below {n} and one below {m}"),
                format!("({i}, {j})"),
            ));
        }
        let entry = row * m + column;
        if problem.b[column] > 0.0 && !linked[entry] {
            linked[entry] = true;
            degree[row] += 1;
        }
    }
    let mass = |entry: usize| {
        let row = entry / m;
        if linked[entry] {
            (problem.a[row] / degree[row] as f64) as f32
        } else {
            0.0
        }
    };
    Ok((0..n * m).map(mass).collect())
}
