//! Provides the calls of an optimiser's update: AdamW with moments in f32 or in 8 bits, and sums of squares of many tensors.

use candle_core::{DType, Result, bail};

use crate::{Call, Launch, UPDATE};

/// Moments that share a scale.
pub const MOMENTS_A_SCALE: usize = 256;
/// Numbers that a moment's code stands for.
pub const CODES: usize = 256;
/// Floats of shared memory in which a block joins its values.
const JOIN: usize = 32;
/// Threads of a block.
const THREADS: usize = 256;
/// Blocks that share one tensor's squares; as many threads add up what they found.
const PARTS: usize = 128;

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
    /// The update of `len` elements.
    ///
    /// # Shapes
    /// parameter, gradient, both moments; parameter and moments as they become: f32 `[len]`
    ///
    /// # Errors
    /// When there are more elements than a grid has threads.
    pub fn update(&self, inputs: [usize; 4], outputs: [usize; 3], len: usize) -> Result<Call> {
        let call = Call::new(&UPDATE, "adamw", Launch::over(len, THREADS))?;
        let buffers = inputs.into_iter().chain(outputs);
        let call = buffers.fold(call, |call, index| call.buffer(index, DType::F32));
        Ok(self.numbers(call.size(len)))
    }

    /// As [`update`](Self::update), with moments in 8 bits.
    ///
    /// # Shapes
    /// parameter and gradient f32 `[len]`; of each moment codes u8 `[len]` and scales f32 `[len / 256, rounded up]`; maps f32
    /// `[2, 2, CODES]`: of the first and the second moment what codes stand for, ascending, and the middles between neighbours. Then
    /// the parameter, codes and scales as they become.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn update_8bit(&self, inputs: [usize; 7], outputs: [usize; 5], len: usize) -> Result<Call> {
        let launch = Launch {
            shared: size_of::<f32>() * (JOIN + 4 * CODES),
            ..Launch::over(len, MOMENTS_A_SCALE)
        };
        let call = Call::new(&UPDATE, "adamw_8bit", launch)?;
        let [
            parameter,
            gradient,
            first,
            first_scales,
            second,
            second_scales,
            maps,
        ] = inputs;
        let call = call
            .buffer(parameter, DType::F32)
            .buffer(gradient, DType::F32);
        let moments = [(first, first_scales), (second, second_scales)];
        let codes = |call: Call, (codes, scales): (usize, usize)| {
            call.buffer(codes, DType::U8).buffer(scales, DType::F32)
        };
        let call = moments.into_iter().fold(call, codes);
        let [parameter, first, first_scales, second, second_scales] = outputs;
        let call = call.buffer(maps, DType::F32).buffer(parameter, DType::F32);
        let moments = [(first, first_scales), (second, second_scales)];
        let call = moments.into_iter().fold(call, codes);
        Ok(self.numbers(call.size(len)))
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

/// Types and lengths of sums and scratch of [`sums_of_squares`].
pub fn square_outputs(tensors: usize) -> [(DType, usize); 2] {
    [(DType::F64, tensors), (DType::F64, tensors * PARTS)]
}

/// The sum of squares of each of many tensors, in f64 and in an order that depends on the tensor's length alone.
///
/// # Shapes
/// `tensors`: floats and their lengths; sums f64 `[tensors]`
///
/// # Errors
/// When there is no tensor, or more than a grid has blocks.
pub fn sums_of_squares(
    tensors: &[(usize, usize)],
    (sums, scratch): (usize, usize),
) -> Result<Vec<Call>> {
    if tensors.is_empty() {
        bail!("the squares of no tensor were asked for");
    }
    let launch = |blocks, block| Launch {
        grid: [blocks, 1, 1],
        block,
        shared: size_of::<f64>() * JOIN,
    };
    let part = |(index, &(tensor, len)): (usize, &(usize, usize))| {
        let call = Call::new(&UPDATE, "squares", launch(PARTS, THREADS))?;
        let call = call.floats(tensor).buffer(scratch, DType::F64);
        Ok(call.size(index * PARTS).size(len))
    };
    let mut calls = tensors
        .iter()
        .enumerate()
        .map(part)
        .collect::<Result<Vec<_>>>()?;
    let call = Call::new(&UPDATE, "sums_of_parts", launch(tensors.len(), PARTS))?;
    calls.push(call.buffer(scratch, DType::F64).buffer(sums, DType::F64));
    Ok(calls)
}
