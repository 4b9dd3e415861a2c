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

/// A moment in seconds since 1970, to the minute: `2026-11-29 09:26 UTC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(pub u64);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_leap = |year: u64| {
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
        };
        let minutes = self.0 / 60;
        let (mut day, mut year) = (minutes / (24 * 60), 1970);
        loop {
            let days = if is_leap(year) { 366 } else { 365 };
            if day < days {
                break;
            }
            day -= days;
            year += 1;
        }
        let february = if is_leap(year) { 29 } else { 28 };
        let mut month = 1;
        for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if day < days {
                break;
            }
            day -= days;
            month += 1;
        }
        write!(
            f,
            "{year}-{month:02}-{:02} {:02}:{:02} UTC",
            day + 1,
            minutes / 60 % 24,
            minutes % 60
        )
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

    #[test]
    fn moments_are_dates_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_868_740, "2000-02-29 23:59 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
            (1_796_000_000, "2026-11-30 00:53 UTC"),
        ] {
            assert_eq!(Moment(seconds).to_string(), text);
        }
    }
}
