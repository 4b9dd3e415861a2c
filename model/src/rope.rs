//! Provides rotary position embeddings (RoPE), with angles in f32 whatever the model's dtype.
//!
//! From Su et al., "RoFormer" (2021), in the half-split form of the published Llama and Qwen2
//! weights: element i of a head turns together with element i + head_dim/2.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Device, Layout, Shape, Tensor};
use distill_kernels::{device, layers};
use rayon::prelude::*;

use crate::element::{Element, elements, for_element, round_to};
use crate::simd::vectorized;
use crate::{ModelConfig, Result};

/// Rows that one task turns at least.
const TASK_ROWS: usize = 16;

/// The frequencies of one model.
#[derive(Debug, Clone)]
pub struct Rotary {
    inverse_frequencies: Vec<f32>,
}

impl Rotary {
    /// Frequencies `theta^(-2i / head_dim)`, scaled as the config says, in f64 and then rounded to f32.
    pub fn new(config: &ModelConfig) -> Self {
        let dim = config.head_dim;
        let frequency = |i| config.rope_theta.powf(-2.0 * i as f64 / dim as f64);
        let inverse_frequencies = (0..dim / 2)
            .map(|i| config.rope_scaling.scale(i, frequency(i)) as f32)
            .collect();
        Self {
            inverse_frequencies,
        }
    }

    /// As [`angles`](Self::angles), for documents of these lengths in one row: each starts at position 0.
    ///
    /// # Errors
    /// When the device refuses the tables.
    pub fn packed_angles(
        &self,
        lengths: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Angles> {
        let positions = lengths.iter().flat_map(|length| 0..*length);
        let angles = self.at(positions, dtype, device)?;
        Ok(Angles {
            documents: Some(lengths.into()),
            ..angles
        })
    }

    /// Cosines and sines of the positions `offset..offset + len`, rounded to `dtype` for use.
    ///
    /// The angle is an f32 product, as in transformers. Computed in bf16 it would be wrong from
    /// position 257 on, where bf16 no longer tells neighbouring positions apart.
    ///
    /// # Errors
    /// When the device refuses the tables.
    pub fn angles(
        &self,
        offset: usize,
        len: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Angles> {
        self.at(offset..offset + len, dtype, device)
    }

    fn at(
        &self,
        positions: impl Iterator<Item = usize>,
        dtype: DType,
        device: &Device,
    ) -> Result<Angles> {
        let half = self.inverse_frequencies.len();
        let angles = positions
            .flat_map(|position| {
                let position = position as f32;
                self.inverse_frequencies.iter().map(move |f| position * f)
            })
            .collect::<Vec<f32>>();
        let table = |function: fn(f64) -> f64| -> Arc<[f32]> {
            angles
                .iter()
                .map(|angle| round_to(dtype, function(f64::from(*angle)) as f32))
                .collect()
        };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let tensor = |values: &[f32]| -> Result<Tensor> {
            let len = values.len() / half.max(1);
            Ok(Tensor::from_slice(values, (len, 1, half), device)?.to_dtype(dtype)?)
        };
        let turn = Turn {
            tables: [tensor(&cos)?, tensor(&sin)?],
            cos,
            sin,
            half,
            direction: Direction::Forward,
        };
        Ok(Angles {
            turn,
            documents: None,
        })
    }
}

/// Cosines and sines for one range of positions; made once a forward pass, used by every layer.
#[derive(Debug, Clone)]
pub struct Angles {
    turn: Turn,
    /// Lengths of the documents of a packed row.
    documents: Option<Arc<[usize]>>,
}

impl Angles {
    /// Lengths of the documents that the row is packed from, where it is.
    pub(crate) fn documents(&self) -> Option<&Arc<[usize]>> {
        self.documents.as_ref()
    }

    /// Turns rows in place: f32 [rows, heads * head_dim], sequence after sequence.
    pub(crate) fn turn_rows(&self, rows: &mut [f32], heads: usize, back: bool) {
        self.turn
            .run_in_place(rows, heads, if back { -1.0 } else { 1.0 });
    }

    /// Turns every head by its position: `[x1 cos - x2 sin, x2 cos + x1 sin]`.
    ///
    /// # Shapes
    /// x [B, T, heads, head_dim] -> the same, where T is the number of positions.
    ///
    /// # Errors
    /// When the shapes disagree.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() || x.device().is_cuda() {
            Ok(x.contiguous()?.apply_op1(self.turn.clone())?)
        } else {
            self.apply_reference(x)
        }
    }

    /// The same in candle's own operations: for other devices, and to test the kernel against.
    pub(crate) fn apply_reference(&self, x: &Tensor) -> Result<Tensor> {
        let half = self.turn.half;
        let [cos, sin] = &self.turn.tables;
        let (first, second) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
        let turn = |straight: &Tensor, crossed: &Tensor| -> Result<(Tensor, Tensor)> {
            Ok((straight.broadcast_mul(cos)?, crossed.broadcast_mul(sin)?))
        };
        let (a, b) = turn(&first, &second)?;
        let (c, d) = turn(&second, &first)?;
        Ok(Tensor::cat(&[(a - b)?, (c + d)?], 3)?)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Back,
}

/// The rotation as one pass over the rows. It is orthogonal, so its gradient is the rotation back.
#[derive(Debug, Clone)]
struct Turn {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    /// The same, [positions, 1, half], where and as the heads are.
    tables: [Tensor; 2],
    half: usize,
    direction: Direction,
}

impl Turn {
    /// The sizes of x [B, T, heads, head_dim].
    fn heads(&self, x: &Layout) -> candle_core::Result<layers::Heads> {
        let (batch, len, heads, head_dim) = x.shape().dims4()?;
        let positions = self.cos.len() / self.half;
        if head_dim != 2 * self.half || len != positions {
            candle_core::bail!(
                "rope: {:?} does not fit {positions} positions of head_dim {}",
                x.shape(),
                2 * self.half
            );
        }
        Ok(layers::Heads {
            rows: batch * len,
            positions,
            heads,
            half: self.half,
        })
    }

    fn sign(&self) -> f32 {
        match self.direction {
            Direction::Forward => 1.0,
            Direction::Back => -1.0,
        }
    }

    fn run_in_place<E: Element>(&self, rows: &mut [E], heads: usize, sign: f32) {
        let positions = self.cos.len() / self.half;
        let row_len = heads * 2 * self.half;
        rows.par_chunks_mut(row_len)
            .with_min_len(TASK_ROWS)
            .enumerate()
            .for_each(|(row, x)| {
                let start = (row % positions) * self.half;
                let cos = &self.cos[start..start + self.half];
                let sin = &self.sin[start..start + self.half];
                turn_heads(x, cos, sin, sign);
            });
    }
}

vectorized! {
    /// Every head of one row.
    fn turn_heads<'a, E>(row: &'a mut [E], cos: &'a [f32], sin: &'a [f32], sign: f32) {
        let half = cos.len();
        let sin = &sin[..half];
        for head in row.chunks_exact_mut(2 * half) {
            let (x1, x2) = head.split_at_mut(half);
            let x2 = &mut x2[..half];
            for i in 0..half {
                let (a, b) = (x1[i].widen(), x2[i].widen());
                let (cos, sin) = (cos[i], sign * sin[i]);
                // Each product is rounded before the sum, as transformers' tensors are.
                x1[i] = E::narrow(E::round(a * cos) - E::round(b * sin));
                x2[i] = E::narrow(E::round(b * cos) + E::round(a * sin));
            }
        }
    }
}

impl CustomOp1 for Turn {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let heads = self.heads(layout)?.heads;
        for_element!("rope", storage.dtype(), E => {
            let mut out = elements::<E>(storage, layout)?.to_vec();
            self.run_in_place(&mut out, heads, self.sign());
            Ok((E::store(out), layout.shape().clone()))
        })
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let heads = self.heads(layout)?;
        let [cos, sin] = self.tables.each_ref().map(Tensor::storage_and_layout);
        let inputs = [
            (x, layout),
            (device::storage(&cos.0)?, cos.1),
            (device::storage(&sin.0)?, sin.1),
        ];
        let output = (x.dtype(), layout.shape().elem_count());
        let out = device::run_one(x.device(), &inputs, output, |x, out| {
            layers::rope(x[0], (x[1], x[2]), out, heads, self.sign())
        })?;
        Ok((out, layout.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let back = Self {
            direction: Direction::Back,
            ..self.clone()
        };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_tests::emulated;
    use crate::test_support::{
        assert_central_differences, assert_same_function, gradients, largest_difference, random,
        values,
    };
    use distill_kernels::LAYERS;

    fn rotary() -> Rotary {
        let inverse_frequencies = vec![1.0, 0.1, 0.01];
        Rotary {
            inverse_frequencies,
        }
    }

    fn angles(offset: usize, len: usize, dtype: DType) -> Angles {
        rotary().angles(offset, len, dtype, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_kernel_equals_plain_operations_bit_for_bit() {
        let x = random(&[2, 5, 3, 6], 1);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let angles = angles(300, 5, dtype);
            let x = x.to_dtype(dtype).unwrap();
            let (fast, reference) = (
                angles.apply(&x).unwrap(),
                angles.apply_reference(&x).unwrap(),
            );
            assert_eq!(values(&fast), values(&reference), "{dtype:?}");
        }
    }

    #[test]
    fn gradients_equal_those_of_plain_operations_and_central_differences() {
        let angles = angles(2, 5, DType::F32);
        let inputs = [random(&[2, 5, 3, 6], 1)];
        let fast = |x: &[Tensor]| angles.apply(&x[0]);
        // Four roundings of numbers below 2.
        assert_same_function(fast, |x| angles.apply_reference(&x[0]), &inputs, 1e-6);
        assert_central_differences(fast, &inputs);
    }

    #[test]
    fn neighbouring_positions_past_256_differ_in_bf16() {
        // Angles in bf16 would make them equal: it holds 8 bits of the position.
        let x = random(&[1, 1, 1, 6], 1).to_dtype(DType::BF16).unwrap();
        let at = |position| angles(position, 1, DType::BF16).apply(&x).unwrap();
        assert!(largest_difference(&at(512), &at(513)) > 0.1);
    }

    #[test]
    fn a_product_of_turned_heads_depends_on_their_distance_only() {
        let (q, k) = (random(&[1, 1, 1, 6], 1), random(&[1, 1, 1, 6], 2));
        let score = |q_at, k_at| {
            let q = angles(q_at, 1, DType::F32).apply(&q).unwrap();
            let k = angles(k_at, 1, DType::F32).apply(&k).unwrap();
            values(&(q * k).unwrap()).iter().sum::<f32>()
        };
        assert!((score(7, 3) - score(104, 100)).abs() < 1e-5);
        assert!((score(7, 3) - score(7, 4)).abs() > 1e-2);
    }

    #[test]
    fn the_card_turns_heads_as_the_cpu_does_bit_for_bit() {
        let sizes = layers::Heads {
            rows: 2 * 5,
            positions: 5,
            heads: 3,
            half: 3,
        };
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let x = random(&[2, 5, 3, 6], 1).to_dtype(dtype).unwrap();
            let angles = angles(300, 5, dtype);
            let [cos, sin] = &angles.turn.tables;
            let turned = |sign| {
                emulated(&LAYERS, &[&x, cos, sin], (dtype, 180), |x, out| {
                    layers::rope(x[0], (x[1], x[2]), out, sizes, sign)
                })
            };
            let (out, back) = (turned(1.0), turned(-1.0));
            assert_eq!(
                values(&out),
                values(&angles.apply(&x).unwrap()),
                "{dtype:?}"
            );
            let cpu = gradients(|x| angles.apply(&x[0]), std::slice::from_ref(&x), &x);
            assert_eq!(values(&back), values(&cpu[0]), "{dtype:?}");
        }
    }

    #[test]
    fn other_positions_than_the_table_has_are_refused() {
        let angles = angles(0, 4, DType::F32);
        assert!(angles.apply(&random(&[1, 5, 1, 6], 1)).is_err());
        assert!(angles.apply(&random(&[1, 4, 1, 8], 1)).is_err());
    }
}
