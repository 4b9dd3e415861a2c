//! Provides the tests of linear layers: gradients against autograd and central differences, loading, naming, adapters.

use super::*;
use crate::ops::Ops;
use crate::ops::cpu::Cpu;
use crate::test_support::Bridge;
use crate::{Base, Gradients, LoraConfig, Rounding};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Neither is a multiple of 64, so rows begin inside blocks.
const IN: usize = 50;
const OUT: usize = 37;

/// Values in [-1, 1] that differ between `salt`s.
fn values(count: usize, salt: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 7919 + salt * 104_729) % 2003) as f32 / 1001.0 - 1.0)
        .collect()
}

fn tensor(shape: &[usize], salt: usize) -> Tensor {
    let count = shape.iter().product();
    Tensor::from_vec(values(count, salt), shape, &Device::Cpu).unwrap()
}

fn nf4() -> Weight {
    let matrix = Nf4Matrix::quantize(&values(OUT * IN, 1), OUT, IN, true, Rounding::BF16);
    Weight::Nf4(Arc::new(matrix.unwrap()))
}

fn dense() -> Weight {
    Weight::Dense(tensor(&[OUT, IN], 1))
}

/// In blocks of one element: no other fits rows of 50.
fn packed() -> Weight {
    let blocks = QTensor::quantize(&tensor(&[OUT, IN], 1), GgmlDType::F16).unwrap();
    Weight::Packed(PackedMatrix::new(blocks).unwrap())
}

/// The matrix that a weight stands for.
fn matrix(weight: &Weight) -> Tensor {
    match weight {
        Weight::Dense(tensor) => tensor.clone(),
        Weight::Nf4(matrix) => matrix.dequantize(DType::F32, &Device::Cpu).unwrap(),
        Weight::Packed(matrix) => matrix.dequantize(DType::F32, &Device::Cpu).unwrap(),
        Weight::Trainable(var) => var.as_tensor().clone(),
    }
}

/// A layer with a bias and an adapter whose B is not zero.
fn layer(weight: Weight) -> Linear {
    let bias = Parameter::Frozen(tensor(&[OUT], 2));
    let var = |shape: &[usize], salt| Var::from_tensor(&tensor(shape, salt)).unwrap();
    let lora = Lora {
        a: var(&[3, IN], 3),
        b: var(&[OUT, 3], 4),
        scale: 0.5,
    };
    let linear = Linear::new("layer", weight, Some(bias)).unwrap();
    linear.with_lora(lora).unwrap()
}

/// The same layer in plain candle operations.
fn reference(linear: &Linear, x: &Tensor) -> Tensor {
    let lora = linear.lora().unwrap();
    let product = |x: &Tensor, w: &Tensor| x.broadcast_matmul(&w.t().unwrap()).unwrap();
    let y = product(x, &matrix(linear.weight()));
    let update = product(&product(x, &lora.a), &lora.b);
    let y = (y + (update * lora.scale).unwrap()).unwrap();
    y.broadcast_add(linear.bias().unwrap().tensor()).unwrap()
}

impl Linear {
    /// The layer as one of candle's operations, of x and all that is trained.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_in(DType::F32, x)
    }

    /// The same with activations in another type.
    fn forward_in(&self, dtype: DType, x: &Tensor) -> Result<Tensor> {
        let mut inputs = vec![x.to_dtype(DType::F32)?];
        let parameters = self.parameters();
        inputs.extend(parameters.iter().map(|(_, var)| var.as_tensor().clone()));
        let (there, back) = (self.clone(), self.clone());
        let shape = [&x.dims()[..x.rank() - 1], &[self.out_features]].concat();
        Bridge::apply(
            &inputs,
            move |x| {
                let mut ops = Cpu::new(dtype);
                let input = ops.array(&x[0])?;
                let mut stream = vec![0f32; shape.iter().product()];
                ops.add_linear(&there, &input, &mut stream)?;
                ops.tensor(&stream, &shape)
            },
            move |x, grad| {
                let mut ops = Cpu::new(dtype);
                let (input, grad) = (ops.array(&x[0])?, ops.array(grad)?);
                let mut gradients = Gradients::new();
                let to_x = ops.add_linear_gradient(&back, &input, None, &grad, &mut gradients)?;
                let mut out = vec![ops.tensor(&to_x, x[0].dims())?];
                for (name, _) in &parameters {
                    out.push(gradients.get(name).unwrap().clone());
                }
                Ok(out)
            },
        )
    }
}

fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b).unwrap().abs().unwrap();
    difference.max_all().unwrap().to_scalar().unwrap()
}

/// A scalar loss whose gradient differs in every element of y.
fn loss(y: &Tensor) -> Tensor {
    let weights = tensor(y.dims(), 5);
    (y * weights).unwrap().sum_all().unwrap()
}

#[test]
fn values_and_gradients_equal_plain_autograd() {
    for weight in [dense(), nf4(), packed()] {
        let linear = layer(weight);
        let x = Var::from_tensor(&tensor(&[2, 3, IN], 6)).unwrap();
        let y = linear.forward(&x).unwrap();
        let expected = reference(&linear, &x);
        // f32 sums of 50 products of order 1, added in another order.
        assert!(max_difference(&y, &expected) < 2e-5);
        let actual = loss(&y).backward().unwrap();
        let expected = loss(&expected).backward().unwrap();
        let lora = linear.lora().unwrap();
        for (name, var) in [("x", &x), ("A", &lora.a), ("B", &lora.b)] {
            let difference = max_difference(actual.get(var).unwrap(), expected.get(var).unwrap());
            assert!(difference < 5e-5, "d{name}: {difference}");
        }
    }
}

#[test]
fn gradients_equal_central_differences() {
    for weight in [dense(), nf4(), packed()] {
        let linear = layer(weight);
        let x = Var::from_tensor(&tensor(&[4, IN], 6)).unwrap();
        let evaluate = || {
            let y = linear.forward(&x).unwrap();
            // Summed in f64: the loss is linear in x and in each factor, so rounding is the only error.
            let product = (y * tensor(&[4, OUT], 5)).unwrap();
            let product = product.to_dtype(DType::F64).unwrap();
            product.sum_all().unwrap().to_scalar::<f64>().unwrap()
        };
        let grads = loss(&linear.forward(&x).unwrap()).backward().unwrap();
        let lora = linear.lora().unwrap();
        for (name, var) in [("x", &x), ("A", &lora.a), ("B", &lora.b)] {
            let shape = var.dims().to_vec();
            let original = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let gradient = grads.get(var).unwrap().flatten_all().unwrap();
            let gradient = gradient.to_vec1::<f32>().unwrap();
            for index in [0, 17, original.len() / 2, original.len() - 1] {
                let step = 0.25;
                let at = |offset: f32| {
                    let mut moved = original.clone();
                    moved[index] += offset;
                    let moved = Tensor::from_vec(moved, &shape[..], &Device::Cpu).unwrap();
                    var.set(&moved).unwrap();
                    evaluate()
                };
                let difference = (at(step) - at(-step)) / f64::from(2.0 * step);
                at(0.0);
                let error = (difference - f64::from(gradient[index])).abs();
                // y is of order 10 with f32 rounding 1e-6, summed over 148 elements, over a step of 0.5.
                assert!(
                    error < 1e-3,
                    "d{name}[{index}]: {difference} {}",
                    gradient[index]
                );
            }
        }
    }
}

#[test]
fn a_frozen_weight_gets_no_gradient_even_when_it_is_a_variable() {
    let weight = Var::from_tensor(&tensor(&[OUT, IN], 1)).unwrap();
    let frozen = Weight::Dense(weight.as_tensor().clone());
    let linear = Linear::new("layer", frozen, None).unwrap();
    let x = Var::from_tensor(&tensor(&[2, IN], 6)).unwrap();
    let grads = loss(&linear.forward(&x).unwrap()).backward().unwrap();
    assert!(grads.get(&x).is_some());
    assert!(grads.get(&weight).is_none());
}

#[test]
fn a_trainable_weight_gets_its_gradient() {
    let weight = Var::from_tensor(&tensor(&[OUT, IN], 1)).unwrap();
    let linear = Linear::new("layer", Weight::Trainable(weight.clone()), None).unwrap();
    let x = tensor(&[2, IN], 6);
    let y = linear.forward(&x).unwrap();
    let grads = loss(&y).backward().unwrap();
    let expected = tensor(&[2, OUT], 5).t().unwrap().matmul(&x).unwrap();
    assert!(max_difference(grads.get(&weight).unwrap(), &expected) < 1e-5);
    let names: Vec<_> = linear.parameters().into_iter().map(|p| p.0).collect();
    assert_eq!(names, ["layer.weight"]);
}

#[test]
fn a_trained_bias_gets_the_sum_of_rows() {
    let var = |shape: &[usize], salt| Var::from_tensor(&tensor(shape, salt)).unwrap();
    let bias = Parameter::Trainable(var(&[OUT], 2));
    let weight = Weight::Trainable(var(&[OUT, IN], 1));
    let linear = Linear::new("layer", weight, Some(bias)).unwrap();
    // More rows than one partial sum has.
    let y = linear.forward(&tensor(&[70, IN], 6)).unwrap();
    let grads = loss(&y).backward().unwrap();
    let expected = tensor(&[70, OUT], 5).sum(0).unwrap();
    let (_, bias) = linear.parameters().remove(1);
    // Sums of 70 terms of order 1 in another order.
    assert!(max_difference(grads.get(&bias).unwrap(), &expected) < 1e-5);
}

#[test]
fn a_dense_matrix_in_sixteen_bits_is_multiplied_as_its_values_are() {
    for dtype in [DType::BF16, DType::F16] {
        let narrow = tensor(&[OUT, IN], 1).to_dtype(dtype).unwrap();
        let wide = layer(Weight::Dense(narrow.to_dtype(DType::F32).unwrap()));
        let linear = layer(Weight::Dense(narrow));
        let x = Var::from_tensor(&tensor(&[3, IN], 6)).unwrap();
        let run = |linear: &Linear| {
            let y = linear.forward(&x).unwrap();
            let grads = loss(&y).backward().unwrap();
            (y, grads.get(&x).unwrap().clone())
        };
        let ((y, dx), (expected, expected_dx)) = (run(&linear), run(&wide));
        // f32 sums of 50 products of order 1, added in another order.
        assert!(max_difference(&y, &expected) < 2e-5, "{dtype:?}");
        assert!(max_difference(&dx, &expected_dx) < 2e-5, "{dtype:?}");
    }
}

/// A checkpoint with one layer `m.q_proj` of type `dtype`.
fn checkpoint(dtype: Dtype, extra: &[&str]) -> Weights {
    let narrow: Vec<half::bf16> = values(OUT * IN, 1)
        .into_iter()
        .map(half::bf16::from_f32)
        .collect();
    let wide = values(OUT * IN, 1);
    let bytes: &[u8] = match dtype {
        Dtype::BF16 => bytemuck::cast_slice(&narrow),
        _ => bytemuck::cast_slice(&wide),
    };
    let bias = values(OUT, 2);
    let view = |dtype, shape, bytes| TensorView::new(dtype, shape, bytes).unwrap();
    let mut tensors = vec![
        ("m.q_proj.weight", view(dtype, vec![OUT, IN], bytes)),
        (
            "m.q_proj.bias",
            view(Dtype::F32, vec![OUT], bytemuck::cast_slice(&bias)),
        ),
    ];
    tensors.extend(
        extra
            .iter()
            .map(|name| (*name, view(Dtype::U8, vec![1], &[0]))),
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    Weights::open_file(&path).unwrap()
}

fn options(base: Base, lora: Option<LoraConfig>) -> LoadOptions {
    LoadOptions {
        base,
        lora,
        ..LoadOptions::reference()
    }
}

#[test]
fn loading_follows_the_options() {
    let weights = checkpoint(Dtype::BF16, &[]);
    let load = |base, lora| Linear::load(&weights, "m.q_proj", &options(base, lora)).unwrap();
    let names =
        |linear: &Linear| -> Vec<String> { linear.parameters().into_iter().map(|p| p.0).collect() };

    let plain = load(Base::AsStored, None);
    assert_eq!((plain.in_features(), plain.out_features()), (IN, OUT));
    assert!(plain.parameters().is_empty());
    assert!(plain.bias().is_some());

    let trained = load(Base::Trainable, None);
    assert_eq!(names(&trained), ["m.q_proj.weight", "m.q_proj.bias"]);

    let adapted = load(Base::QuantizeNf4, Some(LoraConfig::default()));
    let Weight::Nf4(matrix) = adapted.weight() else {
        panic!("{:?}", adapted.weight())
    };
    assert_eq!(matrix.rounding(), Rounding::BF16);
    assert!(matrix.is_double_quantized());
    assert_eq!(
        names(&adapted),
        [
            "base_model.model.m.q_proj.lora_A.weight",
            "base_model.model.m.q_proj.lora_B.weight"
        ]
    );

    let other = LoraConfig {
        targets: ["k_proj"].into_iter().collect(),
        ..LoraConfig::default()
    };
    assert!(load(Base::AsStored, Some(other)).lora().is_none());
}

#[test]
fn a_fresh_adapter_changes_nothing_and_is_reproducible() {
    let weights = checkpoint(Dtype::F32, &[]);
    let load = |seed| {
        let lora = LoraConfig {
            seed,
            ..LoraConfig::default()
        };
        Linear::load(&weights, "m.q_proj", &options(Base::AsStored, Some(lora))).unwrap()
    };
    let plain = Linear::load(&weights, "m.q_proj", &options(Base::AsStored, None)).unwrap();
    let x = tensor(&[3, IN], 6);
    let (adapted, again, other) = (load(1), load(1), load(2));
    let y = plain.forward(&x).unwrap();
    assert_eq!(max_difference(&adapted.forward(&x).unwrap(), &y), 0.0);

    let a = |linear: &Linear| linear.lora().unwrap().a.as_tensor().clone();
    assert_eq!(max_difference(&a(&adapted), &a(&again)), 0.0);
    assert!(max_difference(&a(&adapted), &a(&other)) > 0.0);
    // Uniform in +-1/sqrt(50): 800 values come near both ends, and average to about zero.
    let values = a(&adapted).flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let bound = 1.0 / (IN as f32).sqrt();
    let largest = values.iter().copied().fold(f32::MIN, f32::max);
    let smallest = values.iter().copied().fold(f32::MAX, f32::min);
    assert!(largest < bound && largest > 0.98 * bound, "{largest}");
    assert!(smallest >= -bound && smallest < -0.98 * bound, "{smallest}");
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    // Four standard errors: bound / sqrt(3 * 800).
    assert!(mean.abs() < 4.0 * bound / 2400f32.sqrt(), "{mean}");
}

#[test]
fn the_scale_is_alpha_over_rank_or_its_root() {
    let config = LoraConfig {
        rank: 16,
        alpha: 32.0,
        ..LoraConfig::default()
    };
    assert_eq!(config.scale_of("m").unwrap(), 2.0);
    let stabilised = LoraConfig {
        rs_lora: true,
        ..config
    };
    assert_eq!(stabilised.scale_of("m").unwrap(), 8.0);
}

#[test]
fn checkpoints_that_cannot_be_read_are_refused_by_format() {
    for (extra, format) in [("m.q_proj.SCB", "int8"), ("m.q_proj.qweight", "GPTQ")] {
        let weights = checkpoint(Dtype::F32, &[extra]);
        let error = Linear::load(&weights, "m.q_proj", &options(Base::AsStored, None));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(format), "{error}");
    }
    let nf4 = ["m.q_proj.weight.quant_state.bitsandbytes__nf4"];
    let weights = checkpoint(Dtype::F32, &nf4);
    let error = Linear::load(&weights, "m.q_proj", &options(Base::Trainable, None));
    assert!(error.unwrap_err().to_string().contains("LoRA"));
    let error = Linear::load(&weights, "m.k_proj", &options(Base::AsStored, None));
    assert!(error.unwrap_err().to_string().contains("m.k_proj.weight"));
}

/// llm_int8_skip_modules: what a quantised checkpoint holds densely stays dense.
#[test]
fn dense_matrices_of_a_quantised_checkpoint_are_not_quantised() {
    for kind in ["nf4", "fp4"] {
        let other = format!("m.other.weight.quant_state.bitsandbytes__{kind}");
        let weights = checkpoint(Dtype::F32, &[&other]);
        let linear = Linear::load(&weights, "m.q_proj", &options(Base::QuantizeNf4, None)).unwrap();
        assert!(matches!(linear.weight(), Weight::Dense(_)), "{kind}");
    }
}
