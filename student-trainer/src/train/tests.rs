mod adapters;
mod evaluated;
mod full;
mod integrity;
mod other_vocabulary;
mod ranks;
mod resumed;
mod samples;

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{Device, Tensor};
use distill_model::testing::{TinyModel, write_tiny_model};
use distill_proto::Frame;
use distill_text::TokenizerFiles;
use tempfile::TempDir;

use super::{Ending, Summary, resume};
use crate::{
    Result,
    client::{
        self,
        mock::{MockTeacher, VOCAB_SIZE, made_up_frame},
    },
    config::{ComputeDtype, Quantize, TrainConfig},
    files,
    run::{AdapterConfig, load_adapter},
    shutdown::Shutdown,
    student::{Place, StudentFiles},
};

/// A teacher with made-up frames, a tiny student that reads the same ids, and a place for a run.
struct Bench {
    dir: TempDir,
    mock: MockTeacher,
    _runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new(frames: u64) -> Self {
        Self::of((0..frames).map(made_up_frame).collect())
    }

    /// Of a teacher with these frames.
    fn of(frames: Vec<Frame>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let student = dir.path().join("student");
        fs::create_dir(&student).unwrap();
        let model = TinyModel {
            vocab_size: VOCAB_SIZE as usize + 8,
            num_hidden_layers: 2,
            ..TinyModel::llama()
        };
        write_tiny_model(&student, &model, 7).unwrap();
        write_tokenizer(&student);
        let runtime = client::runtime().unwrap();
        let mock = runtime.block_on(MockTeacher::serve(frames));
        mock.set_vocabulary(
            TokenizerFiles::open(&student)
                .unwrap()
                .vocabulary_fingerprint(),
        );
        Self {
            dir,
            mock,
            _runtime: runtime,
        }
    }

    fn config(&self, name: &str) -> TrainConfig {
        TrainConfig {
            teacher: self.mock.connect_options().address,
            student: self.dir.path().join("student"),
            out: self.dir.path().join(name),
            lora_rank: 4,
            lr: 1e-2,
            device: "cpu".into(),
            first_step_grad_out: Some(self.dir.path().join(format!("{name}.grad"))),
            ..TrainConfig::default()
        }
    }

    fn first_gradients(&self, name: &str) -> BTreeMap<String, Tensor> {
        let path = self.dir.path().join(format!("{name}.grad"));
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        tensors.into_iter().collect()
    }
}

use resumed::interrupted;

/// One token a word, `t0` to `t31`.
fn write_tokenizer(dir: &Path) {
    let vocab: serde_json::Map<String, serde_json::Value> = (0..VOCAB_SIZE)
        .map(|id| (format!("t{id}"), id.into()))
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"},
    });
    fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
}

fn train(config: &TrainConfig) -> Result<Summary> {
    run(config, &Shutdown::default())
}

fn run(config: &TrainConfig, shutdown: &Shutdown) -> Result<Summary> {
    match super::run(config, shutdown)? {
        Ending::Trained(summary) => Ok(summary),
        ending => panic!("{ending:?}"),
    }
}

fn metrics(config: &TrainConfig) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(config.out.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_run_learns_and_leaves_config_metrics_and_an_adapter_that_loads() {
    let bench = Bench::new(5);
    let config = TrainConfig {
        epochs: 6,
        grad_accumulation: 2,
        ..bench.config("run")
    };
    let summary = train(&config).unwrap();
    // Five frames in steps of two are three steps a pass.
    assert_eq!((summary.steps, summary.interrupted), (18, false));
    let planned = fs::read(config.out.join("memory.json")).unwrap();
    let planned: serde_json::Value = serde_json::from_slice(&planned).unwrap();
    let planned = planned["peak_bytes"].as_u64().unwrap();
    // A model this small is next to nothing beside the program, which the plan takes to be 16 MiB.
    assert!((16 << 20..64 << 20).contains(&planned), "{planned}");
    let lines = metrics(&config);
    assert_eq!(lines.len(), 18);
    assert_eq!(
        (lines[2]["epoch"].as_f64(), lines[17]["epoch"].as_f64()),
        (Some(1.0), Some(6.0))
    );
    let kl = |i: usize| lines[i]["kl"].as_f64().unwrap();
    assert!(kl(15) < 0.8 * kl(0), "{} {}", kl(0), kl(15));

    let resolved = fs::read_to_string(config.out.join("config.toml")).unwrap();
    assert_eq!(toml::from_str::<TrainConfig>(&resolved).unwrap(), config);
    assert!(config.out.join("adapter/tokenizer.json").is_file());
    let adapter = AdapterConfig::read(&summary.adapter).unwrap();
    let files = StudentFiles::open(&config.student).unwrap();
    let place = Place::choose("cpu", config.dtype).unwrap();
    let decoder = files
        .load(Quantize::Nf4, &place, Some(adapter.lora()))
        .unwrap();
    load_adapter(&summary.adapter, &decoder.parameters()).unwrap();
}

#[test]
fn batches_packing_accumulation_and_checkpointing_change_no_gradient() {
    let bench = Bench::new(4);
    let one_by_one = TrainConfig {
        steps: Some(1),
        grad_accumulation: 4,
        packing: false,
        ..bench.config("one_by_one")
    };
    train(&one_by_one).unwrap();
    let expected = bench.first_gradients("one_by_one");
    assert_eq!(expected.len(), 2 * 7 * 2);
    let padded = TrainConfig {
        steps: Some(1),
        batch_size: 4,
        packing: false,
        checkpointing: false,
        ..bench.config("padded")
    };
    let packed = TrainConfig {
        packing: true,
        checkpointing: true,
        checkpoint_every: 2,
        ..padded.clone()
    };
    let few_tokens = TrainConfig {
        pack_tokens: Some(12),
        checkpoint_every: 1,
        ..packed.clone()
    };
    for (name, config) in [("padded", padded), ("packed", packed), ("few", few_tokens)] {
        let named = bench.config(name);
        let config = TrainConfig {
            out: named.out,
            first_step_grad_out: named.first_step_grad_out,
            ..config
        };
        train(&config).unwrap();
        assert_same_gradients(&bench.first_gradients(name), &expected);
    }
}

#[test]
fn padding_is_reported_and_packing_has_none() {
    let bench = Bench::new(4);
    let padding = |packing| {
        let config = TrainConfig {
            steps: Some(1),
            batch_size: 4,
            packing,
            ..bench.config(if packing { "packed" } else { "padded" })
        };
        train(&config).unwrap();
        metrics(&config)[0]["padding"].as_u64().unwrap()
    };
    // Frames of 2, 3, 4 and 5 tokens.
    assert_eq!((padding(false), padding(true)), (3 + 2 + 1, 0));
}

#[test]
fn an_f16_run_learns_and_its_checkpoint_keeps_the_loss_scale() {
    let bench = Bench::new(4);
    let config = TrainConfig {
        dtype: ComputeDtype::F16,
        quantize: Quantize::None,
        epochs: 4,
        batch_size: 2,
        ..bench.config("run")
    };
    let summary = train(&config).unwrap();
    assert_eq!(summary.steps, 8);
    let lines = metrics(&config);
    let loss = |i: usize| lines[i]["loss"].as_f64().unwrap();
    assert!(loss(lines.len() - 1) < loss(0));
    let newest = fs::read_dir(config.out.join("checkpoints")).unwrap();
    let newest = newest.map(|entry| entry.unwrap().path()).max().unwrap();
    let state = fs::read_to_string(newest.join("state.toml")).unwrap();
    let state: toml::Table = toml::from_str(&state).unwrap();
    let scale = state["loss_scale"]["scale"].as_float().unwrap();
    assert!(scale >= 1.0 && scale.log2().fract() == 0.0, "{scale}");
}

#[track_caller]
fn assert_same_gradients(actual: &BTreeMap<String, Tensor>, expected: &BTreeMap<String, Tensor>) {
    assert_eq!(actual.len(), expected.len());
    for (name, expected) in expected {
        let norm = |x: &Tensor| {
            let sum = x.sqr().unwrap().sum_all().unwrap();
            sum.to_scalar::<f32>().unwrap().sqrt()
        };
        let difference = norm(&(expected - &actual[name]).unwrap());
        // f32 sums in another order.
        assert!(
            difference <= 1e-5 * norm(expected) + 1e-7,
            "{name}: {difference} of {}",
            norm(expected)
        );
    }
}

#[test]
fn a_loss_that_overflows_stops_before_the_update_and_leaves_the_batch() {
    let bench = Bench::new(3);
    let config = TrainConfig {
        lr: 1e30,
        warmup_steps: Some(0),
        ..bench.config("run")
    };
    let message = train(&config).unwrap_err().to_string();
    assert!(
        message.contains("step 2") && message.contains("not finite"),
        "{message}"
    );
    assert_eq!(metrics(&config).len(), 1);
    let dump = config.out.join("failed-step-2");
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(dump.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["frames"][0]["index"], 1);
    assert_eq!(
        fs::read(dump.join("frame-1.bin")).unwrap(),
        bench.mock.frames()[1]
    );
    assert!(!config.out.join("adapter").exists());
}

#[test]
fn a_request_to_stop_saves_what_there_is() {
    let bench = Bench::new(3);
    let config = bench.config("run");
    let shutdown = Shutdown::default();
    shutdown.request();
    let summary = run(&config, &shutdown).unwrap();
    assert_eq!((summary.steps, summary.interrupted), (0, true));
    assert!(summary.adapter.join("adapter_model.safetensors").is_file());
}

#[test]
fn what_does_not_fit_is_refused_before_any_weight_is_read() {
    let bench = Bench::new(3);
    fs::remove_file(bench.dir.path().join("student/model.safetensors")).unwrap();
    let mut config = bench.config("a");
    config.loss.kl_temperature = 3.0;
    let message = train(&config).unwrap_err().to_string();
    assert!(message.contains("kl_temperature"), "{message}");

    bench
        .mock
        .set_vocabulary(distill_proto::Fingerprint::of(b"another"));
    let message = train(&bench.config("b")).unwrap_err().to_string();
    // The mock knows no token to map.
    assert!(message.contains("GetVocabulary"), "{message}");
}

#[test]
fn a_target_that_matches_nothing_is_named() {
    let bench = Bench::new(1);
    let config = TrainConfig {
        lora_targets: vec!["q_proj".into(), "query".into()],
        ..bench.config("run")
    };
    let message = train(&config).unwrap_err().to_string();
    assert!(
        message.contains("`query`") && message.contains("q_proj"),
        "{message}"
    );
}
