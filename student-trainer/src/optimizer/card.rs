//! Provides moments on a card, in f32 or in 8 bits, and their updates by kernels: the bits are those of the host's update.

use candle_core::{DType, Tensor, Var};
use distill_kernels::{Compute, device};

use super::{
    adamw::Step,
    blockwise::{BLOCK, DynamicMap},
    moments::{ABSMAX, FIRST, SECOND},
};
use crate::Result;

/// Moments of one parameter, and how to compute with them.
pub(super) struct CardMoments {
    kept: Kept,
    compute: Compute,
}

/// Each `[elements]`; codes with their scales, `[blocks]`.
enum Kept {
    Floats([Tensor; 2]),
    Codes {
        moments: [[Tensor; 2]; 2],
        /// What the codes stand for; see [`update_8bit`](distill_kernels::update::AdamW::update_8bit).
        maps: Tensor,
    },
}

impl CardMoments {
    /// Moments of zero.
    pub fn new(parameter: &Var, in_8_bits: bool) -> Result<Self> {
        Self::with(parameter, in_8_bits, device::COMPUTE)
    }

    fn with(parameter: &Var, in_8_bits: bool, compute: Compute) -> Result<Self> {
        let (count, device) = (parameter.elem_count(), parameter.device());
        let zeros = |count: usize| Tensor::zeros(count, DType::F32, device);
        if !in_8_bits {
            let kept = Kept::Floats([zeros(count)?, zeros(count)?]);
            return Ok(Self { kept, compute });
        }
        let maps = [DynamicMap::signed(), DynamicMap::unsigned()];
        let moment = |map: &DynamicMap| {
            let codes = Tensor::full(map.code(0.0), count, device)?;
            Ok::<_, candle_core::Error>([codes, zeros(count.div_ceil(BLOCK))?])
        };
        let tables: Vec<f32> = maps.iter().flat_map(|map| map.tables()).collect();
        let kept = Kept::Codes {
            moments: [moment(maps[0])?, moment(maps[1])?],
            maps: Tensor::from_slice(&tables, tables.len(), device)?,
        };
        Ok(Self { kept, compute })
    }

    /// One update of `parameter` and of these moments.
    pub fn update(&mut self, parameter: &Var, gradient: &Tensor, step: &Step) -> Result<()> {
        let numbers = step.numbers();
        let (count, scales) = (
            parameter.elem_count(),
            parameter.elem_count().div_ceil(BLOCK),
        );
        let (held, gradient) = (parameter.contiguous()?, gradient.contiguous()?);
        let changed = match &mut self.kept {
            Kept::Floats(moments) => {
                let [first, second] = &*moments;
                let inputs = [&held, &gradient, first, second];
                let made = (self.compute)(&inputs, &[(DType::F32, count); 3], &|x, out| {
                    let (x, out) = ([x[0], x[1], x[2], x[3]], [out[0], out[1], out[2]]);
                    Ok(vec![numbers.update(x, out, count)?])
                })?;
                let [changed, first, second] = exactly(made)?;
                *moments = [first, second];
                changed
            }
            Kept::Codes { moments, maps } => {
                let [[first, first_scales], [second, second_scales]] = &*moments;
                let inputs = [
                    &held,
                    &gradient,
                    first,
                    first_scales,
                    second,
                    second_scales,
                    &*maps,
                ];
                let moment = [(DType::U8, count), (DType::F32, scales)];
                let outputs = [&[(DType::F32, count)], &moment[..], &moment[..]].concat();
                let made = (self.compute)(&inputs, &outputs, &|x, out| {
                    let (x, out) = (exactly(x.to_vec())?, exactly(out.to_vec())?);
                    Ok(vec![numbers.update_8bit(x, out, count)?])
                })?;
                let [changed, first, first_scales, second, second_scales] = exactly(made)?;
                *moments = [[first, first_scales], [second, second_scales]];
                changed
            }
        };
        Ok(parameter.set(&changed.reshape(parameter.shape())?)?)
    }

    /// Each tensor with the moment that it is of, and what is appended to that one's name.
    pub fn tensors(&self) -> Vec<(&'static str, &'static str, &Tensor)> {
        match &self.kept {
            Kept::Floats([first, second]) => vec![(FIRST, "", first), (SECOND, "", second)],
            Kept::Codes { moments, .. } => [FIRST, SECOND]
                .into_iter()
                .zip(moments)
                .flat_map(|(name, [codes, scales])| [(name, "", codes), (name, ABSMAX, scales)])
                .collect(),
        }
    }

    /// Moments of the same form, of other tensors.
    pub fn map(&self, other: impl Fn(&str, &str, &Tensor) -> Result<Tensor>) -> Result<Self> {
        let tensors = self.tensors().into_iter();
        let tensors = tensors
            .map(|(moment, suffix, tensor)| other(moment, suffix, tensor))
            .collect::<Result<Vec<_>>>()?;
        let kept = match &self.kept {
            Kept::Floats(_) => Kept::Floats(exactly(tensors)?),
            Kept::Codes { maps, .. } => {
                let [first, first_scales, second, second_scales] = exactly(tensors)?;
                Kept::Codes {
                    moments: [[first, first_scales], [second, second_scales]],
                    maps: maps.clone(),
                }
            }
        };
        Ok(Self { kept, ..*self })
    }

    /// Memory that they take.
    pub fn bytes(&self) -> usize {
        let tensors = self.tensors().into_iter();
        tensors
            .map(|(_, _, tensor)| tensor.elem_count() * tensor.dtype().size_in_bytes())
            .sum()
    }
}

/// What a run made, as many as were asked for.
fn exactly<T, const N: usize>(made: Vec<T>) -> candle_core::Result<[T; N]> {
    <[T; N]>::try_from(made).map_err(|made| {
        candle_core::Error::msg(format!(
            "{N} buffers were asked for, and {} came",
            made.len()
        ))
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use distill_kernels::{Emulator, UPDATE};

    use super::*;
    use crate::optimizer::{AdamWConfig, moments::Moments};

    const CONFIG: AdamWConfig = AdamWConfig {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
    };

    const EMULATED: Compute =
        |inputs, outputs, calls| Emulator::of(&UPDATE)?.compute(inputs, outputs, calls);

    /// Numbers of many sizes and both signs; of a block, all zero.
    fn values(count: usize, seed: f32) -> Tensor {
        let value = |i: usize| match i / BLOCK {
            1 => 0.0,
            _ => (i as f32 * 0.7 + seed).sin() * 10f32.powi(i as i32 % 9 - 6),
        };
        let values: Vec<f32> = (0..count).map(value).collect();
        Tensor::from_vec(values, (1, count), &Device::Cpu).unwrap()
    }

    /// Of which NaN a number is one device says this and another that.
    fn bits(tensor: &Tensor) -> Vec<u32> {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let of = |value: f32| if value.is_nan() { f32::NAN } else { value };
        values
            .into_iter()
            .map(|value| of(value).to_bits())
            .collect()
    }

    fn state(moments: &Moments, parameter: &Var) -> Vec<(String, Vec<u32>)> {
        let mut state = std::collections::BTreeMap::new();
        moments.save("p", parameter, &mut state).unwrap();
        let whole =
            |(name, tensor): (String, Tensor)| (name, bits(&tensor.to_dtype(DType::F32).unwrap()));
        state.into_iter().map(whole).collect()
    }

    /// Some updates on the host and by the kernels, from the same start.
    fn assert_same_bits(count: usize, in_8_bits: bool, gradient: impl Fn(usize) -> Tensor) {
        let start = values(count, 0.0);
        let vars = [0, 1].map(|_| Var::from_tensor(&start).unwrap());
        let mut host = Moments::new(&vars[0], in_8_bits).unwrap();
        let card = CardMoments::with(&vars[1], in_8_bits, EMULATED).unwrap();
        let mut card = Moments::Card(card);
        assert_eq!(host.bytes(), card.bytes());
        for t in 1..=4 {
            let step = Step::new(&CONFIG, t, 0.01 / t as f64, 0.1, 0.37);
            host.update(&vars[0], &gradient(t), &step).unwrap();
            card.update(&vars[1], &gradient(t), &step).unwrap();
            assert_eq!(bits(&vars[0]), bits(&vars[1]), "{count} elements, step {t}");
            assert_eq!(state(&host, &vars[0]), state(&card, &vars[1]), "step {t}");
        }
    }

    #[test]
    fn the_card_updates_to_the_bits_of_the_host() {
        // One element; a block less one, one, and more; some blocks with a rest.
        for count in [1, 255, 256, 257, 2_500] {
            for in_8_bits in [false, true] {
                assert_same_bits(count, in_8_bits, |t| values(count, t as f32));
            }
        }
    }

    #[test]
    fn squares_that_overflow_leave_the_same_bits_behind() {
        // Beyond the root of f32's largest number: a scale of infinity, and NaN from then on.
        let mut large = values(600, 1.0)
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        large[3] = 3e38;
        large[300] = -1e-42;
        let large = Tensor::from_vec(large, (1, 600), &Device::Cpu).unwrap();
        assert_same_bits(600, true, |_| large.clone());
    }

    #[test]
    fn a_state_goes_from_the_host_to_the_card_and_back() {
        for in_8_bits in [false, true] {
            let count = 700;
            let vars = [0, 1].map(|_| Var::from_tensor(&values(count, 0.0)).unwrap());
            let mut host = Moments::new(&vars[0], in_8_bits).unwrap();
            let step = Step::new(&CONFIG, 1, 0.01, 0.1, 1.0);
            host.update(&vars[0], &values(count, 1.0), &step).unwrap();
            let mut saved = std::collections::BTreeMap::new();
            host.save("p", &vars[0], &mut saved).unwrap();
            let empty = CardMoments::with(&vars[1], in_8_bits, EMULATED).unwrap();
            let card = Moments::Card(empty).load("p", &vars[1], &saved).unwrap();
            assert_eq!(state(&host, &vars[0]), state(&card, &vars[1]));
            saved.remove("p.exp_avg_sq");
            let error = card.load("p", &vars[1], &saved).err().unwrap();
            assert!(error.to_string().contains("p.exp_avg_sq"), "{error}");
        }
    }
}
