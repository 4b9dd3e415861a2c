//! Provides what a cache holds for all of its frames: the vocabulary, the matrix behind `state`, and a sketch's projection.

use candle_core::{DType, Device, Tensor};
use distill_proto::{Fingerprint, v1};
use distill_text::{Token, Vocabulary};
use half::f16;

use super::{Cache, SEGMENTS, files::Files, sealed, storage::Storage};
use crate::{Error, Result, basis::Basis, vocabulary};

pub(super) const VOCABULARY: &str = "vocabulary";
pub(super) const PROJECTION: &str = "projection";
pub(super) const BASIS: &str = "basis";
/// Bytes of a piece of the basis, about.
const BASIS_PIECE_BYTES: usize = 32 << 20;

/// What a cache is made with, beside its header.
pub struct Matrices<'a> {
    /// Takes coordinates to centred logits.
    pub basis: Option<&'a Basis>,
    /// Takes a hidden state to its coordinates in a sketch, `[D, R]` f32.
    pub projection: Option<&'a Tensor>,
    /// The bytes behind every id.
    pub vocabulary: &'a Vocabulary,
}

impl Matrices<'_> {
    /// Writes them; gives the number of the basis' pieces.
    pub(super) fn put(&self, storage: &Storage) -> Result<u32> {
        let chunks = vocabulary::chunks(self.vocabulary).collect();
        sealed::put(storage, VOCABULARY, &v1::CacheVocabulary { chunks })?;
        if let Some(projection) = self.projection {
            sealed::put_bytes(storage, PROJECTION, projection_bytes(projection)?)?;
        }
        self.basis.map_or(Ok(0), |basis| put_basis(storage, basis))
    }
}

impl Cache {
    /// The bytes behind every id.
    ///
    /// # Errors
    /// `Cache` where they are missing or damaged.
    pub fn vocabulary(&self) -> Result<Vocabulary> {
        let found = sealed::get::<v1::CacheVocabulary>(&self.storage, VOCABULARY)?;
        let message = found.ok_or_else(|| self.lacks(VOCABULARY))?;
        let mut vocabulary = Vocabulary {
            tokens: Vec::new(),
            eos_id: None,
        };
        for chunk in message.chunks {
            vocabulary.eos_id = chunk.eos_id;
            let tokens = chunk.tokens.into_iter().zip(chunk.special);
            vocabulary.tokens.extend(tokens.map(|(bytes, special)| {
                (!bytes.is_empty()).then(|| Token {
                    bytes: bytes.into(),
                    special,
                })
            }));
        }
        Ok(vocabulary)
    }

    /// Takes a hidden state to its coordinates in a sketch, `[D, R]` f32; `None` where there is no sketch.
    ///
    /// # Errors
    /// `Cache` where it is damaged.
    pub fn projection(&self) -> Result<Option<Tensor>> {
        let Some(bytes) = sealed::get_bytes(&self.storage, PROJECTION)? else {
            return Ok(None);
        };
        let shape = (
            self.info.hidden_size as usize,
            self.info.state_rank as usize,
        );
        let values: Vec<f32> = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        if values.len() != shape.0 * shape.1 {
            return Err(self.lacks(PROJECTION));
        }
        Ok(Some(Tensor::from_vec(values, shape, &Device::Cpu)?))
    }

    /// The matrix behind `state`; `None` where there is none.
    ///
    /// # Errors
    /// `Cache` where a piece is missing or damaged.
    pub fn basis(&self) -> Result<Option<Basis>> {
        if self.header.basis_pieces == 0 {
            return Ok(None);
        }
        let mut pieces = Vec::new();
        let rank = self.info.state_rank as usize;
        for number in 0..self.header.basis_pieces {
            let name = basis_name(number);
            let bytes = sealed::get_bytes(&self.storage, &name)?;
            let bytes = bytes.ok_or_else(|| self.lacks(&name))?;
            let values: Vec<f16> = bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|bytes| f16::from_le_bytes(*bytes))
                .collect();
            let rows = values.len() / rank.max(1);
            pieces.push(Tensor::from_vec(values, (rows, rank), &Device::Cpu)?);
        }
        let basis = Tensor::cat(&pieces, 0)?;
        if basis.dim(0)? != self.info.effective_vocab_size as usize {
            return Err(self.lacks(BASIS));
        }
        Ok(Some(Basis::stored(basis.to_dtype(DType::F16)?)?))
    }

    fn lacks(&self, name: &str) -> Error {
        Error::cache(
            &self.path,
            format!(
                "`{name}` is missing or has another size; bring it back from a copy, or start a new cache"
            ),
        )
    }
}

/// Names a sketch's directions, on which every coordinate depends.
///
/// # Errors
/// What the tensor library says.
pub fn projection_digest(projection: &Tensor) -> Result<Fingerprint> {
    Ok(Fingerprint::of(&projection_bytes(projection)?))
}

/// The projection as it is written, f32, row-major, little-endian.
fn projection_bytes(projection: &Tensor) -> Result<Vec<u8>> {
    let values = projection.flatten_all()?.to_vec1::<f32>()?;
    Ok(values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect())
}

pub(super) fn basis_name(number: u32) -> String {
    format!("{BASIS}/{number:05}")
}

/// Writes the basis in pieces; gives how many there are.
fn put_basis(storage: &Storage, basis: &Basis) -> Result<u32> {
    let mut number = 0;
    let mut piece = Vec::new();
    for rows in basis.chunks() {
        piece.extend_from_slice(&basis.bytes(rows.clone())?);
        if piece.len() >= BASIS_PIECE_BYTES || rows.end == basis.rows() {
            sealed::put_bytes(storage, &basis_name(number), std::mem::take(&mut piece))?;
            number += 1;
        }
    }
    Ok(number)
}

/// Removes what an earlier attempt at making a cache left before it came to the header; where others write too, it may be theirs.
pub(super) fn remove_leftovers(files: &dyn Files) -> Result<()> {
    if files.is_shared() {
        return Ok(());
    }
    for directory in [BASIS, SEGMENTS] {
        for name in files.list(directory)? {
            files.remove(&format!("{directory}/{name}"))?;
        }
    }
    for name in [VOCABULARY, PROJECTION] {
        files.remove(name)?;
    }
    Ok(())
}
