//! Provides the running of the `tokenizers` library on files that a stranger wrote: a panic becomes a reason, and work
//! that does not end is left behind.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use crate::{Result, limits::TOKENIZER_STACK_BYTES};

const GAVE_UP: &str = "the tokenizers library gave up on it";

/// Runs code of the library, which expects well-formed files in places, and turns its panic into a reason.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(GAVE_UP.to_owned()))
}

/// Runs `work` on a thread of its own, with a large stack, and waits `patience` for it.
///
/// A regular expression can take for ever, and nothing stops one that is being matched. Its thread is left to itself and
/// ends with the process, which has an error to report instead.
pub(super) fn within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = sync_channel(1);
    thread::Builder::new()
        .name("tokenizer".to_owned())
        .stack_size(TOKENIZER_STACK_BYTES)
        .spawn(move || {
            if let Ok(done) = catch_unwind(AssertUnwindSafe(work)) {
                // Nobody waits any more where it came too late.
                let _ = sender.send(done);
            }
        })
        .map_err(|e| format!("no thread for the tokenizer can be started: {e}"))?;
    receiver
        .recv_timeout(patience)
        .map_err(|error| match error {
            RecvTimeoutError::Timeout => format!(
                "not done after {} seconds; a pattern or a rule of this tokenizer takes too long",
                patience.as_secs()
            ),
            RecvTimeoutError::Disconnected => GAVE_UP.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_does_not_end_is_an_error_in_time() {
        let (keep, wait) = sync_channel::<()>(1);
        let error = within(Duration::from_millis(50), move || wait.recv()).unwrap_err();
        assert!(error.contains("takes too long"), "{error}");
        drop(keep);
        assert_eq!(within(Duration::from_secs(60), || 3), Ok(3));
        let panics = within(Duration::from_secs(60), || Vec::<u8>::new()[3]);
        assert_eq!(panics.unwrap_err(), GAVE_UP);
    }
}
