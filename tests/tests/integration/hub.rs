//! Runs both real programs on models that are named, not pathed: a hub on loopback, then the cache alone.

use anyhow::{Context, Result};
use distill_hub::stand_in::StandIn;
use serde_json::Value;

use crate::{
    harness::{Listen, Teacher, text, trainer},
    pipeline::{Setup, path_text},
};

#[test]
fn both_programs_take_models_by_name_and_the_adapter_says_it() -> Result<()> {
    let setup = Setup::new()?;
    let hub = StandIn::start()?;
    hub.put_directory("org/teacher", setup.teacher.path())?;
    let commit = hub.put_directory("org/tiny", setup.student.path())?;
    let home = setup.work.path().join("hf");
    let online = [
        ("HF_HOME", path_text(&home)),
        ("HF_ENDPOINT", hub.endpoint()),
    ];
    let offline = [
        ("HF_HOME", path_text(&home)),
        ("HF_ENDPOINT", "http://127.0.0.1:1"),
        ("HF_HUB_OFFLINE", "1"),
    ];
    let corpus = path_text(&setup.corpus);
    let run = |args: &[&str], variables: &[(&str, &str)]| {
        let output = trainer(args).envs(variables.iter().copied()).output();
        output.map(|output| (output.status.success(), text(&output)))
    };

    let flags = ["--model", "org/teacher", "--corpus", corpus];
    let flags = [&flags[..], &["--seq-len", "48"]].concat();
    let teacher = Teacher::serve_with(setup.work.path(), &Listen::Loopback, &flags, &online);
    let out = setup.work.path().join("run");
    let train = ["train", "--student", "org/tiny", "--steps", "1"];
    let place = ["--teacher", teacher.address(), "--out", path_text(&out)];
    let (fine, said) = run(&[&train[..], &place].concat(), &online)?;
    assert!(fine, "{said}\n{}", teacher.log());
    assert!(said.contains("org/tiny: fetched"), "{said}");
    let adapter = std::fs::read(out.join("adapter/adapter_config.json"))?;
    let adapter: Value = serde_json::from_slice(&adapter)?;
    assert_eq!(adapter["base_model_name_or_path"], "org/tiny");
    let config = std::fs::read_to_string(out.join("config.toml"))?;
    assert!(config.contains("student = \"org/tiny\""), "{config}");

    let pinned = format!("org/tiny@{commit}");
    for student in ["org/tiny", pinned.as_str()] {
        let eval = ["eval", "--student", student, "--data", corpus];
        let eval = [&eval[..], &["--seq-len", "48", "--json"]].concat();
        let (fine, said) = run(&eval, &offline)?;
        assert!(fine && !said.contains("fetch"), "{said}");
    }
    let plan = ["plan", "--student", "org/tiny", "--teacher", "org/absent"];
    let (fine, said) = run(&plan, &offline)?;
    let directory = home.join("hub/models--org--absent");
    let expected = directory.to_str().context("a temporary path")?;
    assert!(!fine && said.contains(expected), "{said}");
    let (fine, said) = run(&plan, &online)?;
    assert!(!fine && said.contains("does not exist"), "{said}");
    Ok(())
}
