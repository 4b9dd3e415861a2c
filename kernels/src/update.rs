//! Provides the calls of an optimiser's update, each for many tensors: AdamW with moments in f32 or in 8 bits, and sums of squares.

use candle_core::{DType, Result, bail};

use crate::{Call, GRID_MAX, Launch, Part, UPDATE};

/// Moments that share a scale.
pub const MOMENTS_A_SCALE: usize = 256;
/// Numbers that a moment's code stands for.
pub const CODES: usize = 256;
/// Floats of shared memory in which a block joins its values.
const JOIN: usize = 32;
/// Threads of a block.
const THREADS: usize = 256;
/// Elements that a thread takes where a tensor is not larger than all of its blocks together take at once.
const ELEMENTS_A_THREAD: usize = 4;
/// Blocks at most that share a tensor's elements: as many as fill a card.
const BLOCKS_MAX: usize = 1024;
/// Blocks that share one tensor's squares; as many threads add up what they found.
const PARTS: usize = 128;

/// Buffers of one parameter, and how many elements it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "said above")]
pub struct Slot<const N: usize> {
    pub buffers: [usize; N],
    pub len: usize,
}

/// The numbers of one update: with `g = scale gradient`, `m = beta1 m + new1 g`, `v = beta2 v + new2 g^2` and
/// `p = kept p - rate m / (correction sqrt(v) + eps)`, each operation rounded to f32.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "the formula says what they are")]
pub struct AdamW {
    pub scale: f32,
    pub beta1: f32,
    pub new1: f32,
    pub beta2: f32,
    pub new2: f32,
    pub correction: f32,
    pub eps: f32,
    pub rate: f32,
    pub kept: f32,
}

impl AdamW {
    /// The update of some parameters, in place, in one launch.
    ///
    /// # Shapes
    /// of each slot parameter, gradient and both moments: f32 `[len]`
    ///
    /// # Errors
    /// None, unless a grid has fewer blocks than this asks for.
    pub fn update(&self, slots: &[Slot<4>]) -> Result<Vec<Call>> {
        let calls = over_slots(slots, |slots, grid| {
            let launch = Launch {
                grid,
                block: THREADS,
                shared: 0,
            };
            let call = Call::new(&UPDATE, "adamw", launch)?;
            let call = (0..4).fold(call, |call, i| call.table(column(slots, i), DType::F32));
            Ok(self.numbers(call))
        });
        calls.collect()
    }

    /// As [`update`](Self::update), with moments in 8 bits.
    ///
    /// # Shapes
    /// of each slot parameter and gradient f32 `[len]`, and of each moment codes u8 `[len]` and scales f32 `[len / 256, rounded up]`;
    /// maps f32 `[2, 2, CODES]`: of the first and the second moment what codes stand for, ascending, and the middles between neighbours
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn update_8bit(&self, slots: &[Slot<6>], maps: usize) -> Result<Vec<Call>> {
        let types = [
            DType::F32,
            DType::F32,
            DType::U8,
            DType::F32,
            DType::U8,
            DType::F32,
        ];
        let calls = over_slots(slots, |slots, grid| {
            let launch = Launch {
                grid,
                block: MOMENTS_A_SCALE,
                shared: size_of::<f32>() * (JOIN + 4 * CODES),
            };
            let call = Call::new(&UPDATE, "adamw_8bit", launch)?;
            let columns = types.into_iter().enumerate();
            let call = columns.fold(call, |call, (i, dtype)| call.table(column(slots, i), dtype));
            Ok(self.numbers(call.buffer(maps, DType::F32)))
        });
        calls.collect()
    }

    fn numbers(&self, call: Call) -> Call {
        let Self {
            scale,
            beta1,
            new1,
            beta2,
            new2,
            correction,
            eps,
            rate,
            kept,
        } = *self;
        [scale, beta1, new1, beta2, new2, correction, eps, rate, kept]
            .into_iter()
            .fold(call, Call::float)
    }
}

/// One buffer of every slot.
fn column<const N: usize>(slots: &[Slot<N>], i: usize) -> Vec<Part> {
    let buffers = slots.iter().map(|slot| slot.buffers[i]);
    buffers.map(Part::whole).collect()
}

/// A call for as many slots as a grid has places for along y; blocks along x share the elements of one.
fn over_slots<const N: usize>(
    slots: &[Slot<N>],
    call: impl Fn(&[Slot<N>], [usize; 3]) -> Result<Call>,
) -> impl Iterator<Item = Result<Call>> {
    slots.chunks(GRID_MAX[1]).map(move |slots| {
        let longest = slots.iter().map(|slot| slot.len).max().unwrap_or(0);
        call(slots, [blocks_for(longest), slots.len(), 1])
    })
}

/// Blocks of [`THREADS`] that share this many elements.
pub(crate) fn blocks_for(len: usize) -> usize {
    len.div_ceil(THREADS * ELEMENTS_A_THREAD).min(BLOCKS_MAX)
}

/// Types and lengths of sums and scratch of [`sums_of_squares`].
pub fn square_outputs(tensors: usize) -> [(DType, usize); 2] {
    [(DType::F64, tensors), (DType::F64, tensors * PARTS)]
}

/// The sum of squares of each of many tensors of floats, in two launches: in f64 and in an order that depends on the tensor's length
/// alone.
///
/// # Shapes
/// sums f64 `[tensors]`
///
/// # Errors
/// When there is no tensor, or more than a grid has blocks.
pub fn sums_of_squares(tensors: &[usize], (sums, scratch): (usize, usize)) -> Result<Vec<Call>> {
    if tensors.is_empty() {
        bail!("the squares of no tensor were asked for");
    }
    let launch = |blocks, tensors, block| Launch {
        grid: [blocks, tensors, 1],
        block,
        shared: size_of::<f64>() * JOIN,
    };
    let mut calls = Vec::new();
    for (i, some) in tensors.chunks(GRID_MAX[1]).enumerate() {
        let call = Call::new(&UPDATE, "squares", launch(PARTS, some.len(), THREADS))?;
        let parts = some.iter().copied().map(Part::whole);
        let call = call.floats_table(parts.collect());
        calls.push(call.buffer(scratch, DType::F64).size(i * GRID_MAX[1]));
    }
    let call = Call::new(&UPDATE, "sums_of_parts", launch(tensors.len(), 1, PARTS))?;
    calls.push(call.buffer(scratch, DType::F64).buffer(sums, DType::F64));
    Ok(calls)
}
