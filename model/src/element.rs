//! Provides the element types a CPU kernel accepts, with the rounding each implies.

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, WithDType, bail};
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements that one task rounds at least.
const TASK_ELEMENTS: usize = 1 << 14;

/// The nearest f32; beyond its range, an infinity.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
pub(crate) fn single(value: f64) -> f32 {
    value as f32
}

/// A float that kernels read as f32 and round back to when they store.
///
/// Kernels compute in f32 and call [`round`](Element::round) at the places where transformers
/// rounds to the model's dtype; for f32 that is the identity.
pub trait Element: WithDType {
    /// `self` as f32, exact.
    fn widen(self) -> f32;
    /// `value`, rounded.
    fn narrow(value: f32) -> Self;

    /// `value` as it reads after being stored in this type.
    #[inline(always)]
    fn round(value: f32) -> f32 {
        Self::narrow(value).widen()
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        f16::from_f32(value)
    }
}

/// Rounds values to `dtype`, in f32 as they are.
pub(crate) fn round_all(dtype: DType, values: &mut [f32]) {
    let round = match dtype {
        DType::BF16 => bf16::round,
        DType::F16 => f16::round,
        _ => return,
    };
    let rounded = values.par_iter_mut().with_min_len(TASK_ELEMENTS);
    rounded.for_each(|value| *value = round(*value));
}

/// Evaluates a body once for the element type that a dtype names.
macro_rules! for_element {
    ($op:expr, $dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $element = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $element = half::bf16;
                $body
            }
            candle_core::DType::F16 => {
                type $element = half::f16;
                $body
            }
            other => Err(candle_core::Error::UnsupportedDTypeForOp(other, $op)),
        }
    };
}
pub(crate) use for_element;

/// The elements of a contiguous CPU tensor, in order.
///
/// # Errors
/// When the layout has gaps or the storage holds another type.
pub(crate) fn elements<'a, E: Element>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [E]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a CPU kernel was given a tensor that is not contiguous: {layout:?}")
    };
    let all = storage.as_slice::<E>()?;
    match all.get(start..end) {
        Some(slice) => Ok(slice),
        None => bail!(
            "a layout of {start}..{end} reaches past {} elements",
            all.len()
        ),
    }
}

/// As [`elements`], for a tensor's own storage.
pub(crate) fn host_elements<'a, E: Element>(
    storage: &'a Storage,
    layout: &Layout,
) -> Result<&'a [E]> {
    match storage {
        Storage::Cpu(storage) => elements(storage, layout),
        _ => bail!("a CPU kernel was given a tensor on another device"),
    }
}

/// A tensor whose numbers are lent as long as this lives.
pub struct Lent<'a, Guard> {
    storage: Guard,
    layout: &'a Layout,
}

/// Lends a tensor's numbers.
pub fn lend(tensor: &Tensor) -> Lent<'_, impl Deref<Target = Storage>> {
    let (storage, layout) = tensor.storage_and_layout();
    Lent { storage, layout }
}

impl<Guard: Deref<Target = Storage>> Lent<'_, Guard> {
    /// The numbers, in order.
    ///
    /// # Errors
    /// When the tensor is on another device, has gaps or holds another type.
    pub fn numbers<E: Element>(&self) -> Result<&[E]> {
        host_elements(&self.storage, self.layout)
    }
}
