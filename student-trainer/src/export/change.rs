//! Provides how much of what an adapter changed is left of it once the sum is rounded to a file's type.
//!
//! The base's own rounding is far coarser than many a change: half a unit in the last place of bf16 is a 512th of a weight, and
//! a short training moves a weight by less. What is asked is therefore how far rounding moves the weights beside how far the
//! adapter moved them,
//!
//! ```text
//! survives = 1 - ||round(W + dW) - (W + dW)|| / ||dW||        at least 0; Frobenius norms, f64
//! ```
//!
//! A base that is in the same type already loses the changes that are smaller than its steps; one that was dequantised gets noise
//! as large as its steps. Both count alike.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::{Result, model_files::FloatType};

/// In this order in every array below.
const TYPES: [FloatType; 3] = [FloatType::Bf16, FloatType::F16, FloatType::F32];
/// Of a change, what must survive. Noise of an eighth of the change, f16's where bf16's is all of it, costs a 64th of what
/// training brought: near a minimum the loss grows with its square.
pub(super) const SURVIVING_MIN: f64 = 0.85;
/// Of a tensor, what rounding to f16 may move where its range allows it: what bf16 would.
const ROUNDED_MAX: f64 = 1.0 / 512.0;
/// Weights that one task looks at.
const CHUNK: usize = 1 << 16;

/// Squared norms over a matrix, or over several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Norms {
    change: f64,
    /// Of what rounding moves, by type.
    rounded: [f64; TYPES.len()],
}

impl Norms {
    fn of(weight: &[f32], update: &[f32]) -> Self {
        let pairs = weight.par_chunks(CHUNK).zip(update.par_chunks(CHUNK));
        let chunk = |(weight, update): (&[f32], &[f32])| {
            let mut sum = Self::default();
            for (&w, &d) in weight.iter().zip(update) {
                let exact = f64::from(w) + f64::from(d);
                let merged = w + d;
                let stored = [
                    bf16::from_f32(merged).to_f64(),
                    f16::from_f32(merged).to_f64(),
                    f64::from(merged),
                ];
                sum.change += f64::from(d).powi(2);
                for (sum, stored) in sum.rounded.iter_mut().zip(stored) {
                    *sum += (stored - exact).powi(2);
                }
            }
            sum
        };
        pairs.map(chunk).reduce(Self::default, Self::plus)
    }

    fn plus(self, other: Self) -> Self {
        let mut rounded = self.rounded;
        for (sum, more) in rounded.iter_mut().zip(other.rounded) {
            *sum += more;
        }
        Self {
            change: self.change + other.change,
            rounded,
        }
    }

    /// The share that survives in `dtype`; `None` where nothing changed.
    fn surviving(&self, dtype: FloatType) -> Option<f64> {
        let moved = TYPES.iter().zip(self.rounded);
        let moved = moved.filter(|(known, _)| **known == dtype);
        let moved: f64 = moved.map(|(_, moved)| moved).sum();
        (self.change > 0.0).then(|| (1.0 - (moved / self.change).sqrt()).max(0.0))
    }
}

/// What an adapter changed, matrix by matrix, and whether all tensors are within the range of f16.
#[derive(Debug)]
pub(super) struct Change {
    matrices: BTreeMap<String, Norms>,
    in_range_of_f16: bool,
}

impl Change {
    pub fn new() -> Self {
        Self {
            matrices: BTreeMap::new(),
            in_range_of_f16: true,
        }
    }

    /// Looks at the tensor `name`, and at what is added to it.
    pub fn add(&mut self, name: &str, weight: &Tensor, update: Option<&Tensor>) -> Result<()> {
        let weight = host(weight)?;
        let Some(update) = update else {
            let squares = weight.par_iter().map(|&w| {
                let w = f64::from(w);
                [w, f16::from_f64(w).to_f64() - w].map(|x| x * x)
            });
            let sum = |a: [f64; 2], b: [f64; 2]| [a[0] + b[0], a[1] + b[1]];
            let [size, rounded] = squares.reduce(|| [0.0; 2], sum);
            // An overflow is infinite, and so is not below anything.
            self.in_range_of_f16 &= rounded <= size * ROUNDED_MAX.powi(2);
            return Ok(());
        };
        let norms = Norms::of(&weight, &host(update)?);
        self.matrices.insert(name.to_owned(), norms);
        Ok(())
    }

    /// The type in which the change survives, the smallest one; `None` where there is no change.
    pub fn fitting(&self) -> Option<FloatType> {
        let all = self.all();
        let half = all.surviving(FloatType::F16)?;
        let fits = half >= SURVIVING_MIN && self.in_range_of_f16;
        Some(if fits { FloatType::F16 } else { FloatType::F32 })
    }

    /// What is left of it in files of `dtype`; `None` where there is no change.
    pub fn surviving(&self, dtype: FloatType) -> Option<Surviving> {
        let all = self.all();
        let of_matrix = |(name, norms): (&String, &Norms)| {
            let share = norms.surviving(dtype)?;
            Some((name.clone(), share))
        };
        Some(Surviving {
            all: all.surviving(dtype)?,
            by_type: TYPES
                .into_iter()
                .filter_map(|dtype| Some((dtype.name(), all.surviving(dtype)?)))
                .collect(),
            matrices: self.matrices.iter().filter_map(of_matrix).collect(),
        })
    }

    fn all(&self) -> Norms {
        let matrices = self.matrices.values().copied();
        matrices.fold(Norms::default(), Norms::plus)
    }
}

/// Of an adapter's change, the shares that are left in the files.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Surviving {
    /// In all.
    pub all: f64,
    /// In all, had another type been taken.
    pub by_type: BTreeMap<&'static str, f64>,
    /// Of each matrix that changed.
    pub matrices: BTreeMap<String, f64>,
}

impl Surviving {
    /// The matrix of which least survives.
    pub fn least(&self) -> Option<(&str, f64)> {
        let least = self.matrices.iter().min_by(|a, b| a.1.total_cmp(b.1));
        least.map(|(name, share)| (name.as_str(), *share))
    }
}

fn host(tensor: &Tensor) -> Result<Vec<f32>> {
    let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(tensor.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn change(weight: &[f32], update: &[f32]) -> Change {
        let mut change = Change::new();
        change
            .add("a", &tensor(weight), Some(&tensor(update)))
            .unwrap();
        change
    }

    #[test]
    fn a_change_below_half_a_step_is_gone_and_one_of_whole_steps_is_there() {
        let shares = |weight: &[f32], update: &[f32]| {
            let change = change(weight, update);
            TYPES.map(|dtype| change.surviving(dtype).unwrap().all)
        };
        // Steps above 1 are 2^-7 in bf16, 2^-10 in f16 and 2^-23 in f32.
        assert_eq!(shares(&[1.0; 9], &[0.003; 9])[0], 0.0);
        assert_eq!(shares(&[1.0; 9], &[0.0078125; 9]), [1.0; 3]);
        let [bf16, f16, f32] = shares(&[1.0; 9], &[1.0 / 1024.0; 9]);
        assert_eq!((bf16, f16, f32), (0.0, 1.0, 1.0));
        // 3 steps and a quarter: a quarter of 3.25 is lost.
        let quarter = shares(&[1.0; 9], &[3.25 / 128.0; 9])[0];
        assert!((quarter - 3.0 / 3.25).abs() < 1e-6, "{quarter}");
        // Noise of a base that was on no grid counts as what it covers does.
        let base: Vec<f32> = (0..1000).map(|i| 1.0 + i as f32 / 1013.0).collect();
        assert_eq!(shares(&base, &[1e-4; 1000])[0], 0.0);
        assert!(shares(&base, &[1e-7; 1000])[2] < 0.9);
    }

    #[test]
    fn the_type_is_half_precision_where_the_change_and_every_tensor_fit() {
        let fits = |weight: f32, update: f32, other: f32| {
            let mut change = change(&[weight; 9], &[update; 9]);
            change.add("norm", &tensor(&[other; 4]), None).unwrap();
            change.fitting()
        };
        assert_eq!(fits(1.0, 0.004, 1.0), Some(FloatType::F16));
        assert_eq!(fits(1.0, 1e-5, 1.0), Some(FloatType::F32));
        // Beyond the largest, and below the smallest that is stored in full.
        for other in [7e4, -7e4, 1e-7, f32::NAN] {
            assert_eq!(fits(1.0, 0.004, other), Some(FloatType::F32), "{other}");
        }
        assert_eq!(fits(7e4, 100.0, 1.0), Some(FloatType::F32));
        assert_eq!(fits(1.0, 0.004, 0.0), Some(FloatType::F16));
        assert_eq!(fits(1.0, 0.0, 1.0), None);
    }

    #[test]
    fn the_matrix_that_loses_most_is_named() {
        let mut change = change(&[1.0; 4], &[1.0; 4]);
        let (one, small) = (tensor(&[1.0; 4]), tensor(&[0.001; 4]));
        change.add("b", &one, Some(&small)).unwrap();
        change.add("c", &one, Some(&tensor(&[0.0; 4]))).unwrap();
        let surviving = change.surviving(FloatType::Bf16).unwrap();
        assert_eq!(surviving.least(), Some(("b", 0.0)));
        assert!(surviving.all > 0.99 && surviving.by_type["float32"] > 0.999);
        assert_eq!(surviving.matrices.len(), 2);
    }
}
