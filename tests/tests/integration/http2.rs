//! Provides HTTP/2 by hand, for a client that breaks its rules: frames as bytes, in any order, with nothing read.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest frame that a server takes without having said more.
pub const FRAME_BYTES_MAX: usize = 16 << 10;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const INITIAL_WINDOW_SIZE: u16 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection that writes what it is told to and reads nothing by itself.
pub struct Connection(TcpStream);

impl Connection {
    /// Connects and says nothing.
    pub fn silent(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        // A server that reads nothing from this client any more must not hold the test up.
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        Ok(Self(stream))
    }

    /// Connects, and takes this many bytes of every answer.
    pub fn open(address: &str, window: u32) -> io::Result<Self> {
        let mut connection = Self::silent(address)?;
        let mut setting = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        setting.extend(window.to_be_bytes());
        connection.write(&[PREFACE, &frame(SETTINGS, 0, 0, &setting)].concat())?;
        Ok(connection)
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Begins a call on a stream, with more headers than it needs.
    pub fn call(&mut self, stream: u32, path: &str, more: &[(&str, &str)]) -> io::Result<()> {
        self.write(&frame(HEADERS, END_HEADERS, stream, &block(path, more)))
    }

    /// Begins a call whose headers go on.
    pub fn call_without_end(&mut self, stream: u32, path: &str) -> io::Result<()> {
        self.write(&frame(HEADERS, 0, stream, &block(path, &[])))
    }

    /// More headers, which go on.
    pub fn continuation(&mut self, stream: u32, more: &[(&str, &str)]) -> io::Result<()> {
        let block: Vec<u8> = more
            .iter()
            .flat_map(|(name, value)| header(name, value))
            .collect();
        self.write(&frame(CONTINUATION, 0, stream, &block))
    }

    /// Bytes of a request, of which `claimed` says how long its message is.
    pub fn message(
        &mut self,
        stream: u32,
        claimed: u32,
        bytes: &[u8],
        ends: bool,
    ) -> io::Result<()> {
        let message = [&[0][..], &claimed.to_be_bytes(), bytes].concat();
        self.data(stream, &message, ends)
    }

    /// More bytes of a request.
    pub fn data(&mut self, stream: u32, bytes: &[u8], ends: bool) -> io::Result<()> {
        let mut chunks = bytes.chunks(FRAME_BYTES_MAX).peekable();
        while let Some(chunk) = chunks.next() {
            let last = ends && chunks.peek().is_none();
            self.write(&frame(
                DATA,
                if last { END_STREAM } else { 0 },
                stream,
                chunk,
            ))?;
        }
        Ok(())
    }

    /// Takes a call back.
    pub fn reset(&mut self, stream: u32) -> io::Result<()> {
        const CANCEL: u32 = 8;
        self.write(&frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()))
    }

    /// Whether the server closes the connection in this time; what it sends before is thrown away.
    pub fn is_closed_within(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut buffer = [0; 4096];
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let left = left.max(Duration::from_millis(1));
            self.0.set_read_timeout(Some(left)).expect("a socket");
            match self.0.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
        false
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The headers of a gRPC call.
fn block(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let all = pseudo.iter().chain(more);
    all.flat_map(|(name, value)| header(name, value)).collect()
}

/// A header field as HPACK has it: literal, not indexed, not compressed.
fn header(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0];
    for text in [name, value] {
        length(text.len(), &mut field);
        field.extend(text.as_bytes());
    }
    field
}

/// A length in seven bits and, where they do not do, more bytes of seven bits each.
fn length(mut value: usize, out: &mut Vec<u8>) {
    const PREFIX_MAX: usize = 127;
    if value < PREFIX_MAX {
        return out.push(value as u8);
    }
    out.push(PREFIX_MAX as u8);
    value -= PREFIX_MAX;
    while value >= 128 {
        out.push((value % 128 + 128) as u8);
        value /= 128;
    }
    out.push(value as u8);
}
