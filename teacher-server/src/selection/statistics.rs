//! Provides the statistics of one row of logits: block maxima, max, mean, standard deviation, logsumexp.

use distill_proto::limits::TEMPERATURES_MAX;

use distill_model::simd::exp;

/// Entries whose maximum is kept in the first read; small enough that few blocks hold a top-k entry.
pub(super) const BLOCK: usize = 64;
/// Independent accumulators, so that sums vectorise without reordering.
const LANES: usize = 16;
/// Exponentials added in f32 before the sum goes to f64: at most 64 terms a lane, an error below 4e-6 of the part.
pub(super) const SUM_BLOCK: usize = 64 * LANES;
/// Powers e, e^2, e^4, e^8 of one exponential: a squaring is cheaper than another exponential, and three of them still
/// exact enough.
const POWERS: usize = 4;
/// Smallest number whose square is a normal f32.
const SQUARED_MIN: f32 = 1.1e-19;

/// Statistics over the whole effective vocabulary, before any quantisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// Largest logit.
    pub max: f32,
    /// Mean logit.
    pub mean: f32,
    /// Population standard deviation.
    pub std: f32,
    /// `logsumexp(y / tau)` for the i-th temperature; the rest is zero.
    pub logsumexp: [f32; TEMPERATURES_MAX],
}

/// What one read over a row gives.
pub(super) struct BlockScan {
    pub max: f32,
    count: f64,
    /// Logits are summed relative to the row's first entry, so that rows far from zero lose nothing.
    origin: f64,
    sum: f64,
    sum_of_squares: f64,
}

impl BlockScan {
    /// Reads `row` once and leaves the maximum of every block of `BLOCK` entries in `block_maxima`.
    #[inline(always)]
    pub fn of(row: &[f32], block_maxima: &mut Vec<f32>) -> Self {
        block_maxima.clear();
        let origin = row.first().copied().unwrap_or_default();
        let mut sum = [0f64; LANES];
        let mut squares = [0f64; LANES];
        let mut add = |lane: usize, value: f32| {
            let centred = f64::from(value) - f64::from(origin);
            sum[lane] += centred;
            squares[lane] += centred * centred;
        };
        let mut blocks = row.chunks_exact(BLOCK);
        for block in &mut blocks {
            let mut maxima = [f32::NEG_INFINITY; LANES];
            for lanes in block.chunks_exact(LANES) {
                for lane in 0..LANES {
                    let value = lanes[lane];
                    maxima[lane] = if value > maxima[lane] {
                        value
                    } else {
                        maxima[lane]
                    };
                    add(lane, value);
                }
            }
            block_maxima.push(largest(&maxima));
        }
        let rest = blocks.remainder();
        if !rest.is_empty() {
            block_maxima.push(largest(rest));
            rest.iter()
                .enumerate()
                .for_each(|(i, &value)| add(i % LANES, value));
        }
        Self {
            max: largest(block_maxima),
            count: row.len() as f64,
            origin: f64::from(origin),
            sum: sum.iter().sum(),
            sum_of_squares: squares.iter().sum(),
        }
    }

    /// Squares of finite f32 values cannot overflow f64, so the sum is finite exactly when every entry is.
    #[inline(always)]
    pub fn is_finite(&self) -> bool {
        self.sum_of_squares.is_finite()
    }

    pub fn mean(&self) -> f32 {
        (self.origin + self.sum / self.count) as f32
    }

    pub fn std(&self) -> f32 {
        let mean = self.sum / self.count;
        (self.sum_of_squares / self.count - mean * mean)
            .max(0.0)
            .sqrt() as f32
    }
}

#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut max = f32::NEG_INFINITY;
    for &value in values {
        max = if value > max { value } else { max };
    }
    max
}

/// `logsumexp(row / tau)` for every temperature.
///
/// Temperatures that are the largest one divided by 2, 4 or 8 share its exponential: e^(x/1) = (e^(x/4))^4. Where `parts`
/// is given it is filled with `sum exp(y - max)` of every `SUM_BLOCK` entries, most often a by-product.
#[inline(always)]
pub(super) fn logsumexp(
    row: &[f32],
    max: f32,
    temperatures: &[f32],
    mut parts: Option<&mut Vec<f64>>,
) -> [f32; TEMPERATURES_MAX] {
    let mut out = [0f32; TEMPERATURES_MAX];
    let largest_tau = temperatures.iter().copied().fold(0f32, f32::max);
    let squarings_of = |tau: f32| (0..POWERS).find(|&n| tau * (1u32 << n) as f32 == largest_tau);
    // Squarings that no temperature needs are not made.
    let most = temperatures
        .iter()
        .filter_map(|&tau| squarings_of(tau))
        .max();
    let at_one = squarings_of(1.0).filter(|_| temperatures.contains(&1.0));
    let record = at_one.and_then(|power| Some((power, parts.take()?)));
    let shared = match most.unwrap_or_default() {
        0 => sums_of_powers::<1>(row, max, largest_tau, record),
        1 => sums_of_powers::<2>(row, max, largest_tau, record),
        2 => sums_of_powers::<3>(row, max, largest_tau, record),
        _ => sums_of_powers::<POWERS>(row, max, largest_tau, record),
    };
    if let Some(parts) = parts {
        sums_of_powers::<1>(row, max, 1.0, Some((0, parts)));
    }
    for (out, &tau) in out.iter_mut().zip(temperatures) {
        let sum = match squarings_of(tau) {
            Some(n) => shared[n],
            None => sums_of_powers::<1>(row, max, tau, None)[0],
        };
        *out = (f64::from(max) / f64::from(tau) + sum.ln()) as f32;
    }
    out
}

/// Sums over the row of the first `N` of e, e^2, e^4 and e^8, where e = exp((y - max) / tau); `record` names the power whose
/// sums over parts are wanted too.
#[inline(always)]
fn sums_of_powers<const N: usize>(
    row: &[f32],
    max: f32,
    tau: f32,
    mut record: Option<(usize, &mut Vec<f64>)>,
) -> [f64; POWERS] {
    if let Some((_, parts)) = &mut record {
        parts.clear();
    }
    let scale = 1.0 / tau;
    let mut totals = [0f64; POWERS];
    for part in row.chunks(SUM_BLOCK) {
        let mut sums = [[0f32; LANES]; N];
        let mut add = |lane: usize, value: f32| {
            let mut power = exp((value - max) * scale);
            for sum in &mut sums {
                sum[lane] += power;
                power = square(power);
            }
        };
        let mut lanes = part.chunks_exact(LANES);
        for chunk in &mut lanes {
            for (lane, &value) in chunk.iter().enumerate() {
                add(lane, value);
            }
        }
        let rest = lanes.remainder().iter().enumerate();
        rest.for_each(|(lane, &value)| add(lane, value));
        for (power, (total, sum)) in totals.iter_mut().zip(&sums).enumerate() {
            let sum = sum.iter().copied().map(f64::from).sum::<f64>();
            *total += sum;
            if let Some((_, parts)) = record.as_mut().filter(|(wanted, _)| *wanted == power) {
                parts.push(sum);
            }
        }
    }
    totals
}

/// The square of a power of e, zero where it would be a denormal number: those are slow, and change no sum.
#[inline(always)]
fn square(power: f32) -> f32 {
    let kept = if power < SQUARED_MIN { 0.0 } else { power };
    kept * kept
}

/// Writes `exp(y - max)` of one part of a row into `out`, which is as long, and returns their sum.
///
/// Entries at the places in `without`, relative to the part, count as zero.
#[inline(always)]
pub(super) fn exponentials(
    part: &[f32],
    max: f32,
    without: impl Iterator<Item = usize>,
    out: &mut [f32],
) -> f64 {
    for (out, &value) in out.iter_mut().zip(part) {
        *out = exp(value - max);
    }
    for place in without {
        if let Some(out) = out.get_mut(place) {
            *out = 0.0;
        }
    }
    let mut sums = [0f32; LANES];
    let mut lanes = out.chunks_exact(LANES);
    for chunk in &mut lanes {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value;
        }
    }
    for (sum, value) in sums.iter_mut().zip(lanes.remainder()) {
        *sum += value;
    }
    sums.iter().copied().map(f64::from).sum()
}
