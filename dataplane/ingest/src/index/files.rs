//! The layout of the index's files.
//!
//! Each begins with a header: magic 4, version 2, zeros 2, vault 16, zeros, CRC32C of all before in
//! the last 4. In a file of entries it fills the first 4096 bytes, in `logs` 64.
//!
//! An entry, 64 bytes, so that none lies across two sectors: id 32, number of the log 4, chunk 4,
//! slot 8, blocks 4, attempt 8, CRC32C 4 of all before and of the log's id. The checksum covers the
//! id because the number alone may come to mean another log after a power cut.
//!
//! An entry that was cleared is zeros. Up to where entries were cleared stands in `cleared`, 68 bytes: magic 4, version 2, zeros 2,
//! vault 16, number 8, digest 32, CRC32C 4 of all before.
//!
//! A log, 32 bytes: id 16, zeros 12, CRC32C 4 of all before. Its number is its place, from 0.

use super::{IndexError, Location};
use farshore_proto::limits::{CHUNK_BLOCKS_MAX, REGISTER_MAX};
use farshore_proto::wire::{Put, Reader, check_crc, put_crc};
use farshore_proto::{Attempt, ChunkId, DecodeError, LogId, Slot, Target, VaultId};
use farshore_vault::register::At;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const ENTRIES_MAGIC: [u8; 4] = *b"FSIE";
const LOGS_MAGIC: [u8; 4] = *b"FSIL";
const CLEARED_MAGIC: [u8; 4] = *b"FSIC";
const CLEARED_BYTES: usize = 44;
const VERSION: u16 = 2;
pub(super) const ENTRIES_HEADER_BYTES: usize = 4096;
const LOGS_HEADER_BYTES: usize = 64;
pub(super) const ENTRY_BYTES: usize = 64;
const LOG_BYTES: usize = 32;
/// Logs that entries may refer to: one for each shard of each node there ever was.
const LOGS_MAX: usize = 1 << 16;

pub(super) type EntryBytes = [u8; ENTRY_BYTES];

/// A file with the path for its errors.
#[derive(Debug)]
pub(super) struct Named {
    path: PathBuf,
    file: File,
}

impl Named {
    /// A file of entries.
    pub(super) fn entries(path: &Path, vault: VaultId) -> Result<Self, IndexError> {
        Self::open(path, ENTRIES_MAGIC, vault, ENTRIES_HEADER_BYTES)
    }

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

    pub(super) fn error(&self, what: &'static str, source: io::Error) -> IndexError {
        io_error(what, &self.path, source)
    }

    pub(super) fn len(&self) -> Result<u64, IndexError> {
        let metadata = self.file.metadata().map_err(|source| self.error("examine", source))?;
        Ok(metadata.len())
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), IndexError> {
        self.file.write_all_at(bytes, at).map_err(|source| self.error("write", source))
    }

    /// Reads until `buffer` is full or the file ends, and leaves zeros behind that.
    pub(super) fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let read = read_up_to(&self.file, at, buffer)?;
        buffer[read..].fill(0);
        Ok(())
    }

    /// The file, to be made durable on another thread.
    pub(super) fn share(&self) -> Result<File, IndexError> {
        self.file.try_clone().map_err(|source| self.error("open again", source))
    }

    pub(super) fn cut(&self, len: u64) -> Result<(), IndexError> {
        self.file.set_len(len).map_err(|source| self.error("cut", source))
    }
}

pub(super) fn io_error(what: &'static str, path: &Path, source: io::Error) -> IndexError {
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

pub(super) fn encode(id: &ChunkId, location: &Location, log: u32) -> EntryBytes {
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

/// Whether an entry was cleared.
pub(super) fn is_cleared(bytes: &EntryBytes) -> bool {
    *bytes == [0; ENTRY_BYTES]
}

/// Up to where the entries were cleared, as the file says.
pub(super) fn encode_cleared(vault: VaultId, cleared: At) -> Vec<u8> {
    let mut out = Vec::with_capacity(CLEARED_BYTES);
    out.put_bytes(&CLEARED_MAGIC);
    out.put_u16(VERSION);
    out.put_zeros(2);
    out.put_bytes(&vault.0);
    out.put_u64(cleared.number);
    out.put_bytes(&cleared.digest);
    put_crc(&mut out, 0);
    out
}

/// Reads what [`encode_cleared`] wrote; none if it is damaged, or of another vault.
pub(super) fn decode_cleared(bytes: &[u8], vault: VaultId) -> Option<At> {
    const WHAT: &str = "where the chunk index was cleared";
    if bytes.len() != CLEARED_BYTES {
        return None;
    }
    let mut reader = Reader::new(WHAT, bytes);
    reader.magic(CLEARED_MAGIC).and_then(|()| reader.version(VERSION)).ok()?;
    check_crc(WHAT, bytes).ok()?;
    reader.reserved(2).ok()?;
    let is_ours = reader.array().ok().map(VaultId) == Some(vault);
    let at = At { number: reader.u64().ok()?, digest: reader.array().ok()? };
    (is_ours && at.number <= REGISTER_MAX).then_some(at)
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
