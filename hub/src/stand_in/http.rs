//! Provides HTTP as far as the stand-in speaks it: one request a connection, read with its body, and the answer.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
};

/// Bytes of a request before its body.
const HEAD_BYTES_MAX: u64 = 1 << 16;

/// What a client asks for.
#[derive(Default)]
pub(super) struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<usize>,
    pub authorization: Option<String>,
    /// Whether the header came along that an upload of a whole file is to have.
    pub is_wanted: bool,
    pub length: usize,
    pub body: Vec<u8>,
}

/// What it gets.
pub(super) struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes of the body that are really sent.
    pub sent: usize,
}

impl Request {
    /// Reads a request; `cut` says after how many bytes of its body the connection breaks, and then there is none.
    pub fn read(
        stream: &TcpStream,
        cut: impl FnOnce(&Self) -> Option<usize>,
    ) -> io::Result<Option<Self>> {
        let mut reader = BufReader::new(stream);
        let mut head = (&mut reader).take(HEAD_BYTES_MAX);
        let mut line = || -> io::Result<String> {
            let mut line = String::new();
            head.read_line(&mut line)?;
            Ok(line.trim_end().to_owned())
        };
        let first = line()?;
        let mut words = first.split(' ').map(str::to_owned);
        let mut request = Self {
            method: words.next().unwrap_or_default(),
            path: words.next().unwrap_or_default(),
            ..Self::default()
        };
        loop {
            let line = line()?;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "range" => {
                    let start = value
                        .strip_prefix("bytes=")
                        .and_then(|range| range.split('-').next());
                    request.range = start.and_then(|start| start.parse().ok());
                }
                "authorization" => request.authorization = Some(value.to_owned()),
                "x-wanted" => request.is_wanted = value == "this",
                "content-length" => request.length = value.parse().unwrap_or_default(),
                _ => {}
            }
        }
        let cut = cut(&request).filter(|cut| *cut < request.length);
        let mut body = Vec::new();
        let bytes = cut.unwrap_or(request.length) as u64;
        reader.take(bytes).read_to_end(&mut body)?;
        request.body = body;
        Ok(cut.is_none().then_some(request))
    }
}

impl Answer {
    pub fn new(status: &'static str, body: Vec<u8>) -> Self {
        let sent = body.len();
        Self {
            status,
            headers: Vec::new(),
            body,
            sent,
        }
    }

    pub fn json(status: &'static str, body: &serde_json::Value) -> Self {
        Self::new(status, body.to_string().into_bytes())
    }

    pub fn error(status: &'static str, code: &str) -> Self {
        let headers = [
            ("X-Error-Code", code),
            ("X-Error-Message", "said by the stand-in"),
        ];
        headers
            .into_iter()
            .fold(Self::new(status, Vec::new()), |answer, (name, value)| {
                answer.with(name, value)
            })
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn write(&self, stream: &mut TcpStream, has_body: bool) -> io::Result<()> {
        write!(
            stream,
            "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.status,
            self.body.len()
        )?;
        for (name, value) in &self.headers {
            write!(stream, "{name}: {value}\r\n")?;
        }
        stream.write_all(b"\r\n")?;
        if has_body {
            stream.write_all(self.body.get(..self.sent).unwrap_or(&self.body))?;
        }
        stream.flush()
    }
}
