//! Provides which failures of a call are worth another attempt, how long to wait before it, and how to tell people.

use std::time::Duration;

use tonic::{Code, Status};

use super::checks::is_printable;

const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// Whether the same call may succeed later: the connection broke, or the server is restarting.
///
/// Everything else (a wrong token, another plan, a bad request) is the same on every attempt.
pub fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
    )
}

/// The wait before attempt `failures` + 1: doubling, bounded, with up to a quarter taken off at random so that
/// clients of one restarted server do not come back together.
pub fn delay(failures: u32) -> Duration {
    let doubled = FIRST_DELAY.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled
        .min(LONGEST_DELAY)
        .mul_f64(1.0 - 0.25 * rand::random::<f64>())
}

/// A status in words: its message, its cause where the transport has one, and its code. The words are a peer's, so what
/// would steer a terminal is left out.
pub fn describe(status: &Status) -> String {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
    let mut innermost = None;
    while let Some(error) = cause {
        innermost = Some(error.to_string());
        cause = error.source();
    }
    let words = match innermost {
        Some(inner) if inner != status.message() => {
            format!("{} ({inner}) [{:?}]", status.message(), status.code())
        }
        _ => format!("{} [{:?}]", status.message(), status.code()),
    };
    words.chars().filter(|&c| is_printable(c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_stay_bounded() {
        for (failures, longest_ms) in [
            (1, 200),
            (2, 400),
            (5, 3200),
            (7, 10_000),
            (u32::MAX, 10_000),
        ] {
            let delay = delay(failures).as_millis();
            assert!(
                (longest_ms * 3 / 4..=longest_ms).contains(&delay),
                "{failures}: {delay}"
            );
        }
    }

    #[test]
    fn a_status_does_not_steer_the_terminal() {
        let status = Status::internal("gone\u{1b}[2J\r\n\u{202e}well");
        assert_eq!(describe(&status), "gone[2Jwell [Internal]");
    }

    #[test]
    fn a_refusal_is_final() {
        assert!(is_transient(Code::Unavailable));
        assert!(!is_transient(Code::FailedPrecondition));
        assert!(!is_transient(Code::Unauthenticated));
    }
}
