/*! Provides transport between hidden states and teacher rows: the costs without the V axis, the plan, and the way back.

```text
 kl:                 H E^T ──> C ──> plan ──> gradient E ──> dH (and dE ──> dW)
 softmax-similarity: H P c ──> S ──> plan ──> gradient   ──> dH
 bhattacharyya:      one pass over the head for S; its gradient goes through the logits of the pass that follows
```
*/

use candle_core::{DType, Tensor};
use distill_proto::Rows;

use super::bhattacharyya::Bhattacharyya;
use super::config::{Cost, LossConfig, Objective, OtConfig, Reduction, Scope, Similarity};
use super::cost::kl_cost_rows;
use super::error::Result;
use super::geometry::HeadGeometry;
use super::head::{Wanted, chunks};
use super::rowwise::to_host;
use super::similarity::Bilinear;
use super::teacher::Teacher;
use super::transport::{Transport, transport};

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
        match (config.ot.cost, config.ot.similarity) {
            (Cost::Kl, _) => Self::kl(hidden, teacher, geometry, config, wanted),
            (Cost::SoftmaxSimilarity, Similarity::Bhattacharyya) => {
                Self::bhattacharyya(hidden, teacher, geometry, config)
            }
            (Cost::SoftmaxSimilarity, kind) => {
                let similarity = Bilinear::from_state(kind, hidden, teacher.rows, geometry)?;
                let s = similarity.forward()?;
                let (n, m) = s.dims2()?;
                let transport = transport(to_host(&s)?, n, m, &config.ot)?;
                let gradient = transport.gradient_tensor(m, config.ot_weight, hidden.device())?;
                Ok(Self {
                    grad_hidden: Some(similarity.backward(&s, &gradient)?),
                    grad_head: None,
                    transport,
                    row_costs: false,
                    roots: None,
                })
            }
        }
    }

    /// `C_ij = (sum p ln p - h_i . e_j + lse_i) / kappa`: the plan needs no logits.
    fn kl(
        hidden: &Tensor,
        teacher: &Teacher,
        geometry: &HeadGeometry,
        config: &LossConfig,
        wanted: Wanted,
    ) -> Result<Self> {
        let expectation = geometry.expectation(teacher)?;
        let dots = hidden.matmul(&expectation.t()?)?;
        let (n, m) = dots.dims2()?;
        let mut cost = to_host(&dots)?;
        kl_cost_rows(&mut cost, &teacher.negative_entropy, config.ot.kappa);
        let transport = transport(cost, n, m, &config.ot)?;
        let factor = -config.ot_weight / config.ot.kappa;
        let gradient = transport.gradient_tensor(m, factor, hidden.device())?;
        let grad_head = (wanted == Wanted::HiddenAndHead)
            .then(|| geometry.expectation_backward(teacher, &gradient.t()?.matmul(hidden)?))
            .transpose()?;
        Ok(Self {
            grad_hidden: Some(gradient.matmul(&expectation)?),
            grad_head,
            transport,
            row_costs: true,
            roots: None,
        })
    }

    /// One pass over the head for S, before the pass for the gradient.
    fn bhattacharyya(
        hidden: &Tensor,
        teacher: &'a Teacher,
        geometry: &HeadGeometry,
        config: &LossConfig,
    ) -> Result<Self> {
        let n = hidden.dims()[0];
        let mut roots = Bhattacharyya::new(teacher);
        for (start, count) in chunks(n, config.chunk_rows) {
            roots.push(geometry.logits(&hidden.narrow(0, start, count)?)?)?;
        }
        let m = teacher.rows.rows;
        Ok(Self {
            transport: transport(roots.s.clone(), n, m, &config.ot)?,
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
    rows: &Rows,
    geometry: &HeadGeometry,
    ot: &OtConfig,
) -> Result<Vec<f32>> {
    let config = LossConfig {
        ot: OtConfig {
            cost: Cost::Kl,
            objective: Objective::Entropic,
            scope: Scope::Row,
            reduction: Reduction::Mean,
            ..ot.clone()
        },
        ..LossConfig::default()
    };
    let hidden = hidden.detach().to_dtype(DType::F32)?.contiguous()?;
    config.check_rows(rows, geometry.has_basis())?;
    let teacher = Teacher::new(rows, geometry.vocab_size())?;
    let solved = HeadTransport::kl(&hidden, &teacher, geometry, &config, Wanted::Values)?;
    // The entropic objective's gradient in the cost is the plan itself.
    Ok(solved.transport.gradient)
}
