//! Provides a call's arguments as a kernel's parameters read them: the same on a card and in the emulator.

use candle_core::{DType, Result, bail};

use crate::Call;
use crate::argument::{Argument, Part};
use crate::call::{float_code, type_code};

/// Where a buffer of the run lies.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    pub(crate) pointer: u64,
    /// In elements.
    pub(crate) len: usize,
    pub(crate) dtype: DType,
}

/// The bytes of a parameter: address, length and type of a buffer, or a number in the first of them. Cards and their hosts are
/// little-endian.
pub(crate) type Words = [u64; 3];

/// A row of a table, as prelude.cuh's `Record` has it.
pub(crate) type Record = [u64; 4];

/// A call's arguments, all but the address of the run's records.
pub(crate) struct Arguments {
    words: Vec<Words>,
    /// Which of them are tables: these begin with how many bytes lie before theirs.
    tables: Vec<usize>,
}

impl Arguments {
    /// Lays a call's arguments out, with what its tables hold appended to `records`.
    ///
    /// # Errors
    /// When there is no such buffer, or it is too short or of another type than the argument.
    pub(crate) fn of(
        call: &Call,
        find: &mut dyn FnMut(usize) -> Result<Region>,
        records: &mut Vec<Record>,
    ) -> Result<Self> {
        let mut tables = Vec::new();
        let mut words = Vec::with_capacity(call.arguments.len());
        for argument in &call.arguments {
            let mut table = |parts: &[Part], dtype: Option<DType>| {
                let before = size_of_val(records.as_slice());
                for part in parts {
                    let [pointer, len, code] = buffer(call, *part, dtype, find)?;
                    records.push([pointer, len, code, 0]);
                }
                tables.push(words.len());
                Ok::<_, candle_core::Error>([before as u64, parts.len() as u64, 0])
            };
            let laid_out = match argument {
                Argument::Floats(index) => buffer(call, Part::whole(*index), None, find)?,
                Argument::Buffer(index, dtype) => {
                    buffer(call, Part::whole(*index), Some(*dtype), find)?
                }
                Argument::FloatsTable(parts) => table(parts, None)?,
                Argument::Table(parts, dtype) => table(parts, Some(*dtype))?,
                Argument::Long(value) => [*value as u64, 0, 0],
                Argument::Int(value) => [u64::from(*value as u32), 0, 0],
                Argument::Float(value) => [value.to_bits().into(), 0, 0],
            };
            words.push(laid_out);
        }
        Ok(Self { words, tables })
    }

    /// The arguments, where the run's records lie at `records`.
    pub(crate) fn at(mut self, records: u64) -> Vec<Words> {
        for table in self.tables {
            self.words[table][0] += records;
        }
        self.words
    }
}

/// A part of a buffer, of exactly this type or of any floats.
fn buffer(
    call: &Call,
    part: Part,
    dtype: Option<DType>,
    find: &mut dyn FnMut(usize) -> Result<Region>,
) -> Result<Words> {
    let Part { buffer, elements } = part;
    let held = find(buffer)?;
    let (start, len) = elements.unwrap_or((0, held.len));
    if start.checked_add(len).is_none_or(|end| end > held.len) {
        bail!(
            "{}: {len} elements of buffer {buffer} from {start} on, which has {}",
            call.function,
            held.len
        );
    }
    let code = match dtype {
        None => float_code(held.dtype)?,
        Some(dtype) if dtype == held.dtype => type_code(dtype)?,
        Some(dtype) => bail!(
            "{}: buffer {buffer} holds {:?}, not {dtype:?}",
            call.function,
            held.dtype
        ),
    };
    let pointer = held.pointer + (start * held.dtype.size_in_bytes()) as u64;
    Ok([pointer, len as u64, code as u64])
}
