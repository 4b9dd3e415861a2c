use std::path::Path;

use super::*;

pub(in crate::plan) fn qwen(
    d: usize,
    ff: usize,
    heads: usize,
    kv: usize,
    vocab: usize,
    tied: bool,
) -> ModelConfig {
    let json = serde_json::json!({
        "model_type": "qwen2", "hidden_size": d, "intermediate_size": ff, "num_hidden_layers": 28,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768,
        "tie_word_embeddings": tied, "hidden_act": "silu",
    });
    ModelConfig::parse(json.to_string().as_bytes(), Path::new("config.json")).unwrap()
}

pub(in crate::plan) fn qwen_7b() -> ModelConfig {
    qwen(3584, 18944, 28, 4, 152064, false)
}

pub(in crate::plan) fn qwen_1_5b() -> ModelConfig {
    qwen(1536, 8960, 12, 2, 151936, true)
}

pub(in crate::plan) const REFERENCE: Workload = Workload {
    seq_len: 512,
    batch_size: 1,
    lora_rank: 16,
    optimizer: OptimizerKind::AdamW,
    checkpointing: true,
    teacher_weight_bytes: 2,
    student_bytes: 2,
    student_base: StudentBase::Nf4,
    chunk_rows: 128,
    state_rank: None,
    transport: true,
};

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// The figures are given to two digits after the point.
#[track_caller]
fn assert_gib(bytes: u64, expected: f64) {
    assert!(
        (gib(bytes) - expected).abs() < 0.006,
        "{} GiB, expected {expected}",
        gib(bytes)
    );
}

#[test]
fn weights_are_as_designed() {
    // Published counts: 7,615,616,512 and 1,543,714,304.
    assert_eq!(parameters(&qwen_7b()), 7_615_616_512);
    assert_eq!(parameters(&qwen_1_5b()), 1_543_714_304);
    assert_gib(2 * parameters(&qwen_7b()), 14.19);
    assert_gib(
        double_quantized_bytes(linear_parameters(&qwen_1_5b())),
        0.63,
    );
    assert_gib(2 * embedding_parameters(&qwen_1_5b()), 0.43);
}

#[test]
fn adapters_are_as_designed() {
    let adapters = lora_parameters(&qwen_1_5b(), 16);
    assert_eq!(adapters, 18_464_768);
    let moments = moments_bytes(&qwen_1_5b(), &REFERENCE);
    assert_eq!(moments, 8 * adapters);
    assert_gib(adapters * 8 + moments, 0.28);
    let in_8_bits = Workload {
        optimizer: OptimizerKind::AdamW8bit,
        ..REFERENCE
    };
    // Two bytes an element, and eight for 256 of them.
    let moments = moments_bytes(&qwen_1_5b(), &in_8_bits);
    assert_eq!(moments, 2 * adapters + adapters / 32);
}

#[test]
fn the_reference_pair_fits_a_24_gb_card_and_checkpointing_is_why_it_has_room() {
    let fits = total(&parts(&qwen_7b(), &qwen_1_5b(), &REFERENCE));
    assert!(gib(fits) > 15.0 && gib(fits) < 20.0, "{}", gib(fits));
    let without = Workload {
        checkpointing: false,
        ..REFERENCE
    };
    let more = total(&parts(&qwen_7b(), &qwen_1_5b(), &without));
    assert!(more > fits + (2 << 30), "{} {}", gib(fits), gib(more));
}
