//! Provides the buffers that emulated kernels work on.

use candle_core::{DType, Device, Result, Tensor, WithDType, bail};
use half::{bf16, f16};

use crate::layout;

/// Words before the first buffer and after each: what is written past one reaches no other, and each begins where any number may.
const GAP: usize = 2;

/// Buffers, named by the order in which they were made.
#[derive(Clone, Default)]
pub struct Memory {
    regions: Vec<Region>,
    /// The numbers' bytes, in words that any of them may lie in. What nothing was written to has all bits set: NaN for floats, and
    /// large for integers.
    words: Vec<u64>,
}

#[derive(Clone, Copy)]
struct Region {
    dtype: DType,
    len: usize,
    /// Its first word.
    start: usize,
}

impl Region {
    fn bytes(&self) -> usize {
        self.len * self.dtype.size_in_bytes()
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
        fn copy<T: WithDType + bytemuck::Pod>(tensor: &Tensor, to: &mut [u8]) -> Result<()> {
            let values = tensor.flatten_all()?.to_vec1::<T>()?;
            to.copy_from_slice(bytemuck::cast_slice(&values));
            Ok(())
        }
        let index = self.fresh(tensor.dtype(), tensor.elem_count());
        let region = &self.regions[index];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words[region.start..]);
        let bytes = &mut bytes[..region.bytes()];
        match tensor.dtype() {
            DType::F32 => copy::<f32>(tensor, bytes)?,
            DType::BF16 => copy::<bf16>(tensor, bytes)?,
            DType::F16 => copy::<f16>(tensor, bytes)?,
            DType::U8 => copy::<u8>(tensor, bytes)?,
            DType::U32 => copy::<u32>(tensor, bytes)?,
            DType::I64 => copy::<i64>(tensor, bytes)?,
            DType::F64 => copy::<f64>(tensor, bytes)?,
            other => bail!("kernels take no buffers of {other:?}"),
        }
        Ok(index)
    }

    /// As [`upload`](Self::upload), for each.
    pub(super) fn upload_all(&mut self, tensors: &[&Tensor]) -> Result<Vec<usize>> {
        tensors.iter().map(|tensor| self.upload(tensor)).collect()
    }

    /// A buffer that nothing was written to: NaN, or the largest integer; its index.
    pub fn fresh(&mut self, dtype: DType, len: usize) -> usize {
        let start = self.words.len().max(GAP);
        let region = Region { dtype, len, start };
        // Every buffer begins at a multiple of 16 bytes, as the memory of them all does.
        let words = region.bytes().div_ceil(size_of::<u64>());
        let words = words.next_multiple_of(GAP) + GAP;
        self.words.resize(start + words, u64::MAX);
        self.regions.push(region);
        self.regions.len() - 1
    }

    /// The numbers of a buffer, as `[len]`.
    ///
    /// # Errors
    /// When there is no such buffer.
    pub fn read(&self, index: usize) -> Result<Tensor> {
        let region = self.region(index)?;
        let bytes = self.bytes(region);
        Tensor::from_raw_buffer(bytes, region.dtype, &[region.len], &Device::Cpu)
    }

    /// What a buffer holds; `None` where there is no such buffer.
    pub(super) fn dtype(&self, index: usize) -> Option<DType> {
        self.regions.get(index).map(|region| region.dtype)
    }

    /// The first buffer whose bytes differ.
    pub(super) fn first_difference(&self, other: &Self) -> Option<usize> {
        let mut pairs = self.regions.iter().zip(&other.regions);
        pairs.position(|(a, b)| self.bytes(a) != other.bytes(b))
    }

    /// Whether the bytes of a buffer are others than in `other`, which was this memory.
    pub(super) fn differs(&self, other: &Self, index: usize) -> bool {
        match (self.regions.get(index), other.regions.get(index)) {
            (Some(own), Some(others)) => self.bytes(own) != other.bytes(others),
            _ => false,
        }
    }

    /// Where the buffers begin and end, in the order of their addresses.
    pub(super) fn ranges(&self) -> Vec<[u64; 2]> {
        let begin = self.words.as_ptr().addr() as u64;
        let range = |region: &Region| {
            let begin = begin + (region.start * size_of::<u64>()) as u64;
            [begin, begin + region.bytes() as u64]
        };
        self.regions.iter().map(range).collect()
    }

    /// Where a buffer lies, for a kernel that may write to it.
    pub(super) fn expose(&mut self, index: usize) -> Result<layout::Region> {
        let Region { dtype, len, start } = *self.region(index)?;
        let first = self.words[start..].as_mut_ptr();
        Ok(layout::Region {
            pointer: first.expose_provenance() as u64,
            len,
            dtype,
        })
    }

    fn bytes(&self, region: &Region) -> &[u8] {
        &bytemuck::cast_slice(&self.words[region.start..])[..region.bytes()]
    }

    fn region(&self, index: usize) -> Result<&Region> {
        match self.regions.get(index) {
            Some(region) => Ok(region),
            None => bail!("there are {} buffers, and none {index}", self.regions.len()),
        }
    }
}
