//! Tests of the codec on fixed frames.

use super::*;
use crate::{Estimator, State, StateCoding, StateKind, ValueCoding};

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
            layers: 1,
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
        view: None,
    }
}

/// Gives padding the ids and logits that a reader finds: the smallest ids that the row does not use, at the maximum.
pub(super) fn settle_padding(rows: &mut Rows) {
    let k = rows.k;
    for row in 0..rows.rows {
        let at = row * k..(row + 1) * k;
        let mut kept: Vec<(u32, f32, u32)> = at
            .clone()
            .map(|e| (rows.ids[e], rows.logits[e], rows.counts[e]))
            .filter(|entry| !rows.estimator.is_padding(entry.2))
            .collect();
        let used: Vec<u32> = kept.iter().map(|entry| entry.0).collect();
        let free = (0..).filter(|id| !used.contains(id)).take(k - kept.len());
        let padding = rows.estimator.padding_count().unwrap();
        kept.extend(free.map(|id| (id, rows.max[row], padding)));
        kept.sort_by_key(|entry| entry.0);
        for (entry, kept) in at.zip(kept) {
            (rows.ids[entry], rows.logits[entry], rows.counts[entry]) = kept;
        }
    }
}

/// Checks that a frame was read as it was written, but for what its codings round.
pub(super) fn assert_read(read: &Frame, frame: &Frame) {
    let (a, b) = (&read.rows, &frame.rows);
    let close = |a: &[f32], b: &[f32], tolerance: &dyn Fn(f32) -> f32| {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= tolerance(*b), "{a} {b}");
        }
    };
    if let (Some(a), Some(b)) = (&a.state, &b.state) {
        // Values are below 30: an i8 step is 30/127, a half's last bit is 1/64.
        close(&a.values, &b.values, &|_| 0.12);
    }
    let step = match b.coding {
        ValueCoding::Step(step) => Some(step),
        ValueCoding::Graded(_) => Some(1.0),
        ValueCoding::F16 => None,
    };
    if let Some(step) = step {
        // Statistics in their small steps, logits and maximum with rounding and shift of half a step each, in f32; the odds'
        // rounding shifts as well, by up to tau / 64.
        let level = 1.01 / 64.0;
        let shift = level + b.temperatures.first().map_or(0.0, |tau| tau * level);
        close(&a.logits, &b.logits, &|_| 1.01 * step + shift);
        close(&a.max, &b.max, &|_| 0.51 * step + shift);
        close(&a.mean, &b.mean, &|_| level);
        close(&a.std, &b.std, &|std| std * 1.01 / 512.0);
        for ((a, b), tau) in a.logsumexp.iter().zip(&b.logsumexp).zip(&b.temperatures) {
            close(a, b, &|_| level / tau + 0.001);
        }
    } else {
        // Eleven significant bits of a distance of up to 80, twice for the shift.
        close(&a.logits, &b.logits, &|_| 0.12);
        assert_eq!(
            (&a.max, &a.mean, &a.std, &a.logsumexp),
            (&b.max, &b.mean, &b.std, &b.logsumexp)
        );
    }
    let rows = Rows {
        logits: b.logits.clone(),
        max: b.max.clone(),
        mean: b.mean.clone(),
        std: b.std.clone(),
        logsumexp: b.logsumexp.clone(),
        state: b.state.clone(),
        ..a.clone()
    };
    assert_eq!(
        Frame {
            rows,
            ..read.clone()
        },
        *frame
    );
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
    for coding in [
        ValueCoding::Step(0.125),
        ValueCoding::F16,
        ValueCoding::GRADED,
    ] {
        for state in [None, Some(StateCoding::F16), Some(StateCoding::I8)] {
            let frame = sample(9, 16, 300, coding, state);
            let read = Frame::decode(&frame.encode(&context(5)).unwrap(), &context(5)).unwrap();
            for row in 0..9 {
                let (before, after) = (kept_mass(&frame.rows, row), kept_mass(&read.rows, row));
                // f32 storage of mass and logits: a few 1e-6; half a step of the odds else.
                let tolerance = match coding {
                    ValueCoding::F16 => 1e-5,
                    _ => before * (1.0 - before) / 63.0 + 1e-5,
                };
                assert!((before - after).abs() < tolerance, "{before} {after}");
                assert!(after <= 1.0 + 1e-5);
            }
            assert_read(&read, &frame);
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
pub(super) fn forge(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
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
    for at in (16..40).step_by(4).chain([56, 60, 64, 68]) {
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
    forged[64..68].fill(0);
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
