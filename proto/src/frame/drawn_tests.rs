//! Tests of drawn rows: counts and padding.

use super::{
    tests::{assert_read, context, sample, settle_padding},
    *,
};
use crate::{Estimator, ValueCoding};

#[test]
fn counts_of_a_sampled_frame_survive() {
    let mut frame = sample(4, 8, 50, ValueCoding::F16, None);
    frame.rows.estimator = Estimator::Sampled;
    frame.rows.counts = (0..32).map(|i| i * 70_000).collect();
    settle_padding(&mut frame.rows);
    let read = Frame::decode(&frame.encode(&context(5)).unwrap(), &context(5)).unwrap();
    assert_eq!(read.rows.counts, frame.rows.counts);
}

#[test]
fn padding_of_a_drawn_row_carries_no_mass() {
    for estimator in [Estimator::Sampled, Estimator::HeadSampled] {
        let padding = estimator.padding_count().unwrap();
        let mut frame = sample(4, 8, 50, ValueCoding::Step(0.125), None);
        frame.rows.estimator = estimator;
        let count = |entry: u32| {
            if entry % 8 < 3 {
                entry % 2 + 1
            } else {
                padding
            }
        };
        frame.rows.counts = (0..32).map(count).collect();
        if estimator == Estimator::HeadSampled {
            // The first entry of every row is of the head.
            frame.rows.counts.iter_mut().step_by(8).for_each(|c| *c = 0);
        }
        let expected = |rows: &Rows, row: usize| -> f64 {
            let entries = row * 8..row * 8 + 8;
            let kept = entries.filter(|&entry| !estimator.is_padding(rows.counts[entry]));
            kept.map(|entry| f64::from(rows.logits[entry] - rows.logsumexp[0][row]).exp())
                .sum()
        };
        // Padding may stand anywhere up to the maximum, so its mass would be none of the teacher's.
        let before = frame.clone();
        let read = Frame::decode(&frame.encode(&context(5)).unwrap(), &context(5)).unwrap();
        settle_padding(&mut frame.rows);
        assert_read(&read, &frame);
        for row in 0..4 {
            let (before, after) = (expected(&before.rows, row), expected(&read.rows, row));
            // Half a step of the odds.
            assert!((before - after).abs() < before * (1.0 - before) / 63.0 + 1e-5);
        }
        frame.rows.counts[8..16].fill(padding);
        assert!(matches!(
            frame.encode(&context(5)),
            Err(Error::Invalid { what: "counts", .. })
        ));
    }
}

#[test]
fn a_head_sampled_row_may_hold_its_head_only() {
    let mut frame = sample(2, 4, 50, ValueCoding::F16, None);
    frame.rows.estimator = Estimator::HeadSampled;
    frame.rows.counts = vec![0; 8];
    assert!(frame.encode(&context(5)).is_ok());
    frame.rows.estimator = Estimator::Sampled;
    assert!(frame.encode(&context(5)).is_err());
}
