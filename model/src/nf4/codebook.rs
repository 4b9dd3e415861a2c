//! Provides the two code books of bitsandbytes' 4-bit format: NF4 for weights and the signed dynamic 8-bit map for scales.

use std::sync::LazyLock;

/// Entries of the NF4 code book.
pub(super) const NF4_ENTRIES: usize = 16;
/// Entries of the 8-bit code book.
pub(super) const DYNAMIC_ENTRIES: usize = 256;

/// NormalFloat4 (Dettmers et al. 2023, "QLoRA"): quantiles of the normal distribution scaled to [-1, 1], ascending.
pub(super) const NF4: [f32; NF4_ENTRIES] = [
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
        let scale = 10f64.powi(decade - (DECADES - 1)) as f32;
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

/// The midpoints between NF4's entries, rounded to f32 as bitsandbytes has them: the code of x is how many lie below x.
pub(super) const NF4_MIDPOINTS: [f32; NF4_ENTRIES - 1] = {
    let mut midpoints = [0f32; NF4_ENTRIES - 1];
    let mut i = 0;
    while i < midpoints.len() {
        midpoints[i] = (NF4[i] + NF4[i + 1]) / 2.0;
        i += 1;
    }
    midpoints
};

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

    fn nearest_nf4(value: f32) -> u8 {
        NF4_MIDPOINTS
            .iter()
            .map(|middle| u8::from(value > *middle))
            .sum()
    }

    #[test]
    fn no_entry_is_nearer_than_the_one_found() {
        fn check(book: &[f32], nearest: fn(f32) -> u8) {
            for step in -1000..=1000 {
                let value = step as f32 / 1000.0;
                let distance = |entry: f32| (f64::from(entry) - f64::from(value)).abs();
                let found = distance(book[usize::from(nearest(value))]);
                let best = book.iter().map(|entry| distance(*entry)).reduce(f64::min);
                // The midpoint that decides is rounded to f32, so near it either neighbour may win.
                assert!(found <= best.unwrap() + 1e-7, "{value}");
            }
        }
        check(&NF4, nearest_nf4);
        check(&*DYNAMIC, nearest_dynamic);
    }

    #[test]
    fn entries_are_their_own_nearest_and_midpoints_go_down() {
        fn check(book: &[f32], nearest: fn(f32) -> u8) {
            for (i, entry) in book.iter().enumerate() {
                assert_eq!(usize::from(nearest(*entry)), i);
            }
            for (i, pair) in book.windows(2).enumerate() {
                assert!(pair[0] < pair[1]);
                let middle = (pair[0] + pair[1]) / 2.0;
                assert_eq!(usize::from(nearest(middle)), i);
            }
        }
        check(&NF4, nearest_nf4);
        check(&*DYNAMIC, nearest_dynamic);
    }
}
