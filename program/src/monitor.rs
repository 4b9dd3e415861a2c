//! Provides what Prometheus reads of a program while it works, `/metrics`, and what its keeper asks, `/healthz`.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, thread, time::Duration};

use hyper::{
    Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::memory::Memory;

/// Connections at a time, and how long one may last: who asks gets an answer and goes.
const CONNECTIONS_MAX: usize = 16;
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Before another attempt at a connection that the system refuses.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether [`serve`] could listen at `address`.
///
/// # Errors
/// It could not.
pub fn check(address: SocketAddr) -> io::Result<()> {
    listen(address).map(drop)
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    std::net::TcpListener::bind(address).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    })
}

/// Answers at `address`, on a thread of its own, until the process ends; returns where, with the port that was chosen. Before
/// every answer `look` measures what is not counted as it happens, and says whether the program serves.
///
/// # Errors
/// The address cannot be listened on; it was called before in this process.
pub fn serve(
    address: SocketAddr,
    look: impl Fn() -> bool + Send + Sync + 'static,
) -> io::Result<SocketAddr> {
    let listener = listen(address)?;
    listener.set_nonblocking(true)?;
    let at = listener.local_addr()?;
    let recorder = PrometheusBuilder::new().install_recorder();
    let recorder = recorder.map_err(io::Error::other)?;
    let answer = move |path: &str| match (path, look()) {
        ("/metrics", _) => {
            gauge!("ot_distill_resident_bytes").set(Memory::now().rss_bytes as f64);
            recorder.run_upkeep();
            (StatusCode::OK, recorder.render())
        }
        ("/healthz", true) => (StatusCode::OK, "serving\n".to_owned()),
        ("/healthz", false) => (StatusCode::SERVICE_UNAVAILABLE, "loading\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "/metrics, /healthz\n".to_owned()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let work = async move {
        let listener = TcpListener::from_std(listener)?;
        accept(listener, Arc::new(answer)).await
    };
    thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(move || runtime.block_on(work))?;
    Ok(at)
}

/// Answers whoever connects; more than [`CONNECTIONS_MAX`] wait for one of them to go.
async fn accept(
    listener: TcpListener,
    answer: Arc<impl Fn(&str) -> (StatusCode, String) + Send + Sync + 'static>,
) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await;
        let place = place.map_err(io::Error::other)?;
        match listener.accept().await {
            Ok((socket, _)) => {
                let answer = answer.clone();
                tokio::spawn(async move {
                    // Who is too slow, or speaks something else, is cut off.
                    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, talk(socket, answer)).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn talk(
    socket: TcpStream,
    answer: Arc<impl Fn(&str) -> (StatusCode, String)>,
) -> hyper::Result<()> {
    let respond = service_fn(|request: Request<Incoming>| {
        let (status, text) = answer(request.uri().path());
        let mut response = Response::new(text);
        *response.status_mut() = status;
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), respond)
        .await
}
