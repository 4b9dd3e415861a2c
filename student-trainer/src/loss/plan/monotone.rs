/*! Provides the expected monotone alignment: the gradient of soft-DTW (Cuturi and Blondel, 2017), and its own.

```text
 R_ij = C_ij - epsilon ln sum_k exp(-R_k / epsilon)        k: the cells (i-1, j), (i, j-1), (i-1, j-1)
 w_ijk = exp(-R_k / epsilon) over their sum                 how likely a path through (i, j) came from k
 E_nm = 1,  E_k = sum over (i, j) of E_ij w_ijk             how likely a path passes k: dR_nm / dC
 T = E / sum E
 along Z:  R'_ij = Z_ij + sum_k w_ijk R'_k,   w'_ijk = w_ijk (sum_l w_ijl R'_l - R'_k) / epsilon,
           E'_k = sum (E'_ij w_ijk + E_ij w'_ijk):  the Hessian of R_nm times Z
```

The Hessian is symmetric, so the gradient of `<T(C), P>` is `E'` along `Z = (P - <T,P>) / sum E`. Paths are not all of one
length: `R_nm` over the longer side is the value, its gradient `E` over the same. R is kept in f64, one pass a direction.
*/

use super::{Dependence, Entropic, Made, Supported};
use crate::loss::error::{LossError, Result};
use crate::loss::sinkhorn::Convergence;

/// Most pairs of positions: two matrices of them in f64 are 256 MiB, and the passes go cell by cell.
const PAIRS_MAX: usize = 1 << 24;

/// The plan of a problem.
pub(super) fn monotone<'a>(problem: &Supported, epsilon: f64) -> Result<Made<'a>> {
    let (n, m) = (problem.a.len(), problem.b.len());
    if n * m > PAIRS_MAX {
        return Err(LossError::Unsupported {
            what: "a monotone plan",
            reason: format!(
                "{n} positions of the student and {m} of the teacher are more than {PAIRS_MAX} pairs; take shorter \
                 sequences, a mask of targets, or another plan"
            ),
        });
    }
    let mut lattice = Lattice::new(n, m, epsilon);
    lattice.costs = lattice.accumulate(|entry| f64::from(problem.cost[entry]));
    let cells = lattice.trace_back(None);
    lattice.length = cells.iter().sum();
    let longer = n.max(m) as f64;
    Ok(Made {
        plan: cells
            .iter()
            .map(|cell| (cell / lattice.length) as f32)
            .collect(),
        convergence: Convergence::default(),
        entropic: Some(Entropic {
            value: lattice.costs[lattice.cell(n, m)] / longer,
            weight: lattice.length / longer,
        }),
        dependence: Dependence::Monotone(lattice),
    })
}

/// The cells of all paths, with a border of one before the first row and column.
pub(super) struct Lattice {
    n: usize,
    m: usize,
    epsilon: f64,
    /// R `[n + 1, m + 1]`; infinite on the border but for its corner.
    costs: Vec<f64>,
    /// The expected number of cells of a path.
    length: f64,
}

impl Lattice {
    fn new(n: usize, m: usize, epsilon: f64) -> Self {
        let mut costs = vec![f64::INFINITY; (n + 1) * (m + 1)];
        costs[0] = 0.0;
        Self {
            n,
            m,
            epsilon,
            costs,
            length: 0.0,
        }
    }

    /// Where cell (i, j) lies, both counted from 1.
    fn cell(&self, i: usize, j: usize) -> usize {
        i * (self.m + 1) + j
    }

    /// The cells before: above, to the left, and both.
    fn before(&self, cell: usize) -> [usize; 3] {
        [cell - self.m - 1, cell - 1, cell - self.m - 2]
    }

    /// R, of costs by entry of `[n, m]`.
    fn accumulate(&self, cost: impl Fn(usize) -> f64) -> Vec<f64> {
        let mut costs = self.costs.clone();
        for i in 1..=self.n {
            for j in 1..=self.m {
                let cell = self.cell(i, j);
                let before = self.before(cell).map(|k| costs[k]);
                let least = before.into_iter().fold(f64::INFINITY, f64::min);
                let sum: f64 = before
                    .map(|r| ((least - r) / self.epsilon).exp())
                    .iter()
                    .sum();
                costs[cell] = cost((i - 1) * self.m + j - 1) + least - self.epsilon * sum.ln();
            }
        }
        costs
    }

    /// w of the cells before.
    fn weights(&self, before: [usize; 3]) -> [f64; 3] {
        let costs = before.map(|k| self.costs[k]);
        let least = costs.into_iter().fold(f64::INFINITY, f64::min);
        let exps = costs.map(|r| ((least - r) / self.epsilon).exp());
        let sum: f64 = exps.iter().sum();
        exps.map(|exp| exp / sum)
    }

    /// R' along a direction given by entry of `[n, m]`; 0 on the border.
    fn accumulate_along(&self, direction: impl Fn(usize) -> f64) -> Vec<f64> {
        let mut moves = vec![0.0; self.costs.len()];
        for i in 1..=self.n {
            for j in 1..=self.m {
                let cell = self.cell(i, j);
                let before = self.before(cell);
                let pairs = self.weights(before).into_iter().zip(before);
                let mean: f64 = pairs.map(|(w, k)| w * moves[k]).sum();
                moves[cell] = direction((i - 1) * self.m + j - 1) + mean;
            }
        }
        moves
    }

    /// E `[n, m]`, or E' where R' is given.
    fn trace_back(&self, moves: Option<&[f64]>) -> Vec<f64> {
        let width = self.m + 1;
        let mut found = vec![0.0; self.n * self.m];
        // E and E' of this row and of the one above.
        let (mut here, mut above) = (vec![(0.0, 0.0); width], vec![(0.0, 0.0); width]);
        here[self.m] = (1.0, 0.0);
        for i in (1..=self.n).rev() {
            for j in (1..=self.m).rev() {
                let (e, along) = here[j];
                let before = self.before(self.cell(i, j));
                let weights = self.weights(before);
                let bends = match moves {
                    None => [0.0; 3],
                    Some(moves) => bends(weights, before.map(|k| moves[k]), self.epsilon),
                };
                let flow = |k: usize| (e * weights[k], along * weights[k] + e * bends[k]);
                add(&mut above[j], flow(0));
                add(&mut here[j - 1], flow(1));
                add(&mut above[j - 1], flow(2));
                found[(i - 1) * self.m + j - 1] = if moves.is_some() { along } else { e };
            }
            std::mem::swap(&mut here, &mut above);
            above.fill((0.0, 0.0));
        }
        found
    }

    /// The gradient of `<T(C), P>`.
    pub(super) fn pull_back(&self, plan: &[f32], paid: &[f32]) -> Vec<f32> {
        let pairs = plan.iter().zip(paid);
        let mean: f64 = pairs
            .map(|(&t, &paid)| f64::from(t) * f64::from(paid))
            .sum();
        let moves = self.accumulate_along(|entry| (f64::from(paid[entry]) - mean) / self.length);
        let gradient = self.trace_back(Some(&moves));
        gradient.into_iter().map(|g| g as f32).collect()
    }
}

/// w' of the cells before.
fn bends(weights: [f64; 3], moves: [f64; 3], epsilon: f64) -> [f64; 3] {
    let mean: f64 = (0..3).map(|k| weights[k] * moves[k]).sum();
    std::array::from_fn(|k| weights[k] * (mean - moves[k]) / epsilon)
}

fn add(to: &mut (f64, f64), flow: (f64, f64)) {
    to.0 += flow.0;
    to.1 += flow.1;
}
