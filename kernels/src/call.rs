//! Provides one launch of a kernel: the function, its grid and its arguments, independent of where it runs.

use candle_core::{DType, Result, Tensor, bail};

use crate::Module;
use crate::argument::{Argument, Part};

/// Threads of a block at most, on every card.
pub const THREADS_MAX: usize = 1024;
/// Shared memory of a block at most that every card grants without being asked: 48 KiB.
pub const SHARED_BYTES_MAX: usize = 48 << 10;
/// Blocks at most along x, and along y and z.
pub const GRID_MAX: [usize; 3] = [i32::MAX as usize, 65_535, 65_535];
/// Where buffers begin that a call for 16-bit floats takes: at multiples of so many bytes, which it loads at once.
#[cfg(feature = "cuda")]
pub(crate) const NARROW_ALIGNMENT: u64 = 16;
/// Threads that exchange values with each other.
const WARP: usize = 32;

/// How many blocks of how many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y and z. Where one is 0, nothing is launched.
    pub grid: [usize; 3],
    /// Threads of a block: whole warps of 32.
    pub block: usize,
    /// Shared memory of a block, in bytes.
    pub shared: usize,
}

impl Launch {
    /// At least one thread for each of `count` elements.
    pub fn over(count: usize, block: usize) -> Self {
        Self {
            grid: [count.div_ceil(block.max(1)), 1, 1],
            block,
            shared: 0,
        }
    }
}

/// Makes calls from the indices of inputs and of outputs, for whoever passes that on.
pub type MakeCalls<'a> = &'a dyn Fn(&[usize], &[usize]) -> Result<Vec<Call>>;

/// Runs calls on tensors, for outputs of these types and lengths: on a card [`device::COMPUTE`](crate::device::COMPUTE), in tests
/// the emulator.
pub type Compute = fn(&[&Tensor], &[(DType, usize)], MakeCalls<'_>) -> Result<Vec<Tensor>>;

/// Runs calls that change the first tensors where they are and read the others: on a card [`device::CHANGE`](crate::device::CHANGE),
/// in tests the emulator. The calls are made from the indices of both.
pub type Change = fn(&[&Tensor], &[&Tensor], MakeCalls<'_>) -> Result<()>;

/// A launch with its arguments, in the order of the function's parameters.
#[derive(Debug, Clone)]
#[cfg_attr(not(any(feature = "cuda", feature = "emulator")), expect(dead_code))]
pub struct Call {
    pub(crate) module: &'static Module,
    pub(crate) function: &'static str,
    pub(crate) grid: [u32; 3],
    pub(crate) block: u32,
    pub(crate) shared: u32,
    pub(crate) arguments: Vec<Argument>,
    narrow: Option<Narrow>,
}

/// What runs instead where these buffers all hold bf16, or all f16, and begin at multiples of 16 bytes.
#[derive(Debug, Clone)]
#[cfg_attr(not(any(feature = "cuda", feature = "emulator")), expect(dead_code))]
struct Narrow {
    buffers: Vec<usize>,
    call: Box<Call>,
}

impl Call {
    /// A launch without arguments yet.
    ///
    /// # Errors
    /// When the module has no such function, or no card could launch this.
    pub fn new(module: &'static Module, function: &'static str, launch: Launch) -> Result<Self> {
        let Launch {
            grid,
            block,
            shared,
        } = launch;
        if !module.functions().contains(&function) {
            bail!("the module {} has no kernel {function}", module.name());
        }
        let threads = block.is_multiple_of(WARP) && (WARP..=THREADS_MAX).contains(&block);
        let blocks = grid.iter().zip(GRID_MAX).all(|(n, max)| *n <= max);
        if !threads || !blocks || shared > SHARED_BYTES_MAX {
            bail!(
                "{function} cannot be launched with {launch:?}: blocks are whole warps of {WARP} and at most {THREADS_MAX} \
                 threads, grids at most {GRID_MAX:?}, and a block has {SHARED_BYTES_MAX} bytes of shared memory"
            );
        }
        Ok(Self {
            module,
            function,
            grid: grid.map(|n| n as u32),
            block: block as u32,
            shared: shared as u32,
            arguments: Vec::new(),
            narrow: None,
        })
    }

    /// This call, or `narrow` where these buffers all hold bf16, or all f16, and begin at multiples of 16 bytes: which is known when a
    /// call runs.
    pub fn or_where_narrow(self, buffers: &[usize], narrow: Self) -> Self {
        let narrow = Narrow {
            buffers: buffers.to_vec(),
            call: Box::new(narrow),
        };
        Self {
            narrow: Some(narrow),
            ..self
        }
    }

    /// A buffer of f32, bf16 or f16, whichever it holds: `Floats`.
    pub fn floats(self, index: usize) -> Self {
        self.with(Argument::Floats(index))
    }

    /// A buffer of exactly this type: `Buffer<T>`.
    pub fn buffer(self, index: usize, dtype: DType) -> Self {
        self.with(Argument::Buffer(index, dtype))
    }

    /// Buffers of f32, bf16 or f16, whichever each holds: `Table<Floats>`.
    pub fn floats_table(self, parts: Vec<Part>) -> Self {
        self.with(Argument::FloatsTable(parts))
    }

    /// Buffers of exactly this type: `Table<Buffer<T>>`.
    pub fn table(self, parts: Vec<Part>, dtype: DType) -> Self {
        self.with(Argument::Table(parts, dtype))
    }

    /// A size: `i64`.
    pub fn size(self, value: usize) -> Self {
        // No buffer is longer than i64 can say, so no size that fits one is cut.
        self.long(i64::try_from(value).unwrap_or(i64::MAX))
    }

    /// `i64`.
    pub fn long(self, value: i64) -> Self {
        self.with(Argument::Long(value))
    }

    /// `int`.
    pub fn int(self, value: i32) -> Self {
        self.with(Argument::Int(value))
    }

    /// `float`.
    pub fn float(self, value: f32) -> Self {
        self.with(Argument::Float(value))
    }

    /// Shared memory of a block.
    pub fn shared_bytes(&self) -> usize {
        self.shared as usize
    }

    /// Blocks in all.
    pub fn blocks(&self) -> usize {
        self.grid.iter().map(|n| *n as usize).product()
    }

    fn with(mut self, argument: Argument) -> Self {
        self.arguments.push(argument);
        self
    }

    /// The call that runs on buffers of these types; `None` for one that does not begin at a multiple of 16 bytes.
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    pub(crate) fn choose(&self, dtype: impl Fn(usize) -> Option<DType>) -> &Self {
        let Some(Narrow { buffers, call }) = &self.narrow else {
            return self;
        };
        let all = |wanted| buffers.iter().all(|buffer| dtype(*buffer) == Some(wanted));
        if all(DType::BF16) || all(DType::F16) {
            call
        } else {
            self
        }
    }

    /// Whether there is a block to run.
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    pub(crate) fn launches(&self) -> bool {
        !self.grid.contains(&0)
    }
}

/// How prelude.cuh names the types that buffers hold.
pub(crate) fn type_code(dtype: DType) -> Result<i32> {
    Ok(match dtype {
        DType::F32 => 0,
        DType::BF16 => 1,
        DType::F16 => 2,
        DType::U8 => 3,
        DType::U32 => 4,
        DType::I64 => 5,
        DType::F64 => 6,
        other => bail!("kernels take no buffers of {other:?}"),
    })
}

/// The code of a buffer that is passed as floats of whichever type it holds.
pub(crate) fn float_code(dtype: DType) -> Result<i32> {
    match dtype {
        DType::F32 | DType::BF16 | DType::F16 => type_code(dtype),
        other => bail!("a kernel takes floats, and was given {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SELF_TEST;

    #[test]
    fn launches_that_no_card_takes_are_refused() {
        let launch = |grid, block, shared| {
            let launch = Launch {
                grid,
                block,
                shared,
            };
            Call::new(&SELF_TEST, "convert", launch)
        };
        assert!(launch([1 << 20, 65_535, 1], 1024, SHARED_BYTES_MAX).is_ok());
        for (grid, block, shared) in [
            ([1, 1, 1], 33, 0),
            ([1, 1, 1], 0, 0),
            ([1, 1, 1], 1056, 0),
            ([1, 65_536, 1], 32, 0),
            ([1 << 31, 1, 1], 32, 0),
            ([1, 1, 1], 32, SHARED_BYTES_MAX + 1),
        ] {
            let refusal = launch(grid, block, shared).unwrap_err().to_string();
            assert!(refusal.contains("whole warps"), "{refusal}");
        }
        let refusal = Call::new(&SELF_TEST, "absent", Launch::over(1, 32)).unwrap_err();
        assert!(refusal.to_string().contains("no kernel absent"));
    }

    #[test]
    fn a_call_for_narrow_floats_runs_where_all_are_of_one_narrow_type() {
        let call = |block| Call::new(&SELF_TEST, "convert", Launch::over(64, block)).unwrap();
        let call = call(64).or_where_narrow(&[1, 2], call(32));
        for (types, block) in [
            ([Some(DType::BF16), Some(DType::BF16)], 32),
            ([Some(DType::F16), Some(DType::F16)], 32),
            ([Some(DType::F16), Some(DType::BF16)], 64),
            ([Some(DType::BF16), Some(DType::F32)], 64),
            ([Some(DType::F32), Some(DType::F32)], 64),
            // One that begins elsewhere.
            ([Some(DType::BF16), None], 64),
        ] {
            assert_eq!(call.choose(|buffer| types[buffer - 1]).block, block);
        }
    }

    #[test]
    fn a_launch_over_elements_covers_the_last() {
        assert_eq!(Launch::over(257, 256).grid, [2, 1, 1]);
        assert_eq!(Launch::over(0, 256).grid, [0, 1, 1]);
    }
}
