//! Provides how much memory of the device is free: what the end of a stream does not say.

use candle_core::Device;
use distill_model::{DeviceMemory, free_and_total};

use crate::Result;

/// Says how much memory a device has.
pub trait FreeMemory: Send {
    /// What is free and what there is; `None` where the system does not say, and only a try can tell.
    ///
    /// # Errors
    /// What the device says.
    fn look(&self) -> Result<Option<DeviceMemory>>;
}

/// The memory of a device; the host's plays a card's part on the CPU.
#[derive(Debug, Clone)]
pub struct MemoryOf(pub Device);

impl FreeMemory for MemoryOf {
    fn look(&self) -> Result<Option<DeviceMemory>> {
        Ok(free_and_total(&self.0)?)
    }
}
