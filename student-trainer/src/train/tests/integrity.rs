//! Runs whose teacher lies at the end, or whose student is changed under them: no result is left.

use std::os::unix::fs::FileExt;

use distill_proto::v1::{StreamBlocksResponse, stream_blocks_response::Event};

use super::*;

#[test]
fn another_digest_at_the_end_of_the_only_pass_leaves_no_result() {
    let bench = Bench::new(5);
    bench.mock.lie_in_streams(|_, sent| {
        if let Some(Ok(StreamBlocksResponse {
            event: Some(Event::End(end)),
        })) = sent.last_mut()
        {
            end.digest = vec![0; 32].into();
        }
    });
    let config = bench.config("run");
    let message = train(&config).unwrap_err().to_string();
    assert!(message.contains("digest over all 5 frames"), "{message}");
    assert!(!config.out.join("adapter").exists());
    assert_eq!(metrics(&config).len(), 4, "the last frame was trained on");
}

#[test]
fn a_student_changed_between_two_stays_is_refused() {
    let bench = Bench::new(1);
    let directory = bench.config("run").student;
    let files = StudentFiles::open(&directory).unwrap();
    let place = Place::choose("cpu", ComputeDtype::F32).unwrap();
    files.weights().unwrap().fingerprint().unwrap();
    let load = || files.load(Quantize::Nf4, &place, None).map(drop);
    load().unwrap();
    let path = directory.join("model.safetensors");
    let bytes = fs::metadata(&path).unwrap().len();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0x55; 64], bytes - 64).unwrap();
    for _ in 0..2 {
        let message = load().unwrap_err().to_string();
        assert!(
            message.contains("model.safetensors was changed"),
            "{message}"
        );
    }
    file.set_len(1000).unwrap();
    let message = load().unwrap_err().to_string();
    assert!(
        message.contains("model.safetensors was changed"),
        "{message}"
    );
}

#[test]
fn a_config_json_changed_before_the_weights_are_opened_is_refused() {
    let bench = Bench::new(1);
    let directory = bench.config("run").student;
    let files = StudentFiles::open(&directory).unwrap();
    let path = directory.join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["rope_theta"] = 5.into();
    fs::write(&path, json.to_string()).unwrap();
    let message = files.weights().map(drop).unwrap_err().to_string();
    assert!(message.contains("config.json was changed"), "{message}");
}

#[test]
fn a_run_that_loses_its_teacher_goes_on_from_its_last_step() {
    let bench = Bench::new(5);
    let whole = bench.config("whole");
    train(&whole).unwrap();
    bench.mock.drop_before_frames([3]);
    let config = TrainConfig {
        reconnect_attempts: 0,
        ..bench.config("lost")
    };
    let message = train(&config).unwrap_err().to_string();
    assert!(
        message.contains("lost the stream before frame 3"),
        "{message}"
    );
    assert_eq!(checkpoints(&config), ["step-000003"]);
    let Ending::Trained(_) = resume(&config, &Shutdown::default()).unwrap() else {
        panic!("nothing was left to do");
    };
    assert_eq!(metrics(&config).len(), 5);
    let adapter = |config: &TrainConfig| {
        fs::read(config.out.join("adapter/adapter_model.safetensors")).unwrap()
    };
    assert!(adapter(&config) == adapter(&whole));
}

#[test]
fn a_step_that_cannot_be_done_costs_none_of_those_before() {
    let bench = Bench::new(5);
    let config = TrainConfig {
        lr: 1e30,
        ..bench.config("overflow")
    };
    let first = train(&config).unwrap_err().to_string();
    let done = metrics(&config).len();
    assert!(first.contains(&format!("step {}", done + 1)), "{first}");
    assert_eq!(checkpoints(&config), [format!("step-{done:06}")]);
    // It goes on with the frame that was not used, and comes to the same.
    let again = resume(&config, &Shutdown::default()).unwrap_err();
    assert_eq!(again.to_string(), first);
    assert_eq!(metrics(&config).len(), done);
}

fn checkpoints(config: &TrainConfig) -> Vec<String> {
    let found = files::list(&config.out.join("checkpoints")).unwrap();
    let names = found
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name.starts_with("step-")).collect()
}

#[test]
fn a_request_while_the_teacher_is_away_saves_what_there_is() {
    let bench = Bench::new(5);
    // Whoever connects again is cut off again.
    bench.mock.drop_before_frames([3; 50]);
    let config = TrainConfig {
        reconnect_attempts: 50,
        ..bench.config("away")
    };
    let shutdown = Shutdown::default();
    let later = shutdown.clone();
    let metrics_file = config.out.join("metrics.jsonl");
    let asking = std::thread::spawn(move || {
        while fs::read_to_string(&metrics_file).map_or(0, |text| text.lines().count()) < 3 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
        later.request();
    });
    let summary = run(&config, &shutdown).unwrap();
    asking.join().unwrap();
    assert_eq!((summary.steps, summary.interrupted), (3, true));
    assert_eq!(checkpoints(&config), ["step-000003"]);
}
