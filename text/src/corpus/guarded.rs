//! Provides calls into the Parquet library: what it panics at becomes an error of the file.

use std::fmt::Display;

use crate::quietly::quietly;

/// Calls `call`; the error, or what stands for a panic, is the reason alone.
///
/// The parquet crate checks most of a file, but asserts the rest (levels that contradict each other, pages without a
/// dictionary, offsets below zero). A damaged corpus must end in an error that names it.
pub(super) fn guarded<T, E: Display>(call: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match quietly(call) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the file is damaged, its parts contradict each other".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_next_call_is_fine() {
        let empty: [u8; 0] = [];
        let outcome = guarded(|| Ok::<u8, String>(empty[std::hint::black_box(3)]));
        assert!(outcome.unwrap_err().contains("damaged"));
        assert_eq!(guarded(|| Ok::<u8, String>(1)), Ok(1));
        assert_eq!(guarded(|| Err::<u8, _>("said")), Err("said".to_owned()));
    }
}
