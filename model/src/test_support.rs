//! Provides what the tests of differentiable operations share: random tensors, gradients by the graph
//! and by central differences.

use candle_core::{DType, Device, Tensor, Var};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::Result;

/// Uniform in -1..1.
pub(crate) fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut random = StdRng::seed_from_u64(seed);
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| random.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

pub(crate) fn values(x: &Tensor) -> Vec<f32> {
    let x = x.to_dtype(DType::F32).unwrap();
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
pub(crate) fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.elem_count(), b.elem_count());
    let pairs = values(a).into_iter().zip(values(b));
    // `max` would swallow a NaN.
    pairs
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, d| if d <= max { max } else { d })
}

/// `sum(f(inputs) * grad)` and its gradients in the inputs.
pub(crate) fn gradients(
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    grad: &Tensor,
) -> Vec<Tensor> {
    let leaves: Vec<Tensor> = inputs
        .iter()
        .map(|x| Var::from_tensor(x).unwrap().into_inner())
        .collect();
    let loss = (f(&leaves).unwrap() * grad).unwrap().sum_all().unwrap();
    let store = loss.backward().unwrap();
    leaves
        .iter()
        .map(|x| store.get(x).unwrap().clone())
        .collect()
}

/// Checks that two implementations agree in value and gradients.
#[track_caller]
pub(crate) fn assert_same_function(
    fast: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    tolerance: f32,
) {
    let (a, b) = (fast(inputs).unwrap(), reference(inputs).unwrap());
    assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()));
    let difference = largest_difference(&a, &b);
    assert!(difference < tolerance, "values differ by {difference}");
    let grad = random(a.dims(), 99).to_dtype(a.dtype()).unwrap();
    let fast = gradients(fast, inputs, &grad);
    let reference = gradients(reference, inputs, &grad);
    for (i, (a, b)) in fast.iter().zip(&reference).enumerate() {
        let difference = largest_difference(a, b);
        assert!(
            difference < tolerance,
            "gradient {i} differs by {difference}"
        );
    }
}

/// Checks the gradients of `f` in f32 inputs against central differences at some elements of each.
///
/// A step of 1e-2 leaves a truncation error of 1e-4 times the third derivative, and divides the f32
/// rounding of a sum of order 10 (1e-6) by 2e-2: hence the tolerance.
#[track_caller]
pub(crate) fn assert_central_differences(
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
) {
    const STEP: f32 = 1e-2;
    const TOLERANCE: f64 = 2e-3;
    let grad = random(f(inputs).unwrap().dims(), 98);
    let weights = values(&grad);
    let loss = |inputs: &[Tensor]| -> f64 {
        let out = values(&f(inputs).unwrap());
        out.iter()
            .zip(&weights)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    for (i, gradient) in gradients(&f, inputs, &grad).iter().enumerate() {
        let gradient = values(gradient);
        for at in (0..gradient.len()).step_by(gradient.len().div_ceil(7)) {
            let shifted = |by: f32| {
                let mut moved = inputs.to_vec();
                let mut elements = values(&inputs[i]);
                elements[at] += by;
                moved[i] = Tensor::from_vec(elements, inputs[i].shape(), &Device::Cpu).unwrap();
                loss(&moved)
            };
            let expected = (shifted(STEP) - shifted(-STEP)) / (2.0 * f64::from(STEP));
            let actual = f64::from(gradient[at]);
            let error = (expected - actual).abs() / expected.abs().max(1.0);
            assert!(
                error < TOLERANCE,
                "input {i}, element {at}: {actual}, expected {expected}"
            );
        }
    }
}
