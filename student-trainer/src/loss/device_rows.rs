/*! Provides the rows of the fused head on the student's device: `[c, V]` stays there, a few numbers of each row travel.

```text
 Z [c, V] ──> look: kept and label logits; of the others max, sum exp, sum exp(. / tau) ──> host: RowLoss of each row
 D [c, V] <── own exp(Z - max) + tail exp((Z - max) / tau), the kept's own, the label's added <── own, tail, kept, label
```

The host sees `c (K + 4)` numbers of a chunk and sends as many back. On a card two kernels do the device's share
([`head_kernels`](super::head_kernels)), elsewhere tensor operations. What [`row_pass`](super::rows::row_pass) adds up in f64 is here
added in f32, by halves.
*/

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::error::Result;
use super::head_kernels::{KernelRows, fits};
use super::rows::{RowGradient, RowLoss, RowParts, RowTerms, RowValues};

/// The rows' values from the logits of a chunk (used up), and dL/dZ when `gradient` is asked for, in `dtype` where kernels make it.
///
/// # Shapes
/// `z`: `[c, V]` or wider, contiguous f32, of which the first `vocab` columns count, as of the gradient; one of `terms` for each of
/// its rows, all at one temperature.
pub(crate) fn device_pass(
    z: Tensor,
    vocab: usize,
    dtype: DType,
    terms: &[RowTerms],
    gradient: bool,
) -> Result<(Option<Tensor>, Vec<RowValues>)> {
    let places = Places::new(terms, z.device())?;
    if fits(&z) {
        let rows = KernelRows::on_card(z, vocab, dtype, &places)?;
        return pass(rows, &places, terms, gradient);
    }
    let z = z.narrow(1, 0, vocab)?.contiguous()?;
    pass(TensorRows::new(z, &places)?, &places, terms, gradient)
}

/// The device's share in a chunk of rows.
pub(crate) trait ChunkRows {
    /// `[c, K + 4]`: the logits at the places, the label's last; of the others the largest (a finite number where there is
    /// none), the sum of `exp(z - largest)` and that of `exp((z - largest) / tau)`.
    fn seen(&self) -> &Tensor;
    /// dL/dZ from `[c, K + 3]`: the kept logits' own, what the label gets more, and the factors of both exponentials; at tau = 1
    /// the first of them is all.
    fn gradient(self, places: &Places, factors: &Tensor) -> Result<Tensor>;
}

/// The host's share.
pub(crate) fn pass(
    rows: impl ChunkRows,
    places: &Places,
    terms: &[RowTerms],
    gradient: bool,
) -> Result<(Option<Tensor>, Vec<RowValues>)> {
    let parts = places.parts(terms, &rows.seen().to_vec2()?);
    let losses: Vec<RowLoss> = terms
        .par_iter()
        .zip(&parts)
        .map(|(terms, parts)| RowLoss::new(terms, parts))
        .collect();
    let values = losses.iter().map(RowLoss::values).collect();
    if !gradient {
        return Ok((None, values));
    }
    let gradients: Vec<RowGradient> = losses.par_iter().map(RowLoss::gradient).collect();
    let factors = places.factors(&gradients)?;
    Ok((Some(rows.gradient(places, &factors)?), values))
}

/// The share by tensor operations: two copies of the chunk at a time, four at another temperature than 1.
pub(crate) struct TensorRows {
    seen: Tensor,
    exps: Tensor,
    tempered: Option<Tensor>,
}

impl TensorRows {
    pub(crate) fn new(z: Tensor, places: &Places) -> Result<Self> {
        let set_aside = z.gather(&places.all, 1)?;
        let lost = Tensor::full(f32::NEG_INFINITY, places.kept.shape(), z.device())?;
        z.scatter_set(&places.kept, &lost, 1)?;
        // Where nothing but kept entries is left, any finite number leaves exp(-inf) = 0.
        let largest = z.max_keepdim(1)?.maximum(f32::MIN)?;
        let above = z.broadcast_sub(&largest)?;
        drop(z);
        let tempered = match places.temperature == 1.0 {
            true => None,
            false => Some((&above / places.temperature)?.exp()?),
        };
        let exps = above.exp()?;
        drop(above);
        let sums = exps.sum_keepdim(D::Minus1)?;
        let sums_tempered = match &tempered {
            Some(tempered) => tempered.sum_keepdim(D::Minus1)?,
            None => sums.clone(),
        };
        Ok(Self {
            seen: Tensor::cat(&[set_aside, largest, sums, sums_tempered], 1)?,
            exps,
            tempered,
        })
    }
}

impl ChunkRows for TensorRows {
    fn seen(&self) -> &Tensor {
        &self.seen
    }

    fn gradient(self, places: &Places, factors: &Tensor) -> Result<Tensor> {
        let width = places.width();
        let column = |start: usize, length: usize| factors.narrow(1, start, length)?.contiguous();
        let mut gradient = self.exps.broadcast_mul(&column(width + 1, 1)?)?;
        drop(self.exps);
        if let Some(tempered) = self.tempered {
            gradient = (gradient + tempered.broadcast_mul(&column(width + 2, 1)?)?)?;
        }
        gradient.scatter_set(&places.kept, &column(0, width)?, 1)?;
        gradient.scatter_add_set(&places.label, &column(width, 1)?, 1)?;
        Ok(gradient)
    }
}

/// Where the entries that are set aside lie: `[c, K + 1]`, the label last.
///
/// Rows with fewer kept ids than the widest name their first again; rows without any, their label, which is then kept.
pub(crate) struct Places {
    pub(crate) all: Tensor,
    /// The first K columns.
    kept: Tensor,
    /// The last.
    label: Tensor,
    /// tau of the rows that have kept ids.
    pub(crate) temperature: f64,
}

impl Places {
    pub(crate) fn new(terms: &[RowTerms], device: &Device) -> Result<Self> {
        let widest = terms.iter().map(|row| row.ids().len()).max();
        let (rows, width) = (terms.len(), widest.unwrap_or_default().max(1));
        let mut all = Vec::with_capacity(rows * (width + 1));
        for row in terms {
            let ids = row.ids();
            let filler = ids.first().copied().unwrap_or(row.label);
            all.extend_from_slice(ids);
            all.extend(std::iter::repeat_n(filler, width - ids.len()));
            all.push(row.label);
        }
        let others = |temperature: &f64| *temperature != 1.0;
        let temperature = terms.iter().map(RowTerms::temperature).find(others);
        let all = Tensor::from_vec(all, (rows, width + 1), device)?;
        Ok(Self {
            kept: all.narrow(1, 0, width)?.contiguous()?,
            label: all.narrow(1, width, 1)?.contiguous()?,
            all,
            temperature: temperature.unwrap_or(1.0),
        })
    }

    /// K.
    pub(crate) fn width(&self) -> usize {
        self.kept.dims()[1]
    }

    /// From what is [seen](ChunkRows::seen) of each row.
    fn parts(&self, terms: &[RowTerms], seen: &[Vec<f32>]) -> Vec<RowParts> {
        let width = self.width();
        let part = |(row, seen): (&RowTerms, &Vec<f32>)| RowParts {
            label: seen[width],
            kept: seen[..row.ids().len().max(1)].to_vec(),
            tail_max: seen[width + 1],
            sum: f64::from(seen[width + 2]),
            sum_tempered: f64::from(seen[width + 3]),
        };
        terms.iter().zip(seen).map(part).collect()
    }

    /// What [`ChunkRows::gradient`] takes.
    fn factors(&self, rows: &[RowGradient]) -> Result<Tensor> {
        let width = self.width();
        let mut factors = Vec::with_capacity(rows.len() * (width + 3));
        for row in rows {
            let first = row.kept.first().copied().unwrap_or_default();
            factors.extend_from_slice(&row.kept);
            factors.extend(std::iter::repeat_n(first, width - row.kept.len()));
            let own = match self.temperature == 1.0 {
                true => row.own + row.tail,
                false => row.own,
            };
            factors.extend([row.label, own as f32, row.tail as f32]);
        }
        let shape = (rows.len(), width + 3);
        Ok(Tensor::from_vec(factors, shape, self.all.device())?)
    }
}
