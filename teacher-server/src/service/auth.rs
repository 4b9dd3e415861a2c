//! Provides the check of the bearer token, ahead of every RPC.

use std::path::Path;

use subtle::ConstantTimeEq;
use tonic::{Code, Request, Status, metadata::MetadataMap, service::Interceptor};
use tonic_types::{ErrorDetails, StatusExt};

use super::status::ERROR_DOMAIN;
use crate::{Error, Result};

/// Bytes of a token; a shorter one can be guessed.
const TOKEN_BYTES_MIN: usize = 16;
/// Bytes of a token file.
const TOKEN_BYTES_MAX: usize = 4096;

/// Lets a request through when it carries the token, or when none is set.
///
/// Only the token's hash is kept, and hashes are compared, so that neither content nor length shows in the time taken
/// or in any log line.
#[derive(Clone, Default)]
pub struct Auth(Option<[u8; 32]>);

impl Auth {
    /// Reads the token from a file; surrounding white space is not part of it.
    ///
    /// # Errors
    /// `Io`, or `Config` where the content is no token.
    pub fn read(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else {
            return Ok(Self(None));
        };
        let text = std::fs::read_to_string(path).map_err(Error::io("read the token in", path))?;
        let token = text.trim();
        let printable = token.bytes().all(|byte| byte.is_ascii_graphic());
        if !printable || !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) {
            return Err(Error::Config {
                key: "token-file",
                reason: format!(
                    "{} must hold {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} printable ASCII characters, e.g. from `openssl rand -hex 32`",
                    path.display()
                ),
            });
        }
        Ok(Self(Some(*blake3::hash(token.as_bytes()).as_bytes())))
    }

    fn allows(&self, metadata: &MetadataMap) -> bool {
        let Some(expected) = &self.0 else {
            return true;
        };
        let sent = metadata.get("authorization").map(|value| value.as_bytes());
        let token = sent.and_then(|value| value.strip_prefix(b"Bearer "));
        let sent = blake3::hash(token.unwrap_or_default());
        bool::from(sent.as_bytes().ct_eq(expected))
    }
}

impl Interceptor for Auth {
    fn call(&mut self, request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if self.allows(request.metadata()) {
            return Ok(request);
        }
        let details = ErrorDetails::with_error_info("UNAUTHENTICATED", ERROR_DOMAIN, []);
        Err(Status::with_error_details(
            Code::Unauthenticated,
            "send the server's token as `authorization: Bearer TOKEN`",
            details,
        ))
    }
}
