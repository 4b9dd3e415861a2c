//! Provides the sockets the server listens on: TCP, or a unix socket that cleans up after itself.

use std::{
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::{Error, Result, config::BindAddress};

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket, removed on drop.
    Unix(UnixListener, SocketFile),
}

/// Removes the socket's file on drop.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!("{}: {error}", self.0.display());
        }
    }
}

impl Listener {
    /// Binds.
    ///
    /// # Errors
    /// `Io` naming the address, also where another server listens there.
    pub async fn bind(address: &BindAddress) -> Result<Self> {
        match address {
            BindAddress::Tcp(socket) => {
                let name = PathBuf::from(socket.to_string());
                let listener = TcpListener::bind(socket).await;
                Ok(Self::Tcp(listener.map_err(Error::io("listen on", &name))?))
            }
            BindAddress::Unix(path) => {
                remove_stale(path).await?;
                let listener = UnixListener::bind(path).map_err(Error::io("listen on", path))?;
                let file = SocketFile(path.clone());
                let owner_only = std::fs::Permissions::from_mode(0o600);
                std::fs::set_permissions(path, owner_only)
                    .map_err(Error::io("set the permissions of", path))?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// The address in the form that clients take, and its port.
    ///
    /// # Errors
    /// `Io` where the system does not say.
    pub fn address(&self) -> Result<(String, Option<u16>)> {
        match self {
            Self::Tcp(listener) => {
                let address = listener
                    .local_addr()
                    .map_err(Error::io("read the address of", Path::new("the listener")))?;
                Ok((address.to_string(), Some(address.port())))
            }
            Self::Unix(_, file) => Ok((format!("unix:{}", file.0.display()), None)),
        }
    }
}

/// Removes the socket that a dead server left behind; one that answers, or another kind of file, stays.
async fn remove_stale(path: &Path) -> Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(Error::io("look at", path))?.file_type(),
    };
    let in_use = |why: &str| {
        Err(Error::io("listen on", path)(io::Error::other(
            why.to_owned(),
        )))
    };
    if !kind.is_socket() {
        return in_use("there is a file that is no socket");
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(Error::io("remove the stale socket", path))
        }
        Err(error) => Err(Error::io("connect to", path)(error)),
        Ok(_) => in_use("another server listens there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let address = BindAddress::Unix(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let live = Listener::bind(&address).await.unwrap();
        let error = Listener::bind(&address).await.unwrap_err().to_string();
        assert!(error.contains("another server"), "{error}");
        drop(live);
        assert!(!path.exists(), "the socket is removed with its server");
        std::fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(&address).await.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
