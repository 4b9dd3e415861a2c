//! Provides the check that a call's arguments are of a compiled kernel's parameters' types.

use candle_core::DType;

use crate::Call;
use crate::argument::Argument;

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
const TABLE: u32 = 4;
const FLOATS_TABLE: u32 = 5;
const FLOAT: u32 = 1;
const SIGNED: u32 = 2;
const UNSIGNED: u32 = 3;

impl Parameter {
    /// Whether it is of exactly the argument's type.
    fn takes(&self, argument: &Argument) -> bool {
        let number = |bytes, arithmetic| {
            (self.kind, self.size, self.arithmetic) == (NUMBER, bytes, arithmetic)
        };
        match argument {
            Argument::Floats(_) => self.kind == FLOATS,
            Argument::FloatsTable(_) => self.kind == FLOATS_TABLE,
            Argument::Buffer(_, dtype) => self.kind == BUFFER && self.holds(*dtype),
            Argument::Table(_, dtype) => self.kind == TABLE && self.holds(*dtype),
            Argument::Long(_) => number(8, SIGNED),
            Argument::Int(_) => number(4, SIGNED),
            Argument::Float(_) => number(4, FLOAT),
        }
    }

    fn holds(&self, dtype: DType) -> bool {
        let element = match dtype {
            DType::U8 => (1, UNSIGNED),
            DType::U32 => (4, UNSIGNED),
            DType::I64 => (8, SIGNED),
            DType::F32 => (4, FLOAT),
            DType::F64 => (8, FLOAT),
            _ => return false,
        };
        (self.element, self.arithmetic) == element
    }
}

/// Whether the call's arguments are as many as the parameters, and of their types.
pub(super) fn fit(call: &Call, parameters: &[Parameter]) -> bool {
    let mut pairs = call.arguments.iter().zip(parameters);
    call.arguments.len() == parameters.len()
        && pairs.all(|(argument, parameter)| parameter.takes(argument))
}
