//! Runs every estimator and every kind of state through both real programs, with the losses that they are for.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    harness::{Listen, trainer_refuses},
    pipeline::{Setup, another_vocabulary, metrics, number},
};

/// Steps of a run: enough for every parameter to have shown a gradient.
const STEPS: &str = "4";

/// Trains once against a server with `server` flags and gives the metrics of every step.
fn train(setup: &Setup, name: &str, server: &[&str], flags: &[&str]) -> Result<Vec<Value>> {
    let teacher = setup.serve(&Listen::Loopback, server);
    let flags = [&["--steps", STEPS], flags].concat();
    metrics(&setup.train(&teacher, name, &flags))
}

fn finite(lines: &[Value], key: &str) -> Result<bool> {
    let values = lines.iter().map(|line| number(line, key));
    let values = values.collect::<Result<Vec<f64>>>()?;
    Ok(values.iter().all(|value| value.is_finite()) && values.iter().any(|value| *value != 0.0))
}

#[test]
fn drawn_rows_train_and_say_about_what_all_of_them_say() -> Result<()> {
    let setup = Setup::new()?;
    let loss = ["--ot-weight", "10"];
    let full = train(
        &setup,
        "full",
        &["--top-k", "384", "--state", "none"],
        &loss,
    )?;
    let expected = number(&full[0], "kl")?;
    for (name, server) in [
        (
            "sampled",
            ["--estimator", "sampled", "--draws", "256"].as_slice(),
        ),
        (
            "head",
            [
                "--estimator",
                "head+sampled",
                "--top-k",
                "8",
                "--draws",
                "64",
            ]
            .as_slice(),
        ),
    ] {
        let server = [server, &["--state", "none"]].concat();
        let lines = train(&setup, name, &server, &loss)?;
        assert!(finite(&lines, "ot")?);
        let kl = number(&lines[0], "kl")?;
        // Means over dozens of rows of hundreds of draws; the models are random, so a row's terms differ by about 1.
        assert!(
            (kl - expected).abs() < 0.25 * expected.abs().max(0.1),
            "{name}: {kl} for {expected}"
        );
    }
    let teacher = setup.serve(&Listen::Loopback, &["--estimator", "sampled"]);
    let out = setup.work.path().join("refused");
    let flags = ["--reverse-kl-weight", "0.5"];
    let message = trainer_refuses(&setup.train_args(&teacher, &out, &flags));
    assert!(message.contains("top-k"), "{message}");
    Ok(())
}

#[test]
fn sketches_feed_similarities_and_hidden_states_feed_theirs() -> Result<()> {
    let setup = Setup::new()?;
    let cosine = ["--ot-weight", "1", "--cost", "softmax-similarity"];
    let cosine = [&cosine[..], &["--similarity", "cosine"]].concat();
    let exact = train(&setup, "exact", &["--state", "exact:f16"], &cosine)?;
    let sketch = train(&setup, "sketch", &["--state", "sketch:24"], &cosine)?;
    let (exact, sketch) = (number(&exact[0], "ot")?, number(&sketch[0], "ot")?);
    assert!(
        (sketch - exact).abs() < 0.1 * exact.abs(),
        "{sketch} for {exact}"
    );

    let hidden = ["--ot-weight", "0.5", "--align-cost", "hidden"];
    let lines = train(&setup, "hidden", &["--state", "exact"], &hidden)?;
    assert!(finite(&lines, "ot")?);
    let middle = [
        &hidden[..],
        &["--align-layers", "0:1", "--align-plan", "mutual"],
        &["--align-loss", "states"],
    ]
    .concat();
    let lines = train(&setup, "middle", &["--state", "hidden:1"], &middle)?;
    assert!(finite(&lines, "ot")?);
    let projection = Path::new("middle/adapter/hidden_projection.safetensors");
    let projection = setup.work.path().join(projection);
    let tensors = candle_core::safetensors::load(projection, &candle_core::Device::Cpu)?;
    let projection = tensors
        .get("hidden_projection.0:1")
        .context("a projection")?;
    assert_eq!(projection.dims().len(), 2);

    let teacher = setup.serve(&Listen::Loopback, &["--state", "hidden:1"]);
    let out = setup.work.path().join("refused");
    let message = trainer_refuses(&setup.train_args(&teacher, &out, &cosine));
    assert!(message.contains("--state"), "{message}");
    Ok(())
}

#[test]
fn a_student_with_another_vocabulary_learns_from_the_same_frames() -> Result<()> {
    let mut setup = Setup::new()?;
    setup.student = another_vocabulary()?;
    let flags = ["--epochs", "4", "--lr", "3e-3", "--ot-weight", "5"];
    let teacher = setup.serve(&Listen::Loopback, &["--state", "none"]);
    let lines = metrics(&setup.train(&teacher, "other", &flags))?;
    let last = lines.last().context("metrics are not empty")?;
    assert!(finite(&lines, "ot")?);
    // All but one token mean the same here, so KL falls as it does with the same vocabulary.
    assert!(
        number(last, "kl")? < 0.8 * number(&lines[0], "kl")?,
        "{} ... {last}",
        lines[0]
    );
    Ok(())
}
