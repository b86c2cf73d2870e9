//! Accepting connections, serving each, shutting down.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{debug, error, warn};

use crate::address::{Address, BindError, Listener, Stream};
use crate::backend::Backend;
use crate::counters::{Counters, Ledger, Refusal};
use crate::incoming::{Incoming, Signal};
use crate::limits::{
    ACCEPT_RETRY, CONNECTIONS_MAX, EXPORT_NAME_BYTES_MAX, HANDSHAKE_DEADLINE, HANDSHAKES_MAX,
    SHUTDOWN_GRACE,
};
use crate::negotiate::{Agreed, Export, negotiate};
use crate::transmit::Link;

/// An export, bound to an address. Clients can connect from now on; [`serve`](Self::serve) answers them.
#[derive(Debug)]
pub struct Server<B> {
    listener: Listener,
    address: Address,
    shared: Arc<Shared<B>>,
}

/// What all connections of a server have in common.
#[derive(Debug)]
struct Shared<B> {
    export: Export,
    backend: Arc<B>,
    counters: Arc<Counters>,
    shutdown: Signal,
    /// Clients that have agreed on the export.
    clients: AtomicUsize,
}

/// Connections that have not agreed on anything yet, the oldest first. They take no client's place: who only
/// connects keeps nobody out.
#[derive(Debug, Default)]
struct Strangers(VecDeque<Arc<Stranger>>);

/// One of them; others have it until it is a client, or gone.
#[derive(Debug)]
struct Stranger {
    shown_out: Signal,
}

impl Strangers {
    /// One more, for which the oldest goes if there are too many.
    fn enter(&mut self) -> Arc<Stranger> {
        self.0.retain(|known| Arc::strong_count(known) > 1);
        if self.0.len() >= HANDSHAKES_MAX
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.shown_out.raise();
        }
        let stranger = Arc::new(Stranger { shown_out: Signal::new() });
        self.0.push_back(Arc::clone(&stranger));
        stranger
    }
}

impl<B: Backend> Server<B> {
    /// Binds `backend` to `address` under `export_name` (at most 256 bytes; clients may leave it out).
    ///
    /// # Errors
    /// [`BindError`]: the address is taken or not allowed, or the export cannot be described to clients.
    pub async fn bind(
        address: &Address,
        export_name: &str,
        backend: Arc<B>,
    ) -> Result<Self, BindError> {
        let shared = Shared::new(export_name, backend, Arc::default())?;
        let (listener, address) = Listener::bind(address).await?;
        Ok(Self { listener, address, shared })
    }

    /// Where the server listens, with the real port and an absolute path.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The URI for clients.
    pub fn uri(&self) -> String {
        self.address.uri(&self.shared.export.name)
    }

    /// The counters, which go on living as long as anybody holds them.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }

    /// Serves clients until `shutdown` is ready, then stops listening and returns when every request in flight is done.
    ///
    /// Requests that come after that are not answered: a client that reconnects sends them again. One that does
    /// not take its replies is disconnected after [`SHUTDOWN_GRACE`]; the backend is always waited for.
    ///
    /// # Cancel safety
    /// Dropping the future closes all connections; requests that the backend has begun are carried through on the
    /// runtime, unanswered.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) {
        let Self { listener, shared, .. } = self;
        let mut shutdown = pin!(shutdown);
        let mut connections = JoinSet::new();
        let mut strangers = Strangers::default();
        let mut last = 0;
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(ended) = connections.join_next() => note_panic(ended),
                accepted = listener.accept() => match accepted {
                    Ok(stream) => {
                        last += 1;
                        let ledger = Ledger::new(Arc::clone(&shared.counters), last);
                        admit((&mut connections, &mut strangers), &shared, stream, ledger);
                    }
                    Err(error) => {
                        shared.counters.accept_errors.fetch_add(1, Ordering::Relaxed);
                        warn!(%error, "nbd connection not accepted");
                        sleep(ACCEPT_RETRY).await;
                    }
                },
            }
        }
        drop(listener);
        shared.shutdown.raise();
        while let Some(ended) = connections.join_next().await {
            note_panic(ended);
        }
    }
}

/// Serves one client over streams that are connected already, until the conversation is over: a pipe in memory, say,
/// where nothing listens.
///
/// # Errors
/// [`BindError`]: the export cannot be described to clients.
pub async fn converse<B, R, W>(
    export_name: &str,
    backend: Arc<B>,
    counters: Arc<Counters>,
    reader: R,
    writer: W,
) -> Result<(), BindError>
where
    B: Backend,
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let shared = Shared::new(export_name, backend, counters)?;
    let ledger = Arc::new(Ledger::new(Arc::clone(&shared.counters), 1));
    let stranger = Strangers::default().enter();
    shared.converse(reader, writer, ledger, stranger).await;
    Ok(())
}

fn note_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(%error, "nbd connection ended by a bug");
    }
}

fn admit<B: Backend>(
    (connections, strangers): (&mut JoinSet<()>, &mut Strangers),
    shared: &Arc<Shared<B>>,
    stream: Stream,
    ledger: Ledger,
) {
    shared.counters.connections.fetch_add(1, Ordering::Relaxed);
    if shared.clients.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
        ledger.refuse(Refusal::ConnectionsTooMany);
        return;
    }
    let stranger = strangers.enter();
    let (shared, ledger) = (Arc::clone(shared), Arc::new(ledger));
    match stream {
        Stream::Tcp(stream) => {
            let (reader, writer) = stream.into_split();
            connections.spawn(shared.converse(reader, writer, ledger, stranger));
        }
        Stream::Unix(stream) => {
            let (reader, writer) = stream.into_split();
            connections.spawn(shared.converse(reader, writer, ledger, stranger));
        }
    }
}

/// Counts a connection as open while it lives.
struct Open<'c>(&'c Counters);

impl<'c> Open<'c> {
    fn new(counters: &'c Counters) -> Self {
        counters.connections_open.fetch_add(1, Ordering::Relaxed);
        Self(counters)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a client while it lives.
struct Place<'c>(&'c AtomicUsize);

impl<'c> Place<'c> {
    /// None if there are too many.
    fn take(clients: &'c AtomicUsize) -> Option<Self> {
        let more = |count: usize| (count < CONNECTIONS_MAX).then_some(count + 1);
        clients.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(clients))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<B: Backend> Shared<B> {
    fn new(
        export_name: &str,
        backend: Arc<B>,
        counters: Arc<Counters>,
    ) -> Result<Arc<Self>, BindError> {
        if export_name.len() > EXPORT_NAME_BYTES_MAX || export_name.contains('\0') {
            return Err(BindError::ExportName { name: export_name.to_owned() });
        }
        let size_bytes = backend.size_bytes();
        let export = Export {
            name: export_name.to_owned(),
            size_bytes,
            is_read_only: backend.is_read_only(),
            can_multi_conn: backend.can_multi_conn(),
            is_zeroing_fast: backend.is_zeroing_fast(),
        };
        let (shutdown, clients) = (Signal::new(), AtomicUsize::new(0));
        Ok(Arc::new(Self { export, backend, counters, shutdown, clients }))
    }

    /// One connection, from greeting to end.
    async fn converse<R, W>(
        self: Arc<Self>,
        reader: R,
        mut writer: W,
        ledger: Arc<Ledger>,
        stranger: Arc<Stranger>,
    ) where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let _open = Open::new(&self.counters);
        // A disk may grow: who comes now sees its size of now.
        let size_bytes = self.backend.size_bytes();
        let export = Export { size_bytes, ..self.export.clone() };
        let cut = Arc::new(Signal::new());
        let mut incoming = Incoming::new(reader, Arc::clone(&cut));
        let negotiating = negotiate(&mut incoming, &mut writer, &export, &ledger);
        let negotiated = tokio::select! {
            negotiated = timeout(HANDSHAKE_DEADLINE, negotiating) => negotiated,
            () = self.shutdown.raised() => return,
            () = stranger.shown_out.raised() => return ledger.refuse(Refusal::HandshakesTooMany),
        };
        let agreed = match negotiated {
            Ok(Ok(Some(agreed))) => agreed,
            Ok(Ok(None)) => return,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return ledger.refuse(Refusal::CutShort);
            }
            Ok(Err(error)) => return debug!(%error, "nbd client gone during negotiation"),
            Err(_) => return ledger.refuse(Refusal::HandshakeTooSlow),
        };
        let Some(_place) = Place::take(&self.clients) else {
            return ledger.refuse(Refusal::ConnectionsTooMany);
        };
        drop(stranger);
        self.transmit(incoming, writer, (agreed, &export), ledger, &cut).await;
    }

    async fn transmit<R, W>(
        &self,
        incoming: Incoming<R>,
        writer: W,
        (agreed, export): (Agreed, &Export),
        ledger: Arc<Ledger>,
        cut: &Arc<Signal>,
    ) where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let backend = Arc::clone(&self.backend);
        let link = Arc::new(Link::new(backend, agreed, ledger, writer, Arc::clone(cut)));
        let cut_late = async {
            self.shutdown.raised().await;
            sleep(SHUTDOWN_GRACE).await;
            cut.raise();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = link.serve(incoming, export, &self.shutdown) => {}
            () = cut_late => {}
        }
    }
}
