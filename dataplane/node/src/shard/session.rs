//! One session: frames in, acknowledgements out.

use super::Greeted;
use super::arrivals::Arrival;
use super::core::Core;
use super::outbox::{GOODBYE_MAX, Outbox, write};
use super::strangers::Place;
use crate::assignments::Assigned;
use crate::rt::{Rt, within};
use crate::tls::{TlsReader, Use, attach};
use farshore_client::Shown;
use farshore_engine::batch::Change;
use farshore_engine::shard::{Input, SessionId};
use farshore_engine::silence::{self, Peer};
use farshore_engine::standing::Over;
use farshore_ingest::frames::Frame;
use farshore_proto::frame::{Control, FrameHeader, FrameKind, Hello, Link, RefusalReason};
use farshore_proto::limits::{FRAME_HEADER_BYTES, WINDOW_BYTES};
use farshore_proto::{DecodeError, VolumeId};
use futures::FutureExt;
use futures::future::{Either, select};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// After a refusal so many bytes that were on their way are read and dropped.
const LINGER_BYTES_MAX: usize = 2 * WINDOW_BYTES;
/// A session that always has bytes for us lets others have their turn after so many,
const TURN_BYTES: usize = 128 << 10;
/// and after so many frames, which cost time too.
const TURN_FRAMES: usize = 64;

/// Why reading ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("the connection ended inside a frame")]
    Truncated,
    #[error("frame: {0}")]
    Frame(#[from] DecodeError),
    #[error("{0:?} frames are not for nodes")]
    Unexpected(FrameKind),
    #[error("the first frame is a {0:?}, not a hello")]
    NoHello(FrameKind),
    #[error("the hello is for volume {0}, the request was for another")]
    OtherVolume(VolumeId),
    #[error("too many connections without a hello")]
    Crowd,
    #[error("{}", .0.text())]
    Quiet(silence::Cause),
    #[error("{}", .0.text())]
    Over(Over),
}

impl SessionError {
    /// For counters and logs, and for the peer.
    fn reasons(&self) -> (&'static str, RefusalReason) {
        match self {
            Self::Io(_) => ("connection", RefusalReason::Protocol),
            Self::Truncated => ("truncated", RefusalReason::Protocol),
            Self::Frame(_) | Self::Unexpected(_) | Self::NoHello(_) | Self::OtherVolume(_) => {
                ("protocol", RefusalReason::Protocol)
            }
            Self::Crowd => ("crowd", RefusalReason::Limit),
            Self::Quiet(cause) => cause.reasons(),
            Self::Over(over) => over.reasons(),
        }
    }
}

/// Serves one connection until it ends.
pub(crate) async fn run<R: Rt>(core: Rc<Core<R>>, greeted: Greeted) {
    let Greeted { parked, peer, agent, volume } = greeted;
    if core.is_retired() {
        // The peer comes back, and finds the shard on its new log.
        return core.parts.metrics.refused("sealed");
    }
    let Some(place) = core.strangers.enter(peer.ip().into()) else {
        return core.parts.metrics.refused("crowd");
    };
    let (mut reader, writer) = match attach::<R>(parked, Use::Session, core.parts.descriptors) {
        Ok(halves) => halves,
        Err(error) => {
            core.parts.metrics.refused("descriptors");
            return tracing::warn!(%peer, %error, "cannot attach a connection");
        }
    };
    let outbox = Rc::new(Outbox::new(core.now()));
    let session = core.open_session(Rc::clone(&outbox));
    outbox.push(super::greet::SWITCHING.to_vec());
    R::spawn(write(writer, Rc::clone(&outbox)));
    core.parts.metrics.session_began();
    let session_of = Session { core: &core, outbox: &outbox, session, agent, volume, peer };
    match session_of.receive(&mut reader, place).await {
        Ok(()) => tracing::debug!(%peer, %volume, "session ended"),
        Err(SessionError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            tracing::debug!(%peer, %volume, "agent went away");
        }
        Err(error) => session_of.refuse(peer, &error),
    }
    outbox.close();
    core.end_session(session);
    core.parts.metrics.session_ended();
    linger(&core, peer, &mut reader).await;
}

/// Reads what is still on its way and drops it: a socket that is closed over unread bytes resets the
/// connection, and the refusal may be lost with it. A peer that does not hang up costs a stranger's
/// place for as long.
async fn linger<R: Rt>(core: &Core<R>, peer: SocketAddr, reader: &mut TlsReader<R>) {
    let Some(place) = core.strangers.enter(peer.ip().into()) else { return };
    let dropping = pin!(within::<R, _>(GOODBYE_MAX, reader.drop_incoming(LINGER_BYTES_MAX)));
    let lost = pin!(place.lost());
    // Whichever it is: the connection ends now.
    let _ended = select(dropping, lost).await;
}

/// What serving one session works with.
struct Session<'a, R: Rt> {
    core: &'a Core<R>,
    outbox: &'a Outbox,
    session: SessionId,
    agent: Shown,
    volume: VolumeId,
    peer: SocketAddr,
}

impl<R: Rt> Session<'_, R> {
    fn refuse(&self, peer: SocketAddr, error: &SessionError) {
        let (word, reason) = error.reasons();
        self.core.parts.metrics.refused(word);
        tracing::info!(%peer, volume = %self.volume, reason = word, %error, "session refused");
        self.outbox.refuse(reason, error.to_string());
    }

    /// Takes frames until the session ends.
    async fn receive(&self, reader: &mut TlsReader<R>, place: Place) -> Result<(), SessionError> {
        let (core, session) = (self.core, self.session);
        let Some(hello) = self.hello_in_time(reader, &place).await? else { return Ok(()) };
        drop(place);
        let entered = core.enter(self.volume, &self.agent);
        let holder = entered.map_err(SessionError::Over)?;
        self.outbox.holder.set(Some(holder));
        let assigned = core.parts.assignments.of(self.volume, self.agent.id);
        // The operator's word, not the agent's, says how long a session may be silent.
        let interval_ms = assigned.map_or(0, |assigned| assigned.mark_interval_ms);
        self.outbox.note(|peer| peer.greeted(core.now(), interval_ms));
        let hello = as_assigned(hello, assigned);
        let assigned = assigned.map(|assigned| assigned.epoch);
        let from =
            format!("agent {} at {}, started as {:08x}", self.agent.id, self.peer, hello.life);
        core.input(Input::Hello { session, hello, assigned, from });
        let (mut frames, mut bytes_of_turn) = (0, 0);
        while let Some((header, frame)) = self.read_frame(reader).await? {
            let bytes = frame.body.len();
            if header.kind == FrameKind::Alive {
                core.input(Input::Alive { session });
                R::yield_now().await;
                continue;
            }
            let Some(change) = Change::decode(&header, &frame.body)? else {
                return Err(SessionError::Unexpected(header.kind));
            };
            core.parts.metrics.received(bytes);
            let link = Link::of(&header, &frame.header);
            let handle = core.keep(frame);
            let (seq, stamp) = (header.seq, header.stamp);
            core.input(Input::Frame { session, seq, stamp, link, change, handle, bytes });
            (frames, bytes_of_turn) = (frames + 1, bytes_of_turn + bytes);
            if frames >= TURN_FRAMES || bytes_of_turn >= TURN_BYTES {
                (frames, bytes_of_turn) = (0, 0);
                R::yield_now().await;
            }
        }
        Ok(())
    }

    /// Reads the hello, for as long as a stranger may take.
    async fn hello_in_time(
        &self,
        reader: &mut TlsReader<R>,
        place: &Place,
    ) -> Result<Option<Hello>, SessionError> {
        let hello_ms = self.core.parts.patience.hello_ms;
        let wait = Duration::from_millis(hello_ms);
        let hello = pin!(within::<R, _>(wait, self.read_hello(reader)));
        let lost = pin!(place.lost());
        match select(hello, lost).await {
            Either::Left((Some(done), _)) => done,
            Either::Left((None, _)) => Err(SessionError::Quiet(silence::Cause::NoHello(hello_ms))),
            Either::Right(_) => Err(SessionError::Crowd),
        }
    }

    async fn read_hello(&self, reader: &mut TlsReader<R>) -> Result<Option<Hello>, SessionError> {
        let Some((bytes, header)) = self.read_header(reader).await? else { return Ok(None) };
        // Before its body: a stranger gets no megabyte.
        if header.kind != FrameKind::Hello {
            return Err(SessionError::NoHello(header.kind));
        }
        let Some(frame) = self.read_body(reader, bytes, &header).await? else { return Ok(None) };
        match Control::decode(&header, &frame.body)? {
            Control::Hello(hello) if hello.volume == self.volume => Ok(Some(hello)),
            Control::Hello(hello) => Err(SessionError::OtherVolume(hello.volume)),
            _ => Err(SessionError::Unexpected(header.kind)),
        }
    }

    /// The next frame, checked; `None` when the shard closed the session.
    async fn read_frame(
        &self,
        reader: &mut TlsReader<R>,
    ) -> Result<Option<(FrameHeader, Frame)>, SessionError> {
        let Some((bytes, header)) = self.read_header(reader).await? else { return Ok(None) };
        if !header.kind.is_stream() && header.kind != FrameKind::Alive {
            return Err(SessionError::Unexpected(header.kind));
        }
        // A sign of life has no body, and is answered however full the cache is.
        let _place = match header.kind {
            FrameKind::Alive => None,
            _ => match self.place(header.body_bytes).await {
                Some(place) => Some(place),
                None => return Ok(None),
            },
        };
        self.outbox.note(|peer| peer.arrives(self.core.now()));
        let frame = self.read_body(reader, bytes, &header).await?;
        if frame.is_some() {
            self.outbox.note(|peer| peer.whole(self.core.now()));
        }
        Ok(frame.map(|frame| (header, frame)))
    }

    /// Waits until there is memory for a body: none while the cache is full, or every new session would take
    /// some, and none beyond what frames that are not whole may have. `None` when the shard closed the
    /// session.
    async fn place(&self, bytes: usize) -> Option<Arrival<'_>> {
        let must_wait = || self.core.is_paused() || self.outbox.is_held.get();
        loop {
            while must_wait() && !self.outbox.is_closed() {
                self.outbox.note(Peer::waits);
                self.outbox.resumed.wait().await;
            }
            if self.outbox.is_closed() {
                return None;
            }
            let place = match self.core.arrivals.begin(bytes).now_or_never() {
                Some(place) => place,
                None => {
                    self.outbox.note(Peer::waits);
                    let begin = pin!(self.core.arrivals.begin(bytes));
                    let closed = pin!(self.outbox.closed.wait());
                    match select(begin, closed).await {
                        Either::Left((place, _)) => place,
                        Either::Right(_) => return None,
                    }
                }
            };
            if !must_wait() {
                return Some(place);
            }
        }
    }

    async fn read_header(
        &self,
        reader: &mut TlsReader<R>,
    ) -> Result<Option<([u8; FRAME_HEADER_BYTES], FrameHeader)>, SessionError> {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let mut filled = 0;
        match self.fill(reader, &mut bytes, &mut filled).await {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) if filled > 0 => return Err(cut(error)),
            Err(error) => return Err(error.into()),
        }
        let header = FrameHeader::decode(&bytes)?;
        Ok(Some((bytes, header)))
    }

    async fn read_body(
        &self,
        reader: &mut TlsReader<R>,
        bytes: [u8; FRAME_HEADER_BYTES],
        header: &FrameHeader,
    ) -> Result<Option<Frame>, SessionError> {
        let mut body = self.core.buffer(header.body_bytes);
        if !self.fill(reader, &mut body, &mut 0).await.map_err(cut)? {
            return Ok(None);
        }
        header.check_body(&body)?;
        Ok(Some(Frame { header: bytes, body }))
    }

    /// Fills `buffer`, counting in `filled`; false when the shard closed the session.
    async fn fill(
        &self,
        reader: &mut TlsReader<R>,
        buffer: &mut [u8],
        filled: &mut usize,
    ) -> io::Result<bool> {
        loop {
            if self.outbox.is_closed() {
                return Ok(false);
            }
            let read = pin!(reader.fill_buffer(buffer, filled));
            let closed = pin!(self.outbox.closed.wait());
            if let Either::Left((done, _)) = select(read, closed).await {
                return done.map(|()| true);
            }
        }
    }
}

/// A hello as the shard is told it: nor does the agent choose how long the shard waits for others' marks, and
/// with that how many segments the shard makes.
fn as_assigned(hello: Hello, assigned: Option<Assigned>) -> Hello {
    let interval_ms = assigned.map_or(0, |assigned| assigned.mark_interval_ms);
    Hello { mark_interval_ms: u32::try_from(interval_ms).unwrap_or(u32::MAX), ..hello }
}

/// An end in the middle of a frame is not like one between two.
fn cut(error: io::Error) -> SessionError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => SessionError::Truncated,
        _ => error.into(),
    }
}

/// Ends sessions whose peers say too little.
pub(crate) async fn sweep<R: Rt>(core: Rc<Core<R>>) {
    let patience = core.parts.patience;
    let every = Duration::from_millis(patience.look_every_ms());
    while !core.is_stopping() {
        R::sleep(every).await;
        let now = core.now();
        let is_crowded = core.arrivals.is_crowded();
        for outbox in core.outboxes() {
            let over = outbox.peer().end(now, &patience, is_crowded);
            if let Some(cause) = over.filter(|_| !outbox.is_closed()) {
                let (word, reason) = cause.reasons();
                core.parts.metrics.refused(word);
                outbox.refuse(reason, cause.text());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::{Epoch, Seq};

    #[test]
    fn a_newer_agent_is_told_that_it_is() {
        let newer = DecodeError::Newer { what: "hello", feature: "feature", bit: 3 };
        let error = SessionError::from(newer);
        assert_eq!(error.reasons(), ("protocol", RefusalReason::Protocol));
        let text =
            "frame: hello: written by a newer version of Farshore (feature 3 is not known here)";
        assert_eq!(error.to_string(), text);
    }

    /// P35: an agent that asks for a mark each millisecond makes no segments by that.
    #[test]
    fn the_mark_interval_is_the_operators_word() {
        let hello = Hello {
            volume: VolumeId([1; 16]),
            epoch: Epoch(1),
            size_bytes: 4096,
            first_seq: Seq(1),
            last_seq: Seq(0),
            mark_interval_ms: 1,
            life: 1,
            is_overtaken: false,
        };
        let told = |mark_interval_ms| {
            let assigned = Assigned { epoch: Epoch(1), mark_interval_ms };
            as_assigned(hello, Some(assigned))
        };
        assert_eq!(told(30_000), Hello { mark_interval_ms: 30_000, ..hello });
        assert_eq!(told(u64::MAX).mark_interval_ms, u32::MAX);
        // The shard refuses it; until then it counts for nothing.
        assert_eq!(as_assigned(hello, None).mark_interval_ms, 0);
    }
}
