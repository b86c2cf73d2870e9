//! The gate in front of the disk: a write passes once the intent of its regions is durable.
//!
//! Drives [`farshore_engine::doubt`]: gives it what happens, writes the intent file as it says.
//!
//! Before intents are cleared in the file, it is noted how far the log is durable: a log that is found
//! shorter later lost what nobody reads again.

use super::intent::{Changes, IntentMap, Recovered};
use super::prints::Prints;
use super::progress::Progress;
use super::steps::{Step, Steps};
use crate::clock::Clock;
use farshore_engine::doubt::{Doubt, Input, Output, Regions, Settings, Ticket};
use farshore_proto::Seq;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, oneshot};

#[derive(Debug)]
struct Inner {
    doubt: Doubt,
    map: IntentMap,
    next_ticket: u64,
    waiting: BTreeMap<Ticket, oneshot::Sender<bool>>,
    /// What the last good flush made durable of the log.
    durable: Durable,
}

/// What a flush made durable of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Durable {
    /// How often the copy had begun again before the log's end was looked at.
    pub restarts: u64,
    /// The log's end before it was synced.
    pub end: Seq,
}

/// The gate of one disk.
#[derive(Debug)]
pub struct Gate {
    inner: Mutex<Inner>,
    /// Whoever holds this writes the intent file: sectors must not overtake each other.
    lane: tokio::sync::Mutex<()>,
    progress: Arc<Progress>,
    prints: Option<Arc<Prints>>,
    clock: Clock,
    steps: Steps,
    wants_flush: Notify,
    doubt_changed: Notify,
}

/// A write that has passed the gate. It must be ended with [`Gate::leave`].
#[derive(Debug)]
#[must_use]
pub struct Pass {
    ticket: Ticket,
    regions: Regions,
}

/// The file of the intents cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("the intent of a write cannot be made durable")]
pub struct IntentFailed;

enum Errand {
    Persist(Changes),
    Clear(Changes),
}

impl Gate {
    /// A gate over what the intent file held; all of that is in doubt.
    #[must_use]
    pub fn new(
        settings: Settings,
        regions: u64,
        (map, recovered): (IntentMap, Recovered),
        (progress, prints): (Arc<Progress>, Option<Arc<Prints>>),
        clock: Clock,
        steps: Steps,
    ) -> Arc<Self> {
        let doubt = Doubt::new(settings, regions, recovered.regions);
        let (waiting, durable) = (BTreeMap::new(), Durable::default());
        let inner = Inner { doubt, map, next_ticket: 1, waiting, durable };
        Arc::new(Self {
            inner: Mutex::new(inner),
            lane: tokio::sync::Mutex::default(),
            progress,
            prints,
            clock,
            steps,
            wants_flush: Notify::new(),
            doubt_changed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the machine one input and carries out what it says.
    fn step(self: &Arc<Self>, inner: &mut Inner, input: Input) {
        let mut out = Vec::new();
        inner.doubt.step(self.clock.now(), input, &mut out);
        for output in out {
            match output {
                Output::Go { ticket } => inner.answer(ticket, true),
                Output::Refuse { ticket } => inner.answer(ticket, false),
                Output::PersistIntent { regions } => {
                    inner.map.set(&regions);
                    tokio::spawn(Arc::clone(self).persist());
                }
                Output::ClearIntent { regions } => {
                    let durable = inner.durable;
                    tokio::spawn(Arc::clone(self).write_cleared(regions, durable));
                }
                Output::Flush => self.wants_flush.notify_one(),
            }
        }
    }

    /// Waits until the intents of these regions are durable.
    ///
    /// # Errors
    /// If they cannot be made so; the write must not begin.
    ///
    /// # Cancel safety
    /// Not cancel-safe: a pass that nobody takes is never ended.
    pub async fn enter(self: &Arc<Self>, regions: Regions) -> Result<Pass, IntentFailed> {
        let (ticket, mut is_let_go) = {
            let mut inner = self.lock();
            let ticket = Ticket(inner.next_ticket);
            inner.next_ticket += 1;
            let (sender, receiver) = oneshot::channel();
            inner.waiting.insert(ticket, sender);
            self.step(&mut inner, Input::Writing { ticket, regions });
            (ticket, receiver)
        };
        let is_let_go = match is_let_go.try_recv() {
            Ok(answer) => answer,
            Err(_) => is_let_go.await.unwrap_or(false),
        };
        if is_let_go { Ok(Pass { ticket, regions }) } else { Err(IntentFailed) }
    }

    /// Ends a write: it is on the disk and in the log, or in doubt if it is not `is_logged`.
    pub fn leave(self: &Arc<Self>, pass: Pass, is_logged: bool) {
        let mut inner = self.lock();
        if !is_logged {
            self.step(&mut inner, Input::Overflow { regions: pass.regions });
            self.doubt_changed.notify_one();
        }
        self.step(&mut inner, Input::Written { ticket: pass.ticket });
    }

    async fn persist(self: Arc<Self>) {
        let written = self.write_file().await;
        if let Err(error) = &written {
            tracing::error!(%error, "the intent file cannot be written");
        }
        let input = if written.is_ok() { Input::IntentDurable } else { Input::IntentFailed };
        let mut inner = self.lock();
        self.step(&mut inner, input);
    }

    async fn write_cleared(self: Arc<Self>, regions: Vec<u64>, durable: Durable) {
        match self.note(durable).await {
            Ok(true) => {}
            // The log is another one by now.
            Ok(false) => return,
            Err(error) => {
                return tracing::warn!(%error, "intents are not cleared: the state cannot be written");
            }
        }
        let written = {
            let _lane = self.lane.lock().await;
            let changes = {
                let mut inner = self.lock();
                // What was written meanwhile has its intent again.
                let cleared: Vec<u64> =
                    regions.into_iter().filter(|region| !inner.doubt.has_intent(*region)).collect();
                inner.map.clear(&cleared);
                inner.map.take_cleared()
            };
            self.run(Errand::Clear(changes)).await
        };
        if let Err(error) = written {
            tracing::warn!(%error, "cleared intents cannot be written");
        }
    }

    /// Notes what is durable of the log, and of what was sent; false if the log was emptied since.
    async fn note(self: &Arc<Self>, durable: Durable) -> io::Result<bool> {
        let (progress, prints) = (Arc::clone(&self.progress), self.prints.clone());
        let note = move || {
            prints.map_or(Ok(()), |prints| prints.sync())?;
            progress.note_logged(durable.end, durable.restarts)
        };
        tokio::task::spawn_blocking(note).await.map_err(io::Error::other)?
    }

    /// Writes what changed, durably.
    async fn write_file(self: &Arc<Self>) -> io::Result<()> {
        let _lane = self.lane.lock().await;
        let changes = self.lock().map.take_changes();
        self.run(Errand::Persist(changes)).await
    }

    /// Runs an errand; the caller has the lane.
    async fn run(&self, errand: Errand) -> io::Result<()> {
        let steps = self.steps.clone();
        let task = tokio::task::spawn_blocking(move || errand.run(&steps));
        task.await.map_err(io::Error::other)?
    }

    /// Notes that a flush of disk and log begins.
    pub fn flush_begins(self: &Arc<Self>) {
        let mut inner = self.lock();
        self.step(&mut inner, Input::FlushBegun);
    }

    /// Notes how the flush ended: what it made durable of the log, if disk and log took it.
    pub fn flush_ends(self: &Arc<Self>, durable: Option<Durable>) {
        let mut inner = self.lock();
        let input = match durable {
            Some(durable) => {
                inner.durable = durable;
                Input::Flushed
            }
            None => Input::FlushFailed,
        };
        self.step(&mut inner, input);
    }

    /// Notes that the log joins the node's stream.
    pub fn joined(self: &Arc<Self>) {
        let mut inner = self.lock();
        self.step(&mut inner, Input::Joined);
        self.doubt_changed.notify_one();
    }

    /// Puts everything with an intent in doubt.
    pub fn doubt_all(self: &Arc<Self>) {
        let mut inner = self.lock();
        self.step(&mut inner, Input::DoubtAll);
        self.doubt_changed.notify_one();
    }

    /// Notes that a region in doubt is in the log; the caller holds its blocks.
    pub fn reread(self: &Arc<Self>, region: u64) {
        let mut inner = self.lock();
        if inner.doubt.is_in_doubt(region) {
            self.step(&mut inner, Input::ReRead { region });
        }
    }

    /// The disk has so many regions from now on.
    ///
    /// # Errors
    /// What the system said; then it is as it was.
    pub async fn grow(self: &Arc<Self>, regions: u64) -> io::Result<()> {
        let _lane = self.lane.lock().await;
        let growth = self.lock().map.growth(regions);
        let made = tokio::task::spawn_blocking(move || growth.make());
        made.await.map_err(io::Error::other)??;
        let mut inner = self.lock();
        inner.map.grown(regions);
        self.step(&mut inner, Input::Grown { regions });
        Ok(())
    }

    /// Lets time pass.
    pub fn tick(self: &Arc<Self>) {
        let mut inner = self.lock();
        self.step(&mut inner, Input::Tick);
    }

    /// Clears every intent that the last flush made unnecessary, durably. No write may be under
    /// way, nor have been since that flush began, nor come later.
    ///
    /// # Errors
    /// What the system said; then the next start reads those regions again.
    pub async fn stop(self: &Arc<Self>) -> io::Result<()> {
        let durable = self.lock().durable;
        if !self.note(durable).await? {
            return Ok(());
        }
        {
            let mut inner = self.lock();
            let mut out = Vec::new();
            inner.doubt.step(self.clock.now(), Input::Stopped, &mut out);
            for output in out {
                if let Output::ClearIntent { regions } = output {
                    inner.map.clear(&regions);
                }
            }
        }
        self.write_file().await
    }

    /// Regions in doubt.
    #[must_use]
    pub fn in_doubt(&self) -> u64 {
        self.lock().doubt.in_doubt()
    }

    /// The next region to read again.
    #[must_use]
    pub fn next_in_doubt(&self) -> Option<u64> {
        self.lock().doubt.next_in_doubt()
    }

    /// Ready when the machine asks for a flush.
    pub async fn wants_flush(&self) {
        self.wants_flush.notified().await;
    }

    /// Ready when regions came into doubt or may be read again now.
    pub async fn doubt_changed(&self) {
        self.doubt_changed.notified().await;
    }
}

impl Inner {
    fn answer(&mut self, ticket: Ticket, is_let_go: bool) {
        if let Some(sender) = self.waiting.remove(&ticket) {
            // A writer that went away has left its pass open; nothing is cleared under it then.
            let _ = sender.send(is_let_go);
        }
    }
}

impl Errand {
    fn run(self, steps: &Steps) -> io::Result<()> {
        match self {
            Self::Persist(changes) => {
                steps.reach(Step::BeforeIntent)?;
                changes.write()?;
                steps.reach(Step::AfterIntent)
            }
            Self::Clear(changes) => {
                steps.reach(Step::BeforeClear)?;
                changes.write()
            }
        }
    }
}
