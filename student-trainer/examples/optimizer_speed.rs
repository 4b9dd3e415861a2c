//! Measures an update of nine million parameters: `cargo run --release -p student-trainer --example optimizer_speed`.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use student_trainer::optimizer::{
    AdamWConfig, LearningRateRatios, Optimizer, OptimizerConfig, OptimizerKind,
};

/// The shape of LoRA adapters of rank 16 on every linear of a 0.5B model: many flat matrices.
const MATRICES: usize = 144;
const SHAPE: (usize, usize) = (16, 3906);
const UPDATES: usize = 20;

fn main() -> student_trainer::Result<()> {
    distill_model::threads::configure();
    let gradient = Tensor::randn(0f32, 1f32, SHAPE, &Device::Cpu)?;
    for kind in [OptimizerKind::AdamW, OptimizerKind::AdamW8bit] {
        let parameters = (0..MATRICES).map(|i| {
            let parameter = Var::randn(0f32, 1f32, SHAPE, &Device::Cpu)?;
            Ok((format!("p{i}"), parameter))
        });
        let parameters = parameters.collect::<student_trainer::Result<Vec<_>>>()?;
        let config = OptimizerConfig {
            kind,
            adamw: AdamWConfig {
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.01,
            },
            ratios: LearningRateRatios::default(),
        };
        let mut optimizer = Optimizer::new(parameters, config)?;
        optimizer.update(1e-4, 1.0, |_| Some(&gradient))?;
        let mut seconds: Vec<f64> = Vec::new();
        for _ in 0..UPDATES {
            let start = Instant::now();
            optimizer.update(1e-4, 1.0, |_| Some(&gradient))?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        println!(
            "{kind:?}: {:.1} ms (median of {UPDATES}), state {:.1} MB",
            1e3 * seconds[UPDATES / 2],
            optimizer.state_bytes() as f64 / 1e6
        );
    }
    Ok(())
}
