//! What an interrupted restore has done already: a file beside the one that it writes.
//!
//! The first line says what is restored where; each further one says that a frame was written, with a
//! hash of the bytes that went to the target. Nothing is synced: whoever goes on reads those bytes again
//! and does anew what does not have its hash, so a line may be there before its bytes, or be torn.

use super::plan::{self, Place};
use crate::limits::RESTORE_JOURNAL_BYTES_MAX;
use farshore_codec::ChunkHasher;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use tracing::warn;

const MAGIC: &str = "farshore-restore 2";

/// A frame, and the first block that it was written to: log, slot, number, block. What very many runs want of one frame is
/// written in several pieces.
type Key = (String, u64, u32, u64);

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    /// None once it cannot be written: the restore goes on without.
    file: Mutex<Option<File>>,
    done: HashMap<Key, String>,
    /// Whether this run wrote anything.
    has_noted: AtomicBool,
}

fn key(place: &Place) -> Key {
    let target = place.stored.frame.target;
    (target.log.to_string(), target.slot.0, place.stored.frame.number, place.block)
}

/// The header of a journal, without its end of line.
pub(super) fn header(what: &str) -> String {
    format!("{MAGIC} {what}")
}

/// The header that a journal has; none if the file is something else.
pub(super) fn header_of(file: &mut File) -> io::Result<Option<String>> {
    let mut start = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(8192).read_to_end(&mut start)?;
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let is_whole = start.len() > line.len();
    Ok(String::from_utf8(line.to_vec()).ok().filter(|line| is_whole && line.starts_with(MAGIC)))
}

impl Journal {
    /// Begins anew.
    pub(super) fn begin(mut file: File, header: &str) -> io::Result<Self> {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(format!("{header}\n").as_bytes())?;
        Ok(Self::of(Some(file), HashMap::new()))
    }

    /// Goes on: reads what was done.
    pub(super) fn resume(mut file: File) -> io::Result<Self> {
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        (&mut file).take(RESTORE_JOURNAL_BYTES_MAX).read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        let done = text.lines().skip(1).filter_map(parse).collect();
        file.seek(SeekFrom::End(0))?;
        // What follows a torn line is a line of its own.
        file.write_all(b"\n")?;
        Ok(Self::of(Some(file), done))
    }

    /// One that remembers nothing.
    pub(super) fn none() -> Self {
        Self::of(None, HashMap::new())
    }

    fn of(file: Option<File>, done: HashMap<Key, String>) -> Self {
        Self { file: Mutex::new(file), done, has_noted: AtomicBool::new(false) }
    }

    /// Whether there is anything to go on from.
    pub(super) fn is_worth_keeping(&self) -> bool {
        self.has_any() || self.has_noted.load(Ordering::Relaxed)
    }

    /// The hash that the bytes of a frame had, if it was written.
    pub(super) fn hash_of(&self, places: &[Place]) -> Option<&str> {
        self.done.get(&key(&places[0])).map(String::as_str)
    }

    pub(super) fn has_any(&self) -> bool {
        !self.done.is_empty()
    }

    /// Notes that what is wanted of a frame was written.
    pub(super) fn note(&self, places: &[Place], hash: &str) {
        let (log, slot, frame, block) = key(&places[0]);
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(journal) = file.as_mut() else { return };
        if let Err(error) =
            journal.write_all(format!("{log} {slot} {frame} {block} {hash}\n").as_bytes())
        {
            warn!(%error, "an interruption of this restore would begin it anew: its journal cannot be written");
            *file = None;
            return;
        }
        self.has_noted.store(true, Ordering::Relaxed);
    }
}

fn parse(line: &str) -> Option<(Key, String)> {
    let mut words = line.split_ascii_whitespace();
    let (log, slot) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
    let (frame, block) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let hash = words.next()?;
    let is_whole = words.next().is_none() && hash.len() == 64;
    is_whole.then(|| ((log, slot, frame, block), hash.to_owned()))
}

/// The hash of what is wanted of a frame, in the order in which it is written; `read` gives the bytes
/// of a run of blocks.
pub(super) fn hash<E>(
    hasher: &ChunkHasher,
    places: &[Place],
    mut read: impl FnMut(u64, std::ops::Range<usize>, &mut Vec<u8>) -> Result<(), E>,
) -> Result<String, E> {
    let mut bytes = Vec::new();
    for (block, range) in plan::writes(places) {
        read(block, range, &mut bytes)?;
    }
    Ok(hasher.id(&bytes).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_count() {
        let hash = "a".repeat(64);
        assert!(parse(&format!("log 3 4 5 {hash}")).is_some());
        for torn in ["", "log", "log 3 4", "log 3 4 5 aaaa", "log x 4 5 aaaa", "log 3 4 aaaa"] {
            assert!(parse(torn).is_none(), "{torn}");
        }
    }

    #[test]
    fn only_journals_have_a_header() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(header_of(&mut file).unwrap(), None);
        file.write_all(b"precious").unwrap();
        assert_eq!(header_of(&mut file).unwrap(), None);
        let journal = Journal::begin(file.try_clone().unwrap(), &header("x")).unwrap();
        drop(journal);
        assert_eq!(header_of(&mut file).unwrap(), Some("farshore-restore 2 x".to_owned()));
    }
}
