//! Provides the tests of files that somebody writes to, cuts or replaces while they are open.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::quantized::GgmlDType;
use tempfile::TempDir;

use super::*;
use crate::testing::{TinyModel, write_tiny_model};
use crate::{Base, Decoder, LoadOptions};

const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";

fn model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_tiny_model(dir.path(), &TinyModel::qwen2(), 3).unwrap();
    dir
}

fn file(dir: &TempDir) -> PathBuf {
    dir.path().join("model.safetensors")
}

fn writable(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// Where the tensor's first byte lies.
fn start(path: &Path, name: &str) -> u64 {
    let opened = Weights::open_file(path).unwrap();
    opened.find(name).unwrap().1.bytes.start
}

/// Turns one bit of the first element over, the length stays.
fn edit(path: &Path, name: &str) {
    // What is written within the same tick as before leaves the same times.
    std::thread::sleep(std::time::Duration::from_millis(25));
    let (start, file) = (start(path, name), writable(path));
    let mut byte = [0];
    file.read_exact_at(&mut byte, start).unwrap();
    file.write_all_at(&[byte[0] ^ 1], start).unwrap();
}

/// Every way to read a tensor; each must say that the file was changed, and which one.
fn assert_refused(weights: &Weights, name: &str, path: &Path) {
    let tensor = |dtype| weights.tensor(name, dtype, &Device::Cpu).map(drop);
    let results = [
        tensor(DType::F32),
        tensor(DType::BF16),
        weights.raw(name).map(drop),
        crate::dequantized(weights, name).map(drop),
        weights.fingerprint().map(drop),
    ];
    for (way, result) in results.into_iter().enumerate() {
        let error = result.expect_err(&format!("{name}, way {way}"));
        assert!(
            matches!(&error, Error::Changed { path: named, .. } if named == path),
            "{name}, way {way}: {error}"
        );
    }
}

#[test]
fn weights_edited_in_place_are_refused_under_the_old_fingerprint() {
    let dir = model();
    let weights = Weights::open(dir.path()).unwrap();
    let fingerprint = weights.fingerprint().unwrap();
    edit(&file(&dir), EMBEDDING);
    assert_refused(&weights, EMBEDDING, &file(&dir));
    // What still is what was fingerprinted is given.
    weights.tensor(NORM, DType::F32, &Device::Cpu).unwrap();
    edit(&file(&dir), EMBEDDING);
    // Brought back as it was, it is itself again.
    weights.tensor(EMBEDDING, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(weights.fingerprint().unwrap(), fingerprint);
}

#[test]
fn an_edit_before_the_fingerprint_is_refused_too() {
    let dir = model();
    let weights = Weights::open(dir.path()).unwrap();
    edit(&file(&dir), EMBEDDING);
    assert_refused(&weights, EMBEDDING, &file(&dir));
    assert_refused(&weights, NORM, &file(&dir));
}

#[test]
fn an_edit_that_sets_the_time_of_writing_back_is_seen() {
    let dir = model();
    let weights = Weights::open(dir.path()).unwrap();
    weights.fingerprint().unwrap();
    let modified = fs::metadata(file(&dir)).unwrap().modified().unwrap();
    edit(&file(&dir), EMBEDDING);
    writable(&file(&dir)).set_modified(modified).unwrap();
    assert_refused(&weights, EMBEDDING, &file(&dir));
}

/// What was loaded is a copy: whoever edits or cuts the file under a forward pass changes nothing of it and ends nothing.
#[test]
fn an_edit_during_a_forward_pass_changes_nothing_that_was_loaded() {
    let dir = model();
    let llama = crate::gguf::test_model(TinyModel::llama());
    let gguf = crate::gguf::test_file(dir.path(), &llama, GgmlDType::Q8_0);
    let ids = Tensor::new(&[[1u32, 2, 3, 4, 5, 6, 7, 8]], &Device::Cpu).unwrap();
    for (path, base) in [
        (file(&dir), Base::AsStored),
        (file(&dir), Base::QuantizeNf4),
        (gguf, Base::AsStored),
    ] {
        let directory = path.parent().filter(|_| path == file(&dir));
        let weights = Weights::open(directory.unwrap_or(&path)).unwrap();
        weights.fingerprint().unwrap();
        let options = LoadOptions {
            base,
            ..LoadOptions::reference()
        };
        let config = weights.model_config().unwrap();
        let decoder = Decoder::load(&config, &weights, &options).unwrap();
        let forward = || {
            let hidden = decoder.hidden_states(&ids).unwrap();
            let hidden = hidden.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            hidden.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let (before, bytes) = (forward(), fs::read(&path).unwrap());
        let edited: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = writable(&path);
                while !done.load(Ordering::Relaxed) {
                    file.write_all_at(&edited, 0).unwrap();
                    file.set_len(100).unwrap();
                }
                file.write_all_at(&bytes, 0).unwrap();
            });
            let passes: Vec<_> = (0..20).map(|_| forward()).collect();
            done.store(true, Ordering::Relaxed);
            assert!(passes.iter().all(|pass| *pass == before), "{path:?}");
        });
    }
}

#[test]
fn a_file_cut_short_is_an_error_and_not_a_signal() {
    for (left, fingerprinted) in [(0, true), (9, true), (4096, true), (4096, false)] {
        let dir = model();
        let weights = Weights::open(dir.path()).unwrap();
        if fingerprinted {
            weights.fingerprint().unwrap();
        }
        let length = fs::metadata(file(&dir)).unwrap().len();
        std::thread::sleep(std::time::Duration::from_millis(25));
        writable(&file(&dir)).set_len(left).unwrap();
        for name in weights.names().map(str::to_owned).collect::<Vec<_>>() {
            if left < start_of(&weights, &name) {
                assert_refused(&weights, &name, &file(&dir));
            }
        }
        // A hole in place of what was cut off has the old length.
        writable(&file(&dir)).set_len(length).unwrap();
        assert_refused(&weights, EMBEDDING, &file(&dir));
    }
}

fn start_of(weights: &Weights, name: &str) -> u64 {
    weights.find(name).unwrap().1.bytes.start
}

#[test]
fn links_rights_and_a_copy_over_itself_are_no_change() {
    let dir = model();
    let weights = Weights::open(dir.path()).unwrap();
    let fingerprint = weights.fingerprint().unwrap();
    fs::hard_link(file(&dir), dir.path().join("link")).unwrap();
    fs::set_permissions(file(&dir), fs::Permissions::from_mode(0o600)).unwrap();
    let bytes = fs::read(file(&dir)).unwrap();
    fs::write(file(&dir), bytes).unwrap();
    weights.tensor(EMBEDDING, DType::F32, &Device::Cpu).unwrap();
    weights.raw(NORM).unwrap();
    assert_eq!(weights.fingerprint().unwrap(), fingerprint);
}

#[test]
fn a_file_replaced_or_removed_under_its_name_stays_what_was_opened() {
    let dir = model();
    let weights = Weights::open(dir.path()).unwrap();
    let fingerprint = weights.fingerprint().unwrap();
    let before = weights.raw(EMBEDDING).unwrap().2;
    let other = tempfile::tempdir().unwrap();
    write_tiny_model(other.path(), &TinyModel::qwen2(), 4).unwrap();
    fs::copy(file(&other), dir.path().join("new")).unwrap();
    fs::rename(dir.path().join("new"), file(&dir)).unwrap();
    assert_eq!(weights.raw(EMBEDDING).unwrap().2, before);
    fs::remove_file(file(&dir)).unwrap();
    assert_eq!(weights.fingerprint().unwrap(), fingerprint);
}

#[test]
fn an_edit_at_the_moment_of_opening_is_seen_though_the_times_are_the_same() {
    let dir = model();
    let path = file(&dir);
    let start = start(&path, EMBEDDING);
    let handle = writable(&path);
    let mut byte = [0];
    handle.read_exact_at(&mut byte, start).unwrap();
    handle.write_all_at(&byte, start).unwrap();
    let weights = Weights::open(dir.path()).unwrap();
    weights.fingerprint().unwrap();
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    handle.write_all_at(&[byte[0] ^ 1], start).unwrap();
    handle.set_modified(modified).unwrap();
    assert_refused(&weights, EMBEDDING, &path);
}

#[test]
fn a_directory_removed_before_anything_was_fingerprinted_is_read_on() {
    let dir = model();
    let weights = Weights::open(dir.path()).unwrap();
    drop(dir);
    weights.tensor(EMBEDDING, DType::F32, &Device::Cpu).unwrap();
    weights.fingerprint().unwrap();
}

#[test]
fn a_shard_of_several_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |name: &str, tensor: &str| {
        let values = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let tensors = std::collections::HashMap::from([(tensor, values)]);
        candle_core::safetensors::save(&tensors, dir.path().join(name)).unwrap();
    };
    shard("one.safetensors", "a");
    shard("two.safetensors", "b");
    let index = serde_json::json!({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}});
    let index_path = dir.path().join("model.safetensors.index.json");
    fs::write(index_path, index.to_string()).unwrap();
    let weights = Weights::open(dir.path()).unwrap();
    weights.fingerprint().unwrap();
    let two = dir.path().join("two.safetensors");
    edit(&two, "b");
    assert_refused(&weights, "b", &two);
    weights.raw("a").unwrap();
}

#[test]
fn config_json_is_that_of_the_moment_of_opening() {
    let dir = model();
    let weights = Weights::open(dir.path()).unwrap();
    let (fingerprint, shape) = (
        weights.fingerprint().unwrap(),
        weights.model_config().unwrap(),
    );
    let path = dir.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replace("\"rope_theta\":", "\"rope_theta\": 5, \"x\":"),
    )
    .unwrap();
    assert_eq!(weights.model_config().unwrap(), shape);
    assert_eq!(weights.fingerprint().unwrap(), fingerprint);
    assert_ne!(
        Weights::open(dir.path()).unwrap().fingerprint().unwrap(),
        fingerprint
    );
}

#[test]
fn a_gguf_file_edited_or_cut_is_refused_too() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = crate::gguf::test_model(TinyModel::llama());
    let path = crate::gguf::test_file(dir.path(), &tiny, GgmlDType::Q8_0);
    let weights = Weights::open(&path).unwrap();
    weights.fingerprint().unwrap();
    // Llama's q is read whole and put in order, the embedding by the strip.
    for name in [EMBEDDING, "model.layers.0.self_attn.q_proj.weight"] {
        let start = weights.gguf().unwrap().extent(name).unwrap().start;
        let flip = || {
            let mut byte = [0];
            let file = writable(&path);
            file.read_exact_at(&mut byte, start).unwrap();
            file.write_all_at(&[byte[0] ^ 1], start).unwrap();
        };
        let read = || weights.packed(name, &Device::Cpu).map(drop);
        flip();
        let tensor = weights.tensor(name, DType::F32, &Device::Cpu).map(drop);
        for result in [read(), tensor] {
            assert!(matches!(result, Err(Error::Changed { .. })), "{result:?}");
        }
        flip();
        read().unwrap();
    }
    writable(&path).set_len(start_of_data(&weights)).unwrap();
    let result = weights.packed(EMBEDDING, &Device::Cpu).map(drop);
    assert!(matches!(result, Err(Error::Changed { .. })), "{result:?}");
}

fn start_of_data(weights: &Weights) -> u64 {
    let gguf = weights.gguf().unwrap();
    gguf.names()
        .map(|name| gguf.extent(name).unwrap().start)
        .min()
        .unwrap()
}
