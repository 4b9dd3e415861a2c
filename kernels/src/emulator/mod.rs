//! Provides kernels on the CPU: their text compiled by the system's C++ compiler, run thread by thread.

mod memory;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use libloading::Library;

use crate::{Call, Module};
pub use memory::Memory;
use memory::RawArgument;

/// Bytes of a message from the shim.
const MESSAGE_BYTES: usize = 256;

/// Runs one kernel; see `registry.hpp`.
type Emulate = unsafe extern "C" fn(
    function: usize,
    grid: *const u32,
    threads: u32,
    shared: u32,
    reverse: i32,
    arguments: *const RawArgument,
    count: usize,
    error: *mut u8,
    error_len: usize,
);

/// One module, compiled for the CPU.
pub struct Emulator {
    module: &'static Module,
    emulate: Emulate,
    /// The shim keeps the running thread in globals: one launch at a time.
    running: Mutex<()>,
    _library: Library,
}

/// Which order a block's threads, and the grid's blocks, run in.
#[derive(Clone, Copy)]
enum Order {
    Forward,
    Reverse,
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
        let folder = tempfile::tempdir()?;
        let (source, library) = (folder.path().join("kernels.cpp"), folder.path().join("lib"));
        std::fs::write(&source, text(module))?;
        let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let output = Command::new(&compiler)
            .args(["-std=c++17", "-O2", "-shared", "-fPIC", "-w"])
            // The card's loads and stores know no types, and its products are rounded as written.
            .args(["-fno-strict-aliasing", "-ffp-contract=off"])
            // Jumps between fibers are what fortified longjmp takes for a mistake.
            .arg("-U_FORTIFY_SOURCE")
            .arg("-o")
            .args([&library, &source])
            .output();
        let output = match output {
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "no C++ compiler {} for the kernels of {}; install one, or name it in CXX",
                compiler.display(),
                module.name()
            ),
            output => output?,
        };
        if !output.status.success() {
            bail!(
                "{} does not compile {}:\n{}",
                compiler.display(),
                module.name(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        #[expect(unsafe_code, reason = "loads what was compiled above")]
        // SAFETY: the library runs nothing when it is loaded but constructors of empty vectors, and `emulate` has this type.
        let (library, emulate) = unsafe {
            let library = Library::new(&library).map_err(Error::wrap)?;
            let emulate = *library.get::<Emulate>("emulate").map_err(Error::wrap)?;
            (library, emulate)
        };
        Ok(Self {
            module,
            emulate,
            running: Mutex::new(()),
            _library: library,
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
                .map(|x| x.to_device(card))
                .collect::<Result<Vec<_>>>()?;
            let inputs: Vec<&Tensor> = inputs.iter().collect();
            let made = crate::device::compute(&inputs, outputs, calls)?;
            return made.iter().map(|x| x.to_device(&Device::Cpu)).collect();
        }
        let mut memory = Memory::new();
        let upload = |x: &&Tensor| memory.upload(x);
        let inputs = inputs.iter().map(upload).collect::<Result<Vec<_>>>()?;
        let fresh = |(dtype, len): &(DType, usize)| memory.fresh(*dtype, *len);
        let outputs: Vec<usize> = outputs.iter().map(fresh).collect();
        self.run(&mut memory, &calls(&inputs, &outputs)?)?;
        outputs.iter().map(|index| memory.read(*index)).collect()
    }

    /// Runs the calls, one after another.
    ///
    /// # Errors
    /// When a kernel reaches outside a buffer or its shared memory, its threads do not meet at a barrier, its arguments are of
    /// other types than its parameters, or its results depend on the order in which threads run.
    pub fn run(&self, memory: &mut Memory, calls: &[Call]) -> Result<()> {
        for call in calls.iter().filter(|call| call.launches()) {
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
        let functions = self.module.functions();
        let function = functions.iter().position(|name| *name == call.function);
        let (Some(function), true) = (function, std::ptr::eq(self.module, call.module)) else {
            bail!(
                "{} is not a kernel of {}",
                call.function,
                self.module.name()
            );
        };
        let arguments = memory.arguments(call)?;
        let mut message = [0u8; MESSAGE_BYTES];
        let _alone = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(unsafe_code, reason = "calls compiled C++")]
        // SAFETY: the arguments point into `memory`, which is borrowed for the call, with their lengths; the shim checks the
        // arguments' types and every access, and ends its message within the length given.
        unsafe {
            (self.emulate)(
                function,
                call.grid.as_ptr(),
                call.block,
                call.shared,
                matches!(order, Order::Reverse).into(),
                arguments.as_ptr(),
                arguments.len(),
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

/// What the C++ compiler gets: the shim, the module, and the list of its functions.
fn text(module: &Module) -> String {
    let mut text = [
        include_str!("shim.hpp"),
        &module.text(),
        include_str!("registry.hpp"),
        "namespace emulator {\nstatic const Entry ENTRIES[] = {",
    ]
    .concat();
    for function in module.functions() {
        let _ = write!(text, "ENTRY({function}), ");
    }
    text + "};\nstatic Entry entry_at(size_t function) { return ENTRIES[function]; }\n}\n"
}
