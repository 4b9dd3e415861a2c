//! Provides the code books of bitsandbytes' 4-bit format: NF4 and FP4 for weights, the signed dynamic 8-bit map for scales.

use crate::element::single;
use std::sync::LazyLock;

/// Entries of a 4-bit code book.
pub(super) const ENTRIES: usize = 16;
/// Entries of the 8-bit code book.
pub(super) const DYNAMIC_ENTRIES: usize = 256;

/// NormalFloat4 (Dettmers et al. 2023, "QLoRA"): quantiles of the normal distribution scaled to [-1, 1], ascending.
const NF4: [f32; ENTRIES] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The 8-bit "dynamic" map (Dettmers 2015, "8-Bit Approximations for Parallelism in Deep Learning"), ascending: seven decades,
/// the decade 10^-e with 2^(6-e) steps on either side of zero, and 0 and 1 themselves.
pub(super) static DYNAMIC: LazyLock<[f32; DYNAMIC_ENTRIES]> = LazyLock::new(|| {
    const DECADES: i32 = 7;
    let mut map = [0f32; DYNAMIC_ENTRIES];
    let mut values = vec![0.0, 1.0];
    for decade in 0..DECADES {
        let steps = 1usize << decade;
        let scale = single(10f64.powi(decade - (DECADES - 1)));
        for step in 0..steps {
            let middle = (boundary(step, steps) + boundary(step + 1, steps)) / 2.0;
            values.extend([scale * middle, -scale * middle]);
        }
    }
    values.sort_by(f32::total_cmp);
    for (entry, value) in map.iter_mut().zip(values) {
        *entry = value;
    }
    map
});

/// Point `index` of `torch.linspace(0.1, 1, steps + 1)` in f32, which counts from the nearer end with fused multiply-adds.
fn boundary(index: usize, steps: usize) -> f32 {
    let step = (1.0 - 0.1f32) / steps as f32;
    if index < steps.div_ceil(2) {
        step.mul_add(index as f32, 0.1)
    } else {
        (-step).mul_add((steps - index) as f32, 1.0)
    }
}

/// The 4-bit floating-point type of bitsandbytes, scaled to [-1, 1]: a sign, two bits of exponent, one of mantissa, in the order
/// of the bits. Code 1 is the one subnormal; both zeros are positive, as bitsandbytes has them.
const FP4: [f32; ENTRIES] = {
    const MAGNITUDES: [f32; ENTRIES / 2] = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut table = [0f32; ENTRIES];
    let mut i = 0;
    while i < MAGNITUDES.len() {
        table[i] = MAGNITUDES[i] / 12.0;
        table[i + ENTRIES / 2] = if i == 0 { 0.0 } else { -table[i] };
        i += 1;
    }
    table
};

const NF4_ORDER: [u8; ENTRIES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const FP4_ORDER: [u8; ENTRIES] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

/// What a 4-bit code stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QuantType {
    /// 4-bit NormalFloat.
    #[default]
    Nf4,
    /// 4-bit floating point.
    Fp4,
}

impl QuantType {
    /// Every type.
    pub const ALL: [Self; 2] = [Self::Nf4, Self::Fp4];

    /// bitsandbytes' name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// The value of every code.
    pub(super) fn table(self) -> &'static [f32; ENTRIES] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// The codes in the order of their values. Between FP4's zeros the one without a sign comes first, so that zero is code 0.
    pub(super) fn ascending(self) -> &'static [u8; ENTRIES] {
        match self {
            Self::Nf4 => &NF4_ORDER,
            Self::Fp4 => &FP4_ORDER,
        }
    }

    /// The midpoints between neighbouring values, rounded to f32 as bitsandbytes has them: x has the code whose place in
    /// [`ascending`](Self::ascending) is how many midpoints lie below x.
    pub(super) fn midpoints(self) -> &'static [f32; ENTRIES - 1] {
        const fn between(table: &[f32; ENTRIES], order: &[u8; ENTRIES]) -> [f32; ENTRIES - 1] {
            let mut midpoints = [0f32; ENTRIES - 1];
            let mut i = 0;
            while i < midpoints.len() {
                midpoints[i] = (table[order[i] as usize] + table[order[i + 1] as usize]) / 2.0;
                i += 1;
            }
            midpoints
        }
        static NF4_MIDPOINTS: [f32; ENTRIES - 1] = between(&NF4, &NF4_ORDER);
        static FP4_MIDPOINTS: [f32; ENTRIES - 1] = between(&FP4, &FP4_ORDER);
        match self {
            Self::Nf4 => &NF4_MIDPOINTS,
            Self::Fp4 => &FP4_MIDPOINTS,
        }
    }
}

/// The index of the entry of [`DYNAMIC`] nearest to `value`, the lower one at a midpoint. `value` must not be NaN.
pub(super) fn nearest_dynamic(value: f32) -> u8 {
    let map = &*DYNAMIC;
    let (mut low, mut high) = (0u8, u8::MAX);
    while low < high {
        let middle = low + (high - low) / 2;
        let (below, above) = (map[usize::from(middle)], map[usize::from(middle) + 1]);
        if value > (below + above) / 2.0 {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of a book in ascending order, and the place of the nearest one.
    type Book = (Vec<f32>, fn(f32) -> usize);

    fn books() -> [Book; 3] {
        fn place(kind: QuantType, value: f32) -> usize {
            let below = kind.midpoints().iter().filter(|middle| value > **middle);
            below.count()
        }
        let sorted = |kind: QuantType| {
            let codes = kind.ascending().iter();
            codes.map(|code| kind.table()[usize::from(*code)]).collect()
        };
        [
            (sorted(QuantType::Nf4), |value| place(QuantType::Nf4, value)),
            (sorted(QuantType::Fp4), |value| place(QuantType::Fp4, value)),
            (DYNAMIC.to_vec(), |value| {
                usize::from(nearest_dynamic(value))
            }),
        ]
    }

    #[test]
    fn no_entry_is_nearer_than_the_one_found() {
        for (book, nearest) in books() {
            for step in -1000..=1000 {
                let value = step as f32 / 1000.0;
                let distance = |entry: f32| (f64::from(entry) - f64::from(value)).abs();
                let found = distance(book[nearest(value)]);
                let best = book.iter().map(|entry| distance(*entry)).reduce(f64::min);
                // The midpoint that decides is rounded to f32, so near it either neighbour may win.
                assert!(found <= best.unwrap() + 1e-7, "{value}");
            }
        }
    }

    #[test]
    fn entries_are_their_own_nearest_and_midpoints_go_down() {
        for (book, nearest) in books() {
            for (i, entry) in book.iter().enumerate() {
                assert_eq!(book[nearest(*entry)], *entry);
                assert!(i == 0 || book[i - 1] <= *entry);
            }
            for (i, pair) in book.windows(2).enumerate() {
                let middle = (pair[0] + pair[1]) / 2.0;
                assert_eq!(nearest(middle), i);
            }
        }
        // FP4's two zeros are its only equal values.
        assert_eq!(nearest_code(QuantType::Fp4, 0.0), 0);
        assert_eq!(nearest_code(QuantType::Fp4, 1e-9), 8);
    }

    fn nearest_code(kind: QuantType, value: f32) -> u8 {
        let below = kind.midpoints().iter().filter(|middle| value > **middle);
        kind.ascending()[below.count()]
    }
}
