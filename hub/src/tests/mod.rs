//! Checks fetching against a hub on loopback that behaves, misbehaves and goes away.

mod cache;
mod push;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    Environment, Error, Located, Options, Token, Wanted, resolve_in,
    stand_in::{Faults, StandIn},
};

const CONFIG: &[u8] = b"{\"model_type\": \"qwen2\"}";
const REPO: &str = "org/tiny";

struct Fixture {
    hub: StandIn,
    commit: String,
    home: tempfile::TempDir,
}

/// Weights that no compression or repetition could hide a shift in.
fn weights() -> Vec<u8> {
    (0..300_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

impl Fixture {
    fn new() -> Self {
        let hub = StandIn::start().unwrap();
        let commit = hub.put(
            REPO,
            &[
                ("config.json", CONFIG),
                ("tokenizer.json", b"{}"),
                ("model.safetensors", &weights()),
                ("pytorch_model.bin", b"never"),
                ("README.md", b"never"),
            ],
        );
        let home = tempfile::tempdir().unwrap();
        Self { hub, commit, home }
    }

    fn environment(&self) -> Environment {
        Environment {
            cache: self.home.path().join("hub"),
            endpoint: self.hub.endpoint().to_owned(),
            token: None,
            token_file: self.home.path().join("token"),
            authorities: None,
            offline: false,
            retry_wait: Duration::ZERO,
        }
    }

    fn root(&self) -> PathBuf {
        self.home.path().join("hub/models--org--tiny")
    }

    fn offline(&self) -> Environment {
        Environment {
            offline: true,
            endpoint: "http://127.0.0.1:1".into(),
            ..self.environment()
        }
    }

    fn fetch(&self) -> Result<PathBuf, String> {
        self.fetch_as(REPO, &self.environment())
    }

    fn fetch_as(&self, name: &str, environment: &Environment) -> Result<PathBuf, String> {
        find(name, environment, Wanted::Model)
            .map(|located| located.path)
            .map_err(|e| e.to_string())
    }

    fn partial(&self) -> PathBuf {
        let blobs = fs::read_dir(self.root().join("blobs"))
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let partial: Vec<PathBuf> = blobs.filter(|path| path.extension().is_some()).collect();
        assert_eq!(partial.len(), 1, "{partial:?}");
        partial[0].clone()
    }
}

fn find(name: &str, environment: &Environment, wanted: Wanted) -> Result<Located, Error> {
    let options = Options {
        wanted,
        stopped: &|| false,
    };
    resolve_in(Path::new(name), environment, &options)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_repository_arrives_with_what_is_needed_and_in_the_hub_s_layout() {
    let fixture = Fixture::new();
    let path = fixture.fetch().unwrap();
    assert_eq!(path, fixture.root().join("snapshots").join(&fixture.commit));
    assert_eq!(
        names(&path),
        ["config.json", "model.safetensors", "tokenizer.json"]
    );
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
    assert_eq!(fs::read(path.join("config.json")).unwrap(), CONFIG);
    let link = fs::read_link(path.join("config.json")).unwrap();
    assert!(link.starts_with("../../blobs"), "{link:?}");
    assert_eq!(
        fs::read_to_string(fixture.root().join("refs/main")).unwrap(),
        fixture.commit
    );
    assert_eq!(names(&fixture.root()), ["blobs", "refs", "snapshots"]);
    assert_eq!(names(&fixture.root().join("blobs")).len(), 3);

    // The second time the hub is asked for the revision alone.
    fixture.hub.requests();
    assert_eq!(fixture.fetch().unwrap(), path);
    assert_eq!(
        fixture.hub.requests(),
        ["GET /api/models/org/tiny/revision/main"]
    );
    // A commit needs no question.
    let pinned = format!("{REPO}@{}", fixture.commit);
    assert_eq!(
        fixture.fetch_as(&pinned, &fixture.environment()).unwrap(),
        path
    );
    assert!(fixture.hub.requests().is_empty());
}

#[test]
fn an_interrupted_transfer_goes_on_where_it_stopped() {
    let fixture = Fixture::new();
    fixture.hub.fail(Faults {
        cut_after: vec![100_000, 50_000],
        ..Faults::default()
    });
    let path = fixture.fetch().unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
    let requests = fixture.hub.requests();
    for from in [100_000, 150_000] {
        assert!(
            requests
                .iter()
                .any(|request| request.ends_with(&format!("from {from}"))),
            "{requests:?}"
        );
    }
}

#[test]
fn a_run_that_ended_is_continued_by_the_next_and_never_taken_for_whole() {
    let fixture = Fixture::new();
    fixture.hub.fail(Faults {
        cut_after: vec![200_000, 0, 0, 0, 0, 0],
        ..Faults::default()
    });
    let error = fixture.fetch().unwrap_err();
    assert!(
        error.contains("broke off after 200000 of 300000 bytes"),
        "{error}"
    );
    assert!(!error.contains("secret"), "{error}");
    assert_eq!(fs::metadata(fixture.partial()).unwrap().len(), 200_000);
    assert!(!fixture.root().join("refs").exists());
    let error = fixture.fetch_as(REPO, &fixture.offline()).unwrap_err();
    assert!(error.contains("HF_HUB_OFFLINE is set"), "{error}");

    fixture.hub.fail(Faults::default());
    fixture.hub.requests();
    let path = fixture.fetch().unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
    assert!(
        fixture
            .hub
            .requests()
            .iter()
            .any(|request| request.ends_with("from 200000"))
    );
    assert_eq!(names(&fixture.root().join("blobs")).len(), 3);
}

#[test]
fn a_server_that_cannot_continue_starts_over() {
    let fixture = Fixture::new();
    fixture.hub.fail(Faults {
        cut_after: vec![100_000],
        ignore_range: true,
        ..Faults::default()
    });
    let path = fixture.fetch().unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn a_damaged_beginning_is_thrown_away_and_fetched_anew() {
    let fixture = Fixture::new();
    fixture.hub.fail(Faults {
        cut_after: vec![200_000, 0, 0, 0, 0, 0],
        ..Faults::default()
    });
    fixture.fetch().unwrap_err();
    for damaged in [vec![7; 200_000], vec![7; 300_000], vec![7; 400_000]] {
        fs::write(fixture.partial(), damaged).unwrap();
        fixture.hub.fail(Faults {
            cut_after: vec![50_000, 150_000, 0, 0, 0, 0, 0],
            ..Faults::default()
        });
        fixture.fetch().unwrap_err();
    }
    fs::write(fixture.partial(), vec![7; 200_000]).unwrap();
    fixture.hub.fail(Faults::default());
    let path = fixture.fetch().unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn a_wrong_checksum_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new();
    fixture.hub.fail(Faults {
        flip: true,
        ..Faults::default()
    });
    let error = fixture.fetch().unwrap_err();
    assert!(error.contains("what arrived has the digest"), "{error}");
    let snapshot = fixture.root().join("snapshots").join(&fixture.commit);
    assert_eq!(names(&snapshot), ["config.json", "tokenizer.json"]);
    assert_eq!(names(&fixture.root().join("blobs")).len(), 2);
    fixture.hub.fail(Faults::default());
    fixture.fetch().unwrap();
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_storage() {
    let fixture = Fixture::new();
    fixture.hub.fail(Faults {
        gated: Some("hf_right".into()),
        expired: 2,
        ..Faults::default()
    });
    let place = fixture.home.path().join("token").display().to_string();
    let error = fixture.fetch().unwrap_err();
    for part in [
        "401",
        "accept its terms at",
        "HF_TOKEN",
        &place,
        "said by the stand-in",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let with = |token: &str| Environment {
        token: Token::new(token),
        ..fixture.environment()
    };
    let error = fixture.fetch_as(REPO, &with("hf_wrong")).unwrap_err();
    assert!(
        error.contains("with the account of the token") && !error.contains("hf_wrong"),
        "{error}"
    );
    fixture.hub.requests();
    fixture.fetch_as(REPO, &with("hf_right")).unwrap();
    for request in fixture.hub.requests() {
        assert_eq!(
            request.ends_with("with token"),
            request.contains("org/tiny"),
            "{request}"
        );
    }
}

#[test]
fn authorities_must_be_certificates() {
    let fixture = Fixture::new();
    let path = fixture.home.path().join("ca.pem");
    fs::write(&path, "no certificate").unwrap();
    let environment = Environment {
        authorities: Some(path),
        ..fixture.environment()
    };
    let error = fixture.fetch_as(REPO, &environment).unwrap_err();
    assert!(error.contains("holds no PEM certificate"), "{error}");
}

#[test]
fn what_does_not_exist_is_named() {
    let fixture = Fixture::new();
    let fetch = |name: &str| fixture.fetch_as(name, &fixture.environment()).unwrap_err();
    let error = fetch("org/other");
    assert!(
        error.contains("org/other") && error.contains("does not exist, or it is private"),
        "{error}"
    );
    let error = fetch("org/tiny@v9");
    assert!(error.contains("no such revision `v9`"), "{error}");
    let error = fetch("no-such-directory");
    assert!(
        error.contains("no such file or directory, and it is no name on the hub either"),
        "{error}"
    );
    fixture.hub.put(
        "org/pickle",
        &[("config.json", CONFIG), ("pytorch_model.bin", b"x")],
    );
    let error = fetch("org/pickle");
    assert!(
        error.contains("org/pickle has no model.safetensors"),
        "{error}"
    );
}
