//! Provides what the tests of differentiable operations share: random tensors, gradients by the graph
//! and by central differences.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Shape, Tensor, Var,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::{Decoder, Piece, Result};

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

/// Hidden states of `ids` [B, T] in pieces of these lengths, each a pass for the whole batch.
pub(crate) fn through_a_cache(decoder: &Decoder, ids: &Tensor, lengths: &[usize]) -> Tensor {
    let ids = ids.to_vec2::<u32>().unwrap();
    let mut cache = decoder.new_cache(ids.len(), ids[0].len()).unwrap();
    let mut made = Vec::new();
    for &length in lengths {
        let start = cache.held(0);
        let piece = |(slot, ids): (usize, &Vec<u32>)| (slot, ids[start..start + length].to_vec());
        let pieces: Vec<_> = ids.iter().enumerate().map(piece).collect();
        let pieces = pieces.iter().map(|(slot, ids)| Piece { slot: *slot, ids });
        let rows = decoder
            .extend(&pieces.collect::<Vec<_>>(), &mut cache)
            .unwrap();
        made.push(rows.reshape((ids.len(), length, ())).unwrap());
    }
    Tensor::cat(&made, 1).unwrap()
}

/// A function with a gradient of its own as one of candle's operations, so that it can be compared with what candle's autograd makes
/// of plain ones. Up to three inputs.
pub(crate) struct Bridge<F, B> {
    forward: F,
    backward: B,
}

impl<F, B> Bridge<F, B>
where
    F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    B: Fn(&[Tensor], &Tensor) -> Result<Vec<Tensor>> + Send + Sync + 'static,
{
    /// The operation on these inputs.
    pub(crate) fn apply(inputs: &[Tensor], forward: F, backward: B) -> Result<Tensor> {
        let op = Self { forward, backward };
        let inputs: Vec<Tensor> = inputs.iter().map(|x| x.contiguous().unwrap()).collect();
        Ok(match &inputs[..] {
            [x] => x.apply_op1(op)?,
            [x, y] => x.apply_op2(y, op)?,
            [x, y, z] => x.apply_op3(y, z, op)?,
            _ => unreachable!(),
        })
    }

    fn run(&self, inputs: &[(&CpuStorage, &Layout)]) -> candle_core::Result<(CpuStorage, Shape)> {
        let inputs = inputs.iter().map(|(storage, layout)| {
            let (start, end) = layout.contiguous_offsets().unwrap();
            let CpuStorage::F32(values) = storage else {
                unreachable!()
            };
            Tensor::from_slice(&values[start..end], layout.shape(), &Device::Cpu)
        });
        let inputs = inputs.collect::<candle_core::Result<Vec<_>>>()?;
        let out = (self.forward)(&inputs).map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(values(&out)), out.shape().clone()))
    }

    fn pull_back(
        &self,
        inputs: &[&Tensor],
        grad: &Tensor,
    ) -> candle_core::Result<Vec<Option<Tensor>>> {
        let inputs: Vec<Tensor> = inputs.iter().map(|x| x.detach()).collect();
        let grads = (self.backward)(&inputs, &grad.contiguous()?.detach());
        let grads = grads.map_err(candle_core::Error::wrap)?;
        Ok(grads.into_iter().map(Some).collect())
    }
}

impl<F, B> CustomOp1 for Bridge<F, B>
where
    F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    B: Fn(&[Tensor], &Tensor) -> Result<Vec<Tensor>> + Send + Sync + 'static,
{
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.run(&[(x, l)])
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(self.pull_back(&[x], grad)?.remove(0))
    }
}

impl<F, B> CustomOp2 for Bridge<F, B>
where
    F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    B: Fn(&[Tensor], &Tensor) -> Result<Vec<Tensor>> + Send + Sync + 'static,
{
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.run(&[(x, x_layout), (y, y_layout)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.pull_back(&[x, y], grad)?.into_iter();
        Ok((grads.next().flatten(), grads.next().flatten()))
    }
}

impl<F, B> CustomOp3 for Bridge<F, B>
where
    F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    B: Fn(&[Tensor], &Tensor) -> Result<Vec<Tensor>> + Send + Sync + 'static,
{
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
        z: &CpuStorage,
        z_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.run(&[(x, x_layout), (y, y_layout), (z, z_layout)])
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.pull_back(&[x, y, z], grad)?.into_iter();
        let mut next = || grads.next().flatten();
        Ok((next(), next(), next()))
    }
}
