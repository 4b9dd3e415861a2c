//! Provides the address to listen on: a socket address or a unix socket's path.

use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
};

use serde::{Serialize, Serializer};

use super::refuse;
use crate::Result;

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket; file permissions keep other users out.
    Unix(PathBuf),
}

impl BindAddress {
    /// Reads `HOST:PORT` or `unix:PATH`; a host name is looked up.
    ///
    /// # Errors
    /// `Config` saying what form is expected.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            // `unix:///path` is the URI form that gRPC clients use.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err(refuse(
                    "bind",
                    "unix: needs a path, e.g. unix:/tmp/teacher.sock",
                ));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let found = text
            .to_socket_addrs()
            .ok()
            .and_then(|mut found| found.next());
        found.map(Self::Tcp).ok_or_else(|| {
            let reason =
                format!("`{text}` is neither HOST:PORT, e.g. 127.0.0.1:50051, nor unix:PATH");
            refuse("bind", reason)
        })
    }

    /// Whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Serialize for BindAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
