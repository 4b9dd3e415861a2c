//! Provides the address to listen on: a socket address or a unix socket's path.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Port where none is named.
const PORT: u16 = 50051;

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BindAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket; file permissions keep other users out.
    Unix(PathBuf),
}

impl Default for BindAddress {
    fn default() -> Self {
        Self::Tcp((Ipv4Addr::LOCALHOST, PORT).into())
    }
}

impl FromStr for BindAddress {
    type Err = String;

    /// Reads `HOST:PORT` or `unix:PATH`; a host name is looked up.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            // `unix:///path` is the URI form that gRPC clients use.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err("unix: needs a path, e.g. unix:/tmp/teacher.sock".to_owned());
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let found = text
            .to_socket_addrs()
            .ok()
            .and_then(|mut found| found.next());
        found.map(Self::Tcp).ok_or_else(|| {
            format!("`{text}` is neither HOST:PORT, e.g. 127.0.0.1:{PORT}, nor unix:PATH")
        })
    }
}

impl BindAddress {
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
