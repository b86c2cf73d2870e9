//! How far the copy of the whole disk has come, and whether it must begin again.

use crate::state::StateFile;
use farshore_proto::Seq;
use farshore_proto::limits::BLOCK_BYTES;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

#[derive(Debug, Clone, Copy)]
struct Inner {
    cursor: u64,
    /// Grows whenever what was done counts for nothing any more.
    generation: u64,
    end: Option<Seq>,
    is_resync: bool,
    /// The copy that has come to its end without that being noted.
    unnoted: Option<Lease>,
    /// How many restart the log, or let the disk grow: nothing is consistent until that is over.
    holds: u32,
    /// Number of the state's change by which the copy began again, if that could not be noted at once: a start
    /// would go on as if it had not, so nothing is consistent before.
    begun: u64,
}

/// The copy of one disk.
#[derive(Debug)]
pub struct Progress {
    state: Arc<StateFile>,
    inner: Mutex<Inner>,
    changed: Notify,
}

/// What a copy works on; void once the copy begins again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Byte from which on the copy is not done.
    pub cursor: u64,
    /// Names this copy.
    pub generation: u64,
}

/// Whether the log, up to its end, is the disk, so that a mark may be set: the whole disk was copied,
/// no restart of the log is under way and no region is in doubt.
///
/// Who sets a mark asks [`Log::breaches`] first, then this, then gives what it was told to
/// [`Log::append_mark`]: a change that is lost to the log in between refuses the mark.
///
/// [`Log::breaches`]: crate::hrl::Log::breaches
/// [`Log::append_mark`]: crate::hrl::Log::append_mark
#[must_use]
pub fn is_consistent(progress: &Progress, regions_in_doubt: u64) -> bool {
    progress.end().is_some() && regions_in_doubt == 0
}

impl Progress {
    /// Goes on from what the state says.
    #[must_use]
    pub fn new(state: Arc<StateFile>) -> Self {
        let copy = state.get().copy;
        let inner = Inner {
            cursor: copy.done_bytes,
            generation: 0,
            end: copy.end_seq.map(Seq),
            is_resync: copy.is_resync,
            unnoted: None,
            holds: 0,
            begun: 0,
        };
        Self { state, inner: Mutex::new(inner), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the copy again, durably, and holds back marks until [`Progress::resume`]; blocks.
    ///
    /// # Errors
    /// What the system said: then it has begun in memory only, and marks are held back until that is noted
    /// with whatever the state is told next, or by [`Progress::note`].
    pub fn begin_again(&self) -> io::Result<()> {
        let generation = {
            let mut inner = self.lock();
            inner.holds += 1;
            inner.generation + 1
        };
        let written = self.state.update(|state| {
            let had_begun = state.copy.end_seq.is_some() || state.copy.is_resync;
            state.copy.is_resync = had_begun;
            state.copy.done_bytes = 0;
            state.copy.end_seq = None;
            state.copy.generation += 1;
            state.logged = 0;
        });
        // The state's lock comes before ours everywhere.
        let (is_resync, begun) = (self.state.get().copy.is_resync, self.state.number());
        let mut inner = self.lock();
        inner.generation = generation;
        inner.cursor = 0;
        inner.end = None;
        inner.unnoted = None;
        inner.is_resync = is_resync;
        if written.is_err() {
            inner.holds -= 1;
            inner.begun = begun;
        }
        written
    }

    /// Notes that the copy has begun again, if that could not be noted then; blocks.
    ///
    /// # Errors
    /// What the system said: then it is to be tried again later.
    pub fn note(&self) -> io::Result<()> {
        if self.is_unnoted() { self.state.update(|_| ()) } else { Ok(()) }
    }

    /// Whether the copy has begun again and a start would not know of it.
    #[must_use]
    pub fn is_unnoted(&self) -> bool {
        let written = self.state.written();
        self.lock().begun > written
    }

    /// Holds back marks until [`Progress::resume`], without beginning again.
    pub fn hold(&self) {
        self.lock().holds += 1;
    }

    /// Ends [`Progress::begin_again`] or [`Progress::hold`]. What was copied since then was put
    /// into a log that is gone: a copy under way starts over.
    pub fn resume(&self) {
        let saved = self.state.get().copy.done_bytes;
        let mut inner = self.lock();
        inner.holds = inner.holds.saturating_sub(1);
        if inner.end.is_none() {
            inner.generation += 1;
            inner.cursor = saved;
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// The disk grows from `old_bytes` to `size_bytes`: what is behind is copied, and no mark is set before
    /// its end. `grow` lets it be seen. Blocks.
    pub fn grow(&self, old_bytes: u64, size_bytes: u64, grow: impl FnOnce()) {
        // The last block may have been held in part.
        let from = old_bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        self.hold();
        let written = self.state.update(|state| {
            state.size_bytes = size_bytes;
            state.copy.done_bytes = state.copy.done_bytes.min(from);
            state.copy.end_seq = None;
        });
        if let Err(error) = written {
            // It holds in memory. A crash before the next update finds intents of another size, and all
            // of the disk is read again.
            tracing::warn!(%error, "that the disk has grown is not noted durably yet");
        }
        self.lock().end = None;
        grow();
        self.resume();
    }

    /// What is to be copied; none when all of it is in the log or a restart is under way.
    #[must_use]
    pub fn lease(&self) -> Option<Lease> {
        let inner = self.lock();
        let is_open = inner.end.is_none() && inner.holds == 0;
        is_open.then_some(Lease { cursor: inner.cursor, generation: inner.generation })
    }

    /// Notes that everything below `cursor` is in the log; false if the lease is void.
    #[must_use]
    pub fn advance(&self, lease: Lease, cursor: u64) -> bool {
        let mut inner = self.lock();
        let is_good = inner.generation == lease.generation && inner.holds == 0;
        if is_good {
            inner.cursor = cursor;
        }
        is_good
    }

    /// Makes the cursor durable. The log must have been synced up to `end` after it was advanced.
    /// Blocks.
    ///
    /// # Errors
    /// What the system said; a restart of the agent copies a little more.
    pub fn save(&self, lease: Lease, cursor: u64, end: Seq) -> io::Result<()> {
        self.state.update(|state| {
            let inner = self.lock();
            if inner.generation == lease.generation && inner.holds == 0 {
                state.copy.done_bytes = cursor;
                state.logged = state.logged.max(end.0);
            }
        })
    }

    /// Notes durably that the log holds everything up to `end`, so that intents may be cleared; blocks.
    /// `restarts` was read before the end of the log was. False if the copy began again since: then the
    /// log is another one.
    ///
    /// # Errors
    /// What the system said; then no intent may be cleared.
    pub fn note_logged(&self, end: Seq, restarts: u64) -> io::Result<bool> {
        let mut is_good = false;
        self.state.update(|state| {
            is_good = state.copy.generation == restarts;
            if is_good {
                state.logged = state.logged.max(end.0);
            }
        })?;
        Ok(is_good)
    }

    /// Ends the copy: all of it is in the log, up to `end`, durably. False if the lease is void.
    /// Blocks.
    ///
    /// # Errors
    /// What the system said; a restart of the agent copies again.
    pub fn finish(&self, lease: Lease, end: Seq) -> io::Result<bool> {
        let mut is_good = false;
        let written = self.state.update(|state| {
            let mut inner = self.lock();
            is_good = inner.generation == lease.generation && inner.holds == 0;
            if is_good {
                inner.end = Some(end);
                inner.unnoted = None;
                inner.cursor = state.size_bytes;
                state.copy.end_seq = Some(end.0);
                state.logged = state.logged.max(end.0);
                state.copy.done_bytes = state.size_bytes;
            }
        });
        self.changed.notify_waiters();
        written.map(|()| is_good)
    }

    /// Ends the copy for this run of the agent only: something that a start must know of it cannot be noted.
    /// [`Progress::finish`] is for later.
    pub fn finish_unnoted(&self, lease: Lease, end: Seq) {
        let size_bytes = self.state.get().size_bytes;
        let mut inner = self.lock();
        if inner.generation == lease.generation && inner.holds == 0 {
            inner.end = Some(end);
            inner.cursor = size_bytes;
            inner.unnoted = Some(lease);
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// The copy that has come to its end without that being noted.
    #[must_use]
    pub fn unnoted(&self) -> Option<Lease> {
        self.lock().unnoted
    }

    /// Last seq of the copy, once all of it is in the log and no restart is under way or unknown to a start.
    #[must_use]
    pub fn end(&self) -> Option<Seq> {
        let written = self.state.written();
        let inner = self.lock();
        if inner.holds > 0 || inner.begun > written { None } else { inner.end }
    }

    /// Whether a restart of the log is under way.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.lock().holds > 0
    }

    /// Whether the disk had been copied before.
    #[must_use]
    pub fn is_resync(&self) -> bool {
        self.lock().is_resync
    }

    /// How often the copy has begun again, over all runs of the agent.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.state.get().copy.generation
    }

    /// Bytes done.
    #[must_use]
    pub fn cursor(&self) -> u64 {
        self.lock().cursor
    }

    /// Ready when the copy begins again or ends; may be ready without reason.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}
