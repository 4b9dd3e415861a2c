//! Provides the matrices that are served of a sketch, and its error on rows that it was not made from.

use candle_core::{DType, Device, Tensor};
use distill_proto::StateCoding;

use super::{GRAM_ROWS, check};
use crate::{Result, basis::Basis, progress::Progress};

/// The served matrices with what their error can be had from.
pub(super) struct Projected {
    /// P = G V `[D, R]`, f32: c = P^T h.
    pub projection: Tensor,
    /// B V `[V, R]`, rounded to half precision as it is sent; below it is C.
    pub basis: Basis,
    /// C^T B `[R, D]`, f64.
    cross: Tensor,
    /// C^T C `[R, R]`, f64: the identity but for rounding.
    own: Tensor,
}

impl Projected {
    /// From the exact basis B, V `[D, R]` and G = B^T B, the latter two f64.
    pub fn new(
        exact: &Basis,
        directions: &Tensor,
        gram: &Tensor,
        stopped: &dyn Fn() -> bool,
        progress: &mut Progress,
    ) -> Result<Self> {
        let (size, rank) = directions.dims2()?;
        let mut cross = Tensor::zeros((rank, size), DType::F64, &Device::Cpu)?;
        let mut own = Tensor::zeros((rank, rank), DType::F64, &Device::Cpu)?;
        let mut parts = Vec::new();
        for start in (0..exact.rows()).step_by(GRAM_ROWS) {
            check(stopped)?;
            let rows = start..exact.rows().min(start + GRAM_ROWS);
            let part = exact.values(rows)?.to_dtype(DType::F64)?;
            let sent = part.matmul(directions)?.to_dtype(DType::F16)?;
            let read = sent.to_dtype(DType::F64)?;
            cross = (cross + read.t()?.matmul(&part)?)?;
            own = (own + read.t()?.matmul(&read)?)?;
            progress.advance(1, sent.dim(0)? as u64);
            parts.push(sent);
        }
        Ok(Self {
            projection: gram.matmul(directions)?.to_dtype(DType::F32)?,
            basis: Basis::stored(Tensor::cat(&parts, 0)?)?,
            cross,
            own,
        })
    }

    /// Mean over the rows of `hidden` `[n, D]` f32 of |Y - C c| / |Y|, with Y = B h and c as a reader finds it.
    ///
    /// |Y - C c|^2 = h^T G h - 2 c^T C^T B h + c^T C^T C c: no logits are needed. In f64 the differences are exact to 1e-13
    /// of |Y|^2, so errors are to 1e-6.
    pub fn mean_error(&self, hidden: &Tensor, gram: &Tensor, coding: StateCoding) -> Result<f64> {
        let coordinates = hidden.matmul(&self.projection)?;
        let (count, rank) = coordinates.dims2()?;
        let mut values = coordinates.flatten_all()?.to_vec1::<f32>()?;
        values
            .chunks_exact_mut(rank.max(1))
            .for_each(|row| coding.round_row(row));
        let c = Tensor::from_vec(values, (count, rank), &Device::Cpu)?.to_dtype(DType::F64)?;
        let h = hidden.to_dtype(DType::F64)?;
        let dot = |a: &Tensor, b: &Tensor| (a * b)?.sum(1)?.to_vec1::<f64>();
        let energy = dot(&h.matmul(gram)?, &h)?;
        let cross = dot(&h.matmul(&self.cross.t()?)?, &c)?;
        let own = dot(&c.matmul(&self.own)?, &c)?;
        let rows = energy.iter().zip(&cross).zip(&own);
        // A row of equal logits has nothing to lose.
        let rows = rows.filter(|((energy, _), _)| **energy > 0.0);
        let errors = rows
            .map(|((energy, cross), own)| ((energy - 2.0 * cross + own).max(0.0) / energy).sqrt());
        let (sum, count) = errors.fold((0.0, 0u32), |(sum, n), error| (sum + error, n + 1));
        Ok(sum / f64::from(count.max(1)))
    }
}
