//! What the shard has to say to one session, and the task that says it.

use crate::rt::{Rt, Signal, within};
use crate::tls::TlsWriter;
use farshore_engine::silence::Peer;
use farshore_engine::standing::Holder;
use farshore_proto::Timestamp;
use farshore_proto::frame::{Ack, Control, Refusal, RefusalReason};
use futures::future::{Either, select};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// Frames of one session that wait to be sent: a welcome, a refusal; acknowledgements merge.
const QUEUE_MAX: usize = 8;
/// Time for the last words after the end of a session; a peer that takes nothing is gone.
pub(super) const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// What the shard has to say to one session.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: RefCell<VecDeque<Vec<u8>>>,
    ack: Cell<Option<Ack>>,
    moved: Signal,
    is_closed: Cell<bool>,
    /// For the reading task.
    pub(crate) closed: Signal,
    /// For the writing task.
    ended: Signal,
    /// Whether something comes of it.
    peer: Cell<Peer>,
    /// Whose session it is, for which volume; none before the hello.
    pub(crate) holder: Cell<Option<Holder<Uuid>>>,
    /// Its volume has its share of the cache: it is not read from.
    pub(crate) is_held: Cell<bool>,
    pub(crate) resumed: Signal,
}

impl Outbox {
    /// For a peer that comes now.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { peer: Cell::new(Peer::new(now)), ..Self::default() }
    }

    /// What is known of the peer.
    pub(crate) fn peer(&self) -> Peer {
        self.peer.get()
    }

    /// Notes what the peer did.
    pub(crate) fn note(&self, what: impl FnOnce(&mut Peer)) {
        let mut peer = self.peer.get();
        what(&mut peer);
        self.peer.set(peer);
    }

    /// Queues a frame. A peer that reads nothing cannot make this grow: it is closed instead.
    pub(crate) fn push(&self, frame: Vec<u8>) {
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= QUEUE_MAX {
            drop(queue);
            return self.close();
        }
        // Watermarks that were reached before come before: a refusal is the last frame.
        queue.extend(self.ack.take().map(|ack| Control::Ack(ack).encode()));
        queue.push_back(frame);
        self.moved.notify();
    }

    /// Queues watermarks; newer ones replace those not sent yet.
    pub(crate) fn acknowledge(&self, ack: Ack) {
        if !self.is_closed.get() {
            self.ack.set(Some(ack));
            self.moved.notify();
        }
    }

    /// Says why, and ends the session.
    pub(crate) fn refuse(&self, reason: RefusalReason, text: String) {
        if !self.is_closed.get() {
            self.push(Control::Refusal(Refusal { reason, text }).encode());
        }
        self.close();
    }

    /// Ends the session after what is queued.
    pub(crate) fn close(&self) {
        self.is_closed.set(true);
        self.moved.notify();
        self.closed.notify();
        self.ended.notify();
        self.resumed.notify();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    fn take(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.queue.borrow_mut().drain(..).for_each(|frame| bytes.extend(frame));
        if let Some(ack) = self.ack.take() {
            bytes.extend(Control::Ack(ack).encode());
        }
        bytes
    }
}

/// Sends what is queued until the session ends, and then what is left, to a peer that takes it.
pub(crate) async fn write<R: Rt>(mut writer: TlsWriter<R>, outbox: Rc<Outbox>) {
    let is_sent = {
        let sending = pin!(send(&mut writer, &outbox));
        let patience = pin!(async {
            outbox.ended.wait().await;
            R::sleep(GOODBYE_MAX).await;
        });
        matches!(select(sending, patience).await, Either::Left((Ok(()), _)))
    };
    outbox.close();
    if is_sent {
        let _goodbye_arrived = within::<R, _>(GOODBYE_MAX, writer.close()).await;
    }
}

async fn send<R: Rt>(writer: &mut TlsWriter<R>, outbox: &Outbox) -> io::Result<()> {
    loop {
        let bytes = outbox.take();
        if !bytes.is_empty() {
            writer.write_all(&bytes).await?;
            continue;
        }
        if outbox.is_closed() {
            return Ok(());
        }
        let has_tls_to_say = {
            let moved = pin!(outbox.moved.wait());
            let tls = pin!(writer.wants_write());
            matches!(select(moved, tls).await, Either::Right(_))
        };
        if has_tls_to_say {
            writer.flush().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::Descriptors;
    use crate::rt::{Threads, Turnstile};
    use crate::tls::{Use, attach, fresh, handshake};
    use farshore_proto::Seq;
    use farshore_proto::frame::Welcome;
    use farshore_proto::limits::FRAME_HEADER_BYTES;
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::time::Instant;

    const ACK: u8 = 6;
    const REFUSAL: u8 = 7;
    const WELCOME: u8 = 2;

    fn ack(seq: u64) -> Ack {
        Ack { journaled: Seq(seq), committed: Seq(0), gathers_in_ms: None }
    }

    /// Kinds of the frames in `bytes`, in order.
    fn kinds(mut bytes: &[u8]) -> Vec<u8> {
        let mut kinds = Vec::new();
        while let Some(header) = bytes.first_chunk::<FRAME_HEADER_BYTES>() {
            kinds.push(header[4]);
            let body = u32::from_le_bytes([header[32], header[33], header[34], header[35]]);
            bytes = &bytes[FRAME_HEADER_BYTES + body as usize..];
        }
        kinds
    }

    #[test]
    fn a_refusal_is_the_last_frame() {
        let outbox = Outbox::default();
        outbox.acknowledge(ack(1));
        outbox.acknowledge(ack(2));
        outbox.refuse(RefusalReason::Protocol, "no".to_owned());
        outbox.acknowledge(ack(3));
        outbox.refuse(RefusalReason::Limit, "again".to_owned());
        assert_eq!(kinds(&outbox.take()), [ACK, REFUSAL]);
        assert!(outbox.is_closed());
    }

    #[test]
    fn acks_come_after_the_welcome_and_merge() {
        let outbox = Outbox::default();
        let welcome = Welcome {
            imprint: farshore_proto::Imprint::default(),
            received: Seq(0),
            journaled: Seq(0),
            committed: Seq(0),
            window_bytes: 4096,
            stamp: farshore_proto::Stamp::default(),
        };
        outbox.push(Control::Welcome(welcome).encode());
        (1..100).for_each(|seq| outbox.acknowledge(ack(seq)));
        assert_eq!(kinds(&outbox.take()), [WELCOME, ACK]);
        assert!(outbox.take().is_empty());
    }

    /// A server's connection, and a client that has shaken hands and reads no more.
    fn deaf_peer() -> (rustls::ServerConnection, TcpStream, std::thread::JoinHandle<TcpStream>) {
        let signed = rcgen::generate_simple_self_signed(["node".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
        let chain = vec![signed.cert.der().clone()];
        let provider = Arc::new(aws_lc_rs::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.clone(), key)
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(chain[0].clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let client = std::thread::spawn(move || {
            let name = ServerName::try_from("node").unwrap();
            let mut tls = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
            while tls.is_handshaking() {
                tls.complete_io(&mut socket).unwrap();
            }
            socket
        });
        let (accepted, _) = listener.accept().unwrap();
        (rustls::ServerConnection::new(Arc::new(server)).unwrap(), accepted, client)
    }

    /// I7: a peer that takes nothing would hold socket and task for ever.
    #[tokio::test]
    async fn a_session_ends_although_its_peer_takes_nothing() {
        let (tls, socket, client) = deaf_peer();
        let parked = fresh(socket, tls);
        let (mut reader, mut writer) =
            attach::<Threads>(parked, Use::Greeting, Descriptors::raise()).unwrap();
        handshake(&mut reader, &mut writer, &Turnstile::default()).await.unwrap();
        let _deaf = client.join().unwrap();
        let outbox = Rc::new(Outbox::default());
        // More than any socket's buffers hold.
        outbox.push(vec![0; 64 << 20]);
        let begin = Instant::now();
        let writing = write::<Threads>(writer, Rc::clone(&outbox));
        let closing = async {
            Threads::sleep(Duration::from_millis(200)).await;
            outbox.refuse(RefusalReason::Protocol, "no".to_owned());
        };
        let both = async { futures::join!(writing, closing) };
        let ended = within::<Threads, _>(3 * GOODBYE_MAX, both).await;
        assert!(ended.is_some(), "it still writes after {:?}", begin.elapsed());
        assert!(begin.elapsed() >= GOODBYE_MAX, "the peer had time to listen");
    }

    #[test]
    fn a_peer_that_reads_nothing_is_closed() {
        let outbox = Outbox::default();
        for _ in 0..=QUEUE_MAX {
            assert!(!outbox.is_closed());
            outbox.push(vec![0; 48]);
        }
        assert!(outbox.is_closed());
    }
}
