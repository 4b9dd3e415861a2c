//! Provides the two moments of one parameter, in the form that its device and the settings ask for.

use std::{cell::RefCell, collections::BTreeMap};

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor, Var};

use super::adamw::Step;
use crate::{Error, Result};

/// Exponential averages of the gradient and of its square.
pub(super) enum Moments {
    /// f32 in this process's memory.
    Slices { first: Vec<f32>, second: Vec<f32> },
    /// f32 on a device.
    Tensors { first: Tensor, second: Tensor },
}

/// What the tensors of a saved state are called, after the parameter's name.
const FIRST: &str = "exp_avg";
const SECOND: &str = "exp_avg_sq";

impl Moments {
    /// Moments of zero.
    pub fn new(parameter: &Var) -> Result<Self> {
        if parameter.device().is_cpu() && parameter.is_contiguous() {
            let zeros = || vec![0.0; parameter.elem_count()];
            return Ok(Self::Slices {
                first: zeros(),
                second: zeros(),
            });
        }
        let first = parameter.zeros_like()?;
        let second = first.copy()?;
        Ok(Self::Tensors { first, second })
    }

    /// One update of `parameter` and of these moments.
    pub fn update(&mut self, parameter: &Var, gradient: &Tensor, step: &Step) -> Result<()> {
        match self {
            Self::Tensors { first, second } => step.tensors(parameter, gradient, first, second),
            Self::Slices { first, second } => {
                let update = InPlace::new(|parameter, gradient| {
                    step.slices(parameter, gradient, first, second);
                });
                Ok(parameter.inplace_op2(&gradient.contiguous()?, &update)?)
            }
        }
    }

    /// Adds the tensors of the moments of `name` to `state`.
    pub fn save(
        &self,
        name: &str,
        parameter: &Var,
        state: &mut BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let (first, second) = match self {
            Self::Tensors { first, second } => (first.clone(), second.clone()),
            Self::Slices { first, second } => {
                let tensor = |values: &[f32]| {
                    Tensor::from_slice(values, parameter.shape().clone(), &Device::Cpu)
                };
                (tensor(first)?, tensor(second)?)
            }
        };
        state.insert(format!("{name}.{FIRST}"), first);
        state.insert(format!("{name}.{SECOND}"), second);
        Ok(())
    }

    /// Moments of the same form, from what [`save`](Self::save) left.
    pub fn load(
        &self,
        name: &str,
        parameter: &Var,
        state: &BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        let load = |suffix: &str| saved(state, &format!("{name}.{suffix}"), parameter.dims());
        let (first, second) = (load(FIRST)?, load(SECOND)?);
        Ok(match self {
            Self::Slices { .. } => Self::Slices {
                first: first.flatten_all()?.to_vec1()?,
                second: second.flatten_all()?.to_vec1()?,
            },
            Self::Tensors { .. } => Self::Tensors {
                first: first.to_device(parameter.device())?,
                second: second.to_device(parameter.device())?,
            },
        })
    }

    /// Memory that they take.
    pub fn bytes(&self) -> u64 {
        let count = match self {
            Self::Slices { first, second } => first.len() + second.len(),
            Self::Tensors { first, second } => first.elem_count() + second.elem_count(),
        };
        (count * size_of::<f32>()) as u64
    }
}

/// The tensor `key` of a saved state.
pub(super) fn entry<'a>(state: &'a BTreeMap<String, Tensor>, key: &str) -> Result<&'a Tensor> {
    state.get(key).ok_or_else(|| {
        Error::Config(format!(
            "the optimiser state has no `{key}`; it belongs to another run"
        ))
    })
}

/// The f32 tensor `key` of a saved state, of the shape `dims`.
fn saved(state: &BTreeMap<String, Tensor>, key: &str, dims: &[usize]) -> Result<Tensor> {
    let tensor = entry(state, key)?;
    if tensor.dims() != dims || tensor.dtype() != DType::F32 {
        return Err(Error::Config(format!(
            "the optimiser state `{key}` is {:?} {:?}, the run needs F32 {dims:?}; it belongs to another run",
            tensor.dtype(),
            tensor.dims(),
        )));
    }
    Ok(tensor.clone())
}

/// A change of a parameter in place, seen as slices: candle lends a tensor's memory only to such operations.
struct InPlace<F>(RefCell<F>);

impl<F: FnMut(&mut [f32], &[f32])> InPlace<F> {
    fn new(change: F) -> Self {
        Self(RefCell::new(change))
    }
}

impl<F: FnMut(&mut [f32], &[f32])> InplaceOp2 for InPlace<F> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        parameter_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let ranges = (
            parameter_layout.contiguous_offsets(),
            gradient_layout.contiguous_offsets(),
        );
        match (parameter, gradient, ranges) {
            (CpuStorage::F32(p), CpuStorage::F32(g), (Some((p0, p1)), Some((g0, g1)))) => {
                match (p.get_mut(p0..p1), g.get(g0..g1)) {
                    (Some(p), Some(g)) if p.len() == g.len() => (self.0.borrow_mut())(p, g),
                    _ => candle_core::bail!("a gradient of another size than its parameter"),
                }
            }
            _ => candle_core::bail!("adamw needs contiguous f32 parameters and gradients"),
        }
        Ok(())
    }
}
