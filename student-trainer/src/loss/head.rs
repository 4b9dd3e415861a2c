/*! Provides the fused head: from hidden states to the losses and dL/dH, in chunks of rows; `[N, V]` never exists.

```text
 H ──> S or H E^T ──> costs ──> plan T ──> dH (through E or the anchors) ──┐
 H ──> chunk: Z = h W^T ──> logsumexp, CE, KL ──> D (and T's softmax part) ──> D W ──> + ──> dL/dH
```
*/

use candle_core::{DType, Tensor};
use distill_proto::Rows;
use rayon::prelude::*;

use super::config::{Cost, LossConfig, Similarity};
use super::cost::kl_cost_rows;
use super::error::{LossError, Result};
use super::geometry::HeadGeometry;
use super::rows::{RowTerms, RowValues, row_pass};
use super::rowwise::{each_row, to_host};
use super::similarity::Bilinear;
use super::simd::{exp_in_place, max, vectorized};
use super::sparse;
use super::teacher::Teacher;
use super::transport::{SolverReport, Transport, transport};

/// The losses of a sequence, without weights except in `total`. A part whose weight is 0 is not computed: 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct LossValues {
    /// `ce_weight ce + kl_weight kl + ot_weight ot`.
    pub total: f64,
    /// Mean cross-entropy in nats; always computed.
    pub ce: f64,
    /// `tau^2 KL`, mean over targets.
    pub kl: f64,
    /// The transport objective.
    pub ot: f64,
    /// How the solver fared.
    pub report: SolverReport,
}

/// The losses with their gradient.
#[derive(Clone, Debug)]
pub struct HeadLoss {
    /// `ce_weight ce + kl_weight kl + ot_weight ot`.
    pub total: f64,
    /// Mean cross-entropy in nats; always computed.
    pub ce: f64,
    /// `tau^2 KL`, mean over targets; 0 when its weight is 0.
    pub kl: f64,
    /// The transport objective; 0 when its weight is 0.
    pub ot: f64,
    /// How the solver fared.
    pub report: SolverReport,
    /// dtotal/dH `[N, d]`, f32.
    pub grad_hidden: Tensor,
}

/// The losses of one sequence and dL/dH.
///
/// # Shapes
/// `hidden`: H `[N, d]`, the outputs that predict the N targets, in their order; `labels`: `[N]`, the targets; `rows`:
/// M teacher rows, M = N in the same order for KL.
///
/// # Errors
/// Settings that these rows cannot feed, shapes that do not fit, and NaN or infinity anywhere.
pub fn head_loss(
    hidden: &Tensor,
    labels: &[u32],
    rows: &Rows,
    geometry: &HeadGeometry,
    config: &LossConfig,
) -> Result<HeadLoss> {
    let (values, gradient) = run(hidden, labels, Some(rows), geometry, config, true)?;
    Ok(HeadLoss {
        total: values.total,
        ce: values.ce,
        kl: values.kl,
        ot: values.ot,
        report: values.report,
        grad_hidden: gradient,
    })
}

/// The losses alone, at half the work: for evaluation. Without rows only cross-entropy is computed.
///
/// # Shapes
/// As [`head_loss`].
///
/// # Errors
/// As [`head_loss`].
pub fn head_values(
    hidden: &Tensor,
    labels: &[u32],
    rows: Option<&Rows>,
    geometry: &HeadGeometry,
    config: &LossConfig,
) -> Result<LossValues> {
    Ok(run(hidden, labels, rows, geometry, config, false)?.0)
}

fn run(
    hidden: &Tensor,
    labels: &[u32],
    rows: Option<&Rows>,
    geometry: &HeadGeometry,
    config: &LossConfig,
    gradient: bool,
) -> Result<(LossValues, Tensor)> {
    let hidden = checked_hidden(hidden, labels, geometry)?;
    let teacher = match rows {
        Some(rows) => {
            config.check_rows(rows, geometry.has_basis())?;
            Some(Teacher::new(rows, geometry.vocab_size())?)
        }
        None => None,
    };
    let ot = match &teacher {
        Some(teacher) if config.ot_weight > 0.0 => {
            Some(HeadTransport::solve(&hidden, teacher, geometry, config)?)
        }
        _ => None,
    };
    let pass = HeadPass {
        labels,
        teacher: teacher.as_ref(),
        ot: ot.as_ref(),
        config,
        gradient,
    };
    let (values, mut grad_hidden) = pass.run(&hidden, geometry)?;
    let mut result = sum_up(&values, config)?;
    if let Some(ot) = ot {
        result.ot = ot.transport.value;
        result.report = ot.transport.report;
        if ot.row_costs {
            let rows = values.iter().zip(&ot.transport.row_mass);
            let constant: f64 = rows.map(|(v, mass)| mass * v.logsumexp).sum();
            result.ot += constant / config.ot.kappa;
            result.report.transport_cost += constant / config.ot.kappa;
        }
        if let (true, Some(direct)) = (gradient, &ot.grad_hidden) {
            grad_hidden = (grad_hidden + direct)?;
        }
    }
    result.total += config.ot_weight * result.ot;
    let finite = grad_hidden.sqr()?.sum_all()?.to_scalar::<f32>()?;
    if !(result.total.is_finite() && finite.is_finite()) {
        return Err(LossError::NonFinite {
            what: "loss or its gradient",
            position: 0,
        });
    }
    Ok((result, grad_hidden))
}

/// Means over the rows; the first row that is not finite is named.
pub(crate) fn sum_up(values: &[RowValues], config: &LossConfig) -> Result<LossValues> {
    let bad = |v: &RowValues| !(v.ce.is_finite() && v.kl.is_finite() && v.logsumexp.is_finite());
    if let Some(position) = values.iter().position(bad) {
        return Err(LossError::NonFinite {
            what: "student logits",
            position,
        });
    }
    let n = values.len() as f64;
    let ce = values.iter().map(|v| v.ce).sum::<f64>() / n;
    let kl = values.iter().map(|v| v.kl).sum::<f64>() / n;
    Ok(LossValues {
        total: config.ce_weight * ce + config.kl_weight * kl,
        ce,
        kl,
        ..LossValues::default()
    })
}

/// Labels that are targets of this vocabulary, one for each of `n` rows.
pub(crate) fn check_labels(labels: &[u32], n: usize, vocab_size: usize) -> Result<()> {
    if n == 0 || labels.len() != n {
        return Err(LossError::shape("labels", format!("one for each of {n} rows, at least one"), labels.len()));
    }
    match labels.iter().find(|&&label| label as usize >= vocab_size) {
        Some(label) => Err(LossError::shape("label", format!("below {vocab_size}"), label)),
        None => Ok(()),
    }
}

fn checked_hidden(hidden: &Tensor, labels: &[u32], geometry: &HeadGeometry) -> Result<Tensor> {
    let (n, d) = hidden.dims2()?;
    if d != geometry.hidden_size() {
        return Err(LossError::shape("hidden size", geometry.hidden_size(), d));
    }
    check_labels(labels, n, geometry.vocab_size())?;
    Ok(hidden.detach().to_dtype(DType::F32)?.contiguous()?)
}

/// Solved transport, and how its gradient reaches the hidden states.
struct HeadTransport {
    transport: Transport,
    /// The part that does not pass through the logits, weighted.
    grad_hidden: Option<Tensor>,
    /// Whether logsumexp of the student's rows is part of the cost (and its gradient).
    row_costs: bool,
    /// Under `bhattacharyya`: what the gradient through the logits needs.
    roots: Option<Roots>,
}

/// `bhattacharyya` through the logits.
struct Roots {
    /// `[M, K]`, sqrt(p).
    values: Vec<f32>,
    /// `[N]`.
    logsumexp: Vec<f64>,
    /// `[N]`: `sum_j g_ij S_ij / 2`.
    share: Vec<f64>,
}

impl HeadTransport {
    fn solve(
        hidden: &Tensor,
        teacher: &Teacher,
        geometry: &HeadGeometry,
        config: &LossConfig,
    ) -> Result<Self> {
        match (config.ot.cost, config.ot.similarity) {
            (Cost::Kl, _) => Self::kl(hidden, teacher, geometry, config),
            (Cost::SoftmaxSimilarity, Similarity::Bhattacharyya) => {
                Self::bhattacharyya(hidden, teacher, geometry, config)
            }
            (Cost::SoftmaxSimilarity, kind) => {
                let similarity = Bilinear::from_state(kind, hidden, teacher.rows, geometry)?;
                let s = similarity.forward()?;
                let (n, m) = s.dims2()?;
                let transport = transport(to_host(&s)?, n, m, &config.ot)?;
                let gradient = weighted(&transport, (n, m), config.ot_weight, hidden)?;
                Ok(Self {
                    grad_hidden: Some(similarity.backward(&s, &gradient)?),
                    transport,
                    row_costs: false,
                    roots: None,
                })
            }
        }
    }

    /// `C_ij = (sum p ln p - h_i . e_j + lse_i) / kappa`: the plan needs no logits.
    fn kl(hidden: &Tensor, teacher: &Teacher, geometry: &HeadGeometry, config: &LossConfig) -> Result<Self> {
        let expectation = geometry.expectation(teacher)?;
        let dots = hidden.matmul(&expectation.t()?)?;
        let (n, m) = dots.dims2()?;
        let mut cost = to_host(&dots)?;
        kl_cost_rows(&mut cost, &teacher.negative_entropy, config.ot.kappa);
        let transport = transport(cost, n, m, &config.ot)?;
        let factor = -config.ot_weight / config.ot.kappa;
        let gradient = weighted(&transport, (n, m), factor, hidden)?;
        Ok(Self {
            grad_hidden: Some(gradient.matmul(&expectation)?),
            transport,
            row_costs: true,
            roots: None,
        })
    }

    /// `S_ij = sum_v sqrt(p_jv q_iv)`: one pass over the head before the pass for the gradient.
    fn bhattacharyya(
        hidden: &Tensor,
        teacher: &Teacher,
        geometry: &HeadGeometry,
        config: &LossConfig,
    ) -> Result<Self> {
        let (n, m, k) = (hidden.dims()[0], teacher.rows.rows, teacher.rows.k);
        let values = teacher.roots();
        let mut s = Vec::with_capacity(n * m);
        let mut logsumexp = Vec::with_capacity(n);
        for (start, count) in chunks(n, config.chunk_rows) {
            let z = geometry.logits(&hidden.narrow(0, start, count)?)?;
            for (lse, row) in each_row(z, |_, z| root_similarities(z, teacher.rows, &values, k))?.1 {
                logsumexp.push(lse);
                s.extend(row);
            }
        }
        let transport = transport(s.clone(), n, m, &config.ot)?;
        let rows = transport.gradient.par_chunks(m).zip(s.par_chunks(m));
        let share = rows.map(|(g, s)| 0.5 * inner(g, s)).collect();
        Ok(Self {
            transport,
            grad_hidden: None,
            row_costs: false,
            roots: Some(Roots {
                values,
                logsumexp,
                share,
            }),
        })
    }

    /// Weight of `d logsumexp(z_i) / dz = q_i` in the whole gradient.
    fn softmax_weight(&self, i: usize, config: &LossConfig) -> f64 {
        let through_cost = if self.row_costs {
            self.transport.row_mass[i] / config.ot.kappa
        } else {
            0.0
        };
        let through_roots = self.roots.as_ref().map_or(0.0, |roots| roots.share[i]);
        config.ot_weight * (through_cost - through_roots)
    }
}

/// logsumexp of one row and its S; z becomes sqrt(q).
pub(crate) fn root_similarities(z: &mut [f32], rows: &Rows, roots: &[f32], k: usize) -> (f64, Vec<f32>) {
    let mut copy = z.to_vec();
    let logsumexp = vectorized(|| {
        let largest = max(&copy);
        f64::from(largest) + exp_in_place(&mut copy, largest, 1.0).ln()
    });
    vectorized(|| exp_in_place(z, logsumexp as f32, 0.5));
    let mut s = vec![0.0; rows.rows];
    sparse::dots(z, &rows.ids, roots, k, &mut s);
    (logsumexp, s)
}

/// The pass over the head that yields values and, if asked for, the gradient.
struct HeadPass<'a> {
    labels: &'a [u32],
    teacher: Option<&'a Teacher<'a>>,
    ot: Option<&'a HeadTransport>,
    config: &'a LossConfig,
    gradient: bool,
}

impl HeadPass<'_> {
    fn run(&self, hidden: &Tensor, geometry: &HeadGeometry) -> Result<(Vec<RowValues>, Tensor)> {
        let n = hidden.dims()[0];
        let mut values = Vec::with_capacity(n);
        let mut gradients = Vec::new();
        for (start, count) in chunks(n, self.config.chunk_rows) {
            let z = geometry.logits(&hidden.narrow(0, start, count)?)?;
            let (d, chunk) = each_row(z, |i, z| self.row(start + i, z))?;
            values.extend(chunk);
            if self.gradient {
                gradients.push(geometry.backward(&d)?);
            }
        }
        let gradient = if self.gradient {
            Tensor::cat(&gradients, 0)?
        } else {
            Tensor::zeros(1, DType::F32, hidden.device())?
        };
        Ok((values, gradient))
    }

    fn row(&self, i: usize, z: &mut [f32]) -> RowValues {
        let n = self.labels.len() as f64;
        let (config, teacher) = (self.config, self.teacher);
        let kl = teacher
            .filter(|_| config.kl_weight > 0.0)
            .and_then(|teacher| teacher.row(i, config.kl_temperature));
        let terms = RowTerms {
            label: self.labels[i],
            ce: config.ce_weight / n,
            kl: kl.map(|row| (row, config.kl_weight / n)),
            softmax: self.ot.map_or(0.0, |ot| ot.softmax_weight(i, config)),
        };
        let through_roots = self.through_roots(i, z);
        let values = row_pass(z, &terms, self.gradient);
        if let Some(extra) = through_roots {
            for (z, extra) in z.iter_mut().zip(extra) {
                *z += extra;
            }
        }
        values
    }

    /// `sqrt(q_iu) sum_j g_ij sqrt(p_ju) / 2`, the part of `bhattacharyya` at the kept ids.
    fn through_roots(&self, i: usize, z: &[f32]) -> Option<Vec<f32>> {
        let (ot, teacher) = (self.ot?, self.teacher.filter(|_| self.gradient)?);
        let roots = ot.roots.as_ref()?;
        let m = teacher.rows.rows;
        let factor = 0.5 * self.config.ot_weight as f32;
        let gradient = &ot.transport.gradient[i * m..(i + 1) * m];
        let factors: Vec<f32> = gradient.iter().map(|g| factor * g).collect();
        let mut extra = vec![0.0; z.len()];
        sparse::add(&mut extra, &teacher.rows.ids, &roots.values, teacher.rows.k, &factors);
        let mut root = z.to_vec();
        vectorized(|| exp_in_place(&mut root, roots.logsumexp[i] as f32, 0.5));
        for (extra, root) in extra.iter_mut().zip(root) {
            *extra *= root;
        }
        Some(extra)
    }
}

fn weighted(transport: &Transport, shape: (usize, usize), weight: f64, like: &Tensor) -> Result<Tensor> {
    let gradient = Tensor::from_slice(&transport.gradient, shape, like.device())?;
    Ok((gradient * weight)?)
}

fn inner(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

pub(crate) fn chunks(rows: usize, step: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows)
        .step_by(step)
        .map(move |start| (start, step.min(rows - start)))
}
