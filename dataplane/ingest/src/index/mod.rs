//! The node's index of known chunks: chunk id → where the vault holds it.
//!
//! It is a hint. Losing it, or any part of it, costs space; a wrong answer would cost data. So every
//! entry is compared in full with the id asked for and carries a checksum that covers the id of its
//! log, and what cannot be read or does not check is a miss.
//!
//! **The caller inserts a chunk only once its segment is committed.** A slot that was not may come
//! to hold another segment after a crash, and the index would point into that.
//!
//! On disk, in a folder of its own: entries (`entries`), appended to files of which the oldest give way, and `logs`, the
//! ids of the logs that entries refer to by number. Nothing is flushed: after a power cut what is missing is missing. In
//! memory: 6 bytes a chunk in open-addressing tables (`table`), under 8 with their free slots, and
//! a page cache of fixed size.
//!
//! What was deleted in the vault is let go of now and then (`clearing`).
//!
//! What is useful stays: a chunk that is found shortly before its file goes is written again, and small ones have files of
//! their own.

mod clearing;
mod entries;
mod files;
mod table;

use clearing::Clearing;
use entries::{Entries, Fresh, Ring, Scan};
use farshore_proto::{ChunkId, DecodeError, ErrorKind, VaultId};
use farshore_vault::Location;
use farshore_vault::register::{At, Condemned};
use files::Logs;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use table::Table;

pub use clearing::Synced;
pub use entries::Room;

/// Entries that are inserted for each part of the table that is swept.
const SWEPT_EVERY: usize = 16;

/// What the index met since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Entries found damaged, or of a log that is not known, and skipped.
    pub entries_bad: u64,
    /// Entries cut off the end of the file at the opening.
    pub entries_cut: u64,
    /// Entries read that were of another chunk with the same tag.
    pub tag_collisions: u64,
    /// Pages of entries read from the file.
    pub pages_read: u64,
    /// Reads that failed and were taken as misses.
    pub read_errors: u64,
    /// Times that chunks could not be written again before their file goes.
    pub write_errors: u64,
}

/// An index that cannot be opened or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The operating system refused.
    #[error("cannot {what} {path}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process has the index open.
    #[error("the chunk index {path} is in use by another process", path = path.display())]
    InUse {
        /// The file that is locked.
        path: PathBuf,
    },
    /// The index is of another vault.
    #[error(
        "the chunk index {path} is of vault {found}, not of {expected}; remove it to build a new one",
        path = path.display()
    )]
    OtherVault {
        /// The file.
        path: PathBuf,
        /// The vault asked for.
        expected: VaultId,
        /// The vault found.
        found: VaultId,
    },
    /// The first bytes of a file are not those of an index.
    #[error("{path} is damaged; remove it to build a new one", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: DecodeError,
    },
    /// No more chunks fit.
    #[error("the chunk index is full: it holds {max} {what} and finds no more duplicates")]
    Full {
        /// What there are too many of.
        what: &'static str,
        /// The limit.
        max: usize,
    },
}

impl IndexError {
    /// What the caller does about it. Whatever it is, replication can go on without the index.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                ErrorKind::Limit
            }
            Self::Io { .. } => ErrorKind::Unavailable,
            Self::InUse { .. } => ErrorKind::Conflict,
            Self::OtherVault { .. } => ErrorKind::Invalid,
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Full { .. } => ErrorKind::Limit,
        }
    }
}

/// The open index; one per folder at a time.
#[derive(Debug)]
pub struct Index {
    table: Table,
    entries: Entries,
    logs: Logs,
    counters: Counters,
    /// What of the files the table does not know yet.
    loading: Option<Scan>,
    buffer: Vec<u8>,
    /// Entries that went, and the first part of the table that may still speak of them.
    sweeps: Vec<(Range<u32>, usize)>,
    /// Up to which entry of the vault's register it was cleared.
    cleared: Option<At>,
    clearing: Option<Clearing>,
}

impl Index {
    /// Opens the index in the folder `dir`, or begins one there, and loads it. `vault` is whose chunks it knows.
    ///
    /// Reads all entries once, about 64 bytes each. A torn end is cut off, a damaged entry before
    /// it is skipped; `counters` tells.
    ///
    /// # Errors
    /// `Unavailable` or `Limit` if a file cannot be read or made, `Conflict` if another process has
    /// it open, `Invalid` if it is of another vault, `Corrupt` if its first bytes are damaged:
    /// then `reset` begins anew.
    pub fn open(dir: &Path, vault: VaultId) -> Result<Self, IndexError> {
        let mut index = Self::begin(dir, vault, Room::default())?;
        while index.load_some()? {}
        Ok(index)
    }

    /// As [`Self::open`], with room for so much, and knows nothing before it is loaded: [`Self::load_some`]. It may be used
    /// meanwhile.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn begin(dir: &Path, vault: VaultId, room: Room) -> Result<Self, IndexError> {
        let made = fs::create_dir_all(dir);
        made.map_err(|source| files::io_error("create the folder", dir, source))?;
        // Logs first: its lock keeps others from all files.
        let logs = Logs::open(&dir.join("logs"), vault)?;
        entries::remove(&dir.join("entries"))?;
        let cleared = clearing::read(dir, vault)?;
        if cleared.is_none() {
            // Nobody can tell what of it was deleted since.
            entries::clear(dir)?;
        }
        let mut counters = Counters::default();
        let entries = Entries::open((dir, vault), room, &logs, &mut counters)?;
        let table = Table::for_count(entries.count());
        let loading = Some(entries.scan());
        let buffer = Vec::new();
        let (sweeps, clearing) = (Vec::new(), None);
        Ok(Self { table, entries, logs, counters, loading, buffer, sweeps, cleared, clearing })
    }

    /// Loads a little; false when all is loaded.
    ///
    /// # Errors
    /// `Unavailable` if a file cannot be read: what is not loaded stays unknown.
    pub fn load_some(&mut self) -> Result<bool, IndexError> {
        let Some(scan) = &mut self.loading else { return Ok(false) };
        match self.entries.scan_some(scan, &mut self.buffer) {
            Ok(Some(first)) => {
                let (found, _) = self.buffer.as_chunks();
                for (entry, bytes) in (first..).zip(found) {
                    match files::decode(bytes, &self.logs) {
                        // Known in a newer file perhaps: that is looked at when somebody asks for it.
                        Some((id, _)) => self.table.insert(&id, entry),
                        None if files::is_cleared(bytes) => {}
                        None => self.counters.entries_bad += 1,
                    }
                }
                Ok(true)
            }
            end => {
                (self.loading, self.buffer) = (None, Vec::new());
                end.map(|_| false)
            }
        }
    }

    /// Whether all that the files hold is known.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.loading.is_none()
    }

    /// Throws away the index in `dir`, if there is one, and begins a new one.
    ///
    /// # Errors
    /// As `open`, but for `Invalid` and `Corrupt`. `Conflict` is noticed only after the files are
    /// gone from the folder; the other process goes on with them unseen.
    pub fn reset(dir: &Path, vault: VaultId) -> Result<Self, IndexError> {
        entries::remove(&dir.join("logs"))?;
        entries::clear(dir)?;
        clearing::remove(dir)?;
        Self::open(dir, vault)
    }

    /// Number of chunks known; those that are in two files count twice until the older one goes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no chunk is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries were ever written. It never becomes less, but where some were lost.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.entries.written()
    }

    /// Bytes of memory that grow with the number of chunks: the tables and the ids of logs. The
    /// page cache, `CACHE_BYTES`, comes on top.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.table.memory_bytes() + self.logs.memory_bytes()
    }

    /// Bytes of the page cache when it is full.
    pub const CACHE_BYTES: usize = entries::CACHE_BYTES;

    /// What was met since the opening.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Looks each id up, in order, past entries that are refused. A chunk that is known may be missed if its entry cannot be read.
    pub fn lookup(&mut self, ids: &[ChunkId], refused: &Condemned) -> Vec<Option<Location>> {
        let found: Vec<_> = ids.iter().map(|id| self.find(id, refused)).collect();
        let mut old = [Vec::new(), Vec::new()];
        for (id, found) in ids.iter().zip(&found) {
            if let Some((entry, location)) = found
                && self.entries.is_old(*entry)
            {
                old[Ring::of(location) as usize].push((*id, *location, Some(*entry)));
            }
        }
        for ring in Ring::BOTH {
            // The file that they are in may go now.
            if self.write(ring, &old[ring as usize]).is_err() {
                self.counters.write_errors += 1;
            }
        }
        found.into_iter().map(|found| found.map(|(_, location)| location)).collect()
    }

    /// Adds chunks whose segments are committed, in the order in which they are likely to be looked
    /// up together. A chunk known elsewhere is from now on known here; of two equal ids in one call
    /// the first counts. The oldest that nobody asked for give way.
    ///
    /// # Errors
    /// `Unavailable` or `Limit` if the entries cannot be written, `Limit` if there are too many logs.
    /// Some of `chunks` are not known then; the index stays usable.
    pub fn insert(&mut self, chunks: &[(ChunkId, Location)]) -> Result<(), IndexError> {
        let (mut seen, nothing) = (BTreeSet::new(), Condemned::default());
        let mut fresh = [Vec::new(), Vec::new()];
        for (id, location) in chunks {
            if !seen.insert(*id) {
                continue;
            }
            let known = self.find(id, &nothing);
            if known.is_none_or(|(_, known)| known != *location) {
                let old = known.map(|(entry, _)| entry);
                fresh[Ring::of(location) as usize].push((*id, *location, old));
            }
        }
        Ring::BOTH.into_iter().try_for_each(|ring| self.write(ring, &fresh[ring as usize]))
    }

    /// Writes entries, each perhaps in the place of an old one.
    fn write(
        &mut self,
        ring: Ring,
        mut chunks: &[(ChunkId, Location, Option<u32>)],
    ) -> Result<(), IndexError> {
        while !chunks.is_empty() {
            if self.entries.room_left(ring) == 0 {
                // The place of the new file is one that was swept; it may be that one.
                self.sweep(usize::MAX);
                let gone = self.entries.begin_file(ring)?;
                self.clearing.iter_mut().for_each(|clearing| clearing.forget(&gone));
                self.sweeps.push((gone, 0));
            }
            let (now, later) = chunks.split_at(chunks.len().min(self.entries.room_left(ring)));
            let numbered = now.iter().map(|(id, location, _)| {
                Ok((*id, *location, self.logs.intern(location.target.log)?))
            });
            let fresh: Vec<Fresh> = numbered.collect::<Result<_, IndexError>>()?;
            let first = self.entries.append(ring, &fresh)?;
            for (entry, (id, _, old)) in (first..).zip(now) {
                match old {
                    Some(old) if self.table.replace(id, *old, entry) => {}
                    _ => self.table.insert(id, entry),
                }
            }
            self.sweep(1 + now.len() / SWEPT_EVERY);
            chunks = later;
        }
        Ok(())
    }

    /// Lets go of entries whose files went, in so many parts of the table.
    fn sweep(&mut self, parts: usize) {
        for _ in 0..parts {
            let Some((gone, next)) = self.sweeps.last_mut() else { return };
            if self.table.sweep(*next, |entry| gone.contains(&entry)) {
                *next += 1;
            } else {
                self.sweeps.pop();
            }
        }
    }

    /// The number and location of the newest entry of `id` that is not refused.
    fn find(&mut self, id: &ChunkId, refused: &Condemned) -> Option<(u32, Location)> {
        let mut newest: Option<(u32, Location)> = None;
        for entry in self.table.candidates(id) {
            match self.entries.read(entry, &mut self.counters) {
                Err(_) => self.counters.read_errors += 1,
                Ok(None) => {}
                Ok(Some(bytes)) => match files::decode(&bytes, &self.logs) {
                    None if files::is_cleared(&bytes) => {}
                    None => self.counters.entries_bad += 1,
                    Some((_, Location { target, .. })) if refused.contains(&target) => {}
                    Some((found, location)) if found == *id => {
                        let age = |(entry, _): (u32, Location)| self.entries.age(entry);
                        if newest.map(age) < Some(self.entries.age(entry)) {
                            newest = Some((entry, location));
                        }
                    }
                    Some(_) => self.counters.tag_collisions += 1,
                },
            }
        }
        newest
    }
}

#[cfg(test)]
mod tests;
