//! What the server needs from the thing it exports.

use std::error::Error;
use std::future::Future;
use std::io;

use bytes::Bytes;

/// A disk behind the server.
///
/// Offsets and lengths are in bytes, multiples of [`block_bytes_min`](crate::limits::block_bytes_min), lie inside
/// the disk, and lengths are not zero: the server has refused or answered everything else. A read or write is at most
/// [`PAYLOAD_BYTES_MAX`](crate::limits::PAYLOAD_BYTES_MAX) long, the other calls up to 4 GiB. A read-only backend gets
/// no call that changes it.
///
/// Calls overlap, within a connection and between connections; the server does not order them. A call's future is
/// never dropped before it is done, not even when its client disconnects or the server shuts down. It is
/// polled for the first time on the task that reads the connection's requests and, if it is not ready then, moves to a
/// task of its own: work that holds the processor for long belongs on a blocking thread.
pub trait Backend: Send + Sync + 'static {
    /// Size of the disk in bytes. Asked once, when the server is bound.
    fn size_bytes(&self) -> u64;

    /// Whether writes are refused. Asked once, when the server is bound.
    fn is_read_only(&self) -> bool;

    /// Whether a flush, or a write with `fua`, on one connection makes durable what was answered on all of them.
    /// If so, clients may open several. Asked once, when the server is bound.
    fn can_multi_conn(&self) -> bool {
        true
    }

    /// Whether [`write_zeroes`](Self::write_zeroes) is faster than writing the zeroes. If not, a client that insists on
    /// fast is told `ENOTSUP` without a call.
    fn is_zeroing_fast(&self) -> bool {
        false
    }

    /// Reads `length` bytes at `offset`: pieces in order that add up to exactly `length`.
    fn read(
        &self,
        offset: u64,
        length: u32,
    ) -> impl Future<Output = Result<Vec<Piece>, BackendError>> + Send;

    /// Writes `data` at `offset`; with `fua`, it is durable before the answer.
    fn write(
        &self,
        offset: u64,
        data: Bytes,
        fua: bool,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Makes the range read as zeroes. Only with `may_trim` may its space be given up.
    fn write_zeroes(
        &self,
        offset: u64,
        length: u32,
        may_trim: bool,
        fua: bool,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Takes note that the range's content is no longer needed. What it reads as afterwards is the backend's choice.
    fn trim(
        &self,
        offset: u64,
        length: u32,
        fua: bool,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Makes durable every write whose answer the client had when it asked.
    fn flush(&self) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Takes the hint that the range will be read soon.
    fn cache(
        &self,
        offset: u64,
        length: u32,
    ) -> impl Future<Output = Result<(), BackendError>> + Send {
        let _ = (offset, length);
        async { Ok(()) }
    }

    /// Says what the range holds: extents in order from `offset`, at least one and at most `count_max`.
    ///
    /// Fewer than cover the range is fine; the client asks again. What lies past the range is cut off. The default
    /// says that all of it is data.
    fn extents(
        &self,
        offset: u64,
        length: u32,
        count_max: usize,
    ) -> impl Future<Output = Result<Vec<Extent>, BackendError>> + Send {
        let _ = (offset, count_max);
        async move { Ok(vec![Extent { length: u64::from(length), holds: Holds::Data }]) }
    }
}

/// A part of what a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These bytes. They may be a slice of a larger cached buffer: nothing is copied.
    Data(Bytes),
    /// So many zero bytes, which a client that can take it is told instead of sent.
    Zeroes(u32),
}

impl Piece {
    /// Length in bytes.
    pub fn length(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Zeroes(length) => *length as usize,
        }
    }
}

impl From<Vec<u8>> for Piece {
    fn from(data: Vec<u8>) -> Self {
        Self::Data(Bytes::from(data))
    }
}

/// A run of the disk of one nature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, not zero.
    pub length: u64,
    /// What is there.
    pub holds: Holds,
}

/// What an extent holds (metadata context `base:allocation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Data, or nobody knows.
    Data,
    /// Space is taken, and reads as zeroes.
    Zeroes,
    /// Nothing is stored; reads as zeroes.
    Hole,
}

/// Why a backend could not do what was asked; decides the error number that the client gets.
///
/// The client is told the kind; the source, which may name paths, goes to the log only.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The storage behind the disk is full (`ENOSPC`).
    #[error("no space is left for the disk's data")]
    NoSpace,
    /// The caller may not do this (`EPERM`).
    #[error("the disk does not permit this")]
    Denied,
    /// The backend cannot do this at all (`ENOTSUP`).
    #[error("the disk does not support this")]
    Unsupported,
    /// Reading or writing failed (`EIO`).
    #[error("the disk could not be read or written")]
    Io {
        /// What failed.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl From<io::Error> for BackendError {
    fn from(source: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match source.kind() {
            // The protocol asks that these three be one.
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Self::NoSpace,
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Self::Denied,
            Kind::Unsupported => Self::Unsupported,
            _ => Self::Io { source: Box::new(source) },
        }
    }
}
