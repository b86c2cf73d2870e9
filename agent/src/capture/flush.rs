//! Flushing a served disk and its log.
//!
//! Order of a flush: the disk, then the log, then intents may be cleared. The client is answered after the disk
//! alone if the log takes too long.

use super::gate::Durable;
use super::splitter::{Core, Splitter};
use super::steps::{Call, Step};
use crate::hrl::HANG_TIME;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// So long a flush waits for an earlier one's sync of the log.
const TURN_TIME_MAX: Duration = Duration::from_millis(100);

/// Why the disk takes no flush any more.
#[derive(Debug, Clone)]
pub(super) struct FlushFailure {
    code: Option<i32>,
    pub(super) text: String,
}

impl FlushFailure {
    fn error(&self) -> io::Error {
        match self.code {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::other(self.text.clone()),
        }
    }
}

impl Splitter {
    /// Makes durable everything that was answered before the call, on the disk and in the log.
    ///
    /// Flushes that come while one runs share the next one.
    ///
    /// # Errors
    /// If the disk cannot be flushed. If only the log cannot, or takes too long, the intents stay and the disk
    /// is durable: that is what the client asked for.
    pub async fn flush_all(self: &Arc<Self>) -> io::Result<()> {
        self.flush(TURN_TIME_MAX, HANG_TIME).await
    }

    /// The same, and waits for the log however long that takes: nothing comes later.
    ///
    /// # Errors
    /// As [`Splitter::flush_all`].
    pub async fn flush_last(self: &Arc<Self>) -> io::Result<()> {
        self.flush(Duration::MAX, Duration::MAX).await
    }

    /// Waits so long for an earlier sync of the log, and so long for its own.
    async fn flush(self: &Arc<Self>, for_turn: Duration, patience: Duration) -> io::Result<()> {
        let needed = self.flushes_begun.load(Ordering::SeqCst) + 1;
        let mut last_good = self.flush_lane.lock().await;
        if *last_good >= needed {
            return Ok(());
        }
        if let Some(failure) = self.core.flush_failure.get() {
            return Err(failure.error());
        }
        let number = self.flushes_begun.fetch_add(1, Ordering::SeqCst) + 1;
        // While an earlier sync of the log hangs, this flush makes no intent unnecessary.
        let turn = Arc::clone(&self.core.log_turn).acquire_owned();
        let turn = match tokio::time::timeout(for_turn, turn).await {
            Ok(turn) => Some(turn.map_err(io::Error::other)?),
            Err(_) => None,
        };
        if turn.is_some() {
            self.core.gate.flush_begins();
        }
        let core = Arc::clone(&self.core);
        let flushed = self
            .core
            .on_thread(move || {
                core.steps.reach(Step::BeforeFlush)?;
                core.flush_disk()
            })
            .await;
        if let Some(turn) = turn {
            let (core, is_flushed) = (Arc::clone(&self.core), flushed.is_ok());
            let syncing = tokio::task::spawn_blocking(move || {
                core.end_flush(is_flushed);
                drop(turn);
            });
            if tokio::time::timeout(patience, syncing).await.is_err() {
                let path = self.core.disk.path().display();
                tracing::error!(disk = %path, "the log cannot be flushed, it hangs: its intents stay");
            }
        }
        flushed?;
        *last_good = number;
        Ok(())
    }

    /// Flushes when the gate asks for it, until dropped.
    pub async fn flush_when_asked(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.core.gate.wants_flush() => {
                    if self.core.flush_failure.get().is_none()
                        && let Err(error) = self.flush_all().await
                    {
                        let path = self.core.disk.path().display();
                        tracing::error!(disk = %path, %error, "the disk cannot be flushed");
                    }
                }
                () = tokio::time::sleep(Duration::from_secs(1)) => self.core.gate.tick(),
            }
        }
    }
}

impl Core {
    /// The second half of a flush, behind the disk's: the log, however long that takes.
    fn end_flush(&self, is_flushed: bool) {
        let log = self.steps.reach(Step::BetweenFlushes).and_then(|()| self.sync_log());
        if let Err(error) = &log {
            let path = self.disk.path().display();
            tracing::error!(disk = %path, %error, "the log cannot be flushed: its intents stay");
        }
        self.gate.flush_ends(log.ok().filter(|_| is_flushed));
    }

    fn flush_disk(&self) -> io::Result<()> {
        let flushed = self.steps.call(Call::Sync).and_then(|()| self.disk.sync());
        flushed.inspect_err(|error| self.note_flush_failure(error))
    }

    /// Nothing that was written since the last good flush is known to be on the disk, nor is it known
    /// when the system will forget it: no mark, no copy and no flush until the disk is opened anew,
    /// and then all of it is read again.
    fn note_flush_failure(&self, error: &io::Error) {
        let failure = FlushFailure { code: error.raw_os_error(), text: error.to_string() };
        if self.flush_failure.set(failure).is_err() {
            return;
        }
        let path = self.disk.path().display();
        tracing::error!(disk = %path, %error, "the disk cannot be flushed: all of it is in doubt");
        let noted = self.progress.begin_again();
        self.log.stamps().forget();
        match noted {
            Ok(()) => self.progress.resume(),
            // What was written since the last good flush has its intents: those are durable.
            Err(error) => {
                tracing::error!(disk = %path, %error, "that the disk is in doubt cannot be noted");
            }
        }
    }

    fn sync_log(&self) -> io::Result<Durable> {
        // Intents are cleared behind this: what was found to be unknown instead of being logged comes first.
        self.unknown.settle()?;
        let durable = Durable { restarts: self.progress.restarts(), end: self.log.last() };
        self.log.sync()?;
        Ok(durable)
    }
}
