use super::*;
use crate::config::settings::settings;

settings! {
    /// Inner.
    pub struct Inner {
        /// How much.
        weight: f64 = 1.0,
    }
}
settings! {
    /// Outer.
    pub struct Outer {
        /// Learning rate.
        lr: f64 = 2e-4,
        /// Steps.
        steps: Option<usize> = None,
        /// Where.
        out: Option<PathBuf> = None,
        /// Names.
        targets: Vec<String> = vec!["q".to_owned()],
        /// Whether.
        checkpointing: bool = true,
    }
    sections {
        /// The loss.
        loss: Inner = Inner::keys,
    }
}

fn resolve_from(file: &str, flags: &[&str]) -> Result<Outer> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, file).unwrap();
    let command = with_flags::<Outer>(Command::new("x"));
    let path = path.to_str().unwrap();
    let args = ["x", "--config", path]
        .into_iter()
        .chain(flags.iter().copied());
    let matches = command
        .try_get_matches_from(args)
        .map_err(|e| Error::Config(e.to_string()))?;
    let mut known = Outer::keys();
    known.push(Key::new("elsewhere", "of another command", Kind::Text));
    Ok(resolve::<Outer>(&matches, &known)?.config)
}

#[test]
fn settings_that_are_no_file_are_refused_by_name() {
    for path in ["/dev/zero", "/"] {
        let error = read_file(Path::new(path), &Outer::keys()).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains(path) && error.contains("a regular file"),
            "{error}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.toml");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(SETTINGS_BYTES_MAX + 1).unwrap();
    let error = read_file(&path, &Outer::keys()).unwrap_err().to_string();
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
fn an_unknown_key_names_the_nearest() {
    let message = resolve_from("stesp = 7", &[]).unwrap_err().to_string();
    assert!(
        message.contains("`stesp`") && message.contains("`steps`"),
        "{message}"
    );
    let message = resolve_from("[loss]\nwieght = 7", &[])
        .unwrap_err()
        .to_string();
    assert!(message.contains("`loss.weight`"), "{message}");
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
    ] {
        let message = resolve_from(file, &flags).unwrap_err().to_string();
        assert!(message.contains(expected), "{file} {flags:?}: {message}");
    }
}
