//! Provides products with the teacher's kept entries as a sparse matrix A `[M, V]`, row j from `starts[j]` to
//! `starts[j + 1]`: a row at a time on the host, all rows of a chunk on a device.

use candle_core::{DType, Device, Tensor};

use super::error::Result;
use super::targets::Targets;

/// Entries that a device works on at one time.
pub(crate) const TILE_ENTRIES: usize = 8_192;

/// `out_j = sum_v A_jv row_v`.
pub(crate) fn dots(row: &[f32], ids: &[u32], values: &[f32], starts: &[usize], out: &mut [f32]) {
    for (out, bounds) in out.iter_mut().zip(starts.windows(2)) {
        let entries = bounds[0]..bounds[1];
        let terms = ids[entries.clone()].iter().zip(&values[entries]);
        *out = terms.map(|(&id, value)| row[id as usize] * value).sum();
    }
}

/// `row_v += sum_j factor_j A_jv`.
pub(crate) fn add(row: &mut [f32], ids: &[u32], values: &[f32], starts: &[usize], factors: &[f32]) {
    for (factor, bounds) in factors.iter().zip(starts.windows(2)) {
        let entries = bounds[0]..bounds[1];
        for (&id, value) in ids[entries.clone()].iter().zip(&values[entries]) {
            row[id as usize] += factor * value;
        }
    }
}

/// A on a device, in tiles of entries.
pub(crate) struct DeviceEntries {
    tiles: Vec<EntryTile>,
}

/// Some of the entries of A.
struct EntryTile {
    /// Columns, `[e]`.
    ids: Tensor,
    /// Rows, `[e]`.
    rows: Tensor,
    /// `[e]`.
    values: Tensor,
}

impl DeviceEntries {
    /// The teacher's entries with one of `values` for each.
    pub(crate) fn new(targets: &Targets, values: &[f32], device: &Device) -> Result<Self> {
        let owners: Vec<u32> = (0..targets.rows())
            .flat_map(|j| std::iter::repeat_n(j as u32, targets.entries(j).len()))
            .collect();
        let tile = |start: usize| {
            let range = start..(start + TILE_ENTRIES).min(owners.len());
            let count = range.len();
            Ok(EntryTile {
                ids: Tensor::from_slice(&targets.ids[range.clone()], count, device)?,
                rows: Tensor::from_slice(&owners[range.clone()], count, device)?,
                values: Tensor::from_slice(&values[range], count, device)?,
            })
        };
        let tiles = (0..owners.len()).step_by(TILE_ENTRIES).map(tile);
        Ok(Self {
            tiles: tiles.collect::<Result<_>>()?,
        })
    }

    /// `A X` `[M, e]` from X `[V, e]` in any float dtype, in f32.
    pub(crate) fn times(&self, x: &Tensor, m: usize) -> Result<Tensor> {
        let mut sums = Tensor::zeros((m, x.dims2()?.1), DType::F32, x.device())?;
        for tile in &self.tiles {
            let rows = x.index_select(&tile.ids, 0)?.to_dtype(DType::F32)?;
            let rows = rows.broadcast_mul(&tile.values.unsqueeze(1)?)?;
            sums = sums.index_add(&tile.rows, &rows, 0)?;
        }
        Ok(sums)
    }

    /// `A^T G` `[V, e]` from G `[M, e]`.
    pub(crate) fn transposed_times(&self, g: &Tensor, vocab_size: usize) -> Result<Tensor> {
        let mut sums = Tensor::zeros((vocab_size, g.dims2()?.1), DType::F32, g.device())?;
        for tile in &self.tiles {
            let rows = g.index_select(&tile.rows, 0)?;
            let rows = rows.broadcast_mul(&tile.values.unsqueeze(1)?)?;
            sums = sums.index_add(&tile.ids, &rows, 0)?;
        }
        Ok(sums)
    }

    /// `X A^T` `[c, M]` from X `[c, V]`.
    pub(crate) fn dots(&self, x: &Tensor, m: usize) -> Result<Tensor> {
        let mut sums = Tensor::zeros((x.dims2()?.0, m), DType::F32, x.device())?;
        for tile in &self.tiles {
            let columns = x.index_select(&tile.ids, 1)?;
            let columns = columns.broadcast_mul(&tile.values.unsqueeze(0)?)?;
            sums = sums.index_add(&tile.rows, &columns, 1)?;
        }
        Ok(sums)
    }

    /// `F A` `[c, V]` from F `[c, M]`.
    pub(crate) fn sums(&self, factors: &Tensor, vocab_size: usize) -> Result<Tensor> {
        let mut sums = Tensor::zeros(
            (factors.dims2()?.0, vocab_size),
            DType::F32,
            factors.device(),
        )?;
        for tile in &self.tiles {
            let columns = factors.index_select(&tile.rows, 1)?;
            let columns = columns.broadcast_mul(&tile.values.unsqueeze(0)?)?;
            sums = sums.index_add(&tile.ids, &columns, 1)?;
        }
        Ok(sums)
    }
}
