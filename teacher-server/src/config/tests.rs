use std::io::Write;

use candle_core::Device;
use clap::Parser;
use distill_model::{ComputeDtype, DeviceChoice};
use distill_program::settings::Is;
use distill_proto::{StateCoding, ValueCoding};

use super::*;
use crate::{
    cli::{Args, Command},
    testing::serve,
};

fn file(content: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file = file(
        "model = 'm'\ncorpus = ['a.txt']\ntop_k = 8\nseq_len = 100\ntemperatures = [1, 2]\nstate = 'exact:i8'\n",
    );
    let path = file.path().to_str().unwrap();
    let config = serve(&["--config", path, "--top-k", "16", "--value-coding", "f16"]).unwrap();
    assert_eq!((config.top_k, config.seq_len, config.queue), (16, 100, 32));
    assert_eq!(config.temperatures, [1.0, 2.0]);
    assert_eq!(config.state, StateSetting::Exact(StateCoding::I8));
    assert_eq!(config.value_coding.0, ValueCoding::F16);
}

#[test]
fn the_printed_configuration_reads_back_to_itself() {
    let flags = [
        "--model",
        "m",
        "--corpus",
        "a",
        "b",
        "--temperatures",
        "1,0.5",
        "--bind",
        "unix:/x",
        "--estimator",
        "head+sampled",
        "--sample-seed",
        "9223372036854775807",
        "--state",
        "sketch:64",
        "--vram-mode",
        "swap",
        "--window",
        "7",
        "--strict",
        "--json",
    ];
    let printed = serve(&flags).unwrap().to_toml().unwrap();
    let file = file(&printed);
    let again = serve(&["--config", file.path().to_str().unwrap()]).unwrap();
    assert_eq!(again.to_toml().unwrap(), printed);
    assert_eq!(again.corpus.len(), 2);
    assert!(again.json && again.strict);
    assert_eq!((again.vram_mode, again.window), (VramMode::Swap, 7));
}

#[test]
fn draws_beside_a_head_need_room_and_their_temperature() {
    let base = ["--model", "m", "--corpus", "a", "--estimator"];
    let with = |more: &[&str]| serve(&[&base[..], more].concat());
    let config = with(&["head+sampled", "--top-k", "16", "--draws", "8"]).unwrap();
    assert_eq!(config.estimator.0, Estimator::HeadSampled);
    assert_eq!((config.top_k, config.draws, config.sample_seed), (16, 8, 0));
    let plain = |more: &[&str]| serve(&[&base[..4], more].concat()).unwrap();
    let default = plain(&[]);
    assert_eq!(default.estimator.0, Estimator::HeadSampled);
    assert_eq!((default.top_k, default.draws), (8, 16));
    assert_eq!(plain(&["--top-k", "5"]).estimator.0, Estimator::TopK);
    assert_eq!(plain(&["--temperatures", "2"]).top_k, 64);
    let error = with(&["head+sampled", "--draws", "1048576"]).unwrap_err();
    assert!(error.to_string().starts_with("--draws"), "{error}");
    let error = with(&["head+sampled", "--temperatures", "2"]).unwrap_err();
    assert!(error.to_string().starts_with("--temperatures"), "{error}");
    assert!(with(&["sampled", "--temperatures", "2", "--draws", "1048576"]).is_ok());
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    let file = file("topk = 3\n");
    let error = serve(&["--config", file.path().to_str().unwrap()]).unwrap_err();
    assert!(
        error.to_string().contains("`topk`") && error.to_string().contains("`top_k`"),
        "{error}"
    );
}

#[test]
fn a_reachable_address_needs_token_and_tls() {
    let base = ["--model", "m", "--corpus", "a", "--bind"];
    let with =
        |bind: &'static str, more: &[&'static str]| serve(&[&base, &[bind][..], more].concat());
    for open in [
        "0.0.0.0:1",
        "[::]:1",
        "192.0.2.7:50051",
        "[::ffff:192.0.2.7]:1",
    ] {
        assert!(with(open, &[]).is_err(), "{open}");
        assert!(with(open, &["--token-file", "t"]).is_err());
        assert!(with(open, &["--tls-cert", "c", "--tls-key", "k"]).is_err());
        assert!(
            with(
                open,
                &["--token-file", "t", "--tls-cert", "c", "--tls-key", "k"]
            )
            .is_ok()
        );
    }
    for local in [
        "127.0.0.1:0",
        "localhost:0",
        "[::1]:0",
        "unix:/tmp/x",
        "unix:///tmp/x",
    ] {
        assert!(with(local, &[]).is_ok(), "{local}");
    }
    assert!(with("127.0.0.1:0", &["--tls-cert", "c"]).is_err());
    assert!(with("nonsense", &[]).is_err());
}

#[test]
fn the_arithmetic_follows_the_device_unless_it_is_named() {
    let base = ["--model", "m", "--corpus", "a"];
    let with = |more: &[&str]| serve(&[&base[..], more].concat()).unwrap();
    let config = with(&[]);
    assert_eq!(config.device, DeviceChoice::Auto);
    assert_eq!(config.on(&Device::Cpu).dtype, ComputeDtype::F32);
    let config = with(&["--device", "cuda:1", "--dtype", "bf16"]);
    assert_eq!(config.device, DeviceChoice::Cuda(1));
    assert_eq!(config.on(&Device::Cpu).dtype, ComputeDtype::Bf16);
    let flags = ["teacher-server", "serve", "--device", "gpu"];
    let refused = Args::try_parse_from(flags).unwrap_err().to_string();
    assert!(refused.contains("cuda:N"), "{refused}");
}

#[test]
fn senseless_numbers_are_refused_by_name() {
    let base = ["--model", "m", "--corpus", "a"];
    for (flag, value) in [
        ("--seq-len", "1"),
        ("--batch-size", "0"),
        ("--top-k", "0"),
        ("--queue", "0"),
        ("--chunk-rows", "0"),
        ("--threads", "0"),
        ("--window", "0"),
        ("--yield-timeout-s", "0"),
        ("--yield-timeout-s", "18446744073709551615"),
        ("--temperatures", "1,1"),
        ("--temperatures", "0"),
        ("--temperatures", "NaN"),
        ("--draws", "0"),
        ("--draws", "1048577"),
        ("--sample-seed", "9223372036854775808"),
    ] {
        let error = serve(&[&base[..], &[flag, value]].concat())
            .unwrap_err()
            .to_string();
        let named =
            error.starts_with(&format!("{flag}: ")) || error.contains(&format!("'{flag} <"));
        assert!(named, "{error}");
    }
    assert!(
        serve(&["--model", "m"])
            .unwrap_err()
            .to_string()
            .starts_with("--corpus")
    );
}

#[test]
fn file_and_flags_win_over_a_preset_and_the_print_shows_what_came_of_it() {
    let file = file("preset = 'reference-24gb'\nmodel = 'm'\ncorpus = ['a']\ndraws = 32\n");
    let path = file.path().to_str().unwrap();
    let config = serve(&["--config", path, "--top-k", "4"]).unwrap();
    assert_eq!((config.top_k, config.draws, config.seq_len), (4, 32, 512));
    assert_eq!(config.dtype, ComputeDtype::Bf16);
    let printed = config.to_toml().unwrap();
    assert!(printed.contains("dtype = \"bf16\"") && !printed.contains("preset"));
    let error = serve(&["--preset", "reference"]).unwrap_err().to_string();
    assert!(error.contains("`reference-24gb`"), "{error}");
}

fn idle(args: &str) -> Vec<String> {
    let args = ["teacher-server"].into_iter().chain(args.split(' '));
    let resolved = match Args::try_parse_from(args).unwrap().command {
        Command::Serve(args) => args.resolve("serve"),
        Command::Precompute(args) => args.serve.resolve("precompute"),
        other => panic!("{other:?}"),
    };
    resolved.unwrap().idle
}

#[test]
fn a_setting_without_effect_says_what_is_missing() {
    const MODEL: &str = "serve --model m --corpus c";
    for (args, expected) in [
        (
            "--estimator top-k --draws 8",
            "draws has no effect: it needs --estimator sampled or --estimator head+sampled",
        ),
        (
            "--estimator top-k --sample-seed 8",
            "sample_seed has no effect",
        ),
        (
            "--estimator sampled --top-k 8",
            "top_k has no effect: it needs --estimator top-k",
        ),
        (
            "--window 8",
            "window has no effect: it needs --vram-mode swap",
        ),
        ("--shard-bytes 800", "it needs --cache"),
        (
            "--cache d --spool-dir s",
            "spool_dir has no effect: it needs no --cache",
        ),
    ] {
        let idle = idle(&format!("{MODEL} {args}"));
        assert!(
            idle.len() == 1 && idle[0].contains(expected),
            "{args}: {idle:?}"
        );
    }
    for args in [
        "",
        " --draws 8",
        " --vram-mode swap --window 8",
        " --spool-dir s",
    ] {
        assert_eq!(idle(&format!("{MODEL}{args}")), [""; 0], "{args}");
    }
    // What a served cache was captured with is in it.
    for args in ["--strict", "--chat-template-kwargs {\"a\":1}"] {
        let idle = idle(&format!("serve --cache d {args}"));
        assert!(
            idle.len() == 1 && idle[0].contains("it needs --model"),
            "{args}: {idle:?}"
        );
    }
    let idle = idle("precompute --model m --corpus c --out d --spool-dir s --bind unix:x");
    assert!(idle.iter().all(|line| line.contains("the command serve")));
    assert_eq!(idle.len(), 2);
}

#[test]
fn what_print_config_writes_has_no_idle_setting() {
    let args = ["--model", "m", "--corpus", "a"];
    let printed = serve(&args).unwrap().to_toml().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), printed).unwrap();
    let serve = format!("serve --config {}", file.path().display());
    assert_eq!(idle(&serve), [""; 0]);
    std::fs::write(file.path(), "model = 'm'\ncorpus = ['a']\nwindow = 8").unwrap();
    assert_eq!(idle(&serve).len(), 1);
}

#[test]
fn keys_of_other_programs_are_answered_with_ours() {
    for (line, ours) in [
        ("max_model_len = 512", "here use `seq_len`"),
        ("learning_rate = 1", "in student-trainer use `lr`"),
        ("topk = 3", "the nearest setting is `top_k`"),
        ("config = 'x'", "there is no setting `config`"),
    ] {
        let file = file(line);
        let error = serve(&["--config", file.path().to_str().unwrap()]).unwrap_err();
        assert!(error.to_string().contains(ours), "{error}");
    }
}

#[test]
fn a_wrong_value_in_a_file_names_file_and_key() {
    for (line, expected) in [
        ("state = 'exact:4'", "state: `exact:4` is none of"),
        ("estimator = 'x'", "estimator: `x` is none of"),
        ("bind = 'nonsense'", "bind: `nonsense` is neither HOST:PORT"),
        ("seq_len = 'x'", "seq_len: "),
        ("temperatures = 1", "temperatures: "),
    ] {
        let file = file(line);
        let path = file.path().to_str().unwrap();
        let error = serve(&["--config", path]).unwrap_err().to_string();
        assert!(
            error.starts_with(path) && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn every_need_is_one_of_a_setting_with_a_value_that_it_can_have() {
    let keys = Config::keys();
    for key in &keys {
        for (path, is) in key.needs.iter().copied().flatten() {
            let Some(other) = keys.iter().find(|other| other.path == *path) else {
                assert!(matches!(is, Is::Command("serve")), "{}: {path}", key.path);
                continue;
            };
            if let Is::One(words) = is {
                for word in *words {
                    (other.check)((*word).into()).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_dry_run_without_a_place_is_refused_as_the_work_is() {
    let args = "teacher-server precompute --dry-run --model m --corpus c".split(' ');
    let Command::Precompute(args) = Args::try_parse_from(args).unwrap().command else {
        panic!("not precompute");
    };
    let error = args.serve.resolve("precompute").err().unwrap().to_string();
    assert!(error.starts_with("--out: "), "{error}");
}
