//! Reading the disk behind the splitter: the copy of the whole disk, and of regions in doubt.
//!
//! Each run's blocks are locked from the read until its frames are in the log, so a client's write
//! is either in what was read or comes behind it in the log. The copy waits while much of the log is
//! not committed yet; the client never waits for the copy for longer than one run takes.

use super::blocks::entries_of;
use super::progress::Lease;
use super::splitter::{Core, Splitter};
use super::steps::{Call, Step};
use super::unknown::{is_alive, read_singly};
use crate::hrl::{AppendError, Entry, Log};
use crate::rt::{READ_BYTES_MAX, ReadFile};
use farshore_engine::doubt::REGION_BLOCKS;
use farshore_proto::limits::{BLOCK_BYTES, blocks_of};
use farshore_proto::{BlockRange, Seq};
use futures::stream::{FuturesOrdered, StreamExt};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The copy waits while the log holds more than this.
pub const AHEAD_BYTES_MAX: u64 = 128 << 20;
/// Runs being read at once.
const RUNS_MAX: usize = 4;
/// Between two durable notes of how far the copy has come.
const SAVE_BYTES: u64 = 64 << 20;
/// Pause when the log has no room.
const ROOM_PAUSE: Duration = Duration::from_millis(50);
/// Between two attempts to read what could not be read.
#[cfg(not(test))]
const RETRY_PAUSE: Duration = Duration::from_secs(600);
#[cfg(test)]
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// Pause after the disk could not be read.
const READ_PAUSE: Duration = Duration::from_secs(1);

const RUN_BLOCKS: u64 = (READ_BYTES_MAX / BLOCK_BYTES) as u64;

/// Whether the copy may append: it waits while much of the log is not committed yet.
#[must_use]
pub fn has_room_to_copy(log: &Log) -> bool {
    log.bytes() <= AHEAD_BYTES_MAX.min(log.limit_bytes() / 2)
}

/// Whether a region in doubt may be appended. At most three quarters of the log are used: regions
/// would go round in circles between log and doubt.
#[must_use]
pub fn has_room_to_reread(log: &Log) -> bool {
    log.bytes() <= log.limit_bytes() / 4 * 3
}

impl Splitter {
    /// Copies what is to be copied and reads again what is in doubt, until dropped.
    ///
    /// Begins once the stream `is_joined`: before that the log may have to start again, and nothing
    /// that was read counts.
    pub async fn copy_what_is_due(
        self: Arc<Self>,
        reads: ReadFile,
        mut is_joined: watch::Receiver<bool>,
    ) {
        if is_joined.wait_for(|joined| *joined).await.is_err() {
            return;
        }
        self.core.gate.joined();
        let mut retried = Instant::now();
        loop {
            if self.flush_failure().is_some() {
                // What is read now may be what the system is about to forget.
                return;
            }
            let done = match self.core.progress.lease() {
                Some(lease) => self.copy(&reads, lease).await,
                None if self.core.gate.in_doubt() > 0 => self.reread_next().await,
                None if self.core.unknown.count() > 0 && retried.elapsed() > RETRY_PAUSE => {
                    retried = Instant::now();
                    self.retry_unknown().await
                }
                None => {
                    tokio::select! {
                        () = self.core.progress.changed() => {}
                        () = self.core.gate.doubt_changed() => {}
                        () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    }
                    Ok(())
                }
            };
            if let Err(error) = done {
                let path = self.core.disk.path().display();
                tracing::warn!(disk = %path, %error, "the copy of the disk waits");
                tokio::time::sleep(READ_PAUSE).await;
            }
        }
    }

    /// Copies from the lease's cursor to the end, or until the lease is void.
    async fn copy(self: &Arc<Self>, reads: &ReadFile, lease: Lease) -> io::Result<()> {
        let core = &self.core;
        let blocks = blocks_of(core.disk.size_bytes());
        let mut next = lease.cursor / BLOCK_BYTES as u64;
        let mut saved = lease.cursor;
        // A volume that never had another content reads as zeros in the vault: zeros are not sent, but
        // for the last run, for a stream says how far it came by what is in it.
        let is_first = !core.progress.is_resync() && core.progress.restarts() == 0;
        let mut runs = FuturesOrdered::new();
        loop {
            while next < blocks && runs.len() < RUNS_MAX {
                let run = BlockRange { block: next, count: RUN_BLOCKS.min(blocks - next) };
                // Of a disk that has grown, the first run may have been held in part.
                let is_resumed = lease.cursor > 0 && run.offset() == lease.cursor;
                let skips_zeros = is_first && run.end() < blocks && !is_resumed;
                runs.push_back(read_run(Arc::clone(core), reads, run, skips_zeros));
                next = run.end();
            }
            let Some(end) = runs.next().await else { break };
            let end: BlockRange = end?;
            if !core.progress.advance(lease, end.end() * BLOCK_BYTES as u64) {
                return Ok(());
            }
            let cursor = end.end() * BLOCK_BYTES as u64;
            if cursor - saved >= SAVE_BYTES {
                saved = cursor;
                let core = Arc::clone(core);
                blocking(move || {
                    let end = core.log.last();
                    core.sync_sent()?;
                    core.progress.save(lease, cursor, end)
                })
                .await?;
            }
        }
        let core = Arc::clone(core);
        blocking(move || {
            let end = core.log.last();
            core.sync_sent()?;
            core.progress.finish(lease, end).map(|_| ())
        })
        .await
    }

    /// Reads the next region in doubt and puts it into the log.
    async fn reread_next(self: &Arc<Self>) -> io::Result<()> {
        let core = &self.core;
        let Some(region) = core.gate.next_in_doubt() else { return Ok(()) };
        while !has_room_to_reread(&core.log) {
            tokio::time::sleep(ROOM_PAUSE).await;
        }
        let blocks = blocks_of(core.disk.size_bytes());
        let block = region * REGION_BLOCKS;
        let range = BlockRange { block, count: REGION_BLOCKS.min(blocks - block) };
        let guard = core.locks.lock(range).await;
        let core = Arc::clone(core);
        let is_logged = blocking(move || {
            core.steps.reach(Step::BeforeReRead)?;
            let read = core.read_blocks(range);
            let logged = core.log_read(range, read.as_deref().map_err(again), false)?;
            if let Logged::To(last) = logged {
                core.reread_end.fetch_max(last.0, Ordering::Relaxed);
                core.reread_regions.fetch_add(1, Ordering::Relaxed);
            }
            if logged != Logged::NoRoom {
                core.gate.reread(region);
                core.steps.reach(Step::AfterReRead)?;
            }
            Ok(logged != Logged::NoRoom)
        })
        .await?;
        drop(guard);
        if !is_logged {
            tokio::time::sleep(ROOM_PAUSE).await;
        }
        Ok(())
    }

    /// Tries once to read every block that could not be read.
    async fn retry_unknown(self: &Arc<Self>) -> io::Result<()> {
        let blocks = blocks_of(self.core.disk.size_bytes());
        for bad in self.core.unknown.within(BlockRange { block: 0, count: blocks }) {
            let mut block = bad.block;
            while block < bad.end() {
                let range = BlockRange { block, count: REGION_BLOCKS.min(bad.end() - block) };
                block = range.end();
                while !has_room_to_reread(&self.core.log) {
                    tokio::time::sleep(ROOM_PAUSE).await;
                }
                let guard = self.core.locks.lock(range).await;
                let core = Arc::clone(&self.core);
                // Without room they stay unknown until the next time.
                blocking(move || {
                    let read = core.read_blocks(range);
                    core.log_read(range, read.as_deref().map_err(again), false)
                })
                .await?;
                drop(guard);
            }
        }
        Ok(())
    }
}

/// What became of blocks that were read to be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Logged {
    /// They are in the log, which ends there.
    To(Seq),
    /// There was nothing to log.
    Nothing,
    /// The log has no room.
    NoRoom,
}

/// An error of the same kind: errors of the system cannot be copied.
fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

impl Core {
    /// Logs what was read of the blocks. If they could not be read, they are read one by one, and those
    /// that cannot be are unknown from then on. The caller holds the blocks; blocks the thread.
    fn log_read(
        &self,
        range: BlockRange,
        read: Result<&[u8], io::Error>,
        skips_zeros: bool,
    ) -> io::Result<Logged> {
        let parts;
        let (good, entries) = match read {
            Ok(data) => (vec![range], entries_of(range.block, data)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(error),
            Err(error) => {
                let read = |data: &mut [u8], offset: u64| self.read(data, offset);
                let found = read_singly(range, error, read, || {
                    is_alive(self.disk.size_bytes(), |data, offset| self.read(data, offset))
                })?;
                for bad in &found.bad {
                    self.unknown.add(*bad)?;
                    self.forget(*bad);
                }
                parts = found.data;
                let good = parts.iter().map(|(run, _)| *run).collect();
                let entries = parts.iter().flat_map(|(run, data)| entries_of(run.block, data));
                (good, entries.collect())
            }
        };
        let logged = self.log_entries(entries, skips_zeros)?;
        if logged != Logged::NoRoom {
            good.into_iter().for_each(|run| self.unknown.remove(run));
        }
        Ok(logged)
    }

    fn log_entries(&self, entries: Vec<Entry<'_>>, skips_zeros: bool) -> io::Result<Logged> {
        let is_sent = |entry: &&Entry<'_>| !skips_zeros || !matches!(entry, Entry::Zero { .. });
        let sent: Vec<Entry<'_>> = entries.iter().filter(is_sent).copied().collect();
        let logged = match sent.is_empty() {
            true => Logged::Nothing,
            false => match self.log.append(&sent) {
                Ok(last) => Logged::To(last),
                Err(AppendError::Io { source }) => return Err(source),
                Err(_) => return Ok(Logged::NoRoom),
            },
        };
        // The vault holds what was not sent, too.
        self.note(&entries);
        Ok(logged)
    }
}

/// Reads one run and puts it into the log, waiting for room there.
async fn read_run(
    core: Arc<Core>,
    reads: &ReadFile,
    run: BlockRange,
    skips_zeros: bool,
) -> io::Result<BlockRange> {
    let length = usize::try_from(run.bytes()).map_err(io::Error::other)?;
    loop {
        while !has_room_to_copy(&core.log) {
            tokio::time::sleep(ROOM_PAUSE).await;
        }
        let share = reads.share(length).await?;
        // Held by whoever puts it into the log, even if nobody waits for that any more: a write of the guest
        // in between would be followed by what was read before it.
        let held = (core.locks.lock(run).await, share);
        let looking = Arc::clone(&core);
        let is_hole = blocking(move || {
            let end = looking.disk.size_bytes().min(run.offset() + run.bytes());
            Ok(looking.disk.next_data(run.offset())? >= end)
        });
        let logged = if is_hole.await? {
            let core = Arc::clone(&core);
            blocking(move || {
                let logged = core.log_entries(vec![Entry::Zero { range: run }], skips_zeros);
                drop(held);
                logged
            })
            .await
        } else {
            let call = core.steps.call(Call::Read { offset: run.offset(), length: run.bytes() });
            let read = match call {
                Ok(()) => reads.read(run.offset(), length).await,
                Err(error) => Err(error),
            };
            let core = Arc::clone(&core);
            blocking(move || {
                let logged = match read {
                    Ok(data) => core.log_read(run, Ok(&data), skips_zeros),
                    Err(error) => core.log_read(run, Err(error), skips_zeros),
                };
                drop(held);
                logged
            })
            .await
        };
        if logged? != Logged::NoRoom {
            return Ok(run);
        }
        tokio::time::sleep(ROOM_PAUSE).await;
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
