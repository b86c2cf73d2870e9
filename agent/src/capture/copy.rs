//! Reading the disk behind the splitter: the copy of the whole disk, and of regions in doubt.
//!
//! Each run's blocks are locked from the read until its frames are in the log, so a client's write
//! is either in what was read or comes behind it in the log. The copy waits while much of the log is
//! not committed yet; the client never waits for the copy for longer than one run takes.

use super::blocks::entries_of;
use super::progress::Lease;
use super::splitter::{Core, Splitter};
use super::steps::{Call, Step};
use crate::hrl::{AppendError, Log};
use crate::rt::{READ_BYTES_MAX, ReadFile};
use farshore_engine::doubt::REGION_BLOCKS;
use farshore_proto::BlockRange;
use farshore_proto::limits::{BLOCK_BYTES, blocks_of};
use futures::stream::{FuturesOrdered, StreamExt};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;

/// The copy waits while the log holds more than this.
pub const AHEAD_BYTES_MAX: u64 = 128 << 20;
/// Runs being read at once.
const RUNS_MAX: usize = 4;
/// Between two durable notes of how far the copy has come.
const SAVE_BYTES: u64 = 64 << 20;
/// Pause when the log has no room.
const ROOM_PAUSE: Duration = Duration::from_millis(50);
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
        loop {
            if self.flush_failure().is_some() {
                // What is read now may be what the system is about to forget.
                return;
            }
            let done = match self.core.progress.lease() {
                Some(lease) => self.copy(&reads, lease).await,
                None if self.core.gate.in_doubt() > 0 => self.reread_next().await,
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
        let mut runs = FuturesOrdered::new();
        loop {
            while next < blocks && runs.len() < RUNS_MAX {
                let run = BlockRange { block: next, count: RUN_BLOCKS.min(blocks - next) };
                runs.push_back(read_run(Arc::clone(core), reads, run));
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
                    core.log.sync()?;
                    core.progress.save(lease, cursor, end)
                })
                .await?;
            }
        }
        let core = Arc::clone(core);
        blocking(move || {
            let end = core.log.last();
            core.log.sync()?;
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
            let mut data = vec![0; usize::try_from(range.bytes()).map_err(io::Error::other)?];
            core.read(&mut data, range.offset())?;
            match core.log.append(&entries_of(range.block, &data)) {
                Ok(last) => {
                    core.reread_end.fetch_max(last.0, Ordering::Relaxed);
                    core.reread_regions.fetch_add(1, Ordering::Relaxed);
                    core.gate.reread(region);
                    core.steps.reach(Step::AfterReRead)?;
                    Ok(true)
                }
                Err(AppendError::Io { source }) => Err(source),
                Err(_) => Ok(false),
            }
        })
        .await?;
        drop(guard);
        if !is_logged {
            tokio::time::sleep(ROOM_PAUSE).await;
        }
        Ok(())
    }
}

/// Reads one run and puts it into the log, waiting for room there.
async fn read_run(core: Arc<Core>, reads: &ReadFile, run: BlockRange) -> io::Result<BlockRange> {
    loop {
        while !has_room_to_copy(&core.log) {
            tokio::time::sleep(ROOM_PAUSE).await;
        }
        let guard = core.locks.lock(run).await;
        let length = usize::try_from(run.bytes()).map_err(io::Error::other)?;
        core.steps.call(Call::Read { offset: run.offset(), length: run.bytes() })?;
        let buffer = reads.read(run.offset(), length).await?;
        let appending = Arc::clone(&core);
        let appended = tokio::task::spawn_blocking(move || {
            appending.log.append(&entries_of(run.block, &buffer)).map(|_| ())
        });
        let appended = appended.await.map_err(io::Error::other)?;
        drop(guard);
        match appended {
            Ok(()) => return Ok(run),
            Err(AppendError::Io { source }) => return Err(source),
            Err(_) => tokio::time::sleep(ROOM_PAUSE).await,
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
