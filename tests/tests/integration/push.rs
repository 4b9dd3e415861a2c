//! Pushes what real runs made to a hub on loopback, and fetches it again: every file as it was, and nothing of this machine among them.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use distill_hub::stand_in::{Faults, StandIn};
use serde_json::Value;

use crate::{
    every_command::Place,
    harness::{Listen, Teacher, ending, send_signal, text, trainer, wait_until},
    pipeline::{Setup, path_text},
};

const TOKEN: &str = "hf_of_the_test";

/// A hub, and the home of somebody who may write there.
struct Hub {
    hub: StandIn,
    home: PathBuf,
}

impl Hub {
    fn start(work: &Path) -> Result<Self> {
        let hub = StandIn::start()?;
        let home = work.join("hf");
        Ok(Self { hub, home })
    }

    /// From now on goes wrong what this says, and only the token is let in.
    fn fail(&self, faults: Faults) {
        let writer = Some(TOKEN.to_owned());
        self.hub.fail(Faults { writer, ..faults });
    }

    /// The trainer as somebody without a token.
    fn nobody(&self, args: &[&str]) -> Command {
        let mut command = trainer(args);
        command
            .env("HF_HOME", &self.home)
            .env("HF_ENDPOINT", self.hub.endpoint());
        for variable in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"] {
            command.env_remove(variable);
        }
        command
    }

    fn push(&self, from: &Path, flags: &[&str]) -> Command {
        let mut command = self.nobody(&[&["push", path_text(from)], flags].concat());
        command.env("HF_TOKEN", TOKEN);
        command
    }

    /// What the repository holds.
    fn files(&self, repo: &str) -> Result<BTreeMap<String, Vec<u8>>> {
        Ok(self.hub.get(repo).context("it is there")?.0)
    }
}

/// What it printed, where it succeeded.
fn said(mut command: Command) -> Result<String> {
    let output = command.output()?;
    let said = text(&output);
    assert!(output.status.success(), "{command:?}: {said}");
    assert!(!said.contains(TOKEN), "{said}");
    Ok(said)
}

/// What it printed, where it refused.
fn refusal(mut command: Command) -> Result<String> {
    let output = command.output()?;
    let said = text(&output);
    let status = output.status.code();
    assert!(status == Some(1) && !said.contains("panicked"), "{said}");
    assert!(!said.contains(TOKEN), "{said}");
    Ok(said)
}

/// The files of a directory, but for its card.
fn files_in(directory: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?;
        files.insert(name.to_string_lossy().into_owned(), fs::read(&path)?);
    }
    files.remove("README.md");
    Ok(files)
}

#[test]
fn a_pushed_model_is_a_student_by_its_name() -> Result<()> {
    let setup = Setup::new()?;
    let hub = Hub::start(setup.work.path())?;
    hub.hub.put_directory("org/tiny", setup.student.path())?;
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let run = setup.work.path().join("run");
    let train = ["train", "--student", "org/tiny", "--tune", "full"];
    let held_out = setup.work.path().join("held-out.jsonl");
    let rows = "{\"prompt\": \"one two\", \"completion\": \" three\"}\n".repeat(2);
    fs::write(&held_out, rows)?;
    let more = ["--steps", "2", "--eval-data", path_text(&held_out)];
    let place = ["--teacher", teacher.address(), "--out", path_text(&run)];
    said(hub.nobody(&[&train[..], &more, &place].concat()))?;
    hub.hub.requests();

    // Shown, and nothing asked of the hub.
    let to = ["--to", "org/pushed", "--private"];
    let shown = said(hub.push(&run, &to))?;
    for expected in [
        "base_model: \"org/tiny\"\nlibrary_name: transformers\ntags:\n- distillation\n---\n\n# org/pushed\n",
        "teaches `org/tiny`",
        "## Evaluations",
        "## Answers before and after",
        "--eval-data held-out.jsonl",
        "/org/pushed would get (private):\n  README.md",
        "model.safetensors",
        "Nothing was pushed; add --yes",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert!(hub.hub.requests().is_empty() && hub.hub.get("org/pushed").is_none());

    // By nobody, by somebody else, and by somebody who may not.
    let yes = [&to[..], &["--yes"]].concat();
    let args = [&["push", path_text(&run)], &yes[..]].concat();
    let error = refusal(hub.nobody(&args))?;
    assert!(error.contains("without a token"), "{error}");
    let mut other = hub.push(&run, &yes);
    other.env("HF_TOKEN", "hf_of_somebody_else");
    hub.fail(Faults::default());
    let error = refusal(other)?;
    assert!(
        error.contains("401") && error.contains("HF_TOKEN or"),
        "{error}"
    );
    assert!(!error.contains("hf_of_somebody_else"), "{error}");
    let forbidden = true;
    hub.fail(Faults {
        forbidden,
        ..Faults::default()
    });
    let error = refusal(hub.push(&run, &yes))?;
    assert!(error.contains("403"), "{error}");
    let mut offline = hub.push(&run, &yes);
    offline.env("HF_HUB_OFFLINE", "1");
    let error = refusal(offline)?;
    assert!(error.contains("HF_HUB_OFFLINE is set"), "{error}");
    assert!(hub.hub.get("org/pushed").is_none());

    // In parts, the second of which breaks off.
    hub.fail(Faults {
        part_bytes: Some(20_000),
        break_after: vec![20_000, 100],
        ..Faults::default()
    });
    let pushed = said(hub.push(&run, &yes))?;
    let page = format!("{}/org/pushed\n", hub.hub.endpoint());
    assert!(pushed.contains(&page), "{pushed}");
    assert!(
        hub.hub.get("org/pushed").context("it is there")?.1,
        "it is private"
    );
    let mut files = hub.files("org/pushed")?;
    let card = files.remove("README.md").context("a card")?;
    let card = String::from_utf8(card)?;
    assert!(shown.starts_with(card.trim_end()), "{card}");
    assert_eq!(files, files_in(&run.join("model"))?);

    // And back.
    hub.fail(Faults::default());
    let corpus = path_text(&setup.corpus);
    let eval = ["eval", "--student", "org/pushed", "--data", corpus];
    let eval = [&eval[..], &["--seq-len", "48", "--json"]].concat();
    let found = said(hub.nobody(&eval))?;
    assert!(found.contains("org/pushed: fetched"), "{found}");
    let commits = hub.home.join("hub/models--org--pushed/snapshots");
    let commit = fs::read_dir(commits)?.next().context("a commit")??;
    let fetched = files_in(&commit.path())?;
    assert!(fetched.contains_key("model.safetensors"));
    for (name, bytes) in fetched {
        assert!(files.get(&name) == Some(&bytes), "{name}");
    }

    // All of it is there.
    hub.hub.requests();
    let again = said(hub.push(&run, &yes))?;
    assert!(again.contains("nothing was pushed"), "{again}");
    let requests = hub.hub.requests();
    assert!(
        !requests.iter().any(|line| line.contains("/commit/")),
        "{requests:?}"
    );

    // A result that is not as it was written.
    let weights = run.join("model/model.safetensors");
    let mut bytes = fs::read(&weights)?;
    *bytes.last_mut().context("weights")? ^= 1;
    fs::write(&weights, bytes)?;
    let error = refusal(hub.push(&run, &yes))?;
    assert!(error.contains("is not as it was written"), "{error}");
    assert_eq!(hub.files("org/pushed")?.len(), files.len() + 1);
    Ok(())
}

/// A run whose student is a directory that a teacher with a name teaches.
fn adapter_run(setup: &Setup) -> Result<(Teacher, PathBuf)> {
    // As transformers notes where it found them.
    for (file, key) in [
        ("config.json", "_name_or_path"),
        ("tokenizer_config.json", "tokenizer_file"),
    ] {
        let path = setup.student.path().join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|_| "{}".to_owned());
        let mut fields: Value = serde_json::from_str(&text)?;
        fields[key] = "/home/somebody/models/secret".into();
        fs::write(&path, fields.to_string())?;
    }
    let teacher = setup.serve(&Listen::Loopback, &[]);
    let corpus = path_text(&setup.corpus);
    let run = setup.train(&teacher, "run", &["--steps", "1", "--eval-data", corpus]);
    Ok((teacher, run))
}

#[test]
fn an_adapter_names_its_base_and_nothing_of_this_machine() -> Result<()> {
    let setup = Setup::new()?;
    let hub = Hub::start(setup.work.path())?;
    hub.fail(Faults::default());
    let (teacher, run) = adapter_run(&setup)?;
    // What lies beside the result is nobody's business, by its name or as a link.
    for name in [
        "notes.txt",
        "credentials.json",
        "weights.safetensors",
        "a.gguf",
    ] {
        fs::write(run.join("adapter").join(name), "secret")?;
    }
    symlink("/etc/hostname", run.join("adapter/merges.txt"))?;
    let to = ["--to", "org/adapter", "--yes"];
    let error = refusal(hub.push(&run, &to))?;
    let student = path_text(setup.student.path());
    assert!(
        error.contains(student) && error.contains("--base org/name"),
        "{error}"
    );
    assert!(hub.hub.requests().is_empty());

    let commit = hub.hub.put_directory("org/base", setup.student.path())?;
    let base = format!("org/base@{commit}");
    let named = [&to[..], &["--base", &base]].concat();
    said(hub.push(&run, &named))?;
    let (mut files, private) = hub.hub.get("org/adapter").context("it is there")?;
    assert!(!private);
    let address = teacher.address().trim_start_matches("http://");
    let machine = [
        path_text(setup.work.path()),
        student,
        address,
        "/home/somebody",
        "/corpus/",
    ];
    for (name, bytes) in &files {
        let text = String::from_utf8_lossy(bytes);
        for part in machine {
            assert!(!text.contains(part), "{part} in {name}");
        }
    }
    for name in [
        "notes.txt",
        "credentials.json",
        "weights.safetensors",
        "a.gguf",
        "merges.txt",
    ] {
        assert!(!files.contains_key(name), "{name}");
    }
    let config = files
        .remove("adapter_config.json")
        .context("a configuration")?;
    let mut config: Value = serde_json::from_slice(&config)?;
    assert_eq!(config["base_model_name_or_path"], "org/base");
    assert_eq!(config["revision"], commit.as_str());
    let own = fs::read(run.join("adapter/adapter_config.json"))?;
    let own: Value = serde_json::from_slice(&own)?;
    // The run's own is as it was.
    assert_eq!(
        own["base_model_name_or_path"],
        path_text(&setup.student.path().canonicalize()?)
    );
    for key in ["base_model_name_or_path", "revision"] {
        config[key] = own[key].clone();
    }
    assert_eq!(config, own);
    let card = files.remove("README.md").context("a card")?;
    let card = String::from_utf8(card)?;
    let front = "---\nbase_model: \"org/base\"\nlibrary_name: peft\ntags:\n- distillation\n---\n\n# org/adapter\n";
    assert!(card.starts_with(front), "{card}");
    for expected in [
        "teaches `org/base`",
        "--student org/base",
        "--eval-data documents.txt",
    ] {
        assert!(card.contains(expected), "{expected}: {card}");
    }
    assert!(
        !card.contains("--out") && !card.contains("--teacher"),
        "{card}"
    );
    let weights = fs::read(run.join("adapter/adapter_model.safetensors"))?;
    assert!(files["adapter_model.safetensors"] == weights);
    assert!(files.contains_key("tokenizer.json"));

    // Whoever has its name alone is answered as whoever has the run.
    let ask = [
        "generate",
        "--prompt",
        "w1 w2",
        "--max-new-tokens",
        "4",
        "--adapter",
    ];
    let answer = |adapter: &str| said(hub.nobody(&[&ask[..], &[adapter, "--json"]].concat()));
    let object = |said: &str| {
        said.lines()
            .find(|line| line.starts_with('{'))
            .map(str::to_owned)
    };
    let by_name = answer("org/adapter")?;
    let by_name = object(&by_name).with_context(|| by_name.clone())?;
    let here = run.join("adapter");
    assert_eq!(object(&answer(path_text(&here))?), Some(by_name));
    assert!(
        hub.home
            .join("hub/models--org--base/snapshots")
            .join(&commit)
            .is_dir()
    );

    // Ctrl-C while storage breaks off.
    hub.fail(Faults {
        break_after: vec![10; 3],
        ..Faults::default()
    });
    let mut command = hub.push(
        &run,
        &["--to", "org/stopped", "--yes", "--base", "org/base"],
    );
    hub.hub.requests();
    // Of the adapter before, so that there is something to send.
    let changed = run.join("adapter/adapter_model.safetensors");
    let summary = run.join("summary.json");
    fs::remove_file(&summary)?;
    let mut bytes = weights.clone();
    *bytes.last_mut().context("weights")? ^= 1;
    fs::write(&changed, bytes)?;
    let mut child = command
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    wait_until("bytes on their way", || {
        hub.hub
            .requests()
            .iter()
            .any(|line| line.starts_with("PUT"))
    });
    send_signal(&child, libc::SIGINT);
    let status = ending(&mut child)?;
    let said = text(&child.wait_with_output()?);
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(
        said.contains("nothing has changed in org/stopped"),
        "{said}"
    );
    assert!(said.contains("the run is not finished"), "{said}");
    assert!(hub.files("org/stopped")?.is_empty());
    Ok(())
}

#[test]
fn what_export_wrote_is_pushed_too_and_nothing_else() -> Result<()> {
    let place = Place::new()?;
    let hub = Hub::start(place.setup.work.path())?;
    let student = path_text(place.setup.student.path());
    let adapter = place.run.join("adapter");
    let export = |format| {
        let out = place.fresh();
        let base = [
            "export",
            "--base",
            student,
            "--adapter",
            path_text(&adapter),
        ];
        said(trainer(
            &[&base[..], &["--format", format, "--out", &out]].concat(),
        ))?;
        anyhow::Ok(PathBuf::from(out))
    };
    let to = ["--to", "org/exported"];
    let model = export("hf")?;
    let noted = r#"{"_from_model_config": true, "_name_or_path": "/home/somebody/x"}"#;
    fs::write(model.join("generation_config.json"), noted)?;
    fs::write(model.join("notes.pdf"), "private")?;
    fs::write(model.join(".hidden.json"), "private")?;
    let shown = said(hub.push(&model, &to))?;
    assert!(
        shown.starts_with("---\nlibrary_name: transformers\n---\n"),
        "{shown}"
    );
    assert!(shown.contains("(public where it is new)"), "{shown}");
    assert!(
        shown.contains("not: notes.pdf, which is no file of a model"),
        "{shown}"
    );
    let yes = ["--to", "org/exported", "--base", "org/base", "--yes"];
    said(hub.push(&model, &yes))?;
    let files = hub.files("org/exported")?;
    assert!(files["model.safetensors"] == fs::read(model.join("model.safetensors"))?);
    assert_eq!(
        files["generation_config.json"],
        b"{\n  \"_from_model_config\": true\n}"
    );
    assert!(!files.contains_key("notes.pdf") && !files.contains_key(".hidden.json"));
    let card = String::from_utf8_lossy(&files["README.md"]).into_owned();
    assert!(
        card.contains("base_model: \"org/base\"") && card.contains("from `org/base`"),
        "{card}"
    );

    // A card of its own is the card, and weights of another form beside the old ones are told.
    let file = export("gguf")?;
    fs::write(file.join("README.md"), "# mine\n")?;
    let pushed = said(hub.push(&file, &yes))?;
    assert!(
        pushed.contains("holds other weights as well") && pushed.contains("model.safetensors"),
        "{pushed}"
    );
    let files = hub.files("org/exported")?;
    assert_eq!(files["README.md"], b"# mine\n");
    for name in ["model.gguf", "Modelfile"] {
        assert!(files[name] == fs::read(file.join(name))?, "{name}");
    }
    // The base of the adapter alone is on this machine.
    let lora = export("gguf-lora")?;
    let shown = said(hub.push(&lora, &to))?;
    assert!(
        shown.contains("  adapter.gguf") && shown.contains("not: Modelfile"),
        "{shown}"
    );

    let empty = PathBuf::from(place.fresh());
    let unfinished = PathBuf::from(place.fresh());
    for directory in [&empty, &unfinished] {
        fs::create_dir(directory)?;
    }
    fs::write(unfinished.join("config.toml"), "")?;
    for (from, flags, expected) in [
        (&adapter, &to[..], "name the run that made it"),
        (&empty, &to[..], "is neither a run directory"),
        (&empty.join("gone"), &to[..], "is neither a run directory"),
        (&unfinished, &to[..], "has no result yet"),
        (
            &place.run,
            &["--to", "nonsense"][..],
            "to: `nonsense` is no name",
        ),
        (
            &place.run,
            &["--to", "org/name@v1"][..],
            "name the repository alone",
        ),
        (
            &place.run,
            &["--to", "org/name", "--base", "/tmp/x"][..],
            "base: `/tmp/x` is no name",
        ),
    ] {
        let error = refusal(hub.push(from, flags))?;
        assert!(error.contains(expected), "{expected}: {error}");
    }
    Ok(())
}
