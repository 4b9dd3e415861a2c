//! Provides the accepting of connections: no more than there may be, and in peace where the system gives no more.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{Clients, Socket};
use crate::listener::Listener;

/// After a failure, doubled by each one in a row.
const BACK_OFF: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
/// Between two messages about the same trouble.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Accepts until nobody takes the sockets any more.
pub async fn accept(
    listener: Listener,
    clients: Arc<Clients>,
    sockets: mpsc::Sender<io::Result<Socket>>,
) {
    let mut back_off = BACK_OFF;
    let (mut full, mut failing) = (Trouble::default(), Trouble::default());
    loop {
        let next = tokio::select! {
            next = next(&listener, &clients) => next,
            () = sockets.closed() => return,
        };
        match next {
            Ok(Some(socket)) => {
                back_off = BACK_OFF;
                // Nobody takes it: the server stops.
                let _ = sockets.send(Ok(socket)).await;
                clients.room().await;
            }
            Ok(None) => full.say(&format!(
                "all {} connections are at work; further ones are refused",
                clients.limits().connections
            )),
            // That of one connection, which is gone.
            Err(error) if is_of_the_peer(&error) => {}
            Err(error) => {
                failing.say(&format!(
                    "cannot accept connections: {error}; trying again and again"
                ));
                clients.make_room();
                tokio::select! {
                    () = tokio::time::sleep(back_off) => {}
                    () = sockets.closed() => return,
                }
                back_off = (2 * back_off).min(BACK_OFF_MAX);
            }
        }
    }
}

/// The next connection; `None` where it was refused.
async fn next(listener: &Listener, clients: &Arc<Clients>) -> io::Result<Option<Socket>> {
    Ok(match listener {
        Listener::Tcp(tcp) => {
            let (stream, _) = tcp.accept().await?;
            // Small messages go out at once; where that cannot be had they go out a little later.
            let _ = stream.set_nodelay(true);
            clients.enter().map(|seat| Socket::new(stream, seat))
        }
        Listener::Unix(unix, _) => {
            let (stream, _) = unix.accept().await?;
            clients.enter().map(|seat| Socket::new(stream, seat))
        }
    })
}

fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::Interrupted
            | io::ErrorKind::TimedOut
    )
}

/// Something that is said once in a while, however often it happens.
#[derive(Default)]
struct Trouble {
    said: Option<Instant>,
}

impl Trouble {
    fn say(&mut self, message: &str) {
        if self.said.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
            tracing::warn!("{message}");
            self.said = Some(Instant::now());
        }
    }
}
