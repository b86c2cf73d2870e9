//! Sessions: frames in, answers out.

use super::{Event, Turn};
use crate::agent::MARK_INTERVAL_MS;
use crate::control::{Assignment, volume_of};
use crate::net::{Arrival, Conn};
use bytes::Bytes;
use farshore_engine::batch::Change;
use farshore_engine::shard::{Input, SessionId};
use farshore_engine::silence::{Cause, Patience, Peer};
use farshore_engine::standing::{Allowed, Holder, LOOK_EVERY_MS, Over, Shown};
use farshore_ingest::frames::Frame;
use farshore_proto::frame::{Control, FrameHeader, FrameKind, Hello, Link, Refusal, RefusalReason};
use farshore_proto::limits::FRAME_HEADER_BYTES;
use farshore_proto::{DecodeError, Epoch, Seq, Timestamp};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// One connection.
#[derive(Debug)]
struct Session {
    id: SessionId,
    shard: usize,
    agent: usize,
    machine: usize,
    generation: u64,
    /// Whose it is, from the hello on.
    holder: Option<Holder<usize>>,
    peer: Peer,
    /// When something came of it, or was taken: for the oracle, which does not ask the engine.
    moved: Timestamp,
    /// Frames that wait while the shard does not read.
    unread: VecDeque<Bytes>,
}

/// All connections of a node.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    next: u64,
    by_conn: BTreeMap<Conn, Session>,
    by_id: BTreeMap<SessionId, Conn>,
    /// Longest body of a frame that came.
    body_bytes_max: usize,
}

impl Sessions {
    pub(super) fn conn(&self, id: SessionId) -> Option<Conn> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn machine(&self, id: SessionId) -> Option<usize> {
        let conn = self.by_id.get(&id)?;
        self.by_conn.get(conn).map(|session| session.machine)
    }

    /// All sessions of a shard.
    pub(super) fn of_shard(&self, shard: usize) -> Vec<SessionId> {
        let sessions = self.by_conn.values().filter(|session| session.shard == shard);
        sessions.map(|session| session.id).collect()
    }

    /// Forgets a session.
    pub(super) fn remove(&mut self, id: SessionId) -> Option<Conn> {
        let conn = self.by_id.remove(&id)?;
        self.by_conn.remove(&conn);
        Some(conn)
    }

    /// What may be in memory beyond the cache: a frame of each session and one more.
    pub(super) fn slack_bytes(&self) -> usize {
        (self.by_conn.len() + 1)
            * (self.body_bytes_max + farshore_engine::batch::FRAME_OVERHEAD_BYTES)
    }
}

/// Why reading ended.
#[derive(Debug)]
enum Bad {
    Frame(DecodeError),
    Unexpected(FrameKind),
    OtherVolume,
    Over(Over),
}

impl Bad {
    fn reason(&self) -> RefusalReason {
        match self {
            Self::Frame(_) | Self::Unexpected(_) | Self::OtherVolume => RefusalReason::Protocol,
            Self::Over(over) => over.reasons().1,
        }
    }
}

impl From<DecodeError> for Bad {
    fn from(error: DecodeError) -> Self {
        Self::Frame(error)
    }
}

impl std::fmt::Display for Bad {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Frame(error) => write!(formatter, "frame: {error}"),
            Self::Unexpected(kind) => write!(formatter, "{kind:?} frames are not for nodes"),
            Self::OtherVolume => formatter.write_str("the hello is for another volume"),
            Self::Over(over) => formatter.write_str(over.text()),
        }
    }
}

/// Cuts a frame into header and body, and checks both.
fn decode(bytes: &Bytes) -> Result<(FrameHeader, Frame), Bad> {
    let truncated = DecodeError::Truncated {
        what: "frame header",
        needed: FRAME_HEADER_BYTES,
        have: bytes.len(),
    };
    let (raw, body) = bytes.split_first_chunk().ok_or(truncated)?;
    let header = FrameHeader::decode(raw)?;
    header.check_body(body)?;
    Ok((header, Frame { header: *raw, body: body.to_vec() }))
}

fn hello_of(header: &FrameHeader, body: &[u8], machine: usize) -> Result<Hello, Bad> {
    if header.kind != FrameKind::Hello {
        return Err(Bad::Unexpected(header.kind));
    }
    match Control::decode(header, body)? {
        Control::Hello(hello) if hello.volume == volume_of(machine) => Ok(hello),
        Control::Hello(_) => Err(Bad::OtherVolume),
        _ => Err(Bad::Unexpected(header.kind)),
    }
}

impl Turn<'_> {
    /// Something came from the network.
    pub(super) fn arrived(&mut self, arrival: Arrival) -> Result<(), String> {
        match arrival {
            Arrival::Connected(_) | Arrival::Unreachable(_) => {}
            Arrival::Accepted { conn, agent, machine, generation } => {
                self.accepted(conn, (agent, machine), generation);
            }
            Arrival::Frame(conn, bytes) => {
                if let Some(session) = self.running.sessions.by_conn.get_mut(&conn) {
                    session.unread.push_back(bytes);
                    self.read(conn)?;
                }
            }
            Arrival::Closed(conn) => {
                let gone = self.running.sessions.by_conn.get(&conn);
                if let Some((id, shard)) = gone.map(|session| (session.id, session.shard)) {
                    self.running.sessions.remove(id);
                    self.input(shard, Input::Gone { session: id })?;
                }
            }
        }
        Ok(())
    }

    fn accepted(&mut self, conn: Conn, (agent, machine): (usize, usize), generation: u64) {
        let shard = self.running.owner(volume_of(machine));
        let sessions = &mut self.running.sessions;
        let id = SessionId(sessions.next);
        sessions.next += 1;
        sessions.by_id.insert(id, conn);
        let session = Session {
            id,
            shard,
            agent,
            machine,
            generation,
            holder: None,
            peer: Peer::new(self.world.now()),
            moved: self.world.now(),
            unread: VecDeque::new(),
        };
        sessions.by_conn.insert(conn, session);
    }

    /// Takes what a connection has brought, as long as the shard reads.
    fn read(&mut self, conn: Conn) -> Result<(), String> {
        loop {
            let now = self.world.now();
            let Some(session) = self.running.sessions.by_conn.get_mut(&conn) else {
                return Ok(());
            };
            let (id, shard) = (session.id, session.shard);
            let Some(next) = session.unread.front() else { return Ok(()) };
            // A sign of life has no body, and is answered however full the cache is.
            if self.running.shards[shard].is_held(id) && !is_alive(next) {
                session.peer.waits();
                return Ok(());
            }
            let Some(bytes) = session.unread.pop_front() else { return Ok(()) };
            session.peer.arrives(now);
            session.moved = now;
            if let Err(bad) = self.take(conn, &bytes)? {
                self.world.tell(self.process(), || format!("ends a session: {bad}"));
                let refusal = Refusal { reason: bad.reason(), text: bad.to_string() };
                self.say(id, &Control::Refusal(refusal));
                self.close(shard, id)?;
            }
        }
    }

    fn take(&mut self, conn: Conn, bytes: &Bytes) -> Result<Result<(), Bad>, String> {
        let now = self.world.now();
        let Some(session) = self.running.sessions.by_conn.get_mut(&conn) else {
            return Ok(Ok(()));
        };
        let (id, shard, machine) = (session.id, session.shard, session.machine);
        let (agent, generation) = (session.agent, session.generation);
        let (header, frame) = match decode(bytes) {
            Ok(frame) => frame,
            Err(bad) => return Ok(Err(bad)),
        };
        session.peer.whole(now);
        if session.holder.is_none() {
            let hello = match hello_of(&header, &frame.body, machine) {
                Ok(hello) => hello,
                Err(bad) => return Ok(Err(bad)),
            };
            if !self.running.shards[shard].tenure.is_open() {
                // The peer comes back, and finds the shard on its new log.
                return self.close(shard, id).map(Ok);
            }
            let shown = Shown { agent: machine, generation: session.generation, ends_s: u64::MAX };
            let allowed = self.running.assignments.get(&machine).map(|it| allowed(machine, it));
            match Holder::enter(volume_of(machine), shown, allowed, |_| true) {
                Ok(holder) => session.holder = Some(holder),
                Err(over) => return Ok(Err(Bad::Over(over))),
            }
            session.peer.greeted(now, hello.mark_interval_ms.into());
            let assigned = self.running.assignments.get(&machine).map(|owner| owner.epoch);
            let from = format!("agent {agent}");
            self.note_holder(shard, agent, &hello, assigned);
            return self.input(shard, Input::Hello { session: id, hello, assigned, from }).map(Ok);
        }
        if header.kind == FrameKind::Alive {
            return self.input(shard, Input::Alive { session: id }).map(Ok);
        }
        let change = match Change::decode(&header, &frame.body) {
            Ok(Some(change)) => change,
            Ok(None) => return Ok(Err(Bad::Unexpected(header.kind))),
            Err(error) => return Ok(Err(Bad::Frame(error))),
        };
        self.judge_standing(machine, generation);
        let bytes = frame.body.len();
        let sessions = &mut self.running.sessions;
        sessions.body_bytes_max = sessions.body_bytes_max.max(bytes);
        let link = Link::of(&header, &frame.header);
        let handle = self.running.shards[shard].keep(frame);
        let (seq, stamp) = (header.seq, header.stamp);
        let before = self.received(shard, machine);
        let input = Input::Frame { session: id, seq, stamp, link, change, handle, bytes };
        self.input(shard, input)?;
        // More may have been taken behind it, if that had waited for room.
        let after = self.received(shard, machine);
        if let (Some((_, before)), Some((epoch, after))) = (before, after)
            && before < seq
            && seq <= after
        {
            self.world.oracle.taken((self.number, now), (agent, epoch), seq);
        }
        Ok(Ok(()))
    }

    /// Up to where a shard has a server's volume, and under which epoch.
    fn received(&self, shard: usize, machine: usize) -> Option<(Epoch, Seq)> {
        let stream = self.running.shards[shard].stream(volume_of(machine))?;
        Some((stream.epoch(), stream.received()))
    }

    /// For the oracle: an agent says hello for a volume that the shard has under the hello's epoch.
    fn note_holder(&mut self, shard: usize, agent: usize, hello: &Hello, assigned: Option<Epoch>) {
        let stream = self.running.shards[shard].stream(hello.volume);
        let known = stream.map(|stream| stream.epoch());
        if known == Some(hello.epoch) && assigned == known {
            let at = (self.number, self.world.now());
            self.world.oracle.came(at, (agent, hello.epoch), hello.is_overtaken);
        }
    }

    /// The shard reads on.
    pub(super) fn resumed(&mut self, shard: usize) -> Result<(), String> {
        let waiting: Vec<Conn> = self
            .running
            .sessions
            .by_conn
            .iter()
            .filter(|(_, session)| session.shard == shard && !session.unread.is_empty())
            .map(|(conn, _)| *conn)
            .collect();
        waiting.into_iter().try_for_each(|conn| self.read(conn))
    }

    /// Sends a frame to a session's agent.
    pub(super) fn say(&mut self, session: SessionId, control: &Control) {
        if let Some(conn) = self.running.sessions.conn(session) {
            self.world.send(conn, self.process(), control.encode().into());
        }
    }

    /// Ends a session.
    pub(super) fn close(&mut self, shard: usize, session: SessionId) -> Result<(), String> {
        if let Some(conn) = self.running.sessions.remove(session) {
            self.world.hang_up(conn, self.process());
            self.input(shard, Input::Gone { session })?;
        }
        Ok(())
    }

    /// Ends sessions whose peers say too little.
    pub(super) fn sweep(&mut self) -> Result<(), String> {
        let (now, patience) = (self.world.now(), self.running.patience);
        // Frames arrive whole here: none keeps another's place.
        let over = |session: &Session| session.peer.end(now, &patience, false);
        let sessions = self.running.sessions.by_conn.values();
        let ended: Vec<(usize, SessionId, Cause)> = sessions
            .filter_map(|session| Some((session.shard, session.id, over(session)?)))
            .collect();
        for (shard, id, cause) in ended {
            let ((_, reason), text) = (cause.reasons(), cause.text());
            self.world.tell(self.process(), || format!("ends a session: {text}"));
            self.say(id, &Control::Refusal(Refusal { reason, text }));
            self.close(shard, id)?;
        }
        self.judge_silence(now);
        let wait = Duration::from_millis(patience.look_every_ms());
        self.after(wait, Event::Sweep);
        Ok(())
    }

    /// Ends sessions whose holders may not have them any more.
    pub(super) fn look(&mut self) -> Result<(), String> {
        let sessions = self.running.sessions.by_conn.values();
        let over = |session: &Session| {
            let machine = session.machine;
            let allowed = self.running.assignments.get(&machine).map(|it| allowed(machine, it));
            // That certificates end, and are taken all the same, goes by clocks, which no engine has.
            session.holder?.over(allowed, |_| true)
        };
        let ended: Vec<(usize, SessionId, Over)> = sessions
            .filter_map(|session| Some((session.shard, session.id, over(session)?)))
            .collect();
        for (shard, id, over) in ended {
            let (reason, text) = (over.reasons().1, over.text().to_owned());
            self.world.tell(self.process(), || format!("ends a session: {text}"));
            self.say(id, &Control::Refusal(Refusal { reason, text }));
            self.close(shard, id)?;
        }
        self.running.looks += 1;
        self.after(Duration::from_millis(LOOK_EVERY_MS), Event::Look);
        Ok(())
    }

    /// A frame is taken: its agent may be revoked by what the node has known for less than two looks only.
    fn judge_standing(&mut self, machine: usize, generation: u64) {
        let Some((generation_min, since)) = self.running.over.get(&machine).copied() else {
            return;
        };
        if generation < generation_min && self.running.looks > since + 1 {
            let what = format!(
                "a frame of server {machine} is taken, whose agent showed certificate {generation}: \
                 those below {generation_min} are over"
            );
            self.world.oracle.violate("revoked", what);
        }
    }

    /// Who says nothing, while all it said was taken, has no session for ever.
    fn judge_silence(&mut self, now: Timestamp) {
        let Patience { hello_ms, idle_ms, .. } = self.running.patience;
        let allowed = idle_ms.max(3 * u64::from(MARK_INTERVAL_MS));
        for session in self.running.sessions.by_conn.values() {
            let allowed = if session.holder.is_some() { allowed } else { hello_ms };
            let silent = now.since_ms(session.moved);
            if session.unread.is_empty() && silent > allowed {
                let machine = session.machine;
                let what = format!("a session of server {machine} stays, silent for {silent} ms");
                return self.world.oracle.violate("I7", what);
            }
        }
    }
}

fn allowed(machine: usize, told: &Assignment) -> Allowed<usize> {
    Allowed { agent: machine, generation_min: told.generation_min }
}

/// Whether a frame is only a sign of life.
fn is_alive(bytes: &Bytes) -> bool {
    let header = bytes.first_chunk().and_then(|raw| FrameHeader::decode(raw).ok());
    header.is_some_and(|header| header.kind == FrameKind::Alive)
}
