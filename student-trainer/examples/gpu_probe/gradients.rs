//! Provides the comparison of a whole student's loss and gradients: bf16 on a device against f32 on the CPU.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use distill_model::{
    Base, Checkpointing, Decoder, Gradients, LoadOptions, LoraConfig, ModelConfig, Weights,
    backend,
    testing::{TinyModel, write_tiny_model},
};
use distill_proto::Estimator;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use student_trainer::{
    loss::{HeadGeometry, LossConfig, Targets},
    train::{Example, Objective, Passes},
};

const SEED: u64 = 3;
const KEPT: usize = 8;
/// bf16 on a device may be off by this much more than bf16 on the CPU is: sums are taken in another order there.
const MARGIN: f64 = 2.0;
/// What bf16 differs by where its CPU error happens to be nearly nothing.
const FLOOR: f64 = 1e-2;

/// Loss and gradients of one placement.
struct Outcome {
    loss: f64,
    gradients: Vec<(String, Vec<f32>)>,
}

/// Refuses a device whose bf16 gradients are further from f32 than [`MARGIN`] times the CPU's bf16 ones.
pub fn compare(device: &Device, tiny: bool) -> Result<Value> {
    let model = match tiny {
        true => TinyModel::qwen2(),
        false => TinyModel {
            vocab_size: 4096,
            hidden_size: 512,
            intermediate_size: 1408,
            num_hidden_layers: 6,
            num_attention_heads: 8,
            ..TinyModel::qwen2()
        },
    };
    let tokens = if tiny { 24 } else { 256 };
    let dir = tempfile::tempdir()?;
    write_tiny_model(dir.path(), &model, SEED)?;
    let config = ModelConfig::load(dir.path())?;
    let weights = Weights::open(dir.path())?;
    let example = example(tokens, model.vocab_size);
    let run = |dtype, device: &Device| outcome(&config, &weights, &example, dtype, device);
    let reference = run(DType::F32, &Device::Cpu)?;
    let cpu = errors(&run(DType::BF16, &Device::Cpu)?, &reference)?;
    let there = errors(&run(DType::BF16, device)?, &reference)?;
    for (name, error) in &there.parameters {
        let on_cpu = cpu.parameters.iter().find(|(other, _)| other == name);
        let on_cpu = on_cpu
            .context("both placements train the same parameters")?
            .1;
        ensure!(
            *error <= MARGIN * on_cpu + FLOOR,
            "the gradient of {name} is off by {error} of its norm, in bf16 on the CPU by {on_cpu}"
        );
    }
    ensure!(
        there.loss <= MARGIN * cpu.loss + FLOOR,
        "the loss is off by {}, in bf16 on the CPU by {}",
        there.loss,
        cpu.loss
    );
    let worst = |errors: &Errors| {
        errors
            .parameters
            .iter()
            .map(|(_, e)| *e)
            .fold(0.0, f64::max)
    };
    Ok(json!({
        "backend": backend(device)?, "parameters": there.parameters.len(), "tokens": tokens, "loss": reference.loss,
        "worst_relative_error": worst(&there), "worst_relative_error_cpu_bf16": worst(&cpu),
        "loss_relative_error": there.loss, "loss_relative_error_cpu_bf16": cpu.loss,
    }))
}

/// Distances from the reference, relative to it.
struct Errors {
    loss: f64,
    parameters: Vec<(String, f64)>,
}

fn errors(outcome: &Outcome, reference: &Outcome) -> Result<Errors> {
    let names = |outcome: &Outcome| -> Vec<String> {
        let names = outcome.gradients.iter().map(|(name, _)| name.clone());
        names.collect()
    };
    ensure!(
        names(outcome) == names(reference),
        "not the same parameters have gradients"
    );
    let pairs = outcome.gradients.iter().zip(&reference.gradients);
    let parameters = pairs.map(|((name, a), (_, b))| {
        let square = |x: f64| x * x;
        let distance: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
        let norm: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
        ensure!(norm > 0.0, "the gradient of {name} is zero on the CPU");
        Ok((name.clone(), (distance / norm).sqrt()))
    });
    Ok(Errors {
        loss: ((outcome.loss - reference.loss) / reference.loss).abs(),
        parameters: parameters.collect::<Result<_>>()?,
    })
}

/// One forward and backward pass of CE and KL through NF4 linears and adapters, layers recomputed.
fn outcome(
    config: &ModelConfig,
    weights: &Weights,
    example: &Example,
    dtype: DType,
    device: &Device,
) -> Result<Outcome> {
    let options = LoadOptions {
        dtype,
        device: device.clone(),
        base: Base::QuantizeNf4,
        lora: Some(LoraConfig::default()),
    };
    let decoder = Decoder::load(config, weights, &options)?;
    let mut random = StdRng::seed_from_u64(SEED);
    for (_, var) in decoder.parameters() {
        // Fresh adapters have B = 0, and then A has no gradient.
        let values = (0..var.elem_count()).map(|_| random.random_range(-0.05..0.05f32));
        let values = Tensor::from_vec(values.collect(), var.shape(), &Device::Cpu)?;
        var.set(&values.to_device(device)?)?;
    }
    let geometry = HeadGeometry::new(decoder.head()?, None)?;
    let objective = Objective {
        decoder: &decoder,
        geometry: &geometry,
        trains_head: false,
        projections: &[],
        checkpointing: Checkpointing::Every(1),
        passes: Passes::Packed {
            sequences: 1,
            tokens: usize::MAX,
        },
    };
    let mut gradients = Gradients::new();
    let examples = std::slice::from_ref(example);
    let loss = objective.forward_backward(examples, &LossConfig::default(), 1.0, &mut gradients)?;
    let gradients = gradients.iter().map(|(name, gradient)| {
        let values = gradient.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        Ok((name.to_owned(), values))
    });
    Ok(Outcome {
        loss: loss.total,
        gradients: gradients.collect::<Result<_>>()?,
    })
}

/// Random tokens, each with a teacher's row of eight kept logits.
fn example(tokens: usize, vocab_size: usize) -> Example {
    let mut random = StdRng::seed_from_u64(SEED + 1);
    let rows = tokens - 1;
    let step = vocab_size / KEPT;
    // One id from every eighth of the vocabulary: increasing, as a frame's are.
    let ids = (0..rows * KEPT).map(|e| ((e % KEPT) * step + random.random_range(0..step)) as u32);
    let ids: Vec<u32> = ids.collect();
    let logits = (0..rows * KEPT).map(|_| random.random_range(14.0..18.0f32));
    let logits: Vec<f32> = logits.collect();
    Example {
        index: 0,
        token_ids: (0..tokens)
            .map(|_| random.random_range(0..vocab_size as u32))
            .collect(),
        target_positions: (1..tokens).collect(),
        row_positions: (1..tokens).collect(),
        targets: Targets {
            vocab_size: vocab_size as u32,
            estimator: Estimator::TopK,
            starts: (0..=rows).map(|row| row * KEPT).collect(),
            ids,
            logits,
            counts: Vec::new(),
            draws: Vec::new(),
            temperatures: vec![1.0],
            // Above every kept logit by more than ln 8: the rest of the mass is in the tail.
            logsumexp: vec![vec![20.5; rows]],
            mean: vec![0.0; rows],
            std: vec![2.0; rows],
            state: None,
            alignment: None,
        },
    }
}
