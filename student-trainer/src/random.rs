//! Provides normal numbers for weights to start from.

use rand::{Rng, rngs::StdRng};

/// A number of mean 0 and deviation 1: Box and Muller's transform.
pub(crate) fn normal(random: &mut StdRng) -> f64 {
    let radius: f64 = random.random_range(f64::MIN_POSITIVE..1.0);
    let angle: f64 = random.random_range(0.0..std::f64::consts::TAU);
    (-2.0 * radius.ln()).sqrt() * angle.cos()
}
