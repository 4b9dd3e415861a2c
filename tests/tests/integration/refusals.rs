//! Runs both real programs on what cannot work: they must say so, with what and why, before any harm is done.

use std::{
    fs::{self, File},
    process::Command,
};

use anyhow::{Context, Result};
use candle_core::Device;
use distill_tests::fixtures;

use crate::{
    harness::{Listen, ending, teacher, teacher_refuses, text, trainer, trainer_refuses},
    pipeline::{Setup, another_vocabulary, path_text},
};

#[test]
fn what_cannot_work_is_refused_with_both_values_before_any_step() -> Result<()> {
    let mut setup = Setup::new()?;
    let teacher = setup.serve(
        &Listen::Loopback,
        &["--estimator", "top-k", "--temperatures", "1"],
    );
    let out = setup.work.path().join("refused");
    let refuse = |flags: &[&str]| trainer_refuses(&setup.train_args(&teacher, &out, flags));

    let similarity = refuse(&["--cost", "softmax-similarity", "--ot-weight", "1"]);
    assert!(similarity.contains("state"), "{similarity}");
    let temperature = refuse(&["--kl-temperature", "3"]);
    assert!(
        temperature.contains("kl_temperature 3") && temperature.contains("[1.0]"),
        "{temperature}"
    );
    let key = refuse(&["--config", "/nonexistent.toml"]);
    assert!(key.contains("/nonexistent.toml"), "{key}");

    setup.student = another_vocabulary()?;
    let flags = ["--cost", "softmax-similarity", "--ot-weight", "1"];
    let said = trainer_refuses(&setup.train_args(&teacher, &out, &flags));
    assert!(
        said.contains("another vocabulary") && said.contains("--cost kl"),
        "{said}"
    );
    Ok(())
}

#[test]
fn one_of_several_processes_is_refused_by_a_build_for_one_with_what_to_build() {
    for variables in [
        [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")],
        [("PMI_RANK", "0"), ("PMI_SIZE", "2")],
        [("PMIX_RANK", "0"), ("SLURM_NTASKS", "2")],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let flags = ["train", "--student", "s", "--out", path_text(&out)];
        let output = trainer(&flags).envs(variables).output().unwrap();
        let said = text(&output);
        assert!(!output.status.success(), "{said}");
        for part in [
            "one of 2 processes",
            variables[1].0,
            "--features student-trainer/mpi",
        ] {
            assert!(said.contains(part), "{said}");
        }
        assert!(!out.exists());
    }
}

#[test]
fn a_student_with_a_broken_weight_stops_before_the_update_and_leaves_a_dump() -> Result<()> {
    let setup = Setup::new()?;
    let file = setup.student.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu)?;
    let norm = tensors
        .get_mut("model.norm.weight")
        .context("the final norm")?;
    *norm = (norm.clone() * f64::NAN)?;
    candle_core::safetensors::save(&tensors, &file)?;
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let out = setup.work.path().join("run");
    let said = trainer_refuses(&setup.train_args(&teacher, &out, &[]));
    assert!(said.contains("failed-step-1"), "{said}");
    assert!(out.join("failed-step-1").is_dir() && !out.join("adapter").exists());
    Ok(())
}

#[test]
fn an_open_bind_without_token_and_tls_is_refused() -> Result<()> {
    let setup = Setup::new()?;
    let output = Command::new(env!("CARGO_BIN_EXE_teacher-server-under-test"))
        .args([
            "serve",
            "--bind",
            "0.0.0.0:0",
            "--model",
            path_text(setup.teacher.path()),
        ])
        .args(["--corpus", path_text(&setup.corpus)])
        .output()?;
    let said = text(&output);
    assert!(
        !output.status.success() && said.contains("--token-file"),
        "{said}"
    );
    Ok(())
}

/// Whoever opens a pipe without a writer waits for ever.
#[test]
fn a_pipe_in_place_of_a_certificate_a_key_or_another_file_is_refused_at_once() -> Result<()> {
    let setup = Setup::new()?;
    let place = setup.work.path();
    let (pipe, lines) = (place.join("pipe"), place.join("pipe.jsonl"));
    for path in [&pipe, &lines] {
        assert!(Command::new("mkfifo").arg(path).status()?.success());
    }
    let (pipe, lines) = (path_text(&pipe), path_text(&lines));
    let pem = fixtures::path("tls/server.pem");
    let pem = path_text(&pem);
    let (model, student) = (
        path_text(setup.teacher.path()),
        path_text(setup.student.path()),
    );
    let corpus = path_text(&setup.corpus);
    let out = place.join("out");
    let out = path_text(&out);
    let serve = ["serve", "--bind", "127.0.0.1:0", "--model", model];
    let served = |flags: &[&str]| {
        let corpus = ["--corpus", corpus];
        teacher(&[&serve[..], &corpus, flags].concat())
    };
    let train = |flags: &[&str]| {
        let base = ["train", "--teacher", "https://127.0.0.1:1"];
        trainer(&[&base[..], &["--student", student, "--out", out], flags].concat())
    };
    let eval = ["eval", "--student", student, "--data", lines];
    for mut command in [
        served(&["--tls-cert", pipe, "--tls-key", pem]),
        served(&["--tls-cert", pem, "--tls-key", pipe]),
        served(&["--token-file", pipe]),
        served(&["--config", pipe]),
        teacher(&[&serve[..], &["--corpus", lines]].concat()),
        train(&["--ca-cert", pipe]),
        train(&["--ca-cert", pem, "--token-file", pipe]),
        train(&["--config", pipe]),
        trainer(&eval),
    ] {
        let log = place.join("log");
        let writer = File::create(&log)?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let status = ending(&mut command.spawn()?)?;
        let said = fs::read_to_string(&log)?;
        assert!(!status.success(), "{command:?}: {said}");
        assert!(
            said.contains("named pipe") && said.contains(pipe),
            "{command:?}: {said}"
        );
    }
    Ok(())
}

#[test]
fn weights_beyond_the_memory_budget_are_refused_with_need_room_and_remedy() -> Result<()> {
    let setup = Setup::new()?;
    let budget = ["--memory-budget-bytes", "1000"];
    let flags = ["serve", "--bind", "127.0.0.1:0", "--model"];
    let model = [
        path_text(setup.teacher.path()),
        "--corpus",
        path_text(&setup.corpus),
    ];
    let said = teacher_refuses(&[&flags[..], &model, &budget].concat());
    for part in ["needs", "the memory budget is 1000 bytes", "--dtype bf16"] {
        assert!(said.contains(part), "{said}");
    }
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let out = setup.work.path().join("run");
    let said = trainer_refuses(&setup.train_args(&teacher, &out, &budget));
    for part in ["needs", "the memory budget is 1000 bytes", "--dtype bf16"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!out.join("adapter").exists());
    Ok(())
}

#[test]
fn a_gpu_that_is_not_there_is_refused_before_anything_is_read() -> Result<()> {
    let setup = Setup::new()?;
    let flags = [
        "serve",
        "--bind",
        "127.0.0.1:0",
        "--model",
        path_text(setup.teacher.path()),
    ];
    let said = teacher_refuses(
        &[
            &flags[..],
            &[
                "--corpus",
                path_text(&setup.corpus),
                "--device",
                "cuda:9999",
            ],
        ]
        .concat(),
    );
    assert!(
        said.contains("device 9999") && said.contains("--device cpu"),
        "{said}"
    );
    Ok(())
}
