//! Provides what becomes of a card's memory that is freed: it stays with this process, which will want it again at once, until it is
//! handed back for others.
//!
//! Left alone, the driver takes freed memory back whenever the host waits for the card, several times a step, and finds it anew each
//! time.

use candle_core::Device;

use crate::Result;

/// Hands memory that is not in use back to the driver, after all that the card still has to do. A no-op elsewhere.
///
/// # Errors
/// A driver that does not answer.
pub fn hand_back(device: &Device) -> Result<()> {
    device.synchronize()?;
    match device {
        Device::Cuda(card) => pool::trim(card),
        _ => Ok(()),
    }
}

#[cfg(feature = "cuda")]
pub(crate) use pool::{keep_freed, spare_bytes};

#[cfg(feature = "cuda")]
mod pool {
    #![expect(unsafe_code, reason = "asks the driver for its allocator")]

    use candle_core::CudaDevice;
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::result::{device::get_mem_pool, mem_pool};
    use candle_core::cuda_backend::cudarc::driver::sys::{CUmemPool_attribute, CUmemoryPool};

    use crate::Result;

    /// What the card's tensors come from; `None` where the driver has no such thing and frees at once.
    fn of(card: &CudaDevice) -> Result<Option<CUmemoryPool>> {
        let stream = card.cuda_stream();
        let context = stream.context();
        if !context.has_async_alloc() {
            return Ok(None);
        }
        context.bind_to_thread().w()?;
        // SAFETY: the device is the context's.
        let pool = unsafe { get_mem_pool(context.cu_device()) };
        Ok(Some(pool.w()?))
    }

    /// Lets freed memory stay with this process.
    pub(crate) fn keep_freed(card: &CudaDevice) -> Result<()> {
        let Some(pool) = of(card)? else {
            return Ok(());
        };
        let mut all = u64::MAX;
        let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the pool is the driver's, and the attribute is a u64.
        let set = unsafe { mem_pool::set_attribute(pool, threshold, (&raw mut all).cast()) };
        Ok(set.w()?)
    }

    /// Memory that this process holds and does not use.
    pub(crate) fn spare_bytes(card: &CudaDevice) -> Result<u64> {
        let Some(pool) = of(card)? else {
            return Ok(0);
        };
        let bytes = |attribute| {
            let mut bytes = 0u64;
            // SAFETY: the pool is the driver's, and both attributes are u64.
            let read = unsafe { mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) };
            read.w().map(|()| bytes)
        };
        let reserved = bytes(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = bytes(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        Ok(reserved.saturating_sub(used))
    }

    pub(super) fn trim(card: &CudaDevice) -> Result<()> {
        let Some(pool) = of(card)? else {
            return Ok(());
        };
        // SAFETY: the pool is the driver's.
        let trimmed = unsafe { mem_pool::trim_to(pool, 0) };
        Ok(trimmed.w()?)
    }
}

#[cfg(not(feature = "cuda"))]
mod pool {
    use candle_core::{CudaDevice, Error};

    use crate::Result;

    pub(super) fn trim(_: &CudaDevice) -> Result<()> {
        Err(Error::NotCompiledWithCudaSupport.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_nothing_to_hand_back() {
        hand_back(&Device::Cpu).unwrap();
    }
}
