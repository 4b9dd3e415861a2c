//! Provides the learning rate over the steps: linear warm-up, then half a cosine down to a floor.

use std::f64::consts::PI;

/// Linear warm-up, then half a cosine down to a floor.
///
/// With W warm-up steps of S, peak `lr` and floor f (steps counted from 0):
/// `lr (t + 1) / W` for t < W, then `f + (lr - f) (1 + cos(pi (t - W) / (S - W))) / 2`, and f from S on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    peak: f64,
    floor: f64,
    warmup_steps: usize,
    total_steps: usize,
}

impl Schedule {
    /// A schedule over `total_steps` that ends at `peak * floor_ratio`; warm-up never takes more than all steps.
    pub fn new(peak: f64, floor_ratio: f64, warmup_steps: usize, total_steps: usize) -> Self {
        Self {
            peak,
            floor: peak * floor_ratio,
            warmup_steps: warmup_steps.min(total_steps),
            total_steps,
        }
    }

    /// The learning rate of step `step`, from 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        if step >= self.total_steps {
            return self.floor;
        }
        let progress =
            (step - self.warmup_steps) as f64 / (self.total_steps - self.warmup_steps) as f64;
        self.floor + (self.peak - self.floor) * 0.5 * (1.0 + (PI * progress).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_peaks_and_ends_at_the_floor() {
        let schedule = Schedule::new(1.0, 0.1, 4, 12);
        let rates: Vec<f64> = (0..14).map(|step| schedule.learning_rate(step)).collect();
        assert_eq!(rates[..5], [0.25, 0.5, 0.75, 1.0, 1.0]);
        // Half way down the cosine: the mean of peak and floor.
        assert!((rates[8] - 0.55).abs() < 1e-12);
        assert!(rates[4..].is_sorted_by(|a, b| a >= b));
        assert_eq!(rates[12..], [0.1, 0.1]);
    }

    #[test]
    fn degenerate_lengths_stay_finite() {
        for (warmup, total) in [(0, 1), (1, 1), (9, 3), (0, 0)] {
            let schedule = Schedule::new(2.0, 0.0, warmup, total);
            for step in 0..5 {
                let rate = schedule.learning_rate(step);
                assert!(
                    (0.0..=2.0).contains(&rate),
                    "{warmup} {total} {step}: {rate}"
                );
            }
        }
    }
}
