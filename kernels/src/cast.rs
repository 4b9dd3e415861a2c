//! Provides the rounding of many tensors into one buffer, in one launch: what a pass computes with of parameters that are kept in f32.

use candle_core::{DType, Result, Tensor};

use crate::update::blocks_for;
use crate::{CAST, Call, Compute, GRID_MAX, Launch, Part};

/// Threads of a block.
const THREADS: usize = 256;

/// A tensor of `len` floats, and where its elements go in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "said above")]
pub struct Cast {
    pub tensor: usize,
    pub len: usize,
    pub at: usize,
}

/// Rounds tensors to the type of `out`, floats like them. What no tensor goes to is not written.
///
/// # Errors
/// None, unless a grid has fewer blocks than this asks for.
pub fn cast_many(casts: &[Cast], out: usize) -> Result<Vec<Call>> {
    let calls = casts.chunks(GRID_MAX[1]).map(|casts| {
        let longest = casts.iter().map(|cast| cast.len).max().unwrap_or(0);
        let launch = Launch {
            grid: [blocks_for(longest), casts.len(), 1],
            block: THREADS,
            shared: 0,
        };
        let call = Call::new(&CAST, "cast_many", launch)?;
        let from = casts.iter().map(|cast| Part::of(cast.tensor, 0, cast.len));
        let to = casts.iter().map(|cast| Part::of(out, cast.at, cast.len));
        Ok(call.floats_table(from.collect()).floats_table(to.collect()))
    });
    calls.collect()
}

/// One tensor `[len]` of all sources in another type, each from its place on; what lies between them is not written. No way back leads
/// from it.
///
/// # Errors
/// As [`device::run`](crate::device::run).
pub fn gather(
    sources: &[(usize, &Tensor)],
    len: usize,
    dtype: DType,
    compute: Compute,
) -> Result<Tensor> {
    let tensors: Vec<&Tensor> = sources.iter().map(|(_, tensor)| *tensor).collect();
    let made = compute(&tensors, &[(dtype, len)], &|x, out| {
        let casts = x.iter().zip(sources).map(|(x, (at, tensor))| Cast {
            tensor: *x,
            len: tensor.elem_count(),
            at: *at,
        });
        cast_many(&casts.collect::<Vec<_>>(), out[0])
    })?;
    Ok(made[0].clone())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{Emulator, Memory};

    const EMULATED: Compute =
        |inputs, outputs, calls| Emulator::of(&CAST)?.compute(inputs, outputs, calls);

    fn random(len: usize, dtype: DType) -> Result<Tensor> {
        let value = |i: usize| (i as f32 * 0.37).sin() * 10f32.powi(i as i32 % 13 - 8);
        let mut values: Vec<f32> = (0..len).map(value).collect();
        if let Some(last) = values.last_mut() {
            *last = f32::NAN;
        }
        Tensor::new(values, &Device::Cpu)?.to_dtype(dtype)
    }

    /// Where NaN is, zero is in its place.
    fn values(tensor: &Tensor) -> Result<Vec<u64>> {
        let wide = tensor.to_dtype(DType::F64)?.flatten_all()?;
        let bits = |x: f64| if x.is_nan() { 0 } else { x.to_bits() };
        Ok(wide.to_vec1::<f64>()?.into_iter().map(bits).collect())
    }

    #[test]
    fn every_tensor_is_rounded_as_the_host_rounds_it() -> Result<()> {
        let floats = [DType::F32, DType::BF16, DType::F16];
        for (from, to) in floats.into_iter().flat_map(|a| floats.map(|b| (a, b))) {
            // Longer than all threads take at once, and less than one block.
            let lens = [1, 255, 257, 100_003, 64];
            let tensors = lens.map(|len| random(len, from));
            let tensors = tensors.into_iter().collect::<Result<Vec<_>>>()?;
            // Gaps between some of them, and none between others.
            let places = [0, 8, 263, 600, 100_603];
            let sources: Vec<_> = places.into_iter().zip(&tensors).collect();
            let made = gather(&sources, 100_667, to, EMULATED)?;
            assert_eq!(made.dtype(), to);
            for (at, tensor) in sources {
                let made = made.narrow(0, at, tensor.elem_count())?;
                assert_eq!(values(&made)?, values(&tensor.to_dtype(to)?)?);
            }
        }
        Ok(())
    }

    #[test]
    fn no_tensors_are_no_launch() -> Result<()> {
        assert!(cast_many(&[], 0)?.is_empty());
        let empty = Cast {
            tensor: 0,
            len: 0,
            at: 0,
        };
        assert!(cast_many(&[empty], 1)?.iter().all(|call| !call.launches()));
        Ok(())
    }

    #[test]
    fn many_tensors_are_one_launch() -> Result<()> {
        let cast = |tensor| Cast {
            tensor,
            len: 8,
            at: 8 * tensor,
        };
        let casts: Vec<Cast> = (0..GRID_MAX[1]).map(cast).collect();
        assert_eq!(cast_many(&casts, 1 << 20)?.len(), 1);
        // A grid has no room for more.
        let casts = [&casts[..], &[cast(0)]].concat();
        assert_eq!(cast_many(&casts, 1 << 20)?.len(), 2);
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused() -> Result<()> {
        let emulator = Emulator::of(&CAST)?;
        let mut memory = Memory::new();
        let (x, out) = (memory.fresh(DType::F32, 8), memory.fresh(DType::BF16, 8));
        for (len, at) in [(9, 0), (8, 1), (1, usize::MAX)] {
            let cast = Cast { tensor: x, len, at };
            let error = emulator.run(&mut memory, &cast_many(&[cast], out)?);
            let error = error.unwrap_err().to_string();
            assert!(error.contains("which has 8"), "{error}");
        }
        Ok(())
    }
}
