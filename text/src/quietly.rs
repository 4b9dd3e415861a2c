//! Provides calls into a library that asserts what files may say wrong: its panic is an outcome, not a message.

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe, catch_unwind},
    sync::Once,
    thread,
};

thread_local! {
    /// Whether this thread is in a call whose panics are reported as errors.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Calls `call` and catches its panic, without the panic's message on the terminal, which would read like a fault of the
/// program.
pub(crate) fn quietly<T>(call: impl FnOnce() -> T) -> thread::Result<T> {
    quieten();
    let before = QUIET.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    QUIET.set(before);
    outcome
}

/// Lets the panic hook that is there pass over quiet calls; other panics are reported as before.
fn quieten() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                report(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_outcome_and_the_next_call_is_fine() {
        let empty: [u8; 0] = [];
        assert!(quietly(|| empty[std::hint::black_box(3)]).is_err());
        assert!(!QUIET.get());
        assert_eq!(quietly(|| 1).ok(), Some(1));
    }
}
