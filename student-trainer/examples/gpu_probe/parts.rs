//! Provides microseconds of every part that a step is made of, in the shapes of the reference pair.

use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use distill_kernels::attention::{self, Kept, Ranges, Sizes};
use distill_kernels::{MakeCalls, device::compute, device::product_f32, nf4};
use distill_model::{Gradients, backend};
use serde_json::{Map, Value, json};
use student_trainer::optimizer::{
    AdamWConfig, LearningRateRatios, Optimizer, OptimizerConfig, OptimizerKind,
};

/// Runs before the clock starts, and runs of each of the timed batches, of which the median counts.
const WARM: usize = 3;
const RUNS: usize = 10;
const BATCHES: usize = 5;

/// Times what runs on a device.
struct Clock<'a> {
    device: &'a Device,
    runs: usize,
    batches: usize,
}

/// The student's and the teacher's products, `[m, k] x [n, k]^T`.
const PRODUCTS: [(&str, usize, usize, usize); 7] = [
    ("student q or o", 512, 1536, 1536),
    ("student k or v", 512, 256, 1536),
    ("student gate or up", 512, 8960, 1536),
    ("student down", 512, 1536, 8960),
    ("lora a", 512, 16, 1536),
    ("teacher gate or up, 8 windows", 4096, 18944, 3584),
    ("student head", 512, 151_665, 1536),
];
/// Parameters of LoRA r = 16 on all linears of the student: 392 tensors.
const ADAPTERS: usize = 392;
const ADAPTER_ELEMENTS: usize = 18_464_768 / ADAPTERS;

/// Microseconds of each part.
pub fn measure(device: &Device, tiny: bool) -> Result<Value> {
    let shrink = if tiny { 64 } else { 1 };
    let dtype = if device.is_cuda() {
        DType::BF16
    } else {
        DType::F32
    };
    let (runs, batches) = if tiny { (1, 1) } else { (RUNS, BATCHES) };
    let clock = Clock {
        device,
        runs,
        batches,
    };
    let mut parts = Map::new();
    let mut note = |name: String, seconds: f64| {
        parts.insert(name, json!((seconds * 1e7).round() / 10.0));
    };
    let random = |rows: usize, columns: usize, dtype| -> Result<Tensor> {
        Ok(Tensor::randn(0f32, 1.0, (rows, columns), device)?.to_dtype(dtype)?)
    };

    let small = random(4, 4, DType::F32)?;
    note(
        "one candle operation, 16 elements".into(),
        clock.time(|| Ok(small.affine(2.0, 1.0).map(drop)?))?,
    );
    for (name, m, n, k) in PRODUCTS {
        let (m, n, k) = (m.div_ceil(shrink), n.div_ceil(shrink), k.div_ceil(shrink));
        let (a, b) = (random(m, k, dtype)?, random(n, k, dtype)?);
        let transposed = b.t()?;
        note(
            format!("product {name} [{m}, {k}] x [{n}, {k}]^T"),
            clock.time(|| Ok(a.matmul(&transposed).map(drop)?))?,
        );
        if name == "student head" && device.is_cuda() {
            note(
                format!("product {name}, f32 out"),
                clock.time(|| Ok(product_f32(&a, &b).map(drop)?))?,
            );
            let whole = random(n.next_multiple_of(8), k, dtype)?;
            note(
                format!("product {name}, f32 out, of a multiple of 8"),
                clock.time(|| Ok(product_f32(&a, &whole).map(drop)?))?,
            );
        }
    }
    if device.is_cuda() {
        unpack(&clock, shrink, &mut note)?;
        for tokens in [512, 2048, 4096] {
            attend(&clock, tokens / shrink, &mut note)?;
        }
    }
    optimise(&clock, shrink, &mut note)?;
    Ok(json!({ "backend": backend(device)?, "dtype": format!("{dtype:?}"), "microseconds": parts }))
}

impl Clock<'_> {
    /// Median seconds of one run.
    fn time(&self, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
        for _ in 0..WARM.min(self.runs) {
            run()?;
        }
        let mut batches = Vec::with_capacity(self.batches);
        for _ in 0..self.batches {
            self.device.synchronize()?;
            let start = Instant::now();
            for _ in 0..self.runs {
                run()?;
            }
            self.device.synchronize()?;
            batches.push(start.elapsed().as_secs_f64() / self.runs as f64);
        }
        batches.sort_by(f64::total_cmp);
        Ok(batches[self.batches / 2])
    }
}

/// The student's widest matrix, doubly quantised.
fn unpack(clock: &Clock, shrink: usize, note: &mut impl FnMut(String, f64)) -> Result<()> {
    let device = clock.device;
    let len = 8960 * 1536 / shrink;
    let bytes = |count: usize| -> Result<Tensor> {
        Ok(Tensor::rand(0f32, 255.0, count, device)?.to_dtype(DType::U8)?)
    };
    let floats = |count: usize| Tensor::rand(0.1f32, 1.0, count, device);
    let blocks = len / 64;
    let inputs = [
        bytes(len / 2)?,
        floats(16)?,
        bytes(blocks)?,
        floats(256)?,
        floats(blocks.div_ceil(256))?,
    ];
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let calls: MakeCalls = &|x, out| {
        let scales = nf4::Scales::Nested {
            codes: x[2],
            map: x[3],
            absmax: x[4],
            block_size: 256,
            offset: 0.1,
        };
        let packed = nf4::Packed {
            kind: 0,
            codes: x[0],
            table: x[1],
            scales,
            block_size: 64,
            rounding: DType::BF16,
            len,
        };
        nf4::dequantize(&[packed], out[0])
    };
    let seconds = clock.time(|| Ok(compute(&inputs, &[(DType::BF16, len)], calls).map(drop)?))?;
    note("unpack NF4 [8960, 1536] to bf16".into(), seconds);
    Ok(())
}

/// The student's attention over one window: 12 heads of 128 over 2 key heads.
fn attend(clock: &Clock, tokens: usize, note: &mut impl FnMut(String, f64)) -> Result<()> {
    let device = clock.device;
    let sizes = Sizes {
        queries: tokens,
        keys: tokens,
        heads: 12,
        key_heads: 2,
        head_dim: 128,
        scale: 0.088,
    };
    let normal = |heads: usize| -> Result<Tensor> {
        Ok(Tensor::randn(0f32, 1.0, tokens * heads * 128, device)?.to_dtype(DType::BF16)?)
    };
    let (q, k, v, grad) = (normal(12)?, normal(2)?, normal(2)?, normal(12)?);
    let rows = |values: &mut dyn Iterator<Item = usize>| -> Result<Tensor> {
        let values: Vec<u32> = values.map(|row| row as u32).collect();
        Ok(Tensor::from_vec(values, tokens, device)?)
    };
    let zero = rows(&mut std::iter::repeat_n(0, tokens))?;
    let after = rows(&mut (1..=tokens))?;
    let from = rows(&mut (0..tokens))?;
    let end = rows(&mut std::iter::repeat_n(tokens, tokens))?;
    let outputs = [(DType::BF16, tokens * 12 * 128), (DType::F32, 12 * tokens)];
    let forward: MakeCalls = &|x, out| {
        let seen = Ranges {
            first: x[3],
            end: x[4],
        };
        Ok(vec![attention::forward(
            sizes,
            [x[0], x[1], x[2]],
            seen,
            (out[0], out[1]),
        )?])
    };
    let inputs = [&q, &k, &v, &zero, &after];
    let made = compute(&inputs, &outputs, forward)?;
    note(
        format!("attention {tokens}"),
        clock.time(|| Ok(compute(&inputs, &outputs, forward).map(drop)?))?,
    );
    let key_elements = tokens * 2 * 128;
    let [along, parts] = sizes.scratch();
    let to_key = (DType::BF16, key_elements);
    let back = [along, parts, outputs[0], to_key, to_key];
    let backward: MakeCalls = &|x, out| {
        let kept = Kept {
            inputs: [x[0], x[1], x[2]],
            out: x[3],
            logsumexp: x[4],
            grad: x[5],
        };
        let ranges = (
            Ranges {
                first: x[6],
                end: x[7],
            },
            Ranges {
                first: x[8],
                end: x[9],
            },
        );
        let scratch = (out[0], out[1]);
        attention::backward(sizes, kept, ranges, scratch, [out[2], out[3], out[4]])
    };
    let inputs = [
        &q, &k, &v, &made[0], &made[1], &grad, &zero, &after, &from, &end,
    ];
    note(
        format!("attention {tokens}, gradients"),
        clock.time(|| Ok(compute(&inputs, &back, backward).map(drop)?))?,
    );
    Ok(())
}

/// The update of all adapters, and the norm of their gradients.
fn optimise(clock: &Clock, shrink: usize, note: &mut impl FnMut(String, f64)) -> Result<()> {
    let device = clock.device;
    let elements = ADAPTER_ELEMENTS.div_ceil(shrink);
    let mut parameters = Vec::new();
    let mut gradients = Gradients::new();
    for i in 0..ADAPTERS {
        let name = format!("adapter {i:03}");
        let values = Tensor::randn(0f32, 1.0, (16, elements.div_ceil(16)), device)?;
        gradients.add(&name, &values)?;
        parameters.push((name, Var::from_tensor(&values)?));
    }
    let config = OptimizerConfig {
        kind: OptimizerKind::AdamW,
        adamw: AdamWConfig {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
        },
        ratios: LearningRateRatios::default(),
    };
    let mut optimizer = Optimizer::new(parameters, config)?;
    let seconds = clock.time(|| Ok(optimizer.update(1e-6, 1.0, |name| gradients.get(name))?))?;
    note(
        format!("AdamW over {ADAPTERS} tensors of {elements}"),
        seconds,
    );
    note(
        format!("norm of {ADAPTERS} tensors"),
        clock.time(|| Ok(gradients.squares().map(drop)?))?,
    );
    Ok(())
}
