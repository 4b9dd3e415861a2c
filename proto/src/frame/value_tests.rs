//! Tests of the value codings: their distances, and what they cost in KL.

use super::{
    tests::{context, sample},
    values::{CODE_MAX, Grid},
    *,
};
use crate::ValueCoding;

#[test]
fn graded_steps_double_every_two_nats_up_to_one() {
    let grid = Grid::new(ValueCoding::Graded(0.0625));
    assert_eq!(grid.distance(32), 2.0);
    // 32 codes of 1/16, then 16 of 1/8, 8 of 1/4, 4 of 1/2, and whole nats.
    for (code, step) in [
        (0, 0.0625),
        (31, 0.0625),
        (32, 0.125),
        (48, 0.25),
        (56, 0.5),
        (60, 1.0),
        (5000, 1.0),
    ] {
        assert_eq!(
            grid.distance(code + 1) - grid.distance(code),
            step,
            "code {code}"
        );
    }
}

#[test]
fn every_coding_finds_the_nearest_distance() {
    for coding in [
        ValueCoding::GRADED,
        ValueCoding::Graded(ValueCoding::GRADE),
        ValueCoding::Graded(1.0),
        ValueCoding::Step(0.125),
    ] {
        let grid = Grid::new(coding);
        for n in 0..4000 {
            let distance = n as f32 * 0.00731;
            let code = grid.code(distance);
            let error = |code: u32| (grid.distance(code) - distance).abs();
            assert!(
                error(code) <= error(code + 1) && (code == 0 || error(code) <= error(code - 1)),
                "{coding:?} {distance}"
            );
        }
        assert_eq!(grid.code(1e9), CODE_MAX);
        let far = grid.code(20_000.3);
        assert!(coding == ValueCoding::Step(0.125) || (grid.distance(far) - 20_000.3).abs() <= 0.5);
    }
}

#[test]
fn steps_that_cannot_be_written_are_refused() {
    for step in [0.0, -0.5, 1.5, 0.0001, f32::NAN, f32::INFINITY] {
        let frame = sample(2, 4, 40, ValueCoding::Graded(step), None);
        assert!(
            matches!(
                frame.encode(&context(5)),
                Err(Error::Invalid { what: "step", .. })
            ),
            "{step}"
        );
    }
}

/// KL from a row to what is read of it, with all that is not kept as one bucket.
fn added_kl(rows: &Rows, read: &Rows, row: usize) -> f64 {
    let entries = row * rows.k..(row + 1) * rows.k;
    let p =
        |rows: &Rows, entry: usize| f64::from(rows.logits[entry] - rows.logsumexp[0][row]).exp();
    let (kept, kept_read): (f64, f64) = entries.clone().fold((0.0, 0.0), |(a, b), entry| {
        (a + p(rows, entry), b + p(read, entry))
    });
    // f32 tells no smaller tail.
    assert!(kept_read <= 1.0 + 1e-5, "the tail of row {row} is negative");
    let tail = (1.0 - kept) * ((1.0 - kept) / (1.0 - kept_read)).ln();
    tail + entries
        .map(|entry| p(rows, entry) * (p(rows, entry) / p(read, entry)).ln())
        .sum::<f64>()
}

/// Rows whose logits spread as a language model's do: a few above many.
#[test]
fn coding_adds_little_kl() {
    for (coding, limit) in [
        (ValueCoding::GRADED, 3e-4),
        (ValueCoding::Step(0.125), 7e-4),
        (ValueCoding::F16, 1e-6),
    ] {
        let frame = sample(200, 64, 1000, coding, None);
        let read = Frame::decode(&frame.encode(&context(5)).unwrap(), &context(5)).unwrap();
        let sum: f64 = (0..200)
            .map(|row| added_kl(&frame.rows, &read.rows, row))
            .sum();
        // Half of step^2 / 12 is what uniform steps would cost if nothing were shifted back.
        assert!(
            sum / 200.0 < limit && sum > -1e-4,
            "{coding:?} {}",
            sum / 200.0
        );
    }
}
