//! Runs the judge of losses with real processes: arms, controls, a kill in the middle, and what it says.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Result;
use serde_json::Value;

use crate::{
    harness::{
        Listen, ending, send_signal, text, trainer, trainer_refuses, trainer_succeeds, wait_until,
    },
    pairs::{pair, setup_with},
    pipeline::{Setup, path_text},
};

fn arms(setup: &Setup, teacher: &str, steps: usize) -> String {
    let student = path_text(setup.student.path());
    let held_out = path_text(&setup.corpus);
    format!(
        r#"
seeds = [1, 2]
screening = [9]
metric = "ce"
[base]
teacher = "{teacher}"
student = "{student}"
steps = {steps}
eval_data = ["{held_out}"]
eval_kl = false
eval_max_sequences = 1
[[arm]]
name = "CE"
loss = {{ kl_weight = 0.0 }}
[[arm]]
name = "KL + OT"
loss = {{ ot_weight = 0.5 }}
"#
    )
}

/// The file of the arms, and where the judge works.
fn places(setup: &Setup) -> [PathBuf; 2] {
    ["arms.toml", "judged"].map(|name| setup.work.path().join(name))
}

fn results(out: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(
        out.join("results.json"),
    )?)?)
}

#[test]
fn arms_and_controls_are_trained_once_and_judged() -> Result<()> {
    let setup = Setup::new()?;
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let [file, out] = places(&setup);
    fs::write(&file, arms(&setup, teacher.address(), 3))?;
    let command = ["ablate", path_text(&file), "--out", path_text(&out)];

    // Killed in the middle of its second run of an arm, it goes on where it was.
    let mut child = trainer(&command)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let second = out.join("runs/kl---ot-9/config.toml");
    wait_until("the second run", || second.exists());
    child.kill()?;
    ending(&mut child)?;

    // Its run may go on for a moment, and is waited for.
    let side_by_side = [&command[..], &["--jobs", "3"]].concat();
    let said = text(&trainer_succeeds(&side_by_side));
    // CE, the arm, row, uniform, mutual, another text's teacher; three seeds.
    assert!(
        said.contains("2 arms with 4 controls, 3 seeds (1 to look at first): 18 runs"),
        "{said}"
    );
    assert!(
        said.contains("run 18 of 18: KL + OT, another text's teacher, seed 2: ce "),
        "{said}"
    );
    assert!(said.contains("| KL + OT, plan uniform |"), "{said}");
    let found = results(&out)?;
    assert_eq!(found["complete"], true);
    let rows = found["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 6);
    for row in rows {
        let values = row["values"].as_object().expect("values");
        assert_eq!(values.keys().collect::<Vec<_>>(), ["1", "2"], "{row}");
    }
    // Terms of a teacher have the length of KL's gradient: of transport that takes another weight than 0.5.
    let config = fs::read_to_string(out.join("runs/kl---ot-1/config.toml"))?;
    let weight = |name: &str| -> f64 {
        let mut lines = config.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        value.expect("a weight").parse().expect("a number")
    };
    assert!((weight("kl_weight") - 1.0).abs() < 1e-9);
    assert!(weight("ot_weight") > 0.0 && (weight("ot_weight") - 0.5).abs() > 1e-6);
    assert!(out.join("report.html").exists() && out.join("table.md").exists());

    let again = text(&trainer_succeeds(&[&command[..], &["--json"]].concat()));
    assert_eq!(again.matches(", was there").count(), 18, "{again}");

    // Other settings are other runs.
    fs::write(&file, arms(&setup, teacher.address(), 4))?;
    let refused = trainer_refuses(&command);
    assert!(
        refused.contains("another `steps` than the arm has now"),
        "{refused}"
    );
    Ok(())
}

/// Of runs side by side one fails: the other saves what it has, and the failure is what is told.
#[test]
fn a_run_that_fails_stops_the_one_beside_it() -> Result<()> {
    let setup = Setup::new()?;
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let [file, out] = places(&setup);
    let arms = arms(&setup, teacher.address(), 1_000_000)
        .replace("screening = [9]", "equal_gradients = false");
    let needs_state = r#"loss = { ot_weight = 0.5, align = { cost = "hidden" } }"#;
    fs::write(
        &file,
        arms.replace("loss = { ot_weight = 0.5 }", needs_state),
    )?;
    let refused = trainer_refuses(&[
        "ablate",
        path_text(&file),
        "--out",
        path_text(&out),
        "--jobs",
        "2",
    ]);
    assert!(
        refused.contains("KL + OT, seed 1: train ended with"),
        "{refused}"
    );
    assert!(refused.contains("state"), "{refused}");
    assert!(out.join("runs/ce-1.log").exists() && !out.join("runs/ce-1/summary.json").exists());
    Ok(())
}

/// Plans of an arm stand beside the links of its records, and the share of their mass that lies there beside chance.
#[test]
fn plans_of_arms_are_shown_beside_the_links_of_their_records() -> Result<()> {
    let linked = |number: usize| {
        let mut record = pair(number);
        record["targets"] = "all".into();
        record
    };
    let setup = setup_with(&(0..4).map(linked).collect::<Vec<_>>())?;
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let [file, out] = places(&setup);
    let held_out = setup.work.path().join("held-out.jsonl");
    let record = serde_json::json!({"prompt": "hello ", "completion": "there the end"});
    fs::write(&held_out, format!("{record}\n"))?;
    let arms = arms(&setup, teacher.address(), 2).replace("screening = [9]", "screening = []");
    let eval = path_text(&setup.corpus).to_owned();
    fs::write(&file, arms.replace(&eval, path_text(&held_out)))?;
    trainer_succeeds(&["ablate", path_text(&file), "--out", path_text(&out)]);
    let found = results(&out)?;
    let rows = found["rows"].as_array().expect("rows");
    let row = |name: &str| rows.iter().find(|row| row["name"] == name).expect("a row");
    assert!(row("CE").get("on_links").is_none());
    let chance = row("KL + OT")["on_links_by_chance"].as_f64();
    let chance = chance.expect("a share");
    assert!(chance > 0.0 && chance < 0.5, "{chance}");
    for seed in ["1", "2"] {
        let share = |name: &str| row(name)["on_links"][seed].as_f64().expect("a share");
        assert!((0.0..=1.0).contains(&share("KL + OT")));
        let uniform = share("KL + OT, plan uniform");
        assert!((uniform - chance).abs() < 1e-6, "{uniform} {chance}");
    }
    let html = fs::read_to_string(out.join("report.html"))?;
    assert!(html.contains("links of the record") && html.contains("class=\"mark\""));
    assert!(fs::read_to_string(out.join("table.md"))?.contains("mass on links (%)"));
    Ok(())
}

#[test]
fn arms_that_cannot_be_trained_are_refused_before_any_is() -> Result<()> {
    let setup = Setup::new()?;
    let [file, out] = places(&setup);
    let text = arms(&setup, "http://127.0.0.1:1", 3).replace("ot_weight = 0.5", "ot_wieght = 0.5");
    fs::write(&file, text)?;
    let refused = trainer_refuses(&["ablate", path_text(&file), "--out", path_text(&out)]);
    assert!(
        refused.contains("arm `KL + OT`") && refused.contains("ot_weight"),
        "{refused}"
    );
    assert!(!out.join("runs").exists());
    Ok(())
}

/// A signal that reaches the judge alone stops the run under way too, which keeps a checkpoint.
#[test]
fn a_stop_ends_the_run_under_way_with_a_checkpoint() -> Result<()> {
    let setup = Setup::new()?;
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let [file, out] = places(&setup);
    let endless = arms(&setup, teacher.address(), 100_000);
    fs::write(&file, format!("equal_gradients = false\n{endless}"))?;
    let command = ["ablate", path_text(&file), "--out", path_text(&out)];
    let mut child = trainer(&command)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let run = out.join("runs/ce-9");
    wait_until("the first steps", || {
        fs::metadata(run.join("metrics.jsonl")).is_ok_and(|file| file.len() > 0)
    });
    let beside = trainer_refuses(&command);
    assert!(beside.contains("judges in it; wait for it"), "{beside}");
    send_signal(&child, libc::SIGINT);
    assert_eq!(ending(&mut child)?.code(), Some(130));
    assert_eq!(results(&out)?["complete"], false);
    assert!(run.join("checkpoints").read_dir()?.next().is_some());
    let log = fs::read_to_string(out.join("runs/ce-9.log"))?;
    assert!(
        log.contains("train --resume") && log.contains("to go on"),
        "{log}"
    );
    Ok(())
}
