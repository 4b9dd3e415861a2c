//! Provides the one place where an error of this crate becomes a gRPC status.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{Error, monitor};

/// Domain of every `google.rpc.ErrorInfo` that this server sends.
pub const ERROR_DOMAIN: &str = "ot-distill";

/// The status that tells a client about `error`, with `google.rpc.ErrorInfo` details.
pub fn status(error: &Error) -> Status {
    let (code, reason) = classify(error);
    monitor::refused(reason);
    let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata(error));
    // Paths and addresses of this machine are for its own log.
    let message = match error {
        Error::Production(inner) if hides(inner) => hidden(inner),
        inner if hides(inner) => hidden(inner),
        told => told.to_string(),
    };
    Status::with_error_details(code, message, details)
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        status(&error)
    }
}

fn classify(error: &Error) -> (Code, &'static str) {
    match error {
        Error::FingerprintMismatch { .. } => (Code::FailedPrecondition, "FINGERPRINT_MISMATCH"),
        Error::NoState => (Code::FailedPrecondition, "NO_STATE"),
        Error::NoBasis { .. } => (Code::FailedPrecondition, "NO_BASIS"),
        Error::UnknownSequence { .. } => (Code::NotFound, "UNKNOWN_SEQUENCE"),
        Error::Request { .. } => (Code::InvalidArgument, "INVALID_REQUEST"),
        Error::Proto(distill_proto::Error::Cursor(_)) => (Code::InvalidArgument, "INVALID_CURSOR"),
        Error::NoModel => (Code::FailedPrecondition, "NO_MODEL"),
        Error::Lends => (Code::FailedPrecondition, "LENDS_DEVICE"),
        Error::NoAnswers { .. } => (Code::FailedPrecondition, "NO_ANSWERS"),
        Error::NoChatTemplate => (Code::FailedPrecondition, "NO_CHAT_TEMPLATE"),
        Error::AnswerTooLarge { .. } => (Code::ResourceExhausted, "ANSWER_TOO_LARGE"),
        Error::NoText { .. } => (Code::FailedPrecondition, "NO_TEXT"),
        Error::DeviceHeld { .. } => (Code::FailedPrecondition, "DEVICE_HELD"),
        Error::StaleEpoch => (Code::FailedPrecondition, "STALE_EPOCH"),
        Error::NoSecret => (Code::FailedPrecondition, "NO_SECRET"),
        Error::HolderHung { .. } => (Code::Unavailable, "HOLDER_HUNG"),
        Error::NoRoom { .. } => (Code::ResourceExhausted, "NO_DEVICE_MEMORY"),
        Error::Cache { .. } => (Code::FailedPrecondition, "CACHE"),
        Error::Damaged { .. } => (Code::DataLoss, "DAMAGED_SHARD"),
        Error::Busy { .. } => (Code::ResourceExhausted, "BUSY"),
        Error::NothingToLend => (Code::FailedPrecondition, "NOTHING_TO_LEND"),
        Error::Loading => (Code::Unavailable, "LOADING"),
        Error::ShuttingDown => (Code::Unavailable, "SHUTTING_DOWN"),
        Error::Io { .. } => (Code::ResourceExhausted, "STORAGE"),
        Error::Model(distill_model::Error::OutOfMemory { .. }) => {
            (Code::ResourceExhausted, "OUT_OF_MEMORY")
        }
        Error::Model(distill_model::Error::DeviceLost { .. }) => {
            (Code::FailedPrecondition, "DEVICE_LOST")
        }
        Error::Model(distill_model::Error::Changed { .. }) => {
            (Code::FailedPrecondition, "MODEL_CHANGED")
        }
        Error::NotFinite { .. } => (Code::DataLoss, "NOT_FINITE"),
        Error::StateOverflow { .. } => (Code::DataLoss, "STATE_OVERFLOW"),
        Error::Production(inner) => classify(inner),
        _ => (Code::Internal, "INTERNAL"),
    }
}

fn metadata(error: &Error) -> HashMap<String, String> {
    let pairs = match error {
        Error::FingerprintMismatch {
            what,
            served,
            requested,
            remedy,
        } => vec![
            ("fingerprint", (*what).to_owned()),
            ("served", served.to_hex()),
            ("requested", requested.clone()),
            ("remedy", (*remedy).to_owned()),
        ],
        Error::UnknownSequence { id, plan } => {
            vec![("sequence_id", id.to_string()), ("plan", plan.to_hex())]
        }
        Error::Request { field, .. } => vec![("field", field.clone())],
        Error::Busy { what, limit } => {
            vec![("what", (*what).to_owned()), ("limit", limit.to_string())]
        }
        Error::DeviceHeld { holder } => vec![
            ("holder", holder.clone()),
            (
                "remedy",
                "free the device, ReleaseDevice, ask again, HoldDevice".to_owned(),
            ),
        ],
        Error::HolderHung { holder, .. } => vec![("holder", holder.clone())],
        Error::NoRoom {
            needed_bytes,
            free_bytes,
            ..
        } => vec![
            ("needed_bytes", needed_bytes.to_string()),
            ("free_bytes", free_bytes.to_string()),
        ],
        Error::NotFinite { sequence, position } => vec![
            ("sequence_id", sequence.to_string()),
            ("position", position.to_string()),
        ],
        Error::Production(inner) => return metadata(inner),
        _ => Vec::new(),
    };
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn hides(error: &Error) -> bool {
    match error {
        // What the device lacks is for whoever started both.
        Error::Model(
            distill_model::Error::OutOfMemory { .. } | distill_model::Error::DeviceLost { .. },
        ) => false,
        _ => matches!(
            error,
            Error::Io { .. } | Error::Internal(_) | Error::Tensor(_) | Error::Model(_)
        ),
    }
}

fn hidden(error: &Error) -> String {
    match error {
        Error::Io { error, .. } if error.action == "read" => format!(
            "the server cannot read a block that it keeps ({}); its log names the place",
            error.reason.kind()
        ),
        Error::Io { error, .. } => format!(
            "the server cannot keep its blocks ({}); its log names the place; ask again when there is room",
            error.reason.kind()
        ),
        Error::Model(distill_model::Error::Changed { .. }) => {
            "the teacher's weights were changed after this server had named them; its log names the file; start it again"
                .to_owned()
        }
        _ => "the teacher failed; the server's log says why".to_owned(),
    }
}
