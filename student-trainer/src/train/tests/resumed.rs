//! Runs that go on: from their start, from a checkpoint, and not at all.

use super::*;
use crate::run::TeacherRecord;

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

/// The weights that a run has left.
fn adapter(config: &TrainConfig) -> Vec<u8> {
    fs::read(config.out.join("adapter/adapter_model.safetensors")).unwrap()
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

    let parts = interrupted(&whole, &bench, "parts", 3);
    // What a kill at that moment would have left.
    fs::remove_dir_all(parts.out.join("checkpoints")).unwrap();
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
        message.contains("is not there; a run directory is what"),
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
fn a_checkpoint_amid_frames_that_are_in_order_together_goes_on_to_the_same_bits() {
    let bench = Bench::new(5);
    let whole = TrainConfig {
        epochs: 2,
        save_steps: 1,
        keep_last: 100,
        shuffle_buffer: 3,
        ..bench.config("whole")
    };
    train(&whole).unwrap();
    let result = |config: &TrainConfig| {
        let losses: Vec<_> = metrics(config)
            .iter()
            .map(|line| line["loss"].clone())
            .collect();
        (adapter(config), losses)
    };
    let expected = result(&whole);
    assert_eq!(expected.1.len(), 10);
    for step in (1..10).rev() {
        // As if it had been killed after that step.
        let checkpoints = whole.out.join("checkpoints");
        for later in step + 1..=10 {
            let _ = fs::remove_dir_all(checkpoints.join(format!("step-{later:06}")));
        }
        fs::remove_dir_all(whole.out.join("adapter")).unwrap();
        let ending = resume(&whole, &Shutdown::default()).unwrap();
        assert!(matches!(ending, Ending::Trained(Summary { steps: 10, .. })));
        assert!(result(&whole) == expected, "after step {step}");
    }
}

#[test]
fn a_finished_run_without_its_result_had_nothing_to_do() {
    let bench = Bench::new(3);
    let config = bench.config("run");
    train(&config).unwrap();
    let result = config.out.join("adapter");
    let weights = result.join("adapter_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let cut = || fs::write(&weights, &whole[..whole.len() - 1]).unwrap();
    let gone = || fs::remove_dir_all(&result).unwrap();
    let edited = || fs::write(result.join("adapter_config.json"), "{}").unwrap();
    let harms: [&dyn Fn(); 3] = [&cut, &gone, &edited];
    for harm in harms {
        harm();
        let ending = resume(&config, &Shutdown::default()).unwrap();
        assert!(matches!(ending, Ending::Trained(Summary { steps: 3, .. })));
        assert_eq!(fs::read(&weights).unwrap(), whole);
        let ending = resume(&config, &Shutdown::default()).unwrap();
        assert_eq!(ending, Ending::FinishedBefore);
    }
    // What people write in the card is theirs.
    fs::write(result.join("README.md"), "mine").unwrap();
    let ending = resume(&config, &Shutdown::default()).unwrap();
    assert_eq!(ending, Ending::FinishedBefore);
    // An edit is refused as of an unfinished run.
    let path = config.out.join("config.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("lr = 0.01", "lr = 0.02", 1)).unwrap();
    let edited = TrainConfig {
        lr: 0.02,
        ..config.clone()
    };
    let message = resume(&edited, &Shutdown::default())
        .unwrap_err()
        .to_string();
    assert!(message.starts_with("lr: "), "{message}");
    fs::write(&path, text).unwrap();
    // Nothing is left that it could be restored from.
    fs::remove_dir_all(config.out.join("checkpoints")).unwrap();
    resume(&config, &Shutdown::default()).unwrap();
    fs::remove_file(&weights).unwrap();
    let message = resume(&config, &Shutdown::default())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("adapter_model.safetensors is gone") && message.contains("--out"),
        "{message}"
    );
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

/// A run of six steps that ended after four, with a checkpoint of each.
fn with_checkpoints(bench: &Bench, name: &str) -> (TrainConfig, TrainConfig) {
    let whole = TrainConfig {
        epochs: 2,
        save_steps: 1,
        ..bench.config("whole")
    };
    let parts = interrupted(&whole, bench, name, 4);
    (whole, parts)
}

#[test]
fn an_edited_configuration_does_not_resume_to_another_adapter() {
    let bench = Bench::new(3);
    let (_, parts) = with_checkpoints(&bench, "parts");
    let path = parts.out.join("config.toml");
    let text = fs::read_to_string(&path).unwrap();
    for (from, to, key) in [
        ("lr = 0.01", "lr = 0.02", "lr: "),
        ("seed = 42", "seed = 43", "seed: "),
        ("epochs = 2", "epochs = 20", "epochs: "),
        ("kl_weight = 1.0", "kl_weight = 0.5", "loss.kl_weight: "),
    ] {
        let edited = text.replacen(from, to, 1);
        assert_ne!(edited, text, "{from}");
        fs::write(&path, &edited).unwrap();
        // As the command line does.
        let config: TrainConfig = toml::from_str(&edited).unwrap();
        let message = resume(&config, &Shutdown::default())
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with(key) && message.contains("config.toml"),
            "{message}"
        );
    }
}

#[test]
fn a_damaged_newest_checkpoint_is_refused_and_the_one_before_it_ends_in_the_same_adapter() {
    let bench = Bench::new(3);
    let (whole, parts) = with_checkpoints(&bench, "parts");
    train(&whole).unwrap();
    let newest = parts.out.join("checkpoints/step-000004");
    let path = newest.join("optimizer.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let message = resume(&parts, &Shutdown::default())
        .unwrap_err()
        .to_string();
    for word in ["step-000004", "optimizer.safetensors", "step-000003"] {
        assert!(message.contains(word), "{message}");
    }
    fs::remove_dir_all(newest).unwrap();
    resume(&parts, &Shutdown::default()).unwrap();
    assert_eq!(adapter(&parts), adapter(&whole));
}

#[test]
fn a_state_that_does_not_fit_the_run_is_refused_by_field() {
    let bench = Bench::new(3);
    let (_, parts) = with_checkpoints(&bench, "parts");
    let path = parts.out.join("checkpoints/step-000004/state.toml");
    let text = fs::read_to_string(&path).unwrap();
    // As the release before checksums wrote it, which is read, but not believed.
    let (old, _) = text.split_once("\n[checksums]").unwrap();
    let old = old.replacen("format = 2", "format = 1", 1);
    let edited = old.replacen("total_steps = 6", "total_steps = 900000", 1);
    assert_ne!(edited, old);
    fs::write(&path, edited).unwrap();
    let message = resume(&parts, &Shutdown::default())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("state.toml: total_steps") && message.contains("900000"),
        "{message}"
    );
    fs::write(&path, old).unwrap();
    resume(&parts, &Shutdown::default()).unwrap();
}

#[test]
fn a_failed_start_does_not_burn_the_directory() {
    let bench = Bench::new(3);
    let config = TrainConfig {
        lora_targets: vec!["query".into()],
        ..bench.config("run")
    };
    let wrong = |change: fn(&mut TrainConfig)| {
        let mut config = bench.config("run");
        change(&mut config);
        train(&config).unwrap_err().to_string()
    };
    type Change = fn(&mut TrainConfig);
    let before: [(Change, &str); 5] = [
        (|c| c.loss.kl_temperature = 3.0, "kl_temperature"),
        (|c| c.student = "/nowhere/student".into(), "nowhere"),
        (|c| c.eval_data = vec!["/nowhere/text".into()], "nowhere"),
        (
            |c| c.init_adapter = Some("/nowhere/adapter".into()),
            "nowhere",
        ),
        (|c| c.device = "gpu".into(), "gpu"),
    ];
    for (change, word) in before {
        let message = wrong(change);
        assert!(message.contains(word), "{message}");
        assert!(!config.out.exists(), "after {message}");
    }
    // Only the student's weights know this one.
    let message = train(&config).unwrap_err().to_string();
    assert!(message.contains("`query`"), "{message}");
    // A run that died before its first checkpoint is no more than that.
    let dead = TrainConfig {
        reconnect_attempts: 0,
        ..bench.config("run")
    };
    bench.mock.drop_before_frames([2]);
    train(&dead).unwrap_err();
    fs::remove_dir_all(dead.out.join("checkpoints")).unwrap();
    assert_eq!(metrics(&dead).len(), 2);
    train(&bench.config("run")).unwrap();
    assert_eq!(metrics(&dead).len(), 3);
    let message = train(&config).unwrap_err().to_string();
    assert!(message.contains("earlier run"), "{message}");
}

#[test]
fn a_run_names_its_teacher_in_the_directory_the_report_and_the_card() {
    let bench = Bench::new(2);
    let config = bench.config("run");
    train(&config).unwrap();
    let teacher = TeacherRecord::read(&config.out).unwrap().unwrap();
    assert_eq!((teacher.name.as_str(), teacher.sequences), ("a-teacher", 2));
    assert_eq!(
        (teacher.estimator.as_str(), teacher.entries, teacher.draws),
        ("top-k", 4, None)
    );
    assert_eq!(
        (teacher.state.as_str(), &teacher.temperatures[..]),
        ("exact", &[1.0][..])
    );
    for (file, shown) in [
        ("teacher.json", teacher.model_fingerprint.len()),
        ("report.html", 16),
        ("adapter/README.md", teacher.model_fingerprint.len()),
    ] {
        let text = fs::read_to_string(config.out.join(file)).unwrap();
        for word in ["a-teacher", "top-k", &teacher.model_fingerprint[..shown]] {
            assert!(text.contains(word), "{word} is not in {file}");
        }
    }
}
