//! Provides the server: binds, answers health while the teacher loads, serves, and stops in order.

use std::{future::Future, path::Path, pin::Pin, sync::Arc, time::Duration};

use distill_program::{files, output};
use distill_proto::{
    limits::MESSAGE_BYTES_MAX,
    v1::{FILE_DESCRIPTOR_SET, teacher_service_server::TeacherServiceServer},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    service::InterceptorLayer,
    transport::{Identity as Certificate, Server as Grpc, ServerTlsConfig},
};
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
    server::HealthReporter,
};
use tower::layer::util::{Identity, Stack};

use crate::{
    Error, Result,
    config::{Config, token_variable},
    connections::{ADMISSION_TIMEOUT, Bodies, Clients, Limits, REQUEST_BYTES_MAX, accept},
    listener::Listener,
    load::Engine,
    monitor,
    report::Reporter,
    service::{Auth, Service},
};

/// Time between pings to a silent client, and how long it may take to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time that connections get to close once their streams have ended.
const CLOSING_GRACE: Duration = Duration::from_secs(5);
/// Streams of one connection; a trainer has about five.
const STREAMS_MAX: u32 = 32;
/// Bytes that a client may send before they are read, on a stream and on all of them.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Headers of one request; the longest token takes a quarter.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Streams that a client takes back before the server has looked at them, above which its connection is closed.
const PENDING_RESETS_MAX: usize = 20;
/// Streams that the server resets for what the client did wrong, above which its connection is closed.
const ERROR_RESETS_MAX: usize = 128;
/// Connections on their way from the listener to HTTP/2.
const ACCEPTED_MAX: usize = 1;
/// One request for health or reflection: a name.
const NAME_BYTES_MAX: usize = 16 << 10;
/// A certificate or key with its chain.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// A server that is bound but not running yet.
pub struct Server {
    config: Config,
    reporter: Reporter,
    listener: Listener,
    auth: Auth,
    tls: Option<ServerTlsConfig>,
    address: String,
    service: Service,
}

/// Binds and serves until `shutdown` resolves; see [`Server::run`].
///
/// # Errors
/// As [`Server::bind`] and [`Server::run`].
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<()> {
    Server::bind(config).await?.run(shutdown).await
}

impl Server {
    /// Reads token and certificate, binds, and reports the address.
    ///
    /// # Errors
    /// `Io` or `Config` naming the file or address.
    pub async fn bind(config: Config) -> Result<Self> {
        if let Some(threads) = config.threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            if let Err(error) = pool.build_global() {
                tracing::warn!("--threads: {error}");
            }
        }
        let auth = Auth::read(config.token_file.as_deref(), token_variable().as_deref())?;
        let tls = tls(&config)?;
        let listener = Listener::bind(&config.bind).await?;
        let (address, port) = listener.address()?;
        if let (Some(path), Some(port)) = (&config.port_file, port) {
            output::write(path, format!("{port}\n").as_bytes())?;
        }
        let reporter = Reporter::new(config.json);
        reporter.listening(&address, port);
        let service = Service::default();
        monitor::start(&config, reporter, service.clone())?;
        Ok(Self {
            config,
            reporter,
            listener,
            auth,
            tls,
            address,
            service,
        })
    }

    /// The service behind the socket, to look at what it has loaded and computed.
    pub fn service(&self) -> Service {
        self.service.clone()
    }

    /// `HOST:PORT`, with the port that was chosen, or `unix:PATH`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Loads the teacher and serves until `shutdown` resolves, then finishes the batch under way and ends every stream.
    ///
    /// # Errors
    /// What loading or the transport says.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let reporter = self.reporter;
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::NotServing).await;
        let clients = Clients::new(Limits::of_this_process());
        let bodies = Bodies(clients.clone());
        let router = router(&self.service, bodies, self.auth, self.tls, health_service)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let mut transport = tokio::spawn(transport(router, self.listener, clients, stopped));
        let serving = supervise(
            &self.config,
            self.reporter,
            &self.service,
            &health,
            &self.address,
            shutdown,
        );
        let outcome = tokio::select! {
            outcome = serving => outcome,
            ended = &mut transport => {
                let ended = ended.map_err(|e| Error::Internal(e.to_string()))?;
                return ended.and(Err(Error::Internal("the transport ended by itself".into())));
            }
        };
        set_health(&health, ServingStatus::NotServing).await;
        if let Ok(engine) = self.service.engine() {
            engine.production.close();
            let joined = tokio::task::spawn_blocking(move || {
                engine.production.join();
                engine.production.totals()
            });
            let totals = joined.await.map_err(|e| Error::Internal(e.to_string()))?;
            reporter.totals(totals);
        }
        // The transport may have ended meanwhile; then there is nobody to tell.
        let _ = stop.send(());
        let abort = transport.abort_handle();
        match tokio::time::timeout(CLOSING_GRACE, transport).await {
            Ok(ended) => ended.map_err(|e| Error::Internal(e.to_string()))??,
            // A client that holds its connection open, e.g. to watch health, does not hold the server.
            Err(_) => abort.abort(),
        }
        outcome
    }
}

type Layers = Stack<InterceptorLayer<Auth>, Stack<Bodies, Identity>>;
type Router = tonic::transport::server::Router<Layers>;

/// All services behind the token's check.
fn router(
    service: &Service,
    bodies: Bodies,
    auth: Auth,
    tls: Option<ServerTlsConfig>,
    health: HealthServer<impl Health>,
) -> Result<Router> {
    let mut grpc = Grpc::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(ERROR_RESETS_MAX));
    if let Some(tls) = tls {
        grpc = grpc.tls_config(tls)?;
    }
    let teacher = TeacherServiceServer::new(service.clone())
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|e| Error::Internal(e.to_string()))?;
    Ok(grpc
        .layer(bodies)
        .layer(InterceptorLayer::new(auth))
        .add_service(health.max_decoding_message_size(NAME_BYTES_MAX))
        .add_service(reflection.max_decoding_message_size(NAME_BYTES_MAX))
        .add_service(teacher))
}

/// Accepts connections until told to stop, then until the last stream has ended.
async fn transport(
    router: Router,
    listener: Listener,
    clients: Arc<Clients>,
    stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let stopped = async {
        // A dropped sender stops the transport as well.
        let _ = stopped.await;
    };
    let (sockets, accepted) = mpsc::channel(ACCEPTED_MAX);
    let accepting = tokio::spawn(accept(listener, clients, sockets));
    router
        .serve_with_incoming_shutdown(ReceiverStream::new(accepted), stopped)
        .await?;
    // It has ended with the receiver, and the listener with it.
    accepting.await.map_err(|e| Error::Internal(e.to_string()))
}

/// Loads the teacher beside the running transport, then waits for the signal.
async fn supervise(
    config: &Config,
    reporter: Reporter,
    service: &Service,
    health: &HealthReporter,
    address: &str,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let mut shutdown = std::pin::pin!(shutdown);
    let Some(engine) = load_until(config, reporter, shutdown.as_mut()).await? else {
        return Ok(());
    };
    service.set_engine(Arc::new(engine));
    set_health(health, ServingStatus::Serving).await;
    reporter.serving(address);
    shutdown.await;
    reporter.stopping();
    Ok(())
}

/// Loads the teacher; `None` where `shutdown` resolves first, which is said then.
///
/// # Errors
/// What loading says.
pub(crate) async fn load_until(
    config: &Config,
    reporter: Reporter,
    shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<Engine>> {
    let loading = load(config.clone(), reporter)?;
    tokio::select! {
        loaded = loading => {
            let panicked = |_| Error::Internal("loading ended in a panic".into());
            loaded.map_err(panicked)?.map(Some)
        }
        () = shutdown => {
            reporter.stopping();
            Ok(None)
        }
    }
}

/// Loads on a plain thread: the runtime would wait for a blocking task at exit, and loading cannot be interrupted.
fn load(config: Config, reporter: Reporter) -> Result<oneshot::Receiver<Result<Engine>>> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("loading".into())
        .spawn(move || {
            // The receiver is gone when the server was told to stop meanwhile.
            let engine = Engine::load(&config, &reporter, &|| sender.is_closed());
            let _ = sender.send(engine);
        })
        .map_err(Error::io("start a thread for", Path::new("loading")))?;
    Ok(receiver)
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status("", status).await;
    health
        .set_service_status(
            <TeacherServiceServer<Service> as tonic::server::NamedService>::NAME,
            status,
        )
        .await;
}

fn tls(config: &Config) -> Result<Option<ServerTlsConfig>> {
    let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) else {
        return Ok(None);
    };
    let read = |path: &Path| files::read(path, PEM_BYTES_MAX);
    let identity = Certificate::from_pem(read(cert)?, read(key)?);
    let config = ServerTlsConfig::new().identity(identity);
    Ok(Some(config.timeout(ADMISSION_TIMEOUT)))
}
