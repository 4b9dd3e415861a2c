use candle_core::DType;
use distill_proto::{Estimator, StateCoding, StateKind, ValueCoding};

use super::*;
use crate::{
    basis::Basis,
    testing::{VOCAB_SIZE, decoder},
};

fn capture(k: usize, chunk_rows: usize) -> Capture {
    Capture {
        keep: Keep::top_k(k),
        temperatures: vec![1.0, 2.0],
        coding: ValueCoding::F16,
        state: StateSetting::Exact(StateCoding::F16),
        chunk_rows,
    }
}

/// Two sequences of different lengths with gaps in their masks.
fn batch() -> [(Vec<u32>, Vec<bool>); 2] {
    let mask = |n: usize, every: usize| (0..n).map(|t| t > 0 && t % every == 0).collect();
    [
        ((0..19).map(|t| t * 13 % 250).collect(), mask(19, 2)),
        ((0..7).map(|t| 100 + t * 5).collect(), mask(7, 1)),
    ]
}

fn tokens(batch: &[(Vec<u32>, Vec<bool>)]) -> Vec<Tokens<'_>> {
    (0..)
        .zip(batch)
        .map(|(id, (token_ids, target_mask))| Tokens {
            id,
            draw_id: id,
            token_ids,
            target_mask,
        })
        .collect()
}

/// The slow reference: every logit of every position, one sequence at a time.
fn dense_logits(backbone: &dyn Backbone, token_ids: &[u32]) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let ids = Tensor::new(token_ids, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let hidden = backbone.hidden_states(&ids).unwrap().squeeze(0).unwrap();
    let head = backbone.head_matrix().tensor().unwrap();
    let logits = hidden.matmul(&head.t().unwrap()).unwrap();
    let logits = logits.narrow(1, 0, VOCAB_SIZE as usize).unwrap();
    (logits.to_vec2().unwrap(), hidden.to_vec2().unwrap())
}

#[test]
fn rows_are_those_of_dense_logits_before_every_target() {
    let batch = batch();
    for chunk_rows in [1, 4, 100] {
        let teacher =
            Teacher::new(decoder(DType::F32), VOCAB_SIZE, capture(5, chunk_rows)).unwrap();
        let found = teacher.rows(&tokens(&batch)).unwrap();
        for ((token_ids, mask), rows) in batch.iter().zip(&found) {
            let (logits, hidden) = dense_logits(teacher.backbone.as_ref(), token_ids);
            let positions: Vec<usize> = (0..mask.len()).filter(|&t| mask[t]).collect();
            assert_eq!(rows.rows, positions.len());
            let state = rows.state.as_ref().unwrap();
            for (row, &t) in positions.iter().enumerate() {
                let dense = &logits[t - 1];
                let max = dense.iter().copied().fold(f32::MIN, f32::max);
                // Other shapes of the product round differently; logits are of order ten.
                assert!((rows.max[row] - max).abs() < 1e-4);
                let kept = &rows.ids[row * 5..(row + 1) * 5];
                let smallest = kept
                    .iter()
                    .map(|&id| dense[id as usize])
                    .fold(f32::MAX, f32::min);
                let above = dense.iter().filter(|&&y| y > smallest + 1e-4).count();
                assert!(
                    above <= 5 && kept.is_sorted(),
                    "{above} logits above the kept ones"
                );
                let lse = dense
                    .iter()
                    .map(|y| f64::from((y - max) / 2.0).exp())
                    .sum::<f64>()
                    .ln();
                assert!(
                    (f64::from(rows.logsumexp[1][row]) - lse - f64::from(max / 2.0)).abs() < 1e-4
                );
                let c = &state.values[row * state.rank..(row + 1) * state.rank];
                assert!(
                    c.iter()
                        .zip(&hidden[t - 1])
                        .all(|(a, b)| (a - b).abs() < 1e-4)
                );
            }
        }
    }
}

#[test]
fn centred_logits_are_basis_times_state() {
    let model = decoder(DType::F32);
    let (logits, hidden) = dense_logits(model.as_ref(), &[5, 6, 7]);
    let teacher = Teacher::new(model, VOCAB_SIZE, capture(1, 8)).unwrap();
    let basis = Basis::new(teacher.head().clone()).unwrap();
    let bytes: Vec<u8> = basis
        .chunks()
        .flat_map(|rows| basis.bytes(rows).unwrap())
        .collect();
    assert_eq!(bytes.len(), 2 * VOCAB_SIZE as usize * basis.rank());
    let values: Vec<f32> = bytes
        .chunks_exact(2)
        .map(|pair| half::f16::from_le_bytes([pair[0], pair[1]]).to_f32())
        .collect();
    let mean = logits[2].iter().sum::<f32>() / VOCAB_SIZE as f32;
    for (id, row) in values.chunks_exact(basis.rank()).enumerate() {
        let product: f32 = row.iter().zip(&hidden[2]).map(|(b, c)| b * c).sum();
        // f16 rounds 64 entries of order 0.2 by 1e-4 each, against states of order one.
        assert!((product - (logits[2][id] - mean)).abs() < 5e-3);
    }
}

#[test]
fn a_half_precision_head_gives_unrounded_logits() {
    let batch = batch();
    let teacher = Teacher::new(decoder(DType::BF16), VOCAB_SIZE, capture(5, 16)).unwrap();
    let rows = teacher.rows(&tokens(&batch)).unwrap();
    let state = rows[0].state.as_ref().unwrap();
    let head = teacher
        .head()
        .tensor()
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    let id = rows[0].ids[0] as usize;
    let logit: f32 = head[id].iter().zip(&state.values).map(|(w, h)| w * h).sum();
    assert!((logit - rows[0].logits[0]).abs() < 1e-4 * (1.0 + logit.abs()));
}

#[test]
fn a_tokenizer_larger_than_the_head_and_a_k_larger_than_the_vocabulary_are_refused() {
    let decoder = decoder(DType::F32);
    let refusal = |vocab_size, k| {
        let checked = capture(k, 1).check(decoder.config(), vocab_size);
        checked.unwrap_err().to_string()
    };
    assert!(refusal(100_000, 1).contains("100000 ids"));
    assert!(refusal(10, 11).contains("--top-k"));
}

#[test]
fn nan_names_the_sequence_and_the_token() {
    let batch = batch();
    let tokens = tokens(&batch);
    // Nine targets in the first sequence; row 10 is the second target of the second.
    let Error::NotFinite { sequence, position } = not_finite(&tokens, 10) else {
        panic!("another error");
    };
    assert_eq!((sequence, position), (1, 2));
}

#[test]
fn drawn_rows_do_not_depend_on_chunks_or_batches_and_are_valid_frames() {
    let batch = batch();
    for estimator in [Estimator::Sampled, Estimator::HeadSampled] {
        let rows = |chunk_rows, draw_ids: [u64; 2], together: bool| {
            let mut capture = capture(5, chunk_rows);
            capture.keep = Keep {
                estimator,
                draws: 9,
                sample_seed: 3,
                ..capture.keep
            };
            let teacher = Teacher::new(decoder(DType::F32), VOCAB_SIZE, capture).unwrap();
            let mut tokens = tokens(&batch);
            let ids = tokens.iter_mut().zip(draw_ids);
            ids.for_each(|(tokens, id)| tokens.draw_id = id);
            match together {
                true => teacher.rows(&tokens).unwrap(),
                false => tokens
                    .chunks(1)
                    .map(|one| teacher.rows(one).unwrap().remove(0))
                    .collect(),
            }
        };
        let expected = rows(100, [7, 8], true);
        for (chunk_rows, together) in [(1, true), (4, false), (100, false)] {
            let found = rows(chunk_rows, [7, 8], together);
            for (a, b) in found.iter().zip(&expected) {
                // Logits differ by rounding with the shape of a product, but no draw is so close to the border here.
                assert_eq!((&a.ids, &a.counts), (&b.ids, &b.counts));
            }
        }
        let others = rows(100, [9, 8], true);
        assert_ne!(others[0].counts, expected[0].counts);
        assert_eq!(others[1], expected[1]);
        for rows in &expected {
            let width = rows.k;
            let drawn = |counts: &[u32]| -> u32 {
                let padding = |count: &&u32| !estimator.is_padding(**count);
                counts.iter().filter(padding).sum()
            };
            assert!(rows.counts.chunks(width).all(|counts| drawn(counts) == 9));
            assert!(
                rows.ids
                    .chunks(width)
                    .all(|ids| ids.is_sorted_by(|a, b| a < b))
            );
            let most = if estimator == Estimator::Sampled {
                9
            } else {
                14
            };
            assert!(width <= most);
        }
    }
}

#[test]
fn an_earlier_layer_is_that_of_the_decoder() {
    let batch = batch();
    let capture = Capture {
        state: "hidden:1".parse().unwrap(),
        ..capture(2, 50)
    };
    let teacher = Teacher::new(decoder(DType::F32), VOCAB_SIZE, capture).unwrap();
    let rows = teacher.rows(&tokens(&batch)[..1]).unwrap();
    let state = rows[0].state.as_ref().unwrap();
    assert_eq!((state.kind, state.rank), (StateKind::Hidden, 64));
    let ids = Tensor::new(batch[0].0.as_slice(), &Device::Cpu).unwrap();
    let ids = ids.unsqueeze(0).unwrap();
    let (_, layers) = teacher
        .backbone
        .hidden_states_and_layers(&ids, &[1])
        .unwrap();
    let layer: Vec<Vec<f32>> = layers[0].squeeze(0).unwrap().to_vec2().unwrap();
    let positions = (0..batch[0].1.len()).filter(|&t| batch[0].1[t]);
    let expected: Vec<f32> = positions.flat_map(|t| layer[t - 1].clone()).collect();
    assert_eq!(state.values, expected);
}

#[test]
fn several_layers_lie_side_by_side_in_a_row() {
    let batch = batch();
    let rows = |state: &str| {
        let capture = Capture {
            state: state.parse().unwrap(),
            ..capture(2, 50)
        };
        let teacher = Teacher::new(decoder(DType::F32), VOCAB_SIZE, capture).unwrap();
        let rows = teacher.rows(&tokens(&batch)[..1]).unwrap();
        rows[0].state.clone().unwrap()
    };
    let all = rows("hidden:0,1,last");
    assert_eq!(
        (all.kind, all.rank, all.layers),
        (StateKind::Hidden, 3 * 64, 3)
    );
    let each = ["hidden:0", "hidden:1", "exact"].map(rows);
    for (j, row) in all.values.chunks(3 * 64).enumerate() {
        let own = each
            .iter()
            .flat_map(|one| &one.values[j * 64..(j + 1) * 64]);
        assert!(row.iter().eq(own), "row {j}");
    }
}

#[test]
fn a_state_that_the_model_does_not_have_is_refused() {
    for (state, reason) in [
        ("hidden:0,2", "write `last`"),
        ("hidden:0,3,last", "has 2"),
        ("hidden:2", "use exact"),
        ("hidden:3", "has 2"),
        ("sketch:65", "hidden size of 64"),
    ] {
        let capture = Capture {
            state: state.parse().unwrap(),
            ..capture(2, 50)
        };
        let checked = capture.check(decoder(DType::F32).config(), VOCAB_SIZE);
        let error = checked.unwrap_err().to_string();
        assert!(
            error.starts_with("--state: ") && error.contains(reason),
            "{error}"
        );
    }
}
