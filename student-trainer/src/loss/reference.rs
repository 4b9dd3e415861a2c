//! Provides the losses in their slow, obvious form: dense, in f64, one line of mathematics after the other.
//!
//! Everything fast in this module is tested against this file, and gradients against its central differences.

use std::ops::Range;

use super::config::{AlignConfig, AlignLoss, Cost, LossConfig, Reduction, Similarity};

/// A dense matrix, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Row-major.
    pub data: Vec<f64>,
}

impl Matrix {
    /// From a function of row and column.
    pub fn from_fn(rows: usize, columns: usize, f: impl Fn(usize, usize) -> f64) -> Self {
        let data = (0..rows * columns).map(|k| f(k / columns, k % columns));
        Self {
            rows,
            columns,
            data: data.collect(),
        }
    }

    /// One row.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.columns..(i + 1) * self.columns]
    }

    /// One entry.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.data[i * self.columns + j]
    }

    /// `self other^T`.
    pub fn times_transposed(&self, other: &Self) -> Self {
        Self::from_fn(self.rows, other.rows, |i, j| dot(self.row(i), other.row(j)))
    }

    /// Rows `i` and columns `j` of the given ranges.
    fn block(&self, i: Range<usize>, j: Range<usize>) -> Self {
        Self::from_fn(i.len(), j.len(), |a, b| self.at(i.start + a, j.start + b))
    }
}

/// The teacher: its logits `[M, V]`, and which ids of each row are kept.
#[derive(Clone, Debug)]
pub struct Teacher {
    /// Dense logits.
    pub logits: Matrix,
    /// Kept ids a row, increasing.
    pub kept: Vec<Vec<usize>>,
}

/// `ln sum exp`.
pub fn logsumexp(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + values.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

/// `softmax(values / temperature)`.
pub fn softmax(values: &[f64], temperature: f64) -> Vec<f64> {
    let scaled: Vec<f64> = values.iter().map(|v| v / temperature).collect();
    let lse = logsumexp(&scaled);
    scaled.iter().map(|v| (v - lse).exp()).collect()
}

/// Mean over rows of `logsumexp(x) - x_label`.
pub fn cross_entropy(x: &Matrix, labels: &[u32]) -> f64 {
    let row = |i: usize| logsumexp(x.row(i)) - x.at(i, labels[i] as usize);
    (0..x.rows).map(row).sum::<f64>() / x.rows as f64
}

/// `tau^2` times the mean over rows of the weighted divergences on the kept ids and one bucket for all others.
pub fn divergences(x: &Matrix, teacher: &Teacher, config: &LossConfig) -> f64 {
    let tau = config.kl_temperature;
    let mut total = 0.0;
    for i in 0..x.rows {
        let kept = &teacher.kept[i];
        let buckets = |d: Vec<f64>| -> Vec<f64> {
            let outside = (0..d.len()).filter(|v| !kept.contains(v));
            let rest = outside.map(|v| d[v]).sum();
            kept.iter().map(|&v| d[v]).chain([rest]).collect()
        };
        let p = buckets(softmax(teacher.logits.row(i), tau));
        let q = buckets(softmax(x.row(i), tau));
        let beta = config.jsd_beta;
        let pairs = p.iter().zip(&q);
        let m: Vec<f64> = pairs.map(|(p, q)| beta * p + (1.0 - beta) * q).collect();
        total += config.kl_weight * kullback_leibler(&p, &q);
        total += config.reverse_kl_weight * kullback_leibler(&q, &p);
        total += config.jsd_weight
            * (beta * kullback_leibler(&p, &m) + (1.0 - beta) * kullback_leibler(&q, &m));
    }
    tau * tau * total / x.rows as f64
}

/// `sum p ln(p / q)`.
fn kullback_leibler(p: &[f64], q: &[f64]) -> f64 {
    let term = |(&p, &q): (&f64, &f64)| if p > 0.0 { p * (p / q).ln() } else { 0.0 };
    p.iter().zip(q).map(term).sum()
}

/// `S [N, M]`.
pub fn similarity(x: &Matrix, teacher: &Teacher, kind: Similarity) -> Matrix {
    let y = &teacher.logits;
    let root = (x.columns as f64).sqrt();
    match kind {
        Similarity::ScaledDot => scaled(&x.times_transposed(y), 1.0 / root),
        Similarity::CenteredDot => scaled(&centered(x).times_transposed(&centered(y)), 1.0 / root),
        Similarity::Cosine => {
            let (x, y) = (centered(x), centered(y));
            let norm = |row: &[f64]| dot(row, row).sqrt();
            Matrix::from_fn(x.rows, y.rows, |i, j| {
                dot(x.row(i), y.row(j)) / (norm(x.row(i)) * norm(y.row(j)))
            })
        }
        Similarity::Bhattacharyya => Matrix::from_fn(x.rows, y.rows, |i, j| {
            let (q, p) = (softmax(x.row(i), 1.0), softmax(y.row(j), 1.0));
            teacher.kept[j].iter().map(|&v| (p[v] * q[v]).sqrt()).sum()
        }),
        Similarity::HiddenScaledDot | Similarity::HiddenCosine => {
            panic!("dense logits have no hidden states")
        }
    }
}

/// `1 - softmax` of the rows.
pub fn softmax_cost(s: &Matrix, temperature: f64) -> Matrix {
    let rows: Vec<Vec<f64>> = (0..s.rows)
        .map(|i| softmax(s.row(i), temperature))
        .collect();
    Matrix::from_fn(s.rows, s.columns, |i, j| 1.0 - rows[i][j])
}

/// `KL(p_j || q_i) / kappa`, p_j being the kept entries at temperature 1 renormalised to 1.
pub fn kl_cost(x: &Matrix, teacher: &Teacher, kappa: f64) -> Matrix {
    Matrix::from_fn(x.rows, teacher.logits.rows, |i, j| {
        let kept = &teacher.kept[j];
        let logits: Vec<f64> = kept.iter().map(|&v| teacher.logits.at(j, v)).collect();
        let p = softmax(&logits, 1.0);
        let q = softmax(x.row(i), 1.0);
        let terms = kept.iter().zip(&p).map(|(&v, p)| p * (p / q[v]).ln());
        terms.sum::<f64>() / kappa
    })
}

/// Log-domain Sinkhorn to an L1 marginal error of 1e-13, or 200,000 steps.
pub fn sinkhorn(cost: &Matrix, epsilon: f64) -> Matrix {
    let (n, m) = (cost.rows, cost.columns);
    let (ln_a, ln_b) = (-(n as f64).ln(), -(m as f64).ln());
    let (mut f, mut g) = (vec![0.0; n], vec![0.0; m]);
    for _ in 0..200_000 {
        for (i, f) in f.iter_mut().enumerate() {
            let terms: Vec<f64> = (0..m).map(|j| g[j] - cost.at(i, j) / epsilon).collect();
            *f = ln_a - logsumexp(&terms);
        }
        let mut error = 0.0;
        for (j, g) in g.iter_mut().enumerate() {
            let terms: Vec<f64> = (0..n).map(|i| f[i] - cost.at(i, j) / epsilon).collect();
            let lse = logsumexp(&terms);
            error += ((*g + lse).exp() - 1.0 / m as f64).abs();
            *g = ln_b - lse;
        }
        if error < 1e-13 {
            break;
        }
    }
    Matrix::from_fn(n, m, |i, j| (f[i] + g[j] - cost.at(i, j) / epsilon).exp())
}

/// `|x_i - y_j|^2` over the mean of all pairs.
pub fn squared_euclidean(x: &Matrix, y: &Matrix) -> Matrix {
    let distances = Matrix::from_fn(x.rows, y.rows, |i, j| {
        let pairs = x.row(i).iter().zip(y.row(j));
        pairs.map(|(x, y)| (x - y).powi(2)).sum()
    });
    let mean = distances.data.iter().sum::<f64>() / distances.data.len() as f64;
    scaled(&distances, 1.0 / mean)
}

/// What a problem is worth: the least value of what the plan minimises, or what is paid on it; `solved` and `paid` are the
/// costs that it is made for and that are paid, `prior` is added to the first.
pub fn objective(solved: &Matrix, paid: &Matrix, prior: &Matrix, config: &AlignConfig) -> f64 {
    let epsilon = config.epsilon();
    let solved = Matrix::from_fn(paid.rows, paid.columns, |i, j| {
        solved.at(i, j) + prior.at(i, j)
    });
    let plan = sinkhorn(&solved, epsilon);
    if config.loss == AlignLoss::Entropic {
        let entropy: f64 = plan.data.iter().map(|t| xlogx(*t)).sum();
        return dot(&plan.data, &solved.data) + epsilon * entropy;
    }
    dot(&plan.data, &paid.data)
}

/// The costs of a block of positions `i` and `j`, in the units of what is paid where `kappa` is those of that.
pub fn cost(
    x: &Matrix,
    teacher: &Teacher,
    (kind, kappa): (Cost, f64),
    (i, j): (Range<usize>, Range<usize>),
    config: &AlignConfig,
) -> Matrix {
    match kind {
        Cost::Kl => kl_cost(x, teacher, kappa).block(i, j),
        Cost::SoftmaxSimilarity => {
            let whole = similarity(x, teacher, config.similarity);
            softmax_cost(&whole.block(i, j), config.temperature)
        }
        Cost::SquaredEuclidean => squared_euclidean(
            &x.block(i, 0..x.columns),
            &teacher.logits.block(j, 0..x.columns),
        ),
        Cost::Hidden => panic!("dense logits have no hidden states"),
    }
}

/// The optimal-transport loss of dense logits, over all its problems.
pub fn transport(x: &Matrix, teacher: &Teacher, config: &AlignConfig) -> f64 {
    let (n, m) = (x.rows, teacher.logits.rows);
    let step = match config.block_size {
        0 => n.max(m),
        size => size,
    };
    let prior = Matrix::from_fn(n, m, |i, j| {
        config.position(false) * (i as f64 / n as f64 - j as f64 / m as f64).powi(2)
    });
    let mut values = Vec::new();
    for i in (0..n).step_by(step) {
        for j in (0..m).step_by(step) {
            let here = (i..(i + step).min(n), j..(j + step).min(m));
            let cost = |kind| cost(x, teacher, kind, here.clone(), config);
            let solved = cost((config.solved(), config.kappa));
            let paid = cost((config.paid(), config.paid_kappa()));
            let prior = prior.block(here.0.clone(), here.1.clone());
            values.push(objective(&solved, &paid, &prior, config));
        }
    }
    let sum: f64 = values.iter().sum();
    match config.reduction {
        Reduction::Mean => sum / values.len() as f64,
        Reduction::Sum => sum,
    }
}

/// The whole loss of dense logits.
pub fn total(x: &Matrix, teacher: &Teacher, labels: &[u32], config: &LossConfig) -> f64 {
    let mut total = config.ce_weight * cross_entropy(x, labels);
    if config.divergence_weight() > 0.0 {
        total += divergences(x, teacher, config);
    }
    if config.ot_weight > 0.0 {
        total += config.ot_weight * transport(x, teacher, &config.align);
    }
    total
}

/// The gradient of `value` at `x`, by central differences.
pub fn central_differences(x: &Matrix, step: f64, value: impl Fn(&Matrix) -> f64) -> Matrix {
    let mut gradient = x.clone();
    let mut moved = x.clone();
    for k in 0..x.data.len() {
        moved.data[k] = x.data[k] + step;
        let above = value(&moved);
        moved.data[k] = x.data[k] - step;
        gradient.data[k] = (above - value(&moved)) / (2.0 * step);
        moved.data[k] = x.data[k];
    }
    gradient
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn xlogx(t: f64) -> f64 {
    if t > 0.0 { t * t.ln() } else { 0.0 }
}

fn scaled(s: &Matrix, factor: f64) -> Matrix {
    Matrix::from_fn(s.rows, s.columns, |i, j| s.at(i, j) * factor)
}

fn centered(x: &Matrix) -> Matrix {
    let means: Vec<f64> = (0..x.rows)
        .map(|i| x.row(i).iter().sum::<f64>() / x.columns as f64)
        .collect();
    Matrix::from_fn(x.rows, x.columns, |i, j| x.at(i, j) - means[i])
}
