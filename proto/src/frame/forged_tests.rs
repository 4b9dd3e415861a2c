//! Tests that a reader refuses what no writer makes, behind honest checksums.

use super::{
    body::Codes,
    tests::{context, forge, sample},
    *,
};
use crate::{Estimator, ValueCoding};

/// What is wrong with the field `what`.
fn reason(bytes: &[u8], what: &str) -> String {
    match Frame::decode(bytes, &context(5)) {
        Err(Error::Invalid {
            what: found,
            reason,
            ..
        }) if found == what => reason,
        other => format!("not refused for its {what}: {other:?}"),
    }
}

#[test]
fn a_kept_mass_that_lifts_logits_above_the_maximum_is_refused() {
    let honest = sample(3, 4, 40, ValueCoding::F16, None);
    let codes = Codes::of(&honest.rows);
    let written = honest.write(&codes, &context(5)).unwrap();
    assert!(Frame::decode(&written, &context(5)).is_ok());
    let mut lying = honest;
    lying.rows.logits.fill(60.0);
    lying.rows.logsumexp[0].fill(60.0);
    let forged = lying.write(&codes, &context(5)).unwrap();
    let reason = reason(&forged, "logits");
    assert!(
        reason.contains("in row 0 is above the row's maximum"),
        "{reason}"
    );
}

#[test]
fn rounding_may_lift_logits_by_half_a_step() {
    for coding in [
        ValueCoding::F16,
        ValueCoding::Step(1.0),
        ValueCoding::GRADED,
        ValueCoding::Step(0.001),
    ] {
        for far in [0.3, 0.4999, 0.77, 3.4999, 40.4999, 700.4999, 60_000.9] {
            let mut frame = sample(1, 4, 40, coding, None);
            let rows = &mut frame.rows;
            // The largest id is padding at the maximum; what is kept is far away and rounded down.
            rows.estimator = Estimator::Sampled;
            rows.counts = vec![1, 1, 1, 0];
            let max = rows.max[0];
            rows.logits = vec![max - far, max - far, max - far, max];
            rows.logsumexp[0] = vec![max - far + 2.0];
            let read = Frame::decode(&frame.encode(&context(5)).unwrap(), &context(5));
            assert!(read.is_ok(), "{coding:?} {far}: {read:?}");
        }
    }
}

#[test]
fn a_negative_distance_in_half_precision_is_refused() {
    let frame = sample(3, 4, 40, ValueCoding::F16, None);
    for negative in [0x8000, 0xb800, 0x7c00, 0x7e00, 0xffff] {
        let mut codes = Codes::of(&frame.rows);
        codes.values[5] = negative;
        let forged = frame.write(&codes, &context(5)).unwrap();
        let error = Frame::decode(&forged, &context(5)).unwrap_err();
        assert!(matches!(error, Error::Entropy { .. }), "{error}");
    }
}

#[test]
fn a_row_of_padding_only_is_refused_when_read() {
    let mut frame = sample(2, 4, 50, ValueCoding::F16, None);
    frame.rows.estimator = Estimator::HeadSampled;
    frame.rows.counts = vec![0; 8];
    // Head entries of one estimator are padding of the other.
    let forged = forge(
        &frame.encode(&context(5)).unwrap(),
        6,
        &[Estimator::Sampled as u8],
    );
    assert_eq!(reason(&forged, "counts"), "a row holds padding only");
}
