/*! Provides the selection where the logits are, on a card: a few numbers of every row come to the host.

```text
 logits [n, V] ──> select_rows: statistics, K largest, masses of parts ──> draw_rows: an id for every uniform
                        └──────────── n (3 + T + 2 K) numbers ─────┬───────────── 2 n draws ────┘
                                                             Selected
```

The kernels are written after [`select_rows`](super::select_rows) and give the same ids; sums are f32 by parts and halves instead of
f64, and a draw that falls within rounding of the border between two entries may go to the other one.
*/

use candle_core::{DType, Device, Result, Tensor};
use distill_kernels::{Compute, device, select};
use distill_proto::limits::TEMPERATURES_MAX;

use super::{Keep, NotFinite, RowKey, Selected, Statistics, select_rows};

/// Multiples of 2^-53 as whole numbers.
const UNIFORM_STEPS: f64 = (1u64 << 53) as f64;
/// What a kernel says where a head leaves too little to draw from.
const NOTHING: u32 = u32::MAX;

/// As [`select_rows`], of logits on a card; a vocabulary that no block's memory holds goes through the host.
///
/// # Shapes
/// `logits` `[n, stride]` in any float type, of which the first `vocab` columns count.
///
/// # Errors
/// A tensor error; within, `NotFinite` naming the first row that holds NaN or an infinity, or logits beyond 1e18.
pub fn select_on_device(
    logits: &Tensor,
    vocab: usize,
    keep: &Keep,
    temperatures: &[f32],
    keys: &[RowKey],
) -> Result<std::result::Result<Selected, NotFinite>> {
    let wanted = Wanted::new((logits, vocab), keep, temperatures, keys)?;
    if wanted.sizes.fits() {
        return wanted.select(logits, device::COMPUTE);
    }
    let logits = logits.narrow(1, 0, vocab)?.to_dtype(DType::F32)?;
    let logits = logits.flatten_all()?.to_vec1()?;
    Ok(select_rows(&logits, vocab, keep, temperatures, keys))
}

/// A selection with its settings.
struct Wanted<'a> {
    sizes: select::Selection,
    keep: &'a Keep,
    temperatures: &'a [f32],
    keys: &'a [RowKey],
    /// One over the temperatures, and 1 among them where there are draws.
    rates: Vec<f32>,
}

impl<'a> Wanted<'a> {
    fn new(
        (logits, vocab): (&Tensor, usize),
        keep: &'a Keep,
        temperatures: &'a [f32],
        keys: &'a [RowKey],
    ) -> Result<Self> {
        let (rows, stride) = logits.dims2()?;
        let draws = if keys.len() < rows { 0 } else { keep.drawn() };
        let mut rates: Vec<f32> = temperatures.iter().map(|tau| 1.0 / tau).collect();
        if draws > 0 && !rates.contains(&1.0) {
            rates.push(1.0);
        }
        let plain = rates.iter().position(|rate| *rate == 1.0);
        Ok(Self {
            sizes: select::Selection {
                rows,
                vocab,
                stride,
                top_k: keep.head(),
                temperatures: rates.len(),
                plain: plain.filter(|_| draws > 0),
                draws,
            },
            keep,
            temperatures,
            keys,
            rates,
        })
    }

    /// Ascending in every row, as the kernel takes them.
    fn uniforms(&self) -> Vec<i64> {
        let mut of_row = Vec::new();
        let mut all = Vec::with_capacity(self.sizes.rows * self.sizes.draws);
        for &key in self.keys.iter().take(self.sizes.rows) {
            self.keep.uniforms(key, &mut of_row);
            all.extend(of_row.iter().map(|u| (u * UNIFORM_STEPS) as i64));
        }
        all
    }

    /// Runs the kernels by `compute`, which takes inputs, types and lengths of outputs, and what makes the calls.
    fn select(
        &self,
        logits: &Tensor,
        compute: Compute,
    ) -> Result<std::result::Result<Selected, NotFinite>> {
        let sizes = self.sizes;
        let at = logits.device();
        let logits = logits.contiguous()?;
        let rates = Tensor::from_slice(&self.rates, self.rates.len(), at)?;
        let mut outputs = sizes.outputs().to_vec();
        let calls = |x: &[usize], out: &[usize]| {
            let buffers = select::SelectionBuffers {
                logits: x[0],
                rates: x[1],
                statistics: out[0],
                ids: out[1],
                values: out[2],
                masses: out[3],
            };
            let mut calls = vec![sizes.select(buffers)?];
            if sizes.draws > 0 {
                calls.push(sizes.draw(buffers, x[2], (out[4], out[5]))?);
            }
            Ok(calls)
        };
        let made = if sizes.draws > 0 {
            let count = sizes.rows * sizes.draws;
            outputs.extend([(DType::U32, count), (DType::F32, count)]);
            let uniforms = Tensor::from_vec(self.uniforms(), count, at)?;
            compute(&[&logits, &rates, &uniforms], &outputs, &calls)?
        } else {
            compute(&[&logits, &rates], &outputs, &calls)?
        };
        self.selected(&made)
    }

    fn selected(&self, made: &[Tensor]) -> Result<std::result::Result<Selected, NotFinite>> {
        let sizes = &self.sizes;
        let floats = |i: usize| made[i].to_device(&Device::Cpu)?.to_vec1::<f32>();
        let whole = |i: usize| made[i].to_device(&Device::Cpu)?.to_vec1::<u32>();
        let statistics = floats(0)?;
        let head = (whole(1)?, floats(2)?);
        let drawn = match sizes.draws {
            0 => (Vec::new(), Vec::new()),
            _ => (whole(4)?, floats(5)?),
        };
        let mut selected = Selected::default();
        let mut entries: Vec<(u32, u32, f32)> = Vec::new();
        for (row, statistics) in statistics.chunks_exact(sizes.width()).enumerate() {
            let statistics = self.statistics(statistics);
            // Logits beyond 1e18 have squares that f32 does not hold; no model has them.
            let Statistics { max, mean, std, .. } = statistics;
            if ![max, mean, std].iter().all(|number| number.is_finite()) {
                return Ok(Err(NotFinite { row }));
            }
            entries.clear();
            let of_row = |per_row: usize| row * per_row..(row + 1) * per_row;
            let (ids, values) = (&head.0[of_row(sizes.top_k)], &head.1[of_row(sizes.top_k)]);
            entries.extend(ids.iter().zip(values).map(|(&id, &value)| (id, 0, value)));
            let (ids, values) = (&drawn.0[of_row(sizes.draws)], &drawn.1[of_row(sizes.draws)]);
            for (&id, &value) in ids.iter().zip(values).filter(|(id, _)| **id != NOTHING) {
                match entries.last_mut() {
                    Some((last, count, _)) if *last == id && *count > 0 => *count += 1,
                    _ => entries.push((id, 1, value)),
                }
            }
            entries.sort_unstable_by_key(|entry| entry.0);
            selected.ids.extend(entries.iter().map(|entry| entry.0));
            selected.logits.extend(entries.iter().map(|entry| entry.2));
            if self.keep.estimator.is_drawn() {
                selected.counts.extend(entries.iter().map(|entry| entry.1));
            }
            selected.widths.push(entries.len());
            selected.statistics.push(statistics);
        }
        Ok(Ok(selected))
    }

    /// From the kernel's numbers of one row.
    fn statistics(&self, numbers: &[f32]) -> Statistics {
        let mut logsumexp = [0.0; TEMPERATURES_MAX];
        let sums = self.temperatures.iter().zip(&numbers[3..]);
        for (out, (&tau, &sum)) in logsumexp.iter_mut().zip(sums) {
            *out = (f64::from(numbers[0]) / f64::from(tau) + f64::from(sum).ln()) as f32;
        }
        Statistics {
            max: numbers[0],
            mean: numbers[1],
            std: numbers[2],
            logsumexp,
        }
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
