//! Provides the tensors of a GGUF file by their Hugging Face names: in the file's blocks, dequantised, or as bytes.

use std::{collections::BTreeSet, ops::Range, path::Path};

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};

use super::header::Header;
use super::rows::{paired_heads, stored_row};
use super::{Gguf, names};
use crate::packed::{PackedMatrix, row_bytes, type_name, type_of};
use crate::{Error, Result, weights::SourceFile};

/// Types that files are published in and that are not read here, by ggml's numbers.
const OTHER_TYPES: [(u32, &str); 12] = [
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// Where a tensor is and what it is, checked against the file.
pub(super) struct StoredTensor {
    name: String,
    dtype: GgmlDType,
    shape: Vec<usize>,
    /// Of its first byte in the file.
    start: u64,
    /// Of each of its rows; a vector is one row.
    row_bytes: usize,
}

impl StoredTensor {
    /// The tensor that Hugging Face calls `name`: its type, shape and place, before anything is allocated for it.
    pub fn find(
        header: &Header,
        path: &Path,
        file_bytes: u64,
        name: &str,
        shape: &[usize],
    ) -> Result<Self> {
        let stored = names::stored_name(name);
        let found = stored.filter(|stored| header.tensors.contains_key(stored));
        let stored = found.ok_or_else(|| missing(path, name))?;
        Self::stored(header, path, file_bytes, &stored, shape)
    }

    /// The same of the tensor that llama.cpp calls `stored`.
    pub fn stored(
        header: &Header,
        path: &Path,
        file_bytes: u64,
        stored: &str,
        shape: &[usize],
    ) -> Result<Self> {
        let info = header.tensors.get(stored);
        let info = info.ok_or_else(|| missing(path, stored))?;
        let fault = |message: String| Error::tensor(path, stored, message);
        let expected = shape.iter().map(|size| *size as u64);
        if !expected.eq(info.shape.iter().copied()) {
            return Err(fault(format!(
                "has shape {:?}, but this file's metadata asks for {shape:?}; download it again",
                info.shape
            )));
        }
        let dtype = type_of(info.kind).ok_or_else(|| {
            let name = other_type(info.kind);
            fault(format!(
                "is stored as {name}, which is not read here; take the model in Q4_K_M, Q5_K_M, Q6_K, Q8_0 or BF16"
            ))
        })?;
        let columns = shape.last().copied().unwrap_or_default();
        let row_bytes = row_bytes(dtype, columns).ok_or_else(|| {
            fault(format!(
                "has rows of {columns}, which are no whole blocks of {} ({} each); download the file again",
                type_name(dtype),
                dtype.block_size()
            ))
        })?;
        let rows = shape.iter().rev().skip(1).product::<usize>();
        let bytes = rows.checked_mul(row_bytes).map(|bytes| bytes as u64);
        let start = header.data_start.checked_add(info.offset);
        let end = start.zip(bytes).and_then(|(a, b)| a.checked_add(b));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes => Ok(Self {
                dtype,
                shape: shape.to_vec(),
                start,
                row_bytes,
                name: stored.to_owned(),
            }),
            _ => Err(fault(format!(
                "needs bytes that are not in the file's {file_bytes}; it was cut off, download it again"
            ))),
        }
    }

    /// Refuses tensors that share bytes: no writer makes them, and one of the two would be read as what it is not.
    pub fn refuse_overlaps<'a>(tensors: impl Iterator<Item = &'a Self>, path: &Path) -> Result<()> {
        let mut tensors: Vec<&Self> = tensors.collect();
        tensors.sort_by_key(|tensor| tensor.start);
        for pair in tensors.windows(2) {
            if let [first, second] = pair
                && first.start + first.bytes() as u64 > second.start
            {
                let message = format!(
                    "begins inside tensor `{}`; the file is damaged, download it again",
                    first.name
                );
                return Err(Error::tensor(path, &second.name, message));
            }
        }
        Ok(())
    }

    /// llama.cpp's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or_default()
    }

    fn bytes(&self) -> usize {
        self.rows() * self.row_bytes
    }

    fn extent(&self) -> Range<u64> {
        self.start..self.start + self.bytes() as u64
    }

    /// The values of a small tensor that has to be f32.
    pub fn f32_values(&self, file: &SourceFile, path: &Path) -> Result<Vec<f32>> {
        if self.dtype != GgmlDType::F32 {
            let message = format!(
                "is stored as {}, where llama.cpp stores F32; convert the model with a current llama.cpp",
                type_name(self.dtype)
            );
            return Err(Error::tensor(path, &self.name, message));
        }
        let mut bytes = vec![0u8; self.bytes()];
        file.read(self.start, &mut bytes)?;
        let (values, _) = bytes.as_chunks::<4>();
        Ok(values.iter().copied().map(f32::from_le_bytes).collect())
    }
}

fn missing(path: &Path, tensor: &str) -> Error {
    Error::MissingTensor {
        path: path.to_owned(),
        tensor: tensor.to_owned(),
    }
}

impl Gguf {
    /// Hugging Face's names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.find(name)?.shape)
    }

    /// ggml's name of the type that a tensor is stored as, such as `Q4_K`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn type_name(&self, name: &str) -> Result<&'static str> {
        Ok(type_name(self.find(name)?.dtype))
    }

    /// Bytes that a tensor takes in the file, and in memory where it stays packed.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn stored_bytes(&self, name: &str) -> Result<u64> {
        Ok(self.find(name)?.bytes() as u64)
    }

    /// The types that matrices are stored as, those with most bytes first: `Q4_K, Q6_K`.
    pub fn quantisation(&self) -> String {
        let matrices = self.tensors.values().filter(|tensor| tensor.rows() > 1);
        let names: BTreeSet<_> = matrices
            .clone()
            .map(|tensor| type_name(tensor.dtype))
            .collect();
        let bytes = |name: &str| -> usize {
            let of_type = matrices.clone();
            let of_type = of_type.filter(|tensor| type_name(tensor.dtype) == name);
            of_type.map(StoredTensor::bytes).sum()
        };
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort_by_key(|name| std::cmp::Reverse(bytes(name)));
        names.join(", ")
    }

    /// A tensor by its Hugging Face name, dequantised to f32.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; a file that ends early.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let shape = self.shape(name)?;
        let matrix = self.matrix(name, &Device::Cpu)?;
        Ok(matrix
            .dequantize(DType::F32, &Device::Cpu)?
            .reshape(shape)?)
    }

    /// Whether a tensor is held as the file stores it: on a card matrices in blocks, on the CPU in half precision too.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn stays_packed(&self, name: &str, on_cpu: bool) -> Result<bool> {
        let stored = self.find(name)?;
        let plain = stored.dtype.block_size() == 1;
        let matrix = stored.shape.len() > 1;
        Ok(matrix && stored.dtype != GgmlDType::F32 && (on_cpu || !plain))
    }

    /// A tensor by its Hugging Face name, in the file's blocks; a vector as a matrix of one row.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn matrix(&self, name: &str, device: &Device) -> Result<PackedMatrix> {
        let stored = self.find(name)?;
        let read = || self.read_matrix(name, stored, device);
        self.file.unchanged(name, &stored.extent(), read)
    }

    /// llama.cpp stores the rows of Llama's q and k so that its rotation takes neighbours; they are put back in order here.
    fn read_matrix(
        &self,
        name: &str,
        stored: &StoredTensor,
        device: &Device,
    ) -> Result<PackedMatrix> {
        let shape = (stored.rows(), stored.columns());
        let Some(heads) = paired_heads(&self.config, name) else {
            return PackedMatrix::read(stored.dtype, shape, device, |rows, out| {
                let start = stored.start + (rows.start * stored.row_bytes) as u64;
                self.file.read(start, out)
            });
        };
        let paired = self.file.read_range(&stored.extent())?;
        PackedMatrix::read(stored.dtype, shape, device, |rows, out| {
            for (row, out) in rows.zip(out.chunks_exact_mut(stored.row_bytes)) {
                let from = stored_row(row, stored.rows(), heads);
                let bytes = row_range(from, stored.row_bytes);
                out.copy_from_slice(paired.get(bytes).unwrap_or_default());
            }
            Ok(())
        })
    }

    /// The open file.
    pub(crate) fn file(&self) -> &SourceFile {
        &self.file
    }

    /// Where in the file a tensor lies.
    pub(crate) fn extent(&self, name: &str) -> Result<Range<u64>> {
        Ok(self.find(name)?.extent())
    }

    fn find(&self, name: &str) -> Result<&StoredTensor> {
        self.tensors
            .get(name)
            .ok_or_else(|| missing(&self.path, name))
    }
}

/// What ggml calls a type that is not read here.
fn other_type(kind: u32) -> String {
    let known = OTHER_TYPES.iter().find(|(number, _)| *number == kind);
    known.map_or_else(|| format!("type {kind}"), |(_, name)| (*name).to_owned())
}

fn row_range(row: usize, row_bytes: usize) -> Range<usize> {
    row * row_bytes..(row + 1) * row_bytes
}
