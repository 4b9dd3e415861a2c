/*! Provides the fused head: from hidden states to the losses and dL/dH, in chunks of rows; `[N, V]` never exists.

```text
 H ──> S or H E^T ──> costs ──> plan T ──> dH (through E or the anchors) ──┐
 H ──> chunk: Z = h W^T ──> logsumexp, CE, KL ──> D (and T's softmax part) ──> D W ──> + ──> dL/dH
```
*/

use candle_core::{DType, Tensor};

use super::config::LossConfig;
use super::error::{LossError, Result};
use super::geometry::HeadGeometry;
use super::head_pass::{Gradients, HeadPass, Wanted};
use super::head_transport::HeadTransport;
use super::hidden::{HiddenProjection, StatesGradient};
use super::rows::RowValues;
use super::targets::Targets;
use super::teacher::Teacher;
use super::transport::SolverReport;

/// The losses of a sequence, without weights except in `total`. A part whose weight is 0 is not computed: 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct LossValues {
    /// The sum of all parts, each times its weight.
    pub total: f64,
    /// Mean cross-entropy in nats; computed whatever its weight where any other part needs logits, or values alone are
    /// asked for.
    pub ce: f64,
    /// `tau^2 KL(teacher || student)`, mean over targets.
    pub kl: f64,
    /// `tau^2 KL(student || teacher)`, mean over targets.
    pub reverse_kl: f64,
    /// `tau^2 JSD`, mean over targets.
    pub jsd: f64,
    /// The transport objective.
    pub ot: f64,
    /// How the solver fared.
    pub report: SolverReport,
}

/// What the loss sees of the student.
#[derive(Clone, Copy, Debug)]
pub struct Student<'a> {
    /// H `[N, d]`, the outputs that predict the N targets, in their order.
    pub hidden: &'a Tensor,
    /// For costs of hidden states: those before the same targets, of every pair of layers.
    pub states: &'a [LayerStates<'a>],
}

/// Hidden states of one of the student's layers, with the map from the teacher's to them.
#[derive(Clone, Copy, Debug)]
pub struct LayerStates<'a> {
    /// X `[N, d]`.
    pub states: &'a Tensor,
    /// P, and which layers it is between.
    pub projection: &'a HiddenProjection,
}

impl<'a> From<&'a Tensor> for Student<'a> {
    fn from(hidden: &'a Tensor) -> Self {
        Self {
            hidden,
            states: &[],
        }
    }
}

/// The losses with their gradient.
#[derive(Clone, Debug)]
pub struct HeadLoss {
    /// The losses.
    pub values: LossValues,
    /// dtotal/dH `[N, d]`, f32.
    pub grad_hidden: Tensor,
    /// dtotal/dX and dtotal/dP of every pair of layers whose states are compared.
    pub grad_states: Vec<StatesGradient>,
}

impl HeadLoss {
    fn new(values: LossValues, gradients: &Gradients) -> Self {
        Self {
            values,
            grad_hidden: gradients.hidden.clone(),
            grad_states: gradients.states.clone(),
        }
    }
}

/// The losses of one sequence and dL/dH.
///
/// # Shapes
/// `student`: H `[N, d]`, the outputs that predict the N targets, in their order; `labels`: `[N]`, the targets;
/// `targets`: M teacher rows, beside the N as their alignment says, or M = N in the same order for KL.
///
/// # Errors
/// Settings that these rows cannot feed, shapes that do not fit, and NaN or infinity anywhere.
pub fn head_loss<'a>(
    student: impl Into<Student<'a>>,
    labels: &[u32],
    targets: &Targets,
    geometry: &HeadGeometry,
    config: &LossConfig,
) -> Result<HeadLoss> {
    let student = student.into();
    let targets = Some(targets);
    let (values, gradients) = run(student, labels, targets, geometry, config, Wanted::Hidden)?;
    Ok(HeadLoss::new(values, &gradients))
}

/// As [`head_loss`], with dtotal/dW `[V, d]` beside it, for a head that is trained too. Without rows only cross-entropy is
/// computed.
///
/// # Shapes
/// As [`head_loss`].
///
/// # Errors
/// As [`head_loss`]; and similarities of whole logit rows, whose way to W is not built.
pub fn head_loss_with_head<'a>(
    student: impl Into<Student<'a>>,
    labels: &[u32],
    targets: Option<&Targets>,
    geometry: &HeadGeometry,
    config: &LossConfig,
) -> Result<(HeadLoss, Tensor)> {
    if targets.is_some() {
        config.check_trained_head()?;
    }
    let (student, wanted) = (student.into(), Wanted::HiddenAndHead);
    let (values, gradients) = run(student, labels, targets, geometry, config, wanted)?;
    Ok((HeadLoss::new(values, &gradients), gradients.head))
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
    targets: Option<&Targets>,
    geometry: &HeadGeometry,
    config: &LossConfig,
) -> Result<LossValues> {
    let student = Student::from(hidden);
    Ok(run(student, labels, targets, geometry, config, Wanted::Values)?.0)
}

fn run(
    student: Student,
    labels: &[u32],
    targets: Option<&Targets>,
    geometry: &HeadGeometry,
    config: &LossConfig,
    wanted: Wanted,
) -> Result<(LossValues, Gradients)> {
    let hidden = checked_hidden(student.hidden, labels, geometry)?;
    let student = Student {
        hidden: &hidden,
        ..student
    };
    let teacher = match targets {
        Some(targets) => {
            config.check_targets(targets, geometry.has_basis())?;
            check_pairs(labels.len(), targets, config)?;
            Some(Teacher::new(targets, geometry.vocab_size())?)
        }
        None => None,
    };
    let ot = match &teacher {
        Some(teacher) if config.ot_weight > 0.0 => Some(HeadTransport::solve(
            student, teacher, geometry, config, wanted,
        )?),
        _ => None,
    };
    let counts = Counts::of(targets, labels.len());
    let pass = HeadPass {
        labels,
        teacher: teacher.as_ref(),
        counts,
        ot: ot.as_ref(),
        config,
        wanted,
    };
    let (values, mut gradients) = if pass.needs_logits() {
        pass.run(&hidden, geometry)?
    } else {
        pass.without_logits(&hidden, geometry)?
    };
    if let (true, Some(ot)) = (wanted != Wanted::Values, &ot) {
        if let Some(direct) = &ot.direct.hidden {
            gradients.hidden = (gradients.hidden + direct)?;
        }
        if let Some(direct) = &ot.direct.head {
            gradients.head = (gradients.head + direct)?;
        }
        gradients.states = ot.direct.states.clone();
    }
    let mut made = vec![&gradients.hidden];
    if wanted == Wanted::HiddenAndHead {
        made.push(&gradients.head);
    }
    made.extend(gradients.states.iter().flat_map(StatesGradient::tensors));
    let (values, sizes) = values.read(&made)?;
    let mut result = sum_up(&values, targets, counts, config)?;
    if let Some(ot) = ot {
        result.ot = ot.transport.value;
        result.report = ot.transport.report;
        if let Some(factor) = ot.row_constant {
            let rows = values.iter().zip(&ot.transport.row_mass);
            let constant: f64 = rows.map(|(v, mass)| mass * v.logsumexp).sum();
            result.ot += factor * constant;
            result.report.transport_cost += factor * constant;
        }
    }
    result.total += config.ot_weight * result.ot;
    if !(result.total.is_finite() && sizes.iter().all(|size| size.is_finite())) {
        return Err(LossError::NonFinite {
            what: "loss or its gradient",
            position: 0,
        });
    }
    Ok((result, gradients))
}

/// Means of CE over the rows that have a label, of divergences over those that have a pair; the first row that is not finite is named.
pub(crate) fn sum_up(
    values: &[RowValues],
    targets: Option<&Targets>,
    counts: Counts,
    config: &LossConfig,
) -> Result<LossValues> {
    let bad = |v: &RowValues| !(v.ce + v.logsumexp + v.divergences.iter().sum::<f64>()).is_finite();
    if let Some(position) = values.iter().position(bad) {
        return Err(LossError::NonFinite {
            what: "student logits",
            position,
        });
    }
    let labelled = |i: usize| targets.is_none_or(|targets| targets.is_labelled(i));
    let labelled = values.iter().enumerate().filter(|(i, _)| labelled(*i));
    let ce = labelled.map(|(_, v)| v.ce).sum::<f64>() / counts.labelled.max(1) as f64;
    let mean = |form: usize| {
        values.iter().map(|v| v.divergences[form]).sum::<f64>() / counts.pairs.max(1) as f64
    };
    let [kl, reverse_kl, jsd] = [mean(0), mean(1), mean(2)];
    Ok(LossValues {
        total: config.ce_weight * ce
            + config.kl_weight * kl
            + config.reverse_kl_weight * reverse_kl
            + config.jsd_weight * jsd,
        ce,
        kl,
        reverse_kl,
        jsd,
        ..LossValues::default()
    })
}

/// Labels that are targets of this vocabulary, one for each of `n` rows.
pub(crate) fn check_labels(labels: &[u32], n: usize, vocab_size: usize) -> Result<()> {
    if n == 0 || labels.len() != n {
        return Err(LossError::shape(
            "labels",
            format!("one for each of {n} rows, at least one"),
            labels.len(),
        ));
    }
    match labels.iter().find(|&&label| label as usize >= vocab_size) {
        Some(label) => Err(LossError::shape(
            "label",
            format!("below {vocab_size}"),
            label,
        )),
        None => Ok(()),
    }
}

/// How many of a sequence's rows the losses are means over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// Rows with a label.
    pub(crate) labelled: usize,
    /// Rows with a teacher's row beside them.
    pub(crate) pairs: usize,
}

impl Counts {
    /// Of n student rows.
    pub(crate) fn of(targets: Option<&Targets>, n: usize) -> Self {
        let count = |is: &dyn Fn(&Targets, usize) -> bool, without: usize| {
            targets.map_or(without, |targets| {
                (0..n).filter(|&i| is(targets, i)).count()
            })
        };
        Self {
            labelled: count(&Targets::is_labelled, n),
            pairs: count(&|targets, i| targets.pair(i).is_some(), 0),
        }
    }
}

/// Divergences pair row i with row i, or as the alignment says; the alignment must speak of these rows.
pub(crate) fn check_pairs(n: usize, targets: &Targets, config: &LossConfig) -> Result<()> {
    let m = targets.rows();
    if let Some(alignment) = &targets.alignment {
        let lengths = [
            alignment.pairs.len(),
            alignment.student_places.len(),
            alignment.teacher_places.len(),
        ];
        let mut joined = alignment.links.iter().chain(&alignment.equal);
        let inside = alignment.pairs.iter().flatten().all(|&j| j < m)
            && joined.all(|&(i, j)| (i as usize) < n && (j as usize) < m);
        let labelled = [0, n].contains(&alignment.labelled.len());
        if lengths == [n, n, m] && inside && labelled {
            return Ok(());
        }
        return Err(LossError::shape(
            "alignment",
            format!("of {n} student and {m} teacher positions"),
            format!("{lengths:?}"),
        ));
    }
    if config.divergence_weight() == 0.0 || n == m {
        return Ok(());
    }
    Err(LossError::Unsupported {
        what: "KL",
        reason: format!(
            "it pairs position with position, but there are {n} of the student and {m} of the teacher; set kl_weight, \
             reverse_kl_weight and jsd_weight to 0 (transport takes unequal lengths)"
        ),
    })
}

fn checked_hidden(hidden: &Tensor, labels: &[u32], geometry: &HeadGeometry) -> Result<Tensor> {
    let (n, d) = hidden.dims2()?;
    if d != geometry.hidden_size() {
        return Err(LossError::shape("hidden size", geometry.hidden_size(), d));
    }
    check_labels(labels, n, geometry.vocab_size())?;
    Ok(hidden.detach().to_dtype(DType::F32)?.contiguous()?)
}
