//! One thread with a ring, fed through a bounded queue.

use super::{Buffer, READS_MAX};
use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_uring::buf::BoundedBuf;

/// Requests besides reads that may wait: opens and closes of volumes.
const QUEUE_MAX: usize = READS_MAX + 256;

enum Request {
    Open { id: u64, file: File },
    Close { id: u64 },
    Read(Read),
    End,
}

/// A read of a whole buffer, of which `inside` bytes are there to be read.
struct Read {
    id: u64,
    offset: u64,
    buffer: Buffer,
    inside: usize,
    reply: oneshot::Sender<io::Result<Buffer>>,
}

/// The way to the thread; it ends when the last handle and file are gone.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    requests: Sender<Request>,
    wake: Arc<Notify>,
    permits: Semaphore,
    next_id: AtomicU64,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Without room the thread ends when it finds nobody at the queue's other end.
        let _ = self.requests.try_send(Request::End);
        self.wake.notify_one();
    }
}

#[derive(Debug)]
pub(super) struct RingFile {
    id: u64,
    handle: Handle,
}

impl Handle {
    pub(super) fn start() -> io::Result<Self> {
        let (requests, queue) = bounded(QUEUE_MAX);
        let (started, is_started) = bounded(1);
        let wake = Arc::new(Notify::new());
        let woken = Arc::clone(&wake);
        std::thread::Builder::new().name("disk-reads".into()).spawn(move || {
            match tokio_uring::Runtime::new(&tokio_uring::builder()) {
                Ok(runtime) => {
                    let _ = started.send(Ok(()));
                    runtime.block_on(serve(queue, woken));
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
        is_started.recv().map_err(io::Error::other)??;
        let permits = Semaphore::new(READS_MAX);
        let shared = Shared { requests, wake, permits, next_id: AtomicU64::new(1) };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(super) fn open(&self, file: File) -> io::Result<RingFile> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        self.send(Request::Open { id, file })?;
        Ok(RingFile { id, handle: self.clone() })
    }

    /// As if the thread had failed.
    #[cfg(test)]
    pub(super) fn end(&self) {
        self.send(Request::End).unwrap();
        // Then nobody is at the queue's other end.
        while self.send(Request::Close { id: 0 }).is_ok() {
            std::thread::yield_now();
        }
    }

    fn send(&self, request: Request) -> io::Result<()> {
        let sent = self.shared.requests.try_send(request);
        sent.map_err(|_| io::Error::other("the disk reader does not keep up or has ended"))?;
        self.shared.wake.notify_one();
        Ok(())
    }
}

impl RingFile {
    /// None if the thread does not take the read, or has ended before it was done.
    pub(super) async fn read(
        &self,
        offset: u64,
        buffer: Buffer,
        inside: usize,
    ) -> Option<io::Result<Buffer>> {
        let permits = &self.handle.shared.permits;
        let _permit = permits.acquire().await.ok()?;
        let (reply, answer) = oneshot::channel();
        let read = Read { id: self.id, offset, buffer, inside, reply };
        self.handle.send(Request::Read(read)).ok()?;
        answer.await.ok()
    }
}

impl Drop for RingFile {
    fn drop(&mut self) {
        // Without room in the queue the file stays open until the thread ends: no harm.
        let _ = self.handle.send(Request::Close { id: self.id });
    }
}

async fn serve(queue: Receiver<Request>, wake: Arc<Notify>) {
    let mut files: HashMap<u64, Rc<tokio_uring::fs::File>> = HashMap::new();
    loop {
        match queue.try_recv() {
            Ok(Request::Open { id, file }) => {
                files.insert(id, Rc::new(tokio_uring::fs::File::from_std(file)));
            }
            Ok(Request::Close { id }) => {
                files.remove(&id);
            }
            Ok(Request::Read(Read { id, offset, buffer, inside, reply })) => {
                let Some(file) = files.get(&id).cloned() else {
                    let _ = reply.send(Err(io::ErrorKind::NotFound.into()));
                    continue;
                };
                tokio_uring::spawn(async move {
                    let _ = reply.send(read_inside(&file, offset, buffer, inside).await);
                });
            }
            Err(TryRecvError::Empty) => wake.notified().await,
            Ok(Request::End) | Err(TryRecvError::Disconnected) => return,
        }
    }
}

/// Reads until `inside` bytes are there. The buffer is larger only where the disk ends: an `O_DIRECT` read is
/// of whole blocks, also across the end, and gives what there is.
async fn read_inside(
    file: &tokio_uring::fs::File,
    offset: u64,
    mut buffer: Buffer,
    inside: usize,
) -> io::Result<Buffer> {
    let mut got = 0;
    while got < inside {
        let (result, slice) = file.read_at(buffer.slice(got..), offset + got as u64).await;
        buffer = slice.into_inner();
        match result {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(buffer)
}
