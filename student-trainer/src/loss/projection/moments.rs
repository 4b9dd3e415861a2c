//! Provides the sums over pairs of rows that a regression is made of.

use candle_core::{DType, Device, Tensor};

use crate::loss::error::Result;

/// Rows whose products are added at once.
const BLOCK_ROWS: usize = 512;

/// Sums of rows y `[D]` and x `[d]`, and of their products, in f64.
pub(super) struct Moments {
    pub(super) rows: usize,
    y_sum: Vec<f64>,
    x_sum: Vec<f64>,
    /// `sum |y|^2` and `sum |x|^2`.
    squares: (f64, f64),
    /// `sum y y^T` `[D, D]`, but for the rows that wait.
    yy: Tensor,
    /// `sum y x^T` `[D, d]`.
    yx: Tensor,
    /// Rows that wait until there are [`BLOCK_ROWS`].
    waiting: (Vec<f64>, Vec<f64>),
}

/// The mean of the rows on each side.
pub(super) struct Means {
    pub(super) y: Vec<f64>,
    pub(super) x: Vec<f64>,
}

/// Sums of products of rows less their means, or less others.
pub(super) struct Centered {
    /// S `[D, D]`.
    pub(super) yy: Tensor,
    /// R `[D, d]`.
    pub(super) yx: Tensor,
    /// The sum of the diagonal of S.
    pub(super) trace: f64,
    /// `sum |x - mean|^2`.
    pub(super) spread: f64,
}

impl Moments {
    pub(super) fn new((d, e): (usize, usize)) -> Result<Self> {
        Ok(Self {
            rows: 0,
            y_sum: vec![0.0; d],
            x_sum: vec![0.0; e],
            squares: (0.0, 0.0),
            yy: Tensor::zeros((d, d), DType::F64, &Device::Cpu)?,
            yx: Tensor::zeros((d, e), DType::F64, &Device::Cpu)?,
            waiting: (Vec::new(), Vec::new()),
        })
    }

    /// Takes a pair of rows.
    pub(super) fn add(&mut self, y: &[f32], x: &[f32]) -> Result<()> {
        self.squares.0 += take(y, &mut self.y_sum, &mut self.waiting.0);
        self.squares.1 += take(x, &mut self.x_sum, &mut self.waiting.1);
        self.rows += 1;
        if self.rows.is_multiple_of(BLOCK_ROWS) {
            self.add_products()?;
        }
        Ok(())
    }

    /// The products of the rows that wait.
    fn add_products(&mut self) -> Result<()> {
        let (d, e) = (self.y_sum.len(), self.x_sum.len());
        let (y, x) = std::mem::take(&mut self.waiting);
        let rows = y.len() / d;
        if rows == 0 {
            return Ok(());
        }
        let y = Tensor::from_vec(y, (rows, d), &Device::Cpu)?;
        let x = Tensor::from_vec(x, (rows, e), &Device::Cpu)?;
        let transposed = y.t()?;
        self.yy = (&self.yy + transposed.matmul(&y)?)?;
        self.yx = (&self.yx + transposed.matmul(&x)?)?;
        Ok(())
    }

    pub(super) fn means(&self) -> Means {
        let mean = |sum: &[f64]| sum.iter().map(|sum| sum / self.rows as f64).collect();
        Means {
            y: mean(&self.y_sum),
            x: mean(&self.x_sum),
        }
    }

    /// `sum |x - mean|^2`.
    pub(super) fn spread_around(&self, means: &Means) -> f64 {
        spread(self.squares.1, &self.x_sum, &means.x, self.rows)
    }

    /// The sums of products of rows less these means:
    /// `sum (y - p) (x - q)^T = sum y x^T - (sum y - n p) q^T - p (sum x)^T`.
    pub(super) fn around(&mut self, means: &Means) -> Result<Centered> {
        self.add_products()?;
        let column = |values: &[f64]| Tensor::from_slice(values, (values.len(), 1), &Device::Cpu);
        let row = |values: &[f64]| Tensor::from_slice(values, (1, values.len()), &Device::Cpu);
        let p = column(&means.y)?;
        let rest = (column(&self.y_sum)? - (&p * self.rows as f64)?)?;
        let less = |products: &Tensor, mean: &[f64], sum: &[f64]| -> Result<Tensor> {
            let less = (rest.matmul(&row(mean)?)? + p.matmul(&row(sum)?)?)?;
            Ok((products - less)?)
        };
        Ok(Centered {
            yy: less(&self.yy, &means.y, &self.y_sum)?,
            yx: less(&self.yx, &means.x, &self.x_sum)?,
            trace: spread(self.squares.0, &self.y_sum, &means.y, self.rows),
            spread: self.spread_around(means),
        })
    }
}

impl Centered {
    /// `1 - sum |x - P^T y|^2 / variance`; 0 of rows that do not vary.
    pub(super) fn explained(&self, projection: &Tensor, variance: f64) -> Result<f64> {
        if variance <= 0.0 {
            return Ok(0.0);
        }
        // sum |x|^2 - 2 <P, R> + <P, S P>
        let gained = (self.yy.matmul(projection)? - (&self.yx * 2.0)?)?;
        let gained: f64 = (gained * projection)?.sum_all()?.to_scalar()?;
        Ok(1.0 - (self.spread + gained) / variance)
    }
}

/// Adds a row to the sums and to those that wait; returns `|row|^2`.
fn take(row: &[f32], sums: &mut [f64], waiting: &mut Vec<f64>) -> f64 {
    let wide = row.iter().map(|&value| f64::from(value));
    waiting.extend(wide.clone());
    for (sum, value) in sums.iter_mut().zip(wide.clone()) {
        *sum += value;
    }
    wide.map(|value| value * value).sum()
}

/// `sum |row - mean|^2` from `sum |row|^2` and the sum of the rows.
fn spread(squares: f64, sum: &[f64], mean: &[f64], rows: usize) -> f64 {
    let pairs = sum.iter().zip(mean);
    squares
        - pairs
            .map(|(sum, mean)| mean * (2.0 * sum - rows as f64 * mean))
            .sum::<f64>()
}
