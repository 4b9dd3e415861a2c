/*! Provides the projection P `[D, d]` fitted before training: ridge regression from the teacher's hidden states Y to the
student's X at the same positions, through both means.

```text
 X - mean(X) ~ (Y - mean(Y)) P:   (S + lambda mean(diag S) I) P = R,   S = Yc^T Yc,  R = Yc^T Xc
 held-out R^2 = 1 - sum |x - x^|^2 / sum |x - mean|^2      over all columns, the mean that of the held-out rows
```

One pass over pairs of rows adds up `Y^T Y`, `Y^T X` and the sums of the rows in f64, for the rows that are fitted and
apart from them for those held out: whole sequences, since rows of one sequence are alike, that have a tenth of all rows; which
ones a hash of their number decides, so that they are the same in every run. Lambda is the one of [`LAMBDAS`] with the best
R^2 on those; the R^2 that is reported is this one, and so better than on rows never seen by what a choice among four is worth.
*/

mod cholesky;
mod moments;
#[cfg(test)]
mod tests;

use candle_core::{DType, Device, Tensor};

use self::cholesky::Factor;
use self::moments::Moments;
use super::error::{LossError, Result};
use super::rowwise::to_host;

/// Strengths of the ridge, relative to the mean of the diagonal of S.
const LAMBDAS: [f64; 4] = [1e-6, 1e-4, 1e-2, 1.0];
/// One row in this many is held out.
const HELD_OUT_ONE_IN: usize = 10;
/// Fewest rows of either part: a variance needs two.
const ROWS_MIN: usize = 2;

/// A fitted projection.
#[derive(Debug)]
pub(crate) struct FittedProjection {
    /// P `[D, d]` in f32.
    pub(crate) projection: Tensor,
    /// `[D]` in f32: the mean of the teacher's rows.
    pub(crate) teacher_mean: Tensor,
    /// `[d]` in f32: the mean of the student's rows.
    pub(crate) student_mean: Tensor,
    /// The chosen one of [`LAMBDAS`].
    pub(crate) lambda: f64,
    /// Share of the variance of held-out rows that is explained; below 0, worse than their mean.
    pub(crate) r_squared: f64,
    /// Rows that were fitted.
    pub(crate) rows: usize,
    /// Rows that were held out.
    pub(crate) held_out: usize,
}

/// Sums over pairs of rows, on their way to a projection.
pub(crate) struct ProjectionFit {
    sizes: (usize, usize),
    sequences: u64,
    fitted: Moments,
    held_out: Moments,
}

impl ProjectionFit {
    /// From rows of D numbers to rows of d.
    ///
    /// # Errors
    /// A tensor error.
    pub(crate) fn new(teacher_size: usize, student_size: usize) -> Result<Self> {
        let sizes = (teacher_size, student_size);
        Ok(Self {
            sizes,
            sequences: 0,
            fitted: Moments::new(sizes)?,
            held_out: Moments::new(sizes)?,
        })
    }

    /// Takes the pairs of rows of one sequence.
    ///
    /// # Shapes
    /// `teacher`: Y `[rows, D]`; `student`: X `[rows, d]`, the same positions.
    ///
    /// # Errors
    /// Shapes that do not fit; NaN or infinity.
    pub(crate) fn add(&mut self, teacher: &Tensor, student: &Tensor) -> Result<()> {
        let (d, e) = self.sizes;
        let (y, x) = (teacher.dims2()?, student.dims2()?);
        if y.1 != d || x.1 != e || y.0 != x.0 {
            return Err(LossError::shape(
                "rows of the projection's fit",
                format!("[rows, {d}] of the teacher and [rows, {e}] of the student"),
                format!("{y:?} and {x:?}"),
            ));
        }
        let (y, x) = (to_host(teacher)?, to_host(student)?);
        let part = if self.holds_out_next() {
            &mut self.held_out
        } else {
            &mut self.fitted
        };
        self.sequences += 1;
        for (row, (y, x)) in y.chunks(d).zip(x.chunks(e)).enumerate() {
            if !y.iter().chain(x).all(|value| value.is_finite()) {
                return Err(LossError::NonFinite {
                    what: "hidden state for the projection's fit",
                    position: row,
                });
            }
            part.add(y, x)?;
        }
        Ok(())
    }

    /// Whether the next sequence is held out: some rows of those so far are lacking, and its number is one of every second.
    fn holds_out_next(&self) -> bool {
        let (held_out, fitted) = (self.held_out.rows, self.fitted.rows);
        let is_lacking = held_out * HELD_OUT_ONE_IN < held_out + fitted;
        is_lacking && (held_out < ROWS_MIN || mixed(self.sequences).is_multiple_of(2))
    }

    /// The projection of all rows so far.
    ///
    /// # Errors
    /// Fewer than [`ROWS_MIN`] rows in either part; a tensor error.
    pub(crate) fn solve(mut self) -> Result<FittedProjection> {
        let (rows, held_out) = (self.fitted.rows, self.held_out.rows);
        if rows.min(held_out) < ROWS_MIN {
            return Err(LossError::Unsupported {
                what: "a fitted projection",
                reason: format!(
                    "{rows} rows to fit and {held_out} held out are too few; give it at least some hundred positions \
                     that student and teacher share, in several sequences"
                ),
            });
        }
        let (means, own) = (self.fitted.means(), self.held_out.means());
        let fitted = self.fitted.around(&means)?;
        // Predictions start from the means that were fitted.
        let held = self.held_out.around(&means)?;
        let variance = self.held_out.spread_around(&own);
        let mean = fitted.trace / self.sizes.0 as f64;
        let mut best: Option<(f64, f64, Tensor)> = None;
        for lambda in LAMBDAS {
            // Constant rows say nothing: any ridge then gives 0.
            let ridge = if mean > 0.0 { lambda * mean } else { 1.0 };
            let projection = Factor::new(&fitted.yy, ridge)?.solve(&fitted.yx)?;
            let r_squared = held.explained(&projection, variance)?;
            if best.as_ref().is_none_or(|(_, known, _)| r_squared > *known) {
                best = Some((lambda, r_squared, projection));
            }
        }
        let Some((lambda, r_squared, projection)) = best else {
            return Err(LossError::NonFinite {
                what: "fitted projection",
                position: 0,
            });
        };
        let narrow = |mean: &[f64]| Tensor::new(mean, &Device::Cpu)?.to_dtype(DType::F32);
        Ok(FittedProjection {
            projection: projection.to_dtype(DType::F32)?,
            teacher_mean: narrow(&means.y)?,
            student_mean: narrow(&means.x)?,
            lambda,
            r_squared,
            rows,
            held_out,
        })
    }
}

/// A hash of a number (SplitMix64).
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
