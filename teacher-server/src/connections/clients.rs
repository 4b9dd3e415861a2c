//! Provides who is connected, what each has under way, and what is kept for it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};

use crate::{Error, Result};

/// Connections at a time, where the system gives descriptors for them.
pub const CONNECTIONS_MAX: usize = 256;
/// Descriptors that connections leave to files.
const DESCRIPTORS_KEPT: usize = 32;
/// Connections at a time, however few descriptors there are.
const CONNECTIONS_MIN: usize = 8;
/// Time that a connection gets to bring a first request with the right token.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that a connection which has to leave gets before another one is let in.
const LEAVING: Duration = Duration::from_millis(500);
/// Time that a request gets to arrive whole.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of answers kept for a connection above which no stream of it gets a second message, and bytes of requests that are not
/// whole above which it gets no more of them in: twice the largest one.
pub const KEPT_BYTES_A_CONNECTION: usize = 4 << 20;
/// Bytes kept for all connections above which the one that most is kept for is closed: four of the largest messages.
pub const KEPT_BYTES_MAX: usize = 1 << 30;

/// What a client may have only some of at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// ScoreTokens requests, from the question until the answer is with the transport.
    Scores,
    /// StreamBlocks and FetchBlocks.
    Readers,
    /// HoldDevice.
    Holds,
    /// Generate.
    Answers,
}

impl Share {
    const COUNT: usize = 4;

    /// How many of it, and what they are called.
    fn limit(self) -> (usize, &'static str) {
        match self {
            Self::Scores => (4, "ScoreTokens requests of this connection"),
            Self::Readers => (16, "streams of this connection"),
            Self::Holds => (4, "HoldDevice streams of this connection"),
            Self::Answers => (4, "answers of this connection"),
        }
    }
}

/// Which way kept bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To the services: requests that are not whole.
    In,
    /// To the client: answers that it has not taken.
    Out,
}

impl Way {
    const COUNT: usize = 2;
}

/// The limits, which tests make smaller.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// From the connection to its first request with the right token.
    pub admission: Duration,
    /// From a request's beginning to its end.
    pub request: Duration,
    /// Kept for one connection.
    pub bytes_a_connection: usize,
    /// Kept for all.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS_MAX,
            admission: ADMISSION_TIMEOUT,
            request: REQUEST_TIMEOUT,
            bytes_a_connection: KEPT_BYTES_A_CONNECTION,
            bytes: KEPT_BYTES_MAX,
        }
    }
}

impl Limits {
    /// With no more connections than this process can have descriptors for.
    pub fn of_this_process() -> Self {
        let limits = Self::default();
        let found = descriptors().map_or(usize::MAX, |most| most.saturating_sub(DESCRIPTORS_KEPT));
        let connections = limits.connections.min(found).max(CONNECTIONS_MIN);
        Self {
            connections,
            ..limits
        }
    }
}

/// How many files this process may have open, where the system says so.
fn descriptors() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Everybody who is connected.
pub struct Clients {
    limits: Limits,
    state: Mutex<State>,
    /// Open sockets, those of clients that are about to leave included.
    sockets: AtomicUsize,
    left: Notify,
}

#[derive(Default)]
struct State {
    entries: HashMap<u64, Entry>,
    next: u64,
    bytes: usize,
}

/// One connection.
struct Entry {
    since: Instant,
    admitted: bool,
    /// Requests that are not over.
    requests: usize,
    /// Since when there is none.
    idle_since: Instant,
    shares: [usize; Share::COUNT],
    /// By the way they go.
    bytes: [usize; Way::COUNT],
    /// Streams that wait until less is kept.
    waiting: Vec<Waker>,
    /// Dropped with the entry, which closes the socket.
    _open: oneshot::Sender<()>,
}

impl Entry {
    fn kept(&self) -> usize {
        self.bytes.iter().sum()
    }
}

impl Clients {
    /// Nobody yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::default(),
            sockets: AtomicUsize::new(0),
            left: Notify::new(),
        })
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in. Where there are as many as there may be, another leaves for it; `None` where all are at work.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Seat> {
        let mut state = self.state();
        if state.entries.len() >= self.limits.connections && !state.make_room() {
            return None;
        }
        let id = state.next;
        state.next += 1;
        let now = Instant::now();
        let (open, closed) = oneshot::channel();
        state.entries.insert(
            id,
            Entry {
                since: now,
                admitted: false,
                requests: 0,
                idle_since: now,
                shares: [0; Share::COUNT],
                bytes: [0; Way::COUNT],
                waiting: Vec::new(),
                _open: open,
            },
        );
        drop(state);
        self.sockets.fetch_add(1, Ordering::SeqCst);
        let client = Client {
            clients: self.clone(),
            id,
        };
        Some(Seat { client, closed })
    }

    /// Makes one leave that was not admitted or is idle, where there is one.
    pub(super) fn make_room(&self) {
        self.state().make_room();
    }

    /// Returns when there are no more sockets than there may be: those who leave take a moment, and no longer than `LEAVING`.
    pub(super) async fn room(&self) {
        let gone = async {
            while self.sockets.load(Ordering::SeqCst) > self.limits.connections {
                self.left.notified().await;
            }
        };
        // Whoever is not gone by then keeps a descriptor more for a while.
        let _ = tokio::time::timeout(LEAVING, gone).await;
    }

    /// Number of connections.
    pub fn count(&self) -> usize {
        self.state().entries.len()
    }

    /// Bytes kept for all of them.
    pub fn kept_bytes(&self) -> usize {
        self.state().bytes
    }
}

impl State {
    fn make_room(&mut self) -> bool {
        let strangers = self.entries.iter().filter(|(_, entry)| !entry.admitted);
        let oldest = strangers.min_by_key(|(_, entry)| entry.since);
        let idle = || {
            let idle = self.entries.iter().filter(|(_, entry)| entry.requests == 0);
            idle.min_by_key(|(_, entry)| entry.idle_since)
        };
        let Some(id) = oldest.or_else(idle).map(|(id, _)| *id) else {
            return false;
        };
        self.remove(id);
        true
    }

    /// Closes a connection; what is kept for it is on its way out, and does not count any more.
    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.entries.remove(&id) {
            self.bytes -= entry.kept();
            for waiting in entry.waiting {
                waiting.wake();
            }
        }
    }
}

/// A connection's place, for as long as its socket is open.
pub struct Seat {
    pub(super) client: Client,
    /// Resolves when the connection has to leave.
    pub(super) closed: oneshot::Receiver<()>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Client { clients, id } = &self.client;
        clients.state().remove(*id);
        clients.sockets.fetch_sub(1, Ordering::SeqCst);
        clients.left.notify_one();
    }
}

/// A connection, as its requests know it.
#[derive(Clone)]
pub struct Client {
    clients: Arc<Clients>,
    id: u64,
}

impl Client {
    /// Of a request, or one without a connection where it came another way.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        let known = request.extensions().get::<Self>().cloned();
        known.unwrap_or_else(|| Self::unknown(Clients::new(Limits::default())))
    }

    pub(super) fn unknown(clients: Arc<Clients>) -> Self {
        Self {
            clients,
            id: u64::MAX,
        }
    }

    /// Tells it from others.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn limits(&self) -> &Limits {
        self.clients.limits()
    }

    fn with<T>(&self, act: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.clients.state().entries.get_mut(&self.id).map(act)
    }

    /// It has shown the right token.
    pub fn admit(&self) {
        self.with(|entry| entry.admitted = true);
    }

    pub(super) fn is_admitted(&self) -> bool {
        self.with(|entry| entry.admitted).unwrap_or_default()
    }

    /// A request begins, and ends with what this gives.
    pub(super) fn begin(&self) -> Underway {
        self.with(|entry| entry.requests += 1);
        Underway(self.clone())
    }

    /// Takes one of its share.
    ///
    /// # Errors
    /// `Busy` where it has as many as it may.
    pub fn take(&self, share: Share) -> Result<Ticket> {
        let (limit, what) = share.limit();
        let taken = self.with(|entry| {
            let count = &mut entry.shares[share as usize];
            let free = *count < limit;
            *count += usize::from(free);
            free
        });
        if taken == Some(false) {
            return Err(Error::Busy { what, limit });
        }
        Ok(Ticket {
            client: self.clone(),
            share,
        })
    }

    /// Counts bytes as kept for it. Where that is too much in all, the connection that most is kept for is closed.
    pub(super) fn keep(&self, way: Way, bytes: usize) -> Kept {
        let client = self.clone();
        let kept = Kept { client, way, bytes };
        let mut state = self.clients.state();
        let Some(entry) = state.entries.get_mut(&self.id) else {
            return kept;
        };
        entry.bytes[way as usize] += bytes;
        state.bytes += bytes;
        while state.bytes > self.clients.limits.bytes {
            let largest = state.entries.iter().max_by_key(|(_, entry)| entry.kept());
            let Some(id) = largest.map(|(id, _)| *id) else {
                break;
            };
            tracing::warn!(
                "answers that nobody takes and requests that are not whole have come to {} bytes; the connection with most of them is closed",
                state.bytes
            );
            state.remove(id);
        }
        kept
    }

    /// Whether more of its requests may come in.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        let most = self.limits().bytes_a_connection;
        let room = self.with(|entry| entry.bytes[Way::In as usize] + bytes <= most);
        room.unwrap_or(true)
    }

    /// Ready when no more is kept for it than there may be.
    pub(super) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let most = self.limits().bytes_a_connection;
        let ready = self.with(|entry| {
            if entry.bytes[Way::Out as usize] < most {
                return true;
            }
            if !entry
                .waiting
                .iter()
                .any(|waker| waker.will_wake(context.waker()))
            {
                entry.waiting.push(context.waker().clone());
            }
            false
        });
        // A connection that is gone waits for nothing.
        if ready == Some(false) {
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

/// A request that is not over.
pub struct Underway(Client);

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.with(|entry| {
            entry.requests = entry.requests.saturating_sub(1);
            entry.idle_since = Instant::now();
        });
    }
}

/// One of a client's share.
pub struct Ticket {
    client: Client,
    share: Share,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.client.with(|entry| {
            let count = &mut entry.shares[self.share as usize];
            *count = count.saturating_sub(1);
        });
    }
}

/// Bytes that are kept for a client.
pub struct Kept {
    client: Client,
    way: Way,
    bytes: usize,
}

impl Kept {
    /// Keeps more.
    pub(super) fn grow(&mut self, bytes: usize) {
        let mut more = self.client.keep(self.way, bytes);
        self.bytes += std::mem::take(&mut more.bytes);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.client.has_room_for(bytes)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut state = self.client.clients.state();
        let Some(entry) = state.entries.get_mut(&self.client.id) else {
            return;
        };
        entry.bytes[self.way as usize] -= self.bytes;
        let waiting = std::mem::take(&mut entry.waiting);
        state.bytes -= self.bytes;
        drop(state);
        for waiting in waiting {
            waiting.wake();
        }
    }
}
