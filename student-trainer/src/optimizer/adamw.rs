//! Provides the arithmetic of AdamW (Loshchilov & Hutter, "Decoupled weight decay regularization"): one step over slices. A card
//! computes the same by [`Step::numbers`].

use distill_kernels::update::AdamW;
use rayon::prelude::*;

use super::blockwise::{BLOCK, Blockwise};
use crate::loss::simd::vectorized;

/// What AdamW can be told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices; biases and norms are left alone, as transformers' trainer does.
    pub weight_decay: f64,
}

/// Elements that one thread takes at a time: four arrays of them fit the second-level cache.
const CHUNK: usize = 1 << 15;

/// The numbers of one update, the same for every element of a parameter.
///
/// With step t from 1 and gradient g, per element: `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
/// `p = p (1 - lr wd) - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Multiplies the gradient (clipping).
    pub scale: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// `lr / (1 - b1^t)`.
    pub rate: f64,
    /// `sqrt(1 - b2^t)`.
    pub correction: f64,
    /// `1 - lr wd`.
    pub kept: f64,
}

impl Step {
    /// Step `t` from 1 with decay `weight_decay`.
    pub fn new(config: &AdamWConfig, t: usize, lr: f64, weight_decay: f64, scale: f64) -> Self {
        let t = t as f64;
        Self {
            scale,
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            rate: lr / (1.0 - config.beta1.powf(t)),
            correction: (1.0 - config.beta2.powf(t)).sqrt(),
            kept: 1.0 - lr * weight_decay,
        }
    }

    /// As f32, in which it is computed.
    pub fn numbers(&self) -> AdamW {
        AdamW {
            scale: self.scale as f32,
            beta1: self.beta1 as f32,
            new1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            new2: (1.0 - self.beta2) as f32,
            correction: (1.0 / self.correction) as f32,
            eps: self.eps as f32,
            rate: self.rate as f32,
            kept: self.kept as f32,
        }
    }

    /// One pass over memory; all slices are equally long. The bits do not depend on the number of threads.
    pub fn slices(
        &self,
        parameter: &mut [f32],
        gradient: &[f32],
        first: &mut [f32],
        second: &mut [f32],
    ) {
        let chunks = parameter
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(first.par_chunks_mut(CHUNK))
            .zip(second.par_chunks_mut(CHUNK));
        chunks.for_each(|(((parameter, gradient), first), second)| {
            chunk(self, parameter, gradient, first, second);
        });
    }

    /// As [`slices`](Self::slices), with moments that are only f32 while their block is at hand.
    pub fn blocks(
        &self,
        parameter: &mut [f32],
        gradient: &[f32],
        first: &mut Blockwise,
        second: &mut Blockwise,
    ) {
        let chunks = parameter
            .par_chunks_mut(BLOCK)
            .zip(gradient.par_chunks(BLOCK))
            .zip(first.blocks_mut())
            .zip(second.blocks_mut())
            .with_min_len(CHUNK / BLOCK);
        chunks.for_each(|(((parameter, gradient), first), second)| {
            first.change(|first| {
                second.change(|second| chunk(self, parameter, gradient, first, second));
            });
        });
    }
}

vectorized! {
    /// One thread's share of [`Step::slices`].
    pub(super) fn chunk<'a>(
        step: &'a Step,
        parameter: &'a mut [f32],
        gradient: &'a [f32],
        first: &'a mut [f32],
        second: &'a mut [f32],
    ) -> () {
        let AdamW {
            scale,
            beta1,
            new1,
            beta2,
            new2,
            correction,
            eps,
            rate,
            kept,
        } = step.numbers();
        let elements = parameter.iter_mut().zip(gradient).zip(first).zip(second);
        for (((p, g), m), v) in elements {
            let g = g * scale;
            *m = *m * beta1 + g * new1;
            *v = *v * beta2 + g * g * new2;
            *p = *p * kept - *m / (v.sqrt() * correction + eps) * rate;
        }
    }
}
