//! The gate in front of the disk: a write passes once the intent of its regions is durable.
//!
//! Drives [`farshore_engine::doubt`]: gives it what happens, writes the intent file as it says.
//!
//! A file that takes no intent, or hangs, keeps no write from its disk: it is made void first, so that the
//! next start reads the whole disk, and made anew as soon as it takes something again.
//!
//! Before intents are cleared in the file, it is noted how far the log is durable: a log that is found
//! shorter later lost what nobody reads again.

use super::intent::{Changes, IntentMap, Recovered};
use super::prints::Prints;
use super::progress::Progress;
use super::steps::{Step, Steps};
use crate::clock::Clock;
use farshore_engine::doubt::{Doubt, Input, Output, Regions, Settings, Ticket};
use farshore_proto::{Seq, Timestamp};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedMutexGuard, oneshot};

/// A write waits so long for its intent: a file that takes longer hangs, and is void.
#[cfg(not(test))]
const INTENT_TIME_MAX: Duration = Duration::from_secs(10);
#[cfg(test)]
const INTENT_TIME_MAX: Duration = Duration::from_secs(2);
/// Between two notes that the disk was written by us; see [`Gate::touch`].
const TOUCH_PAUSE_MS: u64 = 20;
/// So long a write waits for such a note.
const TOUCH_TIME_MAX: Duration = Duration::from_secs(1);
/// Between two attempts to mend intents that are void.
const MEND_PAUSE_MS: u64 = 2_000;

#[derive(Debug)]
struct Inner {
    doubt: Doubt,
    map: IntentMap,
    next_ticket: u64,
    waiting: BTreeMap<Ticket, oneshot::Sender<()>>,
    /// Why the intents are void, while they are.
    void: Option<Void>,
    touched_at: Option<Timestamp>,
    /// Whether that is still under way: on a disk that hangs there is only one.
    is_touching: Arc<AtomicBool>,
    /// What the last good flush made durable of the log.
    durable: Durable,
}

/// Intents that count for nothing.
#[derive(Debug)]
struct Void {
    why: String,
    /// Whether the next start learns of it.
    is_noted: bool,
    /// When it was tried last to end it.
    tried_at: Timestamp,
    is_being_mended: bool,
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
    lane: Arc<tokio::sync::Mutex<()>>,
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

enum Errand {
    Persist(Changes),
    Clear(Changes),
}

impl Gate {
    /// A gate over what the intent file held; all of that is in doubt. With intents that are void, every
    /// write goes ahead at once.
    #[must_use]
    pub fn new(
        settings: Settings,
        regions: u64,
        (map, recovered): (IntentMap, Recovered),
        (progress, prints): (Arc<Progress>, Option<Arc<Prints>>),
        clock: Clock,
        steps: Steps,
    ) -> Arc<Self> {
        let mut doubt = Doubt::new(settings, regions, recovered.regions);
        let (waiting, durable) = (BTreeMap::new(), Durable::default());
        let now = clock.now();
        let void = map.is_void().then(|| {
            doubt.step(now, Input::Voided, &mut Vec::new());
            let why = "the file of its intents cannot be opened".to_owned();
            Void { why, is_noted: false, tried_at: now, is_being_mended: false }
        });
        let inner = Inner {
            doubt,
            map,
            next_ticket: 1,
            waiting,
            void,
            touched_at: None,
            is_touching: Arc::default(),
            durable,
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            lane: Arc::default(),
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
                Output::Go { ticket } => inner.let_go(ticket),
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

    /// Waits until the intents of these regions are durable, or void.
    ///
    /// # Cancel safety
    /// Not cancel-safe: a pass that nobody takes is never ended.
    pub async fn enter(self: &Arc<Self>, regions: Regions) -> Pass {
        let (ticket, is_let_go) = {
            let mut inner = self.lock();
            let ticket = Ticket(inner.next_ticket);
            inner.next_ticket += 1;
            let (sender, receiver) = oneshot::channel();
            inner.waiting.insert(ticket, sender);
            self.step(&mut inner, Input::Writing { ticket, regions });
            (ticket, receiver)
        };
        // The sender is kept until it lets the write go.
        let _ = is_let_go.await;
        Pass { ticket, regions }
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

    /// Gives the intents the present time, lately enough: a start takes a disk that was changed later than
    /// all files of its volume for written by others, and a write that is not logged changes none of them.
    pub async fn touch(&self) {
        let (file, is_touching) = {
            let (now, mut inner) = (self.clock.now(), self.lock());
            let is_late = inner.touched_at.is_none_or(|at| now.since_ms(at) >= TOUCH_PAUSE_MS)
                && !inner.is_touching.load(Ordering::SeqCst);
            let Some(file) = inner.map.file().filter(|_| is_late) else { return };
            inner.touched_at = Some(now);
            inner.is_touching.store(true, Ordering::SeqCst);
            (file, Arc::clone(&inner.is_touching))
        };
        let touching = tokio::task::spawn_blocking(move || {
            super::intent::touch(&*file);
            is_touching.store(false, Ordering::SeqCst);
        });
        let _ = tokio::time::timeout(TOUCH_TIME_MAX, touching).await;
    }

    /// Intents are made void, because a start must read the whole disk and that cannot be noted elsewhere. Once
    /// that is possible it goes on as after any other failure of theirs.
    pub fn give_up(self: &Arc<Self>, why: &io::Error) {
        if self.lock().void.is_some() {
            return;
        }
        let (gate, why) = (Arc::clone(self), io::Error::new(why.kind(), why.to_string()));
        tokio::spawn(async move { gate.void(&why).await });
    }

    async fn persist(self: Arc<Self>) {
        match self.write_file().await {
            Ok(()) => {
                let mut inner = self.lock();
                self.step(&mut inner, Input::IntentDurable);
            }
            Err(error) => self.void(&error).await,
        }
    }

    /// Intents cannot be had: that is noted, as durably as it can be, before any write goes ahead without.
    async fn void(self: &Arc<Self>, error: &io::Error) {
        tracing::error!(%error, "intents cannot be relied on: writes go on without");
        let voiding = self.lock().map.void();
        // Behind what hangs nobody waits any longer than that.
        let hangs = error.kind() == io::ErrorKind::TimedOut;
        let patience = if hangs { INTENT_TIME_MAX / 10 } else { INTENT_TIME_MAX };
        let writing = voiding.clone();
        let noted = self.in_lane(patience, move || writing.write()).await;
        if let Err(error) = &noted {
            let outlasts_a_kill = voiding.note();
            tracing::error!(%error, ?outlasts_a_kill, "that there are no intents cannot be noted either");
        }
        let mut inner = self.lock();
        let (why, tried_at) = (error.to_string(), self.clock.now());
        let is_noted = noted.is_ok();
        inner.void = Some(Void { why, is_noted, tried_at, is_being_mended: false });
        self.step(&mut inner, Input::Voided);
    }

    /// Tries to end that intents are void: the file is made anew, with intents of all regions.
    async fn mend(self: Arc<Self>) {
        let is_noted = self.lock().void.as_ref().is_some_and(|void| void.is_noted);
        if !is_noted {
            let voiding = self.lock().map.void();
            if self.in_lane(INTENT_TIME_MAX, move || voiding.write()).await.is_ok()
                && let Some(void) = &mut self.lock().void
            {
                void.is_noted = true;
            }
        }
        let (layout, regions) = {
            let mut inner = self.lock();
            (inner.map.lay_out(0xff), inner.map.regions())
        };
        let mended = self.in_lane(INTENT_TIME_MAX, move || layout.write()).await;
        let mut inner = self.lock();
        match mended {
            // One that was made for a smaller disk is made again.
            Ok(file) if inner.map.regions() == regions => {
                inner.map.mended(file);
                inner.void = None;
                self.step(&mut inner, Input::Mended);
                tracing::info!("intents can be written again");
            }
            mended => {
                tracing::debug!(?mended, "intents still cannot be written");
                if let Some(void) = &mut inner.void {
                    void.is_being_mended = false;
                }
            }
        }
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
        let lane = Arc::clone(&self.lane).lock_owned().await;
        let changes = {
            let mut inner = self.lock();
            // What was written meanwhile has its intent again.
            let cleared: Vec<u64> =
                regions.into_iter().filter(|region| !inner.doubt.has_intent(*region)).collect();
            inner.map.clear(&cleared);
            inner.map.take_cleared()
        };
        let (indices, steps) = (changes.indices(), self.steps.clone());
        let write = move || (Errand::Clear(changes).run(&steps), lane);
        match tokio::task::spawn_blocking(write).await {
            Ok((Ok(()), _lane)) => {}
            Ok((Err(error), lane)) => {
                tracing::warn!(%error, "cleared intents cannot be written");
                self.lock().map.unwritten(indices);
                // Only now may somebody else write the file.
                drop(lane);
            }
            Err(error) => tracing::error!(%error, "the writing of cleared intents was cut off"),
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
        let written = async {
            let lane = Arc::clone(&self.lane).lock_owned().await;
            let changes = self.lock().map.take_changes();
            self.run(lane, Errand::Persist(changes)).await
        };
        tokio::time::timeout(INTENT_TIME_MAX, written).await.map_err(|_| hangs()).flatten()
    }

    async fn run(&self, lane: OwnedMutexGuard<()>, errand: Errand) -> io::Result<()> {
        let steps = self.steps.clone();
        let task = tokio::task::spawn_blocking(move || {
            let written = errand.run(&steps);
            // Kept by what hangs, whoever waits for it no longer.
            drop(lane);
            written
        });
        task.await.map_err(io::Error::other)?
    }

    /// Makes the intent file void or anew, within `patience`.
    async fn in_lane<T: Send + 'static>(
        &self,
        patience: Duration,
        write: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let steps = self.steps.clone();
        let written = async {
            let lane = Arc::clone(&self.lane).lock_owned().await;
            let task = tokio::task::spawn_blocking(move || {
                let written = steps.reach(Step::BeforeVoid).and_then(|()| write());
                drop(lane);
                written
            });
            task.await.map_err(io::Error::other)?
        };
        tokio::time::timeout(patience, written).await.map_err(|_| hangs()).flatten()
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

    /// The disk has so many regions from now on. Intents that are void grow in memory, and so do those for
    /// which there is no room in their file: they are void from then on.
    pub async fn grow(self: &Arc<Self>, regions: u64) {
        if self.lock().void.is_none() {
            let made = tokio::time::timeout(INTENT_TIME_MAX, self.make_room(regions)).await;
            match made.map_err(|_| hangs()).flatten() {
                Ok(lane) => {
                    self.has_grown(regions);
                    return drop(lane);
                }
                Err(error) => self.void(&error).await,
            }
        }
        self.has_grown(regions);
    }

    async fn make_room(&self, regions: u64) -> io::Result<OwnedMutexGuard<()>> {
        let lane = Arc::clone(&self.lane).lock_owned().await;
        let growth = {
            let inner = self.lock();
            // A header would make them count again.
            if inner.map.is_void() {
                return Err(io::Error::other("they are void"));
            }
            inner.map.growth(regions)
        };
        let made = tokio::task::spawn_blocking(move || growth.make().map(|()| lane));
        made.await.map_err(io::Error::other)?
    }

    fn has_grown(self: &Arc<Self>, regions: u64) {
        let mut inner = self.lock();
        inner.map.grown(regions);
        self.step(&mut inner, Input::Grown { regions });
    }

    /// Lets time pass.
    pub fn tick(self: &Arc<Self>) {
        let now = self.clock.now();
        let mut inner = self.lock();
        self.step(&mut inner, Input::Tick);
        if let Some(void) = &mut inner.void
            && !void.is_being_mended
            && now.since_ms(void.tried_at) >= MEND_PAUSE_MS
        {
            (void.tried_at, void.is_being_mended) = (now, true);
            tokio::spawn(Arc::clone(self).mend());
        }
    }

    /// Why there are no intents, in words; none while there are.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.lock().void.as_ref().map(|void| void.why.clone())
    }

    /// Clears every intent that the last flush made unnecessary, durably. No write may be under
    /// way, nor have been since that flush began, nor come later.
    ///
    /// # Errors
    /// What the system said; then the next start reads those regions again, or, if the intents are void, the
    /// whole disk.
    pub async fn stop(self: &Arc<Self>) -> io::Result<()> {
        if let Some(why) = self.trouble() {
            return Err(io::Error::other(why));
        }
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
    fn let_go(&mut self, ticket: Ticket) {
        if let Some(sender) = self.waiting.remove(&ticket) {
            // A writer that went away has left its pass open; nothing is cleared under it then.
            let _ = sender.send(());
        }
    }
}

fn hangs() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it hangs")
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

#[cfg(test)]
mod tests;
