//! Provides kernels on the card, launched on candle's stream.

use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Layout, Result, Storage, Tensor, bail};

use crate::{Call, Change, Compute, Machine, Matrix, Product};

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

/// Kernels and products on the card.
pub const MACHINE: Machine = Machine {
    compute: COMPUTE,
    multiply,
};

/// The product on a card, by cuBLAS: sums in f32, 32-bit factors unrounded. Nothing waits for it.
///
/// # Errors
/// Shapes, types or places that do not fit; what cuBLAS says.
pub fn multiply(product: &Product<'_>) -> Result<()> {
    product.check()?;
    let Device::Cuda(card) = product.out.tensor.device() else {
        bail!("a product on a card was given a tensor on another device");
    };
    let (m, n, k) = product.sizes();
    if m * n * product.count == 0 {
        return Ok(());
    }
    if k == 0 {
        bail!("a product over no elements");
    }
    on_card::multiply(card, product)
}

/// [`change`] as a value.
pub const CHANGE: Change = |changed, inputs, calls| change(changed, inputs, calls);

/// Runs the calls that `calls` makes from the indices of tensors that they change where they are, and of those that they read.
///
/// All are contiguous and on one card. Whoever shares the memory of one that is changed sees the change.
///
/// # Errors
/// As [`run`], and when a tensor is not on a card.
pub fn change(
    changed: &[&Tensor],
    inputs: &[&Tensor],
    calls: impl FnOnce(&[usize], &[usize]) -> Result<Vec<Call>>,
) -> Result<()> {
    let all = [changed, inputs].concat();
    if all.is_empty() {
        return Ok(());
    }
    compute(&all, &[], |all, _| {
        let (changed, inputs) = all.split_at(changed.len());
        calls(changed, inputs)
    })?;
    on_card::wait_where_tracked(all[0].device().as_cuda_device()?)
}

/// `a b^T` of 16-bit floats, in f32: a product that is rounded to the inputs' type loses what sums of its size hold.
///
/// # Shapes
/// `a` `[m, k]` and `b` `[n, k]`, both bf16 or both f16, contiguous; the result f32 `[m, n rounded up to 8]`, whose columns from n on
/// hold anything: rows that begin at multiples of 32 bytes are written, and read, in fewer pieces.
///
/// # Errors
/// As [`multiply`].
pub fn product_f32(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (m, n) = (a.dim(0)?, b.dim(0)?);
    let stride = n.next_multiple_of(ROW_MULTIPLE);
    let made = compute(&[a], &[(DType::F32, m * stride)], |_, _| Ok(Vec::new()))?;
    let out = made[0].reshape((m, stride))?;
    let into = Matrix::of(&out)?.columns(0, n)?;
    multiply(&Product::new(Matrix::of(a)?, Matrix::of(b)?.t(), into))?;
    Ok(out)
}

/// `a b` in f32, [m, n].
///
/// # Errors
/// As [`multiply`].
pub fn product_of(a: Matrix<'_>, b: Matrix<'_>) -> Result<Tensor> {
    let (m, n, _) = Product::new(a, b, a).sizes();
    let made = compute(&[a.tensor], &[(DType::F32, m * n)], |_, _| Ok(Vec::new()))?;
    let out = made[0].reshape((m, n))?;
    multiply(&Product::new(a, b, Matrix::of(&out)?))?;
    Ok(out)
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

    use crate::{Call, Module, Product};

    pub(super) fn run(
        _: &CudaDevice,
        _: &[(&CudaStorage, &Layout)],
        _: &[(DType, usize)],
        _: &[Call],
    ) -> Result<Vec<CudaStorage>> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(super) fn wait_where_tracked(_: &CudaDevice) -> Result<()> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(super) fn load(_: &CudaDevice, _: &Module, _: &'static str) -> Result<()> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(super) fn multiply(_: &CudaDevice, _: &Product<'_>) -> Result<()> {
        Err(Error::NotCompiledWithCudaSupport)
    }
}

#[cfg(feature = "cuda")]
mod on_card {
    use std::sync::Arc;

    use candle_core::backend::{BackendDevice, BackendStorage};
    use candle_core::cuda_backend::cudarc::cublas::result::gemm_strided_batched_ex;
    use candle_core::cuda_backend::cudarc::cublas::sys::{
        cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t,
    };
    use candle_core::cuda_backend::cudarc::driver::{
        CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop,
        ValidAsZeroBits,
    };
    use candle_core::cuda_backend::{CudaDType, CudaStorageSlice, WrapErr};
    use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, bail};

    use crate::call::NARROW_ALIGNMENT;
    use crate::layout::{Arguments, Region, Words};
    use crate::{Call, Matrix, Module, Product, loaded};

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
                len: *len,
                dtype: *dtype,
            });
            uses.push(used);
        }
        let mut find = |index: usize| match regions.get(index) {
            Some(region) => Ok(*region),
            None => bail!("there are {} buffers, and none {index}", regions.len()),
        };
        let whole = |region: &&Region| region.pointer.is_multiple_of(NARROW_ALIGNMENT);
        let dtype = |index: usize| Some(regions.get(index).filter(whole)?.dtype);
        let calls = calls.iter().map(|call| call.choose(dtype));
        let calls: Vec<&Call> = calls.filter(|call| call.launches()).collect();
        let mut records = Vec::new();
        let arguments = calls
            .iter()
            .map(|call| Arguments::of(call, &mut find, &mut records))
            .collect::<Result<Vec<_>>>()?;
        // One copy for all tables; freed in the stream's order, and so after the launches.
        let tables = if records.is_empty() {
            None
        } else {
            Some(card.clone_htod(&records)?)
        };
        let tables = tables.as_ref().map(|tables| tables.device_ptr(&stream));
        let address = tables.as_ref().map_or(0, |(address, _)| *address);
        for (call, arguments) in calls.into_iter().zip(arguments) {
            launch(card, call, &arguments.at(address))?;
        }
        drop((tables, uses));
        Ok(made)
    }

    /// Waits for what was launched where events order several streams: they were told that all buffers are read, and would let another
    /// stream read too early what is being changed.
    pub(super) fn wait_where_tracked(card: &CudaDevice) -> Result<()> {
        if card.is_event_tracking() {
            card.synchronize()?;
        }
        Ok(())
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
            len: end - start,
            dtype,
        };
        Ok((region, used))
    }

    fn launch(card: &CudaDevice, call: &Call, arguments: &[Words]) -> Result<()> {
        let function = loaded::function(card, call.module, call.function)?;
        let stream = card.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        for words in arguments {
            builder.arg(words);
        }
        let [x, y, z] = call.grid;
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (call.block, 1, 1),
            shared_mem_bytes: call.shared,
        };
        #[expect(unsafe_code, reason = "launches a kernel")]
        // SAFETY: the emulator's tests check that each call's arguments are its kernel's parameters and that the kernel stays
        // inside its buffers; the pointers are of live slices of this stream's device. A kernel that changes a slice which is only
        // borrowed breaks no borrow of Rust's: no reference is ever made to what lies on a card.
        let launched = unsafe { builder.launch(config) };
        launched.w().map(drop)
    }

    /// A row-major product is the column-major one of the transposes in the other order, which is what cuBLAS is asked for.
    pub(super) fn multiply(card: &CudaDevice, product: &Product<'_>) -> Result<()> {
        let kind = |dtype| match dtype {
            DType::BF16 => cudaDataType_t::CUDA_R_16BF,
            DType::F16 => cudaDataType_t::CUDA_R_16F,
            _ => cudaDataType_t::CUDA_R_32F,
        };
        let operation = |matrix: &Matrix<'_>| {
            if matrix.transposed {
                cublasOperation_t::CUBLAS_OP_T
            } else {
                cublasOperation_t::CUBLAS_OP_N
            }
        };
        let stream = card.cuda_stream();
        let matrices = [product.b, product.a, product.out];
        let storages = matrices.map(|matrix| matrix.tensor.storage_and_layout());
        let mut uses = Vec::with_capacity(matrices.len());
        let mut pointers = [0u64; 3];
        for (index, (held, layout)) in storages.iter().enumerate() {
            let (region, used) = read(super::storage(held)?, layout, &stream)?;
            let bytes = matrices[index].first * region.dtype.size_in_bytes();
            pointers[index] = region.pointer + bytes as u64;
            uses.push(used);
        }
        let size = |value: usize| i32::try_from(value).map_err(candle_core::Error::wrap);
        let step = |value: usize| i64::try_from(value).map_err(candle_core::Error::wrap);
        let (m, n, k) = product.sizes();
        let (m, n, k, count) = (size(m)?, size(n)?, size(k)?, size(product.count)?);
        let [b_stride, a_stride, stride] = matrices.map(|matrix| size(matrix.stride));
        let [a_step, b_step, out_step] = product.steps.map(step);
        let beta = if product.add { 1f32 } else { 0f32 };
        let factors = kind(product.a.tensor.dtype());
        let handle = card.cublas_handle();
        #[expect(unsafe_code, reason = "calls cuBLAS")]
        // SAFETY: the pointers are of live slices of this stream's device, and `Product::check` has made sure that all that is
        // read and written lies inside of them; the scalars are read before the call returns.
        let done = unsafe {
            gemm_strided_batched_ex(
                *handle.handle(),
                operation(&product.b),
                operation(&product.a),
                n,
                m,
                k,
                std::ptr::from_ref(&product.scale).cast(),
                pointers[0] as *const _,
                factors,
                b_stride?,
                b_step?,
                pointers[1] as *const _,
                factors,
                a_stride?,
                a_step?,
                std::ptr::from_ref(&beta).cast(),
                pointers[2] as *mut _,
                kind(product.out.tensor.dtype()),
                stride?,
                out_step?,
                count,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.w()?;
        drop(uses);
        Ok(())
    }

    /// Compiles and loads the function.
    pub(super) fn load(card: &CudaDevice, module: &Module, function: &'static str) -> Result<()> {
        loaded::function(card, module, function).map(drop)
    }
}
