//! Provides the rate that matrix products reach: what everything else is measured against.

use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use distill_model::{ComputeDtype, backend};
use serde_json::{Value, json};

/// `[m, k] x [k, n]`: a square one, and the teacher's widest linears over a batch of 8 windows.
const SHAPES: [(usize, usize, usize); 3] =
    [(8192, 8192, 8192), (4096, 18944, 3584), (4096, 3584, 18944)];
const TINY: [(usize, usize, usize); 1] = [(256, 256, 256)];
const WARM_PRODUCTS: usize = 3;
const PRODUCTS: usize = 10;

/// Floating-point operations a second of every shape, in the type that models compute in on the device.
pub fn measure(device: &Device, tiny: bool) -> Result<Value> {
    let dtype = ComputeDtype::Auto.on(device);
    let shapes: &[_] = if tiny { &TINY } else { &SHAPES };
    let mut rows = Vec::new();
    let mut best: f64 = 0.0;
    for &(m, n, k) in shapes {
        let (a, b) = (random(m, k, dtype, device)?, random(k, n, dtype, device)?);
        let mut start = Instant::now();
        for round in 0..WARM_PRODUCTS + PRODUCTS {
            if round == WARM_PRODUCTS {
                device.synchronize()?;
                start = Instant::now();
            }
            a.matmul(&b)?;
        }
        device.synchronize()?;
        let flops = (2 * m * n * k * PRODUCTS) as f64 / start.elapsed().as_secs_f64();
        best = best.max(flops);
        rows.push(json!({ "m": m, "n": n, "k": k, "flops": flops }));
    }
    Ok(json!({
        "backend": backend(device)?, "dtype": format!("{dtype:?}"), "shapes": rows, "best_flops": best,
    }))
}

/// Normal numbers: on zeros a card draws less power and is faster than it ever is at work.
fn random(rows: usize, columns: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    Ok(Tensor::randn(0f32, 1.0, (rows, columns), device)?.to_dtype(dtype)?)
}
