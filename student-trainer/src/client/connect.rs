//! Provides the connection to a teacher: TCP, TLS or a unix socket, a token, and waiting until it is ready.

use std::{
    ffi::OsStr,
    path::PathBuf,
    time::{Duration, Instant},
};

use distill_proto::{limits, v1::teacher_service_client::TeacherServiceClient};
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{absence::Absence, handshake::ServerInfo, retry};
use crate::{Error, Result, files, shutdown::Shutdown};

/// Name that the teacher's health is asked by.
const SERVICE_NAME: &str = "distill.v1.TeacherService";
/// Of the environment: the token, where no file is named.
const TOKEN_VARIABLE: &str = "OT_DISTILL_TOKEN";
/// A token's file, and one of certificates.
const TOKEN_BYTES_MAX: u64 = 8192;
const PEM_BYTES_MAX: u64 = 16 << 20;
/// Between two questions whether the teacher is ready.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Between two messages that it is not.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// One attempt at a connection, and one short call.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Neither answer nor message for this long: the connection counts as lost.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(300);
/// A peer that answers no ping for this long is gone.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Where a teacher is, and how to get in.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// `http://HOST:PORT`, `https://HOST:PORT` or `unix:/PATH`.
    pub address: String,
    /// PEM of the authority behind an https teacher.
    pub ca_cert: Option<PathBuf>,
    /// File with the token.
    pub token_file: Option<PathBuf>,
    /// How long to wait for a teacher that is not ready.
    pub timeout: Duration,
}

/// A teacher that was ready at least once; the channel reconnects by itself on the next call.
#[derive(Clone, Debug)]
pub struct Teacher {
    address: String,
    timeout: Duration,
    channel: Channel,
    token: BearerToken,
}

/// The client of every call but health.
pub type Service = TeacherServiceClient<InterceptedService<Channel, BearerToken>>;

/// Adds the token to every call. Its `Debug` never shows it.
#[derive(Clone)]
pub struct BearerToken(Option<MetadataValue<Ascii>>);

impl std::fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "BearerToken(set)"
        } else {
            "BearerToken(none)"
        })
    }
}

impl Interceptor for BearerToken {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl Teacher {
    /// Reaches a teacher and waits until it is ready.
    ///
    /// # Errors
    /// An address, certificate or token that cannot be used; a teacher that is not ready in time; a shutdown.
    pub async fn connect(options: &ConnectOptions, shutdown: &Shutdown) -> Result<Self> {
        let teacher = Self::at(options)?;
        teacher.wait_until_serving(shutdown).await?;
        Ok(teacher)
    }

    /// Looks for the options' timeout whether anybody is there, be it ready or not.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), with how to start a teacher.
    pub async fn look(options: &ConnectOptions, shutdown: &Shutdown) -> Result<()> {
        Self::at(options)?.find(options.timeout, shutdown).await
    }

    /// A teacher that was not reached yet.
    fn at(options: &ConnectOptions) -> Result<Self> {
        let variable = std::env::var_os(TOKEN_VARIABLE);
        Ok(Self {
            address: options.address.clone(),
            timeout: options.timeout,
            channel: endpoint(options)?.connect_lazy(),
            token: BearerToken(read_token(options, variable.as_deref())?),
        })
    }

    /// What the teacher says about itself.
    ///
    /// # Errors
    /// A lost connection, or an answer that cannot be understood.
    pub async fn info(&self) -> Result<ServerInfo> {
        let request = distill_proto::v1::GetServerInfoRequest {};
        let mut service = self.service();
        let answer = within(self.timeout, service.get_server_info(request)).await;
        self.answer("GetServerInfo", answer)?.try_into()
    }

    /// Waits until health says SERVING, with a message now and then.
    ///
    /// # Errors
    /// Not ready within the timeout, refused for good (e.g. a wrong token), or a shutdown.
    pub async fn wait_until_serving(&self, shutdown: &Shutdown) -> Result<()> {
        let start = Instant::now();
        let mut reported: Option<Instant> = None;
        loop {
            let Some(absence) = self.absence().await? else {
                return Ok(());
            };
            if start.elapsed() >= self.timeout {
                return Err(self.error(absence.given_up(self.timeout)));
            }
            if reported.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
                let limit = reported.is_none().then_some(self.timeout);
                tracing::info!("{}", absence.wait(&self.address, start.elapsed(), limit));
                reported = Some(Instant::now());
            }
            poll(shutdown).await?;
        }
    }

    /// Looks for `patience` whether anybody answers, be it ready or not.
    ///
    /// # Errors
    /// Nobody does, or it refuses for good; a shutdown.
    async fn find(&self, patience: Duration, shutdown: &Shutdown) -> Result<()> {
        let start = Instant::now();
        loop {
            let absence = match self.absence().await? {
                None | Some(Absence::Loading) => return Ok(()),
                Some(absence) => absence,
            };
            if start.elapsed() >= patience {
                return Err(self.error(absence.nobody_answers()));
            }
            poll(shutdown).await?;
        }
    }

    /// Why the teacher is not serving; `None` where it is.
    ///
    /// # Errors
    /// It refuses for good.
    async fn absence(&self) -> Result<Option<Absence>> {
        let answer = self.health().await;
        let absence = Absence::of(&answer);
        match answer {
            Err(status) if absence.is_none() => Err(self.failed("the health check", &status)),
            _ => Ok(absence),
        }
    }

    async fn health(&self) -> std::result::Result<ServingStatus, Status> {
        let mut client = HealthClient::with_interceptor(self.channel.clone(), self.token.clone());
        let request = HealthCheckRequest {
            service: SERVICE_NAME.to_owned(),
        };
        let answer = within(ATTEMPT_TIMEOUT, client.check(request)).await?;
        Ok(answer.into_inner().status())
    }

    pub(super) fn service(&self) -> Service {
        TeacherServiceClient::with_interceptor(self.channel.clone(), self.token.clone())
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX)
    }

    pub(crate) fn error(&self, reason: impl Into<String>) -> Error {
        Error::Teacher {
            address: self.address.clone(),
            reason: reason.into(),
        }
    }

    /// What a call was answered with.
    pub(super) fn answer<T>(
        &self,
        call: &str,
        answer: std::result::Result<Response<T>, Status>,
    ) -> Result<T> {
        let answer = answer.map_err(|status| self.failed(call, &status))?;
        Ok(answer.into_inner())
    }

    /// The next message of a streaming `call`; `None` at its end.
    pub(super) async fn next<T>(
        &self,
        stream: &mut tonic::Streaming<T>,
        call: &'static str,
    ) -> Result<Option<T>> {
        let message = within(SILENCE_MAX, stream.message()).await;
        message.map_err(|status| self.failed(call, &status))
    }

    pub(super) fn failed(&self, call: &str, status: &Status) -> Error {
        self.error(format!("{call} failed: {}", retry::describe(status)))
    }
}

/// Until the next question.
async fn poll(shutdown: &Shutdown) -> Result<()> {
    tokio::select! {
        () = tokio::time::sleep(POLL_INTERVAL) => Ok(()),
        () = shutdown.requested() => Err(Error::Stopped("while waiting for the teacher")),
    }
}

/// What `answer` gives, unless it takes longer: a peer may live and say nothing.
pub(super) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = std::result::Result<T, Status>>,
) -> std::result::Result<T, Status> {
    let silent = |_| {
        let seconds = limit.as_secs_f64();
        Status::deadline_exceeded(format!("no answer in {seconds} s"))
    };
    let answer = tokio::time::timeout(limit, answer).await;
    answer.map_err(silent).flatten()
}

fn endpoint(options: &ConnectOptions) -> Result<Endpoint> {
    let address = &options.address;
    let bad = |reason: String| Error::Teacher {
        address: address.clone(),
        reason,
    };
    let known = ["http://", "https://", "unix:"];
    if !known.iter().any(|scheme| address.starts_with(scheme)) {
        return Err(bad(
            "write the address as http://HOST:PORT, https://HOST:PORT or unix:/PATH".into(),
        ));
    }
    let endpoint =
        Endpoint::from_shared(address.clone()).map_err(|e| bad(format!("not an address: {e}")))?;
    if !address.starts_with("unix:") {
        let uri = endpoint.uri();
        let host = uri.host().unwrap_or_default();
        // The scheme's own port may be left out, but not what follows a colon.
        let ends_at_host = uri.authority().is_some_and(|a| a.as_str().ends_with(host));
        if host.is_empty() || uri.port_u16().is_none() && !ends_at_host {
            let reason = "not an address: write HOST:PORT, with a port of 1 to 65535";
            return Err(bad(reason.into()));
        }
    }
    let endpoint = endpoint
        .connect_timeout(ATTEMPT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    if !address.starts_with("https://") {
        return Ok(endpoint);
    }
    let Some(path) = &options.ca_cert else {
        return Err(bad(
            "https needs --ca-cert FILE, the PEM of the authority that signed its certificate"
                .into(),
        ));
    };
    let pem = files::read(path, PEM_BYTES_MAX)?;
    if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") {
        return Err(Error::file(path, "holds no certificate in PEM"));
    }
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
    endpoint
        .tls_config(tls)
        .map_err(|e| Error::file(path, format!("not a usable PEM certificate: {e}")))
}

/// The token of the file, or, where none is named, of [`TOKEN_VARIABLE`].
fn read_token(
    options: &ConnectOptions,
    variable: Option<&OsStr>,
) -> Result<Option<MetadataValue<Ascii>>> {
    match (&options.token_file, variable) {
        (Some(path), _) => {
            let text = files::read_text(path, TOKEN_BYTES_MAX)?;
            bearer(&text).map(Some).map_err(|e| Error::file(path, e))
        }
        (None, Some(text)) => bearer(text.to_str().unwrap_or_default())
            .map(Some)
            .map_err(|e| Error::Config(format!("the environment's {TOKEN_VARIABLE}: {e}"))),
        (None, None) => Ok(None),
    }
}

fn bearer(text: &str) -> std::result::Result<MetadataValue<Ascii>, &'static str> {
    let token = text.trim();
    if token.is_empty() {
        return Err("holds no token");
    }
    let value = format!("Bearer {token}").parse();
    let mut value: MetadataValue<Ascii> =
        value.map_err(|_| "the token has characters that no header can carry")?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(address: &str) -> ConnectOptions {
        ConnectOptions {
            address: address.into(),
            ca_cert: None,
            token_file: None,
            timeout: Duration::from_millis(100),
        }
    }

    #[test]
    fn bad_addresses_say_what_is_allowed() {
        for (address, expected) in [
            ("127.0.0.1:50051", "http://HOST:PORT"),
            ("https://localhost:1", "--ca-cert"),
            ("http://", "not an address"),
            ("http://localhost:", "HOST:PORT"),
            ("http://localhost:99999", "1 to 65535"),
            ("http://:50051", "HOST:PORT"),
        ] {
            let message = endpoint(&options(address)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        for address in ["unix:/tmp/socket", "http://localhost", "http://[::1]:50051"] {
            endpoint(&options(address)).unwrap();
        }
    }

    #[test]
    fn a_token_is_trimmed_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "s3cret\n").unwrap();
        let mut with_token = options("http://x:1");
        with_token.token_file = Some(path.clone());
        let token = |variable: &str| read_token(&with_token, Some(OsStr::new(variable)));
        let token = token("another").unwrap().unwrap();
        assert_eq!(token.to_str().unwrap(), "Bearer s3cret");
        assert!(!format!("{token:?}{:?}", BearerToken(Some(token.clone()))).contains("s3cret"));
        std::fs::write(&path, " \n").unwrap();
        assert!(
            read_token(&with_token, None)
                .unwrap_err()
                .to_string()
                .contains("no token")
        );
    }

    #[test]
    fn a_token_or_certificate_that_is_no_file_is_refused_by_name() {
        let zero = std::path::PathBuf::from("/dev/zero");
        for path in [zero, std::env::temp_dir()] {
            let mut given = options("https://localhost:1");
            given.token_file = Some(path.clone());
            given.ca_cert = Some(path.clone());
            for error in [read_token(&given, None).err(), endpoint(&given).err()] {
                let error = error.unwrap().to_string();
                let shown = path.display().to_string();
                assert!(
                    error.contains(&shown) && error.contains("a regular file"),
                    "{error}"
                );
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad.pem");
        std::fs::write(&path, "no certificate").unwrap();
        let mut given = options("https://localhost:1");
        given.ca_cert = Some(path);
        let error = endpoint(&given).unwrap_err().to_string();
        assert!(error.contains("bad.pem: holds no certificate"), "{error}");
    }

    #[test]
    fn without_a_file_the_token_is_the_environment_s() {
        let read = |variable: &str| read_token(&options("http://x:1"), Some(OsStr::new(variable)));
        let token = read("s3cret\n").unwrap().unwrap();
        assert_eq!(token.to_str().unwrap(), "Bearer s3cret");
        let error = read(" ").unwrap_err().to_string();
        assert!(error.contains(TOKEN_VARIABLE), "{error}");
        assert!(read_token(&options("http://x:1"), None).unwrap().is_none());
    }

    #[tokio::test]
    async fn nobody_there_is_an_error_with_the_remedy() {
        // Port 1 is never bound by an unprivileged test.
        let options = options("http://127.0.0.1:1");
        let result = Teacher::connect(&options, &Shutdown::default()).await;
        let message = result.unwrap_err().to_string();
        assert!(
            message.contains("teacher-server") && message.contains("127.0.0.1:1"),
            "{message}"
        );
        assert!(message.contains("nobody listens there"), "{message}");
        let message = Teacher::look(&options, &Shutdown::default()).await;
        let message = message.unwrap_err().to_string();
        assert!(
            message.contains("no teacher answers") && message.contains("start it with"),
            "{message}"
        );
        assert!(!message.contains("transport"), "{message}");
    }
}
