//! Tests of the codec on fixed frames.

use super::*;
use crate::{Estimator, PADDING_COUNT, State, StateCoding, StateKind, ValueCoding};

pub(super) fn context(index: u64) -> FrameContext {
    FrameContext {
        plan: Fingerprint::of(b"plan"),
        shard: 3,
        index,
    }
}

/// A frame with `rows` targets over `vocab` ids whose logits come from a small linear congruence.
pub(super) fn sample(
    rows: usize,
    k: usize,
    vocab: u32,
    coding: ValueCoding,
    state: Option<StateCoding>,
) -> Frame {
    let mut seed = 0x2545_f491_u64;
    let mut next = move || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1u64 << 24) as f32
    };
    let mut out = Rows {
        rows,
        k,
        vocab_size: vocab,
        estimator: Estimator::TopK,
        coding,
        ids: vec![],
        logits: vec![],
        counts: vec![],
        max: vec![],
        mean: vec![],
        std: vec![],
        temperatures: vec![1.0, 2.0],
        logsumexp: vec![vec![], vec![]],
        state: None,
    };
    for _ in 0..rows {
        let logits: Vec<f32> = (0..vocab).map(|_| 12.0 * next() * next()).collect();
        let mut order: Vec<u32> = (0..vocab).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        let mut kept = order[..k].to_vec();
        kept.sort();
        out.logits
            .extend(kept.iter().map(|&id| logits[id as usize]));
        out.ids.extend(kept);
        out.max
            .push(logits.iter().copied().fold(f32::MIN, f32::max));
        let mean = logits.iter().sum::<f32>() / vocab as f32;
        out.mean.push(mean);
        out.std
            .push((logits.iter().map(|y| (y - mean).powi(2)).sum::<f32>() / vocab as f32).sqrt());
        for (column, tau) in out.logsumexp.iter_mut().zip([1.0f32, 2.0]) {
            column.push(
                logits
                    .iter()
                    .map(|y| f64::from(y / tau).exp())
                    .sum::<f64>()
                    .ln() as f32,
            );
        }
    }
    if let Some(coding) = state {
        let values = (0..rows * 5).map(|_| next() - 0.5).collect();
        out.state = Some(State {
            kind: StateKind::Exact,
            coding,
            rank: 5,
            values,
        });
    }
    let text = "héllo 世界".repeat(rows + 1);
    let byte_offsets = (0..=rows as u32)
        .map(|t| if t == 2 { (0, 0) } else { (t * 3, t * 3 + 3) })
        .collect();
    Frame {
        sequence_id: 77,
        index: 5,
        text_digest: Fingerprint::of(text.as_bytes()),
        text,
        token_ids: (0..=rows as u32).map(|t| t * 7919 % vocab).collect(),
        byte_offsets,
        target_mask: (0..=rows).map(|t| t > 0).collect(),
        rows: out,
    }
}

pub(super) fn kept_mass(rows: &Rows, row: usize) -> f64 {
    let logits = &rows.logits[row * rows.k..(row + 1) * rows.k];
    logits
        .iter()
        .map(|&y| f64::from(y - rows.logsumexp[0][row]).exp())
        .sum()
}

#[test]
fn round_trip_keeps_everything_and_the_kept_mass() {
    for coding in [ValueCoding::Step(0.125), ValueCoding::F16] {
        for state in [None, Some(StateCoding::F16), Some(StateCoding::I8)] {
            let frame = sample(9, 16, 300, coding, state);
            let read = Frame::decode(&frame.encode(&context(5)).unwrap(), &context(5)).unwrap();
            for row in 0..9 {
                let (before, after) = (kept_mass(&frame.rows, row), kept_mass(&read.rows, row));
                // f32 storage of the mass and of the shifted logits: a few 1e-6.
                assert!((before - after).abs() < 1e-5, "{before} {after}");
                assert!(after <= 1.0 + 1e-5);
            }
            let step = if coding == ValueCoding::F16 {
                0.01
            } else {
                0.125
            };
            let pairs = frame.rows.logits.iter().zip(&read.rows.logits);
            // Half a step of rounding and at most half a step of shift.
            assert!(pairs.clone().all(|(a, b)| (a - b).abs() <= step * 1.001));
            if let (Some(a), Some(b)) = (&frame.rows.state, &read.rows.state) {
                assert!(
                    a.values
                        .iter()
                        .zip(&b.values)
                        .all(|(a, b)| (a - b).abs() < 0.003)
                );
            }
            let same = Rows {
                logits: frame.rows.logits.clone(),
                state: frame.rows.state.clone(),
                ..read.rows.clone()
            };
            assert_eq!(Frame { rows: same, ..read }, frame);
        }
    }
}

#[test]
fn every_single_bit_flip_is_found() {
    let bytes = sample(3, 4, 40, ValueCoding::Step(0.125), Some(StateCoding::I8))
        .encode(&context(5))
        .unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Frame::decode(&damaged, &context(5)).is_err(), "bit {bit}");
    }
    for length in 0..bytes.len() {
        assert!(
            Frame::decode(&bytes[..length], &context(5)).is_err(),
            "length {length}"
        );
    }
}

#[test]
fn a_frame_in_another_place_is_refused() {
    let bytes = sample(3, 4, 40, ValueCoding::Step(0.125), None)
        .encode(&context(5))
        .unwrap();
    assert_eq!(
        Frame::decode(&bytes, &context(6)),
        Err(Error::WrongIndex {
            expected: 6,
            found: 5
        })
    );
    let other = FrameContext {
        shard: 4,
        ..context(5)
    };
    assert_eq!(
        Frame::decode(&bytes, &other),
        Err(Error::Checksum { index: 5 })
    );
    let other = FrameContext {
        plan: Fingerprint::of(b"other"),
        ..context(5)
    };
    assert_eq!(
        Frame::decode(&bytes, &other),
        Err(Error::Checksum { index: 5 })
    );
}

/// Rewrites a header field and the checksum, as an attacker would.
fn forge(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut forged = bytes[..bytes.len() - CHECKSUM_BYTES].to_vec();
    forged[at..at + value.len()].copy_from_slice(value);
    let sum = checksum(&forged, &context(5));
    [forged, sum.to_vec()].concat()
}

#[test]
fn lying_lengths_and_a_zstd_bomb_are_rejected() {
    let bytes = sample(3, 4, 40, ValueCoding::Step(0.125), None)
        .encode(&context(5))
        .unwrap();
    for at in (16..40).step_by(4).chain([56, 60]) {
        for value in [0u32, 1, 1 << 20, (1 << 20) + 1, u32::MAX] {
            let forged = forge(&bytes, at, &value.to_le_bytes());
            // A larger vocabulary is no lie.
            if forged != bytes && (at, value) != (16, 1 << 20) {
                assert!(
                    Frame::decode(&forged, &context(5)).is_err(),
                    "offset {at} value {value}"
                );
            }
        }
    }
    // 1 GiB of zeros behind an honest checksum.
    let bomb = zstd::bulk::compress(&vec![0; 1 << 30], 1).unwrap();
    let body_at = HEADER_BYTES + 8;
    let mut forged = bytes[..body_at].to_vec();
    forged[60..64].copy_from_slice(&(bomb.len() as u32).to_le_bytes());
    forged.extend(bomb);
    forged.extend(checksum(&forged, &context(5)));
    assert!(matches!(
        Frame::decode(&forged, &context(5)),
        Err(Error::Compression { .. })
    ));
}

#[test]
fn rules_are_checked_before_writing() {
    let good = sample(3, 4, 40, ValueCoding::Step(0.125), None);
    let broken: [fn(&mut Frame); 8] = [
        |f| f.rows.ids[1] = f.rows.ids[0],
        |f| f.rows.ids[3] = 40,
        |f| f.rows.logits[0] = f32::NAN,
        |f| f.rows.max[0] = f32::INFINITY,
        |f| f.target_mask[0] = true,
        |f| f.byte_offsets[1] = (0, 1000),
        |f| f.text.push('x'),
        |f| f.rows.k = 0,
    ];
    for (case, damage) in broken.into_iter().enumerate() {
        let mut frame = good.clone();
        damage(&mut frame);
        assert!(
            matches!(frame.encode(&context(5)), Err(Error::Invalid { .. })),
            "case {case}"
        );
    }
    assert!(good.check_tokens(40).is_ok() && good.check_tokens(20).is_err());
}

#[test]
fn a_mass_too_small_for_f32_moves_nothing() {
    let mut frame = sample(1, 2, 40, ValueCoding::F16, None);
    let rows = &mut frame.rows;
    // Both kept entries are e^-100 of the mass: a subnormal f32, whose last digits once moved the logits by 0.2.
    rows.logits = vec![rows.logsumexp[0][0] - 100.3; 2];
    let before = rows.logits[0];
    let read = Frame::decode(&frame.encode(&context(5)).unwrap(), &context(5)).unwrap();
    // An f16 near 100 has steps of 1/16.
    assert!((read.rows.logits[0] - before).abs() <= 0.04);
}

#[test]
fn rounding_a_row_gives_what_a_reader_finds() {
    for coding in [StateCoding::F16, StateCoding::I8] {
        let mut frame = sample(3, 4, 40, ValueCoding::F16, Some(coding));
        let state = frame.rows.state.as_mut().unwrap();
        state.kind = StateKind::Hidden;
        state.values[..5].fill(0.0);
        let mut expected = state.values.clone();
        let rank = state.rank;
        expected
            .chunks_mut(rank)
            .for_each(|row| coding.round_row(row));
        let read = Frame::decode(&frame.encode(&context(5)).unwrap(), &context(5)).unwrap();
        assert_eq!(read.rows.state.unwrap().values, expected);
    }
}

#[test]
fn what_a_coding_cannot_hold_is_refused_before_writing() {
    let mut frame = sample(3, 4, 40, ValueCoding::F16, Some(StateCoding::F16));
    frame.rows.state.as_mut().unwrap().values[2] = 70_000.0;
    assert!(matches!(
        frame.encode(&context(5)),
        Err(Error::Invalid { what: "state", .. })
    ));
    frame.rows.state.as_mut().unwrap().coding = StateCoding::I8;
    assert!(frame.encode(&context(5)).is_ok());
    frame.rows.logits[0] = frame.rows.max[0] + 1.0;
    assert!(matches!(
        frame.encode(&context(5)),
        Err(Error::Invalid { what: "logits", .. })
    ));
}

/// The frames that the golden files hold: top-k steps with exact state, head+sampled halves with a sketch, and padded
/// head+sampled steps with a hidden state.
fn golden(which: &str) -> Frame {
    if which == "top_k" {
        return sample(6, 8, 100, ValueCoding::Step(0.125), Some(StateCoding::F16));
    }
    let coding = match which {
        "padded" => ValueCoding::Step(0.125),
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

/// Frames written by the first release stay readable. `REGENERATE=1 cargo test` writes them anew for a new version.
#[test]
fn the_golden_frames_of_version_1_are_read() {
    for which in ["top_k", "head_sampled", "padded"] {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
        let path = format!("{dir}/v1_{which}.frame");
        let frame = golden(which);
        if std::env::var_os("REGENERATE").is_some() {
            std::fs::create_dir_all(dir).unwrap();
            std::fs::write(&path, frame.encode(&context(5)).unwrap()).unwrap();
        }
        let read = Frame::decode(&std::fs::read(path).unwrap(), &context(5)).unwrap();
        // Statistics go through the platform's exp and ln, and codes through rounding: all else is exact.
        let close = |a: &[f32], b: &[f32], tolerance: f32| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance)
        };
        let (a, b) = (&read.rows, &frame.rows);
        assert!(close(&a.logits, &b.logits, 0.126));
        for (a, b) in [(&a.max, &b.max), (&a.mean, &b.mean), (&a.std, &b.std)] {
            assert!(close(a, b, 1e-4));
        }
        for (a, b) in a.logsumexp.iter().zip(&b.logsumexp) {
            assert!(close(a, b, 1e-4));
        }
        let (state, expected) = (a.state.as_ref().unwrap(), b.state.as_ref().unwrap());
        assert!(close(&state.values, &expected.values, 0.003));
        assert_eq!(
            (state.kind, state.coding, state.rank),
            (expected.kind, expected.coding, expected.rank)
        );
        let rows = Rows {
            logits: b.logits.clone(),
            max: b.max.clone(),
            mean: b.mean.clone(),
            std: b.std.clone(),
            logsumexp: b.logsumexp.clone(),
            state: b.state.clone(),
            ..read.rows
        };
        assert_eq!(Frame { rows, ..read }, frame);
    }
}
