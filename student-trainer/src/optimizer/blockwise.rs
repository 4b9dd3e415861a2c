//! Provides values kept in 8 bits each: block-wise dynamic quantisation, as bitsandbytes keeps an optimiser's moments.
//!
//! A block of 256 values is stored as its largest magnitude (f32) and, for each value, the number of the nearest entry of a
//! *dynamic map* of 256 numbers in -1..=1 (Dettmers, "8-bit approximations for parallelism in deep learning"): seven
//! decades, each divided evenly, and ten times more finely near 1 than near 0.

use std::sync::OnceLock;

use rayon::prelude::*;

/// Values of one block.
pub(super) const BLOCK: usize = distill_kernels::update::MOMENTS_A_SCALE;

/// Decades below 1 that a map spans.
const DECADES: u32 = 7;

/// The sorted numbers that codes stand for, and the way back.
pub(super) struct DynamicMap {
    values: Vec<f32>,
    /// The middles between neighbours: a value gets the number of middles below it as its code.
    middles: Vec<f32>,
    /// For the upper half of an f32's bits, the code of the least value that begins so.
    least: Vec<u8>,
}

impl DynamicMap {
    /// The map of values of either sign.
    pub fn signed() -> &'static Self {
        static MAP: OnceLock<DynamicMap> = OnceLock::new();
        MAP.get_or_init(|| Self::new(true))
    }

    /// The map of values of at least zero, twice as fine.
    pub fn unsigned() -> &'static Self {
        static MAP: OnceLock<DynamicMap> = OnceLock::new();
        MAP.get_or_init(|| Self::new(false))
    }

    fn new(signed: bool) -> Self {
        let mut values = vec![0.0, 1.0];
        for decade in 0..DECADES {
            let parts = (1usize << decade) << usize::from(!signed);
            let size = 10f64.powi(decade as i32 + 1 - DECADES as i32) as f32;
            for middle in middles(&evenly(0.1, 1.0, parts + 1)) {
                values.push(size * middle);
                if signed {
                    values.push(-size * middle);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let middles = middles(&values);
        let least = (0..=u16::MAX).map(|upper| {
            // Of a negative number, larger bits mean a smaller value.
            let lower = if upper >> 15 == 1 { u16::MAX } else { 0 };
            let least = f32::from_bits(u32::from(upper) << 16 | u32::from(lower));
            middles.partition_point(|&middle| middle < least) as u8
        });
        Self {
            least: least.collect(),
            values,
            middles,
        }
    }

    /// The numbers that codes stand for, and the middles between neighbours with an infinity after them.
    pub fn tables(&self) -> impl Iterator<Item = f32> {
        let middles = self.middles.iter().copied().chain([f32::INFINITY]);
        self.values.iter().copied().chain(middles)
    }

    /// The code of a value in -1..=1.
    #[inline]
    pub fn code(&self, value: f32) -> u8 {
        let mut code = self.least[(value.to_bits() >> 16) as usize];
        while let Some(middle) = self.middles.get(usize::from(code))
            && *middle < value
        {
            code += 1;
        }
        code
    }

    /// The values of one block.
    #[inline]
    pub fn dequantize(&self, codes: &[u8], absmax: f32, values: &mut [f32]) {
        for (value, &code) in values.iter_mut().zip(codes) {
            *value = self.values[usize::from(code)] * absmax;
        }
    }

    /// The codes of one block; gives its largest magnitude.
    #[inline]
    pub fn quantize(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        let absmax = values
            .iter()
            .fold(0f32, |most, value| most.max(value.abs()));
        // bitsandbytes' limit: the inverse stays finite, and a block of zeros gets the code of zero.
        let inverse = 1.0 / absmax.max(1e-38);
        for (code, value) in codes.iter_mut().zip(values) {
            *code = self.code((value * inverse).clamp(-1.0, 1.0));
        }
        absmax
    }
}

/// `count` numbers from `first` to `last`, rounded as `torch.linspace` rounds: from both ends to the middle.
fn evenly(first: f32, last: f32, count: usize) -> Vec<f32> {
    let step = (last - first) / (count - 1) as f32;
    let number = |i: usize| match i < count / 2 {
        true => step.mul_add(i as f32, first),
        false => (-step).mul_add((count - 1 - i) as f32, last),
    };
    (0..count).map(number).collect()
}

/// The middles between neighbours.
fn middles(values: &[f32]) -> Vec<f32> {
    let pairs = values.windows(2);
    pairs.map(|pair| (pair[0] + pair[1]) / 2.0).collect()
}

/// Many values in 8 bits each, with their map.
pub(super) struct Blockwise {
    pub map: &'static DynamicMap,
    pub codes: Vec<u8>,
    pub absmax: Vec<f32>,
}

impl Blockwise {
    /// `count` zeros.
    pub fn zeros(map: &'static DynamicMap, count: usize) -> Self {
        Self {
            map,
            codes: vec![map.code(0.0); count],
            absmax: vec![0.0; count.div_ceil(BLOCK)],
        }
    }

    /// Every block, to be changed.
    pub fn blocks_mut(&mut self) -> impl IndexedParallelIterator<Item = Block<'_>> {
        let map = self.map;
        let blocks = self.codes.par_chunks_mut(BLOCK).zip(&mut self.absmax);
        blocks.map(move |(codes, absmax)| Block { map, codes, absmax })
    }

    /// Memory that they take.
    pub fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(self.absmax.as_slice())
    }
}

/// One block of [`Blockwise`].
pub(super) struct Block<'a> {
    map: &'static DynamicMap,
    codes: &'a mut [u8],
    absmax: &'a mut f32,
}

impl Block<'_> {
    /// Changes the values, as f32.
    #[inline]
    pub fn change(self, change: impl FnOnce(&mut [f32])) {
        let mut values = [0f32; BLOCK];
        if let Some(values) = values.get_mut(..self.codes.len()) {
            self.map.dequantize(self.codes, *self.absmax, values);
            change(values);
            *self.absmax = self.map.quantize(values, self.codes);
        }
    }
}

#[cfg(test)]
#[path = "blockwise_tests.rs"]
mod tests;
