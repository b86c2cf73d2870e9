//! The copy of the whole disk and of regions in doubt, as `agent/src/capture/copy.rs` does it.

use super::volume::{Volume, Waiter, append};
use super::{Ctx, Own as AgentOwn};
use farshore_agent::capture::blocks::entries_of;
use farshore_agent::capture::copy::{has_room_to_copy, has_room_to_reread};
use farshore_agent::capture::progress::Lease;
use farshore_agent::hrl::AppendError;
use farshore_engine::doubt::{Input, REGION_BLOCKS};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::{BlockRange, Seq};
use std::collections::VecDeque;
use std::time::Duration;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks of one run of the copy.
const RUN_BLOCKS: u64 = 12;
/// Runs being read at once.
const RUNS_MAX: usize = 4;
/// Between two durable notes of how far the copy has come.
const SAVE_BYTES: u64 = 48 * BLOCK;
/// Pause when the log has no room.
const ROOM_PAUSE: Duration = Duration::from_millis(50);
/// Pause after something failed.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) enum Own {
    /// Look what is to be done.
    Next,
    /// The pause after a failure is over.
    Again,
    /// A run of the copy looks for room.
    Room {
        copy: u64,
        run: u64,
    },
    /// It has its blocks: read them.
    Read {
        copy: u64,
        run: u64,
    },
    /// What was read goes into the log.
    Append {
        copy: u64,
        run: u64,
    },
    /// The log is synced, then the progress noted: up to here, or all of it.
    Sync {
        copy: u64,
        upto: Option<u64>,
    },
    Note {
        copy: u64,
        upto: Option<u64>,
        end: Seq,
    },
    /// A region looks for room.
    RereadRoom(u64),
    /// It has its blocks: read them and put them into the log.
    Reread(u64),
    /// It gives them up; did the log take them?
    RereadDone(u64, bool),
    /// What a run had read when its copy was given up; it was on its way into the log.
    Orphan(u64, Vec<u8>),
}

#[derive(Debug)]
enum RunState {
    /// Waits for room, or for its blocks.
    Waiting,
    /// Has read.
    Read(Vec<u8>),
    /// Is in the log.
    Done,
}

#[derive(Debug)]
struct Run {
    number: u64,
    range: BlockRange,
    lock: Option<u64>,
    state: RunState,
}

#[derive(Debug)]
struct Copying {
    number: u64,
    lease: Lease,
    next: u64,
    saved: u64,
    runs: VecDeque<Run>,
    is_noting: bool,
}

#[derive(Debug)]
struct Rereading {
    number: u64,
    region: u64,
    lock: Option<u64>,
}

/// What is being copied or read again.
#[derive(Default)]
pub(super) struct Copier {
    numbers: u64,
    has_joined: bool,
    copying: Option<Copying>,
    rereading: Option<Rereading>,
    is_pausing: bool,
    is_halted: bool,
}

impl std::fmt::Debug for Copier {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.copying, &self.rereading) {
            (Some(copying), _) => write!(formatter, "copies from block {}", copying.next),
            (_, Some(rereading)) => write!(formatter, "reads region {} again", rereading.region),
            _ if !self.has_joined => write!(formatter, "has not joined"),
            _ => write!(formatter, "copies nothing"),
        }
    }
}

impl Copier {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn copying(&mut self, copy: u64) -> Option<&mut Copying> {
        self.copying.as_mut().filter(|copying| copying.number == copy)
    }

    fn rereading(&mut self, number: u64) -> Option<&mut Rereading> {
        self.rereading.as_mut().filter(|rereading| rereading.number == number)
    }

    fn run(&mut self, copy: u64, run: u64) -> Option<&mut Run> {
        self.copying(copy)?.runs.iter_mut().find(|candidate| candidate.number == run)
    }
}

impl Volume {
    pub(super) fn copy_step(&mut self, ctx: &mut Ctx<'_>, own: Own) {
        let Some(served) = &mut self.served else { return };
        if served.copier.is_halted {
            return;
        }
        match own {
            Own::Next => self.next_copy(ctx),
            Own::Again => {
                served.copier.is_pausing = false;
                self.next_copy(ctx);
            }
            Own::Room { copy, run } => self.run_room(ctx, copy, run),
            Own::Read { copy, run } => self.run_read(ctx, copy, run),
            Own::Append { copy, run } => self.run_append(ctx, copy, run),
            Own::Sync { copy, upto } => self.sync_copy(ctx, copy, upto),
            Own::Note { copy, upto, end } => self.note_copy(ctx, copy, upto, end),
            Own::RereadRoom(number) => self.reread_room(ctx, number),
            Own::Reread(number) => self.reread(ctx, number),
            Own::RereadDone(number, is_logged) => self.reread_done(ctx, number, is_logged),
            Own::Orphan(block, data) => {
                let entries = entries_of(block, &data);
                let log = &self.stream.log;
                let done = append(log, &mut ctx.world.oracle, ctx.number, &entries);
                self.has_appended(ctx, Some(&done));
            }
        }
    }

    /// No copying any more: its tasks are dropped.
    pub(super) fn halt_copy(&mut self, ctx: &mut Ctx<'_>) {
        self.drop_copy(ctx);
        let Some(served) = &mut self.served else { return };
        served.copier.is_halted = true;
        let rereading = served.copier.rereading.take();
        if let Some(lock) = rereading.and_then(|rereading| rereading.lock) {
            self.unlock(ctx, lock);
        }
    }

    fn next_copy(&mut self, ctx: &mut Ctx<'_>) {
        if !self.stream.has_joined() {
            return;
        }
        let Some(served) = &mut self.served else { return };
        if !served.copier.has_joined {
            served.copier.has_joined = true;
            self.gate_step(ctx, Input::Joined);
        }
        let Some(served) = &mut self.served else { return };
        let copier = &mut served.copier;
        if copier.is_pausing || copier.copying.is_some() || copier.rereading.is_some() {
            return;
        }
        if let Some(lease) = self.stream.progress.lease() {
            let (number, next, saved) = (copier.number(), lease.cursor / BLOCK, lease.cursor);
            let runs = VecDeque::new();
            copier.copying = Some(Copying { number, lease, next, saved, runs, is_noting: false });
            ctx.tell(|| format!("copies its disk from block {next} on"));
            self.go_on_copying(ctx, number);
        } else if let Some(region) = served.gate.next_in_doubt() {
            let number = copier.number();
            copier.rereading = Some(Rereading { number, region, lock: None });
            ctx.soon(AgentOwn::Copy(Own::RereadRoom(number)));
        }
    }

    /// Takes in the runs that are done, in order, and begins new ones.
    fn go_on_copying(&mut self, ctx: &mut Ctx<'_>, copy: u64) {
        let blocks = ctx.world.size.blocks;
        let Some(served) = &mut self.served else { return };
        let copier = &mut served.copier;
        let mut numbers = copier.numbers;
        let Some(copying) = copier.copying(copy) else { return };
        while !copying.is_noting {
            while copying.next < blocks && copying.runs.len() < RUNS_MAX {
                let count = RUN_BLOCKS.min(blocks - copying.next);
                let range = BlockRange { block: copying.next, count };
                numbers += 1;
                let (number, state) = (numbers, RunState::Waiting);
                copying.runs.push_back(Run { number, range, lock: None, state });
                copying.next = range.end();
                ctx.soon(AgentOwn::Copy(Own::Room { copy, run: number }));
            }
            let Some(front) = copying.runs.front() else {
                copying.is_noting = true;
                ctx.soon(AgentOwn::Copy(Own::Sync { copy, upto: None }));
                break;
            };
            if !matches!(front.state, RunState::Done) {
                break;
            }
            let cursor = front.range.end() * BLOCK;
            copying.runs.pop_front();
            if !self.stream.progress.advance(copying.lease, cursor) {
                ctx.tell(|| "gives its copy up: it begins again".to_owned());
                self.drop_copy(ctx);
                return ctx.soon(AgentOwn::Copy(Own::Next));
            }
            if cursor - copying.saved >= SAVE_BYTES {
                copying.saved = cursor;
                copying.is_noting = true;
                ctx.soon(AgentOwn::Copy(Own::Sync { copy, upto: Some(cursor) }));
            }
        }
        let Some(served) = &mut self.served else { return };
        served.copier.numbers = numbers;
    }

    /// Drops the copy under way. What a run has read may be on its way into the log all the same, with
    /// nothing locked any more.
    fn drop_copy(&mut self, ctx: &mut Ctx<'_>) {
        let Some(served) = &mut self.served else { return };
        let Some(copying) = served.copier.copying.take() else { return };
        for run in copying.runs {
            if let Some(lock) = run.lock {
                self.unlock(ctx, lock);
            }
            if let RunState::Read(data) = run.state {
                ctx.soon(AgentOwn::Copy(Own::Orphan(run.range.block, data)));
            }
        }
    }

    fn fail_copy(&mut self, ctx: &mut Ctx<'_>, why: &str) {
        ctx.tell(|| format!("the copy of its disk waits: {why}"));
        self.drop_copy(ctx);
        if let Some(served) = &mut self.served {
            served.copier.is_pausing = true;
        }
        ctx.after(FAILED_PAUSE, AgentOwn::Copy(Own::Again));
    }

    fn run_room(&mut self, ctx: &mut Ctx<'_>, copy: u64, run: u64) {
        let has_room = has_room_to_copy(&self.stream.log);
        let Some(served) = &mut self.served else { return };
        let Some(found) = served.copier.run(copy, run) else { return };
        if !has_room {
            return ctx.after(ROOM_PAUSE, AgentOwn::Copy(Own::Room { copy, run }));
        }
        let range = found.range;
        let lock = self.lock(ctx, range, Waiter::Run { copy, run });
        let Some(served) = &mut self.served else { return };
        if let Some(found) = served.copier.run(copy, run) {
            found.lock = Some(lock);
        }
    }

    fn run_read(&mut self, ctx: &mut Ctx<'_>, copy: u64, run: u64) {
        let Some(served) = &mut self.served else { return };
        let Some(found) = served.copier.run(copy, run) else { return };
        found.state = RunState::Read(ctx.disk.read(found.range.block, found.range.count));
        ctx.soon(AgentOwn::Copy(Own::Append { copy, run }));
    }

    fn run_append(&mut self, ctx: &mut Ctx<'_>, copy: u64, run: u64) {
        let Some(served) = &mut self.served else { return };
        let Some(found) = served.copier.run(copy, run) else { return };
        let RunState::Read(data) = std::mem::replace(&mut found.state, RunState::Waiting) else {
            return;
        };
        let lock = found.lock.take().expect("it read under its lock");
        let entries = entries_of(found.range.block, &data);
        let log = &self.stream.log;
        let done = append(log, &mut ctx.world.oracle, ctx.number, &entries);
        if done.is_ok() {
            found.state = RunState::Done;
        }
        self.has_appended(ctx, Some(&done));
        self.unlock(ctx, lock);
        match done {
            Ok(_) => self.go_on_copying(ctx, copy),
            Err(AppendError::Io { source }) => self.fail_copy(ctx, &source.to_string()),
            Err(_) => ctx.after(ROOM_PAUSE, AgentOwn::Copy(Own::Room { copy, run })),
        }
    }

    fn sync_copy(&mut self, ctx: &mut Ctx<'_>, copy: u64, upto: Option<u64>) {
        let Some(served) = &mut self.served else { return };
        if served.copier.copying(copy).is_none() {
            return;
        }
        let end = self.stream.log.last();
        match self.stream.log.sync() {
            Ok(()) => ctx.soon(AgentOwn::Copy(Own::Note { copy, upto, end })),
            Err(error) => self.fail_copy(ctx, &error.to_string()),
        }
    }

    fn note_copy(&mut self, ctx: &mut Ctx<'_>, copy: u64, upto: Option<u64>, end: Seq) {
        let Some(served) = &mut self.served else { return };
        let Some(copying) = served.copier.copying(copy) else { return };
        copying.is_noting = false;
        let (lease, progress) = (copying.lease, &self.stream.progress);
        let noted = match upto {
            Some(cursor) => progress.save(lease, cursor, end),
            None => progress.finish(lease, end).map(|_| ()),
        };
        match (noted, upto) {
            (Ok(()), Some(_)) => self.go_on_copying(ctx, copy),
            (Ok(()), None) => {
                ctx.tell(|| format!("its disk is copied, up to {end}"));
                self.drop_copy(ctx);
                ctx.soon(AgentOwn::Copy(Own::Next));
            }
            (Err(error), _) => self.fail_copy(ctx, &error.to_string()),
        }
    }

    fn reread_room(&mut self, ctx: &mut Ctx<'_>, number: u64) {
        let has_room = has_room_to_reread(&self.stream.log);
        let blocks = ctx.world.size.blocks;
        let Some(served) = &mut self.served else { return };
        let Some(rereading) = served.copier.rereading(number) else { return };
        if !has_room {
            return ctx.after(ROOM_PAUSE, AgentOwn::Copy(Own::RereadRoom(number)));
        }
        let range = region_range(rereading.region, blocks);
        let lock = self.lock(ctx, range, Waiter::Reread(number));
        let Some(served) = &mut self.served else { return };
        if let Some(rereading) = served.copier.rereading(number) {
            rereading.lock = Some(lock);
        }
    }

    fn reread(&mut self, ctx: &mut Ctx<'_>, number: u64) {
        let Some(served) = &mut self.served else { return };
        let Some(rereading) = served.copier.rereading(number) else { return };
        let region = rereading.region;
        let range = region_range(region, ctx.world.size.blocks);
        let data = ctx.disk.read(range.block, range.count);
        let entries = entries_of(range.block, &data);
        let log = &self.stream.log;
        let done = append(log, &mut ctx.world.oracle, ctx.number, &entries);
        let is_in_doubt = served.gate.is_in_doubt(region);
        self.has_appended(ctx, Some(&done));
        if done.is_ok() && is_in_doubt {
            ctx.tell(|| format!("region {region} is read again"));
            self.gate_step(ctx, Input::ReRead { region });
        }
        ctx.soon(AgentOwn::Copy(Own::RereadDone(number, done.is_ok())));
    }

    fn reread_done(&mut self, ctx: &mut Ctx<'_>, number: u64, is_logged: bool) {
        let Some(served) = &mut self.served else { return };
        if served.copier.rereading(number).is_none() {
            return;
        }
        let rereading = served.copier.rereading.take();
        if let Some(lock) = rereading.and_then(|rereading| rereading.lock) {
            self.unlock(ctx, lock);
        }
        if is_logged {
            return ctx.soon(AgentOwn::Copy(Own::Next));
        }
        ctx.after(ROOM_PAUSE, AgentOwn::Copy(Own::Next));
    }
}

fn region_range(region: u64, blocks: u64) -> BlockRange {
    let block = region * REGION_BLOCKS;
    BlockRange { block, count: REGION_BLOCKS.min(blocks - block) }
}
