//! Whole evaluations of tiny students: where answers end, what a stopped one reports, which head is used.

use std::{fs, path::Path};

use distill_model::testing::TinyModel;
use serde_json::json;
use tempfile::TempDir;

use super::{answers::Answer, *};
use crate::test_models::{set_in_config, write_student};

const WORDS: usize = 40;

/// A student with words for tokens and a head of its own, beside prompts with completions.
fn student() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_student(dir.path(), TinyModel::qwen2(), WORDS);
    let lines: Vec<String> = (1..4)
        .map(|i| json!({"prompt": format!("w1 w2 w{i}"), "completion": "w3"}).to_string())
        .collect();
    fs::write(dir.path().join("corpus.jsonl"), lines.join("\n")).unwrap();
    dir
}

fn config(student: &Path) -> EvalConfig {
    EvalConfig {
        student: student.to_owned(),
        data: vec![student.join("corpus.jsonl")],
        quantize: Some(crate::config::Quantize::None),
        device: "cpu".into(),
        max_new_tokens: 8,
        ..EvalConfig::default()
    }
}

fn write(student: &Path, name: &str, value: serde_json::Value) {
    fs::write(student.join(name), value.to_string()).unwrap();
}

/// What the student writes after each prompt.
fn generated(student: &Path) -> Vec<String> {
    let config = EvalConfig {
        answers_out: Some(student.join("answers.jsonl")),
        ..config(student)
    };
    let report = run(&config, &Shutdown::default()).unwrap();
    assert!(report.complete && report.answered.is_some());
    let answers = fs::read_to_string(student.join("answers.jsonl")).unwrap();
    let answers = answers.lines().map(|line| {
        let answer: serde_json::Value = serde_json::from_str(line).unwrap();
        answer["generated"].as_str().unwrap().to_owned()
    });
    answers.collect()
}

#[test]
fn answers_went_on_after_the_ends_that_the_model_names() {
    let dir = student();
    let free = generated(dir.path());
    assert!(
        free.iter().any(|text| text.split(' ').count() > 1),
        "{free:?}"
    );
    // The second word of the first answer that has one, as an end.
    let words = free.iter().find_map(|text| text.split(' ').nth(1));
    let end: u32 = words.unwrap()[1..].parse().unwrap();
    for ids in [json!(end), json!([end, 9000]), json!([0, end])] {
        write(
            dir.path(),
            "generation_config.json",
            json!({"eos_token_id": ids}),
        );
        for (text, free) in generated(dir.path()).iter().zip(&free) {
            let until = free
                .split(' ')
                .take_while(|word| *word != format!("w{end}"));
            assert_eq!(*text, until.collect::<Vec<_>>().join(" "));
        }
    }
    let all: Vec<usize> = (0..WORDS).collect();
    write(
        dir.path(),
        "generation_config.json",
        json!({"eos_token_id": all}),
    );
    assert_eq!(generated(dir.path()), ["", "", ""]);
    write(
        dir.path(),
        "generation_config.json",
        json!({"eos_token_id": "w0"}),
    );
    let config = EvalConfig {
        exact_match: true,
        ..config(dir.path())
    };
    let error = run(&config, &Shutdown::default()).unwrap_err().to_string();
    assert!(error.contains("generation_config.json"), "{error}");
}

#[test]
fn a_stopped_evaluation_is_not_complete_and_makes_nothing_up() {
    let dir = student();
    let stopped = Shutdown::default();
    stopped.request();
    let config = EvalConfig {
        exact_match: true,
        ..config(dir.path())
    };
    let report = run(&config, &stopped).unwrap();
    assert!(!report.complete);
    assert_eq!((report.counts(), report.answered), ((0, 0), Some((0, 0))));
    assert!(report.to_json()["perplexity"].is_null());
    let report = run(&config, &Shutdown::default()).unwrap();
    assert!(report.complete && report.counts().0 == 3);
    assert_eq!(report.answered.unwrap().0, 3);
}

#[test]
fn answers_of_a_stopped_evaluation_passed_for_all() {
    let dir = student();
    let answers = dir.path().join("answers.jsonl");
    let config = EvalConfig {
        answers_out: Some(answers.clone()),
        ..config(dir.path())
    };
    let stopped = Shutdown::default();
    stopped.request();
    run(&config, &stopped).unwrap();
    assert_eq!(
        fs::read_to_string(&answers).unwrap(),
        "{\"complete\":false}\n"
    );
    run(&config, &Shutdown::default()).unwrap();
    let whole = fs::read_to_string(&answers).unwrap();
    assert!(
        !whole.contains("complete") && whole.lines().count() == 3,
        "{whole}"
    );
    // Some answers, and somebody stopped it then.
    let given = |text: &str| Answer {
        prompt: text.into(),
        reference: text.into(),
        generated: text.into(),
        correct: true,
        base: None,
        index: 0,
    };
    let some = Answers {
        given: vec![given("a"), given("b")],
        complete: false,
    };
    write_answers(&answers, &some).unwrap();
    let lines = fs::read_to_string(&answers).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!((lines.len(), lines[2]), (3, "{\"complete\":false}"));

    let plans = dir.path().join("plans.json");
    let read =
        || -> serde_json::Value { serde_json::from_slice(&fs::read(&plans).unwrap()).unwrap() };
    write_plans(&plans, &[], false).unwrap();
    assert_eq!(read(), json!([{"complete": false}]));
    write_plans(&plans, &[], true).unwrap();
    assert_eq!(read(), json!([]));
}

#[test]
fn a_stop_after_the_last_sequence_takes_nothing_away() {
    let dir = student();
    let config = config(dir.path());
    let files = StudentFiles::open(dir.path()).unwrap();
    let place = Place::choose("cpu", config.dtype).unwrap();
    let (decoder, _) = load(&files, None, config.quantize, &place).unwrap();
    let (geometry, loss) = (
        geometry(&decoder, &files).unwrap(),
        loss_config(false, 1.0, 8),
    );
    let (sequences, _) = sequences(&config.data, &files, &Windowing::new(64), None).unwrap();
    let measure = Measure {
        decoder: &decoder,
        geometry: &geometry,
        loss: &loss,
        scorer: None,
    };
    for (stop_at, whole) in [(sequences.len(), true), (sequences.len() - 1, false)] {
        let (shutdown, mut report) = (Shutdown::default(), EvalReport::default());
        let each = &mut |_: Measured<'_>, report: &EvalReport| -> Result<()> {
            if report.counts().0 == stop_at {
                shutdown.request();
            }
            Ok(())
        };
        let found = measure.all(&sequences, &mut report, &shutdown, each);
        assert_eq!(found.unwrap(), whole);
        assert_eq!(report.counts().0, stop_at);
    }
}

#[test]
fn data_without_a_prompt_was_refused_after_all_of_the_work() {
    let dir = student();
    let running = dir.path().join("running.jsonl");
    fs::write(&running, json!({"text": "w1 w2 w3 w4"}).to_string()).unwrap();
    // No weights, so nothing can have been measured.
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let config = EvalConfig {
        data: vec![running],
        exact_match: true,
        ..config(dir.path())
    };
    let error = run(&config, &Shutdown::default()).unwrap_err().to_string();
    for part in ["exact_match", "no prompt", "`messages`"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn chat_rows_were_refused_and_are_answered_from_the_last_turn() {
    let dir = student();
    let template = "{% for m in messages %}w1 {{ m.role[:1] | replace('u', 'w2') | replace('a', 'w3') | replace('s', 'w4') }} \
                    {{ m.content }} w5 {% endfor %}{% if add_generation_prompt %}w1 w3 {% endif %}";
    fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let first = [
        turn("system", "w9"),
        turn("user", "w10 w11"),
        turn("assistant", "w12"),
    ];
    let second = [turn("user", "w13"), turn("assistant", "w14 w15")];
    let both = [&first[..], &second].concat();
    let rows = [
        json!({"messages": first}),
        json!({"messages": both}),
        json!({"text": "w1 w2 w3"}),
    ];
    let rows = rows.map(|row| row.to_string()).join("\n");
    fs::write(dir.path().join("corpus.jsonl"), rows).unwrap();
    let answers = dir.path().join("answers.jsonl");
    let config = EvalConfig {
        answers_out: Some(answers.clone()),
        ..config(dir.path())
    };
    let report = run(&config, &Shutdown::default()).unwrap();
    assert_eq!(report.answered.unwrap().0, 2);
    let answers = fs::read_to_string(&answers).unwrap();
    let answers: Vec<serde_json::Value> = answers
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // The template's rendering of what comes before the last turn, with its generation prompt.
    let before = "w1 w4 w9 w5 w1 w2 w10 w11 w5 w1 w3";
    assert_eq!(answers[0]["prompt"], before);
    assert!(answers[0]["reference"].as_str().unwrap().starts_with("w12"));
    let before = format!("{before} w12 w5 w1 w2 w13 w5 w1 w3");
    assert_eq!(answers[1]["prompt"], before);
    assert!(
        answers[1]["reference"]
            .as_str()
            .unwrap()
            .starts_with("w14 w15")
    );
    // As `generate` reads the same conversation.
    let files = StudentFiles::open(dir.path()).unwrap();
    let messages = serde_json::Value::Array([&first[..], &second[..1]].concat());
    let rendered = files.tokenizer.render_chat(&messages, true).unwrap();
    assert_eq!(rendered.trim_end(), before);
}

#[test]
fn one_evaluation_sets_base_and_adapter_beside_each_other() {
    let dir = student();
    let adapter = dir.path().join("adapter");
    crate::test_models::write_adapter(dir.path(), &adapter);
    let alone = config(dir.path());
    let adapted = EvalConfig {
        adapter: Some(adapter),
        exact_match: true,
        ..alone.clone()
    };
    let both = EvalConfig {
        compare: true,
        answers_out: Some(dir.path().join("answers.jsonl")),
        ..adapted.clone()
    };
    let report = run(&both, &Shutdown::default()).unwrap();
    let base = report.base.clone().unwrap();
    // The same numbers as of each alone, and not of one another.
    assert_eq!(base.ce(), run(&alone, &Shutdown::default()).unwrap().ce());
    let adapted = run(&adapted, &Shutdown::default()).unwrap();
    assert_eq!(report.ce(), adapted.ce());
    assert_ne!(report.ce(), base.ce());
    assert_eq!(report.answered, adapted.answered);
    assert!(report.complete && base.complete && base.answered.is_some());
    let answers = fs::read_to_string(dir.path().join("answers.jsonl")).unwrap();
    assert_eq!(answers.matches("\"base\":{\"generated\":").count(), 3);
    let nothing = EvalConfig {
        compare: true,
        ..alone
    };
    let error = run(&nothing, &Shutdown::default()).unwrap_err().to_string();
    assert!(
        error.starts_with("compare: ") && error.contains("--adapter"),
        "{error}"
    );
}

#[test]
fn data_without_a_target_had_a_perplexity_of_one() {
    let dir = student();
    let empty = dir.path().join("empty.jsonl");
    // One token has none before it.
    fs::write(&empty, json!({"text": "w1"}).to_string()).unwrap();
    let config = EvalConfig {
        data: vec![empty],
        ..config(dir.path())
    };
    assert!(run(&config, &Shutdown::default()).is_err());
    let none = EvalConfig {
        max_sequences: Some(0),
        ..config
    };
    let error = run(&none, &Shutdown::default()).unwrap_err().to_string();
    assert!(error.starts_with("max_sequences"), "{error}");
}

#[test]
fn a_tied_config_hid_the_head_that_the_checkpoint_holds() {
    let dir = student();
    let ce = || {
        let report = run(&config(dir.path()), &Shutdown::default()).unwrap();
        report.ce()
    };
    let meant = ce();
    set_in_config(dir.path(), "tie_word_embeddings", true.into());
    assert_eq!(ce(), meant);
}
