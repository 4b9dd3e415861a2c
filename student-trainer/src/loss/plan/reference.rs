//! Provides every plan in its slow, obvious form in f64: iterated to the last digit, or path by path.

use super::{PlanKind, PlanOptions};
use crate::loss::reference::{Matrix, logsumexp};

/// A problem in f64.
pub(in crate::loss) struct Problem {
    pub(in crate::loss) cost: Matrix,
    pub(in crate::loss) a: Vec<f64>,
    pub(in crate::loss) b: Vec<f64>,
    pub(in crate::loss) links: Vec<(u32, u32)>,
}

/// Most rounds of any iteration here.
const ROUNDS_MAX: usize = 400_000;

/// T.
pub(in crate::loss) fn plan(problem: &Problem, options: &PlanOptions) -> Matrix {
    let Problem { cost, a, b, links } = problem;
    let (n, m, epsilon) = (cost.rows, cost.columns, options.epsilon);
    let exponent = |i: usize, j: usize| -cost.at(i, j) / epsilon;
    match options.kind {
        PlanKind::Sinkhorn => scaled(problem, epsilon, (f64::INFINITY, f64::INFINITY)),
        PlanKind::Unbalanced => {
            scaled(problem, epsilon, (options.rho_student, options.rho_teacher))
        }
        PlanKind::Partial => partial(problem, epsilon, options.mass),
        PlanKind::Row => Matrix::from_fn(n, m, |i, j| a[i] * attention(b, |j| exponent(i, j))[j]),
        PlanKind::Mutual => {
            let product = Matrix::from_fn(n, m, |i, j| {
                attention(b, |j| exponent(i, j))[j] * attention(a, |i| exponent(i, j))[i]
            });
            over_sum(product)
        }
        PlanKind::Uniform => Matrix::from_fn(n, m, |i, j| a[i] * b[j]),
        PlanKind::Monotone => over_sum(expected_cells(cost, a, b, epsilon)),
        PlanKind::Links => Matrix::from_fn(n, m, |i, j| {
            let linked = |j: usize| b[j] > 0.0 && links.contains(&(i as u32, j as u32));
            let degree = (0..m).filter(|&j| linked(j)).count();
            if linked(j) { a[i] / degree as f64 } else { 0.0 }
        }),
    }
}

/// What the plan minimises, term by term; for `monotone` soft-DTW's value over the longer side.
pub(in crate::loss) fn value(problem: &Problem, options: &PlanOptions) -> f64 {
    let Problem { cost, a, b, .. } = problem;
    let epsilon = options.epsilon;
    if options.kind == PlanKind::Monotone {
        let counted = |masses: &[f64]| masses.iter().filter(|mass| **mass > 0.0).count();
        return soft_dtw(cost, a, b, epsilon) / counted(a).max(counted(b)) as f64;
    }
    let plan = plan(problem, options);
    let paid: f64 = plan.data.iter().zip(&cost.data).map(|(t, c)| t * c).sum();
    let reference = Matrix::from_fn(cost.rows, cost.columns, |i, j| a[i] * b[j]);
    let sums = marginals(&plan);
    let penalty = |rho: f64, sums: &[f64], masses: &[f64]| {
        if rho.is_infinite() {
            0.0
        } else {
            rho * divergence(sums, masses)
        }
    };
    match options.kind {
        PlanKind::Sinkhorn | PlanKind::Partial => {
            let ones = vec![1.0; plan.data.len()];
            let negative_entropy =
                divergence(&plan.data, &ones) + plan.data.iter().sum::<f64>() - ones.len() as f64;
            paid + epsilon * negative_entropy
        }
        _ => {
            paid + epsilon * divergence(&plan.data, &reference.data)
                + match options.kind {
                    PlanKind::Unbalanced => {
                        penalty(options.rho_student, &sums.0, a)
                            + penalty(options.rho_teacher, &sums.1, b)
                    }
                    _ => 0.0,
                }
        }
    }
}

/// `sum x ln(x / y) - x + y`.
fn divergence(x: &[f64], y: &[f64]) -> f64 {
    let term = |(&x, &y): (&f64, &f64)| if x > 0.0 { x * (x / y).ln() - x + y } else { y };
    x.iter().zip(y).map(term).sum()
}

/// `softmax_k(ln weight_k + exponent_k)`.
fn attention(weights: &[f64], exponent: impl Fn(usize) -> f64) -> Vec<f64> {
    let logs: Vec<f64> = (0..weights.len())
        .map(|k| weights[k].ln() + exponent(k))
        .collect();
    let sum = logsumexp(&logs);
    logs.iter().map(|log| (log - sum).exp()).collect()
}

fn over_sum(matrix: Matrix) -> Matrix {
    let sum: f64 = matrix.data.iter().sum();
    Matrix::from_fn(matrix.rows, matrix.columns, |i, j| matrix.at(i, j) / sum)
}

pub(super) fn marginals(plan: &Matrix) -> (Vec<f64>, Vec<f64>) {
    let rows = (0..plan.rows).map(|i| plan.row(i).iter().sum());
    let columns = (0..plan.columns).map(|j| (0..plan.rows).map(|i| plan.at(i, j)).sum());
    (rows.collect(), columns.collect())
}

/// `F_i = -phi logsumexp_j(ln b_j + G_j - C_ij / epsilon)`, phi = rho / (rho + epsilon), and the same for G.
fn scaled(problem: &Problem, epsilon: f64, rho: (f64, f64)) -> Matrix {
    let Problem { cost, a, b, .. } = problem;
    let phi = |rho: f64| {
        if rho.is_infinite() {
            1.0
        } else {
            rho / (rho + epsilon)
        }
    };
    let (mut f, mut g) = (vec![0.0; a.len()], vec![0.0; b.len()]);
    for _ in 0..ROUNDS_MAX {
        let before = (f.clone(), g.clone());
        for (i, f) in f.iter_mut().enumerate() {
            let term = |j: usize| b[j].ln() + g[j] - cost.at(i, j) / epsilon;
            *f = -phi(rho.0) * logsumexp(&(0..b.len()).map(term).collect::<Vec<_>>());
        }
        for (j, g) in g.iter_mut().enumerate() {
            let term = |i: usize| a[i].ln() + f[i] - cost.at(i, j) / epsilon;
            *g = -phi(rho.1) * logsumexp(&(0..a.len()).map(term).collect::<Vec<_>>());
        }
        if moved(&before.0, &f) + moved(&before.1, &g) < 1e-13 {
            break;
        }
    }
    Matrix::from_fn(a.len(), b.len(), |i, j| {
        a[i] * b[j] * (f[i] + g[j] - cost.at(i, j) / epsilon).exp()
    })
}

/// `T = exp(lambda + F + G - C / epsilon)`, F and G at most 0: each in turn as large as its constraint allows.
fn partial(problem: &Problem, epsilon: f64, mass: f64) -> Matrix {
    let Problem { cost, a, b, .. } = problem;
    let (mut f, mut g, mut lambda) = (vec![0.0; a.len()], vec![0.0; b.len()], 0.0);
    for _ in 0..ROUNDS_MAX {
        let before = (f.clone(), g.clone(), lambda);
        let log = |f: &[f64], g: &[f64], i: usize, j: usize| f[i] + g[j] - cost.at(i, j) / epsilon;
        let all: Vec<f64> = (0..a.len() * b.len())
            .map(|k| log(&f, &g, k / b.len(), k % b.len()))
            .collect();
        lambda = mass.ln() - logsumexp(&all);
        let zero = vec![0.0; a.len().max(b.len())];
        for i in 0..a.len() {
            let terms: Vec<f64> = (0..b.len()).map(|j| log(&zero, &g, i, j)).collect();
            f[i] = (a[i].ln() - lambda - logsumexp(&terms)).min(0.0);
        }
        for j in 0..b.len() {
            let terms: Vec<f64> = (0..a.len()).map(|i| log(&f, &zero, i, j)).collect();
            g[j] = (b[j].ln() - lambda - logsumexp(&terms)).min(0.0);
        }
        let change: f64 = before.2 - lambda;
        if moved(&before.0, &f) + moved(&before.1, &g) + change.abs() < 1e-13 {
            break;
        }
    }
    Matrix::from_fn(a.len(), b.len(), |i, j| {
        (lambda + f[i] + g[j] - cost.at(i, j) / epsilon).exp()
    })
}

/// The largest change, of what is finite.
fn moved(before: &[f64], after: &[f64]) -> f64 {
    let changes = before.iter().zip(after).map(|(x, y)| (x - y).abs());
    changes
        .filter(|change| change.is_finite())
        .fold(0.0, f64::max)
}

/// Every monotone path from the first pair to the last, as `(i, j)`.
fn paths(n: usize, m: usize) -> Vec<Vec<(usize, usize)>> {
    let mut found = Vec::new();
    let mut open = vec![vec![(0, 0)]];
    while let Some(path) = open.pop() {
        let (i, j) = path[path.len() - 1];
        if (i, j) == (n - 1, m - 1) {
            found.push(path);
            continue;
        }
        for (i, j) in [(i + 1, j), (i, j + 1), (i + 1, j + 1)] {
            if i < n && j < m {
                open.push(path.iter().copied().chain([(i, j)]).collect());
            }
        }
    }
    found
}

/// Paths between the positions that have mass, and the logarithm of each path's weight.
fn weighted_paths(
    cost: &Matrix,
    a: &[f64],
    b: &[f64],
    epsilon: f64,
) -> (Vec<Vec<(usize, usize)>>, Vec<f64>) {
    let kept =
        |masses: &[f64]| -> Vec<usize> { (0..masses.len()).filter(|&k| masses[k] > 0.0).collect() };
    let (rows, columns) = (kept(a), kept(b));
    let mut paths = paths(rows.len(), columns.len());
    for (i, j) in paths.iter_mut().flatten() {
        (*i, *j) = (rows[*i], columns[*j]);
    }
    let log = |path: &Vec<(usize, usize)>| {
        -path.iter().map(|&(i, j)| cost.at(i, j)).sum::<f64>() / epsilon
    };
    let logs = paths.iter().map(log).collect();
    (paths, logs)
}

/// `-epsilon ln sum over paths exp(-cost / epsilon)`.
fn soft_dtw(cost: &Matrix, a: &[f64], b: &[f64], epsilon: f64) -> f64 {
    -epsilon * logsumexp(&weighted_paths(cost, a, b, epsilon).1)
}

/// How likely a path drawn by its weight passes through each cell.
fn expected_cells(cost: &Matrix, a: &[f64], b: &[f64], epsilon: f64) -> Matrix {
    let (paths, logs) = weighted_paths(cost, a, b, epsilon);
    let sum = logsumexp(&logs);
    let mut cells = Matrix::from_fn(cost.rows, cost.columns, |_, _| 0.0);
    for (path, log) in paths.iter().zip(&logs) {
        for &(i, j) in path {
            cells.data[i * cost.columns + j] += (log - sum).exp();
        }
    }
    cells
}
