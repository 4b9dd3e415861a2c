//! Tests that frames of releases stay readable, or are refused by their version.

use super::{
    tests::{assert_read, context, sample, settle_padding},
    *,
};
use crate::{
    Estimator, FieldRange, Link, PADDING_COUNT, StateCoding, StateKind, ValueCoding, View,
};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

/// The frames that the golden files hold: top-k with exact state, head+sampled halves with a sketch, and padded head+sampled
/// rows with a hidden state.
fn golden(which: &str, steps: ValueCoding) -> Frame {
    if which == "top_k" {
        return sample(6, 8, 100, steps, Some(StateCoding::F16));
    }
    let coding = match which {
        "padded" => steps,
        _ => ValueCoding::F16,
    };
    let mut frame = sample(6, 8, 100, coding, Some(StateCoding::I8));
    frame.rows.estimator = Estimator::HeadSampled;
    frame.rows.counts = (0..48).map(|entry| entry % 3).collect();
    if which == "padded" {
        let counts = frame.rows.counts.iter_mut().skip(3).step_by(4);
        counts.for_each(|count| *count = PADDING_COUNT);
        frame.rows.state.as_mut().unwrap().kind = StateKind::Hidden;
        return frame;
    }
    frame.rows.state.as_mut().unwrap().kind = StateKind::Sketch;
    frame
}

fn read(which: &str) -> Frame {
    let bytes = std::fs::read(format!("{DIRECTORY}/v2_{which}.frame")).unwrap();
    Frame::decode(&bytes, &context(5)).unwrap()
}

/// Statistics go through the platform's exp and ln, and codes through rounding: all else is exact.
fn settle_statistics(frame: &mut Frame, like: &Frame) {
    let (a, b) = (&mut frame.rows, &like.rows);
    for (a, b) in [
        (&mut a.max, &b.max),
        (&mut a.mean, &b.mean),
        (&mut a.std, &b.std),
    ] {
        assert!(a.iter().zip(b).all(|(a, b)| (*a - b).abs() <= 1e-4));
        a.clone_from(b);
    }
    for (a, b) in a.logsumexp.iter_mut().zip(&b.logsumexp) {
        assert!(a.iter().zip(b).all(|(a, b)| (*a - b).abs() <= 1e-4));
        a.clone_from(b);
    }
}

/// With the student's view of it: version 3.
fn golden_pair() -> Frame {
    let student = |field: &str, start, end| FieldRange {
        field: field.to_owned(),
        start,
        end,
    };
    Frame {
        view: Some(View {
            record: r#"{"messages": [{"role": "user", "content": "ä?"}, {"role": "assistant", "content": "hé"}]}"#.to_owned(),
            prompts: true,
            shared: vec![Link {
                teacher: (0, 3),
                student: student("messages[1].content", 0, 3),
            }],
            links: vec![Link {
                teacher: (7, 10),
                student: student("messages[0].content", 2, 3),
            }],
        }),
        ..golden("top_k", ValueCoding::GRADED)
    }
}

#[test]
fn a_frame_of_version_1_is_refused_by_its_version() {
    let bytes = std::fs::read(format!("{DIRECTORY}/v1_top_k.frame")).unwrap();
    let refused = Frame::decode(&bytes, &context(5));
    assert!(
        matches!(
            refused,
            Err(Error::UnsupportedVersion {
                found: 1,
                supported: 3
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn the_golden_frame_of_version_3_is_read_and_the_view_makes_the_version() {
    let path = format!("{DIRECTORY}/v3_pair.frame");
    let frame = golden_pair();
    if std::env::var_os("REGENERATE").is_some() {
        std::fs::write(&path, frame.encode(&context(5)).unwrap()).unwrap();
    }
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.get(4..6), Some(&[3, 0][..]));
    let read = Frame::decode(&bytes, &context(5)).unwrap();
    assert_eq!(read.view, frame.view);
    assert_read(&read, &frame);
    let without = Frame {
        view: None,
        ..frame
    };
    let bytes = without.encode(&context(5)).unwrap();
    assert_eq!(bytes.get(4..6), Some(&[2, 0][..]));
}

/// `REGENERATE=1 cargo test` writes them anew, which the release of version 2 ends.
#[test]
fn the_golden_frames_of_version_2_are_read() {
    for which in ["top_k", "head_sampled", "padded"] {
        let mut frame = golden(which, ValueCoding::GRADED);
        if std::env::var_os("REGENERATE").is_some() {
            let path = format!("{DIRECTORY}/v2_{which}.frame");
            std::fs::write(path, frame.encode(&context(5)).unwrap()).unwrap();
        }
        if which != "top_k" {
            settle_padding(&mut frame.rows);
        }
        let mut read = read(which);
        if which == "head_sampled" {
            settle_statistics(&mut read, &frame);
        }
        assert_read(&read, &frame);
    }
}
