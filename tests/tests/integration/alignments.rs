//! Runs what is learned between positions through both real programs: every plan, links, and a projection that is fitted first.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    harness::{Listen, trainer_refuses, trainer_succeeds},
    pairs::{forget_the_end, pair, setup, setup_with},
    pipeline::{Setup, metrics, number, path_text},
};

/// Hidden states are compared, and paid for.
const HIDDEN: [&str; 6] = [
    "--ot-weight",
    "0.5",
    "--align-cost",
    "hidden",
    "--align-loss",
    "states",
];

/// The method's own formula, and every plan, on sides of unlike length.
#[test]
fn the_literal_formula_and_every_plan_take_pairs_as_they_are() -> Result<()> {
    let setup = setup()?;
    let teacher = setup.serve(&Listen::Loopback, &["--state", "exact"]);
    let literal = setup.train(
        &teacher,
        "literal",
        &["--steps", "2", "--preset", "literal"],
    );
    let plans = [
        "sinkhorn",
        "unbalanced",
        "partial",
        "mutual",
        "row",
        "uniform",
        "monotone",
    ];
    let mut values = vec![metrics(&literal)?[0]["ot"].to_string()];
    for plan in plans {
        let flags = [&HIDDEN[..], &["--steps", "2", "--align-position", "0"]].concat();
        let run = setup.train(
            &teacher,
            plan,
            &[&flags[..], &["--align-plan", plan]].concat(),
        );
        let ot = number(&metrics(&run)?[0], "ot")?;
        assert!(ot.is_finite() && ot > 0.0, "{plan}: {ot}");
        values.push(ot.to_string());
    }
    values.sort();
    values.dedup();
    assert_eq!(
        values.len(),
        plans.len() + 1,
        "each is another value: {values:?}"
    );
    Ok(())
}

/// Links of the record are a plan of their own, and prompts carry it.
#[test]
fn links_of_the_record_are_a_plan() -> Result<()> {
    let mut record = pair(3);
    record["targets"] = "all".into();
    let setup = setup_with(&[record, pair(4)])?;
    let teacher = setup.serve(&Listen::Loopback, &["--state", "hidden:0,1,last"]);
    let flags = [
        "--steps",
        "2",
        "--ot-weight",
        "1",
        "--align-plan",
        "links",
        "--align-loss",
        "kl",
    ];
    let run = setup.train(&teacher, "links", &flags);
    let values: Vec<f64> = metrics(&run)?
        .iter()
        .map(|line| number(line, "ot"))
        .collect::<Result<_>>()?;
    // Without prompts nothing of the second record's link carries mass.
    assert!(
        values.contains(&0.0) && values.iter().any(|&ot| ot > 0.0),
        "{values:?}"
    );
    Ok(())
}

/// P is fitted on what both sides share before the first step, of the layer that is asked for, and a run that goes on keeps it.
#[test]
fn a_projection_is_fitted_once_and_held() -> Result<()> {
    let setup = Setup::new()?;
    let teacher = setup.serve(&Listen::Loopback, &["--state", "hidden:0,1,last"]);
    let flags = [
        &HIDDEN[..],
        &["--steps", "4", "--save-steps", "2", "--align-layers", "1:1"],
    ]
    .concat();
    let run = setup.train(&teacher, "fitted", &flags);
    let report: Value = serde_json::from_slice(&std::fs::read(run.join("projection.json"))?)?;
    assert!(
        report["rows"].as_u64() > Some(200) && report["held_out"].as_u64() > Some(10),
        "{report}"
    );
    let pair = &report["pairs"][0];
    assert!(
        pair["layers"] == "1:1" && pair["r_squared"].as_f64() < Some(1.0),
        "{report}"
    );
    let projection =
        |run: &Path, of: &str| std::fs::read(run.join(of).join("hidden_projection.safetensors"));
    let first = std::fs::read_dir(run.join("checkpoints"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .min();
    let first = first.context("a checkpoint")?;
    assert!(
        projection(&first, "")? == projection(&run, "adapter")?,
        "P was held"
    );

    let expected = std::fs::read(run.join("adapter/adapter_model.safetensors"))?;
    forget_the_end(&run)?;
    std::fs::remove_file(run.join("projection.json"))?;
    trainer_succeeds(&["train", "--resume", path_text(&run)]);
    assert!(
        std::fs::read(run.join("adapter/adapter_model.safetensors"))? == expected,
        "resumed"
    );
    assert!(!run.join("projection.json").exists(), "not fitted again");

    let moving = [&flags[..], &["--align-projection", "random"]].concat();
    let moved = setup.train(&teacher, "random", &moving);
    assert!(!moved.join("projection.json").exists());
    assert!(projection(&moved, "adapter")? != projection(&run, "adapter")?);

    let out = setup.work.path().join("absent");
    let absent = [&HIDDEN[..], &["--steps", "1", "--align-layers", "3:last"]].concat();
    let said = trainer_refuses(&setup.train_args(&teacher, &out, &absent));
    assert!(
        said.contains("state 3 was asked for, but the capture has 3"),
        "{said}"
    );
    drop(teacher);
    let swapping = setup.serve(
        &Listen::Loopback,
        &["--state", "exact", "--vram-mode", "swap", "--window", "2"],
    );
    let said = trainer_refuses(&setup.train_args(
        &swapping,
        &out,
        &[&HIDDEN[..], &["--steps", "1"]].concat(),
    ));
    assert!(said.contains("align.projection: fitted"), "{said}");
    Ok(())
}

/// Embeddings, a layer between and the last one in one plan: a P, its means and an R^2 for each, and a gradient into every layer, whatever
/// is kept of a pass.
#[test]
fn several_pairs_of_layers_make_one_plan() -> Result<()> {
    let setup = setup()?;
    let teacher = setup.serve(&Listen::Loopback, &["--state", "hidden:0,1,last"]);
    let layers = "0:0,1:1:0.5,2:last";
    let flags = [
        &HIDDEN[..],
        &["--steps", "4", "--save-steps", "2", "--kl-weight", "0"],
        &["--ce-weight", "0", "--align-layers", layers],
    ]
    .concat();
    let run = setup.train(&teacher, "several", &flags);
    let report: Value = serde_json::from_slice(&std::fs::read(run.join("projection.json"))?)?;
    let pairs = report["pairs"].as_array().context("pairs")?;
    let named: Vec<&Value> = pairs.iter().map(|pair| &pair["layers"]).collect();
    assert_eq!(named, ["0:0", "1:1", "2:last"]);
    assert!(pairs.iter().all(|pair| pair["r_squared"].is_f64()));
    let saved = candle_core::safetensors::load(
        run.join("adapter/hidden_projection.safetensors"),
        &candle_core::Device::Cpu,
    )?;
    let mut names: Vec<&str> = saved.keys().map(String::as_str).collect();
    names.sort_unstable();
    let all = ["0:0", "1:1", "2:last"].map(|pair| {
        ["", ".student_mean", ".teacher_mean"].map(|what| format!("hidden_projection.{pair}{what}"))
    });
    assert_eq!(names, all.concat());

    let weights = |run: &Path| std::fs::read(run.join("adapter/adapter_model.safetensors"));
    let kept = [&flags[..], &["--checkpointing", "false"]].concat();
    let kept = setup.train(&teacher, "kept", &kept);
    assert!(weights(&run)? == weights(&kept)?, "without recomputation");
    let expected = weights(&run)?;
    forget_the_end(&run)?;
    trainer_succeeds(&["train", "--resume", path_text(&run)]);
    assert!(weights(&run)? == expected, "resumed");

    let full = [
        &flags[..],
        &["--tune", "full", "--align-projection", "random"],
    ]
    .concat();
    let full = setup.train(&teacher, "full", &full);
    for line in metrics(&full)? {
        let (ot, norm) = (number(&line, "ot")?, number(&line, "grad_norm")?);
        assert!(ot > 0.0 && norm > 0.0, "{line}");
    }

    let refuse = |flags: &[&str]| {
        let out = setup.work.path().join("refused");
        let flags = [&HIDDEN[..], &["--steps", "1"], flags].concat();
        trainer_refuses(&setup.train_args(&teacher, &out, &flags))
    };
    let said = refuse(&["--align-layers", "0:0,1:0"]);
    assert!(said.contains("no adapter is below"), "{said}");
    let said = refuse(&["--align-layers", "0:1,2:last", "--checkpoint-every", "2"]);
    assert!(
        said.contains("layer 1 is not kept with checkpoint_every 2"),
        "{said}"
    );
    let said = refuse(&["--align-layers", "0:1,0:1:2"]);
    assert!(said.contains("0:1 is there twice"), "{said}");
    Ok(())
}
