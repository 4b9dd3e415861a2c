//! Checks pushing: what arrives, what is sent again and what is not, and who may.

use std::{fs, ops::Deref, path::Path};

use super::*;
use crate::{Content, Push, Pushed, Reference, Upload, push_in};

const TO: &str = "org/pushed";
const CARD: &[u8] = b"---\n---\n# a card\n";

/// Somebody with files to push.
struct Pusher {
    fixture: Fixture,
    to: Reference,
    files: Vec<Upload>,
}

impl Deref for Pusher {
    type Target = Fixture;

    fn deref(&self) -> &Fixture {
        &self.fixture
    }
}

impl Pusher {
    /// With weights on disk, and the rest in memory.
    fn new() -> Self {
        let fixture = Fixture::new();
        let path = fixture.home.path().join("weights");
        fs::write(&path, weights()).unwrap();
        let files = [
            ("README.md", Content::Bytes(CARD.to_vec())),
            ("config.json", Content::Bytes(CONFIG.to_vec())),
            ("model.safetensors", Content::File(path)),
            ("tokenizer.json", Content::Bytes(Vec::new())),
        ];
        let upload = |(name, content)| Upload::new(name, content).unwrap();
        Self {
            fixture,
            to: Reference::parse(TO).unwrap(),
            files: files.map(upload).into(),
        }
    }

    fn writing(&self) -> Environment {
        Environment {
            token: Token::new("hf_writer"),
            ..self.environment()
        }
    }

    fn push<'a>(&'a self, change: impl FnOnce(&mut Push<'a>)) -> Result<Pushed, Error> {
        self.push_as(&self.writing(), change)
    }

    fn push_as<'a>(
        &'a self,
        environment: &Environment,
        change: impl FnOnce(&mut Push<'a>),
    ) -> Result<Pushed, Error> {
        let mut push = Push {
            to: &self.to,
            private: false,
            files: &self.files,
            summary: "a push",
            stopped: &|| false,
        };
        change(&mut push);
        push_in(&push, environment)
    }

    /// What the hub has by now, which must be all of it.
    fn check(&self) {
        let (files, _) = self.hub.get(TO).unwrap();
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        let expected: Vec<&str> = self.files.iter().map(Upload::name).collect();
        assert_eq!(names, expected);
        assert_eq!(files["README.md"], CARD);
        assert_eq!(files["model.safetensors"], weights());
        assert!(files["tokenizer.json"].is_empty());
    }

    /// The requests so far that send bytes to storage.
    fn puts(&self) -> usize {
        let requests = self.hub.requests();
        let to_storage = |request: &&String| request.starts_with("PUT");
        requests.iter().filter(to_storage).count()
    }
}

#[test]
fn what_was_pushed_is_fetched_again_and_not_sent_twice() {
    let pusher = Pusher::new();
    let pushed = pusher.push(|push| push.private = true).unwrap();
    assert_eq!(pushed.url, format!("{}/{TO}", pusher.hub.endpoint()));
    assert!(pushed.commit.is_some() && pushed.others.is_empty());
    pusher.check();
    assert!(pusher.hub.get(TO).unwrap().1, "it is private");
    // The token went to the hub alone.
    let requests = pusher.hub.requests();
    for request in &requests {
        let to_storage = request.starts_with("PUT");
        assert_ne!(to_storage, request.ends_with(" with token"), "{request}");
    }
    assert!(requests.last().unwrap().contains("/commit/main"));

    let path = pusher.fetch_as(TO, &pusher.environment()).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
    pusher.hub.requests();

    // All of it is there: nothing is sent, and there is no commit of nothing.
    let again = pusher.push(|push| push.private = true).unwrap();
    assert_eq!(again.commit, None);
    let requests = pusher.hub.requests();
    let questions = ["GET", "POST"].map(|verb| format!("{verb} /api/models/{TO}"));
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(
        requests
            .iter()
            .zip(&questions)
            .all(|(a, b)| a.starts_with(b))
    );

    // Weights that storage has for another repository are not sent either.
    let other = Reference::parse("org/other").unwrap();
    pusher.push(|push| push.to = &other).unwrap();
    assert_eq!(pusher.puts(), 0);
    assert_eq!(pusher.hub.get("org/other").unwrap().0.len(), 4);
}

#[test]
fn weights_that_stay_beside_new_ones_are_named() {
    let pusher = Pusher::new();
    pusher.hub.put(
        TO,
        &[
            ("model-00001-of-00002.safetensors", b"old"),
            ("a.txt", b"old"),
        ],
    );
    let pushed = pusher.push(|_| {}).unwrap();
    assert_eq!(pushed.others, ["model-00001-of-00002.safetensors"]);
    assert_eq!(pusher.hub.get(TO).unwrap().0.len(), 6);
}

#[test]
fn large_files_go_in_parts_where_storage_wants_it() {
    let pusher = Pusher::new();
    pusher.hub.fail(Faults {
        part_bytes: Some(70_000),
        break_after: vec![70_000, 1000],
        ..Faults::default()
    });
    pusher.push(|_| {}).unwrap();
    pusher.check();
    // Five parts, the second of them twice.
    assert_eq!(pusher.puts(), 6);
}

#[test]
fn an_upload_that_breaks_off_is_tried_again_and_at_last_given_up() {
    let pusher = Pusher::new();
    pusher.hub.fail(Faults {
        break_after: vec![1000, 200_000],
        ..Faults::default()
    });
    pusher.push(|_| {}).unwrap();
    pusher.check();

    let pusher = Pusher::new();
    pusher.hub.fail(Faults {
        expired: 1,
        busy: 2,
        ..Faults::default()
    });
    pusher.push(|_| {}).unwrap();
    pusher.check();

    let pusher = Pusher::new();
    pusher.hub.fail(Faults {
        break_after: vec![1000; 3],
        ..Faults::default()
    });
    let error = pusher.push(|_| {}).unwrap_err().to_string();
    assert!(
        error.contains("/whole/") && !error.contains("secret"),
        "{error}"
    );
    // The repository is there, and nothing in it.
    assert!(pusher.hub.get(TO).unwrap().0.is_empty());
    pusher.push(|_| {}).unwrap();
    pusher.check();
}

#[test]
fn a_push_that_is_stopped_changes_nothing() {
    let pusher = Pusher::new();
    let asked = std::cell::Cell::new(0);
    // Some of the bytes are on their way by then.
    let stopped = || {
        asked.set(asked.get() + 1);
        asked.get() > 8
    };
    let error = pusher.push(|push| push.stopped = &stopped).unwrap_err();
    assert!(error.is_stop(), "{error}");
    assert!(
        error
            .to_string()
            .contains("nothing has changed in org/pushed")
    );
    assert!(pusher.hub.get(TO).unwrap().0.is_empty());
    assert!(
        !pusher
            .hub
            .requests()
            .iter()
            .any(|line| line.contains("/commit/"))
    );
}

#[test]
fn who_may_not_push_is_told_what_to_do() {
    let pusher = Pusher::new();
    let refused = |faults: Faults, environment: &Environment| {
        pusher.hub.fail(faults);
        let error = pusher.push_as(environment, |_| {}).unwrap_err();
        assert!(pusher.hub.get(TO).is_none());
        error.to_string()
    };
    let token = |text: &str| Environment {
        token: Token::new(text),
        ..pusher.environment()
    };
    let place = pusher.home.path().join("token");
    let place = format!("HF_TOKEN or {}", place.display());
    let error = refused(Faults::default(), &pusher.environment());
    assert!(
        error.contains("without a token") && error.contains(&place),
        "{error}"
    );
    assert!(pusher.hub.requests().is_empty());
    let offline = Environment {
        offline: true,
        ..pusher.writing()
    };
    let error = refused(Faults::default(), &offline);
    assert!(error.contains("unset it"), "{error}");
    assert!(pusher.hub.requests().is_empty());

    let writer = || Faults {
        writer: Some("hf_writer".into()),
        ..Faults::default()
    };
    let error = refused(writer(), &token("hf_secret"));
    for part in ["401", "does not know the token", &place, "/settings/tokens"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("hf_secret"), "{error}");
    let forbidden = Faults {
        forbidden: true,
        ..writer()
    };
    let error = refused(forbidden, &pusher.writing());
    assert!(
        error.contains("403") && error.contains("is org or belongs to it"),
        "{error}"
    );
    let moved = Faults {
        moved: Some("org/elsewhere".into()),
        ..writer()
    };
    let error = refused(moved, &pusher.writing());
    assert!(
        error.contains("another name on the hub now (org/elsewhere)"),
        "{error}"
    );
    let busy = Faults {
        busy: 3,
        ..writer()
    };
    let error = refused(busy, &pusher.writing());
    assert!(error.contains("429"), "{error}");
    // A repository that everybody sees does not become private by itself.
    pusher.hub.fail(writer());
    pusher.hub.put(TO, &[("a.txt", b"old")]);
    let error = pusher.push(|push| push.private = true).unwrap_err();
    assert!(matches!(error, Error::Public { .. }), "{error}");
    assert!(
        error.to_string().contains(&format!("/{TO}/settings")),
        "{error}"
    );
    assert_eq!(pusher.hub.get(TO).unwrap().0.len(), 1);
}

#[test]
fn a_file_that_cannot_be_read_is_named_before_anything_is_made() {
    let pusher = Pusher::new();
    let gone = Path::new("/nonexistent/model.safetensors");
    let files = [Upload::new("model.safetensors", Content::File(gone.to_owned())).unwrap()];
    let error = pusher.push(|push| push.files = &files).unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
    assert!(pusher.hub.get(TO).is_none() && pusher.hub.requests().is_empty());
}
