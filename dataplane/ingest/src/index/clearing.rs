//! Letting go of what was deleted in the vault.
//!
//! All entries are read, and those of segments that verdicts of the vault's register name are filled with zeros; so are those that
//! do not check, which may come to check again. Once that is durable, the file `cleared` says up to which entry of the register it was
//! done: what verdicts behind that name is for the next start to read. Without that file nothing in the index is of use.

use super::entries::Scan;
use super::files::{ENTRY_BYTES, decode, decode_cleared, encode_cleared, io_error, is_cleared};
use super::{Index, IndexError, entries};
use farshore_proto::VaultId;
use farshore_vault::durable;
use farshore_vault::register::{At, Condemned};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// In the folder of the index.
const FILE: &str = "cleared";

/// What makes it durable that an index is cleared; may be called on any thread.
pub type Synced = Box<dyn FnOnce() -> Result<At, IndexError> + Send>;

/// An index that is being cleared.
#[derive(Debug)]
pub(super) struct Clearing {
    condemned: Arc<Condemned>,
    /// What is still to be read; none once all was.
    scan: Option<Scan>,
    /// What was cleared …
    cleared: Cleared,
    /// … and the first part of the table that may still speak of it.
    part: usize,
}

/// Which entries were cleared: a bit for each, for those files that have any.
#[derive(Debug)]
struct Cleared {
    places: Vec<Option<Box<[u64]>>>,
    file_entries: u32,
}

impl Cleared {
    fn set(&mut self, (place, position): (usize, u32)) {
        let words = self.file_entries.div_ceil(u64::BITS) as usize;
        let bits = self.places[place].get_or_insert_with(|| vec![0; words].into());
        bits[(position / u64::BITS) as usize] |= 1 << (position % u64::BITS);
    }

    fn has(&self, entry: u32) -> bool {
        let (place, position) = (entry / self.file_entries, entry % self.file_entries);
        let bits = self.places[place as usize].as_ref();
        bits.is_some_and(|bits| {
            bits[(position / u64::BITS) as usize] & 1 << (position % u64::BITS) != 0
        })
    }
}

impl Clearing {
    /// These entries went; others may come in their places.
    pub(super) fn forget(&mut self, gone: &Range<u32>) {
        self.cleared.places[(gone.start / self.cleared.file_entries) as usize] = None;
    }
}

impl Index {
    /// Up to which entry of the register it was cleared, durably: no verdict up to there names what it knows. None while nothing that it
    /// keeps would be used by the next start.
    #[must_use]
    pub fn cleared(&self) -> Option<At> {
        self.cleared
    }

    /// Begins to let go of all that verdicts name; once that is over, and durable, it is cleared up to that entry. It may be used meanwhile,
    /// but nothing of that be inserted.
    pub fn begin_clearing(&mut self, condemned: Arc<Condemned>) {
        let scan = Some(self.entries.scan());
        let (places, file_entries) = self.entries.places();
        let cleared = Cleared { places: vec![None; places], file_entries };
        self.clearing = Some(Clearing { condemned, scan, cleared, part: 0 });
    }

    /// Lets go of all that verdicts name, durably.
    ///
    /// # Errors
    /// As [`Self::clear_some`]; it is not cleared then.
    pub fn clear(&mut self, condemned: Condemned) -> Result<(), IndexError> {
        self.begin_clearing(Arc::new(condemned));
        let synced = loop {
            if let Some(synced) = self.clear_some()? {
                break synced;
            }
        };
        self.synced(synced()?);
        Ok(())
    }

    /// Lets go of a little; none if there is more. At the end, what makes it durable: the answer goes to [`Self::synced`].
    ///
    /// # Errors
    /// `Unavailable` or `Limit` if a file cannot be read or written: it is not cleared.
    pub fn clear_some(&mut self) -> Result<Option<Synced>, IndexError> {
        let Some(mut clearing) = self.clearing.take() else { return Ok(None) };
        if let Some(scan) = &mut clearing.scan {
            match self.entries.scan_some(scan, &mut self.buffer)? {
                Some(first) => self.clear_found(first, &mut clearing)?,
                None => (clearing.scan, self.buffer) = (None, Vec::new()),
            }
        } else if !self.table.sweep(clearing.part, |entry| clearing.cleared.has(entry)) {
            return self.to_sync(clearing.condemned.at).map(Some);
        } else {
            clearing.part += 1;
        }
        self.clearing = Some(clearing);
        Ok(None)
    }

    /// Clears what is to be cleared of the entries in the buffer.
    fn clear_found(&mut self, first: u32, clearing: &mut Clearing) -> Result<(), IndexError> {
        let (found, _) = self.buffer.as_chunks_mut();
        let mut changed: Option<Range<usize>> = None;
        for (at, bytes) in found.iter_mut().enumerate() {
            let is_kept = match decode(bytes, &self.logs) {
                Some((_, location)) => !clearing.condemned.judged.contains(&location.target),
                None => is_cleared(bytes),
            };
            if !is_kept {
                bytes.fill(0);
                let entry = first + u32::try_from(at).expect("a part of a file");
                clearing.cleared.set(self.entries.place_of(entry));
                changed = Some(changed.map_or(at, |changed| changed.start)..at + 1);
            }
        }
        let Some(Range { start, end }) = changed else { return Ok(()) };
        // In one go, those between them too: they may lie in any order.
        let bytes = &self.buffer[start * ENTRY_BYTES..end * ENTRY_BYTES];
        self.entries.rewrite(first + u32::try_from(start).expect("a part of a file"), bytes)
    }

    fn to_sync(&self, at: At) -> Result<Synced, IndexError> {
        let (files, (dir, vault)) = (self.entries.to_sync()?, self.entries.home());
        Ok(Box::new(move || {
            let path = dir.join(FILE);
            let sync = |source| io_error("make durable", &dir, source);
            if let Err(source) = files.iter().try_for_each(fs::File::sync_data) {
                // What was cleared may come back at any time: then nothing of the index is of use.
                entries::remove(&path)?;
                return Err(sync(source));
            }
            let replaced = durable::replace(&path, &encode_cleared(vault, at));
            replaced.map_err(|source| io_error("write", &path, source))?;
            Ok(at)
        }))
    }

    /// It is durable that it is cleared up to an entry.
    pub fn synced(&mut self, cleared: At) {
        self.cleared = Some(cleared);
    }
}

/// Up to where the index in a folder was cleared; none if nobody can tell.
pub(super) fn read(dir: &Path, vault: VaultId) -> Result<Option<At>, IndexError> {
    let path: PathBuf = dir.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => Ok(decode_cleared(&bytes, vault)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error("read", &path, source)),
    }
}

/// Nothing is said any more.
pub(super) fn remove(dir: &Path) -> Result<(), IndexError> {
    entries::remove(&dir.join(FILE))
}
