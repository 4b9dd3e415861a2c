//! Provides the tests of training with a teacher whose vocabulary is another one.

use distill_proto::{Estimator, Fingerprint, Frame, Rows, ValueCoding, v1::GetVocabularyResponse};

use super::*;
use crate::{
    align::tests::write_byte_level,
    loss::{Cost, Similarity},
};

/// Ids of the teacher's end-of-text, and of a token that the student does not have.
const END: u32 = 31;
const UNKNOWN: u32 = 30;

/// Letters, pairs of letters that the student may or may not have, and the end-of-text.
fn token(id: u32) -> String {
    let letter = |i: u32| char::from(b'a' + i as u8);
    match id {
        END => "<|end|>".to_owned(),
        0..16 => letter(id).to_string(),
        id => format!("{}{}", letter(id - 16), letter(id - 15)),
    }
}

fn vocabulary() -> GetVocabularyResponse {
    GetVocabularyResponse {
        first_id: 0,
        tokens: (0..VOCAB_SIZE).map(|id| token(id).into()).collect(),
        special: (0..VOCAB_SIZE).map(|id| id == END).collect(),
        eos_id: Some(END),
    }
}

/// A completion in the teacher's tokens, whose rows say that the next one is likely.
fn frame(index: u64, ids: &[u32]) -> Frame {
    let mut text = String::new();
    let mut offsets = Vec::new();
    for &id in ids {
        let start = text.len() as u32;
        if id != END {
            text += &token(id);
        }
        offsets.push((start, text.len() as u32));
    }
    let labels = &ids[1..];
    let rows = labels.len();
    let row = |&label: &u32| {
        let mut row: Vec<(u32, f32)> = [0, 7, 20].iter().map(|&id| (id, 0.0)).collect();
        row.retain(|(id, _)| *id != label);
        row.truncate(2);
        row.push((label, 4.0));
        row.sort_by_key(|entry| entry.0);
        row
    };
    let entries: Vec<(u32, f32)> = labels.iter().flat_map(row).collect();
    Frame {
        sequence_id: index,
        index,
        text_digest: Fingerprint::of(text.as_bytes()),
        text,
        token_ids: ids.to_vec(),
        byte_offsets: offsets,
        target_mask: (0..ids.len()).map(|t| t > 0).collect(),
        view: None,
        rows: Rows {
            rows,
            k: 3,
            vocab_size: VOCAB_SIZE,
            estimator: Estimator::TopK,
            coding: ValueCoding::Step(0.125),
            ids: entries.iter().map(|entry| entry.0).collect(),
            logits: entries.iter().map(|entry| entry.1).collect(),
            counts: vec![],
            max: vec![4.0; rows],
            mean: vec![0.0; rows],
            std: vec![1.0; rows],
            temperatures: vec![1.0],
            logsumexp: vec![vec![4.5; rows]],
            state: None,
        },
    }
}

/// "abcab..." in one, two and mixed letters a token, always with an end; the last one has nothing for the student.
fn frames() -> Vec<Frame> {
    let one = [0, 1, 2, 0, 1, 2, 0, 1, END];
    let two = [16, 18, 20, 16, 18, 20, END];
    let mixed = [0, 17, 3, 20, 0, 1, 18, 20, 0, END];
    let mut frames = vec![frame(0, &one), frame(1, &two), frame(2, &mixed)];
    let mut nothing = frame(3, &[0, UNKNOWN]);
    let rows = &mut nothing.rows;
    (rows.k, rows.ids, rows.logits) = (1, vec![UNKNOWN], vec![4.0]);
    frames.push(nothing);
    frames
}

fn bench(frames: Vec<Frame>) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let student = dir.path().join("student");
    fs::create_dir(&student).unwrap();
    let model = TinyModel {
        vocab_size: 272,
        num_hidden_layers: 2,
        ..TinyModel::llama()
    };
    write_tiny_model(&student, &model, 7).unwrap();
    write_byte_level(
        &student,
        &[("a", "b"), ("c", "d"), ("b", "c"), ("e", "ab")],
        &["</s>"],
    );
    let runtime = client::runtime().unwrap();
    let mock = runtime.block_on(MockTeacher::serve(frames));
    mock.set_tokens(vec![vocabulary()]);
    Bench {
        dir,
        mock,
        _runtime: runtime,
    }
}

#[test]
fn a_student_with_another_tokenizer_learns_from_the_same_frames() {
    let bench = bench(frames());
    let mut config = TrainConfig {
        epochs: 8,
        grad_accumulation: 4,
        ..bench.config("run")
    };
    config.loss.ot_weight = 0.1;
    config.loss.align.cost = Cost::Kl;
    let summary = train(&config).unwrap();
    assert_eq!((summary.steps, summary.interrupted), (8, false));
    let lines = metrics(&config);
    let of = |i: usize, name: &str| lines[i][name].as_f64().unwrap();
    for name in ["ce", "kl"] {
        assert!(
            of(7, name) < 0.8 * of(0, name),
            "{name}: {} {}",
            of(0, name),
            of(7, name)
        );
    }
    assert!(of(0, "ot") > 0.0);
    // Counted in the student's tokens, all targets but the first; the fourth frame is left out.
    let tokenizer = TokenizerFiles::open(&config.student).unwrap();
    let texts = frames().into_iter().take(3).map(|frame| frame.text);
    let tokens: usize = texts
        .map(|text| tokenizer.encode(&text).unwrap().ids.len() + 1)
        .sum();
    assert_eq!(lines[0]["tokens"], tokens);
    assert_eq!(lines[0]["targets"], tokens - 3);
    assert!(config.out.join("adapter/tokenizer.json").is_file());
}

#[test]
fn a_step_without_anything_for_the_student_changes_nothing() {
    let mut frames = frames();
    frames.swap(0, 3);
    (0u64..)
        .zip(&mut frames)
        .for_each(|(i, frame)| frame.index = i);
    let bench = bench(frames);
    let config = bench.config("run");
    let summary = train(&config).unwrap();
    assert_eq!((summary.steps, summary.interrupted), (4, false));
    let lines = metrics(&config);
    let steps: Vec<_> = lines
        .iter()
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [2, 3, 4]);
}

#[test]
fn what_needs_the_teachers_logits_is_refused_by_name() {
    let bench = bench(frames());
    fs::remove_file(bench.dir.path().join("student/model.safetensors")).unwrap();
    let mut config = bench.config("run");
    config.loss.ot_weight = 0.1;
    config.loss.align.cost = Cost::SoftmaxSimilarity;
    config.loss.align.similarity = Similarity::Cosine;
    let message = train(&config).unwrap_err().to_string();
    assert!(
        message.contains("--cost kl") && message.contains("similarity"),
        "{message}"
    );

    let mut stranger = vocabulary();
    stranger.tokens.fill("世界".into());
    stranger.eos_id = None;
    bench.mock.set_tokens(vec![stranger]);
    let message = train(&bench.config("other")).unwrap_err().to_string();
    assert!(message.contains("none with the same bytes"), "{message}");
}
