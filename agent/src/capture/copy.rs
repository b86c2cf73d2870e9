//! Reading the disk behind the splitter: the copy of the whole disk, and of regions in doubt.
//!
//! Each run's blocks are locked from the read until its frames are in the log, so a client's write
//! is either in what was read or comes behind it in the log. Where that cannot be read, its blocks are
//! tried and locked one by one: a bad sector takes seconds to say so. The copy waits while much of the log is
//! not committed yet; the client never waits for the copy for longer than one run takes. Should the log's file
//! system hang, the blocks are let go, and the run is read anew.

use super::blocks::entries_of;
use super::progress::Lease;
use super::splitter::{Core, Splitter};
use super::steps::{Call, Step};
use super::underway::Underway;
use super::unknown::is_alive;
use crate::hrl::{AppendError, Entry, Log};
use crate::rt::{READ_BYTES_MAX, ReadFile};
use farshore_engine::doubt::REGION_BLOCKS;
use farshore_proto::limits::{BLOCK_BYTES, blocks_of};
use farshore_proto::{BlockRange, Seq};
use futures::stream::{FuturesOrdered, StreamExt};
use std::io;
use std::pin::pin;
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
                    let noted = self.note_end().await;
                    tokio::select! {
                        () = self.core.progress.changed() => {}
                        () = self.core.gate.doubt_changed() => {}
                        () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    }
                    noted
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
                    core.unknown.settle()?;
                    let end = core.log.last();
                    core.sync_sent()?;
                    core.progress.save(lease, cursor, end)
                })
                .await?;
            }
        }
        let core = Arc::clone(core);
        blocking(move || {
            if core.unknown.settle().is_err() {
                // It holds in memory: a start copies again.
                core.progress.finish_unnoted(lease, core.log.last());
                return Ok(());
            }
            core.finish(lease)
        })
        .await
    }

    /// Notes that the copy has come to its end, if that could not be noted then.
    async fn note_end(self: &Arc<Self>) -> io::Result<()> {
        let core = Arc::clone(&self.core);
        blocking(move || match core.progress.unnoted() {
            Some(lease) if core.unknown.settle().is_ok() => core.finish(lease),
            _ => Ok(()),
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
        let logged = log_held(core, range, guard, move |core, held| {
            core.steps.reach(Step::BeforeReRead)?;
            let read = match core.read_known(range) {
                Ok(read) => read,
                Err(error) => return Ok(Err(error)),
            };
            let logged = core.log_parts(&read, false, held)?;
            if let Logged::To(last) = logged {
                core.reread_end.fetch_max(last.0, Ordering::Relaxed);
                core.reread_regions.fetch_add(1, Ordering::Relaxed);
            }
            // What was written since the blocks were let go may be in doubt for itself.
            if logged != Logged::NoRoom && held.while_held(|| core.gate.reread(region)).is_some() {
                core.steps.reach(Step::AfterReRead)?;
            }
            Ok(Ok(logged))
        });
        match logged.await? {
            // It is read again without those that are found.
            Err(error) => probe(core, range, error).await,
            Ok(Logged::NoRoom) => {
                tokio::time::sleep(ROOM_PAUSE).await;
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Tries once to read every block that could not be read.
    async fn retry_unknown(self: &Arc<Self>) -> io::Result<()> {
        let blocks = blocks_of(self.core.disk.size_bytes());
        for bad in self.core.unknown.within(BlockRange { block: 0, count: blocks }) {
            for block in bad.block..bad.end() {
                while !has_room_to_reread(&self.core.log) {
                    tokio::time::sleep(ROOM_PAUSE).await;
                }
                let one = BlockRange { block, count: 1 };
                let guard = self.core.locks.lock(one).await;
                log_held(&self.core, one, guard, move |core, held| {
                    let Ok(data) = core.read_blocks(one) else { return Ok(()) };
                    // Without room they stay unknown until the next time.
                    core.log_read(one, &data, false, held).map(|_| ())
                })
                .await?;
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

impl Core {
    fn finish(&self, lease: Lease) -> io::Result<()> {
        let end = self.log.last();
        self.sync_sent()?;
        self.progress.finish(lease, end).map(|_| ())
    }

    /// Logs what was read of the blocks, which are known from then on. The caller holds them; blocks the
    /// thread.
    fn log_read<G>(
        &self,
        range: BlockRange,
        data: &[u8],
        skips_zeros: bool,
        held: &Underway<G>,
    ) -> io::Result<Logged> {
        let logged = self.log_entries(entries_of(range.block, data), skips_zeros, held)?;
        if logged != Logged::NoRoom {
            held.while_held(|| self.unknown.remove(range));
        }
        Ok(logged)
    }

    /// Reads the blocks but for those that cannot be read. The caller holds them; blocks the thread.
    fn read_known(&self, range: BlockRange) -> io::Result<Vec<(BlockRange, Vec<u8>)>> {
        let parts = self.unknown.readable(range).into_iter();
        parts.map(|part| self.read_blocks(part).map(|data| (part, data))).collect()
    }

    fn log_parts<G>(
        &self,
        read: &[(BlockRange, Vec<u8>)],
        skips_zeros: bool,
        held: &Underway<G>,
    ) -> io::Result<Logged> {
        let entries = read.iter().flat_map(|(part, data)| entries_of(part.block, data));
        self.log_entries(entries.collect(), skips_zeros, held)
    }

    fn log_entries<G>(
        &self,
        entries: Vec<Entry<'_>>,
        skips_zeros: bool,
        held: &Underway<G>,
    ) -> io::Result<Logged> {
        held.begin_logging();
        let is_sent = |entry: &&Entry<'_>| !skips_zeros || !matches!(entry, Entry::Zero { .. });
        let sent: Vec<Entry<'_>> = entries.iter().filter(is_sent).copied().collect();
        let logged = match sent.is_empty() {
            true => Logged::Nothing,
            false => match self.log.append_unless(&sent, &|| held.is_over()) {
                Ok(last) => Logged::To(last),
                Err(AppendError::Io { source }) => return Err(source),
                Err(_) => return Ok(Logged::NoRoom),
            },
        };
        // The vault holds what was not sent, too. What was let go meanwhile is read anew.
        let noted = held.while_held(|| self.note(&entries));
        Ok(noted.map_or(Logged::NoRoom, |()| logged))
    }
}

/// Does work that puts blocks into the log, which are held until its end; should the log take too long, they
/// are let go before. The work has a thread of its own.
async fn log_held<G: Send + 'static, T: Send + 'static>(
    core: &Arc<Core>,
    range: BlockRange,
    held: G,
    work: impl FnOnce(&Core, &Underway<G>) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let held = Arc::new(Underway::new(held));
    let (working, holding) = (Arc::clone(core), Arc::clone(&held));
    let done = blocking(move || {
        let done = work(&working, &holding);
        drop(holding.end());
        done
    });
    let mut done = pin!(done);
    tokio::select! {
        biased;
        done = &mut done => return done,
        () = held.takes_too_long() => {}
    }
    if let Some(blocks) = held.end() {
        core.forget(range);
        core.log.hangs();
        drop(blocks);
    }
    done.await
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
            log_held(&core, run, held, move |core, held| {
                let hole = Entry::Zero { range: run, is_copy: true };
                core.log_entries(vec![hole], skips_zeros, held)
            })
            .await
        } else {
            let call = core.steps.call(Call::Read { offset: run.offset(), length: run.bytes() });
            let read = match call {
                Ok(()) => reads.read(run.offset(), length).await,
                Err(error) => Err(error),
            };
            match read {
                Ok(data) => {
                    log_held(&core, run, held, move |core, held| {
                        core.log_read(run, &data, skips_zeros, held)
                    })
                    .await
                }
                Err(error) => {
                    drop(held);
                    log_without_bad(&core, run, error, skips_zeros).await
                }
            }
        };
        if logged? != Logged::NoRoom {
            return Ok(run);
        }
        tokio::time::sleep(ROOM_PAUSE).await;
    }
}

/// Logs a run that cannot be read as a whole: but for the blocks that cannot be read alone.
async fn log_without_bad(
    core: &Arc<Core>,
    run: BlockRange,
    error: io::Error,
    skips_zeros: bool,
) -> io::Result<Logged> {
    probe(core, run, error).await?;
    let guard = core.locks.lock(run).await;
    log_held(core, run, guard, move |core, held| {
        let read = core.read_known(run)?;
        core.log_parts(&read, skips_zeros, held)
    })
    .await
}

/// Finds the blocks of a range that cannot be read, each locked alone; they are unknown from then on.
///
/// # Errors
/// `error`, with which the range could not be read, if the whole disk has failed.
async fn probe(core: &Arc<Core>, range: BlockRange, error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Err(error);
    }
    let mut has_read = false;
    for block in range.block..range.end() {
        let one = BlockRange { block, count: 1 };
        if !core.unknown.within(one).is_empty() {
            continue;
        }
        let guard = core.locks.lock(one).await;
        let probing = Arc::clone(core);
        let is_good = blocking(move || {
            let is_good = probing.read_blocks(one).is_ok();
            let alive = |data: &mut [u8], at| probing.read(data, at);
            let is_disk = is_good || has_read || is_alive(probing.disk.size_bytes(), alive);
            if !is_good && is_disk {
                probing.unknown.add(one);
                probing.forget(one);
            }
            drop(guard);
            Ok(is_disk.then_some(is_good))
        });
        match is_good.await? {
            Some(is_good) => has_read |= is_good,
            None => return Err(error),
        }
    }
    let core = Arc::clone(core);
    // Where that cannot be noted, nothing is noted that relies on it.
    blocking(move || Ok(core.unknown.settle().is_ok())).await.map(|_| ())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
