//! Checkpoints that were damaged or edited: each is refused by file and field, and the message names the way out.

use super::{
    tests::{files, latest, open, state},
    *,
};
use crate::train::LossScaleState;

/// A state in which every kind of value has one.
fn full_state(step: usize) -> RunState {
    let mut full = state(step, Some(10));
    full.silent = vec!["a.weight".into()];
    full.data = DataCursor {
        pass: 1,
        next_index: 5,
        cursor: "00ff".into(),
        sequence: "a1".into(),
        frames: 20,
        taken: 13,
    };
    full.log.metrics_bytes = 1234;
    full.evals.evaluated = 10;
    full.evals.best = full.evals.best.map(|best| Best {
        value: 0.1 + 0.2,
        ..best
    });
    full.loss_scale = Some(LossScaleState {
        scale: 1024.0,
        good_steps: 3,
        skipped: 1,
    });
    full.identity.teacher = "77aa".into();
    full
}

/// Checkpoints of steps 10 and 20; returns the newest one's directory.
fn two(run: &Path) -> PathBuf {
    let checkpoints = open(run);
    for step in [10, 20] {
        checkpoints.save(full_state(step), files(step)).unwrap();
    }
    run.join("checkpoints/step-000020")
}

#[track_caller]
fn refusal(run: &Path) -> String {
    open(run).latest().map(drop).unwrap_err().to_string()
}

#[test]
fn a_flipped_bit_in_any_byte_of_any_file_is_refused_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let newest = two(dir.path());
    for file in ["model.safetensors", "config.json", STATE_FILE] {
        let path = newest.join(file);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&path, &flipped).unwrap();
            let message = refusal(dir.path());
            assert!(message.contains(file), "byte {at} of {file}: {message}");
        }
        // The last byte of a text is a line's end, which says nothing.
        for length in [0, whole.len() / 2, whole.len() - 2] {
            fs::write(&path, &whole[..length]).unwrap();
            let message = refusal(dir.path());
            assert!(message.contains(file), "{file} cut at {length}: {message}");
        }
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(latest(dir.path()), Some(20));
}

#[test]
fn every_number_of_a_state_that_was_edited_is_refused_by_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = two(dir.path()).join(STATE_FILE);
    let whole = fs::read_to_string(&path).unwrap();
    let (mut section, mut edited) = (String::new(), 0);
    for line in whole.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        }
        let Some((name, number)) = line.split_once(" = ") else {
            continue;
        };
        let Ok(number) = number.parse::<f64>() else {
            continue;
        };
        for change in ["0", "1", "7000000", "-1", "0.25", "nan"] {
            if change.parse() == Ok(number) {
                continue;
            }
            let text = whole.replacen(line, &format!("{name} = {change}"), 1);
            fs::write(&path, text).unwrap();
            let (message, field) = (refusal(dir.path()), format!("{section}{name}"));
            assert!(
                message.contains(STATE_FILE) && message.contains(&field),
                "{field} = {change}: {message}"
            );
        }
        edited += 1;
    }
    // format, step, total_steps; four of data; two of log; two of evals, two of the best; three of the loss's scale.
    assert_eq!(edited, 3 + 4 + 2 + 2 + 2 + 3, "{whole}");
}

#[test]
fn a_text_of_a_state_that_was_edited_is_refused_by_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = two(dir.path()).join(STATE_FILE);
    let whole = fs::read_to_string(&path).unwrap();
    for (from, to, field) in [
        ("\"00ff\"", "\"00fe\"", "data.cursor"),
        ("\"a1\"", "\"\"", "data.sequence"),
        ("\"a.weight\"", "", "silent"),
        ("\"77aa\"", "\"77ab\"", "identity.teacher"),
        ("skipped = 1\n", "", "loss_scale.skipped"),
        ("pass = 1\n", "pass = 1\npasses = 1\n", "data.passes"),
        // Nothing left to look at.
        ("[files]", "[file]", "file"),
        ("[checksums]", "[sums]", "checksums"),
    ] {
        let text = whole.replacen(from, to, 1);
        assert_ne!(text, whole, "{from}");
        fs::write(&path, text).unwrap();
        let message = refusal(dir.path());
        assert!(message.contains(field), "{from} -> {to}: {message}");
    }
}

#[test]
fn a_damaged_newest_checkpoint_names_the_newest_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let newest = two(dir.path());
    let before = dir.path().join("checkpoints/step-000010");
    fs::remove_file(newest.join("config.json")).unwrap();
    let message = refusal(dir.path());
    assert!(
        message.contains("config.json")
            && message.contains("remove this checkpoint to go on from step-000010"),
        "{message}"
    );
    fs::write(before.join("config.json"), "{ }").unwrap();
    let message = refusal(dir.path());
    assert!(
        message.contains("step-000020") && message.contains("no checkpoint before it is whole"),
        "{message}"
    );
    fs::write(before.join("config.json"), "{}").unwrap();
    fs::remove_dir_all(newest).unwrap();
    assert_eq!(latest(dir.path()), Some(10));
}

#[test]
fn a_checkpoint_under_the_name_of_another_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let newest = two(dir.path());
    let renamed = dir.path().join("checkpoints/step-000030");
    fs::rename(newest, renamed).unwrap();
    let message = refusal(dir.path());
    assert!(
        message.contains("step-000030") && message.contains("step is 20"),
        "{message}"
    );
    // A name that no run writes is no checkpoint.
    let dir = tempfile::tempdir().unwrap();
    let newest = two(dir.path());
    fs::rename(newest, dir.path().join("checkpoints/step-30")).unwrap();
    assert_eq!(latest(dir.path()), Some(10));
}

/// The state as the release before checksums wrote it.
fn without_checksums(text: &str) -> String {
    let (state, _) = text.split_once("\n[checksums]").unwrap();
    state.replacen("format = 2", "format = 1", 1)
}

#[test]
fn a_checkpoint_of_the_release_before_checksums_is_read_and_one_of_a_later_release_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = two(dir.path()).join(STATE_FILE);
    let whole = fs::read_to_string(&path).unwrap();
    let old = without_checksums(&whole);
    fs::write(&path, &old).unwrap();
    assert_eq!(latest(dir.path()), Some(20));
    // Its files are looked at, too.
    fs::write(&path, old.replacen("[files]", "[file]", 1)).unwrap();
    let checkpoint = open(dir.path()).latest().unwrap().unwrap();
    let message = checkpoint.tensors("model.safetensors").unwrap_err();
    assert!(message.to_string().contains("not among the files"));
    // Who takes the checksums out of a new one does not make an old one of it.
    fs::write(&path, old.replacen("format = 1", "format = 2", 1)).unwrap();
    assert!(refusal(dir.path()).contains("checksums are missing"));
    let later = old.replacen("format = 1", "format = 3", 1);
    for text in [later.clone(), sums::seal(&later).unwrap()] {
        fs::write(&path, text).unwrap();
        let message = refusal(dir.path());
        assert!(
            message.contains("format is 3") && message.contains("release that wrote it"),
            "{message}"
        );
    }
}

#[test]
fn a_best_checkpoint_that_is_gone_or_damaged_is_not_pointed_to() {
    for damage in [
        |best: &Path| fs::remove_dir_all(best).unwrap(),
        |best: &Path| fs::write(best.join("config.json"), "{ }").unwrap(),
    ] {
        let dir = tempfile::tempdir().unwrap();
        two(dir.path());
        let link = dir.path().join("best");
        assert!(open(dir.path()).find_best(10).unwrap() && link.join(STATE_FILE).is_file());
        damage(&dir.path().join("checkpoints/step-000010"));
        assert!(!open(dir.path()).find_best(10).unwrap());
        assert!(!link.is_symlink());
        // A link that was lost between two operations comes back.
        assert!(open(dir.path()).find_best(20).unwrap());
        assert!(link.join(STATE_FILE).is_file());
    }
}
