//! Checks that every reader of outside bytes survives its committed corpus, and random changes of it for some seconds each.

use std::{
    env, fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use distill_tests::fuzz::{TARGETS, Target, corpus};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// For all targets together; `FUZZ_SECONDS` names another time, `FUZZ_SEED` a seed to begin with.
const SECONDS: f64 = 45.0;
/// One input; templates and tokenizers have limits of seconds of their own.
const INPUT_SECONDS_MAX: f64 = 20.0;
/// Longer inputs are cut.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// What the process may grow by, over all inputs.
const GROWTH_BYTES_MAX: u64 = 2 << 30;
/// Bytes that lengths and counts are most often wrong by.
const AWKWARD: [u8; 8] = [0, 1, 0x7f, 0x80, 0xfe, 0xff, b'"', b'{'];

#[test]
fn readers_survive_their_corpus_and_changes_of_it() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let seconds = number("FUZZ_SECONDS").unwrap_or(SECONDS) / TARGETS.len() as f64;
    let seed = number("FUZZ_SEED").unwrap_or_else(|| f64::from(rand::random::<u32>())) as u64;
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

/// One target, with the input of the moment in a file: what aborts the process can be looked at there.
struct Run {
    target: &'static Target,
    file: PathBuf,
}

impl Run {
    fn new(target: &'static Target) -> Self {
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.name));
        println!("{}: inputs go through {}", target.name, file.display());
        Self { target, file }
    }

    fn read(&self, bytes: &[u8]) {
        fs::write(&self.file, bytes).expect("a file for the input");
        let start = Instant::now();
        (self.target.read)(bytes);
        let seconds = start.elapsed().as_secs_f64();
        let (name, file) = (self.target.name, self.file.display());
        assert!(
            seconds < INPUT_SECONDS_MAX,
            "{name}: {file} took {seconds} s"
        );
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
