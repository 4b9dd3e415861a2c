//! Provides what is said of a teacher that is not there yet.

use std::{
    io::{self, ErrorKind},
    time::Duration,
};

use distill_program::units::Time;
use tonic::Status;
use tonic_health::pb::health_check_response::ServingStatus;

use super::retry;

/// How a teacher is started, for whoever has none yet.
const START: &str = "start it with: teacher-server serve --model DIR --corpus FILE";

/// Nobody listens at the address: no port or socket is there, or nobody is behind it.
const NOBODY: [ErrorKind; 2] = [ErrorKind::ConnectionRefused, ErrorKind::NotFound];

/// Why a teacher is not there yet.
pub(super) enum Absence {
    /// It has not been started, or is not where we look.
    Nobody,
    /// It is up and reads its weights.
    Loading,
    /// Something else, in the transport's words.
    NoAnswer(String),
}

impl Absence {
    /// What an answer about its health says; `None` where it serves, or refuses for good.
    pub fn of(answer: &std::result::Result<ServingStatus, Status>) -> Option<Self> {
        match answer {
            Ok(ServingStatus::Serving) => None,
            Ok(_) => Some(Self::Loading),
            Err(status) if is_caused_by(status, &NOBODY) => Some(Self::Nobody),
            // What TLS refuses once it refuses always: another authority's certificate, or no TLS at all.
            Err(status) if is_caused_by(status, &[ErrorKind::InvalidData]) => None,
            Err(status) if retry::is_transient(status.code()) => {
                Some(Self::NoAnswer(retry::describe(status)))
            }
            Err(_) => None,
        }
    }

    /// What is said while it is waited for; the first time with the `limit` and what to do.
    pub fn wait(&self, address: &str, waited: Duration, limit: Option<Duration>) -> String {
        let state = match self {
            Self::Nobody => format!("no teacher answers at {address} yet"),
            Self::Loading => format!("the teacher at {address} is up and loads its weights"),
            Self::NoAnswer(reason) if reason.contains("protocol error") => format!(
                "what answers at {address} speaks something else: {reason}; a teacher with a certificate wants https:// and --ca-cert"
            ),
            Self::NoAnswer(reason) => format!("the teacher at {address} does not answer: {reason}"),
        };
        let Some(limit) = limit else {
            return format!("{state}; {} waited", Time(waited));
        };
        let start = match self {
            Self::Nobody => format!("{START}; "),
            _ => String::new(),
        };
        let limit = Time(limit);
        format!(
            "{state}; waiting up to {limit} ({start}--connect-timeout-seconds N waits for another time)"
        )
    }

    /// Why nobody waits any longer.
    pub fn given_up(&self, limit: Duration) -> String {
        let (reason, limit) = (self.reason(), Time(limit));
        format!(
            "not ready after {limit}: {reason}; is teacher-server running there? --connect-timeout-seconds waits longer"
        )
    }

    /// Why nothing is begun.
    pub fn nobody_answers(&self) -> String {
        format!("no teacher answers: {}; {START}", self.reason())
    }

    fn reason(&self) -> &str {
        match self {
            Self::Nobody => "nobody listens there",
            Self::Loading => "it is up but not ready (loading its weights?)",
            Self::NoAnswer(reason) => reason,
        }
    }
}

/// Whether the system's error behind a status is one of these.
fn is_caused_by(status: &Status, kinds: &[ErrorKind]) -> bool {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && kinds.contains(&error.kind())
        {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    use super::*;

    #[tokio::test]
    async fn a_teacher_that_is_not_there_yet_is_told_in_plain_words() {
        for address in ["http://127.0.0.1:1", "unix:/no/such/socket"] {
            let channel = Endpoint::from_static(address).connect_lazy();
            let mut client = HealthClient::new(channel);
            let status = client.check(HealthCheckRequest::default()).await;
            let absence = Absence::of(&status.map(|answer| answer.into_inner().status()));
            assert!(matches!(absence, Some(Absence::Nobody)), "{address}");
        }
        let (waited, limit) = (Duration::from_secs(61), Duration::from_secs(1800));
        let first = Absence::Nobody.wait("http://x:1", Duration::ZERO, Some(limit));
        for expected in [
            "no teacher answers at http://x:1 yet",
            "waiting up to 30 minutes",
            "teacher-server serve --model",
            "--connect-timeout-seconds",
        ] {
            assert!(first.contains(expected), "{first}");
        }
        let later = Absence::Loading.wait("http://x:1", waited, None);
        assert_eq!(
            later,
            "the teacher at http://x:1 is up and loads its weights; 61 seconds waited"
        );
    }
}
