/*! Provides transport between hidden states and teacher rows: the costs without the V axis, the plan, and the way back.

```text
 kl:                 H E^T ──> C ──> plan ──> gradient E ──> dH (and dE ──> dW)
 softmax-similarity: H P c ──> S ──> plan ──> gradient   ──> dH
 bhattacharyya:      one pass over the head for S; its gradient goes through the logits of the pass that follows
```
*/

use super::bhattacharyya::Bhattacharyya;
use super::config::{
    Cost, LossConfig, Objective, OtConfig, PlanCost, Reduction, Scope, Similarity,
};
use super::cost::{kl_cost_rows, kl_costs};
use super::error::Result;
use super::euclidean::SquaredEuclidean;
use super::geometry::HeadGeometry;
use super::head_pass::{Wanted, chunks};
use super::rowwise::to_host;
use super::similarity::Bilinear;
use super::targets::Targets;
use super::teacher::Teacher;
use super::transport::{Problem, Transport, transport};
use super::transport_card::CardTransport;
use candle_core::{DType, Tensor};

/// Solved transport, and how its gradient reaches the hidden states.
pub(super) struct HeadTransport<'a> {
    pub(super) transport: Transport,
    /// The part that does not pass through the logits, weighted.
    pub(super) grad_hidden: Option<Tensor>,
    /// The same for the head, where it is wanted.
    pub(super) grad_head: Option<Tensor>,
    /// Whether logsumexp of the student's rows is part of the cost, and so of the gradient.
    pub(super) row_costs: bool,
    /// Under `bhattacharyya`: the way through the logits.
    pub(super) roots: Option<Bhattacharyya<'a>>,
}

impl<'a> HeadTransport<'a> {
    pub(super) fn solve(
        hidden: &Tensor,
        teacher: &'a Teacher,
        geometry: &HeadGeometry,
        config: &LossConfig,
        wanted: Wanted,
    ) -> Result<Self> {
        let distances = match config.ot.plan_cost {
            PlanCost::Same => None,
            PlanCost::SquaredEuclidean => Some(SquaredEuclidean::from_state(
                hidden,
                teacher.targets,
                geometry,
            )?),
        };
        let pass = TransportPass {
            hidden,
            teacher,
            geometry,
            config,
            wanted,
            distances: distances.as_ref(),
        };
        let mut solved = match (config.ot.cost, config.ot.similarity) {
            (Cost::Kl, _) => pass.kl()?,
            (Cost::SoftmaxSimilarity, Similarity::Bhattacharyya) => pass.bhattacharyya()?,
            (Cost::SoftmaxSimilarity, kind) => pass.bilinear(kind)?,
        };
        let m = teacher.rows();
        let weight = config.ot_weight;
        let plan_gradient = solved
            .transport
            .plan_gradient_tensor(m, weight, hidden.device())?;
        if let (Some(gradient), Some(distances)) = (plan_gradient, &distances) {
            let through_plan = distances.backward(&gradient)?;
            solved.grad_hidden = Some(match solved.grad_hidden {
                Some(direct) => (direct + through_plan)?,
                None => through_plan,
            });
        }
        Ok(solved)
    }
}

/// Everything that a transport between hidden states and rows is made from.
struct TransportPass<'p, 'a> {
    hidden: &'p Tensor,
    teacher: &'a Teacher<'a>,
    geometry: &'p HeadGeometry,
    config: &'p LossConfig,
    wanted: Wanted,
    /// What the plan is solved for, where that is not the cost.
    distances: Option<&'p SquaredEuclidean>,
}

impl<'a> TransportPass<'_, 'a> {
    fn solve(&self, matrix: Vec<f32>) -> Result<Transport> {
        let size = (self.hidden.dims()[0], self.teacher.rows());
        let alignment = self.teacher.targets.alignment.as_ref();
        let problem = Problem::new(matrix, self.distances, size, alignment)?;
        transport(problem, &self.config.ot)
    }

    fn bilinear(&self, kind: Similarity) -> Result<HeadTransport<'a>> {
        let similarity =
            Bilinear::from_state(kind, self.hidden, self.teacher.targets, self.geometry)?;
        let s = similarity.forward()?;
        let transport = match CardTransport::of(&s, &self.config.ot) {
            Some(card) => card.transport(&s, self.teacher.targets.alignment.as_ref())?,
            None => self.solve(to_host(&s)?)?,
        };
        let weight = self.config.ot_weight;
        let m = self.teacher.rows();
        let gradient = transport.gradient_tensor(m, weight, self.hidden.device())?;
        Ok(HeadTransport {
            grad_hidden: Some(similarity.backward(&s, &gradient)?),
            grad_head: None,
            transport,
            row_costs: false,
            roots: None,
        })
    }

    /// `C_ij = (sum p ln p - h_i . e_j + lse_i) / kappa`: the plan needs no logits.
    fn kl(&self) -> Result<HeadTransport<'a>> {
        let Self {
            hidden,
            teacher,
            geometry,
            config,
            ..
        } = *self;
        let expectation = geometry.expectation(teacher)?;
        let dots = hidden.matmul(&expectation.t()?)?;
        let transport = match CardTransport::of(&dots, &config.ot) {
            Some(card) => {
                let cost = kl_costs(&dots, &teacher.negative_entropy, config.ot.kappa)?;
                card.transport(&cost, teacher.targets.alignment.as_ref())?
            }
            None => {
                let mut cost = to_host(&dots)?;
                kl_cost_rows(&mut cost, &teacher.negative_entropy, config.ot.kappa);
                self.solve(cost)?
            }
        };
        let factor = -config.ot_weight / config.ot.kappa;
        let gradient = transport.gradient_tensor(teacher.rows(), factor, hidden.device())?;
        let grad_head = (self.wanted == Wanted::HiddenAndHead)
            .then(|| geometry.expectation_backward(teacher, &gradient.t()?.matmul(hidden)?))
            .transpose()?;
        Ok(HeadTransport {
            grad_hidden: Some(gradient.matmul(&expectation)?),
            grad_head,
            transport,
            row_costs: true,
            roots: None,
        })
    }

    /// One pass over the head for S, before the pass for the gradient.
    fn bhattacharyya(&self) -> Result<HeadTransport<'a>> {
        let mut roots = Bhattacharyya::new(self.teacher);
        let on_card = self.geometry.card().is_some();
        for (start, count) in chunks(self.hidden.dims()[0], self.config.chunk_rows) {
            let z = self
                .geometry
                .logits(&self.hidden.narrow(0, start, count)?)?;
            if on_card {
                roots.push_on_device(&z)?;
            } else {
                roots.push(z)?;
            }
        }
        if on_card {
            roots.read()?;
        }
        Ok(HeadTransport {
            transport: self.solve(roots.s.clone())?,
            grad_hidden: None,
            grad_head: None,
            row_costs: false,
            roots: Some(roots),
        })
    }
}

/// The plan that the `kl` cost finds between the student's and the teacher's positions, without a position prior unless
/// `ot` has one, to look at: rows sum to 1/N, columns to 1/M.
///
/// # Shapes
/// As [`head_loss`](super::head_loss); the plan is `[N, M]`, row-major.
///
/// # Errors
/// As [`head_loss`](super::head_loss).
pub fn transport_plan(
    hidden: &Tensor,
    targets: &Targets,
    geometry: &HeadGeometry,
    ot: &OtConfig,
) -> Result<Vec<f32>> {
    let config = LossConfig {
        ot: OtConfig {
            cost: Cost::Kl,
            plan_cost: PlanCost::Same,
            objective: Objective::Entropic,
            scope: Scope::Row,
            reduction: Reduction::Mean,
            ..ot.clone()
        },
        kl_weight: 0.0,
        ..LossConfig::default()
    };
    let hidden = hidden.detach().to_dtype(DType::F32)?.contiguous()?;
    config.check_targets(targets, geometry.has_basis())?;
    let teacher = Teacher::new(targets, geometry.vocab_size())?;
    let solved = HeadTransport::solve(&hidden, &teacher, geometry, &config, Wanted::Values)?;
    // The entropic objective's gradient in the cost is the plan itself.
    let rows = hidden.dims()[0];
    Ok(solved.transport.gradient_rows(0, rows)?.into_owned())
}
