//! Setting marks: at the policy's interval, and whenever somebody asks for one.

use crate::capture::splitter::Splitter;
use crate::clock::unix_ms;
use crate::hrl::{AppendError, Log};
use farshore_api::agent::{AgentVolume, MarkRequest};
use farshore_proto::frame::Mark;
use farshore_proto::{MarkKind, Seq};
use std::collections::BTreeMap;
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
        Self { assigned, log, set }
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
        asked.iter().filter(|request| !self.set.contains_key(&request.point)).copied().collect()
    }

    /// Ready when the assignment changed. Never ready again once nobody assigns any more.
    pub async fn changed(&mut self) {
        if self.assigned.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Sets every mark asked for, and one of the interval if `is_due` and nobody asked. `breaches`
    /// was read before the caller found the log to be the disk. False if the log did not take them.
    pub fn set_marks(&mut self, is_due: bool, breaches: u64) -> bool {
        let open = self.open();
        let restarts = self.log.restarts();
        for request in &open {
            // Nothing here can quiet an application: the promise is that of a crash.
            match self.log.append_mark(mark(request.point, true), breaches) {
                Ok(_) => self.set.insert(request.point, restarts),
                Err(error) => return note(&error),
            };
        }
        if is_due && open.is_empty() {
            let set = self.log.append_mark(mark(Uuid::now_v7(), false), breaches);
            return set.map_or_else(|error| note(&error), |_| true);
        }
        true
    }
}

fn note(error: &AppendError) -> bool {
    tracing::debug!(%error, "no mark now");
    false
}

fn mark(point: Uuid, is_prompt: bool) -> Mark {
    Mark { point: point.into(), kind: MarkKind::Crash, is_prompt, time_unix_ms: unix_ms() }
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
            if splitter.is_consistent() && requests.set_marks(is_due, breaches) {
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
