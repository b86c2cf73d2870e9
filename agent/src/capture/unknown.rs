//! The blocks of a disk that cannot be read: what they hold is unknown, and everything else is
//! replicated without them.
//!
//! Kept in `unknown.json` (`docs/formats/unknown.md`), durably before it is noted that a copy passed by, or
//! before intents are cleared, so that no start of the agent takes them for copied. A block is known again
//! once it was read or written in full. However many there are, they are told, and the rest goes on.

use crate::durable::replace;
use crate::files::Files;
use farshore_proto::BlockRange;
use farshore_proto::limits::{BLOCK_BYTES, VOLUME_BLOCKS_MAX};
use farshore_proto::wire::put_crc;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Name of the file, in the volume's directory.
pub const UNKNOWN_FILE: &str = "unknown.json";
/// Ranges that are kept apart; more are joined over what lies between, which is unknown then too.
const RANGES_MAX: usize = 4096;
/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// First block and the one behind the last, in order.
    ranges: Vec<(u64, u64)>,
    crc32c: u32,
}

/// The unknown blocks of one disk.
#[derive(Debug)]
pub struct Unknown {
    files: Arc<dyn Files>,
    path: PathBuf,
    /// Held while the file is written: what is told of the blocks waits for no disk.
    lane: Mutex<()>,
    inner: Mutex<Inner>,
    count: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    ranges: BTreeMap<u64, u64>,
    /// Changes so far, and how many of them the file has.
    changes: u64,
    noted: u64,
    /// Why the file could not be written last.
    trouble: Option<String>,
}

fn checksum(ranges: &[(u64, u64)]) -> u32 {
    let bytes = ranges.iter().flat_map(|(from, to)| [from.to_le_bytes(), to.to_le_bytes()]);
    let mut bytes: Vec<u8> = bytes.flatten().collect();
    let end = bytes.len();
    put_crc(&mut bytes, 0);
    bytes[end..].try_into().map_or(0, u32::from_le_bytes)
}

impl Unknown {
    /// Reads what is kept in a volume's directory; blocks.
    ///
    /// # Errors
    /// `InvalidData` if it is damaged, otherwise what the system said.
    pub fn open(files: Arc<dyn Files>, dir: &Path) -> io::Result<Self> {
        let path = dir.join(UNKNOWN_FILE);
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let ranges = match files.read(&path) {
            Ok(bytes) => {
                let kept: Kept = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
                let is_good = kept.ranges.is_sorted_by(|a, b| a.1 < b.0)
                    && kept.ranges.iter().all(|(from, to)| from < to && *to <= VOLUME_BLOCKS_MAX)
                    && kept.ranges.len() <= RANGES_MAX
                    && checksum(&kept.ranges) == kept.crc32c;
                if !is_good {
                    return Err(invalid());
                }
                kept.ranges.into_iter().collect()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        let unknown = Self::none(files, dir);
        unknown.recount(&ranges);
        unknown.lock().ranges = ranges;
        Ok(unknown)
    }

    /// None, whatever was kept; the disk is read anew.
    #[must_use]
    pub fn none(files: Arc<dyn Files>, dir: &Path) -> Self {
        let path = dir.join(UNKNOWN_FILE);
        let (lane, inner, count) = (Mutex::default(), Mutex::default(), AtomicU64::new(0));
        Self { files, path, lane, inner, count }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recount(&self, ranges: &BTreeMap<u64, u64>) {
        self.count.store(ranges.iter().map(|(from, to)| to - from).sum(), Ordering::Relaxed);
    }

    /// Makes durable what is known of the blocks; blocks.
    ///
    /// # Errors
    /// What the system said: then nothing may be noted that relies on it.
    pub fn settle(&self) -> io::Result<()> {
        let _lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        let (ranges, changes) = {
            let inner = self.lock();
            if inner.noted == inner.changes {
                return Ok(());
            }
            let ranges: Vec<(u64, u64)> =
                inner.ranges.iter().map(|(from, to)| (*from, *to)).collect();
            (ranges, inner.changes)
        };
        let kept = Kept { crc32c: checksum(&ranges), ranges };
        let bytes = serde_json::to_vec(&kept).map_err(io::Error::other)?;
        let written = replace(&*self.files, &self.path, &bytes);
        let mut inner = self.lock();
        match &written {
            Ok(()) => (inner.noted, inner.trouble) = (changes, None),
            Err(error) => {
                let trouble = error.to_string();
                if inner.trouble.as_ref() != Some(&trouble) {
                    let path = self.path.display();
                    tracing::warn!(%path, %error, "which blocks cannot be read cannot be noted");
                }
                inner.trouble = Some(trouble);
            }
        }
        written
    }

    /// Why it cannot be noted which blocks are unknown; none if it could be.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// Number of unknown blocks.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The first byte that is unknown.
    #[must_use]
    pub fn first_byte(&self) -> Option<u64> {
        self.lock().ranges.keys().next().map(|block| block * BLOCK_BYTES as u64)
    }

    /// The unknown parts of a range, in order.
    #[must_use]
    pub fn within(&self, blocks: BlockRange) -> Vec<BlockRange> {
        if self.count() == 0 {
            return Vec::new();
        }
        let inner = self.lock();
        let clip = |(from, to): (&u64, &u64)| {
            let (from, to) = ((*from).max(blocks.block), (*to).min(blocks.end()));
            (from < to).then(|| BlockRange { block: from, count: to - from })
        };
        inner.ranges.range(..blocks.end()).filter_map(clip).collect()
    }

    /// The parts of a range that are not unknown, in order.
    #[must_use]
    pub fn readable(&self, blocks: BlockRange) -> Vec<BlockRange> {
        let (mut parts, mut from) = (Vec::new(), blocks.block);
        let end = BlockRange { block: blocks.end(), count: 0 };
        for bad in self.within(blocks).into_iter().chain([end]) {
            if from < bad.block {
                parts.push(BlockRange { block: from, count: bad.block - from });
            }
            from = bad.end();
        }
        parts
    }

    /// Blocks cannot be read; [`Unknown::settle`] makes that durable.
    pub fn add(&self, blocks: BlockRange) {
        let mut inner = self.lock();
        let ranges = &mut inner.ranges;
        if ranges.range(..=blocks.block).next_back().is_some_and(|(_, to)| *to >= blocks.end()) {
            return;
        }
        let (mut from, mut to) = (blocks.block, blocks.end());
        while let Some((&other, &end)) = ranges.range(..=to).next_back()
            && end >= from
        {
            (from, to) = (from.min(other), to.max(end));
            ranges.remove(&other);
        }
        ranges.insert(from, to);
        if ranges.len() > RANGES_MAX {
            join_closest(ranges);
        }
        self.recount(ranges);
        inner.changes += 1;
    }

    /// Blocks are known. That this is forgotten in a crash costs another read of them.
    pub fn remove(&self, blocks: BlockRange) {
        if self.within(blocks).is_empty() {
            return;
        }
        let mut inner = self.lock();
        let ranges = &mut inner.ranges;
        let touched: Vec<(u64, u64)> = ranges
            .range(..blocks.end())
            .filter(|(_, to)| **to > blocks.block)
            .map(|(from, to)| (*from, *to))
            .collect();
        for (from, to) in touched {
            ranges.remove(&from);
            if from < blocks.block {
                ranges.insert(from, blocks.block);
            }
            if to > blocks.end() {
                ranges.insert(blocks.end(), to);
            }
        }
        // A hole in the middle of a run makes two of it.
        if ranges.len() > RANGES_MAX {
            join_closest(ranges);
        }
        self.recount(ranges);
        inner.changes += 1;
    }
}

fn join_closest(ranges: &mut BTreeMap<u64, u64>) {
    let pairs = ranges.iter().zip(ranges.iter().skip(1));
    let closest = pairs.min_by_key(|((_, to), (from, _))| *from - *to);
    if let Some((first, second, end)) = closest.map(|((first, _), (from, to))| (*first, *from, *to))
    {
        ranges.remove(&second);
        ranges.insert(first, end);
    }
}

/// Whether the first or the last block of a disk can be read: otherwise all of it has failed.
pub fn is_alive(size_bytes: u64, mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>) -> bool {
    let mut block = vec![0; BLOCK_BYTES];
    let last = size_bytes.saturating_sub(1) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    read(&mut block, 0).is_ok() || read(&mut block, last).is_ok()
}

/// What could be read of some blocks, and what could not.
#[derive(Debug, Default)]
pub struct Readable {
    /// Runs with their bytes.
    pub data: Vec<(BlockRange, Vec<u8>)>,
    /// Runs that cannot be read.
    pub bad: Vec<BlockRange>,
}

/// Reads blocks one by one after a read of all of them failed with `error`; blocks the thread.
///
/// # Errors
/// `error`, if nothing at all can be read there and `is_alive` says that the disk has failed.
pub fn read_singly(
    blocks: BlockRange,
    error: io::Error,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
    is_alive: impl FnOnce() -> bool,
) -> io::Result<Readable> {
    let mut found = Readable::default();
    for block in blocks.block..blocks.end() {
        let one = BlockRange { block, count: 1 };
        let mut bytes = vec![0; BLOCK_BYTES];
        if read(&mut bytes, one.offset()).is_ok() {
            match found.data.last_mut() {
                Some((run, data)) if run.end() == block => {
                    run.count += 1;
                    data.extend_from_slice(&bytes);
                }
                _ => found.data.push((one, bytes)),
            }
        } else {
            match found.bad.last_mut() {
                Some(run) if run.end() == block => run.count += 1,
                _ => found.bad.push(one),
            }
        }
    }
    if found.data.is_empty() && !is_alive() { Err(error) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::OsFiles;

    fn range(block: u64, count: u64) -> BlockRange {
        BlockRange { block, count }
    }

    fn open(dir: &Path) -> Unknown {
        Unknown::open(Arc::new(OsFiles), dir).unwrap()
    }

    #[test]
    fn ranges_are_joined_cut_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let unknown = open(dir.path());
        assert_eq!((unknown.count(), unknown.first_byte()), (0, None));
        for blocks in [range(10, 5), range(20, 5), range(15, 5), range(3, 1), range(12, 2)] {
            unknown.add(blocks);
        }
        let all = range(0, 100);
        assert_eq!(unknown.within(all), [range(3, 1), range(10, 15)]);
        assert_eq!((unknown.count(), unknown.first_byte()), (16, Some(3 * 4096)));
        unknown.remove(range(12, 10));
        unknown.remove(range(0, 4));
        let left = [range(10, 2), range(22, 3)];
        assert_eq!(unknown.readable(range(9, 15)), [range(9, 1), range(12, 10)]);
        unknown.settle().unwrap();
        assert_eq!(unknown.within(all), left);
        assert_eq!(unknown.within(range(11, 12)), [range(11, 1), range(22, 1)]);
        assert_eq!(open(dir.path()).within(all), left);
        let path = dir.path().join(UNKNOWN_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("[10,", "[11,")).unwrap();
        let damaged = Unknown::open(Arc::new(OsFiles), dir.path()).unwrap_err();
        assert_eq!(damaged.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn there_are_never_too_many_ranges() {
        let mut ranges: BTreeMap<u64, u64> = (0..5).map(|at| (at * 10, at * 10 + 1)).collect();
        ranges.insert(43, 44);
        join_closest(&mut ranges);
        assert_eq!(ranges.len(), 5);
        assert_eq!(ranges[&40], 44, "what lies between is unknown too");
        let dir = tempfile::tempdir().unwrap();
        let unknown = open(dir.path());
        (0..2 * RANGES_MAX as u64).for_each(|at| unknown.add(range(at * 10, 1)));
        unknown.add(range(1 << 20, 1 << 20));
        unknown.remove(range((1 << 20) + 7, 1));
        unknown.settle().unwrap();
        let kept = open(dir.path());
        assert_eq!(kept.within(range(0, 1 << 30)).len(), RANGES_MAX);
        assert!(kept.count() > 1 << 20, "however many there are");
    }

    #[test]
    fn what_can_be_read_is_read_and_a_dead_disk_is_one() {
        let read = |bytes: &mut [u8], offset: u64| {
            bytes.fill(7);
            if offset == 2 * 4096 { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
        };
        let error = || io::Error::other("all of it");
        let found = read_singly(range(0, 5), error(), read, || unreachable!()).unwrap();
        assert_eq!(found.bad, [range(2, 1)]);
        let runs: Vec<_> = found.data.iter().map(|(run, data)| (*run, data.len())).collect();
        assert_eq!(runs, [(range(0, 2), 8192), (range(3, 2), 8192)]);
        let found = read_singly(range(2, 1), error(), read, || true).unwrap();
        assert_eq!((found.data.len(), found.bad), (0, vec![range(2, 1)]));
        assert!(read_singly(range(2, 1), error(), read, || false).is_err());
    }
}
