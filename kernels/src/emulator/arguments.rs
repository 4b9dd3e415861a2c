//! Provides a call's arguments as a compiled kernel takes them, each checked against its parameter.

use candle_core::{DType, Result, bail};

use super::Memory;
use crate::Call;
use crate::call::{Argument, float_code, type_code};

/// A parameter as `module.hpp` describes it.
#[repr(C)]
pub(super) struct Parameter {
    offset: u32,
    size: u32,
    kind: u32,
    element: u32,
    readonly: u32,
    arithmetic: u32,
}

// The values of `kind` and of `arithmetic` there.
const NUMBER: u32 = 0;
const BUFFER: u32 = 2;
const FLOATS: u32 = 3;
const FLOAT: u32 = 1;
const SIGNED: u32 = 2;
const UNSIGNED: u32 = 3;

/// The bytes of an argument, as a parameter of its type has them.
pub(super) type RawArgument = [u64; 3];

impl Parameter {
    /// Whether it is of exactly the argument's type.
    fn takes(&self, argument: &Argument) -> bool {
        let (kind, bytes, arithmetic) = match argument {
            Argument::Floats(_) => return self.kind == FLOATS,
            Argument::Buffer(_, DType::U8) => (BUFFER, 1, UNSIGNED),
            Argument::Buffer(_, DType::U32) => (BUFFER, 4, UNSIGNED),
            Argument::Buffer(_, DType::I64) => (BUFFER, 8, SIGNED),
            Argument::Buffer(_, DType::F32) => (BUFFER, 4, FLOAT),
            Argument::Buffer(_, DType::F64) => (BUFFER, 8, FLOAT),
            Argument::Buffer(..) => return false,
            Argument::Long(_) => (NUMBER, 8, SIGNED),
            Argument::Int(_) => (NUMBER, 4, SIGNED),
            Argument::Float(_) => (NUMBER, 4, FLOAT),
        };
        let own = if kind == BUFFER {
            self.element
        } else {
            self.size
        };
        (self.kind, own, self.arithmetic) == (kind, bytes, arithmetic)
    }
}

/// Whether the call's arguments are as many as the parameters, and of their types.
pub(super) fn fit(call: &Call, parameters: &[Parameter]) -> bool {
    let mut pairs = call.arguments.iter().zip(parameters);
    call.arguments.len() == parameters.len()
        && pairs.all(|(argument, parameter)| parameter.takes(argument))
}

/// The call's arguments, pointing into the buffers.
pub(super) fn raw_arguments(memory: &mut Memory, call: &Call) -> Result<Vec<RawArgument>> {
    let raw = |argument: &Argument| {
        Ok(match *argument {
            Argument::Floats(index) => {
                let (region, address) = memory.expose(index)?;
                [address, region.len as u64, float_code(region.dtype)? as u64]
            }
            Argument::Buffer(index, dtype) => {
                type_code(dtype)?;
                let (region, address) = memory.expose(index)?;
                if region.dtype != dtype {
                    bail!(
                        "{}: buffer {index} holds {:?}, not {dtype:?}",
                        call.function,
                        region.dtype
                    );
                }
                [address, region.len as u64, 0]
            }
            Argument::Long(value) => [value as u64, 0, 0],
            Argument::Int(value) => [u64::from(value as u32), 0, 0],
            Argument::Float(value) => [value.to_bits().into(), 0, 0],
        })
    };
    call.arguments.iter().map(raw).collect()
}
