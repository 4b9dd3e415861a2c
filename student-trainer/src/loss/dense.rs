//! Provides the same losses from dense logits, with gradients to them: what the `losses` command shows the world.

use candle_core::{DType, Device, Tensor};
use distill_proto::{Estimator, Rows, StateKind, ValueCoding};
use rayon::prelude::*;

use super::bhattacharyya::Bhattacharyya;
use super::config::{AlignConfig, Cost, LossConfig, Similarity, no_states};
use super::cost::kl_cost_rows;
use super::divergence::Divergences;
use super::error::{LossError, Result};
use super::euclidean::SquaredEuclidean;
use super::head::{Counts, LossValues, check_labels, sum_up};
use super::rows::{RowTerms, RowValues, row_pass};
use super::rowwise::{each_row, to_host};
use super::similarity::Bilinear;
use super::sparse;
use super::targets::Targets;
use super::teacher::Teacher;
use super::transport::{Entries, Problem, Transport, transport};

/// The losses of dense logits.
#[derive(Clone, Debug)]
pub struct DenseLoss {
    /// A part that is absent, `ce` without labels among them, is 0 and not in `total`.
    pub values: LossValues,
    /// Why there is no divergence.
    pub kl_absent: Option<String>,
    /// Why there is no transport.
    pub ot_absent: Option<String>,
    /// d ot / dX `[N, V]`, without its weight.
    pub grad_ot: Option<Tensor>,
    /// d total / dX `[N, V]`.
    pub grad_total: Tensor,
}

/// The losses of dense logits on the host, in f32: every part that these logits can feed, whatever its weight.
///
/// `labels` are the targets of the N rows; `top_k` cuts the teacher to its K largest logits first, as a capture would.
///
/// # Shapes
/// `student`: X `[N, V]`; `teacher`: Y `[M, V]`.
///
/// # Errors
/// Settings that this teacher cannot feed, shapes that do not fit, and NaN or infinity anywhere.
pub fn dense_loss(
    student: &Tensor,
    teacher: &Tensor,
    labels: Option<&[u32]>,
    top_k: Option<usize>,
    config: &LossConfig,
) -> Result<DenseLoss> {
    let x = host_logits(student)?;
    let y = host_logits(teacher)?;
    let ((n, vocab_size), (m, teacher_vocab)) = (x.dims2()?, y.dims2()?);
    if vocab_size != teacher_vocab {
        return Err(LossError::shape(
            "columns of the teacher's logits",
            vocab_size,
            teacher_vocab,
        ));
    }
    let k = top_k.unwrap_or(vocab_size);
    if k == 0 || k > vocab_size {
        return Err(LossError::shape("top_k", format!("1..={vocab_size}"), k));
    }
    let state = top_k.is_none().then_some(StateKind::Exact);
    let check = |ot_weight| {
        let config = LossConfig {
            // Whatever has a weight: here every part is computed that can be.
            ce_weight: config.ce_weight.max(1.0),
            ot_weight,
            ..config.clone()
        };
        let temperatures = [1.0, config.kl_temperature as f32];
        config.check_teacher(Estimator::TopK, &temperatures, state)
    };
    check(0.0)?;
    let ot_absent = if config.align.needs_states() {
        Some("dense logits come without the hidden states that this alignment compares".to_owned())
    } else {
        check(config.ot_weight.max(1.0))
            .err()
            .map(|error| error.to_string())
    };
    if let Some(labels) = labels {
        check_labels(labels, n, vocab_size)?;
    }
    let rows = compress(&y, k, &[1.0, config.kl_temperature as f32])?;
    let targets = Targets::from_rows(&rows);
    let teacher = Teacher::new(&targets, vocab_size)?;
    let pairs = if n == m { n } else { 0 };
    let kl_absent = (n != m).then(|| {
        format!(
            "KL pairs position with position, but there are {n} of the student and {m} of the teacher"
        )
    });

    let (values, mut grad_total) = cross_terms(&x, &teacher, labels, pairs, config)?;
    let mut result = sum_up(&values, None, Counts { labelled: n, pairs }, config)?;
    if labels.is_none() {
        result.ce = 0.0;
        result.total = config.kl_weight * result.kl
            + config.reverse_kl_weight * result.reverse_kl
            + config.jsd_weight * result.jsd;
    }
    let mut grad_ot = None;
    if ot_absent.is_none() {
        let align = &config.align;
        let part = DenseTransport {
            x: &x,
            y: &y,
            teacher: &teacher,
            logsumexp: align
                .sees_rows()
                .then(|| values.iter().map(|v| v.logsumexp).collect()),
            align,
        };
        let (transport, gradient) = part.run()?;
        result.ot = transport.value;
        result.report = transport.report;
        if let Some(factor) = align.row_constant() {
            let rows = values.iter().zip(&transport.row_mass);
            let constant: f64 = rows.map(|(v, mass)| mass * v.logsumexp).sum();
            result.ot += factor * constant;
            result.report.transport_cost += factor * constant;
        }
        result.total += config.ot_weight * result.ot;
        grad_total = (grad_total + (&gradient * config.ot_weight)?)?;
        grad_ot = Some(gradient);
    }
    Ok(DenseLoss {
        values: result,
        kl_absent,
        ot_absent,
        grad_ot,
        grad_total,
    })
}

fn host_logits(logits: &Tensor) -> Result<Tensor> {
    let host = logits
        .detach()
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .contiguous()?;
    let (n, _) = host.dims2()?;
    if n == 0 {
        return Err(LossError::shape("logits", "at least one row", n));
    }
    Ok(host)
}

/// CE and every divergence, whatever its weight, and their gradient; divergences of the first `pairs` rows.
fn cross_terms(
    x: &Tensor,
    teacher: &Teacher,
    labels: Option<&[u32]>,
    pairs: usize,
    config: &LossConfig,
) -> Result<(Vec<RowValues>, Tensor)> {
    let n = x.dims()[0] as f64;
    let weights = [
        config.kl_weight,
        config.reverse_kl_weight,
        config.jsd_weight,
    ];
    let divergences = Divergences {
        weights: weights.map(|weight| Some(weight / n)),
        beta: config.jsd_beta,
    };
    let (gradient, values) = each_row(x.copy()?, |i, z| {
        let beside = (i < pairs)
            .then(|| teacher.row(i, config.kl_temperature))
            .flatten();
        let terms = RowTerms {
            label: labels.map_or(0, |labels| labels[i]),
            ce: labels.map_or(0.0, |_| config.ce_weight / n),
            teacher: beside,
            divergences,
            softmax: 0.0,
        };
        row_pass(z, &terms, true)
    })?;
    Ok((values, gradient))
}

/// Transport between dense logits.
struct DenseTransport<'a> {
    x: &'a Tensor,
    y: &'a Tensor,
    teacher: &'a Teacher<'a>,
    /// Of the student's rows, where a plan or its gradient needs it.
    logsumexp: Option<Vec<f64>>,
    align: &'a AlignConfig,
}

/// A matrix over pairs of positions with its way back to X.
enum Measured<'a> {
    /// With kappa, and the teacher's distributions where all ids are kept.
    Kl(f64, Option<Tensor>),
    Roots(Bhattacharyya<'a>),
    Bilinear(Bilinear, Tensor),
    Distances(SquaredEuclidean),
}

impl<'a> DenseTransport<'a> {
    /// The loss, and its gradient in X.
    fn run(&self) -> Result<(Transport, Tensor)> {
        let align = self.align;
        let (n, m) = (self.x.dims()[0], self.y.dims()[0]);
        let (solved, matrix) = self.measure(align.solved(), align.kappa)?;
        let other = (align.paid() != align.solved())
            .then(|| self.measure(align.paid(), align.paid_kappa()));
        let (paid, paid_matrix) = other.transpose()?.unzip();
        let masses = self.teacher.masses(align.marginals);
        let problem = Problem {
            solved: matrix,
            paid: paid_matrix,
            n,
            m,
            alignment: None,
            masses: masses.as_deref(),
        };
        let transport = transport(problem, align)?;
        let mut sum = self.x.zeros_like()?;
        for (measured, gradient) in [(Some(solved), &transport.solved), (paid, &transport.paid)] {
            if let (Some(measured), Some(gradient)) = (measured, gradient) {
                sum = (sum + self.pull_back(&measured, gradient)?)?;
            }
        }
        Ok((transport, sum))
    }

    /// The matrix of a cost, before what is done within blocks.
    fn measure(&self, cost: Cost, kappa: f64) -> Result<(Measured<'a>, Vec<f32>)> {
        match cost {
            Cost::Kl => self.kl(kappa),
            Cost::SquaredEuclidean => {
                let distances = SquaredEuclidean::from_logits(self.x, self.y)?;
                let matrix = to_host(&distances.forward()?)?;
                Ok((Measured::Distances(distances), matrix))
            }
            Cost::SoftmaxSimilarity if self.align.similarity == Similarity::Bhattacharyya => {
                let mut roots = Bhattacharyya::new(self.teacher);
                roots.push(self.x.copy()?)?;
                let matrix = roots.s.clone();
                Ok((Measured::Roots(roots), matrix))
            }
            Cost::SoftmaxSimilarity => {
                let similarity = Bilinear::from_logits(self.align.similarity, self.x, self.y)?;
                let s = similarity.forward()?;
                let matrix = to_host(&s)?;
                Ok((Measured::Bilinear(similarity, s), matrix))
            }
            Cost::Hidden => Err(no_states()),
        }
    }

    /// `C = (sum p ln p - x_i . p_j + lse_i) / kappa`.
    fn kl(&self, kappa: f64) -> Result<(Measured<'a>, Vec<f32>)> {
        let teacher = self.teacher;
        let (targets, p) = (teacher.targets, &teacher.weights);
        let (m, vocab_size) = (teacher.rows(), self.x.dims()[1]);
        let (p, mut cost) = if p.len() == m * vocab_size {
            let p = Tensor::from_slice(p, (m, vocab_size), self.x.device())?;
            let dots = to_host(&self.x.matmul(&p.t()?)?)?;
            (Some(p), dots)
        } else {
            let dots = |_, z: &mut [f32]| {
                let mut out = vec![0.0; m];
                sparse::dots(z, &targets.ids, p, &targets.starts, &mut out);
                out
            };
            (None, each_row(self.x.copy()?, dots)?.1.concat())
        };
        let logsumexp = self.logsumexp.as_deref();
        kl_cost_rows(&mut cost, &teacher.negative_entropy, logsumexp, kappa);
        Ok((Measured::Kl(kappa, p), cost))
    }

    fn pull_back(&self, measured: &Measured, gradient: &Entries) -> Result<Tensor> {
        let (n, m) = (self.x.dims()[0], self.y.dims()[0]);
        let tensor = || gradient.tensor(m, 1.0, self.x.device());
        match measured {
            Measured::Kl(kappa, p) => self.pull_back_kl(gradient, *kappa, p.as_ref()),
            Measured::Roots(roots) => {
                let g = gradient.rows(0, n, m)?;
                let through = |i: usize, z: &mut [f32]| {
                    let g = &g[i * m..(i + 1) * m];
                    z.copy_from_slice(&roots.backward(i, z, g, 1.0));
                };
                Ok(each_row(self.x.copy()?, through)?.0)
            }
            Measured::Bilinear(similarity, s) => similarity.backward(s, &tensor()?),
            Measured::Distances(distances) => distances.backward(&tensor()?),
        }
    }

    /// dX = (rowsum(G) q - G p) / kappa.
    fn pull_back_kl(&self, gradient: &Entries, kappa: f64, p: Option<&Tensor>) -> Result<Tensor> {
        let (n, m) = (self.x.dims()[0], self.y.dims()[0]);
        let (targets, weights) = (self.teacher.targets, &self.teacher.weights);
        let rows = gradient.rows(0, n, m)?;
        let (through, _) = each_row(self.x.copy()?, |i, z| {
            let g = &rows[i * m..(i + 1) * m];
            let sum: f64 = g.iter().map(|&g| f64::from(g)).sum();
            let terms = RowTerms {
                label: 0,
                ce: 0.0,
                teacher: None,
                divergences: Divergences::NONE,
                softmax: sum / kappa,
            };
            row_pass(z, &terms, true);
            if p.is_none() {
                let factors: Vec<f32> = g.iter().map(|g| -g / kappa as f32).collect();
                sparse::add(z, &targets.ids, weights, &targets.starts, &factors);
            }
        })?;
        Ok(match p {
            Some(p) => {
                let g = gradient.tensor(m, -1.0 / kappa, self.x.device())?;
                (through + g.matmul(p)?)?
            }
            None => through,
        })
    }
}

/// The rows that a teacher with these logits would send, without quantisation: the K largest of each row (the lower id
/// first among equals), and the statistics of the whole row.
///
/// # Shapes
/// `y`: `[M, V]`, contiguous f32 on the host.
pub(crate) fn compress(y: &Tensor, k: usize, temperatures: &[f32]) -> Result<Rows> {
    let (m, vocab_size) = y.dims2()?;
    let y = to_host(y)?;
    if let Some(position) = y
        .par_chunks(vocab_size)
        .position_first(|row| row.iter().any(|y| !y.is_finite()))
    {
        return Err(LossError::NonFinite {
            what: "teacher logits",
            position,
        });
    }
    let top = |row: &[f32]| {
        let mut ids: Vec<u32> = (0..vocab_size as u32).collect();
        if k < vocab_size {
            let logit = |id: u32| row[id as usize];
            ids.select_nth_unstable_by(k, |&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
            ids.truncate(k);
            ids.sort_unstable();
        }
        ids
    };
    let ids: Vec<u32> = y.par_chunks(vocab_size).flat_map_iter(top).collect();
    let logits = ids.iter().enumerate();
    let logits = logits
        .map(|(entry, &id)| y[entry / k * vocab_size + id as usize])
        .collect();
    let statistic = |of: &(dyn Fn(&[f32]) -> f64 + Sync)| -> Vec<f32> {
        y.par_chunks(vocab_size).map(|row| of(row) as f32).collect()
    };
    let size = vocab_size as f64;
    let mean = |row: &[f32]| row.iter().map(|&y| f64::from(y)).sum::<f64>() / size;
    let top = |row: &[f32]| f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let logsumexp = |row: &[f32], tau: f64| {
        let top = top(row);
        let exps = row.iter().map(|&y| ((f64::from(y) - top) / tau).exp());
        top / tau + exps.sum::<f64>().ln()
    };
    Ok(Rows {
        rows: m,
        k,
        vocab_size: vocab_size as u32,
        estimator: Estimator::TopK,
        coding: ValueCoding::F16,
        ids,
        logits,
        counts: Vec::new(),
        max: statistic(&top),
        mean: statistic(&mean),
        std: statistic(&|row| {
            let mean = mean(row);
            let squares = row.iter().map(|&y| (f64::from(y) - mean).powi(2));
            (squares.sum::<f64>() / size).sqrt()
        }),
        logsumexp: temperatures
            .iter()
            .map(|&tau| statistic(&|row| logsumexp(row, f64::from(tau))))
            .collect(),
        temperatures: temperatures.to_vec(),
        state: None,
    })
}
