//! The session, as `agent/src/session/driver.rs` drives it: one thing at a time, outputs in order,
//! reads of the log and writes to the connection beside it.

use super::volume::Volume;
use super::{Ctx, Own as AgentOwn, copy};
use crate::catalog::Told;
use crate::control::{Assignment, volume_of};
use crate::net::{Arrival, Conn};
use bytes::Bytes;
use farshore_agent::hrl::{Cursor, LogError, Run};
use farshore_agent::session::{Said, WireError, said_header};
use farshore_agent::stream::{Found, Stream};
use farshore_engine::doubt;
use farshore_engine::source::{Input, Output, Phase, Settings, Source};
use farshore_proto::frame::{Control, FrameHeader, Hello, RefusalReason};
use farshore_proto::limits::{BLOCK_BYTES, FRAME_HEADER_BYTES};
use farshore_proto::mark::Mark;
use farshore_proto::{DecodeError, Seq, Timestamp};
use std::collections::VecDeque;
use std::time::Duration;

/// Time between two marks.
pub(crate) const MARK_INTERVAL_MS: u32 = 1_000;
/// Between two attempts to note that the stream joins.
const JOIN_PAUSE: Duration = Duration::from_secs(1);
/// Frames given to the network in one step, at most.
const BURST: usize = 4;

fn settings(number: usize) -> Settings {
    Settings {
        backoff_ms_min: 100,
        backoff_ms_max: 2_000,
        handshake_ms_max: 3_000,
        stall_ms_max: 6_000,
        alive_ms: 4_000,
        halted_ms: 10_000,
        run_bytes_max: 96 << 10,
        jitter: number as u64,
    }
}

#[derive(Debug)]
pub(super) enum Own {
    /// Perform the next output, or take in the next thing that happened.
    Step,
    /// The engine's deadline.
    Tick,
    /// Read a run of the log.
    Read { work: u64, seq: Seq, bytes_max: u64 },
    /// Give the next frames of a run to the network.
    Write { work: u64 },
    /// Try again to note that the stream joins.
    Join,
}

/// What happened and was not taken in yet.
#[derive(Debug)]
enum Happened {
    Connected(Conn),
    Unreachable(Conn),
    Said(Conn, Result<Said, WireError>),
    Broke(Conn),
    Read(u64, Result<(Run, Cursor, Vec<u8>), LogError>),
    Written(u64),
    Tick,
    Join,
}

/// The session of a volume.
#[derive(Debug)]
pub(super) struct Session {
    source: Source,
    todo: VecDeque<Output>,
    happened: VecDeque<Happened>,
    link: Option<Conn>,
    dialing: Option<Conn>,
    /// Names the read or write that is under way; another one is void.
    work: u64,
    /// Frames of the run that is being written.
    writing: VecDeque<(Seq, Bytes)>,
    cursor: Cursor,
    route: Assignment,
    is_route_new: bool,
    is_started: bool,
    is_awake: bool,
    tick_at: Option<Timestamp>,
    trouble: String,
}

impl Session {
    pub(super) fn new(
        ctx: &mut Ctx<'_>,
        stream: &Stream,
        found: &Found,
        route: Assignment,
    ) -> Self {
        let mut session = Self {
            source: Source::new(settings(ctx.number), found.opened),
            todo: VecDeque::new(),
            happened: VecDeque::new(),
            link: None,
            dialing: None,
            work: 0,
            writing: VecDeque::new(),
            cursor: Cursor::at(Seq(1)),
            route,
            is_route_new: false,
            is_started: false,
            is_awake: false,
            tick_at: None,
            trouble: String::new(),
        };
        debug_assert_eq!(stream.log.last(), found.opened.last);
        for (seq, mark) in &found.marks {
            session.feed_mark(ctx, *seq, *mark);
        }
        session
    }

    pub(super) fn is_asleep(&mut self) -> bool {
        let was_asleep = self.is_started && !self.is_awake;
        self.is_awake |= was_asleep;
        was_asleep
    }

    pub(super) fn is_streaming(&self) -> bool {
        self.source.phase() == Phase::Streaming
    }

    pub(super) fn committed(&self) -> Seq {
        self.source.committed()
    }

    pub(super) fn gathers_at(&self) -> Option<Timestamp> {
        self.source.gathers_at()
    }

    pub(super) fn journaled(&self) -> Seq {
        self.source.journaled()
    }

    pub(super) fn standing(&self) -> String {
        let (source, route) = (&self.source, self.route);
        let (phase, sent) = (source.phase(), source.sent());
        let (journaled, committed) = (source.journaled(), source.committed());
        let trouble = &self.trouble;
        format!(
            "{phase:?} to node {} epoch {}, sent {sent}, journaled {journaled}, committed \
             {committed}, trouble {trouble:?}",
            route.node, route.epoch
        )
    }

    fn feed(&mut self, ctx: &mut Ctx<'_>, input: Input) {
        let mut out = Vec::new();
        self.source.step(ctx.world.now(), input, &mut out);
        self.todo.extend(out);
    }

    fn feed_mark(&mut self, ctx: &mut Ctx<'_>, seq: Seq, mark: Mark) {
        let age = ctx.world.wall_ms(ctx.process()).saturating_sub(mark.time_unix_ms);
        let at = Timestamp(ctx.world.now().0.saturating_sub(age));
        self.feed(ctx, Input::Marked { seq, mark, at });
    }

    fn hang_up(&mut self, ctx: &mut Ctx<'_>) {
        for conn in self.link.take().into_iter().chain(self.dialing.take()) {
            ctx.world.hang_up(conn, ctx.process());
        }
        self.work += 1;
        self.writing.clear();
        // What was asked of the lost transport is void; what concerns others is not.
        self.todo.retain(|output| {
            !matches!(
                output,
                Output::SendFrom { .. }
                    | Output::SayAlive
                    | Output::Hello { .. }
                    | Output::Close
                    | Output::GiveUp(_)
            )
        });
    }

    fn lose(&mut self, ctx: &mut Ctx<'_>, why: String) {
        ctx.tell(|| format!("no session: {why}"));
        self.trouble = why;
        self.hang_up(ctx);
        self.feed(ctx, Input::Lost);
    }

    fn hear(&mut self, ctx: &mut Ctx<'_>, stream: &Stream, said: Result<Said, WireError>) {
        match said {
            Ok(Said::Welcome(welcome)) => {
                ctx.tell(|| format!("is welcomed: {welcome:?}"));
                self.trouble.clear();
                let held = stream.held(welcome.received);
                self.cursor = held.map_or(self.cursor, |held| held.behind);
                let held = held.map(|held| (held.stamp, held.imprint));
                self.feed(ctx, Input::Welcomed { welcome, held });
            }
            Ok(Said::Ack(ack)) => self.feed(ctx, Input::Acked(ack)),
            Ok(Said::Refusal(refusal)) => {
                let (reason, text) = (refusal.reason, &refusal.text);
                ctx.tell(|| format!("is refused ({}): {text}", reason.word()));
                self.trouble = refusal.text;
                self.hang_up(ctx);
                self.feed(ctx, Input::Refused(reason));
            }
            Err(error) => self.lose(ctx, error.to_string()),
        }
    }

    /// Schedules the engine's next deadline, if that is not done yet.
    fn plan_tick(&mut self, ctx: &mut Ctx<'_>) {
        let deadline = self.source.deadline();
        if let Some(at) = deadline
            && self.tick_at != deadline
        {
            self.tick_at = deadline;
            let wait = Duration::from_millis(at.since_ms(ctx.world.now()));
            ctx.after(wait, AgentOwn::Session(Own::Tick));
        }
    }
}

/// One frame from the network.
fn said(frame: &[u8]) -> Result<Said, WireError> {
    let (have, needed) = (frame.len(), FRAME_HEADER_BYTES);
    let what = "frame header";
    let Some((head, body)) = frame.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Err(WireError::Decode(DecodeError::Truncated { what, needed, have }));
    };
    Said::of(&said_header(head)?, body)
}

impl Volume {
    /// Starts the session, unless it runs already.
    pub(super) fn start_session(&mut self, ctx: &mut Ctx<'_>) {
        if !self.session.is_started {
            self.session.is_started = true;
            self.session.feed(ctx, Input::Assigned);
            self.poke(ctx);
        }
    }

    /// The control plane wants the stream elsewhere.
    pub(super) fn route(&mut self, ctx: &mut Ctx<'_>, route: Assignment) {
        if self.session.route != route {
            self.session.route = route;
            self.session.is_route_new = true;
            self.poke(ctx);
        }
    }

    pub(super) fn arrived(&mut self, ctx: &mut Ctx<'_>, arrival: Arrival) {
        let session = &mut self.session;
        let happened = match arrival {
            Arrival::Connected(conn) => Happened::Connected(conn),
            Arrival::Unreachable(conn) => Happened::Unreachable(conn),
            Arrival::Frame(conn, frame) => Happened::Said(conn, said(&frame)),
            Arrival::Closed(conn) => Happened::Broke(conn),
            Arrival::Accepted { .. } => return,
        };
        session.happened.push_back(happened);
        self.poke(ctx);
    }

    pub(super) fn session_step(&mut self, ctx: &mut Ctx<'_>, own: Own) {
        match own {
            Own::Step => self.step(ctx),
            Own::Tick => {
                self.session.tick_at = None;
                self.session.happened.push_back(Happened::Tick);
                self.poke(ctx);
            }
            Own::Join => {
                self.session.happened.push_back(Happened::Join);
                self.poke(ctx);
            }
            Own::Read { work, seq, bytes_max } => {
                if work == self.session.work {
                    self.read_log(work, seq, bytes_max);
                    self.poke(ctx);
                }
            }
            Own::Write { work } => {
                if work == self.session.work {
                    self.write_some(ctx, work);
                }
            }
        }
    }

    /// One turn of the driver: an output, or else something that happened.
    fn step(&mut self, ctx: &mut Ctx<'_>) {
        self.session.is_awake = true;
        let session = &mut self.session;
        if let Some(output) = session.todo.pop_front() {
            self.perform(ctx, output);
        } else if let Some(happened) = session.happened.pop_front() {
            self.take_in(ctx, happened);
            self.see_log(ctx);
        } else if std::mem::take(&mut session.is_route_new) {
            session.feed(ctx, Input::Assigned);
            self.see_log(ctx);
        } else {
            self.see_log(ctx);
            if self.session.todo.is_empty() {
                self.session.is_awake = false;
                return self.session.plan_tick(ctx);
            }
        }
        ctx.soon(AgentOwn::Session(Own::Step));
    }

    fn see_log(&mut self, ctx: &mut Ctx<'_>) {
        let last = self.stream.log.last();
        self.session.feed(ctx, Input::Appended { last });
        if let Some((seq, _)) = self.stream.log.kept_mark() {
            let at = ctx.world.now();
            self.session.feed(ctx, Input::Unchanged { seq, at });
        }
    }

    fn take_in(&mut self, ctx: &mut Ctx<'_>, happened: Happened) {
        let session = &mut self.session;
        match happened {
            Happened::Connected(conn) if session.dialing == Some(conn) => {
                session.dialing = None;
                session.link = Some(conn);
                let place = self.stream.log.place();
                session.feed(ctx, Input::Appended { last: place.last });
                session.feed(ctx, Input::Connected { first: place.first, last: place.last });
            }
            Happened::Unreachable(conn) if session.dialing == Some(conn) => {
                session.lose(ctx, "the node cannot be reached".to_owned());
            }
            // Answers to a dial that was given up.
            Happened::Connected(_) | Happened::Unreachable(_) => {}
            Happened::Said(conn, said) if session.link == Some(conn) => {
                session.hear(ctx, &self.stream, said);
            }
            Happened::Broke(conn) if session.link == Some(conn) => {
                session.lose(ctx, "the connection to the node broke".to_owned());
            }
            // A connection that was hung up.
            Happened::Said(..) | Happened::Broke(_) => {}
            Happened::Read(work, read) if work == session.work => self.has_read(ctx, read),
            Happened::Written(work) if work == session.work => session.feed(ctx, Input::Ready),
            Happened::Read(..) | Happened::Written(_) => {}
            Happened::Tick => session.feed(ctx, Input::Tick),
            Happened::Join => session.todo.push_back(Output::Joined),
        }
    }

    fn perform(&mut self, ctx: &mut Ctx<'_>, output: Output) {
        match output {
            Output::Connect => {
                self.session.is_route_new = false;
                let (number, node) = (ctx.number, self.session.route.node);
                self.session.dialing = Some(ctx.world.connect(number, node));
            }
            Output::Hello { first, last, is_overtaken } => {
                self.say_hello(ctx, first, last, is_overtaken);
            }
            Output::Close => self.session.hang_up(ctx),
            Output::GiveUp(fault) => {
                ctx.tell(|| fault.text());
                self.session.trouble = fault.text();
                self.session.hang_up(ctx);
            }
            Output::Joined => self.join(ctx),
            Output::Shared { is_shared } => {
                if let Err(error) = self.stream.share(is_shared) {
                    ctx.tell(|| format!("that another took its volume over is not noted: {error}"));
                }
            }
            Output::Restart { next, breach } => {
                ctx.tell(|| format!("its log starts again at {next}: {breach:?}"));
                *ctx.untold_restart = Some(next);
                let (served, now) = (&mut self.served, ctx.world.now());
                let mut effects = Vec::new();
                let restarted = self.stream.restart_with(next, breach, || {
                    if let Some(served) = served {
                        effects = served.gate.step(now, doubt::Input::DoubtAll);
                    }
                });
                self.gate_effects(ctx, effects);
                match restarted {
                    Ok(()) => {
                        *ctx.untold_restart = None;
                        ctx.world.oracle.restarted(ctx.number, next);
                        self.session.feed(ctx, Input::Restarted);
                    }
                    Err(error) => self.session.lose(ctx, error.to_string()),
                }
                ctx.soon(AgentOwn::Copy(copy::Own::Next));
            }
            Output::SendFrom { seq, bytes_max } => {
                let work = self.session.work;
                ctx.soon(AgentOwn::Session(Own::Read { work, seq, bytes_max }));
            }
            Output::SayAlive => {
                let (process, work) = (ctx.process(), self.session.work);
                if let Some(conn) = self.session.link {
                    ctx.world.send(conn, process, Control::Alive.encode().into());
                }
                self.session.happened.push_back(Happened::Written(work));
            }
            Output::TrimTo { seq } => {
                ctx.world.oracle.trimmed(ctx.number, seq);
                if let Err(error) = self.stream.log.trim(seq) {
                    ctx.tell(|| format!("the log is not trimmed: {error}"));
                }
            }
            Output::PointCommitted { seq, mark } => {
                ctx.tell(|| format!("point {seq} is committed"));
                let Mark { point, time_unix_ms: time_ms, .. } = mark;
                ctx.world.tell_of_point(Told { machine: ctx.machine, point, seq, time_ms });
            }
        }
    }

    fn join(&mut self, ctx: &mut Ctx<'_>) {
        match self.stream.join() {
            Ok(()) => {
                ctx.tell(|| "its stream joins".to_owned());
                ctx.soon(AgentOwn::Copy(copy::Own::Next));
            }
            Err(error) => {
                ctx.tell(|| format!("that its stream joins is not noted: {error}"));
                ctx.after(JOIN_PAUSE, AgentOwn::Session(Own::Join));
            }
        }
    }

    fn say_hello(&mut self, ctx: &mut Ctx<'_>, first: Seq, last: Seq, is_overtaken: bool) {
        let Some(conn) = self.session.link else { return };
        let hello = Hello {
            volume: volume_of(ctx.machine),
            epoch: self.session.route.epoch,
            size_bytes: ctx.world.size.blocks * BLOCK_BYTES as u64,
            first_seq: first,
            last_seq: last,
            mark_interval_ms: MARK_INTERVAL_MS,
            life: self.stream.life,
            is_overtaken,
        };
        ctx.tell(|| format!("says hello: {first}..={last} under epoch {}", hello.epoch));
        let process = ctx.process();
        ctx.world.send(conn, process, Control::Hello(hello).encode().into());
    }

    fn read_log(&mut self, work: u64, seq: Seq, bytes_max: u64) {
        let mut cursor = self.session.cursor;
        if cursor.next() != seq {
            cursor = Cursor::at(seq);
        }
        let mut buffer = Vec::new();
        let read = self.stream.log.read_run(&mut cursor, bytes_max, &mut buffer);
        let read = read.map(|run| (run, cursor, buffer));
        self.session.happened.push_back(Happened::Read(work, read));
    }

    fn has_read(&mut self, ctx: &mut Ctx<'_>, read: Result<(Run, Cursor, Vec<u8>), LogError>) {
        let session = &mut self.session;
        match read {
            Ok((run, cursor, buffer)) => {
                session.cursor = cursor;
                // The run may hold what was appended since the log was looked at.
                let last = self.stream.log.last();
                session.feed(ctx, Input::Appended { last });
                for (seq, mark) in &run.marks {
                    session.feed_mark(ctx, *seq, *mark);
                }
                session.feed(ctx, Input::Sending { last: run.last, bytes: buffer.len() as u64 });
                session.writing = frames_of(&buffer.into());
                let work = session.work;
                ctx.soon(AgentOwn::Session(Own::Write { work }));
            }
            Err(error @ LogError::Io { .. }) => session.lose(ctx, error.to_string()),
            Err(error) => {
                ctx.tell(|| format!("the log is damaged: {error}"));
                session.hang_up(ctx);
                session.feed(ctx, Input::Refused(RefusalReason::Gap));
            }
        }
    }

    fn write_some(&mut self, ctx: &mut Ctx<'_>, work: u64) {
        let Some(conn) = self.session.link else { return };
        let process = ctx.process();
        for _ in 0..ctx.world.rng.usize(1..=BURST) {
            let Some((seq, frame)) = self.session.writing.pop_front() else { break };
            ctx.world.oracle.sent(ctx.number, seq);
            ctx.world.send(conn, process, frame);
        }
        if self.session.writing.is_empty() {
            self.session.happened.push_back(Happened::Written(work));
            self.poke(ctx);
        } else {
            ctx.soon(AgentOwn::Session(Own::Write { work }));
        }
    }
}

fn frames_of(run: &Bytes) -> VecDeque<(Seq, Bytes)> {
    let mut frames = VecDeque::new();
    let mut at = 0;
    while at < run.len() {
        let head = run[at..].first_chunk::<FRAME_HEADER_BYTES>().expect("a run has whole frames");
        let header = FrameHeader::decode(head).expect("a run has valid frames");
        let end = at + FRAME_HEADER_BYTES + header.body_bytes;
        frames.push_back((header.seq, run.slice(at..end)));
        at = end;
    }
    frames
}
