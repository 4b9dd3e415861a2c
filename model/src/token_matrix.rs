//! Provides the matrices with one row a token, embedding and head: dense, or packed and dequantised by the row.

use std::ops::Range;

use candle_core::{DType, Device, Tensor, Var};

use crate::layer::load_parameter;
use crate::{Base, Error, LoadOptions, PackedMatrix, Parameter, Result, Weights};

/// A matrix [V, d] with one row a token.
#[derive(Clone, Debug)]
pub enum TokenMatrix {
    /// One tensor, in the model's type or trained.
    Dense(Parameter),
    /// Frozen, in the blocks of a GGUF file.
    Packed(PackedMatrix),
}

impl TokenMatrix {
    /// Reads `name` [V, d]; where it is packed, to `device`.
    ///
    /// # Errors
    /// When the tensor is missing or has another shape.
    pub(crate) fn load(
        weights: &Weights,
        name: &str,
        shape: &[usize; 2],
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self> {
        if options.base != Base::Trainable
            && let Some(matrix) = weights.packed(name, device)?
        {
            let found = [matrix.rows(), matrix.columns()];
            if found != *shape {
                let what = format!("tensor `{name}` beside this file's metadata");
                return Err(Error::shape(what, shape, &found));
            }
            return Ok(Self::Packed(matrix));
        }
        load_parameter(weights, name, shape, options).map(Self::Dense)
    }

    /// V.
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(parameter) => parameter.tensor().dims().first().copied().unwrap_or(0),
            Self::Packed(matrix) => matrix.rows(),
        }
    }

    /// d.
    pub fn columns(&self) -> usize {
        match self {
            Self::Dense(parameter) => parameter.tensor().dims().last().copied().unwrap_or(0),
            Self::Packed(matrix) => matrix.columns(),
        }
    }

    /// The first `rows` rows, frozen, sharing the values.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn narrow(&self, rows: usize) -> Result<Self> {
        Ok(match self {
            Self::Dense(parameter) => {
                let rows = parameter.tensor().narrow(0, 0, rows)?.detach();
                Self::Dense(Parameter::Frozen(rows))
            }
            Self::Packed(matrix) => Self::Packed(matrix.narrow(rows)?),
        })
    }

    /// The dense tensor.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the matrix is packed.
    pub fn tensor(&self) -> Result<&Tensor> {
        match self {
            Self::Dense(parameter) => Ok(parameter.tensor()),
            Self::Packed(matrix) => Err(Error::Unsupported {
                what: format!("a dense head from a matrix in blocks of {}", matrix.type_name()),
                remedy: "convert the file with `student-trainer quantize`, or take the model's own checkpoint".into(),
            }),
        }
    }

    /// Some rows, f32 on the CPU.
    ///
    /// # Shapes
    /// [rows.len(), d]
    ///
    /// # Errors
    /// When the rows are outside the matrix.
    pub fn values(&self, rows: Range<usize>) -> Result<Tensor> {
        match self {
            Self::Dense(parameter) => {
                let part = parameter.tensor().narrow(0, rows.start, rows.len())?;
                Ok(part.to_dtype(DType::F32)?.to_device(&Device::Cpu)?)
            }
            Self::Packed(matrix) => {
                let shape = (rows.len(), matrix.columns());
                let mut values = vec![0f32; shape.0 * shape.1];
                matrix.dequantize_rows(rows, &mut values)?;
                Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
            }
        }
    }

    /// The rows of `ids` [n], f32: [n, d] where the matrix is, or where the ids are.
    ///
    /// # Errors
    /// When an id is no row.
    pub(crate) fn lookup(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(parameter) => {
                let matrix = parameter.tensor();
                let rows = matrix.index_select(&ids.to_device(matrix.device())?, 0)?;
                Ok(rows.to_dtype(DType::F32)?)
            }
            Self::Packed(matrix) => matrix.lookup(ids),
        }
    }

    /// The variable, when the matrix is trained.
    pub(crate) fn var(&self) -> Option<&Var> {
        match self {
            Self::Dense(parameter) => parameter.var(),
            Self::Packed(_) => None,
        }
    }

    /// Memory taken, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Dense(parameter) => parameter.bytes(),
            Self::Packed(matrix) => matrix.bytes(),
        }
    }
}
