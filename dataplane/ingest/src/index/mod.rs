//! The node's index of known chunks: chunk id → where the vault holds it.
//!
//! It is a hint. Losing it, or any part of it, costs space; a wrong answer would cost data. So every
//! entry is compared in full with the id asked for and carries a checksum that covers the id of its
//! log, and what cannot be read or does not check is a miss.
//!
//! **The caller inserts a chunk only once its segment is committed.** A slot that was not may come
//! to hold another segment after a crash, and the index would point into that.
//!
//! On disk, in a folder of its own: `entries`, appended to, and `logs`, the ids of the logs that
//! entries refer to by number. Nothing is flushed: after a power cut what is missing is missing. In
//! memory: 6 bytes a chunk in open-addressing tables (`table`), under 8 with their free slots, and
//! a page cache of fixed size.

mod files;
mod table;

use farshore_proto::{ChunkId, DecodeError, ErrorKind, VaultId};
use farshore_vault::Location;
use files::{Entries, Logs};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use table::{ENTRIES_MAX, Table};

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
}

impl Index {
    /// Opens the index in the folder `dir`, or begins one there. `vault` is whose chunks it knows.
    ///
    /// Reads all entries once, about 64 bytes each. A torn end is cut off, a damaged entry before
    /// it is skipped; `counters` tells.
    ///
    /// # Errors
    /// `Unavailable` or `Limit` if a file cannot be read or made, `Conflict` if another process has
    /// it open, `Invalid` if it is of another vault, `Corrupt` if its first bytes are damaged:
    /// then `reset` begins anew.
    pub fn open(dir: &Path, vault: VaultId) -> Result<Self, IndexError> {
        fs::create_dir_all(dir).map_err(|source| IndexError::Io {
            what: "create the folder",
            path: dir.to_owned(),
            source,
        })?;
        // Entries first: their lock keeps others from both files.
        let entries = Entries::open(&dir.join("entries"), vault)?;
        let logs = Logs::open(&dir.join("logs"), vault)?;
        let table = Table::for_count(entries.count() as usize);
        let mut index = Self { table, entries, logs, counters: Counters::default() };
        index.load()?;
        Ok(index)
    }

    /// Throws away the index in `dir`, if there is one, and begins a new one.
    ///
    /// # Errors
    /// As `open`, but for `Invalid` and `Corrupt`. `Conflict` is noticed only after the files are
    /// gone from the folder; the other process goes on with them unseen.
    pub fn reset(dir: &Path, vault: VaultId) -> Result<Self, IndexError> {
        for name in ["entries", "logs"] {
            let path = dir.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(IndexError::Io { what: "remove", path, source });
                }
                _ => {}
            }
        }
        Self::open(dir, vault)
    }

    /// Number of chunks known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no chunk is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that grow with the number of chunks: the tables and the ids of logs. The
    /// page cache, `CACHE_BYTES`, comes on top.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.table.memory_bytes() + self.logs.memory_bytes()
    }

    /// Bytes of the page cache when it is full.
    pub const CACHE_BYTES: usize = files::CACHE_BYTES;

    /// What was met since the opening.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Looks each id up, in order. A chunk that is known may be missed if its entry cannot be read.
    pub fn lookup(&mut self, ids: &[ChunkId]) -> Vec<Option<Location>> {
        ids.iter().map(|id| self.find(id).map(|(_, location)| location)).collect()
    }

    /// Adds chunks whose segments are committed, in the order in which they are likely to be looked
    /// up together. A chunk known elsewhere is from now on known here; of two equal ids in one call
    /// the first counts.
    ///
    /// # Errors
    /// `Unavailable` or `Limit` if the entries cannot be written, `Limit` if the index is full.
    /// None of `chunks` is known then that was not before; the index stays usable.
    pub fn insert(&mut self, chunks: &[(ChunkId, Location)]) -> Result<(), IndexError> {
        let mut seen = BTreeSet::new();
        let mut fresh = Vec::with_capacity(chunks.len());
        for (id, location) in chunks {
            if !seen.insert(*id) {
                continue;
            }
            let known = self.find(id);
            if known.is_none_or(|(_, known)| known != *location) {
                let log = self.logs.intern(location.target.log)?;
                fresh.push((*id, *location, log, known.map(|(entry, _)| entry)));
            }
        }
        if self.entries.count() as usize + fresh.len() > ENTRIES_MAX {
            return Err(IndexError::Full { what: "entries", max: ENTRIES_MAX });
        }
        let first = self.entries.append(&fresh)?;
        for (entry, (id, _, _, old)) in (first..).zip(&fresh) {
            self.put(id, entry, *old);
        }
        Ok(())
    }

    fn put(&mut self, id: &ChunkId, entry: u32, old: Option<u32>) {
        match old {
            Some(old) => self.table.replace(id, old, entry),
            None => self.table.insert(id, entry),
        }
    }

    /// The number and location of the entry of `id`.
    fn find(&mut self, id: &ChunkId) -> Option<(u32, Location)> {
        for entry in self.table.candidates(id) {
            match self.entries.read(entry, &mut self.counters) {
                Err(_) => self.counters.read_errors += 1,
                Ok(bytes) => match files::decode(&bytes, &self.logs) {
                    None => self.counters.entries_bad += 1,
                    Some((found, location)) if found == *id => return Some((entry, location)),
                    Some(_) => self.counters.tag_collisions += 1,
                },
            }
        }
        None
    }

    /// Fills the table from the entries.
    fn load(&mut self) -> Result<(), IndexError> {
        let mut good = 0;
        let mut bad = 0;
        let mut scan = self.entries.scan()?;
        while let Some((entry, bytes)) = scan.next_entry()? {
            let Some((id, _)) = files::decode(&bytes, &self.logs) else {
                bad += 1;
                continue;
            };
            self.counters.entries_bad += bad;
            bad = 0;
            good = entry + 1;
            let old = self.find(&id).map(|(old, _)| old);
            self.put(&id, entry, old);
        }
        // Bad entries with no good one behind them are the torn end of the last run.
        self.counters.entries_cut += bad;
        self.entries.cut(good)?;
        self.counters = Counters {
            entries_bad: self.counters.entries_bad,
            entries_cut: self.counters.entries_cut,
            ..Counters::default()
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
