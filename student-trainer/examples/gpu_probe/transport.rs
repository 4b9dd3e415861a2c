//! Provides the comparison of the card's transport plans with the host's, and the time of both.

use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use distill_kernels::sinkhorn::{Ending, Found, Launcher, Problems, Solving};
use distill_kernels::{Emulator, SINKHORN};
use distill_model::backend;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use serde_json::{Value, json};
use student_trainer::loss::sinkhorn::{Solution, SolverOptions, solve};

const SEED: u64 = 4;
/// Problems, and positions on either side: blocks of a sequence of 512, whole sequences, and several at once.
const SHAPES: [(usize, usize); 5] = [(64, 64), (1, 128), (1, 512), (16, 512), (1, 1024)];
const TINY: [(usize, usize); 2] = [(3, 12), (1, 33)];
/// The position prior over epsilon is what makes problems hard: a weak one, and the default.
const PRIORS: [f32; 2] = [10.0, 1000.0];
const HOW: Solving = Solving {
    epsilon: 0.1,
    tolerance: 1e-6,
    passes_max: 10_000,
};
/// The value is flat around the plan: both stop within the tolerance of it, and f32 entries leave less.
const VALUE_ERROR_MAX: f64 = 1e-5;

/// Refuses a device whose plans miss the tolerance where the host's meet it, or whose values are off.
pub fn compare(device: &Device, tiny: bool) -> Result<Value> {
    let shapes: &[_] = if tiny { &TINY } else { &SHAPES };
    let mut rows = Vec::new();
    for &(count, side) in shapes {
        for prior in PRIORS {
            let problems = Problems {
                count,
                n: side,
                m: side,
            };
            let costs = costs(&problems, prior);
            let start = Instant::now();
            let host = costs
                .par_chunks(side * side)
                .map(|cost| Ok(solve(cost, side, side, &options())?))
                .collect::<Result<Vec<_>>>()?;
            let host_seconds = start.elapsed().as_secs_f64();
            let mut row = json!({
                "problems": count, "positions": side, "position_prior": prior, "host_seconds": host_seconds,
                "host_passes": host.iter().map(|of| of.convergence.iterations).max(),
            });
            let (found, seconds) = on_device(device, &problems, &costs)?;
            row["value_error"] = check(&found, &host)?.into();
            row["seconds"] = seconds.into();
            row["passes"] = found.iter().map(|of| of.passes).max().into();
            row["newton_steps"] = found.iter().map(|of| of.newton_steps).max().into();
            row["host_over_device"] = (host_seconds / seconds).into();
            rows.push(row);
        }
    }
    Ok(json!({ "backend": backend(device)?, "tolerance": HOW.tolerance, "shapes": rows }))
}

fn options() -> SolverOptions {
    SolverOptions {
        epsilon: HOW.epsilon.into(),
        tolerance: HOW.tolerance.into(),
        max_iterations: HOW.passes_max,
        newton: true,
    }
}

fn costs(problems: &Problems, prior: f32) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(SEED);
    let Problems { count, n, m } = *problems;
    let cost = |k: usize| {
        let (i, j) = (k / m % n, k % m);
        let apart = i as f32 / n as f32 - j as f32 / m as f32;
        random.random::<f32>() + prior * apart * apart
    };
    (0..count * n * m).map(cost).collect()
}

/// What the card finds, and the seconds from costs on the card to what the host needs; on the CPU the
/// emulator finds it.
fn on_device(device: &Device, problems: &Problems, costs: &[f32]) -> Result<(Vec<Found>, f64)> {
    let Problems { count, n, m } = *problems;
    let costs = Tensor::from_slice(costs, (count, n, m), device)?;
    let mass = [vec![1.0 / n as f64; n], vec![1.0 / m as f64; m]].concat();
    let marginals = Tensor::from_vec(mass.repeat(count), (count, n + m), device)?;
    let launcher = match device {
        Device::Cpu => Launcher {
            compute: |x, out, calls| Emulator::of(&SINKHORN)?.compute(x, out, calls),
            change: |changed, x, calls| Emulator::of(&SINKHORN)?.change(changed, x, calls),
        },
        _ => Launcher::CARD,
    };
    let once = || problems.plans(&launcher, (&costs, &costs), &marginals, &HOW);
    // The first compiles.
    once()?;
    device.synchronize()?;
    let start = Instant::now();
    let (_, found) = once()?;
    Ok((found, start.elapsed().as_secs_f64()))
}

/// The worst relative difference of the values.
fn check(found: &[Found], host: &[Solution]) -> Result<f64> {
    let mut worst = 0.0_f64;
    for (found, host) in found.iter().zip(host) {
        let missed = found.error > HOW.tolerance.into();
        ensure!(
            found.ending == Ending::Solved && !(missed && host.convergence.converged),
            "{:?} with an error of {:e} after {} passes, where the host has {:e} after {}",
            found.ending,
            found.error,
            found.passes,
            host.convergence.marginal_error,
            host.convergence.iterations
        );
        let part = |mass: &[f64], potential: &[f64]| -> f64 {
            mass.iter().zip(potential).map(|(m, p)| m * p).sum()
        };
        let value = part(&host.row_mass, &host.row_potential)
            + part(&host.column_mass, &host.column_potential);
        let error = (found.entropic_value - value).abs() / value.abs().max(0.1);
        ensure!(
            error <= VALUE_ERROR_MAX || !host.convergence.converged,
            "the value is {} for the host's {value}",
            found.entropic_value
        );
        worst = worst.max(error);
    }
    Ok(worst)
}
