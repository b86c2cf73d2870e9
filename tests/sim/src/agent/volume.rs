//! The agent's volume: the stream that was opened once, its session, and the capture of its disk.

use super::capture::Capture;
use super::copy::Copier;
use super::gate::{Effect, Gate};
use super::marks::Marks;
use super::session::{self, Session};
use super::{Ctx, Event, LOOK, Own, RETRY, Step, capture, copy, marks};
use crate::control::Assignment;
use crate::disk::{Tag, tag_of};
use crate::oracle::Oracle;
use farshore_agent::capture::ranges::LockTable;
use farshore_agent::disk::Identity;
use farshore_agent::hrl::{AppendError, Cursor, Entry, Log, Place};
use farshore_agent::stream::{DiskFacts, Found, Stream};
use farshore_engine::doubt::{Input, Regions};
use farshore_proto::frame::FrameHeader;
use farshore_proto::limits::{BLOCK_BYTES, FRAME_HEADER_BYTES, HRL_HEADER_BYTES};
use farshore_proto::mark::Mark;
use farshore_proto::{BlockRange, Seq};
use std::collections::BTreeMap;

/// Intents above which flushes are asked for; few, so that it happens.
const REGIONS_MAX: [u64; 2] = [2, 8];

/// An open volume.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) stream: Stream,
    pub(super) session: Session,
    /// Absent until the disk is served.
    pub(super) served: Option<Served>,
    is_new: bool,
    pub(super) newest_mark: Option<Seq>,
    /// Bytes of the log when it was opened: all it may hold, if that is above its limit.
    bytes_opened: u64,
    pub(super) is_stopping: bool,
}

/// A disk that is served.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) gate: Gate,
    pub(super) locks: LockTable,
    pub(super) waiters: BTreeMap<u64, Waiter>,
    pub(super) capture: Capture,
    pub(super) copier: Copier,
    pub(super) marks: Marks,
}

/// Who waits for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiter {
    /// A change of the guest's.
    Change(farshore_engine::doubt::Ticket),
    /// A run of the copy.
    Run { copy: u64, run: u64 },
    /// A region to be read again.
    Reread(u64),
}

/// The changes in the frames of `bytes`.
pub(super) fn changes_of(bytes: &[u8]) -> Vec<(Seq, Vec<(u64, Tag)>)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let head = bytes[at..].first_chunk::<FRAME_HEADER_BYTES>().expect("whole frames");
        let header = FrameHeader::decode(head).expect("the log was checked");
        let body = &bytes[at + FRAME_HEADER_BYTES..][..header.body_bytes];
        let BlockRange { block, count } = header.range;
        let changes = if body.is_empty() || count == 0 {
            (block..block + count).map(|block| (block, 0)).collect()
        } else {
            tagged(block, body)
        };
        found.push((header.seq, changes));
        at += FRAME_HEADER_BYTES + header.body_bytes;
    }
    found
}

fn tagged(block: u64, data: &[u8]) -> Vec<(u64, Tag)> {
    let tag = |bytes: &[u8]| tag_of(bytes).expect("a disk holds blocks made from tags");
    (block..).zip(data.chunks(BLOCK_BYTES).map(tag)).collect()
}

/// Appends to the log and tells the oracle what it took.
pub(super) fn append(
    log: &Log,
    oracle: &mut Oracle,
    number: usize,
    entries: &[Entry<'_>],
) -> Result<Seq, AppendError> {
    let mut before = log.last();
    let kept = log.kept_mark();
    let appended = log.append(entries);
    if let Some((_, mark)) = kept
        && log.last() > before
    {
        // It was kept for a stream that ends where this one did.
        before = before.next();
        oracle.appended(number, before, &[]);
        oracle.mark_taken(number, before, mark.point);
    }
    let taken = usize::try_from(log.last().0 - before.0).expect("few frames");
    assert!(appended.is_err() || taken == entries.len(), "one frame for each entry");
    for (entry, seq) in entries.iter().take(taken).zip(before.0 + 1..) {
        let changes = match *entry {
            Entry::Write { block, data, .. } => tagged(block, data),
            Entry::Zero { range, .. } => {
                (range.block..range.end()).map(|block| (block, 0)).collect()
            }
            Entry::Mark { .. } => Vec::new(),
        };
        oracle.appended(number, Seq(seq), &changes);
    }
    appended
}

/// Tells the oracle all that a log holds: what it knows must be the same, what it does not know a crash
/// came before.
fn tell_log(ctx: &mut Ctx<'_>, log: &Log, place: Place, marks: &[(Seq, Mark)]) {
    let number = ctx.number;
    let mut cursor = Cursor::at(place.first);
    let mut buffer = Vec::new();
    while cursor.next() <= place.last {
        if let Err(error) = log.read_run(&mut cursor, 1 << 20, &mut buffer) {
            let what = format!("agent {number}: the log was taken for whole: {error}");
            return ctx.world.oracle.violate("I5", what);
        }
        for (seq, changes) in changes_of(&buffer) {
            ctx.world.oracle.found(number, seq, &changes);
            if let Ok(at) = marks.binary_search_by_key(&seq, |(seq, _)| *seq) {
                ctx.world.oracle.mark_found(number, seq, marks[at].1.point);
            }
        }
    }
}

/// A power cut brings files back whose removal was not durable: what took their place comes on top,
/// but the log takes nothing until it is below its limit again.
fn judge_opened(ctx: &mut Ctx<'_>, log: &Log) -> u64 {
    judge_bytes(ctx, log, 2 * log.limit_bytes());
    log.bytes()
}

fn judge_bytes(ctx: &mut Ctx<'_>, log: &Log, bytes_max: u64) {
    let (bytes, bytes_max) = (usize::try_from(log.bytes()), usize::try_from(bytes_max));
    let what = format!("log of agent {}", ctx.number);
    let bytes_max = bytes_max.expect("it is small").max(HRL_HEADER_BYTES);
    ctx.world.oracle.held(&what, bytes.expect("it is small"), bytes_max);
}

impl Volume {
    /// Goes on with what was found: the session at once if the disk is known, the capture soon.
    pub(super) fn opened(
        ctx: &mut Ctx<'_>,
        stream: Stream,
        found: Found,
        assigned: Assignment,
    ) -> Self {
        let (place, number) = (stream.log.place(), ctx.number);
        ctx.tell(|| {
            let (opened, damage) = (found.opened, &found.damage);
            format!("opens its log: {place:?}, floor {}, damage {damage:?}", opened.floor)
        });
        // A log that cannot be opened is what it was, for all that anybody knows.
        if !stream.log.is_closed() {
            // A doom may have come between an append or a restart and its telling.
            if let Some(next) = ctx.untold_restart.take()
                && next == place.first
                && place.last < place.first
            {
                ctx.world.oracle.restarted(number, next);
            }
            ctx.world.oracle.log_opened(number, place.last);
            tell_log(ctx, &stream.log, place, &found.marks);
        }
        let newest_mark = found.marks.last().map(|(seq, _)| *seq);
        let bytes_opened = judge_opened(ctx, &stream.log);
        let session = Session::new(ctx, &stream, &found, assigned);
        let is_new = found.is_new;
        let mut volume = Self {
            stream,
            session,
            served: None,
            is_new,
            newest_mark,
            bytes_opened,
            is_stopping: false,
        };
        if volume.stream.state.get().size_bytes > 0 {
            volume.start_session(ctx);
        }
        ctx.soon(Own::Serve);
        volume
    }

    /// Begins the capture.
    fn serve(&mut self, ctx: &mut Ctx<'_>) {
        let blocks = ctx.world.size.blocks;
        let disk = DiskFacts {
            size_bytes: blocks * BLOCK_BYTES as u64,
            identity: Identity::file(1, 1),
            changed_ns: 0,
            ran_until_ns: None,
        };
        let is_forced = ctx.world.chance(300);
        let intents = self.stream.open_intents((disk, self.is_new), is_forced, &mut || {
            ctx.disk.sync();
            Ok(())
        });
        let intents = match intents {
            Ok(intents) => intents,
            Err(error) => {
                ctx.tell(|| format!("cannot serve its disk: {error}"));
                return ctx.after(RETRY, Own::Serve);
            }
        };
        let regions = Regions::in_blocks(blocks);
        let doubtful = intents.1.regions.count();
        let regions_max = REGIONS_MAX[ctx.world.rng.usize(0..REGIONS_MAX.len())];
        ctx.tell(|| format!("serves its disk, {doubtful} of {regions} regions in doubt"));
        self.served = Some(Served {
            gate: Gate::new(ctx.world.now(), regions, regions_max, intents),
            locks: LockTable::default(),
            waiters: BTreeMap::new(),
            capture: Capture::default(),
            copier: Copier::default(),
            marks: Marks::default(),
        });
        self.start_session(ctx);
        ctx.soon(Own::Copy(copy::Own::Next));
        ctx.soon(Own::Mark(marks::Own::Due));
        ctx.after(LOOK, Own::Look);
    }

    pub(super) fn handle(&mut self, ctx: &mut Ctx<'_>, event: Event) {
        match event {
            Event::Net(arrival) => self.arrived(ctx, arrival),
            Event::Guest { id, request } => self.request(ctx, id, request),
            Event::Own(Step(own)) => match own {
                Own::Serve => self.serve(ctx),
                Own::Look => self.look(ctx),
                Own::Session(own) => self.session_step(ctx, own),
                Own::Capture(own) => self.capture_step(ctx, own),
                Own::Copy(own) => self.copy_step(ctx, own),
                Own::Mark(own) => self.mark_step(ctx, own),
                Own::Open => {}
            },
            Event::Assigned(_) => {}
        }
    }

    fn look(&mut self, ctx: &mut Ctx<'_>) {
        self.gate_step(ctx, Input::Tick);
        if let Some(served) = &mut self.served {
            let effects = served.gate.mend(ctx.world.now());
            self.gate_effects(ctx, effects);
        }
        self.settle(ctx);
        ctx.soon(Own::Copy(copy::Own::Next));
        ctx.after(LOOK, Own::Look);
    }

    /// Tries again what could not be noted when the volume was opened.
    fn settle(&mut self, ctx: &mut Ctx<'_>) {
        if self.stream.log.held().is_none() {
            return;
        }
        let next = self.stream.log.last().next();
        let was_closed = self.stream.log.is_closed();
        if was_closed {
            *ctx.untold_restart = Some(next);
        }
        let settled = self.stream.settle();
        ctx.tell(|| format!("settles: {settled:?}"));
        if was_closed && !self.stream.log.is_closed() {
            *ctx.untold_restart = None;
            ctx.world.oracle.restarted(ctx.number, next);
            ctx.soon(Own::Copy(copy::Own::Next));
        }
    }

    /// Gives the gate one input and carries out what comes of it.
    pub(super) fn gate_step(&mut self, ctx: &mut Ctx<'_>, input: Input) {
        let Some(served) = &mut self.served else { return };
        let effects = served.gate.step(ctx.world.now(), input);
        self.gate_effects(ctx, effects);
    }

    pub(super) fn gate_effects(&mut self, ctx: &mut Ctx<'_>, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Go(ticket) => self.let_go(ctx, ticket),
                Effect::Flush => self.flush(ctx, capture::Flusher::Gate),
                Effect::Lane => self.begin_errand(ctx),
                Effect::Note(regions, durable) => {
                    ctx.soon(Own::Capture(capture::Own::Note(regions, durable)));
                }
            }
        }
    }

    pub(super) fn begin_errand(&mut self, ctx: &mut Ctx<'_>) {
        if self.served.as_mut().is_some_and(|served| served.gate.begin_errand()) {
            ctx.soon(Own::Capture(capture::Own::Errand));
        }
    }

    /// Asks for blocks: the lock's number. Whoever waits is told when it has them, soon if they are
    /// free.
    pub(super) fn lock(&mut self, ctx: &mut Ctx<'_>, range: BlockRange, waiter: Waiter) -> u64 {
        let served = self.served.as_mut().expect("only a served disk is locked");
        let (lock, is_held) = served.locks.ask(range);
        if is_held {
            Self::held(ctx, waiter);
        } else {
            served.waiters.insert(lock, waiter);
        }
        lock
    }

    fn held(ctx: &mut Ctx<'_>, waiter: Waiter) {
        ctx.soon(match waiter {
            Waiter::Change(ticket) => Own::Capture(capture::Own::Disk(ticket)),
            Waiter::Run { copy, run } => Own::Copy(copy::Own::Read { copy, run }),
            Waiter::Reread(number) => Own::Copy(copy::Own::Reread(number)),
        });
    }

    pub(super) fn unlock(&mut self, ctx: &mut Ctx<'_>, lock: u64) {
        let Some(served) = &mut self.served else { return };
        served.waiters.remove(&lock);
        for lock in served.locks.release(lock) {
            if let Some(waiter) = served.waiters.remove(&lock) {
                Self::held(ctx, waiter);
            }
        }
    }

    /// After [`append`]: the length of the log is judged, the session looks at it.
    pub(super) fn has_appended(
        &mut self,
        ctx: &mut Ctx<'_>,
        appended: Option<&Result<Seq, AppendError>>,
    ) {
        if let Some(Err(error)) = appended {
            ctx.tell(|| format!("the log does not take a change: {error}"));
        }
        self.poke(ctx);
        let log = &self.stream.log;
        let bytes_max = log.limit_bytes().max(self.bytes_opened);
        judge_bytes(ctx, log, bytes_max);
    }

    /// The session sees that something was appended, or that it has something to do.
    pub(super) fn poke(&mut self, ctx: &mut Ctx<'_>) {
        if self.session.is_asleep() {
            ctx.soon(Own::Session(session::Own::Step));
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        self.served.is_some() && !self.is_stopping
    }

    pub(super) fn is_settled(&self) -> bool {
        let Some(served) = &self.served else { return false };
        let last = self.last();
        self.stream.has_joined()
            && self.stream.progress.end().is_some()
            && served.gate.in_doubt() == 0
            && served.capture.is_quiet()
            && self.session.is_streaming()
            && self.session.committed() == last
    }

    pub(super) fn last(&self) -> Seq {
        self.stream.log.last()
    }

    pub(super) fn newest_mark(&self) -> Option<Seq> {
        self.newest_mark
    }

    pub(super) fn standing(&self) -> String {
        let (log, progress) = (self.stream.log.place(), &self.stream.progress);
        let served = match &self.served {
            Some(served) => {
                let (doubt, intents) = (served.gate.in_doubt(), served.gate.intents());
                let copier = &served.copier;
                format!("{intents} intents, {doubt} in doubt, {copier:?}")
            }
            None => "not served".to_owned(),
        };
        let (cursor, end) = (progress.cursor(), progress.end());
        let mark = self.newest_mark;
        let session = self.session.standing();
        format!("{session}, {log:?}, copied {cursor} end {end:?}, mark {mark:?}, {served}")
    }
}
