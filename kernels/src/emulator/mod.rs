//! Provides kernels on the CPU: their text compiled by the system's C++ compiler, run thread by thread.

mod arguments;
mod compiler;
mod memory;
mod product;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use libloading::Library;

use crate::layout::Arguments;
use crate::{Call, Machine, MakeCalls, Module};
use arguments::{Parameter, fit};
pub use memory::Memory;

/// Bytes of a message from the engine.
const MESSAGE_BYTES: usize = 512;

/// A kernel as `module.hpp` describes it.
#[repr(C)]
struct Entry {
    name: *const c_char,
    max_threads: u32,
    count: u32,
    parameters: *const Parameter,
    run: *const c_void,
}

/// Lists a module's kernels.
type Entries = unsafe extern "C" fn(count: *mut usize) -> *const Entry;

/// Runs one kernel; see `emulate.cpp`.
type Emulate = unsafe extern "C" fn(
    entry: *const Entry,
    parameters: *const *const c_void,
    grid: *const u32,
    threads: u32,
    shared: u32,
    order: u64,
    ranges: *const [u64; 2],
    range_count: usize,
    error: *mut u8,
    error_len: usize,
);

/// One module, compiled for the CPU.
pub struct Emulator {
    module: &'static Module,
    library: Library,
    /// The engine keeps the running thread in globals: one launch at a time.
    running: Mutex<()>,
}

/// Kernels and products on tensors in host memory, whichever modules the kernels are of.
pub const EMULATED: Machine = Machine {
    compute: compute_any,
    multiply: product::multiply,
};

fn compute_any(
    inputs: &[&Tensor],
    outputs: &[(DType, usize)],
    calls: MakeCalls<'_>,
) -> Result<Vec<Tensor>> {
    let mut memory = Memory::new();
    let inputs = memory.upload_all(inputs)?;
    let fresh = |(dtype, len): &(DType, usize)| memory.fresh(*dtype, *len);
    let outputs: Vec<usize> = outputs.iter().map(fresh).collect();
    for call in calls(&inputs, &outputs)? {
        Emulator::of(call.module)?.run_reading(&mut memory, &inputs, &[call])?;
    }
    outputs.iter().map(|index| memory.read(*index)).collect()
}

/// Which order a block's threads, and the grid's blocks, run in.
#[derive(Clone, Copy)]
enum Order {
    Forward = 0,
    Reverse = 1,
}

impl Emulator {
    /// The module, compiled at its first use in this process.
    ///
    /// # Errors
    /// When there is no C++ compiler (`$CXX`, or `c++`), or it refuses the module's text.
    pub fn of(module: &'static Module) -> Result<Arc<Self>> {
        static LOADED: Mutex<BTreeMap<&str, Arc<Emulator>>> = Mutex::new(BTreeMap::new());
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(emulator) = loaded.get(module.name()) {
            return Ok(Arc::clone(emulator));
        }
        let emulator = Arc::new(Self::load(module)?);
        loaded.insert(module.name(), Arc::clone(&emulator));
        Ok(emulator)
    }

    fn load(module: &'static Module) -> Result<Self> {
        Ok(Self {
            module,
            library: compiler::load(module)?,
            running: Mutex::new(()),
        })
    }

    /// What [`device::run`](crate::device::run) does on a card: runs the calls that `calls` makes from the indices of inputs and outputs;
    /// the outputs, each as `[length]`.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn compute(
        &self,
        inputs: &[&Tensor],
        outputs: &[(DType, usize)],
        calls: impl FnOnce(&[usize], &[usize]) -> Result<Vec<Call>>,
    ) -> Result<Vec<Tensor>> {
        if let Some(card) = card()? {
            let inputs = inputs
                .iter()
                .map(|x| view_on(card, x))
                .collect::<Result<Vec<_>>>()?;
            let inputs: Vec<&Tensor> = inputs.iter().collect();
            let made = crate::device::compute(&inputs, outputs, calls)?;
            return made.iter().map(|x| x.to_device(&Device::Cpu)).collect();
        }
        let mut memory = Memory::new();
        let inputs = memory.upload_all(inputs)?;
        let fresh = |(dtype, len): &(DType, usize)| memory.fresh(*dtype, *len);
        let outputs: Vec<usize> = outputs.iter().map(fresh).collect();
        self.run_reading(&mut memory, &inputs, &calls(&inputs, &outputs)?)?;
        outputs.iter().map(|index| memory.read(*index)).collect()
    }

    /// What [`device::change`](crate::device::change) does on a card: runs calls that change the first tensors where they are.
    ///
    /// # Errors
    /// As [`run`](Self::run), and when a kernel writes to one of `inputs`.
    pub fn change(
        &self,
        changed: &[&Tensor],
        inputs: &[&Tensor],
        calls: impl FnOnce(&[usize], &[usize]) -> Result<Vec<Call>>,
    ) -> Result<()> {
        let results: Vec<Tensor> = if let Some(card) = card()? {
            let view = |x: &&Tensor| view_on(card, x);
            let results = changed.iter().map(view).collect::<Result<Vec<_>>>()?;
            let inputs = inputs.iter().map(view).collect::<Result<Vec<_>>>()?;
            let (results_at, inputs): (Vec<_>, Vec<_>) =
                (results.iter().collect(), inputs.iter().collect());
            crate::device::change(&results_at, &inputs, calls)?;
            results
        } else {
            let mut memory = Memory::new();
            let (results, inputs) = (memory.upload_all(changed)?, memory.upload_all(inputs)?);
            self.run_reading(&mut memory, &inputs, &calls(&results, &inputs)?)?;
            let read = |index: &usize| memory.read(*index);
            results.iter().map(read).collect::<Result<_>>()?
        };
        for (tensor, result) in changed.iter().zip(results) {
            let result = result.to_device(&Device::Cpu)?.flatten_all()?;
            tensor.flatten_all()?.slice_set(&result, 0, 0)?;
        }
        Ok(())
    }

    /// As [`run`](Self::run); `inputs` are to stay as they are.
    fn run_reading(&self, memory: &mut Memory, inputs: &[usize], calls: &[Call]) -> Result<()> {
        let before = memory.clone();
        self.run(memory, calls)?;
        match inputs.iter().find(|input| memory.differs(&before, **input)) {
            Some(input) => bail!(
                "{:?}: buffer {input} is an input, and was written to",
                calls.iter().map(|call| call.function).collect::<Vec<_>>()
            ),
            None => Ok(()),
        }
    }

    /// Runs the calls, one after another.
    ///
    /// # Errors
    /// When a kernel reaches outside a buffer or its shared memory, its threads do not meet at a barrier or race for shared memory,
    /// it reads shared memory that nobody wrote, its arguments are of other types than its parameters, or its results depend on the
    /// order in which threads run.
    pub fn run(&self, memory: &mut Memory, calls: &[Call]) -> Result<()> {
        for call in calls {
            let call = call.choose(|index| memory.dtype(index));
            if !call.launches() {
                continue;
            }
            let mut reversed = memory.clone();
            self.launch(memory, call, Order::Forward)?;
            self.launch(&mut reversed, call, Order::Reverse)?;
            if let Some(index) = memory.first_difference(&reversed) {
                bail!(
                    "{}: buffer {index} depends on the order of threads: a barrier is missing",
                    call.function
                );
            }
        }
        Ok(())
    }

    fn launch(&self, memory: &mut Memory, call: &Call, order: Order) -> Result<()> {
        if !std::ptr::eq(self.module, call.module) {
            bail!(
                "{} is not a kernel of {}",
                call.function,
                self.module.name()
            );
        }
        let mut records = Vec::new();
        let mut find = |index: usize| memory.expose(index);
        let arguments = Arguments::of(call, &mut find, &mut records)?;
        let arguments = arguments.at(records.as_ptr().expose_provenance() as u64);
        let pointers: Vec<*const c_void> = arguments
            .iter()
            .map(|bytes| bytes.as_ptr().cast())
            .collect();
        let ranges = memory.ranges();
        let mut message = [0u8; MESSAGE_BYTES];
        let _alone = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(unsafe_code, reason = "calls compiled C++")]
        // SAFETY: both functions have these types. The entry's parameters are those that the arguments are made for, which point into
        // `memory`, borrowed for the call, or at `records`; the engine checks every access and ends its message within the length given.
        unsafe {
            let entry = self.entry(call.function)?;
            if !fit(
                call,
                std::slice::from_raw_parts(entry.parameters, entry.count as usize),
            ) {
                bail!(
                    "{}: {} arguments that are not of its parameters' types",
                    call.function,
                    arguments.len()
                );
            }
            let emulate = self
                .library
                .get::<Emulate>("emulate")
                .map_err(Error::wrap)?;
            emulate(
                entry,
                pointers.as_ptr(),
                call.grid.as_ptr(),
                call.block,
                call.shared,
                order as u64,
                ranges.as_ptr(),
                ranges.len(),
                message.as_mut_ptr(),
                message.len(),
            );
        }
        let end = message.iter().position(|byte| *byte == 0);
        match String::from_utf8_lossy(&message[..end.unwrap_or(MESSAGE_BYTES)]) {
            message if message.is_empty() => Ok(()),
            message => bail!("{}: {message}", call.function),
        }
    }

    #[expect(unsafe_code, reason = "reads the table of compiled C++")]
    fn entry(&self, function: &str) -> Result<&Entry> {
        let mut count = 0;
        // SAFETY: `card_entries` has this type, and its table lives as long as the library.
        let entries = unsafe {
            let entries = self
                .library
                .get::<Entries>("card_entries")
                .map_err(Error::wrap)?;
            let first = entries(&raw mut count);
            std::slice::from_raw_parts(first, count)
        };
        // SAFETY: every entry of the table has a name.
        let named = |entry: &&Entry| {
            unsafe { CStr::from_ptr(entry.name) }.to_bytes() == function.as_bytes()
        };
        match entries.iter().find(named) {
            Some(entry) => Ok(entry),
            None => bail!("{function} is not a kernel of {}", self.module.name()),
        }
    }
}

/// The tensor on a card, as a view that begins behind other elements of its memory.
fn view_on(card: &Device, x: &Tensor) -> Result<Tensor> {
    /// Whole vectors of every type.
    const BEFORE: usize = 64;
    let flat = x.flatten_all()?;
    let before = Tensor::zeros(BEFORE, x.dtype(), x.device())?;
    let whole = Tensor::cat(&[before, flat], 0)?.to_device(card)?;
    whole.narrow(0, BEFORE, x.elem_count())?.reshape(x.shape())
}

/// The card that stands in for the emulator where `OT_DISTILL_KERNELS=cuda`: then every test of a kernel compares the card with
/// the reference, on the same inputs.
fn card() -> Result<Option<&'static Device>> {
    static CARD: OnceLock<Device> = OnceLock::new();
    if std::env::var_os("OT_DISTILL_KERNELS").is_none_or(|on| on != "cuda") {
        return Ok(None);
    }
    if CARD.get().is_none() {
        let _ = CARD.set(Device::new_cuda_with_stream(0)?);
    }
    Ok(CARD.get())
}
