//! What the tasks of a shard share: the engine, its frames, and the queues of its outputs.

use super::arrivals::Arrivals;
use super::outbox::Outbox;
use super::refusals::Refusals;
use super::strangers::Strangers;
use super::{Greeted, JournalDir, Message, STRANGERS_MAX, journal_files};
use crate::assignments::Assignments;
use crate::dedup::Dedup;
use crate::descriptors::Descriptors;
use crate::fatal::Fatal;
use crate::metrics::Metrics;
use crate::register::Register;
use crate::rt::{Post, Rt, Signal, Turnstile};
use crate::services::{Request, Services};
use crate::state::Logs;
use farshore_client::Identity;
use farshore_codec::KeyRing;
use farshore_engine::batch::{Entry, Handle, SpanPlan};
use farshore_engine::claims::{Cause, Wanted};
use farshore_engine::shard::{Input, Output, SessionId, Settings, Shard};
use farshore_engine::silence::Patience;
use farshore_engine::tenure::Opening;
use farshore_ingest::frames::{Frame, Frames};
use farshore_proto::frame::{Control, RefusalReason};
use farshore_proto::segment::SlotWriter;
use farshore_proto::{LogId, Slot, Timestamp, VolumeId};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a shard is made of; crosses to its thread.
#[derive(Debug, Clone)]
pub(crate) struct ShardParts {
    pub(crate) id: usize,
    /// Where a new log comes from when this one is sealed.
    pub(crate) logs: Logs,
    pub(crate) log: LogId,
    pub(crate) incarnation: u64,
    pub(crate) settings: Settings,
    pub(crate) journal: JournalDir,
    /// What segments are sealed with.
    pub(crate) keys: Arc<KeyRing>,
    pub(crate) services: Services,
    pub(crate) shards: Vec<Post<Message>>,
    pub(crate) assignments: Arc<Assignments>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) tls: Arc<crate::acceptor::TlsSettings>,
    pub(crate) dedup: Dedup,
    pub(crate) register: Register,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) fatal: Fatal,
    pub(crate) descriptors: Descriptors,
    /// How silent a peer may be.
    pub(crate) patience: Patience,
}

impl ShardParts {
    /// Goes on with the log that is opened.
    pub(crate) fn open(&mut self, opening: &Opening) {
        self.log = opening.log;
        self.incarnation = opening.incarnation;
        self.journal.owner.log = opening.log;
        self.journal.first_file = opening.first_file;
    }

    /// A log for the shard in place of the one that was sealed and is written no more, durable when this
    /// returns; and the files of its journal.
    pub(crate) fn new_log(&self, sealed: LogId) -> anyhow::Result<(LogId, Vec<u64>)> {
        let files = journal_files(&self.journal.path)?;
        let log = self.logs.renew(self.id)?;
        self.dedup.forget(sealed);
        Ok((log, files))
    }
}

/// A group on its way to the journal.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) number: u64,
    pub(crate) entries: Vec<Entry>,
}

/// A segment on its way to the vault.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) slot: Slot,
    pub(crate) writer: SlotWriter,
    pub(crate) spans: Vec<SpanPlan>,
}

/// The shared state of one shard's tasks.
#[derive(Debug)]
pub(crate) struct Core<R: Rt> {
    pub(crate) parts: ShardParts,
    started: Instant,
    engine: RefCell<Shard>,
    /// What the shard tells itself while a step's outputs are carried out.
    later: RefCell<VecDeque<Input>>,
    frames: RefCell<Frames>,
    sessions: RefCell<HashMap<SessionId, Rc<Outbox>>>,
    next_session: Cell<u64>,
    pub(crate) strangers: Strangers,
    /// Memory of frames that are not whole yet.
    pub(crate) arrivals: Arrivals,
    pub(crate) refusals: RefCell<Refusals>,
    /// Where handshakes stand in line.
    pub(crate) turnstile: Turnstile,
    groups: RefCell<VecDeque<Group>>,
    groups_moved: Signal,
    plans: RefCell<VecDeque<Plan>>,
    plans_moved: Signal,
    deadline_moved: Signal,
    is_paused: Cell<bool>,
    is_stopping: Cell<bool>,
    is_retired: Cell<bool>,
    is_journal_over: Cell<bool>,
    journal_over: Signal,
    runtime: PhantomData<R>,
}

impl<R: Rt> Core<R> {
    pub(crate) fn new(parts: ShardParts, opening: &Opening) -> Self {
        Self {
            engine: RefCell::new(Shard::new(parts.settings, opening.log_end())),
            arrivals: Arrivals::beside(parts.settings.cache_bytes),
            parts,
            started: Instant::now(),
            later: RefCell::default(),
            frames: RefCell::default(),
            sessions: RefCell::default(),
            next_session: Cell::new(0),
            strangers: Strangers::new(STRANGERS_MAX),
            refusals: RefCell::default(),
            turnstile: Turnstile::default(),
            groups: RefCell::default(),
            groups_moved: Signal::default(),
            plans: RefCell::default(),
            plans_moved: Signal::default(),
            deadline_moved: Signal::default(),
            is_paused: Cell::new(false),
            is_stopping: Cell::new(false),
            is_retired: Cell::new(false),
            is_journal_over: Cell::new(false),
            journal_over: Signal::default(),
            runtime: PhantomData,
        }
    }

    pub(crate) fn id(&self) -> usize {
        self.parts.id
    }

    pub(crate) fn now(&self) -> Timestamp {
        let elapsed = self.started.elapsed().as_millis();
        Timestamp(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// Steps the engine and hands its outputs to the tasks.
    pub(crate) fn input(&self, input: Input) {
        let mut next = Some(input);
        while let Some(input) = next {
            self.step(input);
            next = self.later.borrow_mut().pop_front();
        }
    }

    fn step(&self, input: Input) {
        let mut out = Vec::new();
        let before = {
            let mut engine = self.engine.borrow_mut();
            let before = engine.next_deadline();
            engine.step(self.now(), input, &mut out);
            before
        };
        out.into_iter().for_each(|output| self.perform(output));
        if self.engine.borrow().next_deadline() != before {
            self.deadline_moved.notify();
        }
    }

    fn perform(&self, output: Output) {
        match output {
            // Nothing begins in a log that was sealed.
            Output::Claim { .. } if self.is_retired() => {}
            Output::Claim { volume, epoch, size_bytes, first_slot } => {
                let wanted = Wanted {
                    log: self.parts.log,
                    volume,
                    epoch,
                    size_bytes,
                    first_slot,
                    label: self.parts.assignments.label(volume),
                };
                let request = Request::Claim { shard: self.id(), wanted };
                if self.parts.services.offer(request).is_err() {
                    let text = "the node is too busy to claim a volume".to_owned();
                    let outcome = Err((RefusalReason::Unavailable, text));
                    self.later.borrow_mut().push_back(Input::Claimed { volume, outcome });
                }
            }
            Output::Welcome { session, welcome } => {
                self.say(session, &Control::Welcome(welcome));
            }
            Output::Refuse { session, reason, text } => {
                self.parts.metrics.refused(reason.word());
                tracing::info!(shard = self.id(), reason = reason.word(), %text, "session refused");
                if let Some(outbox) = self.sessions.borrow().get(&session) {
                    outbox.refuse(reason, text);
                }
            }
            Output::Passed { volume, newest } => {
                self.parts.metrics.wish(volume, Cause::Fenced(newest));
            }
            Output::Contested { volume, text } => self.parts.metrics.set_contested(volume, text),
            Output::Journal { group, entries } => {
                self.groups.borrow_mut().push_back(Group { number: group, entries });
                self.groups_moved.notify();
            }
            Output::Ack { session, ack } => self.acknowledge(session, ack),
            Output::Build { slot, writer, spans } => {
                self.plans.borrow_mut().push_back(Plan { slot, writer, spans });
                self.plans_moved.notify();
            }
            Output::Checkpoint { slot, body } => {
                let request =
                    Request::Checkpoint { shard: self.id(), log: self.parts.log, slot, body };
                if self.parts.services.offer(request).is_err() {
                    let input = Input::Checkpointed { slot, is_there: false };
                    self.later.borrow_mut().push_back(input);
                }
            }
            Output::Committed { slot, lasts, points, release } => {
                self.parts.dedup.committed(self.parts.log, slot);
                self.parts.metrics.committed(&lasts, &points);
                let mut frames = self.frames.borrow_mut();
                release.into_iter().for_each(|handle| frames.release(handle));
            }
            Output::DropJournal { file } => {
                if let Err(error) = self.parts.journal.remove(file) {
                    // It only takes space until the next start, which removes it again.
                    tracing::warn!(file, %error, "cannot delete a journal file");
                }
            }
            Output::Drop { handle } => self.frames.borrow_mut().release(handle),
            Output::Hold { session } => self.set_held(session, true),
            Output::Release { session } => self.set_held(session, false),
            Output::Pause => self.is_paused.set(true),
            Output::Resume => {
                self.is_paused.set(false);
                let sessions = self.sessions.borrow();
                sessions.values().for_each(|outbox| outbox.resumed.notify());
            }
        }
    }

    fn set_held(&self, session: SessionId, is_held: bool) {
        if let Some(outbox) = self.sessions.borrow().get(&session) {
            outbox.is_held.set(is_held);
            if !is_held {
                outbox.resumed.notify();
            }
        }
    }

    fn say(&self, session: SessionId, control: &Control) {
        if let Some(outbox) = self.sessions.borrow().get(&session) {
            outbox.push(control.encode());
        }
    }

    fn acknowledge(&self, session: SessionId, ack: farshore_proto::frame::Ack) {
        if let Some(outbox) = self.sessions.borrow().get(&session) {
            outbox.acknowledge(ack);
        }
    }

    /// Enters a session.
    pub(crate) fn open_session(&self, outbox: Rc<Outbox>) -> SessionId {
        let session = SessionId(self.next_session.get());
        self.next_session.set(session.0 + 1);
        self.sessions.borrow_mut().insert(session, outbox);
        session
    }

    /// Leaves it.
    pub(crate) fn end_session(&self, session: SessionId) {
        self.sessions.borrow_mut().remove(&session);
        self.input(Input::Gone { session });
    }

    /// All sessions, for the sweep.
    pub(crate) fn outboxes(&self) -> Vec<Rc<Outbox>> {
        self.sessions.borrow().values().cloned().collect()
    }

    pub(crate) fn buffer(&self, bytes: usize) -> Vec<u8> {
        self.frames.borrow_mut().buffer(bytes)
    }

    pub(crate) fn keep(&self, frame: Frame) -> Handle {
        self.frames.borrow_mut().insert(frame)
    }

    pub(crate) fn frame(&self, handle: Handle) -> Rc<Frame> {
        self.frames.borrow().get(handle)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.is_paused.get()
    }

    /// The next group to journal; none when the log was sealed.
    pub(crate) async fn next_group(&self) -> Option<Group> {
        while !self.is_retired() {
            let group = self.groups.borrow_mut().pop_front();
            match group {
                Some(group) => return Some(group),
                None => self.groups_moved.wait().await,
            }
        }
        None
    }

    /// The next segment to build; none when the log was sealed.
    pub(crate) async fn next_plan(&self) -> Option<Plan> {
        while !self.is_retired() {
            let plan = self.plans.borrow_mut().pop_front();
            match plan {
                Some(plan) => return Some(plan),
                None => self.plans_moved.wait().await,
            }
        }
        None
    }

    /// Time until the engine wants a tick; `None` when it wants none.
    pub(crate) fn until_deadline(&self) -> Option<Duration> {
        let deadline = self.engine.borrow().next_deadline()?;
        Some(Duration::from_millis(deadline.since_ms(self.now())))
    }

    pub(crate) async fn deadline_moved(&self) {
        self.deadline_moved.wait().await;
    }

    /// Ends all sessions; what was taken is still shipped.
    pub(crate) fn stop(&self) {
        self.is_stopping.set(true);
        self.outboxes().into_iter().for_each(|outbox| outbox.close());
        self.input(Input::Ship);
    }

    /// Whether nothing new may begin.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.get() || self.is_retired()
    }

    /// The log was sealed: ends all sessions and tasks. When this returns nothing is written to the journal
    /// any more.
    pub(crate) async fn retire(&self) {
        self.is_retired.set(true);
        for outbox in self.outboxes() {
            let text = "the log was taken over; come back in a moment".to_owned();
            outbox.refuse(RefusalReason::Unavailable, text);
        }
        [&self.groups_moved, &self.plans_moved, &self.deadline_moved]
            .into_iter()
            .for_each(Signal::notify);
        while !self.is_journal_over.get() {
            self.journal_over.wait().await;
        }
    }

    /// Whether the log was sealed, and another core is the shard now.
    pub(crate) fn is_retired(&self) -> bool {
        self.is_retired.get()
    }

    /// The journal's task has ended.
    pub(crate) fn journal_is_over(&self) {
        self.is_journal_over.set(true);
        self.journal_over.notify();
    }

    /// Whether something of a volume may still reach the log.
    pub(crate) fn holds(&self, volume: VolumeId) -> bool {
        self.engine.borrow().holds(volume)
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.engine.borrow().is_settled()
    }

    /// Hands a greeted connection to the shard that owns its volume; false when that is too busy.
    pub(crate) fn pass_on(&self, owner: usize, greeted: Greeted) -> bool {
        self.parts.shards[owner].offer(Message::Greeted(Box::new(greeted))).is_ok()
    }
}
