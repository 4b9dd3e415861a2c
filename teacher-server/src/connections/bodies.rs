//! Provides the count of what is kept between the services and the transport: requests that are not whole, answers that nobody
//! has taken.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::clients::{Client, Clients, Kept, Ticket, Underway, Way};

/// One request message: 65,536 tokens with their flags, several times over.
pub const REQUEST_BYTES_MAX: usize = 2 << 20;
/// A request, however many messages it is, with their lengths.
const BODY_BYTES_MAX: usize = REQUEST_BYTES_MAX + 1024;

/// The layer around all services.
#[derive(Clone)]
pub struct Bodies(pub Arc<Clients>);

impl<S> Layer<S> for Bodies {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        let clients = self.0.clone();
        Counted { inner, clients }
    }
}

/// A service with what is kept for its clients counted.
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    clients: Arc<Clients>,
}

impl<S, B> Service<http::Request<Body>> for Counted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Answer<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let client = request.extensions().get::<Client>().cloned();
        let client = client.unwrap_or_else(|| Client::unknown(self.clients.clone()));
        let underway = client.begin();
        let request = request.map(|body| Body::new(Question::new(body, &client)));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut answer = answer.await?;
            let ticket = answer.extensions_mut().remove::<Arc<Ticket>>();
            Ok(answer.map(|body| Answer {
                body: Box::pin(body),
                out: Arc::new(AtomicUsize::new(0)),
                client,
                _underway: underway,
                _ticket: ticket,
            }))
        })
    }
}

/// A request on its way in.
struct Question {
    body: Body,
    kept: Kept,
    deadline: Pin<Box<Sleep>>,
}

impl Question {
    fn new(body: Body, client: &Client) -> Self {
        Self {
            body,
            kept: client.keep(Way::In, 0),
            deadline: Box::pin(sleep(client.limits().request)),
        }
    }
}

impl HttpBody for Question {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            ready!(self.deadline.as_mut().poll(context));
            let late = Status::deadline_exceeded("the request did not arrive whole in time");
            return Poll::Ready(Some(Err(late)));
        };
        if let Some(Ok(frame)) = &frame {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            if self.kept.bytes() + bytes > BODY_BYTES_MAX {
                let reason = format!("a request has {BODY_BYTES_MAX} bytes at most");
                return Poll::Ready(Some(Err(Status::resource_exhausted(reason))));
            }
            if !self.kept.has_room_for(bytes) {
                let reason =
                    "too much of other requests is still on its way; let them arrive first";
                return Poll::Ready(Some(Err(Status::resource_exhausted(reason))));
            }
            self.kept.grow(bytes);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer on its way out.
pub struct Answer<B> {
    body: Pin<Box<B>>,
    /// Bytes of this answer that the transport has.
    out: Arc<AtomicUsize>,
    client: Client,
    _underway: Underway,
    _ticket: Option<Arc<Ticket>>,
}

impl<B: HttpBody<Data = Bytes>> HttpBody for Answer<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        // Every stream may have one message out: a trainer that lets its blocks wait still hears the answers it waits for.
        if self.out.load(Ordering::Acquire) > 0 {
            ready!(self.client.poll_room(context));
        }
        let frame = ready!(self.body.as_mut().poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|data| self.count(data)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Answer<B> {
    /// The same bytes, counted until the transport lets them go.
    fn count(&self, data: Bytes) -> Bytes {
        if data.is_empty() {
            return data;
        }
        self.out.fetch_add(data.len(), Ordering::AcqRel);
        Bytes::from_owner(Out {
            out: self.out.clone(),
            _kept: self.client.keep(Way::Out, data.len()),
            data,
        })
    }
}

/// Bytes that the transport has and nobody has taken.
struct Out {
    data: Bytes,
    out: Arc<AtomicUsize>,
    /// Let go after `out` has changed: who waits is woken by it.
    _kept: Kept,
}

impl AsRef<[u8]> for Out {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        self.out.fetch_sub(self.data.len(), Ordering::AcqRel);
    }
}
