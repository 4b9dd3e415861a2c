//! Provides moments on a card, in f32 or in 8 bits, and the update of all parameters there by one launch for each kind: the bits are
//! those of the host's update.

use candle_core::{DType, Tensor, Var, bail};
use distill_kernels::update::{AdamW, Slot};
use distill_kernels::{Call, Change, device};

use super::{
    adamw::Step,
    blockwise::{BLOCK, DynamicMap},
    moments::{ABSMAX, FIRST, SECOND},
};
use crate::{Error, Result};

/// Moments of one parameter: each `[elements]`, and changed where it is.
#[derive(Clone)]
pub(super) enum CardMoments {
    /// The first and the second.
    Floats([Tensor; 2]),
    /// Codes of the first, their scales `[blocks]`, and the same of the second.
    Codes([Tensor; 4]),
}

impl CardMoments {
    /// Moments of zero.
    pub fn new(parameter: &Var, in_8_bits: bool) -> Result<Self> {
        let (count, device) = (parameter.elem_count(), parameter.device());
        let zeros = |count: usize| Tensor::zeros(count, DType::F32, device);
        if !in_8_bits {
            return Ok(Self::Floats([zeros(count)?, zeros(count)?]));
        }
        let codes = |map: &DynamicMap| Tensor::full(map.code(0.0), count, device);
        let scales = || zeros(count.div_ceil(BLOCK));
        let [first, second] = [DynamicMap::signed(), DynamicMap::unsigned()].map(codes);
        Ok(Self::Codes([first?, scales()?, second?, scales()?]))
    }

    fn all(&self) -> &[Tensor] {
        match self {
            Self::Floats(moments) => moments,
            Self::Codes(moments) => moments,
        }
    }

    /// Each tensor with the moment that it is of, and what is appended to that one's name. They are the moments themselves: the next
    /// update changes them.
    pub fn tensors(&self) -> Vec<(&'static str, &'static str, &Tensor)> {
        match self {
            Self::Floats([first, second]) => vec![(FIRST, "", first), (SECOND, "", second)],
            Self::Codes([first, first_scales, second, second_scales]) => vec![
                (FIRST, "", first),
                (FIRST, ABSMAX, first_scales),
                (SECOND, "", second),
                (SECOND, ABSMAX, second_scales),
            ],
        }
    }

    /// Moments of the same form, of other tensors.
    pub fn map(&self, other: impl Fn(&str, &str, &Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::Floats([first, second]) => {
                Self::Floats([other(FIRST, "", first)?, other(SECOND, "", second)?])
            }
            Self::Codes([first, first_scales, second, second_scales]) => Self::Codes([
                other(FIRST, "", first)?,
                other(FIRST, ABSMAX, first_scales)?,
                other(SECOND, "", second)?,
                other(SECOND, ABSMAX, second_scales)?,
            ]),
        })
    }

    /// Memory that they take.
    pub fn bytes(&self) -> usize {
        let tensors = self.all().iter();
        tensors
            .map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes())
            .sum()
    }
}

/// What updates on a card need beside parameters, gradients and moments.
pub(super) struct CardUpdates {
    change: Change,
    /// What the codes stand for, once it was needed; see [`AdamW::update_8bit`].
    maps: Option<Tensor>,
}

/// One parameter's update.
struct Queued<'a> {
    parameter: &'a Var,
    gradient: Tensor,
    moments: &'a CardMoments,
    numbers: AdamW,
}

/// Updates that are to be run together.
#[derive(Default)]
pub(super) struct Queue<'a>(Vec<Queued<'a>>);

impl<'a> Queue<'a> {
    /// Adds the update of `parameter` and of its moments.
    pub fn push(
        &mut self,
        parameter: &'a Var,
        gradient: &Tensor,
        moments: &'a CardMoments,
        step: &Step,
    ) -> Result<()> {
        if gradient.elem_count() != parameter.elem_count() {
            return Err(Error::Config(format!(
                "adamw: a gradient {:?} of a parameter {:?}",
                gradient.shape(),
                parameter.shape()
            )));
        }
        self.0.push(Queued {
            parameter,
            gradient: gradient.contiguous()?,
            moments,
            numbers: step.numbers(),
        });
        Ok(())
    }

    fn has_codes(&self) -> bool {
        let mut moments = self.0.iter().map(|update| update.moments);
        moments.any(|moments| matches!(moments, CardMoments::Codes(_)))
    }
}

impl CardUpdates {
    /// By the card's kernels.
    pub fn new() -> Self {
        Self::by(device::CHANGE)
    }

    fn by(change: Change) -> Self {
        Self { change, maps: None }
    }

    /// Runs all updates: a launch for each kind of moments and each set of numbers, of which there are as many as groups of parameters.
    pub fn run<'a>(&mut self, queue: &'a Queue<'a>) -> Result<()> {
        let updates = &queue.0;
        let Some(first) = updates.first() else {
            return Ok(());
        };
        if self.maps.is_none() && queue.has_codes() {
            self.maps = Some(maps(first.parameter)?);
        }
        let held = |update: &'a Queued<'a>| {
            std::iter::once(update.parameter.as_tensor()).chain(update.moments.all())
        };
        let changed: Vec<&Tensor> = updates.iter().flat_map(held).collect();
        let inputs = updates.iter().map(|update| &update.gradient);
        let inputs: Vec<&Tensor> = inputs.chain(&self.maps).collect();
        Ok((self.change)(&changed, &inputs, &|changed, inputs| {
            calls(updates, changed, inputs)
        })?)
    }
}

/// What codes stand for, and the middles between them: of the first moment, and of the second.
fn maps(parameter: &Var) -> Result<Tensor> {
    let maps = [DynamicMap::signed(), DynamicMap::unsigned()];
    let tables: Vec<f32> = maps.iter().flat_map(|map| map.tables()).collect();
    Ok(Tensor::from_slice(
        &tables,
        tables.len(),
        parameter.device(),
    )?)
}

/// Parameters whose updates have the same numbers.
struct Group {
    numbers: AdamW,
    floats: Vec<Slot<4>>,
    codes: Vec<Slot<6>>,
}

/// The launches. `changed` are of each update the parameter and its moments; `inputs` the gradients, and the maps where there are codes.
fn calls(
    updates: &[Queued],
    mut changed: &[usize],
    inputs: &[usize],
) -> candle_core::Result<Vec<Call>> {
    let mut groups: Vec<Group> = Vec::new();
    for (update, &gradient) in updates.iter().zip(inputs) {
        let numbers = update.numbers;
        let known = groups.iter().position(|group| group.numbers == numbers);
        let group = known.unwrap_or_else(|| {
            groups.push(Group {
                numbers,
                floats: Vec::new(),
                codes: Vec::new(),
            });
            groups.len() - 1
        });
        let group = &mut groups[group];
        let len = update.parameter.elem_count();
        let (own, others) = changed.split_at(1 + update.moments.all().len());
        changed = others;
        match *own {
            [parameter, first, second] => group.floats.push(Slot {
                buffers: [parameter, gradient, first, second],
                len,
            }),
            [parameter, first, first_scales, second, second_scales] => group.codes.push(Slot {
                buffers: [
                    parameter,
                    gradient,
                    first,
                    first_scales,
                    second,
                    second_scales,
                ],
                len,
            }),
            _ => bail!("{} buffers of a parameter and its moments", own.len()),
        }
    }
    let mut calls = Vec::new();
    for group in groups {
        calls.extend(group.numbers.update(&group.floats)?);
        if let Some(&maps) = inputs.get(updates.len()) {
            calls.extend(group.numbers.update_8bit(&group.codes, maps)?);
        }
    }
    Ok(calls)
}

#[cfg(test)]
#[path = "card_tests.rs"]
mod tests;
