//! Provides the buffers that emulated kernels work on.

use std::ffi::c_void;

use candle_core::{DType, Device, Result, Tensor, WithDType, bail};
use half::{bf16, f16};

use crate::Call;
use crate::call::{Argument, float_code, type_code};

/// Buffers, named by the order in which they were made.
#[derive(Clone, Default)]
pub struct Memory {
    regions: Vec<Region>,
}

#[derive(Clone)]
struct Region {
    dtype: DType,
    len: usize,
    /// The numbers' bytes, in words that any of them may lie in.
    words: Vec<u64>,
}

/// An argument as `registry.hpp` reads it.
#[repr(C)]
pub(super) struct RawArgument {
    kind: i32,
    dtype: i32,
    data: *mut c_void,
    len: i64,
    integer: i64,
    number: f32,
}

impl Region {
    /// All bits set: NaN for floats, and large for integers.
    fn fresh(dtype: DType, len: usize) -> Self {
        let words = (len * dtype.size_in_bytes()).div_ceil(size_of::<u64>());
        Self {
            dtype,
            len,
            words: vec![u64::MAX; words],
        }
    }

    fn of(tensor: &Tensor) -> Result<Self> {
        fn copy<T: WithDType + bytemuck::Pod>(tensor: &Tensor, to: &mut [u64]) -> Result<()> {
            let values = tensor.flatten_all()?.to_vec1::<T>()?;
            let bytes: &[u8] = bytemuck::cast_slice(&values);
            bytemuck::cast_slice_mut(to)[..bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
        let mut region = Self::fresh(tensor.dtype(), tensor.elem_count());
        let words = &mut region.words;
        match tensor.dtype() {
            DType::F32 => copy::<f32>(tensor, words)?,
            DType::BF16 => copy::<bf16>(tensor, words)?,
            DType::F16 => copy::<f16>(tensor, words)?,
            DType::U8 => copy::<u8>(tensor, words)?,
            DType::U32 => copy::<u32>(tensor, words)?,
            DType::I64 => copy::<i64>(tensor, words)?,
            DType::F64 => copy::<f64>(tensor, words)?,
            other => bail!("kernels take no buffers of {other:?}"),
        }
        Ok(region)
    }
}

impl Memory {
    /// No buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer with the tensor's numbers, in their order; its index.
    ///
    /// # Errors
    /// When no kernel takes the tensor's type.
    pub fn upload(&mut self, tensor: &Tensor) -> Result<usize> {
        self.regions.push(Region::of(tensor)?);
        Ok(self.regions.len() - 1)
    }

    /// A buffer that nothing was written to: NaN, or the largest integer; its index.
    pub fn fresh(&mut self, dtype: DType, len: usize) -> usize {
        self.regions.push(Region::fresh(dtype, len));
        self.regions.len() - 1
    }

    /// The numbers of a buffer, as `[len]`.
    ///
    /// # Errors
    /// When there is no such buffer.
    pub fn read(&self, index: usize) -> Result<Tensor> {
        let region = self.region(index)?;
        let bytes = bytemuck::cast_slice(&region.words);
        let bytes = &bytes[..region.len * region.dtype.size_in_bytes()];
        Tensor::from_raw_buffer(bytes, region.dtype, &[region.len], &Device::Cpu)
    }

    /// The first buffer whose bytes differ.
    pub(super) fn first_difference(&self, other: &Self) -> Option<usize> {
        let mut pairs = self.regions.iter().zip(&other.regions);
        pairs.position(|(a, b)| a.words != b.words)
    }

    /// The call's arguments, pointing into these buffers.
    pub(super) fn arguments(&mut self, call: &Call) -> Result<Vec<RawArgument>> {
        let argument = |argument: &Argument| {
            let mut raw = RawArgument {
                kind: 0,
                dtype: 0,
                data: std::ptr::null_mut(),
                len: 0,
                integer: 0,
                number: 0.0,
            };
            match *argument {
                Argument::Floats(index) => {
                    let region = self.region_mut(index)?;
                    raw.dtype = float_code(region.dtype)?;
                    (raw.data, raw.len) = (region.words.as_mut_ptr().cast(), region.len as i64);
                }
                Argument::Buffer(index, dtype) => {
                    let region = self.region_mut(index)?;
                    if region.dtype != dtype {
                        bail!(
                            "{}: buffer {index} holds {:?}, not {dtype:?}",
                            call.function,
                            region.dtype
                        );
                    }
                    (raw.kind, raw.dtype) = (1, type_code(dtype)?);
                    (raw.data, raw.len) = (region.words.as_mut_ptr().cast(), region.len as i64);
                }
                Argument::Long(value) => (raw.kind, raw.integer) = (2, value),
                Argument::Int(value) => (raw.kind, raw.integer) = (3, value.into()),
                Argument::Float(value) => (raw.kind, raw.number) = (4, value),
            }
            Ok(raw)
        };
        call.arguments.iter().map(argument).collect()
    }

    fn region(&self, index: usize) -> Result<&Region> {
        match self.regions.get(index) {
            Some(region) => Ok(region),
            None => bail!("there are {} buffers, and none {index}", self.regions.len()),
        }
    }

    fn region_mut(&mut self, index: usize) -> Result<&mut Region> {
        self.region(index)?;
        Ok(&mut self.regions[index])
    }
}
