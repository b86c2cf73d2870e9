//! The seam to the I/O runtimes: what a shard needs, and nothing else.
//!
//! Two backends: [`glommio`](ring) drives one io_uring per core; [`threads`] runs the same shard on
//! a plain thread with positioned writes, where io_uring is blocked (containers) or not wanted.
//! Only this folder names a runtime.

mod prepared;
mod ring;
mod signal;
mod threads;
mod turnstile;

pub(crate) use prepared::{Prepared, prepare};
pub(crate) use ring::Ring;
pub(crate) use signal::{Mail, Mailbox, Post, Signal, Unsent, mailbox};
pub(crate) use threads::Threads;
pub(crate) use turnstile::Turnstile;

use farshore_ingest::journal::JournalFile;

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

/// What a shard asks of its runtime. Everything stays on the shard's thread.
pub(crate) trait Rt: 'static {
    /// A connected TCP socket.
    type Socket: Socket;
    /// A journal file.
    type File: JournalFile;

    /// Starts a task on this thread.
    fn spawn(task: impl Future<Output = ()> + 'static);

    /// Ends after `duration`.
    fn sleep(duration: Duration) -> impl Future<Output = ()>;

    /// Lets other tasks of this thread run.
    fn yield_now() -> impl Future<Output = ()>;

    /// Lets other tasks of this thread run, also those that wait for I/O that has become ready.
    fn breathe() -> impl Future<Output = ()>;

    /// Takes a socket over.
    fn adopt(socket: std::net::TcpStream) -> io::Result<Self::Socket>;

    /// Creates a file that must not exist, for aligned writes.
    fn create(path: &Path) -> impl Future<Output = io::Result<Self::File>>;
}

/// A connected TCP socket.
pub(crate) trait Socket: 'static {
    /// Reads what is there, at least a byte; 0 at the end.
    ///
    /// Cancel-safe: a read that is dropped has taken nothing.
    fn read(&mut self, buffer: &mut [u8]) -> impl Future<Output = io::Result<usize>>;

    /// Writes all of it.
    fn write_all(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>>;
}

/// Which backend to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RtKind {
    /// io_uring if this machine allows it for all shards, else threads.
    Auto,
    /// io_uring, one ring per core.
    Ring,
    /// Plain threads.
    Threads,
}

/// What came of setting space aside: that there is none is all that counts. Whatever else keeps a file system
/// from it, the write will show whether it is an error.
fn only_no_space(reserved: io::Result<()>) -> io::Result<()> {
    match reserved {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Runs `future`, but no longer than `limit`.
pub(crate) async fn within<R: Rt, T>(
    limit: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let future = std::pin::pin!(future);
    let timer = std::pin::pin!(R::sleep(limit));
    match futures::future::select(future, timer).await {
        futures::future::Either::Left((value, _)) => Some(value),
        futures::future::Either::Right(((), _)) => None,
    }
}
