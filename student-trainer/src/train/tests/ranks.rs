//! Tests of runs by several ranks, which are threads here; `tests/mpi.sh` has processes.

use std::time::{Duration, Instant};

use super::*;
use crate::{
    ranks::{Ranks, threads},
    train::{resume_on, run_on},
};

/// Of gradients and losses, relative: sums of a few numbers in another order.
const ROUNDING: f64 = 1e-5;
/// Of weights: AdamW divides a gradient by its own size, so what is rounding beside a gradient near zero is a part of the learning
/// rate, 1e-2, in every step.
const ROUNDING_OF_WEIGHTS: f32 = 1e-4;
const ADAPTER: &str = "adapter/adapter_model.safetensors";

impl Bench {
    /// Five frames a pass in steps of up to four passes: the last one has none for most ranks.
    fn in_passes(&self, name: &str) -> TrainConfig {
        TrainConfig {
            epochs: 3,
            grad_accumulation: 4,
            save_steps: 2,
            ..self.config(name)
        }
    }
}

fn train_on(count: usize, config: &TrainConfig) -> Vec<Summary> {
    together(count, config, |ranks, config| {
        run_on(ranks, config, &Shutdown::default())
    })
}

fn together(
    count: usize,
    config: &TrainConfig,
    work: impl Fn(&dyn Ranks, &TrainConfig) -> Result<Ending> + Sync,
) -> Vec<Summary> {
    threads::run(count, |ranks| match work(ranks, config).unwrap() {
        Ending::Trained(summary) => summary,
        ending => panic!("{ending:?}"),
    })
}

/// The largest difference of any weight.
fn apart(a: &TrainConfig, b: &TrainConfig) -> f32 {
    let read = |config: &TrainConfig| {
        candle_core::safetensors::load(config.out.join(ADAPTER), &Device::Cpu).unwrap()
    };
    let (a, b) = (read(a), read(b));
    assert_eq!(a.len(), b.len());
    let of = |name: &String| {
        let difference = (&a[name] - &b[name]).unwrap().abs().unwrap();
        let difference = difference.flatten_all().unwrap().max(0).unwrap();
        difference.to_scalar::<f32>().unwrap()
    };
    a.keys().map(of).fold(0.0, f32::max)
}

#[test]
fn several_ranks_train_what_one_process_trains_and_one_of_them_writes() {
    let bench = Bench::new(5);
    let one = bench.in_passes("one");
    train(&one).unwrap();
    // Four have a pass each, in the order in which one process takes them.
    for (count, is_same) in [(2, false), (3, false), (4, true)] {
        let (of_losses, of_weights) = if is_same {
            (0.0, 0.0)
        } else {
            (ROUNDING, ROUNDING_OF_WEIGHTS)
        };
        let many = bench.in_passes(&format!("of-{count}"));
        let summaries = train_on(count, &many);
        let expected = &summaries[0];
        assert_eq!((expected.steps, expected.interrupted), (6, false));
        assert!(summaries.iter().all(|one| one == expected));
        let (own, alone) = (metrics(&many), metrics(&one));
        assert_eq!(own.len(), 6);
        for (own, alone) in own.iter().zip(&alone) {
            let loss = |line: &serde_json::Value| line["loss"].as_f64().unwrap();
            assert!((loss(own) - loss(alone)).abs() <= of_losses * loss(alone));
            assert_eq!(own["tokens"], alone["tokens"]);
        }
        let found = apart(&many, &one);
        assert!(found <= of_weights, "{count} ranks: {found}");
        let (own, alone) = (
            bench.first_gradients(&format!("of-{count}")),
            bench.first_gradients("one"),
        );
        assert_eq!(own.len(), alone.len());
        for (name, own) in &own {
            let size = |tensor: &Tensor| {
                let largest = tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
                f64::from(largest.to_scalar::<f32>().unwrap())
            };
            let found = size(&(own - &alone[name]).unwrap());
            assert!(found <= of_losses * size(&alone[name]), "{name}: {found}");
        }
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let bench = Bench::new(5);
    let whole = bench.in_passes("whole");
    train(&whole).unwrap();
    let parts = bench.in_passes("parts");
    train_on(4, &parts);
    // What a crash after step 4 leaves.
    fs::remove_dir_all(parts.out.join("checkpoints/step-000006")).unwrap();
    fs::remove_file(parts.out.join("summary.json")).unwrap();
    let summaries = together(3, &parts, |ranks, config| {
        resume_on(ranks, config, &Shutdown::default())
    });
    assert!(summaries.iter().all(|one| one.steps == 6));
    assert_eq!(metrics(&parts).len(), 6);
    let found = apart(&parts, &whole);
    assert!(found <= ROUNDING_OF_WEIGHTS, "{found}");
}

#[test]
fn a_request_to_one_rank_stops_all_after_the_same_step() {
    let bench = Bench::new(5);
    let config = bench.in_passes("stopped");
    let summaries = together(2, &config, |ranks, config| {
        let shutdown = Shutdown::default();
        if !ranks.is_first() {
            shutdown.request();
        }
        run_on(ranks, config, &shutdown)
    });
    assert!(summaries[0].interrupted && summaries[0] == summaries[1]);
}

#[test]
fn a_request_stops_all_while_the_teacher_has_nothing() {
    let bench = Bench::new(5);
    bench.mock.send_heartbeats_for_ever();
    let config = TrainConfig {
        sample_answers: 0,
        ..bench.in_passes("waiting")
    };
    let begun = Instant::now();
    let summaries = together(2, &config, |ranks, config| {
        let shutdown = Shutdown::default();
        if !ranks.is_first() {
            let later = shutdown.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(500));
                later.request();
            });
        }
        run_on(ranks, config, &shutdown)
    });
    assert!(
        summaries
            .iter()
            .all(|one| one.interrupted && one.steps == 0)
    );
    assert!(begun.elapsed() < Duration::from_secs(60));
}
