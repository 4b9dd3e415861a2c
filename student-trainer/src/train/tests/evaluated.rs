//! Evaluations during training: their lines, the best checkpoint and the early end.

use super::*;
use crate::{config::BestMetric, run::load_adapter};

impl Bench {
    /// Six steps, evaluated after every two on text of the mock's words.
    fn evaluated(&self, name: &str) -> TrainConfig {
        let data = self.dir.path().join("held-out.txt");
        // The mock's frames go 7 ids on from token to token.
        let words: Vec<String> = (0..12).map(|i| format!("t{}", i * 7 % 32)).collect();
        fs::write(&data, words.join(" ")).unwrap();
        TrainConfig {
            eval_data: vec![data],
            eval_seq_len: Some(8),
            eval_steps: 2,
            epochs: 2,
            ..self.config(name)
        }
    }
}

fn evals(config: &TrainConfig) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(config.out.join("eval.jsonl")).unwrap();
    let line = |text| serde_json::from_str(text).unwrap();
    text.lines().map(line).collect()
}

#[test]
fn evaluations_are_lines_of_their_own_and_the_best_checkpoint_is_kept() {
    let bench = Bench::new(3);
    let config = bench.evaluated("run");
    let summary = train(&config).unwrap();
    assert_eq!((summary.steps, summary.stopped_early), (6, false));
    let lines = evals(&config);
    let steps: Vec<_> = lines.iter().map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, [Some(2), Some(4), Some(6)]);
    // The mock does not score tokens: evaluations go without it.
    assert!(lines.iter().all(|line| line["kl"].is_null()));
    assert_eq!(metrics(&config).len(), 6);
    let ce = |i: usize| lines[i]["ce"].as_f64().unwrap();
    assert!(
        (0..3).all(|i| (ce(i).exp() / lines[i]["perplexity"].as_f64().unwrap() - 1.0).abs() < 1e-9)
    );
    let best = (0..3).min_by(|&a, &b| ce(a).total_cmp(&ce(b))).unwrap();
    assert_eq!(lines[best]["best"], true);

    // What `best` points to is an adapter with just that cross-entropy.
    let eval = crate::eval::EvalConfig {
        adapter: Some(config.out.join("best")),
        data: config.eval_data.clone(),
        seq_len: 8,
        device: "cpu".into(),
        ..Default::default()
    };
    let report = crate::eval::run(&eval, &Shutdown::default()).unwrap();
    assert_eq!(report.ce(), ce(best));
    let summary = fs::read_to_string(config.out.join("summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["best"]["step"], (best as u64 + 1) * 2);
}

#[test]
fn a_run_that_gets_worse_ends_early_and_keeps_its_best() {
    let bench = Bench::new(3);
    let config = TrainConfig {
        lr: 1.0,
        warmup_steps: Some(0),
        eval_steps: 1,
        epochs: 20,
        keep_last: 1,
        early_stopping_patience: 3,
        ..bench.evaluated("run")
    };
    let summary = train(&config).unwrap();
    assert!(summary.stopped_early && !summary.interrupted && summary.steps < 60);
    let lines = evals(&config);
    assert_eq!(lines.len(), summary.steps);
    let worse = lines.iter().rev().take_while(|line| line["best"] == false);
    assert_eq!(worse.count(), 3);
    let best = fs::read_link(config.out.join("best")).unwrap();
    let step = summary.steps - 3;
    assert!(best.ends_with(format!("step-{step:06}")), "{best:?}");
    assert_eq!(
        fs::read_dir(config.out.join("checkpoints"))
            .unwrap()
            .count(),
        2
    );
    let files = StudentFiles::open(&config.student).unwrap();
    let place = Place::choose("cpu", config.dtype).unwrap();
    let best = config.out.join("best");
    let lora = AdapterConfig::read(&best).unwrap().lora();
    let decoder = files.load(Quantize::Nf4, &place, Some(lora)).unwrap();
    load_adapter(&best, &decoder.parameters()).unwrap();
}

#[test]
fn a_best_metric_that_the_teacher_cannot_give_is_refused_before_the_first_step() {
    let bench = Bench::new(3);
    let config = TrainConfig {
        best_metric: BestMetric::Kl,
        ..bench.evaluated("run")
    };
    let message = train(&config).unwrap_err().to_string();
    assert!(message.starts_with("best_metric:"), "{message}");
    assert!(!config.out.exists());
}

#[test]
fn an_evaluation_that_failed_lost_the_run() {
    let bench = Bench::new(3);
    let student = bench.dir.path().join("student");
    // The ids after the first are read when answers are asked for.
    let wrong = r#"{"eos_token_id": [0, "x"]}"#;
    fs::write(student.join("generation_config.json"), wrong).unwrap();
    let held_out = bench.dir.path().join("held-out.jsonl");
    fs::write(
        &held_out,
        r#"{"prompt": "t0 t7", "completion": " t14 t21"}"#,
    )
    .unwrap();
    let config = TrainConfig {
        eval_data: vec![held_out],
        eval_exact_match: true,
        save_steps: 0,
        ..bench.evaluated("run")
    };
    let message = train(&config).unwrap_err().to_string();
    assert!(message.contains("generation_config.json"), "{message}");
    assert!(
        config
            .out
            .join("checkpoints/step-000002/state.toml")
            .exists()
    );
    let right = r#"{"eos_token_id": [0]}"#;
    fs::write(student.join("generation_config.json"), right).unwrap();
    super::resume(&config, &Shutdown::default()).unwrap();
    // The evaluation that failed is caught up on.
    let steps: Vec<_> = evals(&config)
        .iter()
        .map(|line| line["step"].as_u64())
        .collect();
    assert_eq!(steps, [Some(2), Some(4), Some(6)]);
}

#[test]
fn a_run_stopped_in_its_last_evaluation_counted_as_finished_without_it() {
    let bench = Bench::new(3);
    let config = TrainConfig {
        eval_steps: 0,
        ..bench.evaluated("run")
    };
    fs::write(&config.eval_data[0], "t0 t7 t14 t21\n\n".repeat(20_000)).unwrap();
    let shutdown = Shutdown::default();
    let log = config.out.join("metrics.jsonl");
    let summary = std::thread::scope(|scope| {
        scope.spawn(|| {
            while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 6 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            shutdown.request();
        });
        run(&config, &shutdown).unwrap()
    });
    assert_eq!((summary.steps, summary.interrupted), (6, true));
    assert!(!config.out.join("summary.json").exists());
    // The rest is what was not looked at.
    fs::write(&config.eval_data[0], "t0 t7 t14 t21").unwrap();
    let ending = super::resume(&config, &Shutdown::default()).unwrap();
    assert!(matches!(ending, Ending::Trained(summary) if !summary.interrupted));
    assert_eq!(evals(&config).len(), 1);
    assert!(config.out.join("summary.json").exists());
}
