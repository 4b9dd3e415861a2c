//! Provides the running of the `tokenizers` library on files that a stranger wrote: a panic becomes a reason, and work
//! that does not end is left behind.

use std::{
    any::Any,
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use crate::{Result, limits::TOKENIZER_STACK_BYTES, quietly::quietly};

const GAVE_UP: &str = "the tokenizers library gave up on it";
/// Characters of its own words that are shown.
const SAID_MAX: usize = 200;

/// Runs code of the library, which expects well-formed files in places, and turns its panic into a reason.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    quietly(work).unwrap_or_else(|panic| Err(gave_up(panic.as_ref())))
}

/// What the library said when it panicked, such as that a pattern was retried too often.
fn gave_up(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let said: String = text.unwrap_or_default().chars().take(SAID_MAX).collect();
    format!("{GAVE_UP}: {said}")
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
            if let Ok(done) = quietly(work) {
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
