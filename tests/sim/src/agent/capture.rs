//! What the guest asks for, as `agent/src/capture/splitter.rs` does it: intents, the lock of the blocks,
//! the disk, the log, the answer; flushes of disk and log.

use super::gate::Errand;
use super::volume::{Volume, Waiter, append};
use super::{Ctx, Own as AgentOwn, copy};
use crate::disk::{Tag, block_bytes};
use crate::guest::Request;
use farshore_agent::capture::change::Change;
use farshore_agent::capture::gate::Durable;
use farshore_engine::doubt::{Input, Regions, Ticket};
use farshore_proto::BlockRange;
use farshore_proto::limits::BLOCK_BYTES;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Debug)]
pub(super) enum Own {
    /// Write the intent file.
    Errand,
    /// The intents are written; was it good?
    ErrandDone(Errand, bool),
    /// Note what is durable of the log, then clear intents.
    Note(Vec<u64>, Durable),
    /// Write the disk.
    Disk(Ticket),
    /// Put the change into the log.
    Log(Ticket),
    /// Flush the disk.
    FlushDisk,
    /// Flush the log.
    FlushLog,
    /// The flush is over; what it made durable of the log.
    Flushed(Option<Durable>),
}

/// Who wants a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flusher {
    /// The guest, by the number of its request.
    Guest(u64),
    /// The gate, to clear intents.
    Gate,
    /// The orderly stop.
    Stop,
}

/// A change between the guest and its answer.
#[derive(Debug)]
struct Running {
    id: u64,
    change: Change,
    tags: Vec<Tag>,
    is_fua: bool,
    lock: Option<u64>,
    /// Blocks that the disk has taken.
    written: usize,
}

/// The guest's requests under way.
#[derive(Debug, Default)]
pub(super) struct Capture {
    changes: BTreeMap<Ticket, Running>,
    /// Flushes that wait, each with the number that it needs.
    flushes: VecDeque<(u64, Flusher)>,
    flushing: Option<Flusher>,
    flushes_begun: u64,
    last_good: u64,
}

impl Capture {
    /// Whether nothing of the guest's is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.changes.is_empty() && self.flushing.is_none() && self.flushes.is_empty()
    }

    /// Blocks that the disk may have and the log has not.
    pub(super) fn busy(&self) -> BTreeSet<u64> {
        let begun = self.changes.values().filter(|change| change.written > 0);
        begun
            .flat_map(|running| {
                let blocks = running.change.blocks();
                blocks.block..blocks.end()
            })
            .collect()
    }
}

fn change_of(request: Request) -> (Change, Vec<Tag>, bool) {
    const BLOCK: u64 = BLOCK_BYTES as u64;
    match request {
        Request::Write { block, tags, fua } => {
            let blocks: Vec<Vec<u8>> = tags.iter().map(|tag| block_bytes(*tag)).collect();
            let data = blocks.concat();
            (Change::Write { offset: block * BLOCK, data: data.into() }, tags, fua)
        }
        Request::Zero { block, count, fua } => {
            let length = count * BLOCK;
            let tags = vec![0; usize::try_from(count).expect("a simulated disk is small")];
            (Change::Zero { offset: block * BLOCK, length, may_trim: true }, tags, fua)
        }
        Request::Flush => unreachable!("a flush changes nothing"),
    }
}

impl Volume {
    pub(super) fn request(&mut self, ctx: &mut Ctx<'_>, id: u64, request: Request) {
        if request == Request::Flush {
            return self.flush(ctx, Flusher::Guest(id));
        }
        let Some(served) = &mut self.served else { return };
        let (change, tags, is_fua) = change_of(request);
        let regions = Regions::of(change.blocks());
        let running = Running { id, change, tags, is_fua, lock: None, written: 0 };
        let (ticket, effects) = served.gate.enter(ctx.world.now(), regions);
        served.capture.changes.insert(ticket, running);
        self.gate_effects(ctx, effects);
    }

    /// The gate lets a change go ahead.
    pub(super) fn let_go(&mut self, ctx: &mut Ctx<'_>, ticket: Ticket) {
        let Some(served) = &mut self.served else { return };
        let blocks = served.capture.changes[&ticket].change.blocks();
        let lock = self.lock(ctx, blocks, Waiter::Change(ticket));
        let served = self.served.as_mut().expect("checked above");
        served.capture.changes.get_mut(&ticket).expect("checked above").lock = Some(lock);
    }

    pub(super) fn capture_step(&mut self, ctx: &mut Ctx<'_>, own: Own) {
        match own {
            Own::Errand => self.write_errand(ctx),
            Own::ErrandDone(errand, is_good) => {
                match (errand, is_good) {
                    (Errand::Persist(_), true) => self.gate_step(ctx, Input::IntentDurable),
                    (Errand::Persist(_), false) => self.void(ctx),
                    (Errand::Clear(_), _) => {}
                }
                self.begin_errand(ctx);
            }
            Own::Note(regions, durable) => self.note(ctx, regions, durable),
            Own::Disk(ticket) => self.write_disk(ctx, ticket),
            Own::Log(ticket) => self.log_change(ctx, ticket),
            Own::FlushDisk => {
                ctx.disk.sync();
                ctx.soon(AgentOwn::Capture(Own::FlushLog));
            }
            Own::FlushLog => {
                let restarts = self.stream.progress.restarts();
                let durable = Durable { restarts, end: self.stream.log.last() };
                let synced = self.stream.log.sync();
                if let Err(error) = &synced {
                    ctx.tell(|| format!("the log cannot be flushed: {error}"));
                }
                let durable = synced.is_ok().then_some(durable);
                ctx.soon(AgentOwn::Capture(Own::Flushed(durable)));
            }
            Own::Flushed(durable) => self.flushed(ctx, durable),
        }
    }

    fn void(&mut self, ctx: &mut Ctx<'_>) {
        let Some(served) = &mut self.served else { return };
        let (noted, effects) = served.gate.void(ctx.world.now());
        ctx.tell(|| format!("goes on without intents; noted: {noted:?}"));
        self.gate_effects(ctx, effects);
    }

    fn write_errand(&mut self, ctx: &mut Ctx<'_>) {
        let Some(served) = &mut self.served else { return };
        let Some((errand, written)) = served.gate.write_errand() else { return };
        ctx.tell(|| match &written {
            Ok(()) => format!("intents: {errand:?} is written"),
            Err(error) => format!("the intent file cannot be written: {error}"),
        });
        ctx.soon(AgentOwn::Capture(Own::ErrandDone(errand, written.is_ok())));
    }

    /// The disk takes the change, perhaps in two parts.
    fn write_disk(&mut self, ctx: &mut Ctx<'_>, ticket: Ticket) {
        let Some(served) = &mut self.served else { return };
        let running = served.capture.changes.get_mut(&ticket).expect("it waits for its disk");
        let block = running.change.blocks().block;
        let left = running.tags.len() - running.written;
        let part = if ctx.world.chance(700) { left } else { ctx.world.rng.usize(1..=left) };
        let from = running.written;
        ctx.disk.write(block + from as u64, &running.tags[from..from + part]);
        running.written += part;
        let is_whole = running.written == running.tags.len();
        let next = if is_whole { Own::Log(ticket) } else { Own::Disk(ticket) };
        ctx.soon(AgentOwn::Capture(next));
    }

    fn log_change(&mut self, ctx: &mut Ctx<'_>, ticket: Ticket) {
        let Some(served) = &mut self.served else { return };
        let running = served.capture.changes.remove(&ticket).expect("it waits for its log");
        let blocks = running.change.blocks();
        let (disk, oracle, number) = (&*ctx.disk, &mut ctx.world.oracle, ctx.number);
        let log = &self.stream.log;
        let mut appended = None;
        let read = |at: BlockRange| Ok(disk.read(at.block, at.count));
        let is_logged = running.change.log(read, |entries| {
            let done = append(log, oracle, number, entries);
            let is_good = done.is_ok();
            appended = Some(done);
            is_good
        });
        let is_logged = is_logged.expect("a simulated disk reads");
        self.has_appended(ctx, appended.as_ref());
        if !is_logged {
            self.gate_step(ctx, Input::Overflow { regions: Regions::of(blocks) });
            ctx.soon(AgentOwn::Copy(copy::Own::Next));
        }
        self.gate_step(ctx, Input::Written { ticket });
        self.unlock(ctx, running.lock.expect("it had its blocks"));
        if running.is_fua {
            return self.flush(ctx, Flusher::Guest(running.id));
        }
        ctx.world.answer_guest(ctx.number, running.id);
    }

    /// Makes durable everything that was answered before. Flushes that come while one runs share the
    /// next one.
    pub(super) fn flush(&mut self, ctx: &mut Ctx<'_>, flusher: Flusher) {
        let Some(served) = &mut self.served else { return };
        let needed = served.capture.flushes_begun + 1;
        served.capture.flushes.push_back((needed, flusher));
        self.next_flush(ctx);
    }

    fn next_flush(&mut self, ctx: &mut Ctx<'_>) {
        loop {
            let Some(served) = &mut self.served else { return };
            let capture = &mut served.capture;
            if capture.flushing.is_some() {
                return;
            }
            let Some((needed, flusher)) = capture.flushes.pop_front() else { return };
            if capture.last_good < needed {
                capture.flushes_begun += 1;
                capture.flushing = Some(flusher);
                self.gate_step(ctx, Input::FlushBegun);
                return ctx.soon(AgentOwn::Capture(Own::FlushDisk));
            }
            self.has_flushed(ctx, flusher);
        }
    }

    fn note(&mut self, ctx: &mut Ctx<'_>, regions: Vec<u64>, durable: Durable) {
        let noted = self.stream.progress.note_logged(durable.end, durable.restarts);
        if let Err(error) = &noted {
            ctx.tell(|| format!("intents are not cleared: {error}"));
        }
        let Some(served) = &mut self.served else { return };
        served.gate.noted(regions, noted.unwrap_or(false));
        self.begin_errand(ctx);
    }

    fn flushed(&mut self, ctx: &mut Ctx<'_>, durable: Option<Durable>) {
        let Some(served) = &mut self.served else { return };
        let effects = served.gate.flushed(ctx.world.now(), durable);
        self.gate_effects(ctx, effects);
        let Some(served) = &mut self.served else { return };
        let capture = &mut served.capture;
        // The disk is durable, whatever the log says: that is what the guest asked for.
        capture.last_good = capture.flushes_begun;
        if let Some(flusher) = capture.flushing.take() {
            self.has_flushed(ctx, flusher);
        }
        self.next_flush(ctx);
    }

    fn has_flushed(&mut self, ctx: &mut Ctx<'_>, flusher: Flusher) {
        match flusher {
            Flusher::Guest(id) => ctx.world.answer_guest(ctx.number, id),
            Flusher::Gate => {}
            Flusher::Stop => self.stop_gate(ctx),
        }
    }
}
