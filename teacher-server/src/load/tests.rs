use distill_model::testing::TinyModel;

use super::*;
use crate::{
    production::{Forward, Reload, Tokens},
    testing::{HEAD_ROWS, serve, write_model_of},
};

/// A directory with a teacher outside the decoder and a corpus, and the settings to serve it with `flags`.
fn outside(flags: &[&str]) -> (tempfile::TempDir, Config) {
    let dir = tempfile::tempdir().unwrap();
    let model = TinyModel {
        vocab_size: HEAD_ROWS,
        ..TinyModel::qwen3_moe()
    };
    write_model_of(dir.path(), &model);
    let corpus = dir.path().join("corpus.txt");
    std::fs::write(&corpus, "Some text to be taught.").unwrap();
    let (model, corpus) = (dir.path().to_str().unwrap(), corpus.to_str().unwrap());
    let given = ["--model", model, "--corpus", corpus, "--device", "cpu"];
    let config = serve(&[&given[..], flags].concat()).unwrap();
    (dir, config)
}

fn opened(config: &Config) -> Result<Opened> {
    Opened::read(config, Device::Cpu, &Reporter::new(true), &|| false)
}

#[test]
fn a_teacher_outside_the_decoder_is_loaded_again_and_says_the_same() {
    let (_dir, config) = outside(&["--vram-mode", "swap", "--state", "exact"]);
    let opened = opened(&config).unwrap();
    let swapped = Swapped::new(&config, &opened).unwrap();
    let tokens = || Tokens {
        id: 1,
        draw_id: 1,
        token_ids: &[1, 2, 3, 4, 5],
        target_mask: &[false, true, true, false, true],
    };
    let rows = |teacher: &dyn Forward| teacher.rows(&[tokens()]).unwrap();
    let first = rows(swapped.load().unwrap().as_ref());
    assert_eq!(first[0].rows, 3);
    assert_eq!(first, rows(swapped.load().unwrap().as_ref()));
    let resident = Config {
        vram_mode: VramMode::Resident,
        ..config
    };
    let Origin::Loaded(teacher) = opened.origin(&resident).unwrap() else {
        panic!("not in memory");
    };
    assert_eq!(first, rows(teacher.as_ref()));
    assert_eq!(swapped.weight_bytes(), teacher.weight_bytes() as u64);
}

#[test]
fn a_tokenizer_with_more_ids_than_head_rows_is_named_with_both_files() {
    let (dir, config) = outside(&[]);
    let more: Vec<String> = (0..HEAD_ROWS).map(|id| format!("<{id}>")).collect();
    let beside = serde_json::json!({"eos_token": "<|end|>", "extra_special_tokens": more});
    std::fs::write(dir.path().join("tokenizer_config.json"), beside.to_string()).unwrap();
    let Err(error) = opened(&config) else {
        panic!("accepted");
    };
    let message = error.to_string();
    let rows = format!("{HEAD_ROWS} rows");
    for expected in ["tokenizer.json", "config.json", "ids", &rows] {
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn an_inner_layer_is_refused_before_a_weight_is_read() {
    let (dir, config) = outside(&["--state", "hidden:1"]);
    // Whoever read a weight would find none.
    let file = dir.path().join("model.safetensors");
    candle_core::safetensors::save(&std::collections::HashMap::<&str, Tensor>::new(), file)
        .unwrap();
    let Err(error) = opened(&config) else {
        panic!("accepted");
    };
    let message = error.to_string();
    assert!(
        matches!(error, Error::Config { ref key, .. } if key == "state"),
        "{message}"
    );
    assert!(
        message.contains("qwen3_moe") && message.contains("use exact"),
        "{message}"
    );
}

#[test]
fn weights_edited_or_cut_after_their_fingerprint_are_not_loaded_in_any_mode() {
    use std::os::unix::fs::FileExt;
    type Change = fn(&std::fs::File);
    let changes: [Change; 2] = [
        |file| {
            let bytes = file.metadata().unwrap().len();
            file.write_all_at(&[0x55; 64], bytes - 64).unwrap();
        },
        |file| file.set_len(1000).unwrap(),
    ];
    for change in changes {
        let (dir, config) = outside(&["--vram-mode", "swap", "--state", "exact"]);
        let opened = opened(&config).unwrap();
        let swapped = Swapped::new(&config, &opened).unwrap();
        drop(swapped.load().unwrap());
        let path = dir.path().join("model.safetensors");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        change(&file);
        let resident = Config {
            vram_mode: VramMode::Resident,
            ..config.clone()
        };
        // The first turn and every later one, a resident teacher, and what is hashed again.
        let refused = [
            swapped.load().map(drop),
            swapped.load().map(drop),
            opened.origin(&resident).map(drop),
            model_fingerprint(&opened.weights).map(drop),
        ];
        for result in refused {
            let error = result.expect_err("loaded");
            let changed = distill_model::Error::Changed {
                path: path.clone(),
                how: String::new(),
            };
            assert!(
                error
                    .to_string()
                    .starts_with(changed.to_string().split(':').next().unwrap()),
                "{error}"
            );
            let status = crate::service::status(&error);
            assert_eq!(status.code(), tonic::Code::FailedPrecondition);
            assert!(!status.message().contains("safetensors"), "{status}");
        }
    }
}
