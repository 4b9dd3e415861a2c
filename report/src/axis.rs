//! Provides the axes of charts: round numbers to mark them at, and how these are written.

/// Round numbers, equally far apart, that an axis is marked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Axis {
    /// Distance of two marks: 1, 2 or 5 times a power of ten.
    step: f64,
    /// The first and the last mark, in steps.
    ends: (f64, f64),
}

impl Axis {
    /// From a mark at or below `low` to one at or above `high`, with `count` distances between them, or somewhat more or fewer.
    pub fn around(low: f64, high: f64, count: usize) -> Self {
        let step = round_step((high - low) / count as f64);
        Self {
            step,
            ends: ((low / step).floor(), (high / step).ceil()),
        }
    }

    /// Of whole numbers from 0 on; the last mark is at or below `last`, where the axis ends.
    pub fn of_steps(last: f64, count: usize) -> Self {
        let step = round_step(last / count as f64).max(1.0);
        Self {
            step,
            ends: (0.0, (last / step).floor()),
        }
    }

    /// The first and the last mark.
    pub fn range(&self) -> (f64, f64) {
        (self.ends.0 * self.step, self.ends.1 * self.step)
    }

    /// All marks, with what is written there.
    pub fn marks(&self) -> impl Iterator<Item = (f64, String)> {
        let Self { step, ends } = *self;
        let count = (ends.1 - ends.0).round();
        let places = std::iter::successors(Some(0.0), move |place| {
            (*place < count).then_some(place + 1.0)
        });
        places.map(move |place| {
            let value = (ends.0 + place) * step;
            (value, label(value, step))
        })
    }
}

/// The nearest of 1, 2 and 5 times a power of ten that is not much smaller; 1 where there is no distance.
fn round_step(step: f64) -> f64 {
    if step.is_nan() || step <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(step.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let fitting = steps.into_iter().find(|round| round * power >= 0.85 * step);
    fitting.unwrap_or(10.0) * power
}

/// A mark as it is written: no digits beyond those that tell it from its neighbours.
fn label(value: f64, step: f64) -> String {
    let largest = value.abs();
    let (scale, unit) = if largest >= 1e6 {
        (1e6, "M")
    } else if largest >= 1e4 {
        (1e3, "k")
    } else if step < 1e-3 && largest > 0.0 {
        // Times a power of ten, as learning rates are written.
        let power = largest.log10().floor();
        let digits = plain(value / 10_f64.powf(power), step / 10_f64.powf(power));
        return format!("{digits}e{power:.0}");
    } else {
        (1.0, "")
    };
    plain(value / scale, step / scale) + unit
}

/// A number with as many digits behind the point as its step has, less the zeros at their end.
fn plain(value: f64, step: f64) -> String {
    let decimals = (0..9).find(|&decimals| {
        let shifted = step * 10_f64.powi(decimals);
        (shifted - shifted.round()).abs() < 1e-6
    });
    let decimals = decimals.and_then(|decimals| usize::try_from(decimals).ok());
    let text = format!("{value:.*}", decimals.unwrap_or(9));
    let text = match text.split_once('.') {
        Some(_) => text.trim_end_matches('0').trim_end_matches('.'),
        None => &text,
    };
    // Zero has no sign.
    if text == "-0" { "0" } else { text }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> String {
        let labels: Vec<String> = axis.marks().map(|(_, label)| label).collect();
        labels.join(" ")
    }

    #[test]
    fn marks_are_round_and_hold_every_value() {
        for (low, high, expected) in [
            (0.0, 73.0, "0 20 40 60 80"),
            (0.0, 0.31, "0 0.1 0.2 0.3 0.4"),
            (0.0, 2e-4, "0 5e-5 1e-4 1.5e-4 2e-4"),
            (0.0, 9.1, "0 2 4 6 8 10"),
            (-0.31, 0.0, "-0.4 -0.3 -0.2 -0.1 0"),
            (-1.2, 2.9, "-2 -1 0 1 2 3"),
            (0.0, 18_000.0, "0 5000 10k 15k 20k"),
            (0.0, 3.1e6, "0 1M 2M 3M 4M"),
            (0.0, 0.0, "0"),
        ] {
            let axis = Axis::around(low, high, 4);
            assert_eq!(labels(&axis), expected);
            let (first, last) = axis.range();
            assert!(first <= low && last >= high, "{axis:?}");
        }
    }

    #[test]
    fn steps_are_whole() {
        for (last, expected) in [
            (300.0, "0 100 200 300"),
            (75.0, "0 20 40 60"),
            (3.0, "0 1 2 3"),
            (1.0, "0 1"),
            (100_000.0, "0 50k 100k"),
        ] {
            assert_eq!(labels(&Axis::of_steps(last, 4)), expected, "{last}");
        }
    }
}
