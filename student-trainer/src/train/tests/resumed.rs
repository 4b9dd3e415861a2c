//! Runs that go on: from their start, from a checkpoint, and not at all.

use super::*;
use crate::train::Ending;

/// Trains `config` in a directory of its own on so many frames, and leaves it as a crash would.
pub(super) fn interrupted(
    config: &TrainConfig,
    bench: &Bench,
    name: &str,
    frames: u64,
) -> TrainConfig {
    let config = TrainConfig {
        out: bench.dir.path().join(name),
        ..config.clone()
    };
    // The teacher goes away after that.
    let a_pass = bench.mock.frames().len() as u64;
    let whole_passes = vec![u64::MAX; (frames / a_pass) as usize];
    let breaks = whole_passes.into_iter().chain([frames % a_pass]);
    bench.mock.drop_before_frames(breaks);
    let lost = TrainConfig {
        reconnect_attempts: 0,
        ..config.clone()
    };
    let message = train(&lost).unwrap_err().to_string();
    assert!(message.contains("lost the stream"), "{message}");
    config
}

#[test]
fn a_run_without_a_checkpoint_starts_anew_and_a_finished_one_stays_as_it_is() {
    let bench = Bench::new(4);
    let whole = TrainConfig {
        epochs: 2,
        save_steps: 0,
        ..bench.config("whole")
    };
    train(&whole).unwrap();
    let adapter = |config: &TrainConfig| {
        fs::read(config.out.join("adapter/adapter_model.safetensors")).unwrap()
    };

    let parts = interrupted(&whole, &bench, "parts", 3);
    assert!(!parts.out.join("checkpoints").exists());
    assert!(matches!(
        resume(&parts, &Shutdown::default()).unwrap(),
        Ending::Trained(Summary { steps: 8, .. })
    ));
    assert_eq!(adapter(&parts), adapter(&whole));
    assert_eq!(metrics(&parts).len(), 8);

    let streams = bench.mock.streams_opened();
    let ending = resume(&parts, &Shutdown::default()).unwrap();
    assert_eq!(ending, Ending::FinishedBefore);
    assert_eq!(bench.mock.streams_opened(), streams);

    let nothing = TrainConfig {
        out: bench.dir.path().join("nothing"),
        ..whole
    };
    let message = resume(&nothing, &Shutdown::default())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("no run that could be resumed"),
        "{message}"
    );
}

#[test]
fn a_checkpoint_goes_on_at_every_step_with_accumulation_and_at_the_ends_of_passes() {
    let bench = Bench::new(5);
    let whole = TrainConfig {
        epochs: 3,
        grad_accumulation: 2,
        save_steps: 1,
        ..bench.config("whole")
    };
    train(&whole).unwrap();
    let adapter = |config: &TrainConfig| {
        fs::read(config.out.join("adapter/adapter_model.safetensors")).unwrap()
    };
    let values = |config: &TrainConfig| -> Vec<_> {
        let lines = metrics(config).into_iter();
        lines
            .map(|line| ["step", "epoch", "lr", "loss", "grad_norm"].map(|key| line[key].clone()))
            .collect()
    };
    // Steps end behind frames 2, 4 and 5 of a pass; 7 is in the middle of one, and it is lost.
    for frames in [2, 4, 5, 7, 10, 14] {
        let parts = interrupted(&whole, &bench, &format!("parts-{frames}"), frames);
        let before = metrics(&parts).len();
        assert_eq!(before as u64, frames / 5 * 3 + frames % 5 / 2);
        resume(&parts, &Shutdown::default()).unwrap();
        assert_eq!(adapter(&parts), adapter(&whole), "after {frames} frames");
        assert_eq!(values(&parts), values(&whole), "after {frames} frames");
    }
}

#[test]
fn another_plan_or_student_than_the_checkpoints_is_refused() {
    let bench = Bench::new(3);
    let config = TrainConfig {
        save_steps: 1,
        ..bench.config("run")
    };
    let parts = interrupted(&config, &bench, "parts", 2);
    let student = bench.dir.path().join("student");
    let model = TinyModel {
        vocab_size: VOCAB_SIZE as usize + 8,
        num_hidden_layers: 2,
        ..TinyModel::llama()
    };
    write_tiny_model(&student, &model, 8).unwrap();
    let message = resume(&parts, &Shutdown::default())
        .unwrap_err()
        .to_string();
    assert!(message.contains("the student's weights was"), "{message}");
}
