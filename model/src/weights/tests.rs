//! Provides the tests of weight reading: conversions, shards, hostile files and the fingerprint.

use super::*;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use serde_json::json;
use tempfile::TempDir;

/// A directory with the given files.
fn directory(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// A safetensors file of f32 vectors.
fn vectors(tensors: &[(&str, &[f32])]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, values)| {
        let bytes = bytemuck::cast_slice(values);
        let view = TensorView::new(Dtype::F32, vec![values.len()], bytes).unwrap();
        (*name, view)
    });
    safetensors::serialize(views, None).unwrap()
}

/// A file with this header text and `data` zero bytes.
fn raw_file(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

fn open_bytes(bytes: Vec<u8>) -> Result<Weights> {
    Weights::open(directory(&[("model.safetensors", bytes)]).path())
}

fn message(result: Result<Weights>) -> String {
    result.expect_err("must be refused").to_string()
}

fn read(weights: &Weights, name: &str, dtype: DType) -> Vec<f32> {
    let tensor = weights.tensor(name, dtype, &Device::Cpu).unwrap();
    assert_eq!(tensor.dtype(), dtype);
    let tensor = tensor.to_dtype(DType::F32).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_float_type_converts_to_every_other_as_half_does() {
    let values = [0.0f32, -1.5, 2.718_9, 65504.0, 1e-6, 1e30];
    let narrow16: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
    let brain16: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
    let wide: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
    let view = |dtype, bytes| TensorView::new(dtype, vec![2, 3], bytes).unwrap();
    let file = safetensors::serialize(
        [
            ("f32", view(Dtype::F32, bytemuck::cast_slice(&values))),
            ("f16", view(Dtype::F16, bytemuck::cast_slice(&narrow16))),
            ("bf16", view(Dtype::BF16, bytemuck::cast_slice(&brain16))),
            ("f64", view(Dtype::F64, bytemuck::cast_slice(&wide))),
        ],
        None,
    );
    let weights = open_bytes(file.unwrap()).unwrap();
    assert_eq!(
        weights.names().collect::<Vec<_>>(),
        ["bf16", "f16", "f32", "f64"]
    );
    assert_eq!(weights.shape("bf16").unwrap(), [2, 3]);
    for (name, stored) in [
        ("f32", values.to_vec()),
        ("f64", values.to_vec()),
        ("f16", narrow16.iter().map(|v| v.to_f32()).collect()),
        ("bf16", brain16.iter().map(|v| v.to_f32()).collect()),
    ] {
        let as_f16: Vec<f32> = stored.iter().map(|v| f16::from_f32(*v).to_f32()).collect();
        let as_bf16: Vec<f32> = stored.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
        assert_eq!(read(&weights, name, DType::F32), stored, "{name}");
        assert_eq!(read(&weights, name, DType::F64), stored, "{name}");
        assert_eq!(read(&weights, name, DType::F16), as_f16, "{name}");
        assert_eq!(read(&weights, name, DType::BF16), as_bf16, "{name}");
    }
    let error = weights.tensor("f32", DType::U8, &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("`f32`"), "{error}");
}

#[test]
fn a_large_tensor_converts_as_its_parts() {
    // Longer than two conversion tasks, and no multiple of one.
    let values: Vec<f32> = (0..(1 << 17) + 3).map(|i| i as f32).collect();
    let weights = open_bytes(vectors(&[("w", &values)])).unwrap();
    assert_eq!(read(&weights, "w", DType::F32), values);
}

#[test]
fn tensors_at_odd_offsets_are_read() {
    let header = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    for padding in 0..8 {
        let mut file = raw_file(&format!("{header}{}", " ".repeat(padding)), 0);
        file.extend(2.5f32.to_le_bytes());
        let weights = open_bytes(file).unwrap();
        assert_eq!(read(&weights, "w", DType::F32), [2.5]);
    }
}

#[test]
fn a_file_truncated_at_any_byte_is_refused() {
    let whole = vectors(&[("a", &[1.0, 2.0]), ("b.weight", &[3.0])]);
    assert!(open_bytes(whole.clone()).is_ok());
    for length in 0..whole.len() {
        let error = message(open_bytes(whole[..length].to_vec()));
        assert!(error.contains("model.safetensors"), "{length}: {error}");
    }
}

#[test]
fn a_header_with_any_byte_changed_never_panics() {
    let whole = vectors(&[("a", &[1.0, 2.0]), ("b.weight", &[3.0])]);
    let header_end = whole.len() - 12;
    for position in 0..header_end {
        for value in [0, b'"', b'9', b'-', b'{', 0xff] {
            let mut file = whole.clone();
            file[position] = value;
            if let Ok(weights) = open_bytes(file) {
                for name in weights.names() {
                    weights.raw(name).unwrap();
                }
            }
        }
    }
}

#[test]
fn inconsistent_headers_are_refused_with_file_and_tensor() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let max = u64::MAX;
    for (header, data, expected) in [
        (entry("F32", "[2]", "[0,4]"), 8, "takes 8 bytes"),
        (entry("F32", "[2]", "[8,0]"), 8, "backwards"),
        (entry("F32", "[2]", "[0,8]"), 4, "outside the file"),
        (entry("F32", "[2]", "[4,12]"), 12, "gap"),
        (entry("F32", "[2]", "[0,8]"), 9, "follow the last tensor"),
        (
            entry("F32", &format!("[{max},{max}]"), "[0,8]"),
            8,
            "overflows",
        ),
        (entry("F32", &format!("[{max}]"), "[0,8]"), 8, "overflows"),
        (
            entry("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"),
            4,
            "dimensions",
        ),
        (entry("F32", "[-1]", "[0,4]"), 4, "tensor `w`"),
        (entry("F99", "[1]", "[0,4]"), 4, "tensor `w`"),
        (entry("F32", "[1]", "[0]"), 4, "tensor `w`"),
        (
            entry("F32", "[1]", &format!("[{max},{max}]")),
            4,
            "takes 4 bytes",
        ),
        (entry("F4", "[1]", "[0,1]"), 1, "takes 1 bytes"),
        ("[]".into(), 0, "header"),
        (r#"{"w":{}}"#.into(), 0, "tensor `w`"),
    ] {
        let error = message(open_bytes(raw_file(&header, data)));
        assert!(error.contains(expected), "{header}: {error}");
        assert!(error.contains("model.safetensors"), "{header}: {error}");
    }
    let one = r#""dtype":"F32","shape":[2],"data_offsets""#;
    let overlap = format!(r#"{{"a":{{{one}:[0,8]}},"b":{{{one}:[4,12]}}}}"#);
    assert!(message(open_bytes(raw_file(&overlap, 12))).contains("`b`: overlaps"));
    let twice = format!(r#"{{"a":{{{one}:[0,8]}},"a":{{{one}:[0,8]}}}}"#);
    assert!(message(open_bytes(raw_file(&twice, 8))).contains("twice"));
}

#[test]
fn a_header_that_claims_to_be_huge_is_refused_before_it_is_read() {
    for claimed in [HEADER_BYTES_MAX as u64 + 1, u64::MAX, 1 << 63] {
        let mut file = claimed.to_le_bytes().to_vec();
        file.extend(b"{}");
        assert!(message(open_bytes(file)).contains("limit"));
    }
}

/// A directory with two shards, `a` in one and `b` in two, under the given index.
fn sharded(weight_map: serde_json::Value) -> TempDir {
    let index = json!({"metadata": {"total_size": 8}, "weight_map": weight_map});
    directory(&[
        ("one.safetensors", vectors(&[("a", &[1.0]), ("x", &[9.0])])),
        ("two.safetensors", vectors(&[("b", &[2.0]), ("x", &[8.0])])),
        ("model.safetensors.index.json", index.to_string().into()),
    ])
}

#[test]
fn shards_give_the_tensors_that_the_index_names() {
    let dir =
        sharded(json!({"a": "one.safetensors", "b": "two.safetensors", "x": "two.safetensors"}));
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "x"]);
    assert_eq!(read(&weights, "b", DType::F32), [2.0]);
    assert_eq!(read(&weights, "x", DType::F32), [8.0]);
    let missing = weights.raw("c").unwrap_err().to_string();
    assert!(missing.contains("`c`"), "{missing}");
}

#[test]
fn a_weight_map_that_leaves_the_directory_is_refused() {
    for file in [
        "../one.safetensors",
        "/etc/passwd",
        "sub/one.safetensors",
        "..",
        ".",
        "",
        "a\\b",
        "one\0.safetensors",
        "C:\\one.safetensors",
    ] {
        let dir = sharded(json!({ "a": file }));
        let error = message(Weights::open(dir.path()));
        assert!(error.contains("no plain file name"), "{file:?}: {error}");
        assert!(error.contains("index.json"), "{file:?}: {error}");
    }
}

#[test]
fn unusable_indexes_are_refused() {
    let promised = sharded(json!({"zzz": "one.safetensors"}));
    assert!(message(Weights::open(promised.path())).contains("`zzz`"));
    let absent = sharded(json!({"a": "three.safetensors"}));
    assert!(message(Weights::open(absent.path())).contains("three.safetensors"));
    let empty = sharded(json!({}));
    assert!(message(Weights::open(empty.path())).contains("weight_map"));
    let wrong = sharded(json!({"a": 1}));
    assert!(message(Weights::open(wrong.path())).contains("weight_map"));
    let many: serde_json::Map<_, _> = (0..SHARDS_MAX + 1)
        .map(|i| (format!("t{i}"), json!(format!("f{i}"))))
        .collect();
    let many = sharded(json!(many));
    assert!(message(Weights::open(many.path())).contains("1025 files"));
    let nothing = directory(&[("pytorch_model.bin", vec![0])]);
    assert!(message(Weights::open(nothing.path())).contains("safetensors"));
    assert!(message(Weights::open(&nothing.path().join("no"))).contains("no"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert!(message(Weights::open(folder.path())).contains("regular"));
}

fn fingerprint(config: serde_json::Value, files: &[(&str, Vec<u8>)]) -> [u8; 32] {
    let config = ("config.json", config.to_string().into_bytes());
    let dir = directory(&[files, &[config]].concat());
    Weights::open(dir.path()).unwrap().fingerprint().unwrap()
}

#[test]
fn the_fingerprint_depends_on_meaning_only() {
    let file = || {
        vec![(
            "model.safetensors",
            vectors(&[("a", &[1.0, 2.0]), ("b", &[3.0])]),
        )]
    };
    let config = json!({"rope_theta": 10000, "n": {"x": 1, "y": 0.5}, "dtype": "bfloat16"});
    let reference = fingerprint(config.clone(), &file());

    // Key order, spelling of numbers, volatile keys, and how tensors are spread over files.
    let respelled = json!({"_name_or_path": "elsewhere", "transformers_version": "9", "torch_dtype": "float32",
        "n": {"y": 0.5, "x": 1.0}, "rope_theta": 10000.0});
    assert_eq!(fingerprint(respelled, &file()), reference);
    let index = json!({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}});
    let shards = [
        ("1.safetensors", vectors(&[("a", &[1.0, 2.0])])),
        ("2.safetensors", vectors(&[("b", &[3.0])])),
        (
            "model.safetensors.index.json",
            index.to_string().into_bytes(),
        ),
    ];
    assert_eq!(fingerprint(config.clone(), &shards), reference);

    // Config, name, value, shape.
    let other = |config: &serde_json::Value, tensors: &[(&str, &[f32])]| {
        fingerprint(config.clone(), &[("model.safetensors", vectors(tensors))])
    };
    let mut changed = config.clone();
    changed["n"]["x"] = json!(2);
    assert_ne!(
        other(&changed, &[("a", &[1.0, 2.0]), ("b", &[3.0])]),
        reference
    );
    assert_ne!(
        other(&config, &[("a", &[1.0, 2.0]), ("c", &[3.0])]),
        reference
    );
    assert_ne!(
        other(&config, &[("a", &[1.0, 2.0]), ("b", &[-3.0])]),
        reference
    );
    assert_ne!(
        other(&config, &[("a", &[1.0]), ("b", &[2.0, 3.0])]),
        reference
    );
}

#[test]
fn a_broken_config_fails_the_fingerprint_with_its_name() {
    let dir = directory(&[
        ("model.safetensors", vectors(&[("a", &[1.0])])),
        ("config.json", b"{".to_vec()),
    ]);
    let weights = Weights::open(dir.path()).unwrap();
    let error = weights.fingerprint().unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}
