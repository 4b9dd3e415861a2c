//! Checks that every reader of outside bytes survives its committed corpus, and random changes of it for some seconds each.

use std::{
    env, fs,
    path::PathBuf,
    sync::mpsc::{Receiver, Sender, channel},
    time::{Duration, Instant},
};

use distill_tests::fuzz::{TARGETS, Target, corpus};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// For all targets together; `FUZZ_SECONDS` names another time.
const SECONDS: f64 = 45.0;
/// The changes begin with this number, so that a commit is judged by what it changed; `FUZZ_SEED` names another, or `random`.
const SEED: u64 = 16;
/// One input; templates and tokenizers have limits of seconds of their own.
const INPUT_TIME_MAX: Duration = Duration::from_secs(20);
/// Longer inputs are cut.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// What the process may grow by, over all inputs.
const GROWTH_BYTES_MAX: u64 = 2 << 30;
/// Bytes that lengths and counts are most often wrong by.
const AWKWARD: [u8; 8] = [0, 1, 0x7f, 0x80, 0xfe, 0xff, b'"', b'{'];

#[test]
fn readers_survive_their_corpus_and_changes_of_it() {
    let seconds = env::var("FUZZ_SECONDS").map_or(SECONDS, |text| text.parse().expect("seconds"));
    let seconds = seconds / TARGETS.len() as f64;
    let seed = match env::var("FUZZ_SEED").as_deref() {
        Ok("random") => rand::random(),
        Ok(text) => text.parse().expect("a seed"),
        Err(_) => SEED,
    };
    println!("FUZZ_SEED={seed}");
    let before = resident_peak();
    for target in TARGETS {
        let run = Run::new(target);
        let seeds = seeds(target);
        assert!(!seeds.is_empty(), "{}: no corpus", target.name);
        for bytes in &seeds {
            run.read(bytes);
        }
        let mut random = StdRng::seed_from_u64(seed);
        let (start, mut inputs) = (Instant::now(), 0u64);
        while start.elapsed() < Duration::from_secs_f64(seconds) {
            run.read(&changed(&seeds, &mut random));
            inputs += 1;
        }
        println!(
            "{}: {} seeds, {inputs} changed inputs",
            target.name,
            seeds.len()
        );
    }
    let grown = resident_peak().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "grown by {grown} bytes");
}

/// One target on a thread of its own, with the input of the moment in a file: what hangs or aborts the process can be looked at there.
struct Run {
    name: &'static str,
    file: PathBuf,
    inputs: Sender<Vec<u8>>,
    ends: Receiver<()>,
}

impl Run {
    fn new(target: &'static Target) -> Self {
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.name));
        println!("{}: inputs go through {}", target.name, file.display());
        let (inputs, given) = channel::<Vec<u8>>();
        let (ended, ends) = channel();
        std::thread::spawn(move || {
            for bytes in given {
                (target.read)(&bytes);
                let _ = ended.send(());
            }
        });
        Self {
            name: target.name,
            file,
            inputs,
            ends,
        }
    }

    fn read(&self, bytes: &[u8]) {
        fs::write(&self.file, bytes).expect("a file for the input");
        let (name, file) = (self.name, self.file.display());
        let is_given = self.inputs.send(bytes.to_vec()).is_ok();
        let end = self.ends.recv_timeout(INPUT_TIME_MAX);
        assert!(is_given && end.is_ok(), "{name}: {file}: {end:?}");
    }
}

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let directory = corpus(target);
    let listing =
        fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut paths: Vec<PathBuf> = listing
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).expect("a seed"))
        .collect()
}

/// A seed with a few changes.
fn changed(seeds: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = seeds.choose(random).cloned().unwrap_or_default();
    for _ in 0..random.random_range(1..=6) {
        change(&mut bytes, seeds, random);
        bytes.truncate(INPUT_BYTES_MAX);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut StdRng) {
    let len = bytes.len();
    if len == 0 {
        return bytes.push(random.random());
    }
    let at = random.random_range(0..len);
    let some = random.random_range(1..=32.min(len));
    let end = (at + some).min(len);
    match random.random_range(0..8) {
        0 => bytes[at] ^= 1 << random.random_range(0..8),
        1 => bytes[at] = AWKWARD[random.random_range(0..AWKWARD.len())],
        2 => {
            bytes[at] = bytes[at]
                .wrapping_add(random.random_range(0..=32))
                .wrapping_sub(16)
        }
        3 => drop(bytes.drain(at..end)),
        4 => {
            let part = bytes[at..end].to_vec();
            bytes.splice(at..at, part);
        }
        5 => {
            let part = bytes[at..end].to_vec();
            let part = part.repeat(random.random_range(2..200));
            bytes.splice(at..at, part);
        }
        6 => bytes.truncate(at),
        _ => {
            let other = seeds.choose(random).map_or(&[][..], Vec::as_slice);
            let from = random.random_range(0..=other.len());
            let to = (from + some).min(other.len());
            bytes.splice(at..end, other[from..to].iter().copied());
        }
    }
}

/// The most memory that this process ever held, in bytes.
fn resident_peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    kib.unwrap_or(0) * 1024
}
