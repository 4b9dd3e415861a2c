//! Provides where a model computes: the choice of a device, the element type that follows from it, and the name of what
//! computes there.

use std::{fmt, str::FromStr};

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Room, device_memory::has_no_room};

/// Where to compute, as people write it: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The first GPU, where this build can use one and one is there; else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this number.
    Cuda(usize),
}

impl DeviceChoice {
    /// For one of several processes on this machine: the GPU of its number, beginning anew where there are fewer.
    #[must_use]
    pub fn of_local_rank(self, rank: usize) -> Self {
        match cuda_devices() {
            Ok(count) if count > 0 => Self::Cuda(rank % count),
            // Opening it says why.
            _ => self,
        }
    }

    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] naming the GPU that is not there, or that this build cannot use.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(ordinal) => cuda(ordinal),
            Self::Auto => match cuda_devices() {
                Ok(0) => Ok(Device::Cpu),
                Ok(_) => cuda(0),
                Err(reason) => {
                    tracing::warn!("no GPU can be used ({reason}); computing on the CPU");
                    Ok(Device::Cpu)
                }
            },
        }
    }
}

fn cuda(ordinal: usize) -> Result<Device> {
    let remedy = if cfg!(feature = "cuda") {
        "see that nvidia-smi lists it, or use --device cpu"
    } else {
        "this build is for the CPU; build with --features cuda, or use --device cpu"
    };
    on_one_stream(ordinal).map_err(|e| {
        if has_no_room(&e) {
            return Error::OutOfMemory {
                what: format!("a context on GPU {ordinal}"),
                need_bytes: None,
                room: Room::Unknown,
                remedy: "end what else uses it (nvidia-smi lists it), or use --device cpu".into(),
            };
        }
        Error::InvalidOption {
            option: "device",
            message: format!("no CUDA device {ordinal} ({}); {remedy}", without_trace(&e)),
        }
    })
}

/// Opens the device with one stream for all threads. candle's own choice is CUDA's per-thread stream, which is another stream in
/// every thread: weights copied by one would have no order with the kernels that another launches.
#[cfg(feature = "cuda")]
fn on_one_stream(ordinal: usize) -> candle_core::Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    #[expect(unsafe_code, reason = "turns off events that order several streams")]
    // SAFETY: everything is allocated, used and freed on the one stream of this device, so its own order is all that is needed;
    // nothing has been allocated by us yet. The two events of every allocation are saved.
    unsafe {
        device.as_cuda_device()?.disable_event_tracking();
    }
    if let Err(error) = crate::device_pool::keep_freed(device.as_cuda_device()?) {
        tracing::debug!("the driver takes memory back at every wait: {error}");
    }
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn on_one_stream(ordinal: usize) -> candle_core::Result<Device> {
    Device::new_cuda(ordinal)
}

/// The first line: candle appends a backtrace where one was asked for.
pub(crate) fn without_trace(error: &candle_core::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

/// GPUs that this process could open.
#[cfg(feature = "cuda")]
fn cuda_devices() -> Result<usize, String> {
    use candle_core::cuda_backend::cudarc::driver::CudaContext;
    let count = CudaContext::device_count().map_err(|e| e.to_string())?;
    Ok(usize::try_from(count).unwrap_or_default())
}

#[cfg(not(feature = "cuda"))]
fn cuda_devices() -> Result<usize, String> {
    Ok(0)
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => number(other).map(Self::Cuda).ok_or_else(|| {
                format!("device: `{other}` is not known; use auto, cpu, cuda or cuda:N")
            }),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

/// The type that activations and frozen weights are computed in; trainable parameters are always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeDtype {
    /// f32 on the CPU, bf16 on a GPU.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// Half precision.
    F16,
}

impl ComputeDtype {
    /// The type on `device`.
    pub fn on(self, device: &Device) -> DType {
        match self {
            Self::Auto if device.is_cpu() => DType::F32,
            Self::Auto | Self::Bf16 => DType::BF16,
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
        }
    }

    /// This choice, with what `Auto` means on `device` spelled out.
    pub fn resolved(self, device: &Device) -> Self {
        match self {
            Self::Auto if device.is_cpu() => Self::F32,
            Self::Auto => Self::Bf16,
            named => named,
        }
    }

    /// The type that weights are saved in: f32 unless another one is named.
    pub fn for_files(self) -> DType {
        self.on(&Device::Cpu)
    }
}

impl FromStr for ComputeDtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            _ => Err(format!("`{text}` is none of `auto`, `f32`, `bf16`, `f16`")),
        }
    }
}

impl fmt::Display for ComputeDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

/// Names what computes on `device`: `cpu`, or `cuda sm_89` with the GPU's compute capability. Results are promised equal to
/// the bit for equal names only.
///
/// # Errors
/// A driver that does not answer.
pub fn backend(device: &Device) -> Result<String> {
    match device {
        Device::Cpu => Ok("cpu".to_owned()),
        Device::Cuda(device) => cuda_backend(device),
        Device::Metal(_) => Ok("metal".to_owned()),
    }
}

#[cfg(feature = "cuda")]
fn cuda_backend(device: &candle_core::CudaDevice) -> Result<String> {
    let stream = device.cuda_stream();
    let capability = stream.context().compute_capability();
    let (major, minor) = capability.map_err(candle_core::Error::wrap)?;
    Ok(format!("cuda sm_{major}{minor}"))
}

#[cfg(not(feature = "cuda"))]
fn cuda_backend(_: &candle_core::CudaDevice) -> Result<String> {
    Err(candle_core::Error::NotCompiledWithCudaSupport.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_written_as_they_are_read() {
        for (text, full) in [
            ("auto", "auto"),
            ("cpu", "cpu"),
            ("cuda", "cuda:0"),
            ("cuda:3", "cuda:3"),
        ] {
            let choice: DeviceChoice = text.parse().unwrap();
            assert_eq!(choice.to_string(), full);
            assert_eq!(full.parse::<DeviceChoice>().unwrap(), choice);
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            let refused = text.parse::<DeviceChoice>().unwrap_err();
            assert!(refused.contains("cuda:N"), "{refused}");
        }
    }

    #[test]
    fn the_type_follows_the_device_unless_it_is_named() {
        assert_eq!(ComputeDtype::Auto.on(&Device::Cpu), DType::F32);
        assert_eq!(ComputeDtype::Bf16.on(&Device::Cpu), DType::BF16);
        assert_eq!(ComputeDtype::Auto.resolved(&Device::Cpu), ComputeDtype::F32);
        for word in ["auto", "f32", "bf16", "f16"] {
            let dtype: ComputeDtype = word.parse().unwrap();
            assert_eq!(dtype.to_string(), word);
            assert_eq!(serde_json::to_value(dtype).unwrap(), word);
        }
        assert!("f8".parse::<ComputeDtype>().unwrap_err().contains("bf16"));
    }

    #[test]
    fn a_gpu_that_is_not_there_is_refused_with_what_to_do() {
        // No machine has that many.
        let error = DeviceChoice::Cuda(9999).open().unwrap_err().to_string();
        assert!(error.contains("device 9999"), "{error}");
        assert!(error.contains("--device cpu"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(DeviceChoice::Cpu.open().unwrap().is_cpu());
        assert_eq!(backend(&Device::Cpu).unwrap(), "cpu");
    }
}
