/*! Provides the rows of the fused head on a card: `[c, V]` stays there, and so does everything that the loss makes of a row.

```text
 host, once a sequence: places [n, K + 1], terms [n, 9 + 2 K] ──> card
 Z [c, V] ──> parts: kept and label logits; of the others max, sum exp, sum exp(. / tau)
          ──> factors: values [c, 5], and over the parts own, tail, the kept's own, the label's
          ──> D [c, V] = own exp(Z - max) + tail exp((Z - max) / tau), the kept's own, the label's added
```

The host waits for nothing: values are read when all chunks are under way. [`row_pass`](super::rows::row_pass) is the reference;
what it adds up over the tail in f64 is here added in f32, by halves.
*/

use candle_core::{DType, Device, Tensor};
use distill_kernels::Compute;
use distill_kernels::head::{HeadRows, TERM_NUMBERS, VALUE_NUMBERS};

use super::error::Result;
use super::rows::{RowTerms, RowValues};

/// The rows of a sequence, as the kernels take them.
pub(crate) struct CardRows {
    /// `[n, K + 1]`, the label last. Rows with fewer kept ids than the widest name their first again; rows without any, their
    /// label, which is then kept.
    places: Tensor,
    /// `[n, 9 + 2 K]`, f64.
    terms: Tensor,
    /// tau of the rows that have kept ids.
    temperature: f64,
    vocab: usize,
    compute: Compute,
}

impl CardRows {
    /// Of rows that have one temperature, over the first `vocab` logits.
    pub(crate) fn new(
        terms: &[RowTerms],
        vocab: usize,
        device: &Device,
        compute: Compute,
    ) -> Result<Self> {
        let widest = terms.iter().map(|row| row.ids().len()).max();
        let (rows, width) = (terms.len(), widest.unwrap_or_default().max(1));
        let mut places = Vec::with_capacity(rows * (width + 1));
        let mut numbers = Vec::with_capacity(rows * (TERM_NUMBERS + 2 * width));
        for row in terms {
            extend_to(width, &mut places, row.ids(), row.label);
            places.push(row.label);
            numbers.extend(term_numbers(row));
            let (p, log_p) = match &row.teacher {
                Some(row) => (row.p.as_slice(), row.log_p.as_slice()),
                None => Default::default(),
            };
            extend_to(width, &mut numbers, p, 0.0);
            extend_to(width, &mut numbers, log_p, 0.0);
        }
        let tempered = terms.iter().map(RowTerms::temperature);
        Ok(Self {
            places: Tensor::from_vec(places, (rows, width + 1), device)?,
            terms: Tensor::from_vec(numbers, (rows, TERM_NUMBERS + 2 * width), device)?,
            temperature: tempered.into_iter().find(|tau| *tau != 1.0).unwrap_or(1.0),
            vocab,
            compute,
        })
    }

    /// Values of the rows from `start` on, for [`row_values`], and, where it is wanted, dL/dZ in that type.
    ///
    /// # Shapes
    /// `z`: `[c, V]` or wider, contiguous f32, as is the gradient, which is 0 past V.
    pub(crate) fn chunk(
        &self,
        start: usize,
        z: &Tensor,
        gradient: Option<DType>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (rows, stride) = z.dims2()?;
        let sizes = HeadRows {
            rows,
            vocab: self.vocab,
            stride,
            width: self.places.dims()[1] - 1,
            rate: (1.0 / self.temperature) as f32,
        };
        let places = self.places.narrow(0, start, rows)?;
        let terms = self.terms.narrow(0, start, rows)?;
        let mut outputs = vec![
            (DType::F32, sizes.parts_len()),
            (DType::F64, rows * VALUE_NUMBERS),
        ];
        outputs.extend(gradient.map(|dtype| (dtype, rows * stride)));
        let made = (self.compute)(&[z, &places, &terms], &outputs, &|x, out| {
            let (z, places, terms) = (x[0], x[1], x[2]);
            let (parts, values) = (out[0], out[1]);
            let mut calls = vec![
                sizes.parts(z, places, parts)?,
                sizes.factors(parts, terms, values)?,
            ];
            if let Some(&gradient) = out.get(2) {
                calls.push(sizes.gradient((z, places, parts), gradient)?);
            }
            Ok(calls)
        })?;
        let gradient = made.get(2).map(|gradient| gradient.reshape(z.shape()));
        Ok((made[1].clone(), gradient.transpose()?))
    }
}

/// From what the kernels say of rows, [`VALUE_NUMBERS`] of each.
pub(crate) fn row_values(numbers: &[f64]) -> Vec<RowValues> {
    let values = |row: &[f64; VALUE_NUMBERS]| {
        let [logsumexp, ce, divergences @ ..] = *row;
        RowValues {
            logsumexp,
            ce,
            divergences,
        }
    };
    numbers.as_chunks().0.iter().map(values).collect()
}

/// What [`HeadRows::factors`] is told of a row.
fn term_numbers(row: &RowTerms) -> [f64; TERM_NUMBERS] {
    let bucket = row.teacher.as_ref().is_some_and(|row| row.bucket);
    let bucket = f64::from(u8::from(bucket));
    let kept = row.ids().len() as f64;
    let [forward, reverse, jsd] = row.divergences.weights.map(|weight| weight.unwrap_or(-1.0));
    let (tau, beta) = (row.temperature(), row.divergences.beta);
    [
        kept,
        row.ce,
        forward,
        reverse,
        jsd,
        row.softmax,
        bucket,
        tau,
        beta,
    ]
}

/// Appends `some`, and then their first, or `without`, until they are `width`.
fn extend_to<T: Copy>(width: usize, all: &mut Vec<T>, some: &[T], without: T) {
    all.extend_from_slice(some);
    let filler = some.first().copied().unwrap_or(without);
    all.extend(std::iter::repeat_n(filler, width - some.len()));
}
