//! Tests of the sketch against dense eigenvalues and dense logits.

use nalgebra::DMatrix;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    config::StateSetting,
    forward::Capture,
    production::{Forward, Tokens},
    selection::Keep,
    testing::{VOCAB_SIZE, decoder, sequence},
};

const GO: &dyn Fn() -> bool = &|| false;

fn tensor(matrix: &DMatrix<f64>) -> Tensor {
    // nalgebra's storage is column-major: as rows it is the transpose.
    let (rows, columns) = matrix.shape();
    let values = matrix.as_slice().to_vec();
    let transposed = Tensor::from_vec(values, (columns, rows), &Device::Cpu).unwrap();
    transposed.t().unwrap().contiguous().unwrap()
}

fn matrix(tensor: &Tensor) -> DMatrix<f64> {
    let (rows, columns) = tensor.dims2().unwrap();
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    let values: Vec<f64> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    DMatrix::from_row_slice(rows, columns, &values)
}

fn random(rng: &mut StdRng, rows: usize, columns: usize) -> DMatrix<f64> {
    DMatrix::from_fn(rows, columns, |_, _| rng.random_range(-1.0..1.0))
}

/// S of `rank` directions whose lengths fall like a power, and G of a matrix with columns of different lengths.
fn problem(size: usize, rank: usize, seed: u64) -> (DMatrix<f64>, DMatrix<f64>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut states = random(&mut rng, rank, size);
    for (i, mut row) in states.row_iter_mut().enumerate() {
        row *= ((i + 1) as f64).powf(-0.7);
    }
    let mut basis = random(&mut rng, 3 * size, size);
    for (i, mut column) in basis.column_iter_mut().enumerate() {
        column *= 1.0 + (i % 9) as f64;
    }
    (states.tr_mul(&states), basis.tr_mul(&basis))
}

/// The slow reference: eigenvalues of L^T S L with G = L L^T, the largest first.
fn spectrum(s: &DMatrix<f64>, g: &DMatrix<f64>) -> Vec<f64> {
    let l = g.clone().cholesky().unwrap().l();
    let values = (l.transpose() * s * &l).symmetric_eigenvalues();
    let mut values: Vec<f64> = values.iter().copied().collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

fn largest(matrix: &DMatrix<f64>) -> f64 {
    matrix.iter().fold(0.0, |max, value| max.max(value.abs()))
}

#[test]
fn the_captured_energy_is_the_largest_there_is() {
    for (size, rank) in [(40, 1), (40, 6), (150, 20), (150, 140), (30, 30)] {
        let (s, g) = problem(size, size, rank as u64);
        let v = subspace::leading(&tensor(&s), &tensor(&g), rank, GO).unwrap();
        let v = matrix(&v);
        assert_eq!(v.shape(), (size, rank));
        let gv = &g * &v;
        assert!(largest(&(v.tr_mul(&gv) - DMatrix::identity(rank, rank))) < 1e-9);
        let captured = gv.tr_mul(&(&s * &gv));
        let best = spectrum(&s, &g);
        let expected: f64 = best[..rank].iter().sum();
        assert!(
            (captured.trace() / expected - 1.0).abs() < 1e-6,
            "{size} {rank}: {} of {expected}",
            captured.trace()
        );
        // The first ones come first.
        assert!((captured[(0, 0)] / best[0] - 1.0).abs() < 1e-6);
    }
}

#[test]
fn directions_without_energy_are_still_orthonormal() {
    let (s, g) = problem(60, 3, 1);
    let v = matrix(&subspace::leading(&tensor(&s), &tensor(&g), 8, GO).unwrap());
    let gv = &g * &v;
    assert!(largest(&(v.tr_mul(&gv) - DMatrix::identity(8, 8))) < 1e-9);
    let captured = gv.tr_mul(&(&s * &gv)).trace();
    let all: f64 = spectrum(&s, &g).iter().sum();
    assert!((captured / all - 1.0).abs() < 1e-9);
}

#[test]
fn more_directions_than_the_head_has_are_refused() {
    let mut rng = StdRng::seed_from_u64(2);
    let basis = random(&mut rng, 4, 12);
    let (g, s) = (basis.tr_mul(&basis), DMatrix::identity(12, 12));
    assert!(subspace::leading(&tensor(&s), &tensor(&g), 4, GO).is_ok());
    let error = subspace::leading(&tensor(&s), &tensor(&g), 6, GO).unwrap_err();
    assert!(error.to_string().starts_with("--state: "), "{error}");
}

fn teacher(state: StateSetting) -> Teacher {
    let capture = Capture {
        keep: Keep::top_k(3),
        temperatures: vec![1.0],
        coding: distill_proto::ValueCoding::F16,
        state,
        chunk_rows: 32,
    };
    Teacher::new(decoder(DType::F32), VOCAB_SIZE, capture).unwrap()
}

/// Sequences of different lengths with ids all over the vocabulary.
fn plan(count: u64) -> Plan {
    let mut rng = StdRng::seed_from_u64(6);
    let sequences = (0..count).map(|id| {
        let mut sequence = sequence(id, 12 + id as usize % 9);
        let ids = sequence.token_ids.iter_mut();
        ids.for_each(|id| *id = rng.random_range(0..250));
        sequence
    });
    let fingerprint = distill_proto::Fingerprint::of(b"plan");
    Plan::of_sequences(fingerprint, fingerprint, sequences.collect(), 2).unwrap()
}

/// |Y - C c| / |Y| of every row of a sequence, from dense logits and from what a frame and GetBasis would bring.
fn dense_errors(
    teacher: &Teacher,
    sketch: &Sketch,
    plan: &Plan,
    index: usize,
    coding: StateCoding,
) -> Vec<f64> {
    let tokens = [Tokens::of(plan.sequence(index).unwrap())];
    let hidden = teacher.target_states(&tokens).unwrap().last;
    let logits = matrix(&hidden) * matrix(teacher.head().tensor().unwrap()).transpose();
    let mut state = teacher.rows(&tokens).unwrap()[0].state.clone().unwrap();
    assert_eq!(state.kind, distill_proto::StateKind::Sketch);
    state
        .values
        .chunks_mut(state.rank)
        .for_each(|row| coding.round_row(row));
    let bytes = sketch.basis.bytes(0..VOCAB_SIZE as usize).unwrap();
    let values = bytes.chunks_exact(2);
    let values = values.map(|pair| half::f16::from_le_bytes([pair[0], pair[1]]).to_f64());
    let basis = DMatrix::from_row_iterator(VOCAB_SIZE as usize, state.rank, values);
    let of_row = |(row, c): (usize, &[f32])| {
        let mean = logits.row(row).mean();
        let centred = logits.row(row).transpose().add_scalar(-mean);
        let c = nalgebra::DVector::from_iterator(c.len(), c.iter().map(|&c| f64::from(c)));
        (&centred - &basis * c).norm() / centred.norm()
    };
    let rows = state.values.chunks(state.rank).enumerate();
    rows.map(of_row).collect()
}

#[test]
fn the_reported_error_is_that_of_dense_logits_and_falls_with_the_rank() {
    let plan = plan(25);
    let mut before = f32::INFINITY;
    for (rank, coding) in [
        (1, StateCoding::F16),
        (4, StateCoding::I8),
        (16, StateCoding::I8),
        (16, StateCoding::F16),
        (40, StateCoding::F16),
        (64, StateCoding::F16),
    ] {
        let teacher = teacher(StateSetting::Sketch { rank, coding });
        let sketch = Sketch::make(&teacher, &plan, rank, coding, GO).unwrap();
        let teacher = teacher.with_projection(sketch.projection.clone());
        let Summary { error, shared, .. } = sketch.summary;
        assert!(
            !shared && error < before,
            "{rank}: {error}, before {before}"
        );
        before = error;
        let errors: Vec<f64> = Choice::of(&plan)
            .held_out
            .into_iter()
            .flat_map(|index| dense_errors(&teacher, &sketch, &plan, index, coding))
            .collect();
        assert_eq!(errors.len(), sketch.summary.held_out_rows);
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        // f32 coordinates and logits of order ten.
        assert!((f64::from(error) - mean).abs() < 1e-4, "{error} {mean}");
        let bytes = matrix(&sketch.basis.values(0..VOCAB_SIZE as usize).unwrap());
        // Half precision of 258 entries of order 0.06.
        let gram = bytes.tr_mul(&bytes) - DMatrix::identity(rank, rank);
        assert!(largest(&gram) < 2e-3, "{}", largest(&gram));
    }
    // All 64 directions of the hidden size: nothing is lost but half precision of coordinates and basis.
    assert!(before < 2e-3, "{before}");
}

#[test]
fn a_sketch_of_the_same_plan_is_the_same_and_a_stop_ends_its_making() {
    let (plan, coding) = (plan(3), StateCoding::I8);
    let teacher = teacher(StateSetting::Sketch { rank: 5, coding });
    let make = |stopped| Sketch::make(&teacher, &plan, 5, coding, stopped);
    let (a, b) = (make(GO).unwrap(), make(GO).unwrap());
    assert_eq!(a.summary, b.summary);
    assert!(a.summary.shared && a.summary.rows == a.summary.held_out_rows);
    assert_eq!(matrix(&a.projection), matrix(&b.projection));
    assert!(matches!(make(&|| true), Err(Error::ShuttingDown)));
}
