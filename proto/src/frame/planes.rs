//! Provides byte planes: the k-th bytes of all numbers side by side, so that zstd sees like beside like.

use crate::{Error, Result, numbers::low_byte};

/// Writes `values` as `width` planes, lowest byte first.
pub(super) fn write_planes(
    out: &mut Vec<u8>,
    values: impl Iterator<Item = u32> + Clone,
    width: u32,
) {
    for plane in 0..width {
        out.extend(values.clone().map(|value| low_byte(value >> (8 * plane))));
    }
}

/// Reads bytes in order; every shortage is an error that names the part.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    /// Frame index for error messages.
    pub index: u64,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8], index: u64) -> Self {
        Self { bytes, index }
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub fn take(&mut self, what: &'static str, count: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(count).ok_or(Error::Length {
            index: self.index,
            what,
            needed: count as u64,
            available: self.bytes.len() as u64,
        })?;
        self.bytes = tail;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let available = self.bytes.len() as u64;
        let short = Error::Length {
            index: self.index,
            what,
            needed: N as u64,
            available,
        };
        let (head, tail) = self.bytes.split_first_chunk::<N>().ok_or(short)?;
        self.bytes = tail;
        Ok(*head)
    }

    pub fn u32s<const N: usize>(&mut self, what: &'static str) -> Result<[u32; N]> {
        let mut values = [0; N];
        for value in &mut values {
            *value = u32::from_le_bytes(self.array(what)?);
        }
        Ok(values)
    }

    /// `count` numbers from `width` planes.
    pub fn planes(&mut self, what: &'static str, count: usize, width: u32) -> Result<Vec<u32>> {
        let bytes = self.take(what, count.saturating_mul(width as usize))?;
        let mut values = vec![0u32; count];
        for (plane, part) in bytes.chunks_exact(count.max(1)).enumerate() {
            for (value, &byte) in values.iter_mut().zip(part) {
                *value |= u32::from(byte) << (8 * plane);
            }
        }
        Ok(values)
    }

    /// `count` f32 from four planes.
    pub fn floats(&mut self, what: &'static str, count: usize) -> Result<Vec<f32>> {
        Ok(self
            .planes(what, count, 4)?
            .into_iter()
            .map(f32::from_bits)
            .collect())
    }
}
