//! One session: frames in, acknowledgements out.

use super::Greeted;
use super::core::Core;
use super::frames::Frame;
use crate::rt::{Rt, Signal};
use crate::tls::{TlsReader, TlsWriter, attach};
use farshore_engine::batch::Change;
use farshore_engine::shard::{Input, SessionId};
use farshore_proto::frame::{Ack, Control, FrameHeader, FrameKind, Hello, Refusal, RefusalReason};
use farshore_proto::limits::FRAME_HEADER_BYTES;
use farshore_proto::{DecodeError, VolumeId};
use futures::future::{Either, select};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// Frames of one session that wait to be sent: a welcome, a refusal; acknowledgements merge.
const QUEUE_MAX: usize = 8;
/// A session that says nothing for this long, and for three marks, is ended.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// How often idle sessions are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// A peer that takes nothing for this long is gone.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// What the shard has to say to one session.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: RefCell<VecDeque<Vec<u8>>>,
    ack: Cell<Option<Ack>>,
    moved: Signal,
    is_closed: Cell<bool>,
    closed: Signal,
    last_heard_ms: Cell<u64>,
    mark_interval_ms: Cell<u64>,
    pub(crate) resumed: Signal,
}

impl Outbox {
    /// Queues a frame. A peer that reads nothing cannot make this grow: it is closed instead.
    pub(crate) fn push(&self, frame: Vec<u8>) {
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= QUEUE_MAX {
            drop(queue);
            return self.close();
        }
        queue.push_back(frame);
        self.moved.notify();
    }

    /// Queues watermarks; newer ones replace those not sent yet.
    pub(crate) fn acknowledge(&self, ack: Ack) {
        self.ack.set(Some(ack));
        self.moved.notify();
    }

    /// Ends the session after what is queued.
    pub(crate) fn close(&self) {
        self.is_closed.set(true);
        self.moved.notify();
        self.closed.notify();
        self.resumed.notify();
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

/// Why reading ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("frame: {0}")]
    Frame(#[from] DecodeError),
    #[error("{0:?} frames are not for nodes")]
    Unexpected(FrameKind),
    #[error("the hello is for volume {0}, the request was for another")]
    OtherVolume(VolumeId),
}

/// Serves one connection until it ends.
pub(crate) async fn run<R: Rt>(core: Rc<Core<R>>, greeted: Greeted) {
    let Greeted { parked, peer, agent, volume } = greeted;
    let (mut reader, writer) = match attach::<R>(parked) {
        Ok(halves) => halves,
        Err(error) => return tracing::warn!(%peer, %error, "cannot attach a connection"),
    };
    let outbox = Rc::new(Outbox::default());
    outbox.last_heard_ms.set(core.now().0);
    let session = core.open_session(Rc::clone(&outbox));
    outbox.push(super::greet::SWITCHING.to_vec());
    R::spawn(write(writer, Rc::clone(&outbox)));
    core.parts.metrics.session_began();
    let end = receive(&core, &mut reader, session, &outbox, agent, volume).await;
    match end {
        Ok(()) => tracing::debug!(%peer, %volume, "session ended"),
        Err(SessionError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            tracing::debug!(%peer, %volume, "agent went away");
        }
        Err(error) => refuse(&core, &outbox, peer, volume, &error),
    }
    outbox.close();
    core.end_session(session);
    core.parts.metrics.session_ended();
}

fn refuse<R: Rt>(
    core: &Core<R>,
    outbox: &Outbox,
    peer: std::net::SocketAddr,
    volume: VolumeId,
    error: &SessionError,
) {
    let reason = match error {
        SessionError::Io(_) => "connection",
        SessionError::Frame(_) | SessionError::Unexpected(_) | SessionError::OtherVolume(_) => {
            "protocol"
        }
    };
    core.parts.metrics.refused(reason);
    tracing::info!(%peer, %volume, reason, %error, "session refused");
    let text = error.to_string();
    let refusal = Refusal { reason: RefusalReason::Protocol, text };
    outbox.push(Control::Refusal(refusal).encode());
}

async fn receive<R: Rt>(
    core: &Core<R>,
    reader: &mut TlsReader<R>,
    session: SessionId,
    outbox: &Outbox,
    agent: uuid::Uuid,
    volume: VolumeId,
) -> Result<(), SessionError> {
    let Some(hello) = read_hello(reader, outbox).await? else { return Ok(()) };
    if hello.volume != volume {
        return Err(SessionError::OtherVolume(hello.volume));
    }
    outbox.mark_interval_ms.set(hello.mark_interval_ms.into());
    let assigned = core.parts.assignments.epoch(volume, agent);
    core.input(Input::Hello { session, hello, assigned });
    while let Some((header, frame)) = read_frame(reader, outbox).await? {
        outbox.last_heard_ms.set(core.now().0);
        let bytes = frame.body.len();
        let change = change_of(&header, &frame.body)?;
        core.parts.metrics.received(bytes);
        let handle = core.keep(frame);
        core.input(Input::Frame { session, seq: header.seq, change, handle, bytes });
        while core.is_paused() && !outbox.is_closed.get() {
            outbox.last_heard_ms.set(core.now().0);
            outbox.resumed.wait().await;
        }
    }
    Ok(())
}

fn change_of(header: &FrameHeader, body: &[u8]) -> Result<Change, SessionError> {
    match header.kind {
        FrameKind::Write => Ok(Change::Write(header.range)),
        FrameKind::Zero => Ok(Change::Zero(header.range)),
        FrameKind::Mark => match Control::decode(header, body)? {
            Control::Mark(_, mark) => Ok(Change::Mark(mark)),
            _ => Err(SessionError::Unexpected(header.kind)),
        },
        kind => Err(SessionError::Unexpected(kind)),
    }
}

async fn read_hello<R: Rt>(
    reader: &mut TlsReader<R>,
    outbox: &Outbox,
) -> Result<Option<Hello>, SessionError> {
    let Some((header, frame)) = read_frame(reader, outbox).await? else { return Ok(None) };
    if header.kind != FrameKind::Hello {
        return Err(SessionError::Unexpected(header.kind));
    }
    match Control::decode(&header, &frame.body)? {
        Control::Hello(hello) => Ok(Some(hello)),
        _ => Err(SessionError::Unexpected(header.kind)),
    }
}

/// The next frame, checked; `None` when the shard closed the session.
async fn read_frame<R: Rt>(
    reader: &mut TlsReader<R>,
    outbox: &Outbox,
) -> Result<Option<(FrameHeader, Frame)>, SessionError> {
    let mut bytes = [0; FRAME_HEADER_BYTES];
    if !fill(reader, outbox, &mut bytes).await? {
        return Ok(None);
    }
    let header = FrameHeader::decode(&bytes)?;
    let mut body = vec![0; header.body_bytes];
    if !fill(reader, outbox, &mut body).await? {
        return Ok(None);
    }
    header.check_body(&body)?;
    Ok(Some((header, Frame { header: bytes, body })))
}

/// Fills `buffer`; false when the shard closed the session.
async fn fill<R: Rt>(
    reader: &mut TlsReader<R>,
    outbox: &Outbox,
    buffer: &mut [u8],
) -> io::Result<bool> {
    let mut filled = 0;
    loop {
        if outbox.is_closed.get() {
            return Ok(false);
        }
        let read = pin!(reader.fill_buffer(buffer, &mut filled));
        let closed = pin!(outbox.closed.wait());
        if let Either::Left((done, _)) = select(read, closed).await {
            return done.map(|()| true);
        }
    }
}

async fn write<R: Rt>(mut writer: TlsWriter<R>, outbox: Rc<Outbox>) {
    let end = send(&mut writer, &outbox).await;
    outbox.close();
    if end.is_ok() {
        let _goodbye_arrived = crate::rt::within::<R, _>(GOODBYE_MAX, writer.close()).await;
    }
}

async fn send<R: Rt>(writer: &mut TlsWriter<R>, outbox: &Outbox) -> io::Result<()> {
    loop {
        let bytes = outbox.take();
        if !bytes.is_empty() {
            writer.write_all(&bytes).await?;
            continue;
        }
        if outbox.is_closed.get() {
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

/// Ends sessions that have gone silent.
pub(crate) async fn sweep<R: Rt>(core: Rc<Core<R>>) {
    while !core.is_stopping() {
        R::sleep(SWEEP_EVERY).await;
        let now_ms = core.now().0;
        for outbox in core.outboxes() {
            let silent_ms = u128::from(now_ms.saturating_sub(outbox.last_heard_ms.get()));
            let three_marks_ms = 3 * u128::from(outbox.mark_interval_ms.get());
            if silent_ms > IDLE_MAX.as_millis().max(three_marks_ms) {
                core.parts.metrics.refused("idle");
                outbox.close();
            }
        }
    }
}
