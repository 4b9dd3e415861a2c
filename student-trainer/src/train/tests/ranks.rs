//! Tests of runs by several ranks, which are threads here; `tests/mpi.sh` has processes.

use super::*;
use crate::{
    ranks::{Ranks, threads},
    train::{resume_on, run_on},
};

const ADAPTER: &str = "adapter/adapter_model.safetensors";

impl Bench {
    /// Five frames a pass in steps of up to four passes: the last one has none for most ranks.
    fn in_passes(&self, name: &str) -> TrainConfig {
        TrainConfig {
            epochs: 3,
            grad_accumulation: 4,
            save_steps: 2,
            first_step_grad_out: None,
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
    for (count, tolerance) in [
        // The same numbers in another order.
        (2, 1e-5),
        (3, 1e-5),
        // A pass each, in the order in which one process takes them.
        (4, 0.0),
    ] {
        let many = bench.in_passes(&format!("of-{count}"));
        let summaries = train_on(count, &many);
        let expected = &summaries[0];
        assert_eq!((expected.steps, expected.interrupted), (6, false));
        assert!(summaries.iter().all(|one| one == expected));
        let (own, alone) = (metrics(&many), metrics(&one));
        assert_eq!(own.len(), 6);
        for (own, alone) in own.iter().zip(&alone) {
            let loss = |line: &serde_json::Value| line["loss"].as_f64().unwrap();
            assert!((loss(own) - loss(alone)).abs() <= f64::from(tolerance) * loss(alone));
            assert_eq!(own["tokens"], alone["tokens"]);
        }
        let found = apart(&many, &one);
        assert!(found <= tolerance, "{count} ranks: {found}");
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
    assert!(found <= 1e-5, "{found}");
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
