//! Provides how much memory a device has left, what a model's weights take of it, and the error that compares the two.

use std::fmt;

use candle_core::{DType, Device};

use crate::{
    Base, Error, LoadOptions, ModelConfig, Nf4Matrix, Result, Weights,
    device::{backend, without_trace},
    nf4::double_quantized_bytes,
};

/// Memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What a process could still take.
    pub free_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
}

/// What the device has free and in all: the card's own memory by the driver, or the system's, counting what it can reclaim.
/// `None` where the system does not say.
///
/// # Errors
/// A driver that does not answer.
pub fn free_and_total(device: &Device) -> Result<Option<DeviceMemory>> {
    match device {
        Device::Cpu => Ok(std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| of_meminfo(&text))),
        Device::Cuda(device) => of_card(device).map(Some),
        Device::Metal(_) => Ok(None),
    }
}

fn of_meminfo(text: &str) -> Option<DeviceMemory> {
    let field = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(DeviceMemory {
        free_bytes: field("MemAvailable:")?,
        total_bytes: field("MemTotal:")?,
    })
}

#[cfg(feature = "cuda")]
fn of_card(device: &candle_core::CudaDevice) -> Result<DeviceMemory> {
    let stream = device.cuda_stream();
    let info = stream.context().mem_get_info();
    let (free, total) = info.map_err(candle_core::Error::wrap)?;
    Ok(DeviceMemory {
        free_bytes: free as u64 + crate::device_pool::spare_bytes(device)?,
        total_bytes: total as u64,
    })
}

#[cfg(not(feature = "cuda"))]
fn of_card(_: &candle_core::CudaDevice) -> Result<DeviceMemory> {
    Err(candle_core::Error::NotCompiledWithCudaSupport.into())
}

/// What there was room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room {
    /// What the user allowed.
    Budget {
        /// As given.
        bytes: u64,
    },
    /// What the device had left.
    Device {
        /// Its backend.
        name: String,
        /// Free and in all.
        memory: DeviceMemory,
    },
    /// The device does not say.
    Unknown,
}

impl Room {
    fn of(device: &Device, budget_bytes: Option<u64>) -> Result<Self> {
        if let Some(bytes) = budget_bytes {
            return Ok(Self::Budget { bytes });
        }
        let name = backend(device)?;
        let memory = free_and_total(device)?;
        Ok(memory.map_or(Self::Unknown, |memory| Self::Device { name, memory }))
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Budget { bytes } => *bytes,
            Self::Device { memory, .. } => memory.free_bytes,
            Self::Unknown => u64::MAX,
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Budget { bytes } => write!(f, "the memory budget is {}", Bytes(*bytes)),
            Self::Device { name, memory } => write!(
                f,
                "{} of {} are free on {name}",
                Bytes(memory.free_bytes),
                Bytes(memory.total_bytes)
            ),
            Self::Unknown => f.write_str("the device has no more"),
        }
    }
}

/// A number of bytes as people read it.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 as f64 {
            bytes if bytes >= 1e9 => write!(f, "{:.2} GiB", bytes / f64::from(1 << 30)),
            bytes if bytes >= 1e6 => write!(f, "{:.1} MiB", bytes / f64::from(1 << 20)),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}

/// Bytes that the weights take on the device once they are loaded with `options`; adapters are not counted.
///
/// # Errors
/// As reading the tensors that are stored in four bits.
pub fn weight_bytes(config: &ModelConfig, weights: &Weights, options: &LoadOptions) -> Result<u64> {
    let width = match options.base {
        Base::Trainable => DType::F32,
        Base::AsStored | Base::QuantizeNf4 => options.dtype,
    };
    let quantizes = options.base == Base::QuantizeNf4 && !Nf4Matrix::any_stored(weights);
    let mut sum = 0;
    for (name, shape) in weights.settled(config).parameter_shapes() {
        let elements = shape.iter().product::<usize>() as u64;
        let is_linear = name.ends_with("proj.weight");
        if options.base == Base::AsStored
            && let Some(bytes) = weights.packed_bytes(&name, &options.device)?
        {
            sum += bytes;
            continue;
        }
        sum += match is_linear {
            true if Nf4Matrix::is_stored(weights, &name) => {
                Nf4Matrix::stored_bytes(weights, &name)?
            }
            true if quantizes => double_quantized_bytes(elements),
            _ => elements * width.size_in_bytes() as u64,
        };
    }
    Ok(sum)
}

/// Refuses weights for which there is no room: `budget_bytes` where given, else what is free on the device. Only what can be
/// known before anything is loaded is compared; what a pass takes comes on top.
///
/// # Errors
/// [`Error::OutOfMemory`] with what is needed, what there is and `remedy`.
pub fn check_weights_fit(
    config: &ModelConfig,
    weights: &Weights,
    options: &LoadOptions,
    budget_bytes: Option<u64>,
    remedy: &str,
) -> Result<()> {
    let what = format!("the model in {}", weights.path().display());
    let need_bytes = weight_bytes(config, weights, options)?;
    let room = Room::of(&options.device, budget_bytes)?;
    check_room(what, need_bytes, room, remedy)
}

fn check_room(what: String, need_bytes: u64, room: Room, remedy: &str) -> Result<()> {
    if need_bytes <= room.bytes() {
        return Ok(());
    }
    Err(Error::OutOfMemory {
        what,
        need_bytes: Some(need_bytes),
        room,
        remedy: remedy.to_owned(),
    })
}

/// Refuses what takes more than is free on the device now.
///
/// # Errors
/// [`Error::OutOfMemory`], as [`check_weights_fit`].
pub(crate) fn check_fits(what: &str, need_bytes: u64, device: &Device, remedy: &str) -> Result<()> {
    check_room(what.to_owned(), need_bytes, Room::of(device, None)?, remedy)
}

/// An error of the tensor library as one of this crate: [`Error::OutOfMemory`] where the device had no room for `what`,
/// [`Error::DeviceLost`] where it answers nothing any more.
pub fn explained(error: candle_core::Error, device: &Device, what: &str, remedy: &str) -> Error {
    if has_no_room(&error) {
        tracing::debug!("{}", without_trace(&error));
        return Error::OutOfMemory {
            what: what.to_owned(),
            need_bytes: None,
            // A driver that does not even answer now must not hide what happened.
            room: Room::of(device, None).unwrap_or(Room::Unknown),
            remedy: remedy.to_owned(),
        };
    }
    if says(&error, LOST) {
        return Error::DeviceLost {
            device: backend(device).unwrap_or_else(|_| "the GPU".to_owned()),
            what: what.to_owned(),
            reason: driver_s_words(&error),
        };
    }
    Error::Candle(error)
}

/// Whether the device had no room.
pub(crate) fn has_no_room(error: &candle_core::Error) -> bool {
    says(error, NO_ROOM)
}

/// candle wraps what the driver and cuBLAS say in several layers, so their names are looked for.
fn says(error: &candle_core::Error, names: &[&str]) -> bool {
    let text = error.to_string();
    names.iter().any(|name| text.contains(name))
}

/// The line of an error in which the driver speaks.
fn driver_s_words(error: &candle_core::Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim);
    let said = lines.find(|line| LOST.iter().any(|name| line.contains(name)));
    said.unwrap_or_default().to_owned()
}

/// What the driver and cuBLAS say when an allocation fails.
const NO_ROOM: &[&str] = &["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"];

/// What they say of a context that can no longer be used: the driver's documentation has these "leave the process in an
/// inconsistent state".
const LOST: &[&str] = &[
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_UNKNOWN",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Decoder,
        testing::{TinyModel, write_tiny_model},
    };

    fn tiny() -> (tempfile::TempDir, ModelConfig, Weights) {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_model(dir.path(), &TinyModel::qwen2(), 1).unwrap();
        let config = ModelConfig::load(dir.path()).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        (dir, config, weights)
    }

    #[test]
    fn the_weights_count_as_what_they_become() {
        let (_dir, config, weights) = tiny();
        let parameters: usize = config
            .parameter_shapes()
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        let with = |dtype, base| {
            let options = LoadOptions {
                dtype,
                base,
                ..LoadOptions::reference()
            };
            let bytes = weight_bytes(&config, &weights, &options).unwrap();
            (bytes, Decoder::load(&config, &weights, &options).unwrap())
        };
        let (dense, decoder) = with(DType::F32, Base::AsStored);
        assert_eq!(dense, 4 * parameters as u64);
        assert_eq!(decoder.head().unwrap().dtype(), DType::F32);
        assert_eq!(with(DType::BF16, Base::AsStored).0, 2 * parameters as u64);
        let (trained, decoder) = with(DType::BF16, Base::Trainable);
        let held = |(_, var): &(String, candle_core::Var)| {
            (var.elem_count() * var.dtype().size_in_bytes()) as u64
        };
        assert_eq!(trained, decoder.parameters().iter().map(held).sum::<u64>());
        let (quantized, _) = with(DType::F32, Base::QuantizeNf4);
        assert!(quantized < dense / 2, "{quantized} of {dense}");
    }

    #[test]
    fn weights_beyond_the_budget_are_refused_with_need_room_and_remedy() {
        let (dir, config, weights) = tiny();
        let options = LoadOptions::reference();
        let need = weight_bytes(&config, &weights, &options).unwrap();
        let check =
            |budget| check_weights_fit(&config, &weights, &options, budget, "lower --something");
        check(Some(need)).unwrap();
        check(None).unwrap();
        let error = check(Some(need - 1)).unwrap_err();
        assert!(
            matches!(&error, Error::OutOfMemory { need_bytes: Some(n), room: Room::Budget { bytes }, .. }
                if *n == need && *bytes == need - 1)
        );
        let told = error.to_string();
        for part in [
            dir.path().to_str().unwrap(),
            &Bytes(need).to_string(),
            &Bytes(need - 1).to_string(),
            "lower --something",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn the_driver_s_words_become_no_memory_or_a_lost_device_and_others_stay() {
        let explained = |text: &str| {
            let error = candle_core::Error::Cuda(text.to_owned().into()).context("matmul");
            explained(error, &Device::Cpu, "a pass", "lower --batch-size")
        };
        let driver = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
        let error = explained(driver);
        assert!(matches!(
            &error,
            Error::OutOfMemory {
                need_bytes: None,
                ..
            }
        ));
        assert!(error.to_string().contains("lower --batch-size"), "{error}");
        let error = explained("CublasError(CUBLAS_STATUS_ALLOC_FAILED)");
        assert!(matches!(&error, Error::OutOfMemory { .. }));
        let error = explained("DriverError(CUDA_ERROR_INVALID_VALUE)");
        assert!(matches!(&error, Error::Candle(_)), "{error}");
        let driver = r#"DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access")"#;
        let error = explained(driver);
        assert!(matches!(&error, Error::DeviceLost { .. }), "{error}");
        assert!(error.to_string().contains("illegal memory"), "{error}");
    }

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:       24661072 kB\nMemFree:  1 kB\nMemAvailable:   23030000 kB\n";
        let memory = of_meminfo(text).unwrap();
        assert_eq!(memory.total_bytes, 24_661_072 * 1024);
        assert_eq!(memory.free_bytes, 23_030_000 * 1024);
        assert_eq!(of_meminfo("MemTotal: 1 kB\n"), None);
        assert_eq!(of_meminfo("MemTotal: x kB\nMemAvailable: 1 kB\n"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_has_free_memory() {
        let memory = free_and_total(&Device::Cpu).unwrap().unwrap();
        assert!(memory.free_bytes > 0 && memory.free_bytes <= memory.total_bytes);
    }
}
