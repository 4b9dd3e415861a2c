//! Provides the tests of the connections, with limits small enough to be reached.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::mpsc,
};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::{
    clients::{Seat, Way},
    *,
};
use crate::{Error, config::BindAddress, listener::Listener};

fn limits() -> Limits {
    Limits {
        connections: 2,
        admission: Duration::from_millis(100),
        request: Duration::from_millis(100),
        bytes_a_connection: 100,
        bytes: 250,
    }
}

fn has_left(seat: &mut Seat) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    Pin::new(&mut seat.closed).poll(&mut context).is_ready()
}

#[test]
fn at_the_cap_strangers_leave_first_then_who_is_idle_and_nobody_at_work() {
    let clients = Clients::new(limits());
    let mut working = clients.enter().unwrap();
    working.client.admit();
    let request = working.client.begin();
    let mut first = clients.enter().unwrap();
    // A flood of those who show no token goes through one place.
    for _ in 0..1000 {
        let next = clients.enter().unwrap();
        assert!(has_left(&mut first) && !has_left(&mut working));
        first = next;
    }
    first.client.admit();
    let mut third = clients.enter().unwrap();
    assert!(has_left(&mut first), "it was idle");
    third.client.admit();
    let other = third.client.begin();
    assert!(clients.enter().is_none(), "all are at work");
    assert!(!has_left(&mut third) && !has_left(&mut working));
    drop(other);
    drop(request);
    assert!(
        clients.enter().is_some() && has_left(&mut third),
        "idle for longest"
    );
    assert_eq!(clients.count(), 1, "the last one is gone with its seat");
}

#[test]
fn one_connection_has_a_share_and_no_more() {
    let clients = Clients::new(limits());
    let (greedy, other) = (clients.enter().unwrap(), clients.enter().unwrap());
    for share in [Share::Scores, Share::Readers, Share::Holds] {
        let mut tickets = Vec::new();
        let limit = loop {
            match greedy.client.take(share) {
                Ok(ticket) => tickets.push(ticket),
                Err(Error::Busy { limit, .. }) => break limit,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(tickets.len(), limit, "{share:?}");
        assert!(other.client.take(share).is_ok(), "{share:?} of another");
        tickets.pop();
        assert!(greedy.client.take(share).is_ok(), "{share:?} given back");
    }
}

#[test]
fn above_the_limit_of_all_the_connection_with_most_is_closed_and_the_sum_stays_right() {
    let clients = Clients::new(Limits {
        connections: 9,
        ..limits()
    });
    let mut seats: Vec<_> = (0..4).map(|_| clients.enter().unwrap()).collect();
    let slow = seats[0].client.keep(Way::Out, 30);
    let mut kept: Vec<_> = (1..4)
        .map(|i| seats[i].client.keep(Way::Out, 60 + i))
        .collect();
    assert_eq!(clients.kept_bytes(), 30 + 61 + 62 + 63);
    kept.push(seats[1].client.keep(Way::In, 50));
    assert_eq!(clients.kept_bytes(), 30 + 62 + 63);
    let left: Vec<bool> = seats.iter_mut().map(has_left).collect();
    assert_eq!(left, [false, true, false, false]);
    drop(slow);
    drop(kept);
    assert_eq!(clients.kept_bytes(), 0);
    // What a connection kept that is gone does not count either.
    let kept = seats[2].client.keep(Way::Out, 40);
    drop(seats);
    assert_eq!(clients.kept_bytes(), 0);
    drop(kept);
    assert_eq!(clients.kept_bytes(), 0);
}

/// A body of these chunks, and how many of them it was asked for.
struct Chunks(Vec<usize>);

impl HttpBody for Chunks {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let bytes = self.0.pop();
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(vec![7; bytes].into()))))
    }
}

/// Answers every request with the chunks that its path says.
#[derive(Clone)]
struct Echo;

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Chunks>;
    type Error = Status;
    type Future = std::future::Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let bytes = request.uri().path()[1..].parse().unwrap();
        std::future::ready(Ok(http::Response::new(Chunks(vec![bytes; 3]))))
    }
}

async fn answer(
    clients: &Arc<Clients>,
    client: &Client,
    bytes: usize,
) -> impl HttpBody<Data = Bytes> {
    let mut request = http::Request::new(Body::empty());
    *request.uri_mut() = format!("/{bytes}").parse().unwrap();
    request.extensions_mut().insert(client.clone());
    Bodies(clients.clone())
        .layer(Echo)
        .call(request)
        .await
        .unwrap()
        .into_body()
}

fn chunk<B: HttpBody<Data = Bytes> + Unpin>(body: &mut B) -> Option<Bytes> {
    let mut context = Context::from_waker(Waker::noop());
    match Pin::new(body).poll_frame(&mut context) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
        _ => None,
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_gets_one_message_a_stream_and_holds_up_nobody() {
    let clients = Clients::new(limits());
    let (greedy, other) = (clients.enter().unwrap(), clients.enter().unwrap());
    let mut first = pin!(answer(&clients, &greedy.client, 60).await);
    let mut second = pin!(answer(&clients, &greedy.client, 60).await);
    let taken = [chunk(&mut first).unwrap(), chunk(&mut first).unwrap()];
    assert_eq!(
        clients.kept_bytes(),
        120,
        "the first one above the limit is the last"
    );
    assert!(chunk(&mut first).is_none(), "nothing more is made");
    // Another stream of the connection still has its first message, or whoever waits for it would wait for ever.
    let of_second = chunk(&mut second).unwrap();
    assert!(chunk(&mut second).is_none());
    let mut third = pin!(answer(&clients, &other.client, 10).await);
    assert!(
        chunk(&mut third).is_some(),
        "another connection is not held up"
    );
    // Slices count until the last one is gone.
    let [one, two] = taken;
    let slice = one.slice(3..5);
    drop((one, two));
    assert!(chunk(&mut first).is_none(), "the slice holds its chunk");
    drop((slice, of_second));
    assert!(chunk(&mut second).is_some(), "there is room again");
}

#[tokio::test]
async fn a_stream_that_waits_for_room_is_woken_when_there_is_some() {
    let clients = Clients::new(limits());
    let seat = clients.enter().unwrap();
    let mut body = pin!(answer(&clients, &seat.client, 150).await);
    let taken = chunk(&mut body).unwrap();
    let later = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(taken);
    };
    let next = std::future::poll_fn(|context| body.as_mut().poll_frame(context));
    let both = async { tokio::join!(next, later).0 };
    let next = tokio::time::timeout(Duration::from_secs(10), both).await;
    assert!(next.expect("it sleeps for ever").is_some());
}

/// A request that sends `bytes` at a time: all of them, or the first ones and then nothing.
struct Slow {
    bytes: usize,
    times: usize,
    ends: bool,
}

impl HttpBody for Slow {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.times == 0 {
            return if self.ends {
                Poll::Ready(None)
            } else {
                Poll::Pending
            };
        }
        self.times -= 1;
        Poll::Ready(Some(Ok(Frame::data(vec![0; self.bytes].into()))))
    }
}

/// Reads a whole request, as tonic does.
#[derive(Clone)]
struct Reader;

impl Service<http::Request<Body>> for Reader {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut body = request.into_body();
            while let Some(frame) =
                std::future::poll_fn(|c| Pin::new(&mut body).poll_frame(c)).await
            {
                frame?;
            }
            Ok(http::Response::new(Body::empty()))
        })
    }
}

async fn ask(clients: &Arc<Clients>, client: &Client, slow: Slow) -> Result<(), Status> {
    let mut request = http::Request::new(Body::new(slow));
    request.extensions_mut().insert(client.clone());
    Bodies(clients.clone())
        .layer(Reader)
        .call(request)
        .await
        .map(drop)
}

#[tokio::test]
async fn half_a_request_is_given_up_and_many_halves_are_refused() {
    let clients = Clients::new(limits());
    let seat = clients.enter().unwrap();
    let slow = |bytes, times, ends| Slow { bytes, times, ends };
    ask(&clients, &seat.client, slow(50, 2, true))
        .await
        .unwrap();
    assert_eq!(clients.kept_bytes(), 0);
    let half = ask(&clients, &seat.client, slow(60, 1, false));
    let another = ask(&clients, &seat.client, slow(60, 1, false));
    let (half, another) = tokio::join!(half, another);
    assert_eq!(half.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(another.unwrap_err().code(), Code::ResourceExhausted);
    let endless = ask(&clients, &seat.client, slow(1, usize::MAX, true)).await;
    assert_eq!(endless.unwrap_err().code(), Code::ResourceExhausted);
    let roomy = Clients::new(Limits {
        bytes_a_connection: usize::MAX,
        bytes: usize::MAX,
        ..limits()
    });
    let seat = roomy.enter().unwrap();
    let endless = ask(&roomy, &seat.client, slow(1 << 16, usize::MAX, true)).await;
    assert_eq!(endless.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(roomy.kept_bytes(), 0);
}

async fn accepting(
    address: &BindAddress,
    limits: Limits,
) -> (Arc<Clients>, mpsc::Receiver<io::Result<Socket>>, String) {
    let listener = Listener::bind(address).await.unwrap();
    let (address, _) = listener.address().unwrap();
    let clients = Clients::new(limits);
    let (sender, sockets) = mpsc::channel(1);
    tokio::spawn(accept(listener, clients.clone(), sender));
    (clients, sockets, address)
}

#[tokio::test]
async fn who_says_nothing_or_is_not_let_in_is_closed_in_time_over_tcp_and_unix() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let tcp = "127.0.0.1:0".parse::<BindAddress>().unwrap();
    let unix = BindAddress::Unix(path.clone());
    for (address, says) in [
        (&tcp, &b""[..]),
        (&tcp, b"PRI * HTTP/2"),
        (&unix, b""),
        (&unix, b"x"),
    ] {
        let (clients, mut sockets, found) = accepting(address, limits()).await;
        let begun = Instant::now();
        let mut buffer = [0; 64];
        if matches!(address, BindAddress::Unix(_)) {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(says).await.unwrap();
            let mut socket = sockets.recv().await.unwrap().unwrap();
            let error = loop {
                match socket.read(&mut buffer).await {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            let error = socket.write(b"no more").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        } else {
            let mut stream = TcpStream::connect(&found).await.unwrap();
            stream.write_all(says).await.unwrap();
            let mut socket = sockets.recv().await.unwrap().unwrap();
            while socket.read(&mut buffer).await.is_ok() {}
            drop(socket);
            assert_eq!(stream.read(&mut buffer).await.unwrap_or(0), 0, "closed");
        }
        assert!(begun.elapsed() >= limits().admission);
        tokio::task::yield_now().await;
        assert_eq!(clients.count(), 0);
        drop(sockets);
        while path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn who_was_let_in_may_be_silent_and_who_is_made_to_leave_is_told() {
    let tcp = "127.0.0.1:0".parse::<BindAddress>().unwrap();
    let (_clients, mut sockets, address) = accepting(
        &tcp,
        Limits {
            connections: 1,
            ..limits()
        },
    )
    .await;
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let mut socket = sockets.recv().await.unwrap().unwrap();
    tonic::transport::server::Connected::connect_info(&socket).admit();
    tokio::time::sleep(2 * limits().admission).await;
    stream.write_all(b"still here").await.unwrap();
    let mut buffer = [0; 10];
    socket.read_exact(&mut buffer).await.unwrap();
    // Idle: it makes room for another, and its reader wakes.
    let _another = TcpStream::connect(&address).await.unwrap();
    let left = tokio::time::timeout(Duration::from_secs(10), socket.read(&mut buffer)).await;
    assert_eq!(
        left.expect("not woken").unwrap_err().kind(),
        io::ErrorKind::ConnectionAborted
    );
}
