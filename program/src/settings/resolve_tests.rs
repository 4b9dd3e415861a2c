use std::path::PathBuf;

use clap::{Command, FromArgMatches};

use super::*;
use crate::settings::{Flags, Keys, Kind, with_brief_help, with_flags};

/// One of two words.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    Quick,
    Slow,
}

crate::settings! {
    /// Inner.
    pub struct Inner: run {
        /// How much.
        weight: f64 = 1.0, may_resume: no;
    }
}
crate::settings! {
    /// Outer.
    pub struct Outer: run {
        /// Whether not.
        dry: bool = false, may_resume: yes;
        group "Updates":
        /// Learning rate.
        ///
        /// Of the peak.
        lr: f64 = 2e-4, may_resume: no, essential: true;
        /// Steps.
        steps: Option<usize> = None, may_resume: no, limits: 1..;
        group "The rest":
        /// How.
        pace: Pace as Text = Pace::Quick, may_resume: yes;
        /// Where.
        out: Option<PathBuf> = None, may_resume: yes, value: "DIR", alias: "to", essential: true;
        /// Names.
        targets: Vec<String> = vec!["q".to_owned()], may_resume: no, limits: 1..=3;
        /// Temperatures.
        taus: Vec<f32> = vec![1.0, 2.0], may_resume: no;
        /// Whether.
        checkpointing: bool = true, may_resume: yes;
    }
    sections {
        /// The loss.
        loss: Inner = Inner::keys, may_resume: no;
    }
}

fn scheme(known: &[Key]) -> Scheme<'_, Error> {
    Scheme {
        known,
        explain: |name, known| format!("`{name}` is none of `{}`", known.join("`, `")),
        settle: |_| Ok(()),
        foundation: &|_| Ok(Table::new()),
    }
}

fn resolve_from(file: &str, flags: &[&str]) -> Result<Outer, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, file).unwrap();
    let args = ["x"].into_iter().chain(flags.iter().copied());
    let matches = with_flags::<Outer>(Command::new("x"))
        .try_get_matches_from(args)
        .map_err(|e| Error::key("flags", e.to_string()))?;
    let flags = Flags::<Outer>::from_arg_matches(&matches).unwrap().given;
    let mut known = Outer::keys();
    known.push(Key::new("elsewhere", "of another command", Kind::Text));
    let config = resolve::<Outer, _>("x", Some(&path), flags, &scheme(&known))?.config;
    crate::settings::check_limits(&config)?;
    Ok(config)
}

#[test]
fn settings_that_are_no_file_are_refused_by_name() {
    let refusal = |path: &Path| {
        let known = Outer::keys();
        let error = resolve::<Outer, _>("x", Some(path), Table::new(), &scheme(&known));
        error.err().unwrap().to_string()
    };
    for path in ["/dev/zero", "/"] {
        let error = refusal(Path::new(path));
        assert!(
            error.contains(path) && error.contains("a regular file"),
            "{error}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.toml");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(FILE_BYTES_MAX + 1).unwrap();
    let error = refusal(&path);
    assert!(
        error.contains("large.toml") && error.contains("more than the"),
        "{error}"
    );
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let config = resolve_from(
        "lr = 1e-3\nsteps = 7\nelsewhere = \"x\"\n[loss]\nweight = 3",
        &[
            "--lr",
            "5e-5",
            "--targets",
            "a,b",
            "--targets",
            "c",
            "--checkpointing",
            "off",
            "--out",
            "123",
        ],
    )
    .unwrap();
    assert_eq!((config.lr, config.steps), (5e-5, Some(7)));
    assert_eq!(config.targets, ["a", "b", "c"]);
    assert_eq!(config.loss.weight, 3.0);
    assert_eq!(config.out.as_deref(), Some(Path::new("123")));
    assert!(!config.checkpointing);
    assert_eq!(
        resolve_from("", &["--weight=0.5"]).unwrap().loss.weight,
        0.5
    );
}

#[test]
fn an_unknown_key_is_explained_with_all_that_are_known() {
    for (file, name, known) in [
        ("stesp = 7", "`stesp`", "`steps`"),
        ("[loss]\nwieght = 7", "`loss.wieght`", "`loss.weight`"),
    ] {
        let message = resolve_from(file, &[]).unwrap_err().to_string();
        assert!(
            message.contains(name) && message.contains(known),
            "{message}"
        );
    }
}

#[test]
fn wrong_values_are_errors_that_name_the_key() {
    for (file, flags, expected) in [
        ("lr = \"fast\"", vec![], "lr"),
        ("steps = -1", vec![], "steps"),
        ("loss = 1", vec![], "loss"),
        ("", vec!["--lr", "nan"], "--lr"),
        ("", vec!["--steps", "1.5"], "--steps"),
        ("", vec!["--checkpointing=maybe"], "--checkpointing"),
        ("lr = ", vec![], "c.toml"),
        ("taus = [1, 'x']", vec![], "c.toml: taus: "),
        ("steps = 0", vec![], "steps: must be at least 1"),
        (
            "",
            vec!["--steps", "9223372036854775808"],
            "from 0 to 9223372036854775807",
        ),
        (
            "targets = []",
            vec![],
            "targets: 0 is outside 1 to 3 values",
        ),
        ("", vec!["--taus", "1,x"], "a finite number"),
    ] {
        let message = resolve_from(file, &flags).unwrap_err().to_string();
        assert!(message.contains(expected), "{file} {flags:?}: {message}");
    }
}

#[test]
fn the_help_has_groups_defaults_what_may_be_and_every_paragraph() {
    let command = Command::new("x").about("Does things");
    let mut command = with_brief_help(with_flags::<Outer>(command));
    let long = command.render_long_help().to_string();
    let short = command.render_help().to_string();
    for (words, is_short) in [
        ("Does things", true),
        ("Learning rate [default: 0.0002]", true),
        ("Of the peak.", false),
        ("Updates:\n", false),
        ("--steps <N>", false),
        ("Steps [at least 1]", false),
        ("--out <DIR>", true),
        ("[alias: --to]", false),
        ("Names [default: q] [1 to 3 values]", false),
        ("Temperatures [default: 1,2]", false),
        ("Whether [default: on]", false),
        ("Whether not [default: off]", false),
        ("[default: quick] [possible values: quick, slow]", false),
        ("--help all 12, with defaults", true),
    ] {
        assert!(long.contains(words), "{words}: {long}");
        assert_eq!(short.contains(words), is_short, "{words}: {short}");
    }
}

#[test]
fn a_group_goes_on_until_the_next_one() {
    let keys = Outer::keys();
    let groups: Vec<Option<&str>> = keys.iter().map(|key| key.group).collect();
    let (none, updates, rest) = ([None; 1], [Some("Updates"); 2], [Some("The rest"); 6]);
    assert_eq!(groups, [&none[..], &updates[..], &rest[..]].concat());
}

#[test]
fn what_a_run_is_bound_to_is_what_its_declaration_says() {
    let bound: Vec<String> = Outer::keys()
        .into_iter()
        .filter(|key| key.is_bound)
        .map(|key| key.path)
        .collect();
    assert_eq!(bound, ["lr", "steps", "targets", "taus", "loss.weight"]);
}
