//! What the student answers before it is trained and after.

use distill_model::Sampling;

use super::*;
use crate::{
    generate::{Asked, Decoding, Writer, Written},
    train::{ANSWER_TOKENS_MAX, Sample},
};

impl Bench {
    /// Six steps beside held-out prompts, more than are asked.
    fn asked(&self, name: &str) -> TrainConfig {
        let data = self.dir.path().join("prompts.jsonl");
        let row = |i: usize| {
            let (prompt, completion) = (format!("t{i} t{}", i + 7), format!(" t{}", i + 14));
            serde_json::json!({"prompt": prompt, "completion": completion}).to_string()
        };
        let rows: Vec<String> = (1..=6).map(row).collect();
        fs::write(&data, rows.join("\n")).unwrap();
        TrainConfig {
            eval_data: vec![data],
            eval_seq_len: Some(16),
            epochs: 2,
            ..self.config(name)
        }
    }

    /// What the student writes after these prompts, with an adapter or without.
    fn written(&self, config: &TrainConfig, samples: &[Sample], adapter: bool) -> Vec<Written> {
        let files = StudentFiles::open(&config.student).unwrap();
        let place = Place::choose("cpu", config.dtype).unwrap();
        let directory = config.out.join("adapter");
        let lora = AdapterConfig::read(&directory).unwrap().lora();
        let decoder = files
            .load(Quantize::Nf4, &place, adapter.then_some(lora))
            .unwrap();
        if adapter {
            load_adapter(&directory, &decoder.parameters()).unwrap();
        }
        let decoding = Decoding {
            max_new_tokens: ANSWER_TOKENS_MAX,
            sampling: Sampling::GREEDY,
            seed: 0,
        };
        let shutdown = Shutdown::default();
        let writer = Writer::new(&decoder, &files, decoding, &[], &shutdown).unwrap();
        let asked = samples.iter().map(|sample| Asked {
            ids: sample.prompt_ids.clone(),
            seed: 0,
        });
        let asked: Vec<Asked> = asked.collect();
        writer.write(&asked, &mut |_| Ok(true)).unwrap()
    }
}

fn adapter(config: &TrainConfig) -> Vec<u8> {
    fs::read(config.out.join("adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn a_run_shows_what_the_student_answered_before_and_after_and_trains_the_same_bits() {
    let bench = Bench::new(3);
    let config = bench.asked("run");
    train(&config).unwrap();
    let samples = Sample::read(&config.out).unwrap();
    assert_eq!(samples.len(), 4);
    assert_eq!(samples[0].prompt, "t1 t8");
    assert_eq!(samples[0].reference.trim(), "t15");
    let of = |of: fn(&Sample) -> &Option<Written>| -> Vec<Written> {
        samples.iter().map(|one| of(one).clone().unwrap()).collect()
    };
    let (before, after) = (of(|one| &one.before), of(|one| &one.after));
    assert_eq!(before, bench.written(&config, &samples, false));
    assert_eq!(after, bench.written(&config, &samples, true));
    let page = fs::read_to_string(config.out.join("report.html")).unwrap();
    let twin = fs::read_to_string(config.out.join("report.md")).unwrap();
    for text in [&page, &twin] {
        for words in ["before training", "after training", "t1 t8"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    let silent = TrainConfig {
        eval_data: Vec::new(),
        ..bench.asked("silent")
    };
    train(&silent).unwrap();
    // The teacher's sequences ask nothing.
    assert!(!silent.out.join("answers.json").exists());
    assert_eq!(adapter(&silent), adapter(&config));

    let unasked = TrainConfig {
        sample_answers: 0,
        ..bench.asked("unasked")
    };
    train(&unasked).unwrap();
    assert!(!unasked.out.join("answers.json").exists());
    assert_eq!(adapter(&unasked), adapter(&config));
}

#[test]
fn a_run_that_goes_on_keeps_what_was_answered_before_it() {
    let bench = Bench::new(3);
    let config = TrainConfig {
        save_steps: 1,
        ..bench.asked("whole")
    };
    let parts = interrupted(&config, &bench, "parts", 2);
    let path = parts.out.join("answers.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"after\": null"), "{text}");
    let mut samples = Sample::read(&parts.out).unwrap();
    samples[0].prompt = "of before".to_owned();
    files::write_json(&path, &samples).unwrap();
    resume(&parts, &Shutdown::default()).unwrap();
    let went_on = Sample::read(&parts.out).unwrap();
    assert_eq!(went_on[0].prompt, "of before");
    assert_eq!(went_on[0].before, samples[0].before);
    assert!(went_on.iter().all(|sample| sample.after.is_some()));

    // From its start again, too.
    fs::remove_dir_all(parts.out.join("checkpoints")).unwrap();
    fs::remove_file(parts.out.join("summary.json")).unwrap();
    fs::remove_dir_all(parts.out.join("adapter")).unwrap();
    resume(&parts, &Shutdown::default()).unwrap();
    assert_eq!(Sample::read(&parts.out).unwrap(), went_on);
}

#[test]
fn without_held_out_prompts_those_of_the_first_step_are_asked() {
    let frames = (0..4).map(|index| {
        let mut frame = made_up_frame(index);
        frame.token_ids.insert(0, 5);
        frame.target_mask.insert(0, false);
        let tokens = frame.token_ids.len() as u32;
        frame.byte_offsets = (0..tokens).map(|t| (t, t + 1)).collect();
        frame.text = "x".repeat(frame.token_ids.len());
        frame.text_digest = distill_proto::Fingerprint::of(frame.text.as_bytes());
        frame
    });
    let bench = Bench::of(frames.collect());
    let config = TrainConfig {
        batch_size: 2,
        ..bench.config("run")
    };
    train(&config).unwrap();
    let samples = Sample::read(&config.out).unwrap();
    let ids: Vec<_> = samples.iter().map(|one| one.prompt_ids.clone()).collect();
    assert_eq!(ids, [[5, 0], [5, 1]]);
    let answered = |one: &Sample| one.before.is_some() && one.after.is_some();
    assert!(samples.iter().all(answered));
}

#[test]
fn a_student_that_cannot_answer_is_trained_all_the_same() {
    let bench = Bench::new(3);
    let wrong = r#"{"eos_token_id": [0, "x"]}"#;
    let student = bench.dir.path().join("student");
    fs::write(student.join("generation_config.json"), wrong).unwrap();
    let config = bench.asked("run");
    train(&config).unwrap();
    assert!(!config.out.join("answers.json").exists());
    assert_eq!(metrics(&config).len(), 6);
}
