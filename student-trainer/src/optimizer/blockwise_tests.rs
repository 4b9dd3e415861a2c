//! Maps, codes and whole updates against bitsandbytes (tests/fixtures/make_adamw8bit.py).

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor, Var};

use super::*;
use crate::optimizer::{
    AdamWConfig, LearningRateRatios, Optimizer, OptimizerConfig, OptimizerKind,
};

fn fixture() -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/optimizer/adamw8bit.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn maps() -> [(&'static str, &'static DynamicMap); 2] {
    [
        ("signed", DynamicMap::signed()),
        ("unsigned", DynamicMap::unsigned()),
    ]
}

#[test]
fn the_maps_are_bitsandbytes_to_the_bit() {
    let fixture = fixture();
    for (kind, map) in maps() {
        assert_eq!(
            map.values,
            floats(&fixture[&format!("map.{kind}")]),
            "{kind}"
        );
    }
}

#[test]
fn codes_and_values_of_blocks_are_bitsandbytes() {
    let fixture = fixture();
    for (kind, map) in maps() {
        let of = |what: &str| &fixture[&format!("{kind}.{what}")];
        let (source, codes) = (floats(of("source")), bytes(of("codes")));
        let (absmax, dequantized) = (floats(of("absmax")), floats(of("dequantized")));
        let blocks = source.chunks(BLOCK).zip(codes.chunks(BLOCK));
        for (i, ((source, codes), expected)) in blocks.zip(dequantized.chunks(BLOCK)).enumerate() {
            let (mut own, mut values) = (vec![0; source.len()], vec![0.0; source.len()]);
            let largest = map.quantize(source, &mut own);
            assert_eq!(largest, absmax[i], "{kind} block {i}");
            assert_eq!(own, codes, "{kind} block {i}");
            map.dequantize(&own, largest, &mut values);
            assert_eq!(values, expected, "{kind} block {i}");
        }
    }
}

#[test]
fn every_value_gets_the_code_that_searching_all_middles_gives() {
    for (kind, map) in maps() {
        let exact = map.middles.iter().copied();
        let near = exact.clone().flat_map(|m| [m.next_up(), m.next_down()]);
        let spread = (0..40_000).map(|i| (i as f32 * 0.37).sin() * 10f32.powi(-(i % 9)));
        for value in exact
            .chain(near)
            .chain(spread)
            .chain([0.0, -0.0, 1.0, -1.0])
        {
            let searched = map.middles.partition_point(|&middle| middle < value);
            assert_eq!(usize::from(map.code(value)), searched, "{kind} {value}");
        }
    }
}

fn optimizer(fixture: &HashMap<String, Tensor>) -> (Optimizer, [(String, Var); 2]) {
    let parameters = ["matrix", "small"].map(|name| {
        let start = &fixture[&format!("start.{name}")];
        (name.to_owned(), Var::from_tensor(start).unwrap())
    });
    let config = OptimizerConfig {
        kind: OptimizerKind::AdamW8bit,
        adamw: AdamWConfig {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
        },
        ratios: LearningRateRatios::default(),
    };
    let optimizer = Optimizer::new(parameters.to_vec(), config).unwrap();
    (optimizer, parameters)
}

fn train(
    optimizer: &mut Optimizer,
    fixture: &HashMap<String, Tensor>,
    steps: std::ops::Range<usize>,
) {
    let rates = fixture["rates"].to_vec1::<f64>().unwrap();
    for step in steps {
        let gradients = ["matrix", "small"].map(|name| {
            let gradient = fixture[&format!("gradient.{name}")].get(step).unwrap();
            gradient.to_dtype(DType::F32).unwrap()
        });
        let of = |name: &str| Some(&gradients[usize::from(name == "small")]);
        optimizer.update(rates[step], 1.0, of).unwrap();
    }
}

#[test]
fn six_updates_are_those_of_bitsandbytes() {
    let fixture = fixture();
    let (mut optimizer, parameters) = optimizer(&fixture);
    train(&mut optimizer, &fixture, 0..6);
    for (name, parameter) in &parameters {
        let expected = floats(&fixture[&format!("after.{name}")]);
        for (own, expected) in floats(parameter.as_tensor()).iter().zip(&expected) {
            // Both round in f32, in another order; an update is at most about 0.03.
            assert!((own - expected).abs() < 2e-6, "{name} {own} {expected}");
        }
    }
    let state = optimizer.state().unwrap();
    for moment in ["exp_avg", "exp_avg_sq"] {
        let key = format!("matrix.{moment}");
        let (own, expected) = (
            bytes(&state[&key]),
            bytes(&fixture[&format!("after.{key}")]),
        );
        let other: Vec<_> = own.iter().zip(&expected).filter(|(a, b)| a != b).collect();
        // torch's sums may be fused into one rounding, which moves a value that lies on a middle.
        assert!(other.len() <= own.len() / 1000, "{key}: {}", other.len());
        assert!(other.iter().all(|(a, b)| a.abs_diff(**b) == 1), "{key}");
        for key in [format!("{key}.absmax"), format!("small.{moment}")] {
            let expected = floats(&fixture[&format!("after.{key}")]);
            let largest = expected
                .iter()
                .fold(0f32, |most, value| most.max(value.abs()));
            for (own, expected) in floats(&state[&key]).iter().zip(&expected) {
                // Six sums may cancel; a value is as exact as the largest of them.
                assert!(
                    (own - expected).abs() <= 3e-7 * largest,
                    "{key} {own} {expected}"
                );
            }
        }
    }
}

#[test]
fn a_saved_8_bit_state_continues_bitwise() {
    let fixture = fixture();
    let (mut whole, expected) = optimizer(&fixture);
    train(&mut whole, &fixture, 0..6);
    let (mut first, parameters) = optimizer(&fixture);
    train(&mut first, &fixture, 0..3);
    let state = first.state().unwrap();
    let mut second = Optimizer::new(parameters.to_vec(), first.config()).unwrap();
    second.load_state(&state).unwrap();
    train(&mut second, &fixture, 3..6);
    for ((name, own), (_, expected)) in parameters.iter().zip(&expected) {
        assert_eq!(
            floats(own.as_tensor()),
            floats(expected.as_tensor()),
            "{name}"
        );
    }
}

#[test]
fn moments_take_two_bytes_an_element_and_eight_a_block() {
    let (optimizer, _) = optimizer(&fixture());
    let (matrix, small) = (67 * 64u64, 9 * 11);
    let blocks = matrix.div_ceil(256);
    assert_eq!(optimizer.state_bytes(), 2 * matrix + 8 * blocks + 8 * small);
    let planned = [matrix, small].map(|count| OptimizerKind::AdamW8bit.state_bytes(count));
    assert_eq!(optimizer.state_bytes(), planned.iter().sum::<u64>());
}

#[test]
fn a_32_bit_state_is_not_taken_for_an_8_bit_one() {
    let (mut optimizer, parameters) = optimizer(&fixture());
    let config = OptimizerConfig {
        kind: OptimizerKind::AdamW,
        ..optimizer.config()
    };
    let other = Optimizer::new(parameters.to_vec(), config).unwrap();
    let error = optimizer.load_state(&other.state().unwrap()).unwrap_err();
    assert!(error.to_string().contains("matrix.exp_avg"), "{error}");
}
