//! Tests of the tape: its gradients against the graph of the whole model, and against central
//! differences.

#[path = "checkpoint_packing_tests.rs"]
mod packing;

use super::*;
use crate::ops::cuda::Cuda;
use crate::reference;
use crate::test_support::{largest_difference, random, values};
use crate::testing::{TinyModel, write_tiny_model};
use crate::{Base, LoadOptions, LoraConfig, ModelConfig, Weights};
use candle_core::{DType, Device};
use distill_kernels::EMULATED;

/// A model with three layers, and with every B away from zero, so that every A has a gradient too.
fn load(model: TinyModel, options: &LoadOptions) -> Decoder {
    let model = TinyModel {
        num_hidden_layers: 3,
        ..model
    };
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path(), &model, 1).unwrap();
    let config = ModelConfig::load(dir.path()).unwrap();
    let weights = Weights::open(dir.path()).unwrap();
    let decoder = Decoder::load(&config, &weights, options).unwrap();
    for (i, (name, var)) in decoder.parameters().into_iter().enumerate() {
        if name.ends_with("lora_B.weight") {
            var.set(&(random(var.dims(), i as u64) * 0.1).unwrap())
                .unwrap();
        }
    }
    decoder
}

fn lora(base: Base) -> LoadOptions {
    LoadOptions {
        base,
        lora: Some(LoraConfig {
            rank: 4,
            ..LoraConfig::default()
        }),
        ..LoadOptions::reference()
    }
}

fn everything() -> LoadOptions {
    LoadOptions {
        base: Base::Trainable,
        ..LoadOptions::reference()
    }
}

fn ids() -> Tensor {
    let ids: Vec<u32> = (0..2 * 70).map(|i| (i * i + 3 * i) % 96).collect();
    Tensor::from_vec(ids, (2, 70), &Device::Cpu).unwrap()
}

fn upstream() -> Tensor {
    random(&[2, 70, 64], 7)
}

/// The slow reference: one graph over the whole model.
fn whole_graph(decoder: &Decoder) -> Gradients {
    let grad = upstream().to_dtype(decoder.dtype()).unwrap();
    let loss = (decoder.forward_graph(&ids()).unwrap() * grad).unwrap();
    let store = loss.sum_all().unwrap().backward().unwrap();
    let mut gradients = Gradients::new();
    gradients.add_from(&store, &decoder.parameters()).unwrap();
    gradients
}

fn taped(decoder: &Decoder, checkpointing: Checkpointing) -> Gradients {
    let tape = decoder.tape(&ids(), checkpointing).unwrap();
    let expected = decoder.hidden_states(&ids()).unwrap();
    assert_eq!(values(tape.hidden()), values(&expected));
    let mut gradients = Gradients::new();
    tape.backward(&upstream(), &mut gradients).unwrap();
    gradients
}

#[track_caller]
fn assert_tape_equals_whole_graph(decoder: &Decoder) {
    let expected = whole_graph(decoder);
    let parameters = decoder.parameters();
    assert_eq!(expected.len(), parameters.len());
    let every = [1, 2, 3, 100].map(Checkpointing::Every);
    for checkpointing in [&[Checkpointing::Off], &every[..]].concat() {
        let gradients = taped(decoder, checkpointing);
        assert!(
            gradients
                .check(&parameters, &gradients.squares().unwrap())
                .unwrap()
                .passed()
        );
        assert_eq!(gradients.len(), expected.len());
        for (name, gradient) in gradients.iter() {
            let expected = expected.get(name).unwrap();
            let size = values(expected)
                .into_iter()
                .fold(0f32, |max, x| max.max(x.abs()));
            let difference = largest_difference(gradient, expected) / size;
            // The same kernels on the same numbers: only sums of gradients (residual branches, q,
            // k and v) may be taken in another order.
            assert!(difference < 1e-5, "{checkpointing:?}, {name}: {difference}");
        }
    }
}

#[test]
fn lora_gradients_equal_those_of_the_whole_graph() {
    let decoder = load(TinyModel::qwen2(), &lora(Base::AsStored));
    // Seven adapters of two matrices in each of three layers.
    assert_eq!(decoder.parameters().len(), 7 * 2 * 3);
    assert_tape_equals_whole_graph(&decoder);
    assert_tape_equals_whole_graph(&load(TinyModel::llama(), &lora(Base::AsStored)));
}

#[test]
fn lora_gradients_over_nf4_equal_those_of_the_whole_graph() {
    assert_tape_equals_whole_graph(&load(TinyModel::qwen2(), &lora(Base::QuantizeNf4)));
}

#[test]
fn gradients_through_norms_of_heads_equal_those_of_the_whole_graph() {
    for base in [Base::AsStored, Base::QuantizeNf4] {
        assert_tape_equals_whole_graph(&load(TinyModel::qwen3(), &lora(base)));
    }
    // Two norms of a layer and two of its heads, in three layers, and the last one.
    let tied = TinyModel {
        tie_word_embeddings: true,
        ..TinyModel::qwen3()
    };
    let decoder = load(tied, &everything());
    let is_norm = |(name, _): &(String, _)| name.ends_with("norm.weight");
    assert_eq!(
        decoder.parameters().iter().filter(|p| is_norm(p)).count(),
        13
    );
    assert_tape_equals_whole_graph(&decoder);
}

#[test]
fn gradients_through_layers_that_turn_nothing_equal_those_of_the_whole_graph() {
    for options in [lora(Base::AsStored), everything()] {
        let decoder = load(TinyModel::smollm3(), &options);
        assert_eq!(decoder.config().turned, [true, false, true]);
        assert_tape_equals_whole_graph(&decoder);
    }
}

#[test]
fn gradients_through_windows_equal_those_of_the_whole_graph() {
    for base in [Base::AsStored, Base::QuantizeNf4] {
        assert_tape_equals_whole_graph(&load(TinyModel::mistral(), &lora(base)));
    }
    let tied = TinyModel {
        tie_word_embeddings: true,
        ..TinyModel::mistral()
    };
    assert_tape_equals_whole_graph(&load(tied, &everything()));
}

#[test]
fn full_parameter_gradients_equal_those_of_the_whole_graph() {
    let tied = load(TinyModel::llama(), &everything());
    assert_tape_equals_whole_graph(&tied);
    let names: Vec<String> = tied
        .parameters()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert!(names.is_sorted());
    // The head is beyond the tape: its gradient comes from the loss.
    let untied = load(TinyModel::qwen2(), &everything());
    let gradients = taped(&untied, Checkpointing::Every(1));
    let check = gradients
        .check(&untied.parameters(), &gradients.squares().unwrap())
        .unwrap();
    assert_eq!(check.missing, ["lm_head.weight"]);
    assert!(check.zero.is_empty());
}

#[test]
fn adapters_on_some_projections_only() {
    for target in ["v_proj", "down_proj"] {
        let mut options = lora(Base::AsStored);
        options.lora.as_mut().unwrap().targets = [target].into_iter().collect();
        assert_tape_equals_whole_graph(&load(TinyModel::qwen2(), &options));
    }
}

#[test]
fn lora_gradients_equal_central_differences() {
    for model in [
        TinyModel::qwen2(),
        TinyModel::qwen3(),
        TinyModel::mistral(),
        TinyModel::smollm3(),
    ] {
        let decoder = load(model, &lora(Base::AsStored));
        assert_central_differences(&decoder, |name| {
            name.contains("layers.0.self_attn") || name.contains("layers.1.mlp")
        });
    }
}

#[test]
fn gradients_of_head_norms_equal_central_differences() {
    let decoder = load(TinyModel::qwen3(), &everything());
    assert_central_differences(&decoder, |name| {
        name.contains("q_norm") || name.contains("k_norm")
    });
}

/// Checks one element of every parameter that `chosen` takes.
#[track_caller]
fn assert_central_differences(decoder: &Decoder, chosen: impl Fn(&str) -> bool) {
    let gradients = taped(decoder, Checkpointing::Every(1));
    let weights = values(&upstream());
    let loss = || -> f64 {
        let hidden = values(&decoder.hidden_states(&ids()).unwrap());
        hidden
            .iter()
            .zip(&weights)
            .map(|(h, w)| f64::from(*h) * f64::from(*w))
            .sum()
    };
    let parameters = decoder.parameters().into_iter();
    let chosen: Vec<_> = parameters.filter(|(name, _)| chosen(name)).collect();
    assert!(!chosen.is_empty());
    for (name, var) in chosen {
        let original = values(&var);
        let at = original.len() / 2 + 1;
        let shifted = |by: f32| {
            let mut moved = original.clone();
            moved[at] += by;
            var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap())
                .unwrap();
            loss()
        };
        let step = 1e-2;
        let expected = (shifted(step) - shifted(-step)) / (2.0 * f64::from(step));
        shifted(0.0);
        let gradient = f64::from(values(gradients.get(&name).unwrap())[at]);
        // 9,000 outputs with f32 errors of 1e-6 sum to some 1e-4, divided by 2e-2; truncation
        // is below that.
        let tolerance = 2e-2 * expected.abs().max(1.0);
        assert!(
            (gradient - expected).abs() < tolerance,
            "{name}: {gradient}, expected {expected}"
        );
    }
}

#[test]
fn fresh_adapters_pass_the_start_up_check() {
    let decoder = load(TinyModel::qwen2(), &lora(Base::AsStored));
    let parameters = decoder.parameters();
    for (name, var) in &parameters {
        if name.ends_with("lora_B.weight") {
            var.set(&var.zeros_like().unwrap()).unwrap();
        }
    }
    let gradients = taped(&decoder, Checkpointing::Every(1));
    let check = gradients
        .check(&parameters, &gradients.squares().unwrap())
        .unwrap();
    assert!(check.passed());
    assert_eq!(check.expected_zero.len(), parameters.len() / 2);
}

#[test]
fn gradients_of_several_passes_add_up() {
    let decoder = load(TinyModel::llama(), &lora(Base::AsStored));
    let once = taped(&decoder, Checkpointing::Every(1));
    let mut twice = Gradients::new();
    for _ in 0..2 {
        let tape = decoder.checkpointed(&ids()).unwrap();
        tape.backward(&upstream(), &mut twice).unwrap();
    }
    twice.scale(0.5).unwrap();
    for (name, gradient) in twice.iter() {
        assert_eq!(values(gradient), values(once.get(name).unwrap()), "{name}");
    }
}

/// The cosine between the gradients of a model that computes in `dtype` and those in f32, the loss multiplied by `scale` on the
/// way.
fn cosine_to_f32(dtype: DType, scale: f64) -> f64 {
    let reference = taped(
        &load(TinyModel::qwen2(), &lora(Base::AsStored)),
        Checkpointing::Off,
    );
    let options = LoadOptions {
        dtype,
        ..lora(Base::AsStored)
    };
    let decoder = load(TinyModel::qwen2(), &options);
    // Small enough to vanish in f16 unless the scale saves it.
    const SMALL: f64 = 1e-7;
    let grad = (upstream() * (SMALL * scale)).unwrap();
    // A card stores gradients between products in 16 bits.
    let card = Cuda::on(EMULATED, &decoder).unwrap();
    let run = (&ids(), None, Checkpointing::Every(1), &grad);
    let (_, mut low) = gradients_on(&decoder, card, run).unwrap();
    low.scale((SMALL * scale).recip()).unwrap();
    let dot = |a: &Gradients, b: &Gradients| -> f64 {
        let products = a.iter().map(|(name, x)| {
            assert_eq!(x.dtype(), DType::F32);
            let pairs = values(x).into_iter().zip(values(b.get(name).unwrap()));
            pairs.map(|(a, b)| f64::from(a) * f64::from(b)).sum::<f64>()
        });
        products.sum()
    };
    dot(&low, &reference) / (dot(&low, &low) * dot(&reference, &reference)).sqrt()
}

#[test]
fn bf16_gradients_are_f32_and_point_the_same_way() {
    let cosine = cosine_to_f32(DType::BF16, 1.0);
    // Eight significant bits, rounded some sixty times on the way.
    assert!(cosine > 0.99, "{cosine}");
}

#[test]
fn f16_gradients_need_their_scale() {
    let scaled = cosine_to_f32(DType::F16, 65_536.0);
    // Eleven significant bits.
    assert!(scaled > 0.9999, "{scaled}");
    let bare = cosine_to_f32(DType::F16, 1.0);
    assert!(bare < 0.99 || bare.is_nan(), "{bare}");
}

#[test]
fn bf16_activations_reach_every_f32_parameter() {
    let options = LoadOptions {
        dtype: DType::BF16,
        ..everything()
    };
    let decoder = load(TinyModel::llama(), &options);
    let gradients = taped(&decoder, Checkpointing::Every(1));
    assert!(
        gradients
            .check(&decoder.parameters(), &gradients.squares().unwrap())
            .unwrap()
            .passed()
    );
    assert!(
        gradients
            .iter()
            .all(|(_, gradient)| gradient.dtype() == DType::F32)
    );
}

#[test]
fn nothing_trained_gives_no_gradients() {
    let decoder = load(TinyModel::llama(), &LoadOptions::reference());
    assert!(taped(&decoder, Checkpointing::Every(1)).is_empty());
}

#[test]
fn a_gradient_of_another_shape_is_refused() {
    let decoder = load(TinyModel::llama(), &lora(Base::AsStored));
    let tape = decoder.checkpointed(&ids()).unwrap();
    let error = tape.backward(&random(&[2, 69, 64], 1), &mut Gradients::new());
    assert!(error.unwrap_err().to_string().contains("hidden states"));
    assert!(decoder.tape(&ids(), Checkpointing::Every(0)).is_err());
}

#[test]
fn a_loss_on_a_layer_s_output_reaches_what_is_below_it() {
    check_layers(&load(TinyModel::qwen2(), &lora(Base::QuantizeNf4)), &[2]);
    // What the embeddings give is layer 0, below which no adapter is.
    check_layers(&load(TinyModel::qwen2(), &lora(Base::QuantizeNf4)), &[2, 0]);
    check_layers(&load(TinyModel::llama(), &everything()), &[0]);
    check_layers(&load(TinyModel::llama(), &everything()), &[0, 2]);
}

/// A loss in the hidden states and in the outputs of some layers, each with another upstream gradient.
fn check_layers(decoder: &Decoder, layers: &[usize]) {
    let at_layers = |layers: &[usize]| -> Vec<(usize, Tensor)> {
        let own = |&layer: &usize| (layer, random(&[2, 70, 64], 8 + layer as u64));
        layers.iter().map(own).collect()
    };
    let own = at_layers(layers);
    let angles = decoder.angles(&ids(), 0).unwrap();
    let x = decoder
        .embedding_rows(&ids().flatten_all().unwrap())
        .unwrap();
    let mut x = x.reshape((2, 70, 64)).unwrap();
    let mut terms = Vec::new();
    let mut take = |number: usize, x: &Tensor| {
        let of_layer = own.iter().filter(|(layer, _)| *layer == number);
        terms.extend(of_layer.map(|(_, own)| (x * own).unwrap().sum_all().unwrap()));
    };
    take(0, &x);
    for (i, one) in decoder.layers().iter().enumerate() {
        x = reference::layer(one, &x, &angles, DType::F32).unwrap();
        take(i + 1, &x);
    }
    assert_eq!(terms.len(), layers.len());
    let last = reference::rms_norm(decoder.norm(), &x).unwrap();
    let last = (last * upstream()).unwrap();
    let loss = terms
        .iter()
        .fold(last.sum_all().unwrap(), |sum, term| (sum + term).unwrap());
    let store = loss.backward().unwrap();
    let mut expected = Gradients::new();
    expected.add_from(&store, &decoder.parameters()).unwrap();
    for checkpointing in [
        Checkpointing::Off,
        Checkpointing::Every(1),
        Checkpointing::Every(2),
    ] {
        let tape = decoder.tape(&ids(), checkpointing).unwrap();
        let mut gradients = Gradients::new();
        tape.backward_with(&upstream(), &own, &mut gradients)
            .unwrap();
        for (name, gradient) in gradients.iter() {
            let expected = expected.get(name).unwrap();
            let size = values(expected)
                .into_iter()
                .fold(0f32, |max, x| max.max(x.abs()));
            assert!(
                largest_difference(gradient, expected) <= 1e-4 * size + 1e-7,
                "{name}"
            );
        }
    }
    let tape = decoder.tape(&ids(), Checkpointing::Every(2)).unwrap();
    assert!(tape.layer_output(1).unwrap().is_none());
    let mut gradients = Gradients::new();
    assert!(
        tape.backward_with(&upstream(), &at_layers(&[1]), &mut gradients)
            .is_err()
    );
}
