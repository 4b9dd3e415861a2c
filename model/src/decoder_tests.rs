//! Tests of the whole decoder's forward pass on tiny random models.

use super::*;
use crate::reference;
use crate::test_support::{largest_difference, through_a_cache, values};
use crate::testing::{TinyModel, write_tiny_model};
use crate::{KvCache, Piece};
use candle_nn::VarBuilder;
use tempfile::TempDir;

struct Model {
    dir: TempDir,
    decoder: Decoder,
}

fn load(model: &TinyModel, options: &LoadOptions) -> Model {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path(), model, 1).unwrap();
    let config = ModelConfig::load(dir.path()).unwrap();
    let weights = Weights::open(dir.path()).unwrap();
    let decoder = Decoder::load(&config, &weights, options).unwrap();
    Model { dir, decoder }
}

/// `batch` sequences of pseudo-random ids below the tiny vocabulary.
fn ids(batch: usize, len: usize) -> Tensor {
    let ids: Vec<u32> = (0..batch * len)
        .map(|i| ((i * i * 7 + i * 13 + 5) % 96) as u32)
        .collect();
    Tensor::from_vec(ids, (batch, len), &Device::Cpu).unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

fn logits(decoder: &Decoder, hidden: &Tensor) -> Tensor {
    let rows = hidden.flatten_to(1).unwrap();
    rows.matmul(&decoder.head().unwrap().t().unwrap()).unwrap()
}

#[test]
fn qwen2_agrees_with_candle_transformers() {
    let Model { dir, decoder } = load(&TinyModel::qwen2(), &LoadOptions::reference());
    let json = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    for (field, value) in [("sliding_window", 1 << 20), ("max_window_layers", 28)] {
        json[field] = value.into();
    }
    json["use_sliding_window"] = false.into();
    let config = serde_json::from_value(json).unwrap();
    let tensors =
        candle_core::safetensors::load(dir.path().join("model.safetensors"), &Device::Cpu);
    let weights = VarBuilder::from_tensors(tensors.unwrap(), DType::F32, &Device::Cpu);
    let mut oracle = candle_transformers::models::qwen2::Model::new(&config, weights).unwrap();
    let ids = ids(2, 70);
    let expected = oracle.forward(&ids, 0, None).unwrap();
    let hidden = decoder.hidden_states(&ids).unwrap();
    // Hidden states are of order 1; two layers of f32 sums in another order differ by some 1e-6.
    assert!(largest_difference(&hidden, &expected) < 2e-5);
}

#[test]
fn qwen3_agrees_with_candle_transformers() {
    let Model { dir, decoder } = load(&TinyModel::qwen3(), &LoadOptions::reference());
    let json = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["max_window_layers"] = 28.into();
    for field in ["use_sliding_window", "attention_bias"] {
        json[field] = false.into();
    }
    let config = serde_json::from_value(json).unwrap();
    let tensors =
        candle_core::safetensors::load(dir.path().join("model.safetensors"), &Device::Cpu);
    let weights = VarBuilder::from_tensors(tensors.unwrap(), DType::F32, &Device::Cpu);
    let mut oracle = candle_transformers::models::qwen3::Model::new(&config, weights).unwrap();
    let ids = ids(2, 70);
    let expected = oracle.forward(&ids, 0).unwrap();
    // As for Qwen2.
    assert!(largest_difference(&decoder.hidden_states(&ids).unwrap(), &expected) < 2e-5);
}

#[test]
fn llama_agrees_with_candle_transformers() {
    use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
    let Model { dir, decoder } = load(&TinyModel::llama(), &LoadOptions::reference());
    let json = std::fs::read(dir.path().join("config.json")).unwrap();
    let config: LlamaConfig = serde_json::from_slice(&json).unwrap();
    let config = config.into_config(false);
    let tensors =
        candle_core::safetensors::load(dir.path().join("model.safetensors"), &Device::Cpu);
    let weights = VarBuilder::from_tensors(tensors.unwrap(), DType::F32, &Device::Cpu);
    let oracle = Llama::load(weights, &config).unwrap();
    let ids = ids(1, 17);
    let logits = logits(&decoder, &decoder.hidden_states(&ids).unwrap());
    // The oracle gives the last position only, so every prefix is one run of it.
    for len in 1..=17 {
        let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
        let prefix = ids.narrow(1, 0, len).unwrap();
        let expected = oracle.forward(&prefix, 0, &mut cache).unwrap();
        let row = logits.narrow(0, len - 1, 1).unwrap();
        assert!(
            largest_difference(&row, &expected) < 2e-5,
            "position {}",
            len - 1
        );
    }
}

#[test]
fn one_forward_pass_gives_the_last_hidden_state_and_those_of_layers() {
    let Model { decoder, .. } = load(&TinyModel::qwen2(), &LoadOptions::reference());
    let ids = ids(2, 9);
    let count = decoder.layers().len();
    let expected = decoder.hidden_states(&ids).unwrap();
    let angles = decoder.angles(&ids, 0).unwrap();
    let x = decoder.embedding_rows(&ids.flatten_all().unwrap()).unwrap();
    let mut x = x.reshape((2, 9, 64)).unwrap();
    let tap = |layers: &[usize]| decoder.hidden_states_and_layers(&ids, layers).unwrap().1;
    assert_eq!(bits(&tap(&[0])[0]), bits(&x));
    for layer in 1..=count {
        x = reference::layer(&decoder.layers()[layer - 1], &x, &angles, DType::F32).unwrap();
        let (hidden, tapped) = decoder.hidden_states_and_layers(&ids, &[layer, 0]).unwrap();
        assert_eq!(bits(&hidden), bits(&expected));
        // Sums in another order.
        assert!(largest_difference(&tapped[0], &x) < 1e-5, "layer {layer}");
        assert_eq!(bits(&tapped[1]), bits(&tap(&[0])[0]));
    }
    let error = decoder.hidden_states_and_layers(&ids, &[0, count + 1]);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains(&format!("1 to {count}"))
    );
}

#[test]
fn a_token_changes_nothing_before_it() {
    let Model { decoder, .. } = load(&TinyModel::qwen2(), &LoadOptions::reference());
    let (changed_at, len) = (66, 130);
    let mut other = ids(1, len).flatten_all().unwrap().to_vec1::<u32>().unwrap();
    other[changed_at] = (other[changed_at] + 1) % 96;
    let other = Tensor::from_vec(other, (1, len), &Device::Cpu).unwrap();
    let (a, b) = (
        decoder.hidden_states(&ids(1, len)).unwrap(),
        decoder.hidden_states(&other).unwrap(),
    );
    let before = |x: &Tensor| bits(&x.narrow(1, 0, changed_at).unwrap());
    assert_eq!(before(&a), before(&b));
    let after = len - changed_at;
    for position in 0..after {
        let at = |x: &Tensor| x.narrow(1, changed_at + position, 1).unwrap();
        assert!(
            largest_difference(&at(&a), &at(&b)) > 0.0,
            "the past has no effect"
        );
    }
}

#[test]
fn right_padding_is_exact() {
    let Model { decoder, .. } = load(&TinyModel::llama(), &LoadOptions::reference());
    let (short, long) = (11, 80);
    let padded = ids(3, long);
    let batch = decoder.hidden_states(&padded).unwrap();
    for row in 0..3 {
        let alone = padded
            .narrow(0, row, 1)
            .unwrap()
            .narrow(1, 0, short)
            .unwrap();
        let alone = decoder.hidden_states(&alone.contiguous().unwrap()).unwrap();
        let together = batch
            .narrow(0, row, 1)
            .unwrap()
            .narrow(1, 0, short)
            .unwrap();
        // Mathematically equal; a matrix product of other size may sum in another order.
        assert!(largest_difference(&alone, &together) < 1e-5);
    }
}

#[test]
fn a_cache_continues_where_it_stopped() {
    let Model { decoder, .. } = load(&TinyModel::qwen2(), &LoadOptions::reference());
    let ids = ids(2, 12);
    let whole = decoder.hidden_states(&ids).unwrap();
    let cached = through_a_cache(&decoder, &ids, &[7, 1, 1, 3]);
    // The same sums, over pieces of other size.
    assert!(largest_difference(&whole, &cached) < 1e-5);
    let mut cache = decoder.new_cache(2, 3).unwrap();
    let piece = |slot, ids| Piece { slot, ids };
    let refused = |decoder: &Decoder, pieces: &[Piece<'_>], cache: &mut KvCache, part: &str| {
        let error = decoder.extend(pieces, cache).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    for (pieces, part) in [
        (&[][..], "must be some"),
        (&[piece(1, &[1][..]), piece(0, &[1])], "in the order"),
        (&[piece(0, &[1]), piece(0, &[1])], "in the order"),
        (&[piece(2, &[1])], "slot 2"),
        (&[piece(0, &[])], "0 tokens"),
        (&[piece(0, &[1; 4])], "room for 3"),
        (&[piece(0, &[1]), piece(1, &[96])], "token id 96"),
    ] {
        refused(&decoder, pieces, &mut cache, part);
    }
    assert_eq!((cache.held(0), cache.held(1)), (0, 0));
    let other = TinyModel {
        num_hidden_layers: 1,
        ..TinyModel::qwen2()
    };
    let other = load(&other, &LoadOptions::reference()).decoder;
    refused(&other, &[piece(0, &[1])], &mut cache, "layers");
}

#[test]
fn low_precision_stays_close_to_f32() {
    let reference = load(&TinyModel::qwen2(), &LoadOptions::reference());
    let expected = reference.decoder.hidden_states(&ids(1, 300)).unwrap();
    for (dtype, tolerance) in [(DType::BF16, 0.15), (DType::F16, 0.02)] {
        let options = LoadOptions {
            dtype,
            ..LoadOptions::reference()
        };
        let Model { decoder, .. } = load(&TinyModel::qwen2(), &options);
        let hidden = decoder.hidden_states(&ids(1, 300)).unwrap();
        assert_eq!(hidden.dtype(), dtype);
        // Hidden states of order 1 to 3 with 8 (11) significant bits, rounded some twenty times.
        // With RoPE angles in bf16, positions past 256 would be off by more than 1.
        let difference = largest_difference(&hidden, &expected);
        assert!(difference < tolerance, "{dtype:?}: {difference}");
    }
}

#[test]
fn the_head_is_the_embedding_only_when_tied() {
    let tied = load(&TinyModel::llama(), &LoadOptions::reference()).decoder;
    assert_eq!(tied.head_name(), "model.embed_tokens.weight");
    let mut model = TinyModel::qwen2();
    model.vocab_size = 100;
    let untied = load(&model, &LoadOptions::reference()).decoder;
    assert_eq!(untied.head_name(), "lm_head.weight");
    assert_eq!(untied.head().unwrap().dims(), [100, 64]);
    assert!(untied.parameters().is_empty());
}

#[test]
fn tokens_that_do_not_fit_are_refused() {
    let Model { decoder, .. } = load(&TinyModel::llama(), &LoadOptions::reference());
    let run = |ids: Tensor| decoder.hidden_states(&ids).unwrap_err().to_string();
    let foreign = Tensor::from_vec(vec![1u32, 2, 3, 96], (2, 2), &Device::Cpu).unwrap();
    let message = run(foreign);
    for part in [
        "token id 96",
        "position 1",
        "sequence 1",
        "vocabulary of 96",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(run(Tensor::zeros((1, 4097), DType::U32, &Device::Cpu).unwrap()).contains("4096"));
    assert!(run(Tensor::zeros((1, 0), DType::U32, &Device::Cpu).unwrap()).contains("at least"));
    assert!(
        decoder
            .hidden_states(&Tensor::zeros(3, DType::U32, &Device::Cpu).unwrap())
            .is_err()
    );
}

#[test]
fn a_config_of_other_weights_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path(), &TinyModel::qwen2(), 1).unwrap();
    let weights = Weights::open(dir.path()).unwrap();
    let right = ModelConfig::load(dir.path()).unwrap();
    let refused = |change: fn(&mut ModelConfig), part: &str| {
        let mut config = right.clone();
        change(&mut config);
        let error = Decoder::load(&config, &weights, &LoadOptions::reference()).unwrap_err();
        assert!(
            error.to_string().contains(part),
            "`{part}` is not in: {error}"
        );
    };
    refused(|c| c.vocab_size = 95, "lm_head.weight");
    refused(|c| c.intermediate_size = 100, "mlp.gate_proj.weight");
    refused(|c| c.num_key_value_heads = 4, "self_attn.k_proj.weight");
    refused(|c| c.qkv_bias = false, "self_attn.q_proj.bias");
    refused(|c| c.output_bias = true, "self_attn.o_proj.bias");
    refused(|c| c.num_hidden_layers = 3, "model.layers.2");
}
