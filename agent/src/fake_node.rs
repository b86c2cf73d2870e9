//! A node for tests: speaks frames over an in-memory pipe, applies them to an image, keeps the image
//! of every mark, and loses things when told.

use crate::session::{Dial, DialError, Target, Transport};
use farshore_proto::frame::imprint;
use farshore_proto::frame::{
    Ack, Control, FrameHeader, FrameKind, Hello, Refusal, RefusalReason, Welcome,
};
use farshore_proto::limits::{BLOCK_BYTES, FRAME_HEADER_BYTES, WINDOW_BYTES};
use farshore_proto::mark::Mark;
use farshore_proto::{Epoch, Imprint, PointId, Seq, Stamp};
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Notify;

/// What a point is.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) seq: Seq,
    pub(crate) mark: Mark,
    pub(crate) image: Arc<Vec<u8>>,
}

#[derive(Debug, Clone, Default)]
struct Held {
    seq: u64,
    stamp: Stamp,
    /// Unknown in what is committed: the vault does not have it.
    imprint: Imprint,
    image: Vec<u8>,
}

/// A change that is received and not committed; no data means zeros.
#[derive(Debug)]
struct Pending {
    from: usize,
    to: usize,
    data: Option<Vec<u8>>,
}

impl Held {
    fn apply(&mut self, change: &Pending) {
        let place = &mut self.image[change.from..change.to];
        match &change.data {
            Some(data) => place.copy_from_slice(data),
            None => place.fill(0),
        }
    }
}

/// Images of marks that nobody asked for are kept of disks up to this size.
const IMAGE_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, Default)]
struct State {
    is_offline: bool,
    /// Takes connections and says nothing.
    is_dumb: bool,
    /// Nothing is committed while this is set.
    holds_commits: bool,
    refuses: Option<RefusalReason>,
    /// What it would have after losing its journal.
    committed: Held,
    received: Held,
    pending: Vec<Pending>,
    points: BTreeMap<PointId, Point>,
    /// Payload bytes that arrived.
    bytes_in: u64,
    hellos: Vec<Hello>,
    epoch: Epoch,
    /// Signs of life that arrived.
    alive: u64,
    /// Of the disk.
    size_bytes: u64,
    /// Ends the running sessions when it changes.
    incarnation: u64,
}

/// The node.
#[derive(Debug, Default)]
pub(crate) struct FakeNode {
    state: Mutex<State>,
    changed: Notify,
}

impl FakeNode {
    pub(crate) fn new(size_bytes: u64) -> Arc<Self> {
        let node = Self::default();
        let image = vec![0; usize::try_from(size_bytes).unwrap().next_multiple_of(BLOCK_BYTES)];
        node.lock().size_bytes = size_bytes;
        node.lock().committed = Held { image: image.clone(), ..Held::default() };
        node.lock().received = Held { image, ..Held::default() };
        Arc::new(node)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Breaks every session; what was not committed is gone.
    pub(crate) fn crash(&self) {
        let mut state = self.lock();
        state.incarnation += 1;
        state.received = state.committed.clone();
        state.pending.clear();
        let committed = state.committed.seq;
        state.points.retain(|_, point| point.seq.0 <= committed);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Breaks every session and forgets everything.
    pub(crate) fn forget(&self) {
        let mut state = self.lock();
        state.incarnation += 1;
        let image = vec![0; state.received.image.len()];
        state.committed = Held { image: image.clone(), ..Held::default() };
        state.received = Held { image, ..Held::default() };
        state.points.clear();
        state.pending.clear();
        drop(state);
        self.changed.notify_waiters();
    }

    pub(crate) fn set_dumb(&self, is_dumb: bool) {
        self.lock().is_dumb = is_dumb;
    }

    pub(crate) fn set_offline(&self, is_offline: bool) {
        let mut state = self.lock();
        state.is_offline = is_offline;
        state.incarnation += 1;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Its newest frame is another one of the same number and stamp: a write of `byte` to the block at `from`.
    pub(crate) fn take_others(&self, from: usize, byte: u8) {
        let data = Some(vec![byte; BLOCK_BYTES]);
        let mut state = self.lock();
        state.change(Pending { from, to: from + BLOCK_BYTES, data });
        state.received.imprint = Imprint::of(u32::from(byte));
    }

    pub(crate) fn hold_commits(&self, holds: bool) {
        self.lock().holds_commits = holds;
        self.changed.notify_waiters();
    }

    pub(crate) fn refuse(&self, reason: Option<RefusalReason>) {
        let mut state = self.lock();
        state.refuses = reason;
        state.incarnation += 1;
        drop(state);
        self.changed.notify_waiters();
    }

    pub(crate) fn bytes_in(&self) -> u64 {
        self.lock().bytes_in
    }

    /// How often an agent said that it is there.
    pub(crate) fn alive(&self) -> u64 {
        self.lock().alive
    }

    pub(crate) fn received(&self) -> u64 {
        self.lock().received.seq
    }

    pub(crate) fn hellos(&self) -> Vec<Hello> {
        self.lock().hellos.clone()
    }

    pub(crate) fn point(&self, point: PointId) -> Option<Point> {
        let state = self.lock();
        let committed = state.committed.seq;
        state.points.get(&point).filter(|point| point.seq.0 <= committed).cloned()
    }

    /// Every point in the vault, oldest first.
    pub(crate) fn points(&self) -> Vec<Point> {
        let state = self.lock();
        let committed = state.committed.seq;
        let mut points: Vec<Point> =
            state.points.values().filter(|point| point.seq.0 <= committed).cloned().collect();
        points.sort_by_key(|point| point.seq);
        points
    }

    async fn serve(self: Arc<Self>, mut stream: DuplexStream) -> io::Result<()> {
        let (header, body) = read_frame(&mut stream).await?;
        let Ok(Control::Hello(hello)) = Control::decode(&header, &body) else {
            panic!("a session begins with a hello");
        };
        let (answer, incarnation) = self.greet(hello);
        let is_refused = matches!(answer, Control::Refusal(_));
        stream.write_all(&answer.encode()).await?;
        if is_refused {
            return Ok(());
        }
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (sender, mut frames) = tokio::sync::mpsc::channel(16);
        let reading = tokio::spawn(async move {
            while let Ok(frame) = read_frame(&mut reader).await {
                if sender.send(frame).await.is_err() {
                    return;
                }
            }
        });
        let mut told = Ack { journaled: Seq(0), committed: Seq(0), gathers_in_ms: None };
        while self.lock().incarnation == incarnation {
            let ack = self.ack();
            if ack != told {
                told = ack;
                writer.write_all(&Control::Ack(ack).encode()).await?;
            }
            tokio::select! {
                frame = frames.recv() => {
                    let Some((header, body)) = frame else { break };
                    if header.kind == FrameKind::Alive {
                        self.lock().alive += 1;
                        writer.write_all(&Control::Ack(told).encode()).await?;
                        continue;
                    }
                    if !self.take(&header, body, incarnation) {
                        break;
                    }
                }
                () = self.changed.notified() => {}
                // The notice may have come before it was waited for.
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
        reading.abort();
        Ok(())
    }

    /// The answer to a hello, and the number of the session: it ends all before it.
    fn greet(&self, hello: Hello) -> (Control, u64) {
        let mut state = self.lock();
        state.incarnation += 1;
        let incarnation = state.incarnation;
        state.hellos.push(hello);
        if hello.epoch > state.epoch {
            // A newer epoch may be of a larger disk; first all of the old one is committed.
            assert!(hello.size_bytes >= state.size_bytes, "it shrank");
            for change in std::mem::take(&mut state.pending) {
                state.committed.apply(&change);
            }
            state.committed.seq = state.received.seq;
            state.committed.stamp = state.received.stamp;
            (state.epoch, state.size_bytes) = (hello.epoch, hello.size_bytes);
            let bytes = usize::try_from(hello.size_bytes).unwrap().next_multiple_of(BLOCK_BYTES);
            state.committed.image.resize(bytes, 0);
            state.received.image.resize(bytes, 0);
        }
        assert_eq!((hello.epoch, hello.size_bytes), (state.epoch, state.size_bytes));
        let refuse = |reason: RefusalReason| {
            let text = format!("refused: {}", reason.word());
            Control::Refusal(Refusal { reason, text })
        };
        if let Some(reason) = state.refuses {
            return (refuse(reason), incarnation);
        }
        if hello.first_seq.0 > state.received.seq + 1 {
            return (refuse(RefusalReason::Gap), incarnation);
        }
        let welcome = Welcome {
            received: Seq(state.received.seq),
            journaled: Seq(state.received.seq),
            committed: Seq(state.committed.seq),
            window_bytes: u32::try_from(WINDOW_BYTES).unwrap(),
            stamp: state.received.stamp,
            imprint: state.received.imprint,
        };
        (Control::Welcome(welcome), incarnation)
    }

    fn ack(&self) -> Ack {
        let mut state = self.lock();
        if !state.holds_commits {
            for change in std::mem::take(&mut state.pending) {
                state.committed.apply(&change);
            }
            state.committed.seq = state.received.seq;
            state.committed.stamp = state.received.stamp;
        }
        Ack {
            journaled: Seq(state.received.seq),
            committed: Seq(state.committed.seq),
            gathers_in_ms: None,
        }
    }

    /// Applies a frame; false if the session is over.
    fn take(&self, header: &FrameHeader, body: Vec<u8>, incarnation: u64) -> bool {
        let mut state = self.lock();
        if state.incarnation != incarnation {
            return false;
        }
        assert_eq!(header.seq.0, state.received.seq + 1, "a gap in the stream");
        state.received.seq = header.seq.0;
        assert!(!header.previous.differs(state.received.imprint), "behind another frame");
        (state.received.stamp, state.received.imprint) = (header.stamp, imprint(&header.encode()));
        let place = |block: u64| usize::try_from(block).unwrap() * BLOCK_BYTES;
        let (from, to) = (place(header.range.block), place(header.range.end()));
        match header.kind {
            FrameKind::Write => {
                header.check_body(&body).expect("the bytes are whole");
                state.bytes_in += body.len() as u64;
                state.change(Pending { from, to, data: Some(body) });
            }
            FrameKind::Zero => state.change(Pending { from, to, data: None }),
            FrameKind::Mark => {
                let Ok(Control::Mark(seq, mark)) = Control::decode(header, &body) else {
                    panic!("a mark is a mark");
                };
                let is_kept = mark.is_prompt || state.received.image.len() <= IMAGE_BYTES_MAX;
                let image = if is_kept { state.received.image.clone() } else { Vec::new() };
                let image = Arc::new(image);
                let before = state.points.insert(mark.point, Point { seq, mark, image });
                assert!(before.is_none(), "a point is set once");
            }
            other => panic!("an agent does not send {other:?}"),
        }
        true
    }
}

impl State {
    fn change(&mut self, change: Pending) {
        self.received.apply(&change);
        self.pending.push(change);
    }
}

async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(FrameHeader, Vec<u8>)> {
    let mut head = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut head).await?;
    let header = FrameHeader::decode(&head).expect("the agent sends good frames");
    let mut body = vec![0; header.body_bytes];
    stream.read_exact(&mut body).await?;
    Ok((header, body))
}

/// Dials the fake node.
#[derive(Debug, Clone)]
pub(crate) struct FakeDial(pub(crate) Arc<FakeNode>);

impl Dial for FakeDial {
    fn dial(&self, target: Target) -> BoxFuture<'static, Result<Box<dyn Transport>, DialError>> {
        let node = Arc::clone(&self.0);
        Box::pin(async move {
            if node.lock().is_offline {
                let source = io::ErrorKind::ConnectionRefused.into();
                return Err(DialError::Io { address: target.address, source });
            }
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            let is_dumb = node.lock().is_dumb;
            tokio::spawn(async move {
                if is_dumb {
                    return listen_until_left(theirs).await;
                }
                drop(node.serve(theirs).await);
            });
            let transport: Box<dyn Transport> = Box::new(ours);
            Ok(transport)
        })
    }
}

/// Reads until the peer has hung up, and says nothing.
async fn listen_until_left(mut theirs: DuplexStream) {
    let _left = tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await;
}
