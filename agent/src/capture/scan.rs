//! The scanner: reads the whole disk again and again, and logs the units whose hash differs from
//! what the log or vault holds. A mark follows each whole pass.
//!
//! Needs nothing in front of the disk. If the disk is written during a pass, a point holds each
//! unit as it was when the pass came by; a disk that rests is held exactly.

use super::blocks::{entries_of, is_zero};
use super::copy::has_room_to_copy;
use super::hashes::{Hash, Hashes, UNIT_BYTES, ZEROS};
use super::progress::Progress;
use super::steps::{Call, Steps};
use super::unknown::{Readable, Unknown, is_alive, read_singly};
use crate::disk::{Disk, DiskError};
use crate::hrl::{AppendError, Entry, Log};
use crate::rt::{Buffer, READ_BYTES_MAX, ReadFile, Share};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::{BlockRange, Seq};
use futures::stream::{FuturesOrdered, StreamExt};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Runs being read at once.
const RUNS_MAX: usize = 4;
/// Changed bytes gathered before they are logged together.
const GATHER_BYTES: usize = 16 << 20;
const ROOM_PAUSE: Duration = Duration::from_millis(50);
/// What is gathered is logged after waiting so long for the next run: others may wait for its memory.
const GATHER_PAUSE: Duration = Duration::from_millis(100);
/// Between two attempts to read what could not be read.
#[cfg(not(test))]
const RETRY_PAUSE: Duration = Duration::from_secs(600);
#[cfg(test)]
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// Holes are passed over so far at once.
const HOLE_BYTES_MAX: u64 = 256 << 20;
const UNIT: u64 = UNIT_BYTES as u64;

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
    core: Arc<Core>,
    reads: ReadFile,
    /// Whether nothing was ever put into the stream: then the vault reads zeros everywhere, and zeros
    /// need not be sent in the pass that comes first.
    is_stream_empty: AtomicBool,
    /// When it was tried last to read what could not be read.
    retried: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Core {
    disk: Arc<Disk>,
    log: Arc<Log>,
    hashes: Hashes,
    progress: Arc<Progress>,
    unknown: Arc<Unknown>,
    steps: Steps,
    /// Whether this pass tries to read what could not be read before.
    retries: AtomicBool,
}

/// Units that differ: one, or a run of zeros.
#[derive(Debug)]
struct Changed {
    unit: u64,
    units: u64,
    hash: Hash,
    was_known: bool,
    data: Content,
}

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    /// So many bytes.
    Zeros(u64),
    /// What could be read of a unit; the rest is unknown.
    Parts(Vec<(BlockRange, Vec<u8>)>),
}

impl Changed {
    fn memory(&self) -> usize {
        match &self.data {
            Content::Bytes(data) => data.len(),
            Content::Zeros(_) => 0,
            Content::Parts(parts) => parts.iter().map(|(_, data)| data.len()).sum(),
        }
    }

    fn block(&self) -> u64 {
        self.unit * (UNIT / BLOCK_BYTES as u64)
    }
}

/// A run that was looked at.
struct Run {
    end: u64,
    changed: Vec<Changed>,
    /// Holds the memory of what changed.
    share: Option<Share>,
}

impl Scanner {
    /// A scanner over an open disk, its log and its hashes.
    #[must_use]
    pub fn new(
        disk: Arc<Disk>,
        log: Arc<Log>,
        hashes: Hashes,
        (progress, unknown): (Arc<Progress>, Arc<Unknown>),
        reads: ReadFile,
        steps: Steps,
    ) -> Self {
        let is_stream_empty = AtomicBool::new(log.last() == Seq(0));
        let retries = AtomicBool::new(true);
        let core = Arc::new(Core { disk, log, hashes, progress, unknown, steps, retries });
        Self { core, reads, is_stream_empty, retried: Mutex::default() }
    }

    /// Whether the hashes count for nothing any more: the copy has begun again.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.core.progress.restarts() != self.core.hashes.restarts()
    }

    /// Reads the disk once and logs what differs. False if the copy began again meanwhile.
    ///
    /// # Errors
    /// [`ScanError`].
    pub async fn pass(&self) -> Result<bool, ScanError> {
        // A pass that breaks off leaves a stream that is not empty, as far as anybody knows.
        let skips_zeros = self.is_stream_empty.swap(false, Ordering::Relaxed);
        let core = &self.core;
        self.decide_retry();
        // Its file system may hang.
        let checked = Arc::clone(core);
        let checked = tokio::task::spawn_blocking(move || checked.disk.check()).await;
        match checked.map_err(io::Error::other)? {
            // What it has grown by is for later.
            Ok(()) | Err(DiskError::Grown { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let lease = core.progress.lease();
        let (mut gathered, mut shares) = (Vec::new(), Vec::new());
        let mut next = 0;
        let size = core.disk.size_bytes().next_multiple_of(BLOCK_BYTES as u64);
        let mut runs = FuturesOrdered::new();
        loop {
            while next < size && runs.len() < RUNS_MAX {
                let from = next;
                let hole = blocking_core(core, move |core| core.hole_at(from)).await?;
                next = if hole > from { hole } else { size.min(from + READ_BYTES_MAX as u64) };
                runs.push_back(self.look_at(from..next, hole > from));
            }
            let run = match tokio::time::timeout(GATHER_PAUSE, runs.next()).await {
                Ok(Some(run)) => run?,
                Ok(None) => break,
                Err(_) => {
                    self.log_changed(std::mem::take(&mut gathered), skips_zeros).await?;
                    shares.clear();
                    continue;
                }
            };
            gathered.extend(run.changed);
            shares.extend(run.share);
            if gathered.iter().map(Changed::memory).sum::<usize>() >= GATHER_BYTES {
                self.log_changed(std::mem::take(&mut gathered), skips_zeros).await?;
                shares.clear();
            }
            if let Some(lease) = lease
                && !core.progress.advance(lease, run.end)
            {
                return Ok(false);
            }
        }
        self.log_changed(gathered, skips_zeros).await?;
        if let Some(lease) = lease {
            let is_done = blocking_core(core, move |core| {
                core.unknown.settle()?;
                core.log.sync()?;
                core.progress.finish(lease, core.log.last())
            });
            if !is_done.await? {
                return Ok(false);
            }
        }
        Ok(!self.is_void() && core.progress.end().is_some())
    }

    /// Bad sectors take seconds each to say so: they are asked now and then.
    fn decide_retry(&self) {
        let mut retried = self.retried.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = retried.is_none_or(|at| at.elapsed() > RETRY_PAUSE);
        if is_due {
            *retried = Some(Instant::now());
        }
        self.core.retries.store(is_due, Ordering::Relaxed);
    }

    /// Looks at one run and finds the units that differ.
    async fn look_at(&self, range: std::ops::Range<u64>, is_hole: bool) -> io::Result<Run> {
        let end = range.end;
        if is_hole {
            let changed = blocking_core(&self.core, move |core| core.compare_zeros(range)).await?;
            return Ok(Run { end, changed, share: None });
        }
        let bytes = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let mut share = self.reads.share(bytes).await?;
        let offset = range.start;
        let is_damaged = {
            let blocks = blocks_of(&range);
            !self.core.unknown.within(blocks).is_empty()
        };
        let call = Call::Read { offset, length: bytes as u64 };
        let read = match is_damaged {
            true => Err(io::Error::other("some of it could not be read before")),
            false => match self.core.steps.call(call) {
                Ok(()) => self.reads.read(offset, bytes).await,
                Err(error) => Err(error),
            },
        };
        let changed = blocking_core(&self.core, move |core| match read {
            Ok(buffer) => core.compare(offset, &buffer),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(error),
            Err(error) => core.compare_singly(range, error),
        })
        .await?;
        share.shrink(changed.iter().map(Changed::memory).sum());
        let share = (!changed.is_empty()).then_some(share);
        Ok(Run { end, changed, share })
    }

    /// Puts units into the log and notes their hashes, in the order that the hashes file asks for.
    async fn log_changed(&self, changed: Vec<Changed>, skips_zeros: bool) -> io::Result<()> {
        if changed.is_empty() {
            return Ok(());
        }
        let changed = Arc::new(changed);
        let units = Arc::clone(&changed);
        blocking_core(&self.core, move |core| {
            let known = units.iter().filter(|changed| changed.was_known);
            core.hashes.forget(known.flat_map(|changed| changed.unit..changed.unit + changed.units))
        })
        .await?;
        let last_unit = super::hashes::units(self.core.disk.size_bytes()) - 1;
        let mut from = 0;
        while from < changed.len() {
            // Neighbours become one run of frames.
            let mut to = from + 1;
            while to < changed.len()
                && changed[to].unit == changed[to - 1].unit + changed[to - 1].units
                && to - from < 16
            {
                to += 1;
            }
            // The last unit is always sent: a stream says how far it came by what is in it.
            let is_last = changed[to - 1].unit + changed[to - 1].units > last_unit;
            self.append(Arc::clone(&changed), from..to, skips_zeros && !is_last).await?;
            from = to;
        }
        blocking_core(&self.core, move |core| {
            core.unknown.settle()?;
            let end = core.log.last();
            core.log.sync()?;
            // Not noted after a restart of the log: then the hashes are void too.
            if !core.progress.note_logged(end, core.hashes.restarts())? {
                return Ok(());
            }
            core.hashes.note(changed.iter().flat_map(|changed| {
                let units = changed.unit..changed.unit + changed.units;
                units.map(move |unit| (unit, changed.hash))
            }))
        })
        .await
    }

    async fn append(
        &self,
        changed: Arc<Vec<Changed>>,
        run: std::ops::Range<usize>,
        skips_zeros: bool,
    ) -> io::Result<()> {
        loop {
            while !has_room_to_copy(&self.core.log) {
                tokio::time::sleep(ROOM_PAUSE).await;
            }
            let (core, changed, run) = (Arc::clone(&self.core), Arc::clone(&changed), run.clone());
            let appended = tokio::task::spawn_blocking(move || {
                let data = joined(&changed[run.clone()]);
                let entries = entries(&changed[run], &data);
                let is_sent =
                    |entry: &Entry<'_>| !skips_zeros || !matches!(entry, Entry::Zero { .. });
                let entries: Vec<Entry<'_>> = entries.into_iter().filter(is_sent).collect();
                if entries.is_empty() { Ok(()) } else { core.log.append(&entries).map(|_| ()) }
            });
            match appended.await.map_err(io::Error::other)? {
                Ok(()) => return Ok(()),
                Err(AppendError::Io { source }) => return Err(source),
                Err(_) => tokio::time::sleep(ROOM_PAUSE).await,
            }
        }
    }
}

/// The bytes of neighbouring units in one piece: frames are longer than units.
fn joined(changed: &[Changed]) -> Vec<Vec<u8>> {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let mut is_open = false;
    for unit in changed {
        match (&unit.data, pieces.last_mut()) {
            (Content::Bytes(data), Some(piece)) if is_open => piece.extend_from_slice(data),
            (Content::Bytes(data), _) => {
                let mut piece = Vec::with_capacity(changed.len() * UNIT_BYTES);
                piece.extend_from_slice(data);
                pieces.push(piece);
            }
            _ => {}
        }
        is_open = matches!(unit.data, Content::Bytes(_));
    }
    pieces
}

/// The log entries of neighbouring units; `pieces` are their joined bytes.
fn entries<'a>(changed: &'a [Changed], pieces: &'a [Vec<u8>]) -> Vec<Entry<'a>> {
    let (mut entries, mut pieces) = (Vec::new(), pieces.iter());
    let mut is_open = false;
    for unit in changed {
        match &unit.data {
            Content::Bytes(_) if is_open => {}
            Content::Bytes(_) => {
                let piece = pieces.next().expect("one for each run of bytes");
                entries.extend(entries_of(unit.block(), piece));
            }
            Content::Zeros(bytes) => {
                let count = bytes.div_ceil(BLOCK_BYTES as u64);
                let range = BlockRange { block: unit.block(), count };
                entries.push(Entry::Zero { range, is_copy: true });
            }
            Content::Parts(parts) => {
                let parts = parts.iter().flat_map(|(run, data)| entries_of(run.block, data));
                entries.extend(parts);
            }
        }
        is_open = matches!(unit.data, Content::Bytes(_));
    }
    entries
}

fn blocks_of(range: &std::ops::Range<u64>) -> BlockRange {
    let block = range.start / BLOCK_BYTES as u64;
    BlockRange { block, count: range.end.div_ceil(BLOCK_BYTES as u64) - block }
}

impl Core {
    /// Where a hole of whole units that begins at `from` ends; `from` if none is worth passing over.
    fn hole_at(&self, from: u64) -> io::Result<u64> {
        let size = self.disk.size_bytes().next_multiple_of(BLOCK_BYTES as u64);
        let data = self.disk.next_data(from)?;
        let end = if data >= self.disk.size_bytes() { size } else { data / UNIT * UNIT };
        let end = end.min(from + HOLE_BYTES_MAX);
        Ok(if end >= from + READ_BYTES_MAX as u64 || (end == size && end > from) {
            end
        } else {
            from
        })
    }

    /// The units of a hole that were not zeros before.
    fn compare_zeros(&self, range: std::ops::Range<u64>) -> io::Result<Vec<Changed>> {
        let first = range.start / UNIT;
        let count = (range.end - range.start).div_ceil(UNIT);
        self.unknown.remove(blocks_of(&range));
        let known = self.hashes.read(first, usize::try_from(count).map_err(io::Error::other)?)?;
        let mut changed: Vec<Changed> = Vec::new();
        for (known, unit) in known.into_iter().zip(first..) {
            if known == ZEROS {
                continue;
            }
            let bytes = UNIT.min(range.end - unit * UNIT);
            let was_known = known != Hash::default();
            match changed.last_mut() {
                Some(Changed {
                    unit: from,
                    units,
                    was_known: was,
                    data: Content::Zeros(all),
                    ..
                }) if *from + *units == unit && *was == was_known => {
                    *units += 1;
                    *all += bytes;
                }
                _ => changed.push(zeros(unit, was_known, bytes)),
            }
        }
        Ok(changed)
    }

    fn compare(&self, offset: u64, buffer: &Buffer) -> io::Result<Vec<Changed>> {
        let first = offset / UNIT;
        let known = self.hashes.read(first, buffer.len().div_ceil(UNIT_BYTES))?;
        let mut changed = Vec::new();
        for ((data, known), unit) in buffer.chunks(UNIT_BYTES).zip(known).zip(first..) {
            let hash = if is_zero(data) { ZEROS } else { self.hashes.of(data) };
            if hash != known {
                let was_known = known != Hash::default();
                changed.push(if hash == ZEROS {
                    zeros(unit, was_known, data.len() as u64)
                } else {
                    Changed { unit, units: 1, hash, was_known, data: Content::Bytes(data.to_vec()) }
                });
            }
        }
        Ok(changed)
    }

    /// As `compare`, after the run could not be read as a whole: unit by unit, and block by block where
    /// a unit cannot be read either.
    fn compare_singly(
        &self,
        range: std::ops::Range<u64>,
        error: io::Error,
    ) -> io::Result<Vec<Changed>> {
        let mut changed = Vec::new();
        let mut error = Some(error);
        for from in range.clone().step_by(UNIT_BYTES) {
            let blocks = blocks_of(&(from..range.end.min(from + UNIT)));
            let found = match self.unknown.within(blocks).is_empty() {
                true => self
                    .read(blocks)
                    .map(|data| Readable { data: vec![(blocks, data)], bad: vec![] }),
                false => Err(io::Error::other("it could not be read before")),
            };
            let found = match found {
                Ok(found) => found,
                Err(again) => {
                    let error = error.take().unwrap_or(again);
                    let read = |data: &mut [u8], offset: u64| self.retry(data, offset);
                    read_singly(blocks, error, read, || {
                        is_alive(self.disk.size_bytes(), |data, at| self.read_into(data, at))
                    })?
                }
            };
            for bad in &found.bad {
                self.unknown.add(*bad);
            }
            for (good, _) in &found.data {
                self.unknown.remove(*good);
            }
            let unit = from / UNIT;
            let mut content = blake3::Hasher::new();
            for (run, data) in &found.data {
                content.update(&run.block.to_le_bytes()).update(data);
            }
            let hash = match &found.data[..] {
                [(run, data)] if *run == blocks && is_zero(data) => ZEROS,
                [(run, data)] if *run == blocks => self.hashes.of(data),
                _ => self.hashes.of(content.finalize().as_bytes()),
            };
            let known = self.hashes.read(unit, 1)?[0];
            if hash != known && !found.data.is_empty() {
                let was_known = known != Hash::default();
                changed.push(Changed {
                    unit,
                    units: 1,
                    hash,
                    was_known,
                    data: Content::Parts(found.data),
                });
            }
        }
        Ok(changed)
    }

    /// Reads one block, unless it is known to be bad and not due.
    fn retry(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        let block = BlockRange { block: offset / BLOCK_BYTES as u64, count: 1 };
        let is_bad = !self.unknown.within(block).is_empty();
        if is_bad && !self.retries.load(Ordering::Relaxed) {
            return Err(io::Error::other("it could not be read before"));
        }
        self.read_into(data, offset)
    }

    fn read(&self, blocks: BlockRange) -> io::Result<Vec<u8>> {
        let mut data = vec![0; usize::try_from(blocks.bytes()).map_err(io::Error::other)?];
        self.read_into(&mut data, blocks.offset())?;
        Ok(data)
    }

    fn read_into(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.steps.call(Call::Read { offset, length: data.len() as u64 })?;
        self.disk.read(data, offset)
    }
}

fn zeros(unit: u64, was_known: bool, bytes: u64) -> Changed {
    Changed { unit, units: 1, hash: ZEROS, was_known, data: Content::Zeros(bytes) }
}

async fn blocking_core<T: Send + 'static>(
    core: &Arc<Core>,
    work: impl FnOnce(&Core) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let core = Arc::clone(core);
    tokio::task::spawn_blocking(move || work(&core)).await.map_err(io::Error::other)?
}
