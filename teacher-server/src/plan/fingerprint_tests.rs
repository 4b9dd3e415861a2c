use std::collections::BTreeSet;

use candle_core::Device;
use distill_proto::Fingerprint;

use super::*;
use crate::testing::serve;

fn identity() -> Identity {
    Identity {
        model: Fingerprint::of(b"model"),
        tokenizer: Fingerprint::of(b"tokenizer"),
        vocabulary: Fingerprint::of(b"vocabulary"),
        vocab_size: 1000,
        backend: "cpu".to_owned(),
    }
}

fn plan_of(flags: &str) -> String {
    let flags = format!("--model m --corpus c {flags}");
    let config = serve(&flags.split_whitespace().collect::<Vec<_>>()).unwrap();
    let sketch = flags.contains("sketch").then(|| Fingerprint::of(b"sketch"));
    let found = fingerprint(&config.on(&Device::Cpu), &identity(), sketch);
    found.unwrap().to_hex()
}

/// Fingerprints of caches that people have. One that changes here makes every such cache another one's, which is then
/// computed anew: for hours.
#[test]
fn captures_of_earlier_builds_are_still_theirs() {
    for (flags, expected) in [
        (
            "",
            "e9f3a5ff0965e800f76d0a847e2b2f198939211caf254ccdcc172e757ff78b81",
        ),
        (
            "--preset reference-24gb",
            "9655e54e88b460b63c11ecbf9fcf8f21c068fb28ebdfc9ec8f2a2f062028fa0d",
        ),
        (
            "--cache /nowhere/cache",
            "e9f3a5ff0965e800f76d0a847e2b2f198939211caf254ccdcc172e757ff78b81",
        ),
        (
            "--estimator top-k",
            "98898bfbedcf1651353865740119f435dd6fff06eefba65df5c61e5b37359d9f",
        ),
        (
            "--top-k 5",
            "b475b16430c1b2dae5e213da910baf8989e10ebc17fb93287309a9e16450f087",
        ),
        (
            "--top-k 5 --draws 9 --sample-seed 3",
            "b475b16430c1b2dae5e213da910baf8989e10ebc17fb93287309a9e16450f087",
        ),
        (
            "--temperatures 2",
            "daa93f96f5453a9ed6c07e69b5a90d74d100f0c93fb352fae3f4214b8f2c6ea1",
        ),
        (
            "--estimator sampled",
            "de6f7fb2b12802406f088ab90516339698a19925622ff5426e3219ea9dcb22dd",
        ),
        (
            "--estimator sampled --top-k 5",
            "de6f7fb2b12802406f088ab90516339698a19925622ff5426e3219ea9dcb22dd",
        ),
        (
            "--estimator sampled --draws 9 --sample-seed 3",
            "964bd0af3f519d8bca7385b37b414d5987957abe52602cf5d6911f3a02f40d30",
        ),
        (
            "--estimator head+sampled --top-k 16 --draws 8",
            "96718faaf3577b0f5ff1bbd33f259a2253680731e7456d6430a290d7d1ebc35f",
        ),
        (
            "--sample-seed 9223372036854775807",
            "c8fdb0758a91b1890c694cef0b9fa6aca1ad42cfed9eb815cdf4a78f77915934",
        ),
        (
            "--seq-len 1024",
            "444f891743560397c476f6687b3d1a67a2d9064cadea393b2812958a910fe622",
        ),
        (
            "--batch-size 4",
            "bee128c86436851532556a334c130321b3afd3cde2a15cc992ad92d43317fbb8",
        ),
        (
            "--chunk-rows 64",
            "9b6c5afed530e5859c85950f69b263570a26ce57baab59ab44ec6fdf14ad85ed",
        ),
        (
            "--temperatures 1,0.5,3",
            "02dc9bfdb3a220340925d4d888810b1347f5c22e9ddc1b4b918f6bc83b761c65",
        ),
        (
            "--value-coding f16",
            "0b13f0ad3f07929669a41df5f207569e96b5b2138b61169dfb70fbbc6bb7ec0b",
        ),
        (
            "--value-coding step:0.125",
            "b31473fff9817e15ca5ae56c74871b8f8e38ee10583e004b7a2455646ea35dcd",
        ),
        (
            "--value-coding graded:0.0625",
            "11235156cfa3581096e90fe45d6c286431d20a8a41642ee47ad81e94ea7809c7",
        ),
        (
            "--state exact",
            "67950e08a63922192e39109a0d0236540d02682ab41afd699e3c29402dbb9191",
        ),
        (
            "--state exact:i8",
            "65e811695695ed3940d45f643929936e6d0cb6612036862661c381b0aeee9f6b",
        ),
        (
            "--state hidden:3",
            "c12b43d470465545a5666a2d77aa9b9c13a32da5d62ebcca3ee694605bb8ee1a",
        ),
        (
            "--state sketch:64",
            "9edafc411392a395f316c0dadee6f20fa439c8ddcd57f98d7d0cb6ecc0e1619d",
        ),
        (
            "--state sketch:64:f16",
            "f98e3b64b4f70fa6fce323bd68a75ed63ced597880324b79904d054ac856466a",
        ),
        (
            "--dtype bf16",
            "704e0bb88f1a6fe919e9769c20908b6ee7509e6a26a07f47cf1448ec48a9128e",
        ),
        (
            "--dtype f16",
            "b5326ae01f59331f964c5708dfdd15611c01b6390bc4145fc841b5354a754832",
        ),
    ] {
        let found = plan_of(flags);
        assert_eq!(found, expected, "{flags}");
    }
}

/// Another value that the setting may have: the next number, or the first word of many kinds that it takes.
fn other(key: &Key, value: Option<&Value>) -> Value {
    const WORDS: [&str; 12] = [
        "x",
        "top-k",
        "sampled",
        "f16",
        "exact:f16",
        "bf16",
        "cpu",
        "swap",
        "unix:/x",
        "cuda",
        "127.0.0.1:1",
        "{\"a\":1}",
    ];
    let words = WORDS.map(Value::from);
    let others = match value {
        Some(Value::Integer(number)) => vec![Value::from(number + 1)],
        Some(Value::Boolean(on)) => vec![Value::from(!on)],
        Some(Value::Array(_)) => vec![Value::from(vec![3.0]), Value::from(vec!["x"])],
        _ => [&[Value::from(7)], &words[..]].concat(),
    };
    let mut others = others.into_iter().filter(|other| Some(other) != value);
    let other = others.find(|other| (key.check)(other.clone()).is_ok());
    other.unwrap_or_else(|| panic!("{}: which other value than {value:?}?", key.path))
}

/// What is forgotten in a list kept by hand serves a stale cache without a word.
#[test]
fn every_setting_that_changes_bytes_makes_another_capture_and_is_named() {
    let mut walked = BTreeSet::new();
    for estimator in ["top-k", "sampled", "head+sampled"] {
        let flags = [
            "--model",
            "m",
            "--corpus",
            "c",
            "--cache",
            "/nowhere",
            "--estimator",
            estimator,
        ];
        let before = serve(&flags).unwrap().on(&Device::Cpu);
        let values = table(&before).unwrap();
        let plan = |config: &Config| fingerprint(config, &identity(), None).unwrap();
        let lines = |config: &Config| settings(config, &identity()).unwrap();
        for key in Config::keys() {
            let old = values.get(&key.path);
            let new = other(&key, old);
            let mut changed = values.clone();
            changed.insert(key.path.clone(), new.clone());
            let now: Config = changed.clone().try_into().unwrap();
            let named = differences(&lines(&before), &lines(&now), &[]);
            let what = format!(
                "{} under {estimator}: {old:?} -> {new}: {named:?}",
                key.path
            );
            assert_ne!(now, before, "{what}");
            if key.is_bound && key.idle("serve", &values).is_none() {
                assert_ne!(plan(&now), plan(&before), "{what}");
                let (old, path) = (old.unwrap(), &key.path);
                assert!(named.contains(&format!("{path}: {old} -> {new}")), "{what}");
                walked.insert(key.path);
            } else {
                assert_eq!(plan(&now), plan(&before), "{what}");
                assert!(named.is_empty(), "{what}");
            }
        }
    }
    let bound = Config::keys().into_iter().filter(|key| key.is_bound);
    assert_eq!(walked, bound.map(|key| key.path).collect());
}

#[test]
fn settings_of_a_cache_are_read_back_without_what_the_teacher_is() {
    let config = serve(&["--model", "m", "--corpus", "c", "--seq-len", "100"]).unwrap();
    let lines = settings(&config, &identity()).unwrap();
    let table = captured_settings(&lines).unwrap();
    assert_eq!(table.get("seq_len"), Some(&Value::from(100)));
    assert!(table.keys().all(|name| {
        Config::keys()
            .iter()
            .any(|key| key.path == *name && key.is_bound)
    }));
    assert!(lines.contains("backend = \"cpu\""));
}
