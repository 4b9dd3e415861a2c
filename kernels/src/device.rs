//! Provides kernels on the card, launched on candle's stream.

use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Layout, Result, Storage, Tensor, bail};

use crate::{Call, Compute};

/// What rows of a product are rounded up to.
const ROW_MULTIPLE: usize = 8;

/// Runs the calls that `calls` makes from the indices of the inputs and of the outputs; the outputs, in their order.
///
/// Inputs are contiguous. Outputs are `(type, length)` and begin with whatever the memory held: kernels write all of them.
/// Nothing waits for the card.
///
/// # Errors
/// When an input has gaps or a type that kernels do not take, memory runs out, NVRTC or the driver refuses a module, or the
/// build has no CUDA.
pub fn run(
    card: &CudaDevice,
    inputs: &[(&CudaStorage, &Layout)],
    outputs: &[(DType, usize)],
    calls: impl FnOnce(&[usize], &[usize]) -> Result<Vec<Call>>,
) -> Result<Vec<CudaStorage>> {
    let indices: Vec<usize> = (0..inputs.len() + outputs.len()).collect();
    let (before, after) = indices.split_at(inputs.len());
    on_card::run(card, inputs, outputs, &calls(before, after)?)
}

/// As [`run`], for one call with one output.
///
/// # Errors
/// As [`run`].
pub fn run_one(
    card: &CudaDevice,
    inputs: &[(&CudaStorage, &Layout)],
    output: (DType, usize),
    call: impl FnOnce(&[usize], usize) -> Result<Call>,
) -> Result<CudaStorage> {
    let outputs = run(card, inputs, &[output], |inputs, outputs| {
        Ok(vec![call(inputs, outputs[0])?])
    })?;
    match <[CudaStorage; 1]>::try_from(outputs) {
        Ok([output]) => Ok(output),
        Err(outputs) => bail!("one output was asked for, and {} came", outputs.len()),
    }
}

/// [`compute`] as a value.
pub const COMPUTE: Compute = |inputs, outputs, calls| compute(inputs, outputs, calls);

/// As [`run`], for tensors on one card; the outputs, each as `[length]`, without a way back.
///
/// # Errors
/// As [`run`], and when a tensor is not on a card.
pub fn compute(
    inputs: &[&Tensor],
    outputs: &[(DType, usize)],
    calls: impl FnOnce(&[usize], &[usize]) -> Result<Vec<Call>>,
) -> Result<Vec<Tensor>> {
    let Some(Device::Cuda(card)) = inputs.first().map(|x| x.device()) else {
        bail!("a CUDA kernel was given a tensor on another device");
    };
    let storages: Vec<_> = inputs.iter().map(|x| x.storage_and_layout()).collect();
    let inputs = storages
        .iter()
        .map(|(held, layout)| Ok((storage(held)?, *layout)))
        .collect::<Result<Vec<_>>>()?;
    let made = run(card, &inputs, outputs, calls)?;
    let tensor = |(made, (_, len)): (CudaStorage, &(DType, usize))| {
        Tensor::from_storage(Storage::Cuda(made), *len, BackpropOp::none(), false)
    };
    Ok(made.into_iter().zip(outputs).map(tensor).collect())
}

/// `a b^T` of 16-bit floats, in f32: a product that is rounded to the inputs' type loses what sums of its size hold.
///
/// # Shapes
/// `a` `[m, k]` and `b` `[n, k]`, both bf16 or both f16, contiguous; the result f32 `[m, n rounded up to 8]`, whose columns from n on
/// hold anything: rows that begin at multiples of 32 bytes are written, and read, in fewer pieces.
///
/// # Errors
/// Other shapes, types or places; what cuBLAS says.
pub fn product_f32(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((m, k), (n, other)) = (a.dims2()?, b.dims2()?);
    let Device::Cuda(card) = a.device() else {
        bail!("a product on a card was given a tensor on another device");
    };
    if k != other {
        bail!("a product of rows of {k} and of {other} elements");
    }
    let ((a, a_layout), (b, b_layout)) = (a.storage_and_layout(), b.storage_and_layout());
    let inputs = [(storage(&a)?, a_layout), (storage(&b)?, b_layout)];
    let stride = n.next_multiple_of(ROW_MULTIPLE);
    let made = on_card::product_f32(card, inputs, (m, n, k), stride)?;
    Ok(Tensor::from_storage(
        Storage::Cuda(made),
        (m, stride),
        BackpropOp::none(),
        false,
    ))
}

/// What a tensor on a card holds.
///
/// # Errors
/// When the tensor is elsewhere.
pub fn storage(storage: &Storage) -> Result<&CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        _ => bail!("a CUDA kernel was given a tensor on another device"),
    }
}

/// Compiles and loads every module, so that a mistake shows before anything long begins.
///
/// # Errors
/// When NVRTC or the driver refuses a module, or the build has no CUDA.
pub fn compile_all(card: &CudaDevice) -> Result<()> {
    for module in crate::MODULES {
        for function in module.functions() {
            on_card::load(card, module, function)?;
        }
    }
    Ok(())
}

#[cfg(not(feature = "cuda"))]
mod on_card {
    use candle_core::{CudaDevice, CudaStorage, DType, Error, Layout, Result};

    use crate::{Call, Module};

    pub(super) fn run(
        _: &CudaDevice,
        _: &[(&CudaStorage, &Layout)],
        _: &[(DType, usize)],
        _: &[Call],
    ) -> Result<Vec<CudaStorage>> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(super) fn load(_: &CudaDevice, _: &Module, _: &'static str) -> Result<()> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(super) fn product_f32(
        _: &CudaDevice,
        _: [(&CudaStorage, &Layout); 2],
        _: (usize, usize, usize),
        _: usize,
    ) -> Result<CudaStorage> {
        Err(Error::NotCompiledWithCudaSupport)
    }
}

#[cfg(feature = "cuda")]
mod on_card {
    use std::sync::Arc;

    use candle_core::backend::BackendStorage;
    use candle_core::cuda_backend::cudarc::cublas::result::gemm_ex;
    use candle_core::cuda_backend::cudarc::cublas::sys::{
        cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t,
    };
    use candle_core::cuda_backend::cudarc::driver::{
        CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop,
        ValidAsZeroBits,
    };
    use candle_core::cuda_backend::{CudaDType, CudaStorageSlice, WrapErr};
    use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, bail};

    use crate::call::{Argument, NARROW_ALIGNMENT, float_code};
    use crate::{Call, Module, loaded};

    /// A buffer of the run.
    #[derive(Clone, Copy)]
    struct Region {
        pointer: u64,
        len: i64,
        dtype: DType,
    }

    /// An argument as prelude.cuh declares it: `Floats`, of which `Buffer` is the beginning, or one number.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Parameter {
        value: u64,
        len: i64,
        dtype: i32,
    }

    #[expect(unsafe_code, reason = "says that the bytes can be passed to a kernel")]
    // SAFETY: the layout is C's and the fields are those of the kernels' parameter types.
    unsafe impl DeviceRepr for Parameter {}

    /// Evaluates a body for the slice that a storage holds.
    macro_rules! for_slice {
        ($slice:expr, $data:ident => $body:expr) => {
            match $slice {
                CudaStorageSlice::F32($data) => $body,
                CudaStorageSlice::BF16($data) => $body,
                CudaStorageSlice::F16($data) => $body,
                CudaStorageSlice::U8($data) => $body,
                CudaStorageSlice::U32($data) => $body,
                CudaStorageSlice::I64($data) => $body,
                CudaStorageSlice::F64($data) => $body,
                _ => bail!("kernels take no buffers of this type"),
            }
        };
    }

    pub(super) fn run(
        card: &CudaDevice,
        inputs: &[(&CudaStorage, &Layout)],
        outputs: &[(DType, usize)],
        calls: &[Call],
    ) -> Result<Vec<CudaStorage>> {
        let stream = card.cuda_stream();
        let mut made = outputs
            .iter()
            .map(|(dtype, len)| allocate(card, *dtype, *len))
            .collect::<Result<Vec<_>>>()?;
        let mut regions = Vec::with_capacity(inputs.len() + outputs.len());
        // Dropped after the launches, when they tell other streams what was read and written.
        let mut uses = Vec::with_capacity(regions.capacity());
        for (storage, layout) in inputs {
            let (region, used) = read(storage, layout, &stream)?;
            regions.push(region);
            uses.push(used);
        }
        for (storage, (dtype, len)) in made.iter_mut().zip(outputs) {
            let (pointer, used) =
                for_slice!(&mut storage.slice, data => data.device_ptr_mut(&stream));
            regions.push(Region {
                pointer,
                len: *len as i64,
                dtype: *dtype,
            });
            uses.push(used);
        }
        for call in calls {
            let whole = |region: &&Region| region.pointer.is_multiple_of(NARROW_ALIGNMENT);
            let dtype = |index: usize| Some(regions.get(index).filter(whole)?.dtype);
            let call = call.choose(dtype);
            if call.launches() {
                launch(card, call, &regions)?;
            }
        }
        drop(uses);
        Ok(made)
    }

    fn allocate(card: &CudaDevice, dtype: DType, len: usize) -> Result<CudaStorage> {
        fn fresh<T: CudaDType + DeviceRepr + ValidAsZeroBits>(
            card: &CudaDevice,
            len: usize,
        ) -> Result<CudaStorage> {
            // The driver has no empty allocations, and candle copies all of one, so that it has to hold something.
            if len == 0 {
                let slice = card.alloc_zeros::<T>(1)?;
                return Ok(CudaStorage::wrap_cuda_slice(slice, card.clone()));
            }
            #[expect(unsafe_code, reason = "memory that nothing was written to")]
            // SAFETY: any bytes are numbers of these types, and `run` says that kernels write all of them.
            let slice = unsafe { card.alloc::<T>(len)? };
            Ok(CudaStorage::wrap_cuda_slice(slice, card.clone()))
        }
        match dtype {
            DType::F32 => fresh::<f32>(card, len),
            DType::BF16 => fresh::<half::bf16>(card, len),
            DType::F16 => fresh::<half::f16>(card, len),
            DType::U8 => fresh::<u8>(card, len),
            DType::U32 => fresh::<u32>(card, len),
            DType::I64 => fresh::<i64>(card, len),
            DType::F64 => fresh::<f64>(card, len),
            other => bail!("kernels take no buffers of {other:?}"),
        }
    }

    fn read<'a>(
        storage: &'a CudaStorage,
        layout: &Layout,
        stream: &'a Arc<CudaStream>,
    ) -> Result<(Region, SyncOnDrop<'a>)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("a kernel was given a tensor that is not contiguous: {layout:?}");
        };
        let dtype = storage.dtype();
        let (pointer, used, len) = for_slice!(&storage.slice, data => {
            let (pointer, used) = data.device_ptr(stream);
            (pointer, used, data.len())
        });
        if end > len {
            bail!("a layout of {start}..{end} reaches past {len} elements");
        }
        let region = Region {
            pointer: pointer + (start * dtype.size_in_bytes()) as u64,
            len: (end - start) as i64,
            dtype,
        };
        Ok((region, used))
    }

    fn launch(card: &CudaDevice, call: &Call, regions: &[Region]) -> Result<()> {
        let function = loaded::function(card, call.module, call.function)?;
        let stream = card.cuda_stream();
        let parameters = call
            .arguments
            .iter()
            .map(|argument| parameter(call, *argument, regions))
            .collect::<Result<Vec<_>>>()?;
        let mut builder = stream.launch_builder(&function);
        for parameter in &parameters {
            builder.arg(parameter);
        }
        let [x, y, z] = call.grid;
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (call.block, 1, 1),
            shared_mem_bytes: call.shared,
        };
        #[expect(unsafe_code, reason = "launches a kernel")]
        // SAFETY: the emulator's tests check that each call's arguments are its kernel's parameters and that the kernel stays
        // inside its buffers; the pointers are of live slices of this stream's device.
        let launched = unsafe { builder.launch(config) };
        launched.w().map(drop)
    }

    fn parameter(call: &Call, argument: Argument, regions: &[Region]) -> Result<Parameter> {
        let region = |index: usize| match regions.get(index) {
            Some(region) => Ok(*region),
            None => bail!("{}: there is no buffer {index}", call.function),
        };
        let buffer = |region: Region, dtype| Parameter {
            value: region.pointer,
            len: region.len,
            dtype,
        };
        // A number is read from the first bytes; cards and their hosts are little-endian.
        let number = |value: u64| Parameter {
            value,
            len: 0,
            dtype: 0,
        };
        Ok(match argument {
            Argument::Floats(index) => {
                let region = region(index)?;
                buffer(region, float_code(region.dtype)?)
            }
            Argument::Buffer(index, dtype) => {
                let region = region(index)?;
                if region.dtype != dtype {
                    let held = region.dtype;
                    bail!(
                        "{}: buffer {index} holds {held:?}, not {dtype:?}",
                        call.function
                    );
                }
                buffer(region, 0)
            }
            Argument::Long(value) => number(value as u64),
            Argument::Int(value) => number(value as u32 as u64),
            Argument::Float(value) => number(value.to_bits().into()),
        })
    }

    /// Row-major `a b^T` is column-major `b a^T`, which is what cuBLAS is asked for; rows of the result are `stride` apart.
    pub(super) fn product_f32(
        card: &CudaDevice,
        [(a, a_layout), (b, b_layout)]: [(&CudaStorage, &Layout); 2],
        (m, n, k): (usize, usize, usize),
        stride: usize,
    ) -> Result<CudaStorage> {
        let stored = match (a.dtype(), b.dtype()) {
            (DType::BF16, DType::BF16) => cudaDataType_t::CUDA_R_16BF,
            (DType::F16, DType::F16) => cudaDataType_t::CUDA_R_16F,
            (a, b) => {
                bail!("a product in f32 takes bf16 or f16 on both sides, not {a:?} and {b:?}")
            }
        };
        let stream = card.cuda_stream();
        let (a, a_used) = read(a, a_layout, &stream)?;
        let (b, b_used) = read(b, b_layout, &stream)?;
        let mut made = allocate(card, DType::F32, m * stride)?;
        let (out, out_used) = for_slice!(&mut made.slice, data => data.device_ptr_mut(&stream));
        let size = |value: usize| i32::try_from(value).map_err(candle_core::Error::wrap);
        let (m, n, k, stride) = (size(m)?, size(n)?, size(k)?, size(stride)?);
        let (one, zero) = (1f32, 0f32);
        let handle = card.cublas_handle();
        #[expect(unsafe_code, reason = "calls cuBLAS")]
        // SAFETY: the pointers are of live slices of this stream's device, of k elements for every row, which `read` and
        // `allocate` have checked; the scalars are read before the call returns.
        let done = unsafe {
            gemm_ex(
                *handle.handle(),
                cublasOperation_t::CUBLAS_OP_T,
                cublasOperation_t::CUBLAS_OP_N,
                n,
                m,
                k,
                std::ptr::from_ref(&one).cast(),
                b.pointer as *const _,
                stored,
                k,
                a.pointer as *const _,
                stored,
                k,
                std::ptr::from_ref(&zero).cast(),
                out as *mut _,
                cudaDataType_t::CUDA_R_32F,
                stride,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.w()?;
        drop((a_used, b_used, out_used));
        Ok(made)
    }

    /// Compiles and loads the function.
    pub(super) fn load(card: &CudaDevice, module: &Module, function: &'static str) -> Result<()> {
        loaded::function(card, module, function).map(drop)
    }
}
