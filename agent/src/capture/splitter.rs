//! The write splitter: an NBD backend that puts every change of the disk into the log as well.
//!
//! Order of a write: its regions' intents durable (the [`Gate`]) → its blocks locked → the disk →
//! the log → the answer. A crash between any two leaves at most regions with an intent different,
//! and those are read again. A change that the log does not take (full, no space, its file system hangs) puts
//! its regions in doubt instead; the client notices nothing, but for a moment when such a hang begins.
//!
//! Changes off the 4 KiB grid are logged as whole blocks, see [`super::change`].

use super::change::Change;
use super::flush::FlushFailure;
use super::gate::{Gate, Pass};
use super::prints::Prints;
use super::progress::{Progress, is_consistent};
use super::ranges::RangeLocks;
use super::sample::Sampled;
use super::steps::{Call, Step, Steps};
use super::underway::Underway;
use super::unknown::Unknown;
use crate::disk::Disk;
use crate::hrl::{AppendError, Entry, Log};
use bytes::Bytes;
use farshore_engine::doubt::Regions;
use farshore_nbd::{Backend, BackendError, Piece};
use farshore_proto::limits::blocks_of;
use farshore_proto::{BlockRange, Seq};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Writes up to this size stay on the thread that took them off the wire if disk and log take them without
/// waiting: handing them to another would take longer than writing them.
const INLINE_BYTES_MAX: usize = 128 << 10;
/// Threads that wait for one disk at a time: a disk that hangs holds no more of them, and the other
/// disks go on.
pub const THREADS_MAX: usize = 16;

/// A disk with its log.
#[derive(Debug)]
pub struct Splitter {
    pub(super) core: Arc<Core>,
    /// Holds the number of the last flush that went well.
    pub(super) flush_lane: tokio::sync::Mutex<u64>,
    pub(super) flushes_begun: AtomicU64,
}

/// What the blocking half of a write needs.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) disk: Arc<Disk>,
    pub(super) log: Arc<Log>,
    pub(super) locks: RangeLocks,
    pub(super) gate: Arc<Gate>,
    pub(super) progress: Arc<Progress>,
    pub(super) unknown: Arc<Unknown>,
    /// What was sent of each block; none if that cannot be kept, or is not wanted.
    pub(super) prints: Option<Arc<Prints>>,
    pub(super) sampled: Sampled,
    /// Whether the sampler has found what differs and it is not in doubt yet.
    pub(super) differs: AtomicBool,
    /// Whether the stream is about to have another size: marks of before are to be in the vault first.
    is_growing: AtomicBool,
    pub(super) steps: Steps,
    /// Why the log did not take the last change that it was given; empty if it did.
    log_trouble: Mutex<String>,
    is_log_full: AtomicBool,
    /// Last seq of the regions read again; what is below it is settled once it is committed.
    pub(super) reread_end: AtomicU64,
    /// Regions read again since none was in doubt.
    pub(super) reread_regions: AtomicU64,
    pub(super) flush_failure: OnceLock<FlushFailure>,
    /// Held by who waits for the disk.
    threads: Arc<Semaphore>,
    /// Held by the flush that syncs the log: one that hangs does so alone.
    pub(super) log_turn: Arc<Semaphore>,
}

impl Splitter {
    /// A splitter over an open disk, its log and what else is known of it.
    #[must_use]
    pub fn new(
        disk: Arc<Disk>,
        log: Arc<Log>,
        gate: Arc<Gate>,
        (progress, unknown, prints): (Arc<Progress>, Arc<Unknown>, Option<Arc<Prints>>),
        steps: Steps,
    ) -> Arc<Self> {
        let locks = RangeLocks::default();
        let is_log_full = AtomicBool::new(false);
        let core = Core {
            disk,
            log,
            locks,
            gate,
            progress,
            unknown,
            prints,
            sampled: Sampled::default(),
            differs: AtomicBool::new(false),
            is_growing: AtomicBool::new(false),
            steps,
            log_trouble: Mutex::default(),
            is_log_full,
            reread_end: AtomicU64::new(0),
            reread_regions: AtomicU64::new(0),
            flush_failure: OnceLock::new(),
            threads: Arc::new(Semaphore::new(THREADS_MAX)),
            log_turn: Arc::new(Semaphore::new(1)),
        };
        Arc::new(Self {
            core: Arc::new(core),
            flush_lane: tokio::sync::Mutex::default(),
            flushes_begun: AtomicU64::new(0),
        })
    }

    /// Holds back marks until [`Splitter::grow`] has ended, and refuses those under way: what is set now is
    /// to be of the size that the stream has. The log's end behind them, and behind the one that was kept.
    ///
    /// # Errors
    /// If it was cut off.
    pub async fn hold_marks(&self) -> io::Result<Seq> {
        self.core.is_growing.store(true, Ordering::SeqCst);
        self.core.log.breach();
        let log = Arc::clone(&self.core.log);
        self.elsewhere(move || log.settle_kept()).await
    }

    /// Marks may be set again, though the stream has the size of before.
    pub fn release_marks(&self) {
        self.core.is_growing.store(false, Ordering::SeqCst);
    }

    /// From here on so much of the disk is served and replicated: the stream has that size at its node.
    ///
    /// # Errors
    /// What the system said; then it is as it was, and may be tried again.
    pub async fn grow(&self, size_bytes: u64) -> io::Result<()> {
        let regions = Regions::in_blocks(blocks_of(size_bytes));
        self.core.gate.grow(regions).await;
        let core = Arc::clone(&self.core);
        let grown = tokio::task::spawn_blocking(move || {
            if let Some(prints) = &core.prints {
                prints.grow(size_bytes);
            }
            let old = core.disk.size_bytes();
            core.progress.grow(old, size_bytes, || core.disk.grow(size_bytes));
            core.is_growing.store(false, Ordering::SeqCst);
        });
        grown.await.map_err(io::Error::other)
    }

    /// Whether the disk was found to differ from what was sent, and what differs is not in doubt yet.
    #[must_use]
    pub fn differs(&self) -> bool {
        self.core.differs.load(Ordering::SeqCst)
    }

    /// What the sampler has done; none if the disk is not sampled.
    #[must_use]
    pub fn samples(&self) -> Option<&Sampled> {
        let is_sampled = self.core.prints.as_ref().is_some_and(|prints| !prints.is_given_up());
        is_sampled.then_some(&self.core.sampled)
    }

    /// Changes the disk as nobody is seen to.
    #[cfg(test)]
    pub(crate) fn change_unseen(&self, data: &[u8], offset: u64) {
        self.core.disk.write(data, offset).unwrap();
    }

    /// The gate of its disk.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.core.gate
    }

    /// Why the log did not take the last change that it was given; none if it did.
    #[must_use]
    pub fn log_trouble(&self) -> Option<String> {
        let is_full = self.core.is_log_full.load(Ordering::Relaxed);
        is_full.then(|| lock(&self.core.log_trouble).clone())
    }

    /// Last seq of the regions that were read again.
    #[must_use]
    pub fn reread_end(&self) -> Seq {
        Seq(self.core.reread_end.load(Ordering::Relaxed))
    }

    /// Regions read again lately.
    #[must_use]
    pub fn reread_regions(&self) -> u64 {
        self.core.reread_regions.load(Ordering::Relaxed)
    }

    /// Notes that what was read again is in the vault.
    pub fn reread_settled(&self) {
        self.core.reread_regions.store(0, Ordering::Relaxed);
    }

    /// Waits until nothing of it runs on any thread. Its tasks must have ended or been dropped.
    pub async fn settled(&self) {
        // Work on blocking threads cannot be called back; each holds the core or the gate.
        while Arc::strong_count(&self.core) > 1 || Arc::strong_count(&self.core.gate) > 1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Blocks that cannot be read. To be asked after [`Splitter::is_consistent`].
    #[must_use]
    pub fn unknown_blocks(&self) -> u64 {
        self.core.unknown.count()
    }

    /// Whether the log, up to its end, is the disk, but for blocks that cannot be read: only then may a mark be set.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        // What somebody else wrote before this look holds the mark back; what comes later is later.
        !self.core.disk.is_disturbed()
            && self.core.flush_failure.get().is_none()
            && !self.differs()
            && !self.core.is_growing.load(Ordering::SeqCst)
            && is_consistent(&self.core.progress, self.core.gate.in_doubt())
    }

    /// What the system said when the disk could not be flushed; none while every flush went well.
    ///
    /// From then on every flush fails until the disk is opened anew: the system may have dropped what
    /// it could not write, and would call the next flush a success.
    #[must_use]
    pub fn flush_failure(&self) -> Option<&str> {
        self.core.flush_failure.get().map(|failure| failure.text.as_str())
    }

    async fn change(self: &Arc<Self>, change: Change, fua: bool) -> Result<(), BackendError> {
        let blocks = change.blocks();
        let pass = self.core.gate.enter(Regions::of(blocks)).await;
        let guard = self.core.locks.lock(blocks).await;
        let writing = Arc::new(Underway::new(pass));
        let is_written = is_quick(&change) && self.core.write_at_once(&change);
        let done = match is_written && self.core.log_at_once(&change, &writing) {
            true => Ok(true),
            false => self.apply_elsewhere(change, writing, is_written).await,
        };
        drop(guard);
        if !done? {
            // The log's file would have got a new time.
            self.core.gate.touch().await;
        }
        if fua {
            self.flush_all().await?;
        }
        Ok(())
    }

    /// Applies a change on another thread: whether the log took it. Should the log's file system hang, the
    /// change is on the disk and its regions are in doubt, whatever becomes of it in the log.
    async fn apply_elsewhere(
        &self,
        change: Change,
        writing: Arc<Underway<Pass>>,
        is_written: bool,
    ) -> io::Result<bool> {
        let blocks = change.blocks();
        let (core, applying) = (Arc::clone(&self.core), Arc::clone(&writing));
        let applied = self.core.on_thread(move || core.apply(&change, &applying, is_written));
        let mut applied = pin!(applied);
        tokio::select! {
            biased;
            applied = &mut applied => return applied,
            () = writing.takes_too_long() => {}
        }
        let Some(pass) = writing.end() else { return applied.await };
        self.core.log.hangs();
        self.core.tell_full(&AppendError::Hangs);
        self.core.end(blocks, pass, false);
        Ok(false)
    }

    /// Work on another thread, for which an end of the capture waits.
    ///
    /// # Errors
    /// If it was cut off.
    pub async fn elsewhere<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let core = Arc::clone(&self.core);
        let task = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(core);
            done
        });
        task.await.map_err(io::Error::other)
    }
}

fn is_quick(change: &Change) -> bool {
    match change {
        // Off the grid, blocks are read back.
        Change::Write { data, .. } => data.len() <= INLINE_BYTES_MAX && change.is_on_grid(),
        Change::Zero { .. } => false,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// Does what may wait for the disk where it delays nobody else, and where nobody must wait for it.
    pub(super) async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let permit = Arc::clone(&self.threads).acquire_owned().await.map_err(io::Error::other)?;
        let task = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(permit);
            done
        });
        task.await.map_err(io::Error::other)?
    }

    /// Whether the disk took the change without waiting.
    fn write_at_once(&self, change: &Change) -> bool {
        let Change::Write { offset, data } = change else { return false };
        let call = Call::WriteAtOnce { offset: *offset, length: data.len() as u64 };
        let begun = self.steps.reach(Step::BeforeDisk).and_then(|()| self.steps.call(call));
        // An error is met again by the write that may wait.
        begun.is_ok() && self.disk.write_at_once(data, *offset).unwrap_or(false)
    }

    /// The disk, unless it `is_written`, then the log: whether that took the change. Blocks; the caller holds
    /// the blocks.
    fn apply(
        &self,
        change: &Change,
        writing: &Underway<Pass>,
        is_written: bool,
    ) -> io::Result<bool> {
        let mut is_logged = false;
        let result = self.apply_to_both(change, writing, is_written, &mut is_logged);
        if let Some(pass) = writing.end() {
            self.end(change.blocks(), pass, is_logged);
        }
        result.map(|()| is_logged)
    }

    /// Ends a change of blocks that the caller holds.
    fn end(&self, blocks: BlockRange, pass: Pass, is_logged: bool) {
        // Whatever went wrong, some of it may be on the disk: what is not logged is in doubt, and no mark
        // that is under way may say otherwise.
        if !is_logged {
            self.forget(blocks);
            self.log.breach();
        }
        self.gate.leave(pass, is_logged);
    }

    fn apply_to_both(
        &self,
        change: &Change,
        writing: &Underway<Pass>,
        is_written: bool,
        is_logged: &mut bool,
    ) -> io::Result<()> {
        if !is_written {
            self.apply_to_disk(change)?;
        }
        self.steps.reach(Step::AfterDisk)?;
        let read = |blocks| self.read_blocks(blocks);
        let logged = change.log(read, |entries| self.append(change, entries, writing));
        match logged {
            Ok(logged) => *is_logged = logged,
            // The disk took the change: the client has no part in what could not be read back.
            Err(error) => {
                let path = self.disk.path().display();
                tracing::warn!(disk = %path, %error, "blocks cannot be read back: they are in doubt");
            }
        }
        self.steps.reach(Step::AfterLog)
    }

    /// Whether the log took a change that is on the disk, without waiting; the caller holds the blocks.
    fn log_at_once(&self, change: &Change, writing: &Underway<Pass>) -> bool {
        let Change::Write { data, .. } = change else { return false };
        let entries = [Entry::Write { block: change.blocks().block, data, is_copy: false }];
        if !self.log.append_at_once(&entries) {
            return false;
        }
        self.has_logged(change, &entries);
        if let Some(pass) = writing.end() {
            self.end(change.blocks(), pass, true);
        }
        true
    }

    fn apply_to_disk(&self, change: &Change) -> io::Result<()> {
        self.steps.reach(Step::BeforeDisk)?;
        let (offset, length) = change.bytes();
        self.steps.call(Call::Write { offset, length })?;
        match change {
            Change::Write { offset, data } => self.disk.write(data, *offset),
            Change::Zero { offset, length, may_trim } => {
                self.disk.zero(*offset, *length, *may_trim)
            }
        }
    }

    pub(super) fn read_blocks(&self, blocks: BlockRange) -> io::Result<Vec<u8>> {
        let length = usize::try_from(blocks.bytes()).map_err(io::Error::other)?;
        let mut data = vec![0; length];
        self.read(&mut data, blocks.offset())?;
        Ok(data)
    }

    /// Reads the disk through the page cache, which holds what was written last; blocks.
    pub(super) fn read(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.steps.call(Call::Read { offset, length: data.len() as u64 })?;
        self.disk.read(data, offset)
    }

    /// Whether the log took the entries of a change, while somebody waited for that.
    fn append(&self, change: &Change, entries: &[Entry<'_>], writing: &Underway<Pass>) -> bool {
        writing.begin_logging();
        match self.log.append_unless(entries, &|| writing.is_over()) {
            Ok(_) => writing.while_held(|| self.has_logged(change, entries)).is_some(),
            Err(error) => {
                self.tell_full(&error);
                false
            }
        }
    }

    fn has_logged(&self, change: &Change, entries: &[Entry<'_>]) {
        self.is_log_full.store(false, Ordering::Relaxed);
        self.note(entries);
        self.unknown.remove(change.blocks());
    }

    /// Notes what was sent of blocks; the caller holds them.
    pub(super) fn note(&self, entries: &[Entry<'_>]) {
        if let Some(prints) = &self.prints {
            prints.note(entries);
        }
    }

    /// Nobody knows what is sent of blocks; the caller holds them.
    pub(super) fn forget(&self, blocks: BlockRange) {
        if let Some(prints) = &self.prints {
            prints.forget(blocks);
        }
    }

    /// Makes durable what was sent of the disk: the log, and its prints.
    pub(super) fn sync_sent(&self) -> io::Result<()> {
        self.log.sync()?;
        self.prints.as_ref().map_or(Ok(()), |prints| prints.sync())
    }

    fn tell_full(&self, error: &AppendError) {
        if self.is_log_full.swap(true, Ordering::Relaxed) {
            return;
        }
        *lock(&self.log_trouble) = error.to_string();
        let path = self.disk.path().display();
        tracing::warn!(disk = %path, %error, "changes are not logged: their regions are in doubt");
    }
}

/// The splitter as the NBD server's backend.
#[derive(Debug, Clone)]
pub struct Served(pub Arc<Splitter>);

impl Backend for Served {
    fn size_bytes(&self) -> u64 {
        self.0.core.disk.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Piece>, BackendError> {
        let mut data = vec![0; length as usize];
        let core = Arc::clone(&self.0.core);
        if core.disk.read_cached(&mut data, offset) {
            return Ok(vec![data.into()]);
        }
        let reading = Arc::clone(&core);
        let read = core.on_thread(move || {
            reading.read(&mut data, offset)?;
            Ok(data)
        });
        Ok(vec![read.await?.into()])
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), BackendError> {
        self.0.change(Change::Write { offset, data }, fua).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u32,
        may_trim: bool,
        fua: bool,
    ) -> Result<(), BackendError> {
        let change = Change::Zero { offset, length: length.into(), may_trim };
        self.0.change(change, fua).await
    }

    /// Zeroes: what the disk reads as afterwards must be known, for the vault holds the same.
    async fn trim(&self, offset: u64, length: u32, fua: bool) -> Result<(), BackendError> {
        self.write_zeroes(offset, length, true, fua).await
    }

    async fn flush(&self) -> Result<(), BackendError> {
        Ok(self.0.flush_all().await?)
    }
}
