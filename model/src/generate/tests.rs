//! Tests of generation against transformers' `generate` and logits processors (tests/fixtures/make_generate.py), against passes without a
//! cache, and of answers that do not depend on who shares their batch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::*;
use crate::test_support::{largest_difference, values};
use crate::testing::{TinyModel, write_tiny_model};
use crate::{Base, Decoder, LoadOptions, LoraConfig, ModelConfig, Piece, Weights};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let file = fixtures().join("generate").join(name);
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Greedy {
    prompt: Vec<u32>,
    written: Vec<u32>,
    end: u32,
    until_end: Vec<u32>,
}

fn options(rows: usize, sampling: Sampling, ends: &[u32]) -> Options {
    Options {
        rows,
        positions: 128,
        vocabulary: 48,
        sampling,
        ends: ends.iter().copied().collect(),
    }
}

/// What is written after each prompt.
fn write(decoder: &Decoder, options: Options, prompts: &[Prompt]) -> Vec<Vec<u32>> {
    let mut generator = Generator::new(decoder, options).unwrap();
    for (number, prompt) in prompts.iter().enumerate() {
        assert_eq!(generator.submit(prompt.clone()).unwrap(), number);
    }
    let mut written = vec![Vec::new(); prompts.len()];
    while !generator.is_idle() {
        for token in generator.step().unwrap() {
            written[token.prompt].push(token.id);
        }
    }
    assert!(generator.step().unwrap().is_empty());
    written
}

fn prompts(cases: &[Greedy]) -> Vec<Prompt> {
    let prompt = |(seed, case): (usize, &Greedy)| Prompt {
        ids: case.prompt.clone(),
        max_new_tokens: case.written.len(),
        seed: seed as u64,
    };
    cases.iter().enumerate().map(prompt).collect()
}

fn family(name: &str) -> Decoder {
    let dir = fixtures().join("families").join(name);
    let config = ModelConfig::load_teacher(&dir).unwrap();
    let weights = Weights::open(&dir).unwrap();
    Decoder::load(&config, &weights, &LoadOptions::reference()).unwrap()
}

#[test]
fn transformers_writes_the_same_behind_prompts_of_unlike_length() {
    for (name, cases) in read::<BTreeMap<String, Vec<Greedy>>>("greedy.json") {
        let decoder = family(&name);
        let expected: Vec<&[u32]> = cases.iter().map(|case| &case.written[..]).collect();
        for rows in [1, 3, 16] {
            let options = options(rows, Sampling::GREEDY, &[]);
            let written = write(&decoder, options, &prompts(&cases));
            assert_eq!(written, expected, "{name}, {rows} rows");
        }
        for (case, prompt) in cases.iter().zip(prompts(&cases)) {
            let options = options(2, Sampling::GREEDY, &[case.end, 9000]);
            let written = write(&decoder, options, &[prompt]);
            assert_eq!(written, [&case.until_end[..]], "{name}");
        }
    }
}

/// A tiny model, as a student in training: frozen weights in four bits or as they are, and adapters that change something.
fn student(base: Base, dtype: DType) -> Decoder {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path(), &TinyModel::qwen3(), 5).unwrap();
    let options = LoadOptions {
        base,
        dtype,
        lora: Some(LoraConfig::default()),
        ..LoadOptions::reference()
    };
    let config = ModelConfig::load(dir.path()).unwrap();
    let weights = Weights::open(dir.path()).unwrap();
    let decoder = Decoder::load(&config, &weights, &options).unwrap();
    for (seed, (name, var)) in decoder.parameters().into_iter().enumerate() {
        if name.contains("lora_B") {
            let values = crate::test_support::random(var.dims(), seed as u64);
            var.set(&(values * 0.05).unwrap()).unwrap();
        }
    }
    decoder
}

fn ids(count: usize, seed: u32) -> Vec<u32> {
    let count = count as u32;
    (0..count).map(|i| (i * 31 + seed * 17) % 48).collect()
}

#[test]
fn every_step_s_logits_are_those_of_a_pass_without_a_cache() {
    // In f32 the same sums in another order; in bf16, with 8 bits, rounded some forty times.
    for (base, dtype, tolerance) in [
        (Base::AsStored, DType::F32, 2e-5),
        (Base::QuantizeNf4, DType::F32, 2e-5),
        (Base::QuantizeNf4, DType::BF16, 0.15),
    ] {
        let decoder = student(base, dtype);
        let generator = Generator::new(&decoder, options(2, Sampling::GREEDY, &[])).unwrap();
        let (first, second) = (ids(20, 1), ids(11, 2));
        let whole = |ids: &[u32]| {
            let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0);
            let hidden = decoder.hidden_states(&ids.unwrap()).unwrap();
            generator.logits(&hidden.squeeze(0).unwrap()).unwrap()
        };
        let mut cache = decoder.new_cache(2, 24).unwrap();
        let mut check = |pieces: &[(usize, &[u32])], rows: &[(&[u32], usize)]| {
            let pieces: Vec<Piece<'_>> = pieces
                .iter()
                .map(|&(slot, ids)| Piece { slot, ids })
                .collect();
            let hidden = decoder.extend(&pieces, &mut cache).unwrap();
            let logits = generator.logits(&hidden).unwrap();
            let expected = rows
                .iter()
                .map(|(ids, row)| whole(ids).narrow(0, *row, 1).unwrap());
            let expected = Tensor::cat(&expected.collect::<Vec<_>>(), 0).unwrap();
            let difference = largest_difference(&logits, &expected);
            assert!(difference < tolerance, "{base:?} {dtype:?}: {difference}");
        };
        check(&[(1, &first[..2])], &[(&first, 0), (&first, 1)]);
        // Two prompts in one pass, then one token of each.
        let rows = [(&second[..], 0), (&second, 1), (&second, 2), (&first, 2)];
        check(&[(0, &second[..3]), (1, &first[2..3])], &rows);
        for at in 3..11 {
            let pieces = [(0, &second[at..=at]), (1, &first[at..=at])];
            check(&pieces, &[(&second, at), (&first, at)]);
        }
        check(&[(1, &first[11..12])], &[(&first, 11)]);
    }
}

#[test]
fn an_answer_is_the_same_to_the_bit_whoever_shares_its_batch() {
    let drawn = Sampling {
        temperature: 1.0,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.01,
    };
    for base in [Base::AsStored, Base::QuantizeNf4, Base::Trainable] {
        let decoder = match base {
            Base::Trainable => family_trainable(),
            base => student(base, DType::F32),
        };
        let prompt = |seed: usize| Prompt {
            ids: ids(1 + seed * 7 % 30, seed as u32),
            max_new_tokens: 5 + seed % 9,
            seed: seed as u64,
        };
        let all: Vec<Prompt> = (0..11).map(prompt).collect();
        let alone: Vec<Vec<u32>> = all
            .iter()
            .flat_map(|prompt| {
                write(
                    &decoder,
                    options(1, drawn, &[7]),
                    std::slice::from_ref(prompt),
                )
            })
            .collect();
        for rows in [1, 2, 5, 16] {
            assert_eq!(write(&decoder, options(rows, drawn, &[7]), &all), alone);
        }
        let mut backwards = all.clone();
        backwards.reverse();
        let mut written = write(&decoder, options(4, drawn, &[7]), &backwards);
        written.reverse();
        assert_eq!(written, alone);
        let other = all.into_iter().map(|prompt| Prompt {
            seed: prompt.seed + 100,
            ..prompt
        });
        let other: Vec<Prompt> = other.collect();
        assert_ne!(write(&decoder, options(4, drawn, &[7]), &other), alone);

        // Not the choice alone: hidden states, among others and alone.
        let mut cache = decoder.new_cache(9, 40).unwrap();
        let mut one = decoder.new_cache(1, 40).unwrap();
        let slots: Vec<Vec<u32>> = (0..9).map(|slot| ids(3 + 4 * slot, slot as u32)).collect();
        for (slot, ids) in slots.iter().enumerate() {
            decoder.extend(&[Piece { slot, ids }], &mut cache).unwrap();
        }
        decoder
            .extend(
                &[Piece {
                    slot: 0,
                    ids: &slots[6],
                }],
                &mut one,
            )
            .unwrap();
        let next: Vec<Piece<'_>> = (0..9).map(|slot| Piece { slot, ids: &[11] }).collect();
        let together = decoder.extend(&next, &mut cache).unwrap();
        let alone = decoder.extend(&next[..1], &mut one).unwrap();
        let row = together.narrow(0, 6, 1).unwrap();
        assert_eq!(values(&row), values(&alone), "{base:?}");
    }
}

fn family_trainable() -> Decoder {
    let dir = fixtures().join("families/qwen2-windows");
    let config = ModelConfig::load(&dir).unwrap();
    let weights = Weights::open(&dir).unwrap();
    let options = LoadOptions {
        base: Base::Trainable,
        ..LoadOptions::reference()
    };
    Decoder::load(&config, &weights, &options).unwrap()
}

#[derive(Deserialize)]
struct Samplers {
    /// null stands for minus infinity.
    logits: Vec<Vec<Option<f32>>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    row: usize,
    ids: Vec<u32>,
    probabilities: Vec<f64>,
}

#[test]
fn transformers_leaves_the_same_tokens_to_draw_from() {
    const DRAWS: u64 = 2000;
    let Samplers { logits, cases } = read("samplers.json");
    for case in cases {
        let sampling = Sampling {
            temperature: case.temperature.unwrap_or(1.0),
            top_k: case.top_k.unwrap_or(0),
            top_p: case.top_p.unwrap_or(1.0),
            min_p: case.min_p.unwrap_or(0.0),
        };
        let row = logits[case.row].iter();
        let row: Vec<f32> = row.map(|x| x.unwrap_or(f32::NEG_INFINITY)).collect();
        let mut drawn = BTreeMap::new();
        for place in 0..DRAWS {
            let id = sampling.choose(&row, uniform(3, place)).unwrap();
            *drawn.entry(id).or_insert(0.0) += 1.0 / DRAWS as f64;
        }
        let expected: BTreeMap<u32, f64> = case.ids.into_iter().zip(case.probabilities).collect();
        assert!(
            drawn.keys().all(|id| expected.contains_key(id)),
            "{sampling:?}"
        );
        for (id, probability) in expected {
            let share = drawn.get(&id).copied().unwrap_or_default();
            // Four deviations of a share of so many draws.
            let deviation = (probability * (1.0 - probability) / DRAWS as f64).sqrt();
            let allowed = 4.0 * deviation + 2.0 / DRAWS as f64;
            assert!(
                (share - probability).abs() < allowed,
                "{sampling:?}, id {id}: {share}, expected {probability}"
            );
        }
    }
}

#[test]
fn logits_that_are_no_numbers_choose_no_token() {
    let drawn = Sampling {
        temperature: 1.0,
        ..Sampling::GREEDY
    };
    for sampling in [Sampling::GREEDY, drawn] {
        for row in [
            vec![],
            vec![0.0, f32::NAN],
            vec![f32::INFINITY, 0.0],
            vec![f32::NEG_INFINITY; 3],
        ] {
            let error = sampling.choose(&row, 0.5).unwrap_err().to_string();
            assert!(error.contains("not finite numbers"), "{error}");
        }
        let row = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        for random in [0.0, 0.5, 1.0 - f64::EPSILON] {
            assert_eq!(sampling.choose(&row, random).unwrap(), 1);
        }
    }
    // The first of equally likely ones, as torch's argmax.
    assert_eq!(Sampling::GREEDY.choose(&[0.0, 2.0, 2.0], 0.0).unwrap(), 1);
    for (name, broken) in [
        (
            "temperature",
            Sampling {
                temperature: f64::NAN,
                ..drawn
            },
        ),
        (
            "temperature",
            Sampling {
                temperature: 1e-40,
                ..drawn
            },
        ),
        (
            "temperature",
            Sampling {
                temperature: -1.0,
                ..drawn
            },
        ),
        (
            "top_p",
            Sampling {
                top_p: 0.0,
                ..drawn
            },
        ),
        // 0 in f32: nothing could be drawn.
        (
            "top_p",
            Sampling {
                top_p: 1e-50,
                ..drawn
            },
        ),
        (
            "top_p",
            Sampling {
                top_p: f64::NAN,
                ..drawn
            },
        ),
        (
            "min_p",
            Sampling {
                min_p: 1.5,
                ..drawn
            },
        ),
        (
            "min_p",
            Sampling {
                min_p: f64::NAN,
                ..drawn
            },
        ),
    ] {
        assert!(broken.validate().unwrap_err().starts_with(name));
    }
}

#[test]
fn prompts_that_do_not_fit_are_refused_and_lengths_are_kept() {
    let decoder = student(Base::AsStored, DType::F32);
    let short = Options {
        positions: 8,
        ..options(2, Sampling::GREEDY, &[])
    };
    let mut generator = Generator::new(&decoder, short.clone()).unwrap();
    let prompt = |length, max_new_tokens| Prompt {
        ids: ids(length, 1),
        max_new_tokens,
        seed: 0,
    };
    for (broken, part) in [
        (prompt(0, 1), "nothing to do"),
        (prompt(1, 0), "nothing to do"),
        (prompt(8, 1), "the prompt has 8 tokens"),
    ] {
        let error = generator.submit(broken).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    // One ends at its own limit, one at the cache's.
    let written = write(&decoder, short.clone(), &[prompt(3, 2), prompt(5, 100)]);
    assert_eq!(written.iter().map(Vec::len).collect::<Vec<_>>(), [2, 3]);
    // Stopped from outside: the slot is free, and who waits comes in.
    let mut generator = Generator::new(
        &decoder,
        Options {
            rows: 1,
            ..short.clone()
        },
    )
    .unwrap();
    for _ in 0..3 {
        generator.submit(prompt(2, 6)).unwrap();
    }
    assert_eq!(generator.step().unwrap()[0].prompt, 0);
    generator.stop(0);
    generator.stop(2);
    assert_eq!(generator.step().unwrap()[0].prompt, 1);
    generator.stop(1);
    assert!(generator.is_idle());
    let outside = Prompt {
        ids: vec![3, 96],
        ..prompt(1, 1)
    };
    generator.submit(outside).unwrap();
    let error = generator.step().unwrap_err().to_string();
    assert!(error.contains("token id 96"), "{error}");
    let long = Options {
        positions: 1 << 20,
        ..short
    };
    let error = Generator::new(&decoder, long).unwrap_err().to_string();
    assert!(error.contains("max_position_embeddings"), "{error}");
    let error = decoder.new_cache(1 << 40, 4096).unwrap_err().to_string();
    assert!(error.contains("fewer sequences"), "{error}");
}
