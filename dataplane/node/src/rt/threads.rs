//! The portable backend: a plain thread per shard, positioned writes on helper threads.

use super::prepared::Prepared;
use super::{Rt, Socket, only_no_space};
use farshore_ingest::journal::JournalFile;
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{LocalSet, spawn_blocking};

/// A thread that does not get this far has no CPU.
const PATIENCE: Duration = Duration::from_secs(60);

/// A current-thread runtime per shard.
#[derive(Debug)]
pub(crate) struct Threads;

impl Threads {
    /// Makes a runtime on a thread of its own.
    ///
    /// # Errors
    /// What the operating system says.
    pub(crate) fn prepare(name: &str) -> io::Result<Prepared> {
        Prepared::spawn(name, PATIENCE, |preparer| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            match builder.enable_all().build() {
                Ok(runtime) => {
                    if let Some(main) = preparer.main() {
                        runtime.block_on(LocalSet::new().run_until(async move { main().await }));
                    }
                }
                Err(error) => preparer.fail(error),
            }
        })
    }
}

impl Rt for Threads {
    type Socket = ThreadSocket;
    type File = ThreadFile;

    fn spawn(task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }

    fn sleep(duration: Duration) -> impl Future<Output = ()> {
        tokio::time::sleep(duration)
    }

    fn yield_now() -> impl Future<Output = ()> {
        tokio::task::yield_now()
    }

    /// tokio wakes a task that yielded only after it has looked at its sockets.
    fn breathe() -> impl Future<Output = ()> {
        tokio::task::yield_now()
    }

    fn adopt(socket: std::net::TcpStream) -> io::Result<ThreadSocket> {
        socket.set_nonblocking(true)?;
        Ok(ThreadSocket(tokio::net::TcpStream::from_std(socket)?))
    }

    async fn create(path: &Path) -> io::Result<ThreadFile> {
        let path: PathBuf = path.to_owned();
        let file =
            blocking(move || OpenOptions::new().read(true).write(true).create_new(true).open(path))
                .await?;
        Ok(ThreadFile(Arc::new(file)))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

/// A socket of the thread's runtime.
#[derive(Debug)]
pub(crate) struct ThreadSocket(tokio::net::TcpStream);

impl Socket for ThreadSocket {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).await
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }
}

/// A file in the page cache; `sync` makes it durable.
#[derive(Debug)]
pub(crate) struct ThreadFile(Arc<File>);

impl JournalFile for ThreadFile {
    type Buffer = Vec<u8>;

    fn buffer(&self, bytes: usize) -> Vec<u8> {
        vec![0; bytes]
    }

    async fn write_at(&self, buffer: Vec<u8>, offset: u64) -> io::Result<()> {
        let file = Arc::clone(&self.0);
        blocking(move || file.write_all_at(&buffer, offset)).await
    }

    async fn sync(&self) -> io::Result<()> {
        let file = Arc::clone(&self.0);
        blocking(move || file.sync_data()).await
    }

    async fn reserve(&self, bytes: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let file = Arc::clone(&self.0);
        let reserve = move || {
            let keep = FallocateFlags::KEEP_SIZE;
            let reserved = rustix::io::retry_on_intr(|| fallocate(&file, keep, 0, bytes));
            only_no_space(reserved.map_err(io::Error::from))
        };
        blocking(reserve).await
    }
}
