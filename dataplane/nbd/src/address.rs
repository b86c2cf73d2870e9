//! Where a server listens: loopback TCP or a Unix socket, bound safely.

use std::fmt::{self, Write as _};
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{FlockOperation, Mode, OFlags};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use crate::limits::{BIND_LOCK_DEADLINE, BIND_LOCK_RETRY, LISTEN_BACKLOG, SOCKET_PATH_BYTES_MAX};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A loopback address; port 0 asks for any free port.
    Tcp(SocketAddr),
    /// A socket file, made with permissions 0600.
    Unix(PathBuf),
}

impl Address {
    /// The URI under which clients find an export here.
    ///
    /// `nbd://127.0.0.1:10809/disk`, or `nbd+unix:///disk?socket=/run/disk.sock`.
    pub fn uri(&self, export_name: &str) -> String {
        let name = escape(export_name.as_bytes());
        match self {
            Self::Tcp(address) => format!("nbd://{address}/{name}"),
            Self::Unix(path) => {
                format!("nbd+unix:///{name}?socket={}", escape(path.as_os_str().as_bytes()))
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The text names no place to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an address is `unix:PATH` or `tcp:127.0.0.1:PORT`")]
pub struct MalformedAddress;

impl FromStr for Address {
    type Err = MalformedAddress;

    /// Reads `unix:PATH` or `tcp:ADDRESS:PORT`. Whether one can listen there is seen when it is bound.
    fn from_str(text: &str) -> Result<Self, MalformedAddress> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() && !path.contains('\0') => {
                Ok(Self::Unix(path.into()))
            }
            Some(("tcp", address)) => address.parse().map(Self::Tcp).map_err(|_| MalformedAddress),
            _ => Err(MalformedAddress),
        }
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters and the slash, which URIs allow where this is used.
fn escape(bytes: &[u8]) -> String {
    let mut escaped = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("strings can be written to");
        }
    }
    escaped
}

/// Why a server could not be bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody listens there.
    #[error("{address} is in use by another process: stop it, or choose another address")]
    InUse {
        /// The address.
        address: Address,
    },
    /// The path of the socket is taken by something that is not one.
    #[error("{} exists and is not a socket: remove it, or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// NBD is neither encrypted nor authenticated here.
    #[error(
        "{address} is not a loopback address: NBD is served in the clear, so only on this machine"
    )]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The system takes no socket path this long.
    #[error("{} is too long for a socket: {SOCKET_PATH_BYTES_MAX} bytes is the most", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The name cannot be told to clients.
    #[error("export name {name:?} is too long or holds a NUL character")]
    ExportName {
        /// The name.
        name: String,
    },
    /// The system refused.
    #[error("cannot listen on {address}")]
    Io {
        /// The address.
        address: Address,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A bound socket. A Unix socket's file goes away with it.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

/// A connection just accepted.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Binds, and says under which address: of port 0 comes the real port, of a relative path an absolute one.
    pub(crate) async fn bind(address: &Address) -> Result<(Self, Address), BindError> {
        match address {
            Address::Tcp(at) => Self::bind_tcp(*at).await,
            Address::Unix(path) => Self::bind_unix(path).await,
        }
    }

    async fn bind_tcp(address: SocketAddr) -> Result<(Self, Address), BindError> {
        if !address.ip().is_loopback() {
            return Err(BindError::NotLoopback { address });
        }
        let wrap = |source| bind_error(Address::Tcp(address), source);
        let listener = TcpListener::bind(address).await.map_err(wrap)?;
        let bound = listener.local_addr().map_err(wrap)?;
        Ok((Self::Tcp(listener), Address::Tcp(bound)))
    }

    async fn bind_unix(path: &Path) -> Result<(Self, Address), BindError> {
        let wrap = |source| bind_error(Address::Unix(path.to_owned()), source);
        let path = std::path::absolute(path).map_err(wrap)?;
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(BindError::PathTooLong { path });
        }
        let wrap = |source| bind_error(Address::Unix(path.clone()), source);
        // Two processes that find the same stale file must not remove each other's new one.
        let _lock = lock_directory(&path).await.map_err(wrap)?;
        remove_stale(&path).await?;
        let socket = UnixSocket::new_stream().map_err(wrap)?;
        // Linux makes the file with the mode of the unbound socket: there is no moment when others may connect.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(|e| wrap(e.into()))?;
        socket.bind(&path).map_err(wrap)?;
        let file = SocketFile::of(&path).map_err(wrap)?;
        let listener = socket.listen(LISTEN_BACKLOG).map_err(wrap)?;
        Ok((Self::Unix { listener, _file: file }, Address::Unix(path)))
    }

    /// Accepts a connection.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // A reply is one write; waiting to join it with the next costs its client time.
                if let Err(error) = stream.set_nodelay(true) {
                    debug!(%error, "nbd connection without nodelay");
                }
                Ok(Stream::Tcp(stream))
            }
            Self::Unix { listener, .. } => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

fn bind_error(address: Address, source: io::Error) -> BindError {
    if source.kind() == io::ErrorKind::AddrInUse {
        BindError::InUse { address }
    } else {
        BindError::Io { address, source }
    }
}

async fn lock_directory(path: &Path) -> io::Result<rustix::fd::OwnedFd> {
    let parent = path.parent().unwrap_or(path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(parent, flags, Mode::empty())?;
    let deadline = Instant::now() + BIND_LOCK_DEADLINE;
    loop {
        let lock = || rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive);
        match rustix::io::retry_on_intr(lock) {
            Ok(()) => return Ok(directory),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                sleep(BIND_LOCK_RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Removes a socket file that a dead process left behind, and nothing else.
async fn remove_stale(path: &Path) -> Result<(), BindError> {
    let address = || Address::Unix(path.to_owned());
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(BindError::NotASocket { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(BindError::Io { address: address(), source }),
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(BindError::InUse { address: address() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
                .map_err(|source| BindError::Io { address: address(), source })
        }
        // Its queue is full: it lives.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(BindError::InUse { address: address() })
        }
        Err(source) => Err(BindError::Io { address: address(), source }),
    }
}

/// The file of a Unix socket of ours, removed on drop if it still is ours.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let found = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Ok(found) = std::fs::symlink_metadata(&self.path) else { return };
        if (found.dev(), found.ino()) != (self.device, self.inode) {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "nbd socket file not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn uris_are_what_clients_take() {
        let tcp = Address::Tcp("127.0.0.1:10809".parse().unwrap());
        assert_eq!(tcp.uri("disk"), "nbd://127.0.0.1:10809/disk");
        assert_eq!(tcp.to_string(), "127.0.0.1:10809");
        let tcp = Address::Tcp("[::1]:7".parse().unwrap());
        assert_eq!(tcp.uri(""), "nbd://[::1]:7/");
        let unix = Address::Unix("/run/a b/ü?.sock".into());
        let expected = "nbd+unix:///web%2001?socket=/run/a%20b/%C3%BC%3F.sock";
        assert_eq!(unix.uri("web 01"), expected);
    }

    #[test]
    fn addresses_are_read_from_text() {
        let tcp = Address::Tcp("127.0.0.1:7".parse().unwrap());
        assert_eq!("tcp:127.0.0.1:7".parse(), Ok(tcp));
        let tcp = Address::Tcp("[::1]:0".parse().unwrap());
        assert_eq!("tcp:[::1]:0".parse(), Ok(tcp));
        assert_eq!("unix:/run/a:b".parse(), Ok(Address::Unix("/run/a:b".into())));
        for bad in ["", "unix", "unix:", "unix:a\0b", "tcp:", "tcp:127.0.0.1", "tcp:localhost:7"] {
            assert_eq!(bad.parse::<Address>(), Err(MalformedAddress), "{bad:?}");
        }
        for bad in ["tcp:127.0.0.1:65536", "udp:127.0.0.1:7", "127.0.0.1:7", "/run/disk.sock"] {
            assert_eq!(bad.parse::<Address>(), Err(MalformedAddress), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn refuses_to_listen_for_other_machines() {
        let wide = Address::Tcp("0.0.0.0:0".parse().unwrap());
        let refused = Listener::bind(&wide).await.unwrap_err();
        assert!(matches!(refused, BindError::NotLoopback { .. }), "{refused}");
    }

    #[tokio::test]
    async fn says_that_a_port_is_taken() {
        let any = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let (_listener, bound) = Listener::bind(&any).await.unwrap();
        let refused = Listener::bind(&bound).await.unwrap_err();
        assert!(matches!(refused, BindError::InUse { .. }), "{refused}");
        assert!(refused.to_string().contains("is in use by another process"));
    }

    #[tokio::test]
    async fn makes_a_private_socket_and_takes_it_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.sock");
        let (listener, bound) = Listener::bind(&Address::Unix(path.clone())).await.unwrap();
        assert_eq!(bound, Address::Unix(path.clone()));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn replaces_a_dead_socket_but_not_a_live_one_nor_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.sock");
        // The standard library leaves the file behind, as a killed process does.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let address = Address::Unix(path.clone());
        let (first, _) = Listener::bind(&address).await.unwrap();
        let refused = Listener::bind(&address).await.unwrap_err();
        assert!(matches!(refused, BindError::InUse { .. }), "{refused}");
        assert!(path.exists());
        drop(first);

        std::fs::write(&path, "precious").unwrap();
        let refused = Listener::bind(&address).await.unwrap_err();
        assert!(matches!(refused, BindError::NotASocket { .. }), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn leaves_a_successors_socket_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.sock");
        let address = Address::Unix(path.clone());
        let (old, _) = Listener::bind(&address).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let (_new, _) = Listener::bind(&address).await.unwrap();
        drop(old);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn names_a_path_that_is_too_long_or_nowhere() {
        let long = Address::Unix(format!("/tmp/{}", "x".repeat(200)).into());
        let refused = Listener::bind(&long).await.unwrap_err();
        assert!(matches!(refused, BindError::PathTooLong { .. }), "{refused}");
        let nowhere = Address::Unix("/no/such/directory/disk.sock".into());
        let refused = Listener::bind(&nowhere).await.unwrap_err();
        assert!(refused.to_string().contains("/no/such/directory/disk.sock"));
    }
}
