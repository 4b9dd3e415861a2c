//! CUDA kernels for what candle's own operations do slowly or with too much memory, as C++ text that is compiled where it runs.
//!
//! ```text
//!  src/cuda/prelude.cuh + src/cuda/NAME.cu ── Module ──┬─ on a card: compiler or image_cache ─> loaded ─> device::run
//!                                                      └─ in tests: c++ ──────────────────────────────> Emulator::run
//!  Call::new(&NAME, "function", Launch)?.floats(x).long(n) ── one launch, the same for both
//! ```
//!
//! **When they are compiled.** At first use, by NVRTC, for the card that is there, and then kept on the disk. candle links NVRTC
//! already, so a build needs nothing more than candle's `cuda` feature does, and no list of architectures has to be decided at
//! build time. The price is some seconds in the first step of the first run on a machine.
//!
//! **How they are tested.** A build machine has no GPU. So the text includes nothing and uses little (`prelude.cuh` lists what),
//! and the `Emulator` (feature `emulator`) compiles it with the system's C++ compiler. It runs every block's threads one after
//! another to the next barrier or warp exchange, forward and then in reverse, and refuses results that differ: a missing
//! barrier shows. Tensor cores are exchanges too, of the registers of a warp. It watches every access: a race in shared memory, a read of what nobody wrote there and a misaligned access are
//! refused. Buffers are bounds-checked, fresh buffers begin as NaN, arguments are checked against the function's parameters. A
//! C++ compiler (GCC 12 is known to work) is needed: without one those tests fail. With `OT_DISTILL_KERNELS=cuda` in the environment of a CUDA build the same tests run on the card instead.
//!
//! **A new kernel** is a `.cu` file beside the others, one entry in the list at the end of `module.rs`, and a function that makes
//! the [`Call`] from indices of buffers and sizes:
//!
//! ```
//! use candle_core::Result;
//! use distill_kernels::{Call, Launch, SELF_TEST};
//!
//! /// out[i] = x[i], rounded to out's type.
//! fn convert(x: usize, out: usize, len: usize) -> Result<Call> {
//!     let call = Call::new(&SELF_TEST, "convert", Launch::over(len, 256))?;
//!     Ok(call.floats(x).floats(out).size(len))
//! }
//! # assert!(convert(0, 1, 1000).is_ok());
//! ```
//!
//! In `CustomOp::cuda_fwd` the indices come from [`device::run`]:
//! `device::run(card, &[(x, layout)], &[(DType::BF16, n)], |x, out| Ok(vec![convert(x[0], out[0], n)?]))`;
//! in a test from `emulator.compute(&[&x], &[(DType::BF16, n)], |x, out| Ok(vec![convert(x[0], out[0], n)?]))`, with
//! `Emulator::of(&SELF_TEST)?`.
//!
//! **Many tensors in one launch** are a [table](Call::table): the kernel finds each as an element of its `Table` parameter. What a
//! kernel changes in place is given to [`device::change`], or to `Emulator::change`.

mod argument;
pub mod attention;
mod call;
pub mod cast;
#[cfg(any(feature = "cuda", test))]
mod compiler;
pub mod device;
#[cfg(feature = "emulator")]
mod emulator;
pub mod head;
#[cfg(any(feature = "cuda", test))]
mod image_cache;
pub mod layers;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod layout;
#[cfg(feature = "cuda")]
mod loaded;
mod module;
pub mod nf4;
mod product;
pub mod sample;
pub mod select;
pub mod sinkhorn;
pub mod update;

pub use argument::Part;
pub use call::{Call, Change, Compute, GRID_MAX, Launch, MakeCalls, SHARED_BYTES_MAX, THREADS_MAX};
#[cfg(feature = "emulator")]
pub use emulator::{EMULATED, Emulator, Memory};
pub use module::*;
pub use product::{Machine, Matrix, Multiply, Product};

#[cfg(test)]
mod nvrtc_tests;
