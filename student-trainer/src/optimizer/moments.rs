//! Provides the two moments of one parameter, in the form that its device and the settings ask for.

use std::{cell::RefCell, collections::BTreeMap};

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor, Var};

use super::{
    adamw::Step,
    blockwise::{Blockwise, DynamicMap},
    card::{CardMoments, Queue},
};
use crate::{Error, Result};

/// Exponential averages of the gradient and of its square.
pub(super) enum Moments {
    /// f32 in this process's memory.
    Slices { first: Vec<f32>, second: Vec<f32> },
    /// 8 bits in this process's memory.
    Codes { first: Blockwise, second: Blockwise },
    /// Beside the parameter, on a card.
    Card(CardMoments),
}

/// What the tensors of a saved state are called, after the parameter's name.
pub(super) const FIRST: &str = "exp_avg";
pub(super) const SECOND: &str = "exp_avg_sq";

/// The tensors of a saved state, by name.
pub(super) type State = BTreeMap<String, Tensor>;

impl Moments {
    /// Moments of zero.
    pub fn new(parameter: &Var, in_8_bits: bool) -> Result<Self> {
        let count = parameter.elem_count();
        if !parameter.device().is_cpu() {
            return Ok(Self::Card(CardMoments::new(parameter, in_8_bits)?));
        }
        if in_8_bits {
            return Ok(Self::Codes {
                first: Blockwise::zeros(DynamicMap::signed(), count),
                second: Blockwise::zeros(DynamicMap::unsigned(), count),
            });
        }
        let (first, second) = (vec![0.0; count], vec![0.0; count]);
        Ok(Self::Slices { first, second })
    }

    /// One update of `parameter` and of these moments: done here, or `queued` for the card.
    pub fn update<'a>(
        &'a mut self,
        parameter: &'a Var,
        gradient: &Tensor,
        step: &Step,
        queued: &mut Queue<'a>,
    ) -> Result<()> {
        match self {
            Self::Card(moments) => queued.push(parameter, gradient, moments, step),
            Self::Slices { first, second } => {
                in_place(parameter, gradient, |parameter, gradient| {
                    step.slices(parameter, gradient, first, second);
                })
            }
            Self::Codes { first, second } => {
                in_place(parameter, gradient, |parameter, gradient| {
                    step.blocks(parameter, gradient, first, second);
                })
            }
        }
    }

    /// Adds the tensors of the moments of `name` to `state`.
    pub fn save(&self, name: &str, parameter: &Var, state: &mut State) -> Result<()> {
        let (shape, cpu) = (parameter.shape(), &Device::Cpu);
        let mut insert = |moment: &str, suffix: &str, tensor: Tensor| {
            state.insert(format!("{name}.{moment}{suffix}"), tensor);
        };
        match self {
            Self::Card(moments) => {
                for (moment, suffix, tensor) in moments.tensors() {
                    let shape = if suffix.is_empty() {
                        shape
                    } else {
                        tensor.shape()
                    };
                    insert(moment, suffix, tensor.reshape(shape)?);
                }
            }
            Self::Slices { first, second } => {
                insert(FIRST, "", Tensor::from_slice(first, shape, cpu)?);
                insert(SECOND, "", Tensor::from_slice(second, shape, cpu)?);
            }
            Self::Codes { first, second } => {
                for (moment, values) in [(FIRST, first), (SECOND, second)] {
                    insert(moment, "", Tensor::from_slice(&values.codes, shape, cpu)?);
                    let absmax = Tensor::new(values.absmax.as_slice(), cpu)?;
                    insert(moment, ABSMAX, absmax);
                }
            }
        }
        Ok(())
    }

    /// Moments of the same form, from what [`save`](Self::save) left.
    pub fn load(&self, name: &str, parameter: &Var, state: &State) -> Result<Self> {
        let saved = |moment: &str, dtype: DType| {
            saved(state, &format!("{name}.{moment}"), dtype, parameter.dims())
        };
        let slice =
            |moment: &str| Ok::<_, Error>(saved(moment, DType::F32)?.flatten_all()?.to_vec1()?);
        let codes = |moment: &str, like: &Blockwise| {
            let absmax = format!("{name}.{moment}{ABSMAX}");
            let absmax = self::saved(state, &absmax, DType::F32, &[like.absmax.len()])?;
            Ok::<_, Error>(Blockwise {
                map: like.map,
                codes: saved(moment, DType::U8)?.flatten_all()?.to_vec1()?,
                absmax: absmax.to_vec1()?,
            })
        };
        Ok(match self {
            Self::Slices { .. } => Self::Slices {
                first: slice(FIRST)?,
                second: slice(SECOND)?,
            },
            Self::Card(like) => Self::Card(like.map(|moment, suffix, tensor| {
                let dims = if suffix.is_empty() {
                    parameter.dims()
                } else {
                    tensor.dims()
                };
                let key = format!("{name}.{moment}{suffix}");
                let saved = self::saved(state, &key, tensor.dtype(), dims)?.flatten_all()?;
                // These moments change in place: whose memory they are must not.
                if saved.device().same_device(parameter.device()) {
                    return Ok(saved.copy()?);
                }
                Ok(saved.to_device(parameter.device())?)
            })?),
            Self::Codes { first, second } => Self::Codes {
                first: codes(FIRST, first)?,
                second: codes(SECOND, second)?,
            },
        })
    }

    /// Memory that they take.
    pub fn bytes(&self) -> u64 {
        let bytes = match self {
            Self::Slices { first, second } => size_of_val(&first[..]) + size_of_val(&second[..]),
            Self::Card(moments) => moments.bytes(),
            Self::Codes { first, second } => first.bytes() + second.bytes(),
        };
        bytes as u64
    }
}

/// After the name of codes, for the largest magnitude of every block.
pub(super) const ABSMAX: &str = ".absmax";

/// The tensor `key` of a saved state.
pub(super) fn entry<'a>(state: &'a State, key: &str) -> Result<&'a Tensor> {
    state.get(key).ok_or_else(|| {
        Error::Config(format!(
            "the optimiser state has no `{key}`; it belongs to another run"
        ))
    })
}

/// The tensor `key` of a saved state, of this type and shape.
fn saved<'a>(state: &'a State, key: &str, dtype: DType, dims: &[usize]) -> Result<&'a Tensor> {
    let tensor = entry(state, key)?;
    if tensor.dims() == dims && tensor.dtype() == dtype {
        return Ok(tensor);
    }
    Err(Error::Config(format!(
        "the optimiser state `{key}` is {:?} {:?}, this run's is {dtype:?} {dims:?}; it belongs to another run, or to another \
         setting of `optimizer`",
        tensor.dtype(),
        tensor.dims(),
    )))
}

/// Changes a parameter as slices, in place where it is one; what has gaps is copied there and back.
fn in_place(
    parameter: &Var,
    gradient: &Tensor,
    change: impl FnMut(&mut [f32], &[f32]),
) -> Result<()> {
    let change = InPlace(RefCell::new(change));
    let gradient = gradient.contiguous()?;
    if parameter.is_contiguous() {
        return Ok(parameter.inplace_op2(&gradient, &change)?);
    }
    let whole = parameter.contiguous()?;
    whole.inplace_op2(&gradient, &change)?;
    Ok(parameter.set(&whole)?)
}

/// candle lends a tensor's memory only to such operations.
struct InPlace<F>(RefCell<F>);

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
        let (CpuStorage::F32(parameter), CpuStorage::F32(gradient)) = (parameter, gradient) else {
            candle_core::bail!("adamw needs f32 parameters and gradients");
        };
        let parameter = range(parameter_layout).and_then(|range| parameter.get_mut(range));
        let gradient = range(gradient_layout).and_then(|range| gradient.get(range));
        match (parameter, gradient) {
            (Some(parameter), Some(gradient)) if parameter.len() == gradient.len() => {
                (self.0.borrow_mut())(parameter, gradient);
                Ok(())
            }
            _ => candle_core::bail!("adamw: a gradient of another shape than its parameter"),
        }
    }
}

fn range(layout: &Layout) -> Option<std::ops::Range<usize>> {
    layout.contiguous_offsets().map(|(start, end)| start..end)
}
