use super::*;

#[test]
fn offline_a_filled_cache_serves_and_says_what_it_lacks() {
    let fixture = Fixture::new();
    let error = fixture.fetch_as(REPO, &fixture.offline()).unwrap_err();
    assert!(
        error.contains("models--org--tiny lacks revision `main`"),
        "{error}"
    );
    let path = fixture.fetch().unwrap();
    assert_eq!(fixture.fetch_as(REPO, &fixture.offline()).unwrap(), path);
    for name in ["tokenizer.json", "config.json"] {
        let blob = fs::canonicalize(path.join(name)).unwrap();
        fs::remove_file(blob).unwrap();
        let error = fixture.fetch_as(REPO, &fixture.offline()).unwrap_err();
        assert!(
            error.contains(name) && error.contains(&fixture.commit),
            "{error}"
        );
    }
    // A link to nothing is mended.
    fixture.fetch().unwrap();
    fixture.fetch_as(REPO, &fixture.offline()).unwrap();
}

#[test]
fn a_hub_that_is_away_leaves_the_cache_to_serve() {
    let fixture = Fixture::new();
    fixture.hub.fail(Faults {
        down: true,
        ..Faults::default()
    });
    let error = fixture.fetch().unwrap_err();
    assert!(
        error.contains("org/tiny: there is no such path here") && error.contains("503"),
        "{error}"
    );
    fixture.hub.fail(Faults::default());
    let path = fixture.fetch().unwrap();
    fixture.hub.fail(Faults {
        down: true,
        ..Faults::default()
    });
    assert_eq!(fixture.fetch().unwrap(), path);
    let nowhere = Environment {
        endpoint: "http://127.0.0.1:1".into(),
        ..fixture.environment()
    };
    assert_eq!(fixture.fetch_as(REPO, &nowhere).unwrap(), path);
}

#[test]
fn shards_are_those_of_the_index_and_shared_blobs_are_kept() {
    let fixture = Fixture::new();
    fixture.fetch().unwrap();
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let commit = fixture.hub.put(
        REPO,
        &[
            ("config.json", CONFIG),
            ("tokenizer.json", b"{}"),
            ("model.safetensors.index.json", index),
            ("model-1.safetensors", &weights()),
            ("model-2.safetensors", b"two"),
            ("extra.safetensors", b"never"),
        ],
    );
    fixture.hub.requests();
    let path = fixture.fetch().unwrap();
    assert!(path.ends_with(&commit));
    let found = names(&path);
    assert!(
        found.contains(&"model-2.safetensors".into())
            && !found.contains(&"extra.safetensors".into()),
        "{found:?}"
    );
    // The first shard is the old weights under another name, so its bytes do not travel again.
    let requests = fixture.hub.requests();
    assert!(
        !requests
            .iter()
            .any(|request| request.contains("GET") && request.contains("model-1")),
        "{requests:?}"
    );
    // The old commit is still there for who named it.
    let pinned = format!("{REPO}@{}", fixture.commit);
    fixture.fetch_as(&pinned, &fixture.offline()).unwrap();
    fs::remove_file(path.join("model-2.safetensors")).unwrap();
    let error = fixture.fetch_as(REPO, &fixture.offline()).unwrap_err();
    assert!(error.contains("lacks model-2.safetensors"), "{error}");
}

#[test]
fn a_gguf_file_is_fetched_alone() {
    let fixture = Fixture::new();
    fixture.hub.put(
        "org/q-GGUF",
        &[
            ("q4.gguf", b"four"),
            ("q8.gguf", b"eight"),
            ("config.json", CONFIG),
        ],
    );
    let path = fixture
        .fetch_as("org/q-GGUF/q8.gguf", &fixture.environment())
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"eight");
    assert_eq!(names(path.parent().unwrap()), ["q8.gguf"]);
    assert_eq!(
        fixture
            .fetch_as("org/q-GGUF/q8.gguf", &fixture.offline())
            .unwrap(),
        path
    );
    let config = find("org/q-GGUF", &fixture.environment(), Wanted::Config).unwrap();
    assert_eq!(fs::read(config.path.join("config.json")).unwrap(), CONFIG);
}

#[test]
fn chat_templates_of_their_own_folder_arrive_in_it() {
    const TOOL_USE: &str = "additional_chat_templates/tool_use.jinja";
    let fixture = Fixture::new();
    let files: [(&str, &[u8]); 4] = [
        ("tokenizer.json", b"{}"),
        ("chat_template.jinja", b"default"),
        (TOOL_USE, b"with tools"),
        ("additional_chat_templates/deeper/x.jinja", b"never"),
    ];
    fixture.hub.put("org/tools", &files);
    let fetch = |environment: &Environment| find("org/tools", environment, Wanted::Tokenizer);
    let path = fetch(&fixture.environment()).unwrap().path;
    assert_eq!(fs::read(path.join(TOOL_USE)).unwrap(), b"with tools");
    assert_eq!(
        names(&path.join("additional_chat_templates")),
        ["tool_use.jinja"]
    );
    let link = fs::read_link(path.join(TOOL_USE)).unwrap();
    assert!(link.starts_with("../../../blobs"), "{link:?}");
    assert_eq!(fetch(&fixture.offline()).unwrap().path, path);
    fixture.hub.requests();
    fetch(&fixture.environment()).unwrap();
    assert_eq!(
        fixture.hub.requests().len(),
        1,
        "nothing is asked for twice"
    );

    for name in [
        "additional_chat_templates/../../../../x.jinja",
        "additional_chat_templates//tmp/x.jinja",
    ] {
        fixture
            .hub
            .put("org/evil", &[("tokenizer.json", b"{}"), (name, b"x")]);
        let error = find("org/evil", &fixture.environment(), Wanted::Tokenizer).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains(name) && error.contains("leads out"),
            "{error}"
        );
    }
    let cache = fixture.environment().cache;
    assert!(!cache.join("models--org--evil").exists());
}

#[test]
fn many_at_once_make_one_whole_copy() {
    let fixture = Fixture::new();
    let environment = fixture.environment();
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| fixture.fetch_as(REPO, &environment)))
            .collect();
        for fetch in fetches {
            let path = fetch.join().unwrap().unwrap();
            assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
        }
    });
    let fetched = fixture
        .hub
        .requests()
        .iter()
        .filter(|request| request.contains("GET /org/tiny/resolve"))
        .count();
    assert_eq!(fetched, 3, "every file travels once");
    assert_eq!(names(&fixture.root().join("blobs")).len(), 3);
}

#[test]
fn a_full_disk_is_named_with_what_is_missing() {
    let fixture = Fixture::new();
    fixture.hub.fail(Faults {
        cut_after: vec![1000, 0, 0, 0, 0, 0],
        ..Faults::default()
    });
    fixture.fetch().unwrap_err();
    let partial = fixture.partial();
    fs::remove_file(&partial).unwrap();
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    fixture.hub.fail(Faults::default());
    let error = fixture.fetch().unwrap_err();
    assert!(
        error.contains("the disk is full, 300000 bytes are still missing"),
        "{error}"
    );
}

#[test]
fn a_wish_to_stop_is_heard_and_keeps_what_arrived() {
    let fixture = Fixture::new();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let stopped = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 12;
    let options = Options {
        wanted: Wanted::Model,
        stopped: &stopped,
    };
    let error = resolve_in(Path::new(REPO), &fixture.environment(), &options).unwrap_err();
    assert!(matches!(error, Error::Stopped), "{error}");
    fixture.fetch().unwrap();
}

#[test]
fn a_path_wins_and_names_from_the_server_cannot_leave_the_cache() {
    let fixture = Fixture::new();
    let directory = fixture.home.path().to_str().unwrap();
    let located = find(directory, &fixture.environment(), Wanted::Model).unwrap();
    assert_eq!(
        (located.path.to_str().unwrap(), located.reference),
        (directory, None)
    );
    assert!(fixture.hub.requests().is_empty());
    fixture.hub.put(
        "org/evil",
        &[
            ("config.json", CONFIG),
            ("../../x.gguf", b"x"),
            ("tokenizer.json", b"{}"),
        ],
    );
    let error = fixture
        .fetch_as("org/evil", &fixture.environment())
        .unwrap_err();
    assert!(error.contains("no model.safetensors"), "{error}");
}
