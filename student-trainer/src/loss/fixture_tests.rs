//! The dense losses against torch and POT in float64 (tests/fixtures/make_losses.py): values to 1e-5, gradients to 1e-4.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::testing::{relative, widened};
use super::{LossConfig, dense_loss};

#[derive(serde::Deserialize)]
struct Fixtures {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    data: String,
    top_k: Option<usize>,
    ce: f64,
    kl: f64,
    ot: f64,
    total: f64,
    config: LossConfig,
}

#[test]
fn values_and_gradients_match_torch_and_pot() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/losses");
    let text = std::fs::read_to_string(folder.join("losses.json")).unwrap();
    let fixtures: Fixtures = serde_json::from_str(&text).unwrap();
    let tensors = candle_core::safetensors::load(folder.join("losses.safetensors"), &Device::Cpu);
    let tensors = tensors.unwrap();
    assert!(fixtures.cases.len() >= 15);
    for case in &fixtures.cases {
        check(case, &tensors);
    }
}

fn check(case: &Case, tensors: &HashMap<String, Tensor>) {
    let name = &case.name;
    let of = |data: &str, what: &str| &tensors[&format!("{data}.{what}")];
    let labels: Vec<u32> = of(&case.data, "labels").to_vec1().unwrap();
    let (x, y) = (of(&case.data, "student"), of(&case.data, "teacher"));
    let loss = dense_loss(x, y, Some(&labels), case.top_k, &case.config).unwrap();
    assert!(loss.values.report.converged, "{name}: {:?}", loss.values);
    for (what, found, expected) in [
        ("ce", loss.values.ce, case.ce),
        ("kl", loss.values.kl, case.kl),
        ("ot", loss.values.ot, case.ot),
        ("total", loss.values.total, case.total),
    ] {
        // `entropic` may be close to 0 while its two parts are not.
        let scale = expected.abs().max(0.1);
        assert!(
            (found - expected).abs() <= 1e-5 * scale,
            "{name}: {what} {found} for {expected}"
        );
    }
    for (what, found) in [("grad_ot", &loss.grad_ot), ("grad_total", &loss.grad_total)] {
        let expected = widened(&of(name, what).to_dtype(DType::F32).unwrap());
        let distance = relative(&widened(found), &expected);
        assert!(distance <= 1e-4, "{name}: {what} off by {distance:e}");
    }
}
