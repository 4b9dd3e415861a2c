//! Provides a timing of one frozen linear layer, NF4 and ggml's blocks beside dense: forward, and the gradient with respect to the
//! input.
//!
//! usage: cargo run --release -p distill-model --example linear_speed [ROWS IN OUT]     (default 512 896 4864)
//! Prints the best of ten runs, in milliseconds; candle's own matmul with its backward, and its product with blocks, which
//! rounds the activations to 8 bits, are there for comparison.
#![allow(clippy::print_stdout)]

use anyhow::Result;
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor, Var};
use distill_model::testing::linear;
use distill_model::{Linear, Nf4Matrix, PackedMatrix, Rounding, Weight};
use std::sync::Arc;
use std::time::{Duration, Instant};

const RUNS: usize = 10;
const BLOCKS: [GgmlDType; 5] = [
    GgmlDType::F16,
    GgmlDType::Q8_0,
    GgmlDType::Q4_0,
    GgmlDType::Q4K,
    GgmlDType::Q6K,
];

fn main() -> Result<()> {
    let sizes: Vec<usize> = std::env::args()
        .skip(1)
        .map(|argument| argument.parse())
        .collect::<Result<_, _>>()?;
    let [rows, columns, height] = match sizes[..] {
        [] => [512, 896, 4864],
        [rows, columns, height] => [rows, columns, height],
        _ => anyhow::bail!("give three sizes: ROWS IN OUT"),
    };
    let device = Device::Cpu;
    let values = Tensor::randn(0f32, 0.05, (height, columns), &device)?;
    let flat = values.flatten_all()?.to_vec1::<f32>()?;
    let matrix = Nf4Matrix::quantize(&flat, height, columns, true, Rounding::BF16)?;
    println!(
        "x [{rows}, {columns}], W [{height}, {columns}]: {} bytes dense, {} in NF4",
        size_of_val(flat.as_slice()),
        matrix.bytes()
    );
    let mut out = vec![0f32; flat.len()];
    let dequantise = best(|| Ok(matrix.dequantize_rows(0..height, &mut out)?))?;
    println!("dequantise      {:7.2}", milliseconds(dequantise));

    let x = Tensor::randn(0f32, 1.0, (rows, columns), &device)?;
    let grad = Tensor::randn(0f32, 1.0, (rows, height), &device)?;
    let dense = Linear::new("dense", Weight::Dense(values.clone()), None)?;
    let nf4 = Linear::new("nf4", Weight::Nf4(Arc::new(matrix)), None)?;
    let report = |name: &str, forward: Duration, both: Duration| {
        let (forward, both) = (milliseconds(forward), milliseconds(both));
        println!("{name:<15} {forward:7.2} forward {both:7.2} forward and backward");
    };
    let (var, transposed) = (Var::from_tensor(&x)?, values.t()?);
    let candle = || Ok(var.matmul(&transposed)?);
    let both = || {
        candle()?.sum_all()?.backward()?;
        Ok(())
    };
    report("candle matmul", best(|| candle().map(drop))?, best(both)?);
    for (name, layer) in [("frozen dense", &dense), ("frozen NF4", &nf4)] {
        let forward = best(|| Ok(linear(layer, &x, None).map(drop)?))?;
        let both = best(|| Ok(linear(layer, &x, Some(&grad)).map(drop)?))?;
        report(name, forward, both);
    }
    let fit = |blocks: &&GgmlDType| columns.is_multiple_of(blocks.block_size());
    for blocks in BLOCKS.iter().filter(fit) {
        let ours = PackedMatrix::new(QTensor::quantize(&values, *blocks)?)?;
        let dequantise = best(|| Ok(ours.dequantize_rows(0..height, &mut out)?))?;
        let layer = Linear::new("packed", Weight::Packed(ours.clone()), None)?;
        let forward = best(|| Ok(linear(&layer, &x, None).map(drop)?))?;
        let theirs = QMatMul::from_qtensor(QTensor::quantize(&values, *blocks)?)?;
        let their_forward = best(|| Ok(theirs.forward(&x).map(drop)?))?;
        println!(
            "{:<15} {:7.2} dequantise {:7.2} forward {:7.2} candle's QMatMul",
            ours.type_name(),
            milliseconds(dequantise),
            milliseconds(forward),
            milliseconds(their_forward)
        );
    }
    Ok(())
}

fn best(mut run: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
