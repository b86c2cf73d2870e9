//! Setting marks: at the policy's interval, and whenever somebody asks for one.

use crate::capture::splitter::Splitter;
use crate::clock::{Clock, unix_ms};
use crate::hrl::{AppendError, Log};
use crate::volume::Facts;
use farshore_api::agent::{AgentVolume, MarkRequest};
use farshore_engine::gathering::next_mark;
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::{MarkKind, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

/// Pause while a mark is due and the log is not the disk.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// The marks that somebody asked for.
#[derive(Debug)]
pub struct Requests {
    assigned: watch::Receiver<AgentVolume>,
    log: Arc<Log>,
    set: Set,
    facts: Arc<Facts>,
    clock: Clock,
    /// Those that promise more than can be kept here, once they were said to.
    refused: BTreeSet<Uuid>,
}

/// Marks set, with the number of the log's restarts then: a restart loses them. One for a volume, whoever sets
/// them: a mark that was asked for is set once.
pub type Set = Arc<Mutex<BTreeMap<Uuid, u64>>>;

/// What the marks on a disk promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    /// Whether the disk is as it was at one instant.
    pub kind: MarkKind,
    /// Blocks of it that cannot be read.
    pub unknown_blocks: u64,
}

impl Promise {
    /// Of a served disk whose log is the disk, but for blocks that cannot be read.
    #[must_use]
    pub fn served(unknown_blocks: u64) -> Self {
        Self { kind: MarkKind::Crash, unknown_blocks }
    }

    /// Of a disk that was read while others may have written to it.
    #[must_use]
    pub fn scanned(unknown_blocks: u64) -> Self {
        Self { kind: MarkKind::Scan, unknown_blocks }
    }

    fn mark(self, point: Uuid, time_unix_ms: u64, is_prompt: bool) -> Mark {
        let Self { kind, unknown_blocks } = self;
        let unknown_blocks = u32::try_from(unknown_blocks).unwrap_or(u32::MAX);
        Mark {
            point: point.into(),
            kind,
            unknown_blocks,
            is_prompt,
            time_unix_ms,
            group: MarkGroup::ALONE,
        }
    }
}

/// What was so before a disk was looked at. The marks that follow from that look are those that were asked for
/// by then, and of that time: what was written before is in them, what is written while it lasts may not be.
#[derive(Debug, Clone)]
pub struct Before {
    asked: Vec<MarkRequest>,
    breaches: u64,
    time_unix_ms: u64,
    at: Timestamp,
}

impl Requests {
    /// The requests in the assignment, but for those of the `set`. That marks are set is told.
    #[must_use]
    pub fn new(
        assigned: watch::Receiver<AgentVolume>,
        log: Arc<Log>,
        set: Set,
        (facts, clock): (Arc<Facts>, Clock),
    ) -> Self {
        Self { assigned, log, set, facts, clock, refused: BTreeSet::new() }
    }

    fn lock(set: &Set) -> MutexGuard<'_, BTreeMap<Uuid, u64>> {
        set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time between two marks.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.assigned.borrow().mark_interval_ms.max(100))
    }

    /// When the mark behind the one is due that was due at `due`: when the node gathers marks, if it says when.
    #[must_use]
    fn next_due(&self, due: Instant) -> Instant {
        let standing = self.facts.standing();
        let gathers_at = standing.borrow().as_ref().and_then(|standing| standing.gathers_at);
        let interval_ms = u64::try_from(self.interval().as_millis()).unwrap_or(u64::MAX);
        let clock = &self.clock;
        clock.instant(next_mark(clock.now(), clock.at(due), interval_ms, gathers_at))
    }

    /// Those that are not set yet.
    #[must_use]
    pub fn open(&mut self) -> Vec<MarkRequest> {
        let restarts = self.log.restarts();
        let assigned = self.assigned.borrow();
        let asked = &assigned.marks_requested;
        let mut set = Self::lock(&self.set);
        set.retain(|point, at| {
            *at == restarts && asked.iter().any(|request| request.point == *point)
        });
        // What a control plane of another version asks for and no agent can keep is not set at all: a
        // point under that id would be taken for what was asked.
        self.refused.retain(|point| asked.iter().any(|request| request.point == *point));
        let mut open = Vec::new();
        for request in asked.iter().filter(|request| !set.contains_key(&request.point)) {
            match request.kind.refusal() {
                None => open.push(*request),
                Some(why) if self.refused.insert(request.point) => {
                    let (point, volume) = (request.point, assigned.volume);
                    tracing::warn!(%volume, %point, "the point is not set: its kind {why}");
                }
                Some(_) => {}
            }
        }
        open
    }

    /// Ready when the assignment changed. Never ready again once nobody assigns any more.
    pub async fn changed(&mut self) {
        if self.assigned.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// To be called before the caller begins to find out whether the log is the disk.
    #[must_use]
    pub fn before(&mut self) -> Before {
        // In this order: what is lost to the log after this shows when the mark is appended.
        let breaches = self.log.breaches();
        let (time_unix_ms, at) = (unix_ms(), self.clock.now());
        Before { asked: self.open(), breaches, time_unix_ms, at }
    }

    /// Sets every mark that was asked for `before` the disk was looked at, and one of the interval if `is_due`
    /// and nobody had asked. False if the log did not take them.
    pub fn set_marks(&mut self, is_due: bool, before: &Before, promise: Promise) -> bool {
        let Before { asked, breaches, time_unix_ms, at } = before;
        let mut open = self.open();
        open.retain(|request| asked.contains(request));
        let restarts = self.log.restarts();
        for request in &open {
            let mark = promise.mark(request.point, *time_unix_ms, true);
            match self.log.append_mark(mark, *breaches) {
                Ok(_) => Self::lock(&self.set).insert(request.point, restarts),
                Err(error) => return note(&error),
            };
        }
        if is_due && open.is_empty() {
            // Over a stream that has not changed no mark is added: none would say more.
            let mark = promise.mark(Uuid::now_v7(), *time_unix_ms, false);
            let set = self.log.mark_or_keep(mark, *breaches);
            if let Err(error) = set {
                return note(&error);
            }
        }
        self.facts.marked(self.clock.now(), *at);
        true
    }

    /// Sets the mark of an orderly stop, whether anything changed or not: what is only kept is gone with
    /// this process.
    pub fn set_last(&mut self, before: &Before, promise: Promise) {
        let mark = promise.mark(Uuid::now_v7(), before.time_unix_ms, false);
        if self.set_marks(false, before, promise)
            && let Err(error) = self.log.append_mark(mark, before.breaches)
        {
            note(&error);
        }
    }
}

fn note(error: &AppendError) -> bool {
    tracing::debug!(%error, "no mark now");
    false
}

/// Sets marks on a served disk until dropped.
pub async fn mark_served(splitter: Arc<Splitter>, mut requests: Requests) {
    let mut due = Instant::now();
    loop {
        let is_due = due <= Instant::now();
        if is_due || !requests.open().is_empty() {
            let before = requests.before();
            let mut is_set = false;
            if splitter.is_consistent() {
                let promise = Promise::served(splitter.unknown_blocks());
                // The log may take long.
                let setting = splitter.elsewhere(move || {
                    let is_set = requests.set_marks(is_due, &before, promise);
                    (requests, is_set)
                });
                (requests, is_set) = match setting.await {
                    Ok(set) => set,
                    Err(error) => return tracing::error!(%error, "no marks are set any more"),
                };
            }
            if is_set {
                if is_due {
                    due = requests.next_due(due);
                }
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY_PAUSE) => {}
                () = requests.changed() => {}
            }
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = requests.changed() => due = due.min(Instant::now() + requests.interval()),
        }
    }
}
