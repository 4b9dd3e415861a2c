//! Provides the check of the bearer token, ahead of every RPC.

use std::{ffi::OsStr, path::Path};

use distill_program::files;
use subtle::ConstantTimeEq;
use tonic::{Code, Request, Status, metadata::MetadataMap, service::Interceptor};
use tonic_types::{ErrorDetails, StatusExt};

use super::status::ERROR_DOMAIN;
use crate::{Error, Result, config::TOKEN_VARIABLE, connections::Client};

/// Bytes of a token; a shorter one can be guessed.
const TOKEN_BYTES_MIN: usize = 16;
/// Bytes of a token.
const TOKEN_BYTES_MAX: usize = 4096;
/// Bytes of a token file, white space around the token counted.
const TOKEN_FILE_BYTES_MAX: u64 = 2 * TOKEN_BYTES_MAX as u64;

/// Lets a request through when it carries the token, or when none is set.
///
/// Only the token's hash is kept, and hashes are compared, so that neither content nor length shows in the time taken
/// or in any log line.
#[derive(Clone, Default)]
pub struct Auth(Option<[u8; 32]>);

impl Auth {
    /// Takes the token from a file or, where none is named, from the environment's variable; surrounding white space is not
    /// part of it.
    ///
    /// # Errors
    /// `Io`, or `Config` where the content is no token.
    pub fn read(path: Option<&Path>, variable: Option<&OsStr>) -> Result<Self> {
        let (text, source) = match (path, variable) {
            (Some(path), _) => {
                let text = files::read_text(path, TOKEN_FILE_BYTES_MAX);
                let text = text.map_err(|error| error.during("read the token in"))?;
                (text, path.display().to_string())
            }
            // What is not UTF-8 is no token either, and must not mean that there is none.
            (None, Some(text)) => (
                text.to_str().unwrap_or_default().to_owned(),
                format!("the environment's {TOKEN_VARIABLE}"),
            ),
            (None, None) => return Ok(Self(None)),
        };
        let token = text.trim();
        let printable = token.bytes().all(|byte| byte.is_ascii_graphic());
        if !printable || !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) {
            return Err(Error::config(
                "token-file",
                format!(
                    "{source} must hold {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} printable ASCII characters, e.g. from `openssl rand -hex 32`"
                ),
            ));
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
            if let Some(client) = request.extensions().get::<Client>() {
                client.admit();
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_no_file_is_refused_by_name() {
        for path in ["/dev/zero", "/"] {
            let error = Auth::read(Some(Path::new(path)), None).err().unwrap();
            let error = error.to_string();
            assert!(
                error.contains(path) && error.contains("a regular file"),
                "{error}"
            );
        }
    }

    #[test]
    fn without_a_file_the_token_is_the_environment_s_and_a_bad_one_is_no_open_door() {
        let token = "0123456789abcdef";
        let auth = Auth::read(None, Some(OsStr::new(token))).unwrap();
        let mut metadata = MetadataMap::new();
        assert!(!auth.allows(&metadata));
        metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
        assert!(auth.allows(&metadata));
        for bad in ["", "short"] {
            let error = Auth::read(None, Some(OsStr::new(bad))).err().unwrap();
            assert!(error.to_string().contains(TOKEN_VARIABLE), "{error}");
        }
    }
}
