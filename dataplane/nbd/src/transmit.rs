//! Transmission: requests in, replies out, several at once and in any order.
//!
//! One task reads a connection's requests. Each is begun right there; one that cannot be finished at once becomes a task of
//! its own, and whoever has a reply writes it. So a request that the backend answers from memory costs no
//! change of task, and a slow one holds up no other.
//!
//! Invariants:
//!   - T1: at most `REQUESTS_IN_FLIGHT_MAX` requests and `PAYLOAD_BYTES_IN_FLIGHT_MAX` bytes are between reading
//!     and the reply's last byte (permits are held that long).
//!   - T2: a request handed to the backend is carried through, whatever becomes of the connection.
//!   - T3: a connection on which a reply was lost or broken off carries no further byte (it is cut).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, Semaphore};
use tracing::{debug, error};

use crate::backend::{Backend, BackendError, Piece};
use crate::counters::{Ledger, Refusal};
use crate::incoming::{Incoming, Signal};
use crate::limits::{EXTENTS_PER_REPLY_MAX, PAYLOAD_BYTES_IN_FLIGHT_MAX, REQUESTS_IN_FLIGHT_MAX};
use crate::negotiate::{Agreed, Export};
use crate::reply::{Outcome, encode};
use crate::request::{Request, Work, errno_of};
use crate::wire::{Errno, REQUEST_BYTES, command};

/// A connection in transmission, as its requests see it.
#[derive(Debug)]
pub(crate) struct Link<B, W> {
    backend: Arc<B>,
    agreed: Agreed,
    ledger: Arc<Ledger>,
    writer: Mutex<W>,
    /// Raised when the connection is beyond use.
    cut: Arc<Signal>,
    slots: Arc<Semaphore>,
    budget: Arc<Semaphore>,
}

/// Cuts the connection if a request ends without an answer: its client would wait for ever.
struct MustAnswer<'l> {
    cut: &'l Signal,
    is_answered: bool,
}

impl Drop for MustAnswer<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.cut.raise();
        }
    }
}

impl<B, W> Link<B, W>
where
    B: Backend,
    W: AsyncWrite + Unpin + Send + 'static,
{
    pub(crate) fn new(
        backend: Arc<B>,
        agreed: Agreed,
        ledger: Arc<Ledger>,
        writer: W,
        cut: Arc<Signal>,
    ) -> Self {
        Self {
            backend,
            agreed,
            ledger,
            writer: Mutex::new(writer),
            cut,
            slots: Arc::new(Semaphore::new(REQUESTS_IN_FLIGHT_MAX as usize)),
            budget: Arc::new(Semaphore::new(PAYLOAD_BYTES_IN_FLIGHT_MAX as usize)),
        }
    }

    /// Serves requests until the client disconnects or errs, or until `shutdown` is raised; then waits for those in
    /// flight.
    pub(crate) async fn serve<R>(
        self: Arc<Self>,
        mut incoming: Incoming<R>,
        export: &Export,
        shutdown: &Signal,
    ) where
        R: AsyncRead + Unpin,
    {
        loop {
            let header = tokio::select! {
                biased;
                () = shutdown.raised() => break,
                header = incoming.array::<REQUEST_BYTES>() => header,
            };
            let Some(request) = self.decode(header) else { break };
            let carried = match request.check(export, self.agreed) {
                Ok(work) => self.start(&mut incoming, request, work).await,
                Err(refusal) => self.refuse(&mut incoming, request, refusal).await,
            };
            if let Err(error) = carried {
                self.note_end(&error);
                break;
            }
        }
        // What comes during a shutdown gets no answer: `ESHUTDOWN` would be an error of the disk to whoever uses
        // it, while a client that reconnects sends again what was not answered.
        drop(incoming);
        tokio::select! {
            biased;
            () = self.idle() => return,
            () = self.cut.raised() => {}
        }
        // The backend may take for ever; the client sees the end now, and can connect elsewhere.
        if let Err(error) = self.writer.lock().await.shutdown().await {
            debug!(%error, "nbd client is gone");
        }
        self.idle().await;
    }

    /// The request in a received header; none if it is the last of this connection.
    fn decode(&self, header: io::Result<Option<[u8; REQUEST_BYTES]>>) -> Option<Request> {
        let header = match header {
            Ok(header) => header?,
            Err(error) => {
                self.note_end(&error);
                return None;
            }
        };
        match Request::decode(&header) {
            Ok(request) if request.command == command::DISC => None,
            Ok(request) => {
                self.ledger.counters.requests.fetch_add(1, Ordering::Relaxed);
                Some(request)
            }
            Err(refusal) => {
                self.ledger.refuse(refusal);
                None
            }
        }
    }

    /// Takes in a request's payload and sets it going.
    async fn start<R>(
        self: &Arc<Self>,
        incoming: &mut Incoming<R>,
        request: Request,
        work: Work,
    ) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
    {
        let slot = acquire(&self.slots, 1).await;
        let budget = acquire(&self.budget, request.memory_bytes()).await;
        let payload = incoming.bytes(request.payload_bytes() as usize).await?;
        let link = Arc::clone(self);
        let mut job = Box::pin(async move {
            let mut must = MustAnswer { cut: &link.cut, is_answered: false };
            let outcome = link.carry_out(&request, work, payload).await;
            link.reply(&request, outcome).await;
            must.is_answered = true;
            drop((slot, budget));
        });
        if poll_once(job.as_mut()).await.is_pending() {
            tokio::spawn(job);
        }
        Ok(())
    }

    /// Refuses a request; an error means that the connection must end.
    async fn refuse<R>(
        &self,
        incoming: &mut Incoming<R>,
        request: Request,
        refusal: Refusal,
    ) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
    {
        self.ledger.refuse(refusal);
        if errno_of(refusal).is_none() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        incoming.skip(request.payload_bytes() as usize).await?;
        self.reply(&request, Outcome::refused(refusal)).await;
        Ok(())
    }

    async fn carry_out(&self, request: &Request, work: Work, payload: Bytes) -> Outcome {
        match self.call(request, work, payload).await {
            Ok(outcome) => outcome,
            Err(error) => {
                self.ledger.backend_failed(request.command_name(), &error);
                Outcome::from(&error)
            }
        }
    }

    async fn call(
        &self,
        request: &Request,
        work: Work,
        payload: Bytes,
    ) -> Result<Outcome, BackendError> {
        let (backend, counters) = (&self.backend, &self.ledger.counters);
        let (offset, length) = (request.offset, request.length);
        match work {
            Work::Read { whole } => {
                let mut pieces = Vec::new();
                if length > 0 {
                    pieces = backend.read(offset, length).await?;
                }
                if pieces.iter().map(Piece::length).sum::<usize>() != length as usize {
                    error!(offset, length, "nbd backend answered a read with the wrong length");
                    return Ok(Outcome::Failed { errno: Errno::Io, text: "wrong length read" });
                }
                counters.read_bytes.fetch_add(u64::from(length), Ordering::Relaxed);
                return Ok(Outcome::Read { pieces, whole });
            }
            Work::Write { fua } => {
                backend.write(offset, payload, fua).await?;
                counters.written_bytes.fetch_add(u64::from(length), Ordering::Relaxed);
            }
            Work::WriteZeroes { may_trim, fua } => {
                backend.write_zeroes(offset, length, may_trim, fua).await?;
            }
            Work::Trim { fua } => backend.trim(offset, length, fua).await?,
            Work::Flush => backend.flush().await?,
            Work::Cache => backend.cache(offset, length).await?,
            Work::Status { one } => {
                let count_max = if one { 1 } else { EXTENTS_PER_REPLY_MAX };
                let extents = backend.extents(offset, length, count_max).await?;
                if extents.iter().all(|extent| extent.length == 0) {
                    error!(offset, length, "nbd backend has no extent where the disk is");
                    return Ok(Outcome::Failed { errno: Errno::Io, text: "no extent found" });
                }
                return Ok(Outcome::Status { extents, one });
            }
            Work::Nothing => {}
        }
        Ok(Outcome::Done)
    }

    /// Sends a reply, or cuts the connection.
    async fn reply(&self, request: &Request, outcome: Outcome) {
        let mut out = encode(request, outcome, self.agreed);
        let mut writer = tokio::select! {
            biased;
            () = self.cut.raised() => return,
            writer = self.writer.lock() => writer,
        };
        let written = tokio::select! {
            biased;
            written = writer.write_all_buf(&mut out) => written,
            () = self.cut.raised() => return,
        };
        if let Err(error) = written {
            debug!(%error, "nbd client is gone");
            self.cut.raise();
        }
    }

    /// Returns when nothing is in flight.
    async fn idle(&self) {
        let all = self.slots.acquire_many(REQUESTS_IN_FLIGHT_MAX).await;
        debug_assert!(all.is_ok(), "nobody closes the semaphore");
    }

    fn note_end(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            self.ledger.refuse(Refusal::CutShort);
        } else {
            debug!(%error, "nbd connection ended");
        }
    }
}

async fn acquire(of: &Arc<Semaphore>, count: u32) -> tokio::sync::OwnedSemaphorePermit {
    Arc::clone(of).acquire_many_owned(count).await.expect("nobody closes the semaphore")
}

/// Polls a future one time in the current task.
async fn poll_once<F: Future<Output = ()>>(mut future: Pin<&mut F>) -> Poll<()> {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}
