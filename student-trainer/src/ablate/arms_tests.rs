//! Tests of the arms: which controls go with them, and what is refused before anything is trained.

use std::fs;

use super::*;

const BASE: &str = r#"
seeds = [1, 2]
[base]
student = "s"
eval_data = ["Cargo.toml"]
eval_exact_match = true
"#;

fn read(text: &str) -> Result<(ArmsFile, Vec<Trial>)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("arms.toml");
    fs::write(&path, text).unwrap();
    let file = ArmsFile::read(&path)?;
    let trials = file.trials(&dir.path().join("arms"))?;
    Ok((file, trials))
}

#[test]
fn every_arm_brings_its_controls() {
    let arms = r#"
[[arm]]
name = "CE"
loss = { kl_weight = 0.0 }
[[arm]]
name = "KL"
[[arm]]
name = "OT"
[arm.loss]
kl_weight = 0.0
ot_weight = 1.0
[arm.loss.align]
epsilon = 0.05
"#;
    let (file, trials) = read(&format!("{BASE}{arms}")).unwrap();
    assert_eq!((file.baseline(), file.metric), ("CE", Metric::ExactMatch));
    let names: Vec<(&str, Option<&str>)> = trials
        .iter()
        .map(|trial| (trial.name.as_str(), trial.control_of.as_deref()))
        .collect();
    let of_ot = Some("OT");
    // Cross-entropy has no teacher to shuffle, and an arm is no control of itself.
    assert_eq!(
        names,
        [
            ("CE", None),
            ("KL", None),
            ("KL, another text's teacher", Some("KL")),
            ("OT", None),
            ("OT, plan row", of_ot),
            ("OT, plan uniform", of_ot),
            ("OT, plan mutual", of_ot),
            ("OT, another text's teacher", of_ot),
        ]
    );
    let plan = |trial: &Trial| lookup(&trial.settings, PLAN).unwrap().clone();
    let plans: Vec<Value> = trials[3..].iter().map(plan).collect();
    let expected = ["sinkhorn", "row", "uniform", "mutual", "sinkhorn"];
    assert_eq!(plans, expected.map(Value::from));
    // `entropic` is the value of a problem that these plans do not solve.
    let loss = |trial: &Trial| lookup(&trial.settings, LOSS).unwrap().clone();
    let losses: Vec<Value> = trials[3..].iter().map(loss).collect();
    let expected = ["entropic", "kl", "kl", "kl", "entropic"];
    assert_eq!(losses, expected.map(Value::from));
    for trial in &trials {
        let shuffled = match trial.name.ends_with("another text's teacher") {
            true => "rows",
            false => "none",
        };
        assert_eq!(
            trial.settings["shuffle_teacher"],
            Value::from(shuffled),
            "{}",
            trial.name
        );
        // What a control does not change is its arm's.
        let epsilon = if trial.name.starts_with("OT") {
            0.05
        } else {
            0.1
        };
        assert_eq!(
            lookup(&trial.settings, "loss.align.epsilon")
                .unwrap()
                .clone(),
            Value::from(epsilon)
        );
    }
}

#[test]
fn beside_kl_states_alone_are_another_text_s() {
    let align =
        "ot_weight = 1.0\nalign = { cost = \"hidden\", loss = \"states\", plan = \"mutual\" }";
    let arms = format!(
        "[[arm]]\nname = \"both\"\n[arm.loss]\n{align}\n[[arm]]\nname = \"alone\"\n[arm.loss]\nkl_weight = 0.0\n{align}"
    );
    let (_, trials) = read(&format!("{BASE}{arms}")).unwrap();
    let shuffled = trials
        .iter()
        .filter(|trial| trial.settings["shuffle_teacher"] != Value::from("none"));
    let told: Vec<(&str, &Value)> = shuffled
        .map(|trial| (trial.name.as_str(), &trial.settings["shuffle_teacher"]))
        .collect();
    assert_eq!(
        told,
        [
            ("both, another text's states", &Value::from("states")),
            ("alone, another text's teacher", &Value::from("rows")),
        ]
    );
}

#[test]
fn a_plan_is_no_control_of_itself() {
    let arm = r#"
[[arm]]
name = "OT"
[arm.loss]
ot_weight = 1.0
align = { plan = "mutual", loss = "kl" }
"#;
    let (_, trials) = read(&format!("{BASE}{arm}")).unwrap();
    let names: Vec<&str> = trials.iter().map(|trial| trial.name.as_str()).collect();
    let expected = [
        "OT",
        "OT, plan row",
        "OT, plan uniform",
        "OT, another text's teacher",
    ];
    assert_eq!(names, expected);
}

#[test]
fn what_cannot_be_judged_is_refused() {
    let arm = "[[arm]]\nname = \"A\"\n";
    for (text, words) in [
        (BASE.to_owned(), "arm"),
        (format!("seeds = [1]\n{arm}"), "at least two"),
        (
            format!("seeds = [1, 2]\nscreening = [2]\n{arm}"),
            "2 is there twice",
        ),
        (format!("{BASE}{arm}{arm}"), "another `A` before it"),
        (format!("baseline = \"B\"\n{BASE}{arm}"), "no arm `B`"),
        (format!("{BASE}[[arm]]\nname = \" \"\n"), "no name of a row"),
        (format!("metric = \"bleu\"\n{BASE}{arm}"), "bleu"),
        (
            format!("seeds = [1, 2]\n[base]\nstudent = \"s\"\n{arm}"),
            "eval_data",
        ),
        (format!("{BASE}{arm}loss = {{ klweight = 1 }}\n"), "arm `A`"),
        (
            format!("{BASE}{arm}loss = {{ kl_weight = -1.0 }}\n"),
            "arm `A`",
        ),
        (format!("{BASE}{arm}sedes = 3\n"), "sedes"),
        (
            format!("{BASE}seed = 3\n{arm}"),
            "base: `seed` comes from `seeds`",
        ),
        (
            format!("{BASE}{arm}out = \"x\"\n"),
            "arm `A`: `out` comes from --out",
        ),
        (
            format!("{BASE}metrics_addr = \"127.0.0.1:1\"\n{arm}"),
            "base: `metrics_addr` is one run's",
        ),
        (
            format!("metric = \"kl\"\n{BASE}eval_kl = false\n{arm}"),
            "need eval_kl",
        ),
        (
            format!("{BASE}{arm}eval_exact_match = false\n"),
            "needs eval_exact_match",
        ),
        (
            format!("{BASE}{arm}eval_data = [\"none.jsonl\"]\n"),
            "none.jsonl",
        ),
    ] {
        let refused = read(&text)
            .map(|(_, trials)| trials)
            .unwrap_err()
            .to_string();
        assert!(refused.contains(words), "{text}: {refused}");
    }
}
