//! The fit against what is known of its rows, and against the normal equations term by term.

use super::*;
use crate::loss::testing::{Random, relative};

fn tensor(values: &[f64], rows: usize) -> Tensor {
    let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
    let width = values.len() / rows;
    Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The fit of rows that come in sequences of 1 to 23.
fn fit(y: &Tensor, x: &Tensor) -> Result<FittedProjection> {
    Ok(fit_and_held_out(y, x)?.0)
}

/// Also whether each row was held out.
fn fit_and_held_out(y: &Tensor, x: &Tensor) -> Result<(FittedProjection, Vec<bool>)> {
    let rows = y.dims()[0];
    let mut fit = ProjectionFit::new(y.dims()[1], x.dims()[1])?;
    let (mut start, mut length) = (0, 1);
    let mut held_out = Vec::new();
    while start < rows {
        let count = length.min(rows - start);
        held_out.extend(vec![fit.holds_out_next(); count]);
        fit.add(&y.narrow(0, start, count)?, &x.narrow(0, start, count)?)?;
        (start, length) = (start + count, length * 5 % 23 + 1);
    }
    Ok((fit.solve()?, held_out))
}

/// `Y P` and the like, `[n, k] [k, m]`.
fn product(a: &[f64], b: &[f64], k: usize, m: usize) -> Vec<f64> {
    let entry = |e: usize| {
        let (i, j) = (e / m, e % m);
        (0..k).map(|l| a[i * k + l] * b[l * m + j]).sum()
    };
    (0..a.len() / k * m).map(entry).collect()
}

#[test]
fn a_known_map_is_found_through_both_means() {
    let mut random = Random::new(1);
    let (rows, d, e) = (1500, 9, 5);
    let y: Vec<f64> = random.normals(rows * d, 1.0);
    let map = random.normals(d * e, 1.0);
    let noise = random.normals(rows * e, 0.1);
    let mapped = product(&y, &map, d, e);
    let x: Vec<f64> = (0..rows * e)
        .map(|k| mapped[k] + noise[k] - 3.0 + (k % e) as f64)
        .collect();
    let shifted: Vec<f64> = y.iter().map(|y| y + 20.0).collect();
    let found = fit(&tensor(&shifted, rows), &tensor(&x, rows)).unwrap();
    // Noise of a tenth on 1350 rows moves an entry by a tenth over the root of that.
    let distance = relative(&wide(&found.projection), &map);
    assert!(distance < 0.01, "{distance}");
    for (mean, j) in wide(&found.student_mean).into_iter().zip(0..e) {
        assert!((mean - (j as f64 - 3.0)).abs() < 0.3, "{mean}");
    }
    assert!(
        wide(&found.teacher_mean)
            .iter()
            .all(|mean| (mean - 20.0).abs() < 0.15)
    );
    // Noise has 0.01 of a variance of about 9.
    assert!(
        (0.997..0.9999).contains(&found.r_squared),
        "{}",
        found.r_squared
    );
    assert!(found.lambda <= 1e-4, "{}", found.lambda);
    assert_eq!(found.rows + found.held_out, rows);
    // A tenth, and what one sequence and one that waited for its turn may be off.
    assert!((100..=200).contains(&found.held_out), "{}", found.held_out);
}

#[test]
fn noise_explains_nothing() {
    let mut random = Random::new(2);
    let rows = 4000;
    let (y, x) = (random.normals(rows * 8, 1.0), random.normals(rows * 6, 2.0));
    let found = fit(&tensor(&y, rows), &tensor(&x, rows)).unwrap();
    // 8 of 3600 degrees of freedom, fitted to noise, cost as much on held-out rows.
    assert!(found.r_squared.abs() < 0.01, "{}", found.r_squared);
}

/// Every sequence is a point of its own on both sides, and its rows are all there: who has seen one row knows the others.
#[test]
fn rows_of_one_sequence_were_fitted_and_held_out() {
    let mut random = Random::new(4);
    let (sequences, length, d, e) = (30, 20, 40, 5);
    let mut fit = ProjectionFit::new(d, e).unwrap();
    for _ in 0..sequences {
        let mut repeated = |width: usize| {
            let row = random.normals(width, 1.0);
            tensor(&row.repeat(length), length)
        };
        fit.add(&repeated(d), &repeated(e)).unwrap();
    }
    let found = fit.solve().unwrap();
    assert!(found.held_out >= 2 * length && found.held_out.is_multiple_of(length));
    // Nothing is to be known of a point from others.
    assert!(found.r_squared < 0.3, "{}", found.r_squared);
}

#[test]
fn two_sequences_are_enough() {
    let mut random = Random::new(5);
    let mut fit = ProjectionFit::new(2, 2).unwrap();
    for rows in [8, 3] {
        let y = tensor(&random.normals(2 * rows, 1.0), rows);
        fit.add(&y, &y).unwrap();
    }
    let found = fit.solve().unwrap();
    assert_eq!((found.rows, found.held_out), (8, 3));
}

#[test]
fn the_fit_solves_the_normal_equations_of_the_rows_it_kept() {
    let mut random = Random::new(3);
    // More columns than a block of the factor, and more rows than a block of the sums.
    let (rows, d, e) = (700, 150, 4);
    let y = tensor(&random.normals(rows * d, 1.0), rows);
    let x = tensor(&random.normals(rows * e, 1.0), rows);
    let (found, held_out) = fit_and_held_out(&y, &x).unwrap();
    let (y, x) = (wide(&y), wide(&x));
    let (held, kept): (Vec<usize>, Vec<usize>) = (0..rows).partition(|&i| held_out[i]);
    let mean = |of: &[f64], width: usize, rows: &[usize]| -> Vec<f64> {
        let sum = |j: usize| rows.iter().map(|i| of[i * width + j]).sum::<f64>();
        (0..width).map(|j| sum(j) / rows.len() as f64).collect()
    };
    let (y_mean, x_mean) = (mean(&y, d, &kept), mean(&x, e, &kept));
    assert!(relative(&wide(&found.teacher_mean), &y_mean) < 1e-6);
    assert!(relative(&wide(&found.student_mean), &x_mean) < 1e-6);
    let p = wide(&found.projection);
    let predict = |i: usize, j: usize| {
        let terms = (0..d).map(|k| (y[i * d + k] - y_mean[k]) * p[k * e + j]);
        x_mean[j] + terms.sum::<f64>()
    };
    let squares = (0..d).map(|k| {
        kept.iter()
            .map(|i| (y[i * d + k] - y_mean[k]).powi(2))
            .sum::<f64>()
    });
    let ridge = found.lambda * squares.sum::<f64>() / d as f64;
    for k in (0..d).step_by(13) {
        for j in 0..e {
            // Yc^T (x - x^) = ridge P
            let rest = kept
                .iter()
                .map(|&i| (y[i * d + k] - y_mean[k]) * (x[i * e + j] - predict(i, j)));
            let (rest, expected) = (rest.sum::<f64>(), ridge * p[k * e + j]);
            assert!(
                (rest - expected).abs() < 1e-4 * ridge.max(1.0),
                "{k} {j}: {rest} {expected}"
            );
        }
    }
    let own = mean(&x, e, &held);
    let sum = |term: &dyn Fn(usize, usize) -> f64| -> f64 {
        held.iter()
            .flat_map(|&i| (0..e).map(move |j| (i, j)))
            .map(|(i, j)| term(i, j).powi(2))
            .sum()
    };
    let unexplained = sum(&|i, j| x[i * e + j] - predict(i, j));
    let expected = 1.0 - unexplained / sum(&|i, j| x[i * e + j] - own[j]);
    assert!(
        (found.r_squared - expected).abs() < 1e-5,
        "{} {expected}",
        found.r_squared
    );
}

#[test]
fn factors_of_every_size_solve_their_equations() {
    for n in [1, 2, 63, 64, 65, 130, 200] {
        let mut random = Random::new(n as u64);
        let root = random.normals(n * n, 1.0);
        let transposed: Vec<f64> = (0..n * n).map(|k| root[k % n * n + k / n]).collect();
        let matrix = product(&root, &transposed, n, n);
        let expected = random.normals(n * 3, 1.0);
        let mut rhs = product(&matrix, &expected, n, 3);
        for (rhs, x) in rhs.iter_mut().zip(&expected) {
            *rhs += 0.5 * x;
        }
        let matrix = Tensor::from_vec(matrix, (n, n), &Device::Cpu).unwrap();
        let rhs = Tensor::from_vec(rhs, (n, 3), &Device::Cpu).unwrap();
        let found = Factor::new(&matrix, 0.5).unwrap().solve(&rhs).unwrap();
        assert!(relative(&wide(&found), &expected) < 1e-9, "{n}");
    }
}

#[test]
fn rows_that_cannot_be_fitted_are_refused() {
    let mut few = ProjectionFit::new(3, 2).unwrap();
    let (y, x) = (tensor(&[1.0; 6], 2), tensor(&[1.0; 4], 2));
    few.add(&y, &x).unwrap();
    assert!(few.solve().unwrap_err().to_string().contains("too few"));
    let mut fit = ProjectionFit::new(3, 2).unwrap();
    assert!(fit.add(&x, &y).is_err() && fit.add(&y, &x.narrow(0, 0, 1).unwrap()).is_err());
    let broken = tensor(&[1.0, 2.0, 3.0, 4.0, f64::NAN, 6.0], 2);
    let error = fit.add(&broken, &x).unwrap_err();
    assert!(
        matches!(error, LossError::NonFinite { position: 1, .. }),
        "{error}"
    );
}

#[test]
fn rows_that_never_change_give_a_projection_of_0() {
    let found = fit(&tensor(&[2.0; 300], 100), &tensor(&[5.0; 200], 100)).unwrap();
    assert!(wide(&found.projection).iter().all(|&p| p == 0.0));
    assert_eq!(
        (found.r_squared, wide(&found.student_mean)),
        (0.0, vec![5.0, 5.0])
    );
}
