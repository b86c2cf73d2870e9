//! The scanner: reads the whole disk again and again, and logs the units whose hash differs from
//! what the log or vault holds. A mark follows each whole pass.
//!
//! Needs nothing in front of the disk. If the disk is written during a pass, a point holds each
//! unit as it was when the pass came by; a disk that rests is held exactly.

use super::blocks::entries_of;
use super::copy::has_room_to_copy;
use super::hashes::{Hash, Hashes, UNIT_BYTES};
use super::progress::Progress;
use crate::disk::{Disk, DiskError};
use crate::hrl::{AppendError, Log};
use crate::rt::{READ_BYTES_MAX, ReadFile};
use farshore_proto::limits::BLOCK_BYTES;
use futures::stream::{FuturesOrdered, StreamExt};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Runs being read at once.
const RUNS_MAX: usize = 4;
/// Changed bytes gathered before they are logged together.
const GATHER_BYTES: usize = 16 << 20;
const ROOM_PAUSE: Duration = Duration::from_millis(50);

/// Why a pass did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The disk is gone or has changed its size.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Reading the disk, or writing what is known of it, failed.
    #[error("the disk cannot be scanned")]
    Io(#[from] io::Error),
}

/// A scanned disk.
#[derive(Debug)]
pub struct Scanner {
    disk: Arc<Disk>,
    log: Arc<Log>,
    hashes: Arc<Hashes>,
    progress: Arc<Progress>,
    reads: ReadFile,
}

/// A unit that differs.
#[derive(Debug)]
struct Changed {
    unit: u64,
    hash: Hash,
    was_known: bool,
    data: Vec<u8>,
}

/// What a whole pass says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// To be given with the mark; see [`Log::append_mark`].
    pub breaches: u64,
    /// Bytes that differed.
    pub changed_bytes: u64,
}

impl Scanner {
    /// A scanner over an open disk, its log and its hashes.
    #[must_use]
    pub fn new(
        disk: Arc<Disk>,
        log: Arc<Log>,
        hashes: Hashes,
        progress: Arc<Progress>,
        reads: ReadFile,
    ) -> Self {
        Self { disk, log, hashes: Arc::new(hashes), progress, reads }
    }

    /// Whether the hashes count for nothing any more: the copy has begun again.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.progress.restarts() != self.hashes.restarts()
    }

    /// Reads the disk once and logs what differs. None if the copy began again meanwhile.
    ///
    /// # Errors
    /// [`ScanError`].
    pub async fn pass(&self) -> Result<Option<Pass>, ScanError> {
        self.disk.check()?;
        let lease = self.progress.lease();
        let mut changed_bytes = 0;
        let mut gathered = Vec::new();
        let mut next = 0;
        let size = self.disk.size_bytes().next_multiple_of(BLOCK_BYTES as u64);
        let mut runs = FuturesOrdered::new();
        loop {
            while next < size && runs.len() < RUNS_MAX {
                let length = (size - next).min(READ_BYTES_MAX as u64);
                runs.push_back(self.read_run(next, length));
                next += length;
            }
            let Some(run) = runs.next().await else { break };
            let (end, changed) = run?;
            changed_bytes += changed.iter().map(|changed| changed.data.len() as u64).sum::<u64>();
            gathered.extend(changed);
            let bytes: usize = gathered.iter().map(|changed: &Changed| changed.data.len()).sum();
            if bytes >= GATHER_BYTES {
                self.log_changed(std::mem::take(&mut gathered)).await?;
            }
            if let Some(lease) = lease
                && !self.progress.advance(lease, end)
            {
                return Ok(None);
            }
        }
        self.log_changed(gathered).await?;
        if let Some(lease) = lease {
            let (log, progress) = (Arc::clone(&self.log), Arc::clone(&self.progress));
            let is_done = blocking(move || {
                log.sync()?;
                progress.finish(lease, log.last())
            });
            if !is_done.await? {
                return Ok(None);
            }
        }
        // In this order: a restart of the log between the two shows in one of them.
        let breaches = self.log.breaches();
        let is_good = !self.is_void() && self.progress.end().is_some();
        Ok(is_good.then_some(Pass { breaches, changed_bytes }))
    }

    /// Reads and hashes one run; returns its end and the units that differ.
    async fn read_run(&self, offset: u64, length: u64) -> io::Result<(u64, Vec<Changed>)> {
        let bytes = usize::try_from(length).map_err(io::Error::other)?;
        let buffer = self.reads.read(offset, bytes).await?;
        let hashes = Arc::clone(&self.hashes);
        let changed = blocking(move || {
            let first = offset / UNIT_BYTES as u64;
            let known = hashes.read(first, bytes.div_ceil(UNIT_BYTES))?;
            let mut changed = Vec::new();
            for ((data, known), unit) in buffer.chunks(UNIT_BYTES).zip(known).zip(first..) {
                let hash = hashes.of(data);
                if hash != known {
                    let was_known = known != Hash::default();
                    changed.push(Changed { unit, hash, was_known, data: data.to_vec() });
                }
            }
            Ok(changed)
        });
        Ok((offset + length, changed.await?))
    }

    /// Puts units into the log and notes their hashes, in the order that the hashes file asks for.
    async fn log_changed(&self, changed: Vec<Changed>) -> io::Result<()> {
        if changed.is_empty() {
            return Ok(());
        }
        let changed = Arc::new(changed);
        let (hashes, units) = (Arc::clone(&self.hashes), Arc::clone(&changed));
        blocking(move || {
            hashes.forget(units.iter().filter(|unit| unit.was_known).map(|unit| unit.unit))
        })
        .await?;
        let mut from = 0;
        while from < changed.len() {
            // Neighbours become one run of frames.
            let mut to = from + 1;
            while to < changed.len()
                && changed[to].unit == changed[to - 1].unit + 1
                && to - from < 16
            {
                to += 1;
            }
            self.append(Arc::clone(&changed), from..to).await?;
            from = to;
        }
        let (log, hashes) = (Arc::clone(&self.log), Arc::clone(&self.hashes));
        let progress = Arc::clone(&self.progress);
        blocking(move || {
            let end = log.last();
            log.sync()?;
            // Not noted after a restart of the log: then the hashes are void too.
            if !progress.note_logged(end, hashes.restarts())? {
                return Ok(());
            }
            hashes.note(changed.iter().map(|changed| (changed.unit, changed.hash)))
        })
        .await
    }

    async fn append(
        &self,
        changed: Arc<Vec<Changed>>,
        run: std::ops::Range<usize>,
    ) -> io::Result<()> {
        loop {
            while !has_room_to_copy(&self.log) {
                tokio::time::sleep(ROOM_PAUSE).await;
            }
            let (log, changed, run) = (Arc::clone(&self.log), Arc::clone(&changed), run.clone());
            let appended = tokio::task::spawn_blocking(move || {
                let units = &changed[run];
                let data: Vec<u8> = units.iter().flat_map(|unit| &unit.data).copied().collect();
                let block = units[0].unit * (UNIT_BYTES / BLOCK_BYTES) as u64;
                log.append(&entries_of(block, &data)).map(|_| ())
            });
            match appended.await.map_err(io::Error::other)? {
                Ok(()) => return Ok(()),
                Err(AppendError::Io { source }) => return Err(source),
                Err(_) => tokio::time::sleep(ROOM_PAUSE).await,
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
