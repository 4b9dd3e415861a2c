//! Provides the HTTP agent of both directions, and the patience with which it is used.

use std::{path::Path, time::Duration};

use distill_program::files;
use ureq::{
    Agent,
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

use crate::{
    Environment, Error, Result,
    cache::pause,
    limits::{AUTHORITIES_BYTES_MAX, CONNECT_TIMEOUT, QUESTIONS_MAX, SILENCE_TIMEOUT},
};

/// An agent that leaves statuses and redirects to its user, and waits so long for the beginning of an answer.
///
/// # Errors
/// A file of authorities that cannot be used.
pub(crate) fn agent(environment: &Environment, answer: Duration) -> Result<Agent> {
    let roots = match &environment.authorities {
        Some(path) => RootCerts::from(authorities(path)?),
        None => RootCerts::WebPki,
    };
    let config = Agent::config_builder()
        .http_status_as_error(false)
        // Redirects are followed here: the token goes to the hub alone, and a HEAD ends where the digest is told.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(answer))
        .timeout_per_read(Some(answer))
        .timeout_per_write(Some(SILENCE_TIMEOUT))
        .user_agent(concat!("ot-distill/", env!("CARGO_PKG_VERSION")))
        // A compressed body would have another size and another etag.
        .accept_encoding("identity");
    Ok(config.build().new_agent())
}

/// Repeats what fails for reasons that pass.
pub(crate) fn patiently<T>(
    mut wait: Duration,
    stopped: &dyn Fn() -> bool,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    for _ in 1..QUESTIONS_MAX {
        match attempt() {
            Err(error) if error.is_unreachable() => tracing::warn!("{error}; trying again"),
            outcome => return outcome,
        }
        pause(wait, stopped)?;
        wait *= 2;
    }
    attempt()
}

/// The certificates of a PEM file.
fn authorities(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let pem = files::read(path, AUTHORITIES_BYTES_MAX)
        .map_err(|error| error.during("read the authorities in"))?;
    let certificates = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<Certificate<'static>> = certificates.collect();
    if certificates.is_empty() {
        return Err(Error::Environment {
            variable: "SSL_CERT_FILE",
            reason: format!("{} holds no PEM certificate", path.display()),
        });
    }
    Ok(certificates)
}
