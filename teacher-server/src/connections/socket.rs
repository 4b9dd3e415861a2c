//! Provides a connection's socket, which is closed when it was silent for too long or has to leave.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

use super::clients::{Client, Seat};

/// TCP or a unix socket.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What is below TLS and HTTP/2 of a client.
pub struct Socket {
    stream: Box<dyn Stream>,
    seat: Seat,
    /// Until it is admitted.
    deadline: Option<Pin<Box<Sleep>>>,
    closed: bool,
}

impl Socket {
    pub(super) fn new(stream: impl Stream + 'static, seat: Seat) -> Self {
        let deadline = Box::pin(sleep(seat.client.limits().admission));
        Self {
            stream: Box::new(stream),
            seat,
            deadline: Some(deadline),
            closed: false,
        }
    }

    /// Whether it may go on. Asked whenever something is read or written, and woken when it may not any more.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.closed || Pin::new(&mut self.seat.closed).poll(context).is_ready() {
            self.closed = true;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let Some(deadline) = &mut self.deadline else {
            return Ok(());
        };
        if self.seat.client.is_admitted() {
            self.deadline = None;
        } else if deadline.as_mut().poll(context).is_ready() {
            self.closed = true;
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl Connected for Socket {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        self.seat.client.clone()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
