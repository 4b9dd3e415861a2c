//! Provides numbers as people read them: with as many digits as say something, and a unit.

use std::fmt;

pub use indicatif::HumanDuration as Time;

/// A number of bytes in units of a thousand: `812 bytes`, `54 MB`, `1.2 GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0 as f64, "bytes");
        for larger in ["kB", "MB", "GB", "TB"] {
            // As it would be rounded.
            if value < 999.5 {
                break;
            }
            (value, unit) = (value / 1e3, larger);
        }
        if unit == "bytes" {
            write!(f, "{value} {unit}")
        } else {
            write!(f, "{} {unit}", Digits(value))
        }
    }
}

/// A number with two digits at least, where it has more than none: `0.42`, `4.2`, `42`, `4200`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Digits(pub f64);

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As it would be rounded.
        let decimals = match self.0.abs() {
            value if value >= 9.95 || value == 0.0 => 0,
            value if value >= 0.995 => 1,
            _ => 2,
        };
        write!(f, "{:.decimals$}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_of_bytes_is_told_as_none_or_with_digits_that_say_nothing() {
        for (bytes, expected) in [
            (0, "0 bytes"),
            (812, "812 bytes"),
            (1_234, "1.2 kB"),
            (54_321_000, "54 MB"),
            (999_400, "999 kB"),
            (999_600, "1.0 MB"),
            (1_234_567_890, "1.2 GB"),
            (u64::MAX, "18446744 TB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), expected);
        }
        for (value, expected) in [
            (0.0, "0"),
            (0.034, "0.03"),
            (0.999, "1.0"),
            (55.2427, "55"),
            (9.96, "10"),
            (4.25, "4.2"),
        ] {
            assert_eq!(Digits(value).to_string(), expected);
        }
    }
}
