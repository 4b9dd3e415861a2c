//! Provides what Prometheus reads of a program while it works, `/metrics`, and what its keeper asks, `/healthz`.

use std::{io, net::SocketAddr, sync::Arc, thread};

use axum::{Router, http::StatusCode, routing::get};
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::net::TcpListener;

use crate::memory::Memory;

/// Answers at `address`, on a thread of its own, until the process ends; returns where, with the port that was chosen. Before
/// every answer `look` measures what is not counted as it happens, and says whether the program serves.
///
/// # Errors
/// The address cannot be listened on; it was called before in this process.
pub fn serve(
    address: SocketAddr,
    look: impl Fn() -> bool + Send + Sync + 'static,
) -> io::Result<SocketAddr> {
    let recorder = PrometheusBuilder::new().install_recorder();
    let recorder = recorder.map_err(io::Error::other)?;
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let at = listener.local_addr()?;
    let look = Arc::new(look);
    let looks = look.clone();
    let measured = async move || {
        looks();
        gauge!("ot_distill_resident_bytes").set(Memory::now().rss_bytes as f64);
        recorder.run_upkeep();
        recorder.render()
    };
    let health = async move || match look() {
        true => (StatusCode::OK, "serving\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "loading\n"),
    };
    let router = Router::new()
        .route("/metrics", get(measured))
        .route("/healthz", get(health));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = async move {
        let listener = TcpListener::from_std(listener)?;
        axum::serve(listener, router).await
    };
    thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(move || runtime.block_on(answer))?;
    Ok(at)
}
