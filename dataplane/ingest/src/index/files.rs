//! The two files of the index.
//!
//! Both begin with a header: magic 4, version 2, zeros 2, vault 16, zeros, CRC32C of all before in
//! the last 4. In `entries` it fills the first 4096 bytes, in `logs` 64.
//!
//! An entry, 64 bytes, so that none lies across two sectors: id 32, number of the log 4, chunk 4,
//! slot 8, blocks 4, attempt 8, CRC32C 4 of all before and of the log's id. The checksum covers the
//! id because the number alone may come to mean another log after a power cut.
//!
//! A log, 32 bytes: id 16, zeros 12, CRC32C 4 of all before. Its number is its place, from 0.

use super::{Counters, IndexError, Location};
use farshore_proto::limits::CHUNK_BLOCKS_MAX;
use farshore_proto::wire::{Put, Reader, check_crc, put_crc};
use farshore_proto::{Attempt, ChunkId, DecodeError, LogId, Slot, Target, VaultId};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const ENTRIES_MAGIC: [u8; 4] = *b"FSIE";
const LOGS_MAGIC: [u8; 4] = *b"FSIL";
const VERSION: u16 = 2;
const ENTRIES_HEADER_BYTES: usize = 4096;
const LOGS_HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 64;
const LOG_BYTES: usize = 32;
/// Logs that entries may refer to: one for each shard of each node there ever was.
const LOGS_MAX: usize = 1 << 16;

const PAGE_BYTES: usize = 4096;
const PAGE_ENTRIES: usize = PAGE_BYTES / ENTRY_BYTES;
/// Pages kept. A page is 64 chunks that came together, about 3 MiB of a disk; a backup of a similar
/// disk finds its next chunk on the page of the one before.
const CACHE_PAGES: usize = 256;
pub(super) const CACHE_BYTES: usize = CACHE_PAGES * PAGE_BYTES;
/// Bytes read at a time when all entries are read.
const SCAN_BYTES: usize = 1 << 20;

pub(super) type EntryBytes = [u8; ENTRY_BYTES];

/// A file with the path for its errors.
#[derive(Debug)]
struct Named {
    path: PathBuf,
    file: File,
}

impl Named {
    /// Opens or makes the file and checks or writes its header.
    fn open(
        path: &Path,
        magic: [u8; 4],
        vault: VaultId,
        header_bytes: usize,
    ) -> Result<Self, IndexError> {
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = open.map_err(|source| io_error("open", path, source))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(IndexError::InUse { path: path.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(io_error("lock", path, source)),
        }
        let named = Self { path: path.to_owned(), file };
        if named.len()? == 0 {
            named.write(0, &encode_header(magic, vault, header_bytes))?;
            return Ok(named);
        }
        let mut header = vec![0; header_bytes];
        let read = read_up_to(&named.file, 0, &mut header);
        let read = read.map_err(|source| named.error("read", source))?;
        let found = decode_header(&header[..read], magic, header_bytes)
            .map_err(|source| IndexError::Damaged { path: path.to_owned(), source })?;
        if found != vault {
            return Err(IndexError::OtherVault { path: named.path, expected: vault, found });
        }
        Ok(named)
    }

    fn error(&self, what: &'static str, source: io::Error) -> IndexError {
        io_error(what, &self.path, source)
    }

    fn len(&self) -> Result<u64, IndexError> {
        let metadata = self.file.metadata().map_err(|source| self.error("examine", source))?;
        Ok(metadata.len())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), IndexError> {
        self.file.write_all_at(bytes, at).map_err(|source| self.error("write", source))
    }

    fn cut(&self, len: u64) -> Result<(), IndexError> {
        self.file.set_len(len).map_err(|source| self.error("cut", source))
    }
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> IndexError {
    IndexError::Io { what, path: path.to_owned(), source }
}

/// Reads until `buffer` is full or the file ends; returns how much that was.
fn read_up_to(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn encode_header(magic: [u8; 4], vault: VaultId, header_bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(header_bytes);
    out.put_bytes(&magic);
    out.put_u16(VERSION);
    out.put_zeros(2);
    out.put_bytes(&vault.0);
    out.put_zeros(header_bytes - 4 - out.len());
    put_crc(&mut out, 0);
    out
}

fn decode_header(
    bytes: &[u8],
    magic: [u8; 4],
    header_bytes: usize,
) -> Result<VaultId, DecodeError> {
    const WHAT: &str = "chunk index header";
    let mut reader = Reader::new(WHAT, bytes);
    reader.magic(magic)?;
    reader.version(VERSION)?;
    if bytes.len() < header_bytes {
        let have = bytes.len();
        return Err(DecodeError::Truncated { what: WHAT, needed: header_bytes, have });
    }
    check_crc(WHAT, bytes)?;
    reader.reserved(2)?;
    let vault = VaultId(reader.array()?);
    reader.reserved(reader.left() - 4)?;
    Ok(vault)
}

fn encode(id: &ChunkId, location: &Location, log: u32) -> EntryBytes {
    let mut out = Vec::with_capacity(ENTRY_BYTES);
    out.put_bytes(&id.0);
    out.put_u32(log);
    out.put_u32(location.chunk);
    out.put_u64(location.target.slot.0);
    out.put_u32(location.blocks);
    out.put_bytes(&location.target.attempt.0);
    out.put_u32(checksum(&out, location.target.log));
    out.try_into().expect("the fields add up to an entry")
}

fn checksum(fields: &[u8], log: LogId) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(fields), &log.0)
}

/// The id and location that an entry holds, if it is whole and its log is known.
pub(super) fn decode(bytes: &EntryBytes, logs: &Logs) -> Option<(ChunkId, Location)> {
    let mut reader = Reader::new("chunk index entry", bytes);
    let id = ChunkId(reader.array().ok()?);
    let log = logs.id(reader.u32().ok()?)?;
    let chunk = reader.u32().ok()?;
    let slot = Slot(reader.u64().ok()?);
    let blocks = reader.u32().ok()?;
    let attempt = Attempt(reader.array().ok()?);
    let is_whole = reader.u32().ok()? == checksum(&bytes[..ENTRY_BYTES - 4], log);
    let is_legal = (1..=CHUNK_BLOCKS_MAX).contains(&(blocks as usize));
    (is_whole && is_legal)
        .then_some((id, Location { target: Target { log, slot, attempt }, chunk, blocks }))
}

/// The file of entries and the pages of it that were read last.
#[derive(Debug)]
pub(super) struct Entries {
    file: Named,
    count: u32,
    /// Page `n` is kept at `n % CACHE_PAGES` or nowhere.
    pages: Vec<Option<Page>>,
}

#[derive(Debug)]
struct Page {
    number: u32,
    bytes: Box<[u8]>,
}

fn offset(entry: u32) -> u64 {
    ENTRIES_HEADER_BYTES as u64 + u64::from(entry) * ENTRY_BYTES as u64
}

impl Entries {
    pub(super) fn open(path: &Path, vault: VaultId) -> Result<Self, IndexError> {
        let file = Named::open(path, ENTRIES_MAGIC, vault, ENTRIES_HEADER_BYTES)?;
        let bytes = file.len()?.saturating_sub(ENTRIES_HEADER_BYTES as u64);
        let count = u32::try_from(bytes / ENTRY_BYTES as u64)
            .ok()
            .filter(|count| (*count as usize) <= super::ENTRIES_MAX)
            .ok_or(IndexError::Full { what: "entries", max: super::ENTRIES_MAX })?;
        let pages = std::iter::repeat_with(|| None).take(CACHE_PAGES).collect();
        Ok(Self { file, count, pages })
    }

    /// Number of entries in the file, bad and superseded ones included.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Writes entries behind the last and returns the number of the first of them. Each comes with
    /// the number of its log.
    pub(super) fn append(
        &mut self,
        fresh: &[(ChunkId, Location, u32, Option<u32>)],
    ) -> Result<u32, IndexError> {
        let first = self.count;
        let bytes: Vec<u8> =
            fresh.iter().flat_map(|(id, location, log, _)| encode(id, location, *log)).collect();
        // At a failure `count` stays: the next call writes over what this one left.
        self.file.write(offset(first), &bytes)?;
        self.count += u32::try_from(fresh.len()).expect("the caller counted them");
        self.forget_page(page_of(first));
        Ok(first)
    }

    /// Cuts the file off behind `count` entries.
    pub(super) fn cut(&mut self, count: u32) -> Result<(), IndexError> {
        self.count = count;
        self.pages.fill_with(|| None);
        self.file.cut(offset(count))
    }

    /// Reads an entry, through the cache.
    pub(super) fn read(&mut self, entry: u32, counters: &mut Counters) -> io::Result<EntryBytes> {
        let number = page_of(entry);
        let place = &mut self.pages[number as usize % CACHE_PAGES];
        if place.as_ref().is_none_or(|page| page.number != number) {
            // Taken out first: a page half read is not kept.
            let kept = place.take().map(|page| page.bytes);
            let mut bytes = kept.unwrap_or_else(|| vec![0; PAGE_BYTES].into());
            bytes.fill(0);
            let first = number * PAGE_ENTRIES_U32;
            read_up_to(&self.file.file, offset(first), &mut bytes)?;
            counters.pages_read += 1;
            *place = Some(Page { number, bytes });
        }
        let page = place.as_ref().expect("put there just before");
        let at = (entry % PAGE_ENTRIES_U32) as usize * ENTRY_BYTES;
        let mut out = [0; ENTRY_BYTES];
        out.copy_from_slice(&page.bytes[at..at + ENTRY_BYTES]);
        Ok(out)
    }

    /// All entries in order, past the cache.
    pub(super) fn scan(&self) -> Result<Scan, IndexError> {
        let file = self.file.file.try_clone();
        let file = file.map_err(|source| self.file.error("open", source))?;
        let file = Named { path: self.file.path.clone(), file };
        Ok(Scan { file, next: 0, count: self.count, buffer: Vec::new(), at: 0 })
    }

    /// Drops page `number`, which has been written to.
    fn forget_page(&mut self, number: u32) {
        let place = &mut self.pages[number as usize % CACHE_PAGES];
        if place.as_ref().is_some_and(|page| page.number == number) {
            *place = None;
        }
    }
}

const PAGE_ENTRIES_U32: u32 = 64;
const _: () = assert!(PAGE_ENTRIES_U32 as usize == PAGE_ENTRIES);
const _: () = assert!(ENTRIES_HEADER_BYTES.is_multiple_of(PAGE_BYTES));

fn page_of(entry: u32) -> u32 {
    entry / PAGE_ENTRIES_U32
}

/// Reads all entries once.
#[derive(Debug)]
pub(super) struct Scan {
    file: Named,
    next: u32,
    count: u32,
    buffer: Vec<u8>,
    at: usize,
}

impl Scan {
    /// The next entry and its number.
    pub(super) fn next_entry(&mut self) -> Result<Option<(u32, EntryBytes)>, IndexError> {
        if self.next == self.count {
            return Ok(None);
        }
        if self.at == self.buffer.len() {
            let left = (self.count - self.next) as usize * ENTRY_BYTES;
            self.buffer.resize(left.min(SCAN_BYTES), 0);
            // A file cut short meanwhile reads as zeros, which are no entry.
            self.buffer.fill(0);
            read_up_to(&self.file.file, offset(self.next), &mut self.buffer)
                .map_err(|source| self.file.error("read", source))?;
            self.at = 0;
        }
        let mut out = [0; ENTRY_BYTES];
        out.copy_from_slice(&self.buffer[self.at..self.at + ENTRY_BYTES]);
        self.at += ENTRY_BYTES;
        self.next += 1;
        Ok(Some((self.next - 1, out)))
    }
}

/// The ids of the logs that entries refer to, by number.
#[derive(Debug)]
pub(super) struct Logs {
    file: Named,
    ids: Vec<LogId>,
    numbers: BTreeMap<LogId, u32>,
}

impl Logs {
    pub(super) fn open(path: &Path, vault: VaultId) -> Result<Self, IndexError> {
        let file = Named::open(path, LOGS_MAGIC, vault, LOGS_HEADER_BYTES)?;
        let mut bytes = vec![0; LOGS_MAX * LOG_BYTES];
        let read = read_up_to(&file.file, LOGS_HEADER_BYTES as u64, &mut bytes);
        let read = read.map_err(|source| file.error("read", source))?;
        let (records, _) = bytes[..read].as_chunks::<LOG_BYTES>();
        let whole = |record: &[u8; LOG_BYTES]| {
            let mut reader = Reader::new("chunk index log", record);
            let id = reader.array().ok().map(LogId)?;
            check_crc("chunk index log", record).is_ok().then_some(id)
        };
        let ids: Vec<LogId> = records.iter().map_while(whole).collect();
        let numbers = ids.iter().copied().zip(0..).collect();
        let logs = Self { file, ids, numbers };
        logs.file.cut(logs.end())?;
        Ok(logs)
    }

    fn end(&self) -> u64 {
        (LOGS_HEADER_BYTES + self.ids.len() * LOG_BYTES) as u64
    }

    pub(super) fn id(&self, number: u32) -> Option<LogId> {
        self.ids.get(number as usize).copied()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.ids.capacity() * size_of::<LogId>()
            + self.numbers.len() * (size_of::<LogId>() + size_of::<u32>())
    }

    /// The number of a log, given to it now if it has none.
    pub(super) fn intern(&mut self, log: LogId) -> Result<u32, IndexError> {
        if let Some(number) = self.numbers.get(&log) {
            return Ok(*number);
        }
        let number = u32::try_from(self.ids.len()).expect("logs have a limit");
        if self.ids.len() == LOGS_MAX {
            return Err(IndexError::Full { what: "logs", max: LOGS_MAX });
        }
        let mut record = Vec::with_capacity(LOG_BYTES);
        record.put_bytes(&log.0);
        record.put_zeros(LOG_BYTES - 4 - record.len());
        put_crc(&mut record, 0);
        self.file.write(self.end(), &record)?;
        self.ids.push(log);
        self.numbers.insert(log, number);
        Ok(number)
    }
}
