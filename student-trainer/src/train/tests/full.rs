//! Full-parameter training: every gradient against differences, and a result that is a model again.

use candle_core::{DType, Var};
use distill_model::Gradients;
use distill_proto::Frame;

use super::*;
use crate::{
    client::mock::made_up_frame,
    config::Tune,
    loss::{HeadGeometry, LossConfig},
    train::{Example, Objective, StepLoss},
};

impl Bench {
    fn full(&self, name: &str) -> TrainConfig {
        TrainConfig {
            tune: Tune::Full,
            lr: 3e-3,
            ..self.config(name)
        }
    }
}

/// A step over two frames on every weight of the bench's student.
fn step(decoder: &distill_model::Decoder, gradients: &mut Gradients) -> StepLoss {
    let head = decoder
        .head()
        .unwrap()
        .narrow(0, 0, VOCAB_SIZE as usize)
        .unwrap();
    let geometry = HeadGeometry::new(&head, None).unwrap();
    let objective = Objective {
        decoder,
        geometry: &geometry,
        trains_head: true,
        projections: &[],
        checkpointing: distill_model::Checkpointing::Every(1),
        passes: crate::train::Passes::Padded { sequences: 1 },
    };
    let frames: Vec<Frame> = [3, 6].map(made_up_frame).to_vec();
    let examples: Vec<Example> = frames.iter().map(Example::from_frame).collect();
    let loss = LossConfig {
        ot_weight: 1.0,
        ..LossConfig::default()
    };
    objective
        .forward_backward(&examples, &loss, 1.0, gradients)
        .unwrap()
}

/// The place of the largest entry.
fn largest(gradient: &Tensor) -> (usize, f64) {
    let values = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let best = (0..values.len()).max_by(|&a, &b| values[a].abs().total_cmp(&values[b].abs()));
    let best = best.unwrap();
    (best, f64::from(values[best]))
}

fn nudge(var: &Var, place: usize, by: f32) {
    let mut values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values[place] += by;
    let moved = Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap();
    var.set(&moved).unwrap();
}

#[test]
fn the_gradient_of_every_parameter_agrees_with_differences_of_the_loss() {
    let bench = Bench::new(1);
    let files = StudentFiles::open(&bench.dir.path().join("student")).unwrap();
    let place = Place::choose("cpu", Default::default()).unwrap();
    let decoder = files.load_trainable(&place).unwrap();
    let mut gradients = Gradients::new();
    step(&decoder, &mut gradients);
    let parameters = decoder.parameters();
    assert_eq!(gradients.len(), parameters.len());
    assert!(
        parameters
            .iter()
            .any(|(name, _)| name == decoder.head_name())
    );
    for (name, var) in &parameters {
        let (place, gradient) = largest(gradients.get(name).unwrap());
        let h = 1e-2;
        let at = |by: f32| {
            nudge(var, place, by);
            step(&decoder, &mut Gradients::new()).total
        };
        let difference = (at(h) - at(-2.0 * h)) / (2.0 * f64::from(h));
        nudge(var, place, h);
        // The loss is f32 inside: 1e-6 of it over 2h, and the third derivative times h^2.
        let tolerance = 2e-2 * gradient.abs() + 3e-4;
        assert!(
            (difference - gradient).abs() < tolerance,
            "{name}[{place}]: {gradient}, by differences {difference}"
        );
    }
}

#[test]
fn every_weight_learns_and_the_result_is_a_model_that_goes_on_bitwise() {
    let bench = Bench::new(5);
    let whole = TrainConfig {
        epochs: 4,
        ..bench.full("whole")
    };
    let summary = train(&whole).unwrap();
    assert_eq!(summary.adapter, whole.out.join("model"));
    let lines = metrics(&whole);
    // Both on the first frame.
    let loss = |i: usize| lines[i]["loss"].as_f64().unwrap();
    assert!(loss(15) < 0.8 * loss(0), "{} {}", loss(0), loss(15));

    let model = |run: &TrainConfig| {
        let path = run.out.join("model/model.safetensors");
        candle_core::safetensors::load(path, &Device::Cpu).unwrap()
    };
    let before = candle_core::safetensors::load(
        bench.dir.path().join("student/model.safetensors"),
        &Device::Cpu,
    )
    .unwrap();
    let after = model(&whole);
    assert_eq!(before.len(), after.len());
    for (name, tensor) in &after {
        assert_eq!(tensor.dtype(), DType::F32);
        let moved = (tensor - before[name].to_dtype(DType::F32).unwrap()).unwrap();
        let moved = moved.abs().unwrap().sum_all().unwrap();
        assert!(moved.to_scalar::<f32>().unwrap() > 0.0, "{name} stayed");
    }
    for directory in [
        whole.out.join("model"),
        whole.out.join("checkpoints/step-000020"),
    ] {
        let files = StudentFiles::open(&directory).unwrap();
        let place = Place::choose("cpu", Default::default()).unwrap();
        files.load(Quantize::None, &place, None).unwrap();
    }

    let parts = TrainConfig {
        save_steps: 1,
        ..whole.clone()
    };
    let parts = interrupted(&parts, &bench, "parts", 7);
    resume(&parts, &Shutdown::default()).unwrap();
    for (name, tensor) in model(&parts) {
        let values = |tensor: &Tensor| {
            let flat = tensor.flatten_all().unwrap();
            flat.to_vec1::<f32>().unwrap()
        };
        assert_eq!(values(&tensor), values(&after[&name]), "{name}");
    }
}

#[test]
fn a_four_bit_base_and_similarities_of_logits_are_refused_by_name() {
    let bench = Bench::new(1);
    let mut config = bench.full("run");
    config.loss.ot_weight = 1.0;
    config.loss.align.cost = crate::loss::Cost::SoftmaxSimilarity;
    let message = train(&config).unwrap_err().to_string();
    assert!(message.contains("full-parameter"), "{message}");

    let quantize = crate::quantize::QuantizeConfig {
        from: config.student.clone(),
        out: bench.dir.path().join("nf4"),
        ..Default::default()
    };
    crate::quantize::run(&quantize, &Shutdown::default()).unwrap();
    let config = TrainConfig {
        student: quantize.out,
        ..bench.full("nf4-run")
    };
    let message = train(&config).unwrap_err().to_string();
    assert!(
        message.contains("4-bit") || message.contains("NF4"),
        "{message}"
    );
}
