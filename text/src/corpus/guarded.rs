//! Provides calls into a library that asserts what files may say wrong: what it panics at becomes an error of the file.

use std::{
    cell::Cell,
    fmt::Display,
    panic::{self, AssertUnwindSafe, catch_unwind},
    sync::Once,
};

thread_local! {
    /// Whether this thread is in a guarded call, whose panics are reported as errors.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Calls `call`; the error, or what stands for a panic, is the reason alone.
///
/// The parquet crate checks most of a file, but asserts the rest (levels that contradict each other, pages without a
/// dictionary, offsets below zero). A damaged corpus must end in an error that names it, and without a panic's message on
/// the terminal, which would read like a fault of the program.
pub(super) fn guarded<T, E: Display>(call: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    quieten();
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(before);
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the file is damaged, its parts contradict each other".to_owned()),
    }
}

/// Lets the panic hook that is there pass over guarded calls; other panics are reported as before.
fn quieten() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                report(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_next_call_is_fine() {
        let empty: [u8; 0] = [];
        let outcome = guarded(|| Ok::<u8, String>(empty[std::hint::black_box(3)]));
        assert!(outcome.unwrap_err().contains("damaged"));
        assert!(!GUARDED.get());
        assert_eq!(guarded(|| Ok::<u8, String>(1)), Ok(1));
        assert_eq!(guarded(|| Err::<u8, _>("said")), Err("said".to_owned()));
    }
}
