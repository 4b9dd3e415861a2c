//! Tests that a reader refuses what no writer makes, behind honest checksums.

use super::{
    body::Codes,
    tests::{context, forge, sample},
    *,
};
use crate::{Estimator, FieldRange, Link, ValueCoding, View, limits};

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

fn paired(shared: Vec<Link>) -> Frame {
    let view = View {
        record: r#"{"text": "a"}"#.to_owned(),
        prompts: false,
        shared,
        links: vec![],
    };
    Frame {
        view: Some(view),
        ..sample(3, 4, 40, ValueCoding::F16, None)
    }
}

fn link(teacher: (u32, u32), field: &str, start: u32, end: u32) -> Link {
    let field = field.to_owned();
    Link {
        teacher,
        student: FieldRange { field, start, end },
    }
}

#[test]
fn a_view_that_points_outside_its_texts_is_refused() {
    // The text begins with `h` and a character of two bytes.
    for (shared, named) in [
        (link((0, 900), "text", 0, 1), "0:900 is no part of the text"),
        (link((0, 2), "text", 0, 1), "0:2 is no part of the text"),
        (link((3, 1), "text", 0, 1), "3:1 is no part of the text"),
        (link((0, 1), "text", 2, 1), "no part of a field"),
        (link((0, 1), "", 0, 1), "no part of a field"),
        (
            link((0, 1), &"x".repeat(limits::FIELD_NAME_BYTES_MAX + 1), 0, 1),
            "no part of a field",
        ),
    ] {
        let frame = paired(vec![shared]);
        assert!(frame.encode(&context(5)).is_err());
        let forged = frame.write(&Codes::of(&frame.rows), &context(5)).unwrap();
        let reason = reason(&forged, "shared");
        assert!(reason.contains(named), "{reason}");
    }
    let many = paired(vec![link((0, 1), "text", 0, 1); limits::LINKS_MAX + 1]);
    let reason = reason(
        &many.write(&Codes::of(&many.rows), &context(5)).unwrap(),
        "shared",
    );
    assert!(reason.contains("at most"), "{reason}");
}

/// A version says whether there is a view: neither may lie about the other, or an old trainer would read the teacher's text
/// as its own.
#[test]
fn a_version_that_does_not_fit_the_view_is_refused() {
    for (frame, version) in [
        (paired(vec![]), 2u8),
        (sample(3, 4, 40, ValueCoding::F16, None), 3),
    ] {
        let bytes = frame.encode(&context(5)).unwrap();
        let forged = forge(&bytes, 4, &[version]);
        let reason = reason(&forged, "view");
        assert!(
            reason.contains(&format!("in a frame of version {version}")),
            "{reason}"
        );
    }
}
