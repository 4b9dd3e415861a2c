//! Provides sums of squares of many tensors, read from their device at once: how long gradients are, whether they are finite, and
//! which of them are zero.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use distill_kernels::{Compute, device, update};

use crate::Result;

/// The sum of squares of each of some named tensors, in f64. It is NaN or infinite exactly when an element is, and 0 when all are:
/// squares of f32 neither overflow nor vanish in f64.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Squares {
    by_name: BTreeMap<String, f64>,
}

impl Squares {
    /// Sums up tensors on one device.
    pub(crate) fn of<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<Self> {
        let (names, tensors): (Vec<_>, Vec<_>) = tensors.unzip();
        let on_cards = !tensors.is_empty() && tensors.iter().all(|x| x.device().is_cuda());
        let sums = if on_cards {
            sums_on_card(&tensors, device::COMPUTE)?
        } else {
            tensors
                .into_iter()
                .map(sum_on_host)
                .collect::<Result<_>>()?
        };
        let names = names.into_iter().map(str::to_owned);
        Ok(Self {
            by_name: names.zip(sums).collect(),
        })
    }

    /// The Euclidean norm over all.
    pub fn norm(&self) -> f64 {
        self.by_name.values().sum::<f64>().sqrt()
    }

    /// Whether every element of all is finite.
    pub fn is_finite(&self) -> bool {
        self.norm().is_finite()
    }

    /// Names of those that hold NaN or infinity.
    pub fn not_finite(&self) -> Vec<&str> {
        let bad = self.by_name.iter().filter(|(_, sum)| !sum.is_finite());
        bad.map(|(name, _)| name.as_str()).collect()
    }

    /// Whether nothing but zeros is there under this name. A NaN is not zero.
    pub fn is_zero(&self, name: &str) -> bool {
        self.by_name.get(name).is_some_and(|sum| *sum == 0.0)
    }

    /// Takes one out; its norm.
    pub fn remove_norm(&mut self, name: &str) -> Option<f64> {
        self.by_name.remove(name).map(f64::sqrt)
    }
}

fn sum_on_host(tensor: &Tensor) -> Result<f64> {
    let wide = tensor.detach().to_dtype(DType::F64)?;
    Ok(wide.sqr()?.sum_all()?.to_scalar()?)
}

/// Two launches and one reading for all tensors: each reading waits for the card.
fn sums_on_card(tensors: &[&Tensor], compute: Compute) -> Result<Vec<f64>> {
    let whole = tensors.iter().map(|tensor| tensor.contiguous());
    let whole = whole.collect::<candle_core::Result<Vec<_>>>()?;
    let inputs: Vec<&Tensor> = whole.iter().collect();
    let outputs = update::square_outputs(tensors.len());
    let made = compute(&inputs, &outputs, &|x, out| {
        update::sums_of_squares(x, (out[0], out[1]))
    })?;
    Ok(made[0].to_vec1()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use distill_kernels::{Emulator, UPDATE};

    use super::*;

    const EMULATED: Compute =
        |inputs, outputs, calls| Emulator::of(&UPDATE)?.compute(inputs, outputs, calls);

    fn tensor(values: Vec<f32>) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    /// Of many sizes, from 1e-20 to 1e20.
    fn random(count: usize) -> Tensor {
        let value = |i: usize| (i as f32 * 0.37).sin() * 10f32.powi(i as i32 % 41 - 20);
        tensor((0..count).map(value).collect())
    }

    #[test]
    fn a_card_s_sums_are_the_host_s() {
        // Less than a warp; more than all threads of the kernel, with a rest; a part of a larger tensor, and one with gaps.
        let large = random(100_003);
        let part = large.narrow(0, 11, 1_000).unwrap();
        let gaps = part.reshape((10, 100)).unwrap().t().unwrap();
        let bf16 = large.to_dtype(DType::BF16).unwrap();
        let (one, none) = (tensor(vec![0.0]), tensor(vec![]));
        let tensors = [&random(3), &large, &part, &gaps, &bf16, &one, &none];
        let sums = sums_on_card(&tensors, EMULATED).unwrap();
        for (tensor, sum) in tensors.into_iter().zip(sums) {
            let expected = sum_on_host(tensor).unwrap();
            // The host adds 100,003 terms one after another, and each sum is rounded by 1e-16 of itself.
            assert!(
                (sum - expected).abs() <= 1e-12 * expected,
                "{sum} {expected}"
            );
        }
    }

    #[test]
    fn many_tensors_are_two_launches() {
        let tensors: Vec<usize> = (2..394).collect();
        let calls = update::sums_of_squares(&tensors, (0, 1)).unwrap();
        assert_eq!(calls.len(), 2);
        assert!(update::sums_of_squares(&[], (0, 1)).is_err());
        // More than a grid has places for.
        let tensors = vec![2; 65_536];
        let calls = update::sums_of_squares(&tensors, (0, 1)).unwrap();
        assert_eq!(calls.len(), 3);
    }

    #[test]
    fn a_card_s_sums_tell_nan_infinity_and_zero() {
        let one = |value: f32| {
            let mut values = vec![0.0; 777];
            values[400] = value;
            tensor(values)
        };
        let tensors = [0.0, 1e-45, 3e38, f32::INFINITY, f32::NAN].map(one);
        let sums = sums_on_card(&tensors.each_ref(), EMULATED).unwrap();
        assert_eq!(sums[0], 0.0);
        assert!(sums[1] > 0.0 && sums[2].is_finite());
        assert!(sums[3].is_infinite() && sums[4].is_nan());
    }

    #[test]
    fn names_go_with_their_sums() {
        let tensors = [
            ("b", tensor(vec![f32::NAN])),
            ("a", tensor(vec![3.0, 4.0])),
            ("c", tensor(vec![0.0])),
        ];
        let mut squares = Squares::of(tensors.iter().map(|(name, x)| (*name, x))).unwrap();
        assert!(!squares.is_finite());
        assert_eq!(squares.not_finite(), ["b"]);
        assert!(squares.is_zero("c") && !squares.is_zero("a") && !squares.is_zero("b"));
        assert!(!squares.is_zero("absent"));
        assert!(squares.remove_norm("b").is_some_and(f64::is_nan));
        assert_eq!((squares.norm(), squares.remove_norm("b")), (5.0, None));
    }
}
