//! Tests of the attention kernel against the matrices written out, and against central differences.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::Result;
use crate::ops::cpu::Cpu;
use crate::ops::{Dims, Heads, Ops, Span};
use crate::reference::{causal_attention as by_matrices, packed_attention};
use crate::test_support::{Bridge, assert_central_differences, assert_same_function, random};

/// The CPU's attention as one of candle's operations: q [B, T_q, H, head_dim], k and v [B, T_k, KV, head_dim].
pub(crate) fn causal_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    window: Option<usize>,
    documents: Option<&Arc<[usize]>>,
) -> Result<Tensor> {
    let (batch, queries, heads, head_dim) = q.dims4()?;
    let (_, keys, key_value_heads, _) = k.dims4()?;
    let dims = Dims {
        heads,
        key_value_heads,
        head_dim,
        window,
    };
    let spans = match documents {
        Some(lengths) => Span::documents(lengths),
        None => Span::batch(batch, queries, keys),
    };
    let dtype = q.dtype();
    let wide = [q, k, v].map(|x| x.to_dtype(DType::F32).unwrap());
    let back = spans.clone();
    let out = Bridge::apply(
        &wide,
        move |x| {
            let mut ops = Cpu::new(DType::F32);
            let heads = heads_of(&mut ops, x)?;
            let (out, ()) = ops.attention(dims, &spans, &heads)?;
            ops.tensor(&out, x[0].dims())
        },
        move |x, grad| {
            let mut ops = Cpu::new(DType::F32);
            let (heads, grad) = (heads_of(&mut ops, x)?, ops.array(grad)?);
            let Heads { q, k, v } =
                ops.attention_gradient(dims, &back, &heads, (&Vec::new(), &()), &grad)?;
            let of = |made, x: &Tensor| ops.tensor(made, x.dims());
            Ok(vec![of(&q, &x[0])?, of(&k, &x[1])?, of(&v, &x[2])?])
        },
    )?;
    Ok(out.to_dtype(dtype)?)
}

fn heads_of(ops: &mut Cpu, x: &[Tensor]) -> Result<Heads<Vec<f32>>> {
    Ok(Heads {
        q: ops.array(&x[0])?,
        k: ops.array(&x[1])?,
        v: ops.array(&x[2])?,
    })
}

/// q, k, v of [batch, queries or keys, heads, 8].
fn inputs(batch: usize, queries: usize, keys: usize, heads: usize, shared: usize) -> [Tensor; 3] {
    [
        random(&[batch, queries, heads, 8], 1),
        random(&[batch, keys, shared, 8], 2),
        random(&[batch, keys, shared, 8], 3),
    ]
}

fn fast(x: &[Tensor]) -> Result<Tensor> {
    causal_attention(&x[0], &x[1], &x[2], None, None)
}

fn reference(x: &[Tensor]) -> Result<Tensor> {
    by_matrices(&x[0], &x[1], &x[2], None)
}

#[test]
fn the_kernel_equals_the_matrices() {
    // Below, at and above one block of queries; one head, groups, and no groups; with a past.
    for (batch, queries, keys, heads, shared) in [
        (1, 1, 1, 1, 1),
        (2, 5, 5, 4, 2),
        (1, 64, 64, 2, 1),
        (1, 130, 130, 3, 3),
        (2, 3, 70, 6, 2),
        (1, 1, 9, 4, 1),
    ] {
        let inputs = inputs(batch, queries, keys, heads, shared);
        // Sums of up to 130 terms of order 1 in f32, in another order.
        assert_same_function(fast, reference, &inputs, 2e-5);
    }
}

#[test]
fn gradients_equal_central_differences() {
    assert_central_differences(fast, &inputs(1, 6, 6, 4, 2));
    assert_central_differences(fast, &inputs(1, 2, 5, 2, 1));
}

/// A window's attention by its definition: position i sees max(0, i + 1 - window) to i, each row of q on its own.
fn windowed_by_rows(x: &[Tensor], window: usize) -> Tensor {
    let (queries, keys) = (x[0].dim(1).unwrap(), x[1].dim(1).unwrap());
    let rows: Vec<Tensor> = (0..queries)
        .map(|i| {
            let position = keys - queries + i;
            let first = (position + 1).saturating_sub(window);
            let seen = |x: &Tensor| x.narrow(1, first, position + 1 - first).unwrap();
            let q = x[0].narrow(1, i, 1).unwrap();
            by_matrices(&q, &seen(&x[1]), &seen(&x[2]), None).unwrap()
        })
        .collect();
    Tensor::cat(&rows, 1).unwrap()
}

#[test]
fn a_window_hides_what_is_older() {
    // Windows of one position, inside a block of queries, across blocks, as long as the sequence, and longer; with a past.
    for (queries, keys, window) in [
        (5, 5, 1),
        (130, 130, 7),
        (130, 130, 64),
        (130, 130, 100),
        (9, 9, 9),
        (9, 9, 1000),
        (3, 90, 17),
        (1, 40, 8),
        (70, 150, 20),
    ] {
        let inputs = inputs(2, queries, keys, 4, 2);
        let (by_rows, window) = (windowed_by_rows(&inputs, window), Some(window));
        let fast = |x: &[Tensor]| causal_attention(&x[0], &x[1], &x[2], window, None);
        let reference = |x: &[Tensor]| by_matrices(&x[0], &x[1], &x[2], window);
        // As for full attention.
        assert_same_function(fast, reference, &inputs, 2e-5);
        let difference = crate::test_support::largest_difference(&fast(&inputs).unwrap(), &by_rows);
        assert!(
            difference < 2e-5,
            "{queries}, {keys}, {window:?}: {difference}"
        );
    }
    let fast = |x: &[Tensor]| causal_attention(&x[0], &x[1], &x[2], Some(3), None);
    assert_central_differences(fast, &inputs(1, 6, 6, 4, 2));
    assert_central_differences(fast, &inputs(1, 2, 5, 2, 1));
}

#[test]
fn a_window_is_each_document_s_own() {
    let lengths: Arc<[usize]> = [3, 64, 1, 70].into();
    let total = lengths.iter().sum();
    let inputs = inputs(1, total, total, 4, 2);
    let window = Some(10);
    let packed = |x: &[Tensor]| causal_attention(&x[0], &x[1], &x[2], window, Some(&lengths));
    let one_by_one = |x: &[Tensor]| packed_attention(&x[0], &x[1], &x[2], window, &lengths);
    assert_same_function(packed, one_by_one, &inputs, 2e-5);
}

#[test]
fn large_scores_do_not_overflow() {
    let [q, k, v] = inputs(1, 9, 9, 2, 2);
    let inputs = [(q * 1e3).unwrap(), (k * 1e3).unwrap(), v];
    let out = fast(&inputs).unwrap();
    assert!(
        crate::test_support::values(&out)
            .iter()
            .all(|x| x.abs() <= 1.0)
    );
}

#[test]
fn low_precision_differs_by_rounding_only() {
    let inputs = inputs(1, 20, 20, 4, 2);
    let expected = fast(&inputs).unwrap();
    let low = inputs.map(|x| x.to_dtype(DType::BF16).unwrap());
    let out = fast(&low).unwrap();
    assert_eq!(out.dtype(), DType::BF16);
    // Inputs and output below 1 are rounded to 8 bits.
    assert!(crate::test_support::largest_difference(&out, &expected) < 1e-2);
}

#[test]
fn packed_documents_see_themselves_alone() {
    // Below, at and above one block of queries.
    let lengths: Arc<[usize]> = [3, 64, 1, 70].into();
    let total = lengths.iter().sum();
    let inputs = inputs(1, total, total, 4, 2);
    let packed = |x: &[Tensor]| causal_attention(&x[0], &x[1], &x[2], None, Some(&lengths));
    let one_by_one = |x: &[Tensor]| packed_attention(&x[0], &x[1], &x[2], None, &lengths);
    assert_same_function(packed, one_by_one, &inputs, 2e-5);
    let few: Arc<[usize]> = [2, 4].into();
    let packed = |x: &[Tensor]| causal_attention(&x[0], &x[1], &x[2], None, Some(&few));
    assert_central_differences(packed, &self::inputs(1, 6, 6, 4, 2));
}
