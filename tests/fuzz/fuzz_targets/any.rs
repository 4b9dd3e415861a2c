//! Gives the fuzzer's bytes to the reader that `FUZZ_TARGET` names. One program for all of them: it is the linking that takes long.
#![no_main]

use std::sync::LazyLock;

use distill_tests::fuzz::{TARGETS, Target, named};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    named(&name).unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        panic!("FUZZ_TARGET names one of {}", names.join(", "))
    })
});

fuzz_target!(|bytes: &[u8]| (TARGET.read)(bytes));
