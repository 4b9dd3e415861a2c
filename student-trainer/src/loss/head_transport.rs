/*! Provides transport between the student's positions and teacher rows: matrices over pairs without the V axis, the plan, and
the way back.

```text
 kl:                 H E^T ──> C ──────> plan ──> gradient E ──> dH (and dE ──> dW)
 softmax-similarity: H P c ──> S ──> C ──> plan ──> gradient   ──> dH
 bhattacharyya:      one pass over the head for S; its gradient goes through the logits of the pass that follows
 hidden:             X (Y P)^T ──> C ──────> plan ──> gradient ──> dX, dP
```

The plan may be made for one of them while another one is paid: each has its own gradient and its own way back.
*/

use candle_core::{DType, Tensor};

use super::bhattacharyya::Bhattacharyya;
use super::config::{Cost, LossConfig, Similarity};
use super::cost::{kl_cost_rows, kl_costs};
use super::error::Result;
use super::euclidean::SquaredEuclidean;
use super::geometry::HeadGeometry;
use super::head::Student;
use super::head_pass::{Wanted, chunks};
use super::hidden::{Comparison, Comparisons, StatesGradient};
use super::rowwise::to_host;
use super::similarity::Bilinear;
use super::targets::Targets;
use super::teacher::Teacher;
use super::transport::{Entries, Problem, Transport, plans, transport};
use super::transport_card::CardTransport;

/// Solved transport, and how its gradient reaches the student.
pub(super) struct HeadTransport<'a> {
    pub(super) transport: Transport,
    /// The parts of the gradient that do not pass through the logits, weighted.
    pub(super) direct: Direct,
    /// `[N]`: weighted d loss / d logsumexp of the student's rows, where that is part of a cost.
    pub(super) row_weights: Option<Vec<f64>>,
    /// What logsumexp of the student's rows, weighted with the plan's row masses, adds to the value.
    pub(super) row_constant: Option<f64>,
    /// The way through the logits, with the gradient `[N, M]` in what comes of them.
    pub(super) roots: Option<(Bhattacharyya<'a>, Entries)>,
}

/// Gradients that are there without the logits.
#[derive(Default)]
pub(super) struct Direct {
    pub(super) hidden: Option<Tensor>,
    pub(super) head: Option<Tensor>,
    /// Of the states of layers, and of the projections to them.
    pub(super) states: Vec<StatesGradient>,
}

/// A matrix over pairs of positions with its way back.
enum Measured<'a> {
    Kl { expectation: Tensor, kappa: f64 },
    Bilinear { similarity: Bilinear, s: Tensor },
    Roots(Bhattacharyya<'a>),
    Distances(SquaredEuclidean),
    States(Comparisons),
}

impl<'a> HeadTransport<'a> {
    pub(super) fn solve(
        student: Student,
        teacher: &'a Teacher,
        geometry: &HeadGeometry,
        config: &LossConfig,
        wanted: Wanted,
    ) -> Result<Self> {
        let pass = TransportPass {
            student,
            teacher,
            geometry,
            config,
            wanted,
        };
        pass.run()
    }
}

/// Everything that a transport between a student's positions and rows is made from.
struct TransportPass<'p, 'a> {
    /// In f32.
    student: Student<'p>,
    teacher: &'a Teacher<'a>,
    geometry: &'p HeadGeometry,
    config: &'p LossConfig,
    wanted: Wanted,
}

impl<'a> TransportPass<'_, 'a> {
    fn run(&self) -> Result<HeadTransport<'a>> {
        let align = &self.config.align;
        let logsumexp = self.logsumexp()?;
        let logsumexp = logsumexp.as_deref();
        let (solved, matrix) = self.measure(align.solved(), align.kappa, logsumexp)?;
        let other = (align.paid() != align.solved())
            .then(|| self.measure(align.paid(), align.paid_kappa(), logsumexp));
        let (paid, paid_matrix) = other.transpose()?.unzip();
        let mut transport = self.transport(matrix, paid_matrix)?;
        let gradients = [
            (Some(solved), transport.solved.take()),
            (paid, transport.paid.take()),
        ];
        let mut found = HeadTransport {
            transport,
            direct: Direct::default(),
            row_weights: None,
            row_constant: align.row_constant(),
            roots: None,
        };
        if self.wanted == Wanted::Values {
            return Ok(found);
        }
        for (measured, gradient) in gradients {
            if let (Some(measured), Some(gradient)) = (measured, gradient) {
                self.pull_back(measured, gradient, &mut found)?;
            }
        }
        Ok(found)
    }

    /// Of the student's rows, where the plan or its gradient needs it.
    fn logsumexp(&self) -> Result<Option<Vec<f64>>> {
        if !self.config.align.sees_rows() {
            return Ok(None);
        }
        let rows = self
            .geometry
            .logsumexp(self.student.hidden, self.config.chunk_rows);
        rows.map(Some)
    }

    /// The matrix of a cost, before what is done within blocks.
    fn measure(
        &self,
        cost: Cost,
        kappa: f64,
        logsumexp: Option<&[f64]>,
    ) -> Result<(Measured<'a>, Entries)> {
        let similarity = self.config.align.similarity;
        match cost {
            Cost::Kl => self.kl(kappa, logsumexp),
            Cost::Hidden => self.states(Comparison::Centered),
            Cost::SquaredEuclidean => {
                let distances = SquaredEuclidean::from_state(
                    self.student.hidden,
                    self.teacher.targets,
                    self.geometry,
                )?;
                let matrix = Entries::Tensor(distances.forward()?);
                Ok((Measured::Distances(distances), matrix))
            }
            Cost::SoftmaxSimilarity => match similarity {
                Similarity::Bhattacharyya => self.bhattacharyya(),
                Similarity::HiddenScaledDot => self.states(Comparison::ScaledDot),
                Similarity::HiddenCosine => self.states(Comparison::Cosine),
                kind => {
                    let (hidden, targets) = (self.student.hidden, self.teacher.targets);
                    let similarity = Bilinear::from_state(kind, hidden, targets, self.geometry)?;
                    let s = similarity.forward()?;
                    let matrix = Entries::Tensor(s.clone());
                    Ok((Measured::Bilinear { similarity, s }, matrix))
                }
            },
        }
    }

    /// `C_ij = (sum p ln p - h_i . e_j + lse_i) / kappa`: most plans need no logits.
    fn kl(&self, kappa: f64, logsumexp: Option<&[f64]>) -> Result<(Measured<'a>, Entries)> {
        let expectation = self.geometry.expectation(self.teacher)?;
        let dots = self.student.hidden.matmul(&expectation.t()?)?;
        let entropy = &self.teacher.negative_entropy;
        let matrix = if CardTransport::of(&dots, &self.config.align).is_some() {
            Entries::Tensor(kl_costs(&dots, entropy, kappa)?)
        } else {
            let mut cost = to_host(&dots)?;
            kl_cost_rows(&mut cost, entropy, logsumexp, kappa);
            Entries::Host(cost)
        };
        Ok((Measured::Kl { expectation, kappa }, matrix))
    }

    /// One pass over the head for S, before the pass for the gradient.
    fn bhattacharyya(&self) -> Result<(Measured<'a>, Entries)> {
        let mut roots = Bhattacharyya::new(self.teacher);
        let on_card = self.geometry.card().is_some();
        let hidden = self.student.hidden;
        for (start, count) in chunks(hidden.dims()[0], self.config.chunk_rows) {
            let z = self.geometry.logits(&hidden.narrow(0, start, count)?)?;
            if on_card {
                roots.push_on_device(&z)?;
            } else {
                roots.push(z)?;
            }
        }
        if on_card {
            roots.read()?;
        }
        let matrix = Entries::Host(roots.s.clone());
        Ok((Measured::Roots(roots), matrix))
    }

    fn states(&self, comparison: Comparison) -> Result<(Measured<'a>, Entries)> {
        let states = Comparisons::new(comparison, self.student.states, self.teacher.targets)?;
        let matrix = Entries::Tensor(states.forward()?);
        Ok((Measured::States(states), matrix))
    }

    fn transport(&self, solved: Entries, paid: Option<Entries>) -> Result<Transport> {
        if let Entries::Tensor(matrix) = &solved
            && let Some(card) = CardTransport::of(matrix, &self.config.align)
        {
            return card.transport(matrix, self.teacher.targets.alignment.as_ref());
        }
        let masses = self.teacher.masses(self.config.align.marginals);
        let problem = self.problem(solved, paid, masses.as_deref())?;
        transport(problem, &self.config.align)
    }

    /// What the host solves.
    fn problem<'s>(
        &'s self,
        solved: Entries,
        paid: Option<Entries>,
        masses: Option<&'s [f64]>,
    ) -> Result<Problem<'s>> {
        let on_host = |matrix: Entries| match matrix {
            Entries::Host(matrix) => Ok(matrix),
            Entries::Tensor(matrix) => to_host(&matrix),
        };
        Ok(Problem {
            solved: on_host(solved)?,
            paid: paid.map(on_host).transpose()?,
            n: self.student.hidden.dims()[0],
            m: self.teacher.rows(),
            alignment: self.teacher.targets.alignment.as_ref(),
            masses,
        })
    }

    fn pull_back(
        &self,
        measured: Measured<'a>,
        gradient: Entries,
        to: &mut HeadTransport<'a>,
    ) -> Result<()> {
        let (m, weight) = (self.teacher.rows(), self.config.ot_weight);
        let hidden = self.student.hidden;
        let tensor = |weight: f64| gradient.tensor(m, weight, hidden.device());
        match measured {
            Measured::Kl { expectation, kappa } => {
                let g = tensor(-weight / kappa)?;
                if self.wanted == Wanted::HiddenAndHead {
                    let through = g.t()?.matmul(hidden)?;
                    let head = self.geometry.expectation_backward(self.teacher, &through)?;
                    add(&mut to.direct.head, head)?;
                }
                add(&mut to.direct.hidden, g.matmul(&expectation)?)?;
                // Where a card solved, rows have their masses.
                let scale = self.config.align.scale();
                let of_plan = || {
                    to.transport
                        .row_mass
                        .iter()
                        .map(|mass| scale * mass)
                        .collect()
                };
                let sums = gradient.row_sums(m).unwrap_or_else(of_plan);
                let n = sums.len();
                let weights = to.row_weights.get_or_insert_with(|| vec![0.0; n]);
                for (sum, row) in weights.iter_mut().zip(sums) {
                    *sum += weight / kappa * row;
                }
            }
            Measured::Bilinear { similarity, s } => {
                add(
                    &mut to.direct.hidden,
                    similarity.backward(&s, &tensor(weight)?)?,
                )?;
            }
            Measured::Distances(distances) => {
                add(&mut to.direct.hidden, distances.backward(&tensor(weight)?)?)?;
            }
            Measured::States(states) => {
                let found = states.backward(&tensor(weight)?)?;
                let sum = &mut to.direct.states;
                *sum = if sum.is_empty() {
                    found
                } else {
                    let both = sum.iter().zip(&found);
                    both.map(|(sum, more)| sum.plus(more))
                        .collect::<Result<_>>()?
                };
            }
            Measured::Roots(roots) => to.roots = Some((roots, gradient)),
        }
        Ok(())
    }
}

fn add(sum: &mut Option<Tensor>, more: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(sum) => (sum + more)?,
        None => more,
    });
    Ok(())
}

/// The plan of an alignment between the student's and the teacher's positions, as the loss makes it.
///
/// # Shapes
/// As [`head_loss`](super::head_loss); the plan is `[N, M]`, row-major.
///
/// # Errors
/// As [`head_loss`](super::head_loss).
pub fn transport_plan<'a>(
    student: impl Into<Student<'a>>,
    targets: &Targets,
    geometry: &HeadGeometry,
    config: &LossConfig,
) -> Result<Vec<f32>> {
    let student = student.into();
    let hidden = student.hidden.detach().to_dtype(DType::F32)?.contiguous()?;
    config.check_targets(targets, geometry.has_basis())?;
    let teacher = Teacher::new(targets, geometry.vocab_size())?;
    let pass = TransportPass {
        student: Student {
            hidden: &hidden,
            ..student
        },
        teacher: &teacher,
        geometry,
        config,
        wanted: Wanted::Values,
    };
    let logsumexp = pass.logsumexp()?;
    let (cost, kappa) = (config.align.solved(), config.align.kappa);
    let (_, matrix) = pass.measure(cost, kappa, logsumexp.as_deref())?;
    let masses = teacher.masses(config.align.marginals);
    let problem = pass.problem(matrix, None, masses.as_deref())?;
    plans(problem, &config.align)
}
