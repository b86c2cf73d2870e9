//! Setting marks: at the policy's interval, and whenever somebody asks for one.

use crate::capture::splitter::Splitter;
use crate::clock::unix_ms;
use crate::hrl::{AppendError, Log};
use farshore_api::agent::{AgentVolume, MarkRequest};
use farshore_proto::frame::Mark;
use farshore_proto::{MarkKind, Seq};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
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
    /// Marks set, with the number of the log's restarts then: a restart loses them.
    set: BTreeMap<Uuid, u64>,
    /// Those that promise more than can be kept here, once they were said to.
    refused: BTreeSet<Uuid>,
}

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

    fn mark(self, point: Uuid, is_prompt: bool) -> Mark {
        let Self { kind, unknown_blocks } = self;
        let unknown_blocks = u32::try_from(unknown_blocks).unwrap_or(u32::MAX);
        Mark { point: point.into(), kind, unknown_blocks, is_prompt, time_unix_ms: unix_ms() }
    }
}

impl Requests {
    /// The requests in the assignment; those in `recovered` are in the log already.
    #[must_use]
    pub fn new(
        assigned: watch::Receiver<AgentVolume>,
        log: Arc<Log>,
        recovered: &[(Seq, Mark)],
    ) -> Self {
        let restarts = log.restarts();
        let set = recovered.iter().map(|(_, mark)| (Uuid::from(mark.point), restarts)).collect();
        Self { assigned, log, set, refused: BTreeSet::new() }
    }

    /// Time between two marks.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.assigned.borrow().mark_interval_ms.max(100))
    }

    /// Those that are not set yet.
    #[must_use]
    pub fn open(&mut self) -> Vec<MarkRequest> {
        let restarts = self.log.restarts();
        let assigned = self.assigned.borrow();
        let asked = &assigned.marks_requested;
        self.set.retain(|point, at| {
            *at == restarts && asked.iter().any(|request| request.point == *point)
        });
        // What a control plane of another version asks for and no agent can keep is not set at all: a
        // point under that id would be taken for what was asked.
        self.refused.retain(|point| asked.iter().any(|request| request.point == *point));
        let mut open = Vec::new();
        for request in asked.iter().filter(|request| !self.set.contains_key(&request.point)) {
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

    /// Sets every mark asked for, and one of the interval if `is_due` and nobody asked. `breaches`
    /// was read before the caller found the log to be the disk. False if the log did not take them.
    pub fn set_marks(&mut self, is_due: bool, breaches: u64, promise: Promise) -> bool {
        let open = self.open();
        let restarts = self.log.restarts();
        for request in &open {
            match self.log.append_mark(promise.mark(request.point, true), breaches) {
                Ok(_) => self.set.insert(request.point, restarts),
                Err(error) => return note(&error),
            };
        }
        if is_due && open.is_empty() {
            // Over a stream that has not changed no mark is added: none would say more.
            let set = self.log.mark_or_keep(promise.mark(Uuid::now_v7(), false), breaches);
            return set.map_or_else(|error| note(&error), |_| true);
        }
        true
    }

    /// Sets the mark of an orderly stop, whether anything changed or not: what is only kept is gone with
    /// this process.
    pub fn set_last(&mut self, breaches: u64, promise: Promise) {
        if self.set_marks(false, breaches, promise)
            && let Err(error) = self.log.append_mark(promise.mark(Uuid::now_v7(), false), breaches)
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
    let log = Arc::clone(&requests.log);
    let mut due = Instant::now();
    loop {
        let is_due = due <= Instant::now();
        if is_due || !requests.open().is_empty() {
            // In this order: what is lost to the log after this shows when the mark is appended.
            let breaches = log.breaches();
            let mut is_set = false;
            if splitter.is_consistent() {
                let promise = Promise::served(splitter.unknown_blocks());
                // The log may take long.
                let setting = splitter.elsewhere(move || {
                    let is_set = requests.set_marks(is_due, breaches, promise);
                    (requests, is_set)
                });
                (requests, is_set) = match setting.await {
                    Ok(set) => set,
                    Err(error) => return tracing::error!(%error, "no marks are set any more"),
                };
            }
            if is_set {
                if is_due {
                    due = (due + requests.interval()).max(Instant::now());
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
