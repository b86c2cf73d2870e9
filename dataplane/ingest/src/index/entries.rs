//! Entries in files of fixed length, the oldest of which give way.
//!
//! There are two rings of such files: one for chunks of ordinary size, and a small one for those that the chunker would
//! not make by itself, as small random writes do: they come in any number, and push out only each other. An entry's
//! number is its place: first the file's, then its own in the file. Each ring has one place more than files: that of
//! the file that went last, until no table speaks of it any more.

use super::files::{
    self, ENTRIES_HEADER_BYTES, ENTRY_BYTES, EntryBytes, Logs, Named, decode, io_error,
};
use super::{Counters, IndexError};
use farshore_proto::limits::CHUNK_BLOCKS_MIN;
use farshore_proto::{ChunkId, VaultId};
use farshore_vault::Location;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

const PAGE_BYTES: usize = 4096;
const PAGE_ENTRIES: u32 = 64;
const _: () = assert!(PAGE_ENTRIES as usize * ENTRY_BYTES == PAGE_BYTES);
const _: () = assert!(ENTRIES_HEADER_BYTES.is_multiple_of(PAGE_BYTES));
/// Pages kept. A page is 64 chunks that came together, about 3 MiB of a disk; a backup of a similar
/// disk finds its next chunk on the page of the one before.
const CACHE_PAGES: usize = 4096;
pub(super) const CACHE_BYTES: usize = CACHE_PAGES * PAGE_BYTES;
/// Entries read at a time when all are read.
const SCAN_ENTRIES: u32 = 1 << 14;

/// How many chunks an index keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Entries in a file.
    pub file_entries: u32,
    /// Files of ordinary chunks.
    pub files: u32,
    /// Files of small ones.
    pub small_files: u32,
}

impl Default for Room {
    /// 10⁸ ordinary chunks, 8 million small ones: 0.83 GB of memory at most, 7 GB of disk.
    fn default() -> Self {
        Self { file_entries: 1 << 22, files: 24, small_files: 2 }
    }
}

impl Room {
    fn places(self) -> u32 {
        self.files + self.small_files + 2
    }
}

/// Which of the two rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ring {
    Ordinary,
    Small,
}

impl Ring {
    pub(super) const BOTH: [Self; 2] = [Self::Ordinary, Self::Small];

    pub(super) fn of(location: &Location) -> Self {
        let is_small = (location.blocks as usize) < CHUNK_BLOCKS_MIN;
        if is_small { Self::Small } else { Self::Ordinary }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Ordinary => "chunks-",
            Self::Small => "small-",
        }
    }

    fn files(self, room: Room) -> u32 {
        match self {
            Self::Ordinary => room.files,
            Self::Small => room.small_files,
        }
    }

    /// The place of the file with number `number`.
    fn place(self, room: Room, number: u64) -> usize {
        let places = u64::from(self.files(room)) + 1;
        let first = if self == Self::Ordinary { 0 } else { room.files as usize + 1 };
        first + usize::try_from(number % places).expect("below the number of places")
    }

    /// The number of the file of that name.
    fn number(self, name: &str) -> Option<u64> {
        let digits = name.strip_prefix(self.prefix())?;
        (digits.len() == 10).then(|| digits.parse().ok()).flatten()
    }
}

#[derive(Debug)]
struct Generation {
    ring: Ring,
    number: u64,
    path: PathBuf,
    file: Named,
    /// Bad and superseded ones included.
    entries: u32,
}

#[derive(Debug)]
struct Page {
    number: u32,
    bytes: Box<[u8]>,
}

/// An entry to be written: what of, and the number of its log.
pub(super) type Fresh = (ChunkId, Location, u32);

/// The files of entries and the pages of them that were read last.
#[derive(Debug)]
pub(super) struct Entries {
    dir: PathBuf,
    vault: VaultId,
    room: Room,
    generations: Vec<Option<Generation>>,
    newest: [Option<u64>; 2],
    /// Page `n` is kept at `n % CACHE_PAGES` or nowhere.
    pages: Vec<Option<Page>>,
}

fn offset(position: u32) -> u64 {
    ENTRIES_HEADER_BYTES as u64 + u64::from(position) * ENTRY_BYTES as u64
}

impl Entries {
    /// Opens what is there; what is bad at the end of the newest files is cut off, and counted.
    pub(super) fn open(
        (dir, vault): (&Path, VaultId),
        room: Room,
        logs: &Logs,
        counters: &mut Counters,
    ) -> Result<Self, IndexError> {
        assert!(
            u64::from(room.places()) * u64::from(room.file_entries)
                <= super::table::ENTRIES_MAX as u64
        );
        let mut entries = Self {
            dir: dir.to_owned(),
            vault,
            room,
            generations: std::iter::repeat_with(|| None).take(room.places() as usize).collect(),
            newest: [None; 2],
            pages: std::iter::repeat_with(|| None).take(CACHE_PAGES).collect(),
        };
        for ring in Ring::BOTH {
            let mut numbers = numbers(dir, ring)?;
            numbers.sort_unstable();
            let Some(newest) = numbers.last().copied() else { continue };
            for number in numbers {
                if number + u64::from(ring.files(room)) > newest {
                    entries.open_file(ring, number)?;
                } else {
                    remove(&entries.path(ring, number))?;
                }
            }
            entries.newest[ring as usize] = Some(newest);
            counters.entries_cut += entries.cut_end(ring, logs)?;
        }
        Ok(entries)
    }

    /// Where the files are, and whose chunks they are about.
    pub(super) fn home(&self) -> (PathBuf, VaultId) {
        (self.dir.clone(), self.vault)
    }

    fn path(&self, ring: Ring, number: u64) -> PathBuf {
        self.dir.join(format!("{}{number:010}", ring.prefix()))
    }

    fn open_file(&mut self, ring: Ring, number: u64) -> Result<(), IndexError> {
        let path = self.path(ring, number);
        let file = Named::entries(&path, self.vault)?;
        let bytes = file.len()?.saturating_sub(ENTRIES_HEADER_BYTES as u64);
        let entries = (bytes / ENTRY_BYTES as u64).min(self.room.file_entries.into());
        let entries = u32::try_from(entries).expect("below a file's length");
        let place = ring.place(self.room, number);
        self.generations[place] = Some(Generation { ring, number, path, file, entries });
        Ok(())
    }

    /// Entries at the end of the newest file that are none are what the last run did not write to its end.
    fn cut_end(&mut self, ring: Ring, logs: &Logs) -> Result<u64, IndexError> {
        let Some(newest) = self.newest_mut(ring) else { return Ok(0) };
        let before = newest.entries;
        let mut buffer = Vec::new();
        while newest.entries > 0 {
            let first = newest.entries.saturating_sub(SCAN_ENTRIES);
            buffer.resize((newest.entries - first) as usize * ENTRY_BYTES, 0);
            let read = newest.file.read(offset(first), &mut buffer);
            read.map_err(|source| newest.file.error("read", source))?;
            let (found, _) = buffer.as_chunks::<ENTRY_BYTES>();
            let last = found.iter().rposition(|bytes| decode(bytes, logs).is_some());
            newest.entries = first + last.map_or(0, |last| u32::try_from(last + 1).unwrap_or(0));
            if last.is_some() {
                break;
            }
        }
        newest.file.cut(offset(newest.entries))?;
        Ok(u64::from(before - newest.entries))
    }

    fn newest_mut(&mut self, ring: Ring) -> Option<&mut Generation> {
        let place = ring.place(self.room, self.newest[ring as usize]?);
        self.generations[place].as_mut()
    }

    /// Entries in all files.
    pub(super) fn count(&self) -> usize {
        self.generations.iter().flatten().map(|file| file.entries as usize).sum()
    }

    /// Entries that were ever written.
    pub(super) fn written(&self) -> u64 {
        let newest = self.generations.iter().flatten().filter(|file| {
            let newest = self.newest[file.ring as usize];
            newest == Some(file.number)
        });
        let before = |number: u64| number * u64::from(self.room.file_entries);
        newest.map(|file| before(file.number) + u64::from(file.entries)).sum()
    }

    /// Whether an entry is one of the next that give way.
    pub(super) fn is_old(&self, entry: u32) -> bool {
        let Some(file) = &self.generations[self.split(entry).0] else { return false };
        let newest = self.newest[file.ring as usize].unwrap_or(file.number);
        (newest - file.number) * 4 >= u64::from(file.ring.files(self.room)) * 3
    }

    /// When an entry was written, to be compared with others of its ring.
    pub(super) fn age(&self, entry: u32) -> (u64, u32) {
        let (place, position) = self.split(entry);
        (self.generations[place].as_ref().map_or(0, |file| file.number), position)
    }

    fn split(&self, entry: u32) -> (usize, u32) {
        ((entry / self.room.file_entries) as usize, entry % self.room.file_entries)
    }

    /// How many entries the newest file of a ring takes.
    pub(super) fn room_left(&self, ring: Ring) -> usize {
        let Some(newest) = self.newest[ring as usize] else { return 0 };
        let file = &self.generations[ring.place(self.room, newest)];
        file.as_ref().map_or(0, |file| (self.room.file_entries - file.entries) as usize)
    }

    /// Begins a file. Its place must be free of what was there before; returns the numbers of the entries that went for the
    /// next one.
    pub(super) fn begin_file(&mut self, ring: Ring) -> Result<Range<u32>, IndexError> {
        let number = self.newest[ring as usize].map_or(0, |newest| newest + 1);
        let next = ring.place(self.room, number + 1);
        if let Some(oldest) = self.generations[next].take() {
            // What cannot be removed is, at the next opening.
            let _ = fs::remove_file(&oldest.path);
        }
        self.open_file(ring, number)?;
        self.newest[ring as usize] = Some(number);
        let first = u32::try_from(next).expect("few places") * self.room.file_entries;
        let gone = first..first + self.room.file_entries;
        let is_kept = |page: &Page| !gone.contains(&(page.number * PAGE_ENTRIES));
        self.pages.iter_mut().for_each(|page| *page = page.take().filter(is_kept));
        Ok(gone)
    }

    /// Writes entries behind the last of the newest file, which has room for them, and returns the number of the first.
    pub(super) fn append(&mut self, ring: Ring, fresh: &[Fresh]) -> Result<u32, IndexError> {
        let file_entries = self.room.file_entries;
        let place = ring.place(self.room, self.newest[ring as usize].unwrap_or(0));
        let Some(newest) = self.newest_mut(ring) else { return Ok(0) };
        let write =
            |(id, location, log): &Fresh| -> EntryBytes { files::encode(id, location, *log) };
        let bytes: Vec<u8> = fresh.iter().flat_map(write).collect();
        // At a failure `entries` stays: the next call writes over what this one left.
        newest.file.write(offset(newest.entries), &bytes)?;
        let first = u32::try_from(place).expect("few places") * file_entries + newest.entries;
        newest.entries += u32::try_from(fresh.len()).expect("there was room");
        self.forget_page(first / PAGE_ENTRIES);
        Ok(first)
    }

    /// Reads an entry, through the cache; none of a file that went.
    pub(super) fn read(
        &mut self,
        entry: u32,
        counters: &mut Counters,
    ) -> io::Result<Option<EntryBytes>> {
        let (place, position) = self.split(entry);
        let Some(file) = &self.generations[place] else { return Ok(None) };
        let number = entry / PAGE_ENTRIES;
        let page = &mut self.pages[number as usize % CACHE_PAGES];
        if page.as_ref().is_none_or(|page| page.number != number) {
            // Taken out first: a page half read is not kept.
            let kept = page.take().map(|page| page.bytes);
            let mut bytes = kept.unwrap_or_else(|| vec![0; PAGE_BYTES].into());
            file.file.read(offset(position / PAGE_ENTRIES * PAGE_ENTRIES), &mut bytes)?;
            counters.pages_read += 1;
            *page = Some(Page { number, bytes });
        }
        let page = page.as_ref().expect("put there just before");
        let at = (position % PAGE_ENTRIES) as usize * ENTRY_BYTES;
        let mut out = [0; ENTRY_BYTES];
        out.copy_from_slice(&page.bytes[at..at + ENTRY_BYTES]);
        Ok(Some(out))
    }

    /// Writes entries of one file anew, of which some were cleared.
    pub(super) fn rewrite(&mut self, first: u32, bytes: &[u8]) -> Result<(), IndexError> {
        let (place, position) = self.split(first);
        if let Some(file) = &self.generations[place] {
            file.file.write(offset(position), bytes)?;
        }
        let count = u32::try_from(bytes.len() / ENTRY_BYTES).expect("below a file's length");
        for page in first / PAGE_ENTRIES..=(first + count.saturating_sub(1)) / PAGE_ENTRIES {
            self.forget_page(page);
        }
        Ok(())
    }

    /// All files, to be made durable: what an earlier run cleared may not be. What a write that failed left behind the last entries is cut off.
    pub(super) fn to_sync(&self) -> Result<Vec<File>, IndexError> {
        let files = self.generations.iter().flatten().map(|file| {
            file.file.cut(offset(file.entries))?;
            file.file.share()
        });
        files.collect()
    }

    /// The place of an entry's file, and which one there it is.
    pub(super) fn place_of(&self, entry: u32) -> (usize, u32) {
        self.split(entry)
    }

    /// How many places there are, and the entries of each.
    pub(super) fn places(&self) -> (usize, u32) {
        (self.generations.len(), self.room.file_entries)
    }

    /// Drops page `number`, which has been written to.
    fn forget_page(&mut self, number: u32) {
        let page = &mut self.pages[number as usize % CACHE_PAGES];
        if page.as_ref().is_some_and(|page| page.number == number) {
            *page = None;
        }
    }

    /// What is there now, to be read once: the newest first.
    pub(super) fn scan(&self) -> Scan {
        let mut files: Vec<&Generation> = self.generations.iter().flatten().collect();
        files.sort_by_key(|file| file.number);
        let range = |file: &Generation| {
            let place = file.ring.place(self.room, file.number);
            let first = u32::try_from(place).expect("few places") * self.room.file_entries;
            first..first + file.entries
        };
        Scan(files.into_iter().map(range).collect())
    }

    /// The next entries of a scan, past the cache, and the number of the first; none at the end.
    pub(super) fn scan_some(
        &self,
        Scan(ranges): &mut Scan,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<u32>, IndexError> {
        while let Some(range) = ranges.last_mut() {
            let first = range.start;
            let count = SCAN_ENTRIES.min(range.end - first);
            range.start += count;
            let (place, position) = self.split(first);
            // A file that went meanwhile has nothing more to say.
            let file = self.generations.get(place).and_then(Option::as_ref);
            let Some(file) = file.filter(|_| count > 0) else {
                ranges.pop();
                continue;
            };
            buffer.resize(count as usize * ENTRY_BYTES, 0);
            let read = file.file.read(offset(position), buffer);
            read.map_err(|source| file.file.error("read", source))?;
            return Ok(Some(first));
        }
        Ok(None)
    }
}

/// What of the entries is still to be read, last first.
#[derive(Debug)]
pub(super) struct Scan(Vec<Range<u32>>);

/// The numbers of a ring's files in a folder.
fn numbers(dir: &Path, ring: Ring) -> Result<Vec<u64>, IndexError> {
    let list = |source| io_error("list", dir, source);
    let mut numbers = Vec::new();
    for found in fs::read_dir(dir).map_err(list)? {
        let name = found.map_err(list)?.file_name();
        numbers.extend(name.to_str().and_then(|name| ring.number(name)));
    }
    Ok(numbers)
}

/// Removes all files of entries, and the one that there was once.
pub(super) fn clear(dir: &Path) -> Result<(), IndexError> {
    for ring in Ring::BOTH {
        for number in numbers(dir, ring)? {
            remove(&dir.join(format!("{}{number:010}", ring.prefix())))?;
        }
    }
    remove(&dir.join("entries"))
}

pub(super) fn remove(path: &Path) -> Result<(), IndexError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path, source))
        }
        _ => Ok(()),
    }
}
