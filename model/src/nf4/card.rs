//! Provides a 4-bit matrix in a card's memory: packed as on the host, unpacked into scratch for one product.

use std::sync::{Arc, OnceLock};

use super::{Nf4Matrix, Rounding, Scales};
use candle_core::{DType, Device, Result, Tensor, bail};
use distill_kernels::nf4;

/// Copies of a matrix's parts on one card; empty until they are needed.
pub(super) type Resident = OnceLock<Arc<[Tensor]>>;

impl Nf4Matrix {
    /// Copies codes and scales to `device` where that is a card: 4.13 bits an element with double quantisation.
    ///
    /// # Errors
    /// When the card has no room, or the matrix lies on another card already.
    pub(crate) fn place(&self, device: &Device) -> Result<()> {
        if device.is_cuda() {
            self.parts_on(device)?;
        }
        Ok(())
    }

    /// Codes and scales on a device, in the order that [`packed`](Self::packed) names them in.
    pub(crate) fn parts_on(&self, device: &Device) -> Result<&[Tensor]> {
        let parts = match self.resident.get() {
            Some(parts) => parts,
            None => {
                let parts = self.parts(device)?.into();
                self.resident.get_or_init(|| parts)
            }
        };
        if !parts.iter().all(|part| part.device().same_device(device)) {
            bail!("a 4-bit matrix was placed on another device than the one it is used on");
        }
        Ok(parts)
    }

    /// The parts in the order that [`packed`](Self::packed) names them in.
    pub(crate) fn parts(&self, device: &Device) -> Result<Vec<Tensor>> {
        let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), device);
        let bytes = |values: &[u8]| Tensor::from_slice(values, values.len(), device);
        let mut parts = vec![bytes(&self.codes)?, tensor(self.quant_type.table())?];
        match &self.scales {
            Scales::Plain(absmax) => parts.push(tensor(absmax)?),
            Scales::Nested(nested) => parts.extend([
                bytes(&nested.codes)?,
                tensor(&nested.map)?,
                tensor(&nested.absmax)?,
            ]),
        }
        Ok(parts)
    }

    /// The matrix as a kernel takes it, its parts being the buffers `parts`.
    pub(crate) fn packed(&self, parts: &[usize]) -> nf4::Packed {
        let scales = match &self.scales {
            Scales::Plain(_) => nf4::Scales::Plain(parts[2]),
            Scales::Nested(nested) => nf4::Scales::Nested {
                codes: parts[2],
                map: parts[3],
                absmax: parts[4],
                block_size: nested.block_size,
                offset: nested.offset,
            },
        };
        nf4::Packed {
            codes: parts[0],
            table: parts[1],
            scales,
            block_size: self.block_size,
            rounding: match self.rounding {
                Rounding::F32 => DType::F32,
                Rounding::BF16 => DType::BF16,
                Rounding::F16 => DType::F16,
            },
            kind: self.quant_type as u8,
            len: self.rows * self.columns,
        }
    }
}
