//! Event files to the byte, and how they go on. `tests/fixtures/check_tensorboard.py` reads them with TensorBoard itself.

use std::fs;

use super::*;

const GOLDEN: &str = "tests/fixtures/tensorboard/resumed";

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Steps 1 to 4, and after a crash again 3 and 4 with other values: what the golden files hold.
fn two_processes(directory: &Path) -> [Vec<u8>; 2] {
    let lines = |board: &mut TensorBoard, steps: std::ops::RangeInclusive<usize>, add: f64| {
        for step in steps {
            let value = step as f64 + add;
            let scalars = [("loss/total", value), ("train/lr", 0.0)];
            board.scalars(1000.0 + value, step, &scalars).unwrap();
        }
    };
    let mut first = TensorBoard::open_at(directory, 0, 1000.0).unwrap();
    lines(&mut first, 1..=4, 0.0);
    // The clock went back meanwhile.
    let mut second = TensorBoard::open_at(directory, 2, 900.0).unwrap();
    lines(&mut second, 3..=4, 0.5);
    assert!(
        first.path < second.path,
        "{:?} {:?}",
        first.path,
        second.path
    );
    [first, second].map(|board| fs::read(&board.path).unwrap())
}

/// With `UPDATE_GOLDEN` set, writes the files that `check_tensorboard.py` reads.
#[test]
fn files_are_those_that_tensorboard_was_seen_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let files = two_processes(dir.path());
    for (i, bytes) in files.iter().enumerate() {
        let name = format!("{GOLDEN}/events.out.tfevents.0000001000.student-trainer.{i:05}");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(&name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        assert_eq!(*bytes, fixture(&name), "{name}");
    }
}

#[test]
fn a_run_goes_by_its_own_name_and_goes_on_beside_its_earlier_files() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let board = TensorBoard::open(dir.path(), OsStr::new(name), 0).unwrap();
        let place = board.path.parent().unwrap().strip_prefix(dir.path());
        place.unwrap().to_owned()
    };
    // TensorBoard would call it "." without a directory of its own.
    assert_eq!(place("ce-kl"), Path::new("ce-kl"));
    assert_eq!(place("renamed"), Path::new("ce-kl"));
    let files = fs::read_dir(dir.path().join("ce-kl")).unwrap().count();
    assert_eq!(files, 2);
    // Of a release that wrote no such directory.
    fs::write(
        dir.path().join("events.out.tfevents.0000001000.x.00000"),
        "",
    )
    .unwrap();
    assert_eq!(place("ce-kl"), Path::new(""));
}

#[test]
fn checksums_are_tfrecords() {
    // RFC 3720, B.4: crc32c of 32 zeros is 0x8a9136aa.
    assert_eq!(
        masked_crc(&[0; 32]),
        0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8)
    );
    let framed = record(b"abc");
    assert_eq!(
        (framed.len(), &framed[..8], &framed[12..15]),
        (8 + 4 + 3 + 4, &3u64.to_le_bytes()[..], &b"abc"[..])
    );
}

#[test]
fn parts_without_weight_are_not_shown_and_zeros_are() {
    let metrics = StepMetrics {
        ot_iterations: Some(7),
        kl: 0.5,
        ..Default::default()
    };
    let scalars = step_scalars(&metrics);
    let has = |tag: &str| scalars.iter().any(|(name, _)| *name == tag);
    assert!(has("loss/kl") && has("train/lr") && has("transport/iterations"));
    assert!(!has("loss/ot") && !has("transport/marginal_error"));
}
