//! The index run: sorted chunk ids and where the vault holds the chunks. Derived.
//!
//! Layout and rules: `docs/formats/index-run.md`.

use crate::error::DecodeError;
use crate::ids::{ChunkId, KeyNumber, LogId, RunId, Slot, VaultId};
use crate::limits::{
    CHUNK_BLOCKS_MAX, INDEX_RUN_BODY_BYTES_MAX, INDEX_RUN_CHUNKS_MAX, INDEX_RUN_HEADER_BYTES,
    INDEX_RUN_LOGS_MAX, TAG_BYTES,
};
use crate::segment::Compression;
use crate::wire::{Put, Reader, check_crc, put_crc};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

const MAGIC: [u8; 4] = *b"FSIR";
const VERSION: u16 = 1;

/// Plain head of an index run; the AAD of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexRunHeader {
    /// The vault it belongs to.
    pub vault: VaultId,
    /// Its id, as in its name.
    pub run: RunId,
    /// Data key of the sealed body.
    pub key: KeyNumber,
    /// Drawn for this object.
    pub salt: [u8; 32],
    /// Commitment to the derived key.
    pub commitment: [u8; 32],
    /// Bytes of the sealed body with its tag.
    pub body_bytes: usize,
    /// Bytes of the body before compression.
    pub body_raw_bytes: usize,
    /// How the body is compressed.
    pub compression: Compression,
}

impl IndexRunHeader {
    /// Lays the head out.
    ///
    /// # Panics
    /// If a length is over its limit: a bug in the caller.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.body_raw_bytes <= INDEX_RUN_BODY_BYTES_MAX, "a body has a limit");
        let mut out = Vec::with_capacity(INDEX_RUN_HEADER_BYTES);
        out.put_bytes(&MAGIC);
        out.put_u16(VERSION);
        out.put_u8(self.compression.code());
        out.put_zeros(1);
        out.put_bytes(&self.vault.0);
        out.put_bytes(&self.run.0);
        out.put_u32(self.key.0);
        out.put_zeros(4);
        out.put_bytes(&self.salt);
        out.put_bytes(&self.commitment);
        out.put_u32(u32::try_from(self.body_bytes).expect("bodies have a limit"));
        out.put_u32(u32::try_from(self.body_raw_bytes).expect("asserted above"));
        out.put_zeros(INDEX_RUN_HEADER_BYTES - 4 - out.len());
        put_crc(&mut out, 0);
        out
    }

    /// Reads the head at the front of an object; returns it and the sealed body.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(object: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        const WHAT: &str = "index run";
        let Some((head, body)) = object.split_at_checked(INDEX_RUN_HEADER_BYTES) else {
            let (needed, have) = (INDEX_RUN_HEADER_BYTES, object.len());
            return Err(DecodeError::Truncated { what: WHAT, needed, have });
        };
        let mut reader = Reader::new(WHAT, head);
        reader.magic(MAGIC)?;
        reader.version(VERSION)?;
        check_crc(WHAT, head)?;
        let compression = Compression::from_code(reader.u8()?)?;
        reader.reserved(1)?;
        let vault = VaultId(reader.array()?);
        let run = RunId(reader.array()?);
        let key = KeyNumber(reader.u32()?);
        reader.reserved(4)?;
        let salt = reader.array()?;
        let commitment = reader.array()?;
        let body_bytes = reader.count("index run body", INDEX_RUN_BODY_BYTES_MAX + TAG_BYTES)?;
        let body_raw_bytes = reader.count("index run body", INDEX_RUN_BODY_BYTES_MAX)?;
        reader.reserved(reader.left() - 4)?;
        check_body("index run body", body_bytes, body)?;
        let header =
            Self { vault, run, key, salt, commitment, body_bytes, body_raw_bytes, compression };
        Ok((header, body))
    }
}

/// A chunk and the segment that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredChunk {
    /// Keyed hash of its bytes.
    pub id: ChunkId,
    /// Its length in blocks.
    pub blocks: u32,
    /// The log of the segment.
    pub log: LogId,
    /// The slot of the segment.
    pub slot: Slot,
    /// Number of the chunk in that segment's table; it is `Here` there.
    pub chunk: u32,
}

/// Body of an index run, opened: chunks of committed segments, each id once, in order of the ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IndexRun {
    /// The chunks.
    pub chunks: Vec<StoredChunk>,
}

impl IndexRun {
    /// Lays the body out.
    ///
    /// # Panics
    /// If a count is over its limit or the ids are not in order: bugs in the caller.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let logs = Logs::of(&self.chunks);
        assert!(self.chunks.len() <= INDEX_RUN_CHUNKS_MAX && logs.len() <= INDEX_RUN_LOGS_MAX);
        assert!(self.chunks.is_sorted_by(|a, b| a.id < b.id), "each id once, in order");
        let mut out = Vec::with_capacity(16 + logs.len() * 16 + self.chunks.len() * 52);
        let count = |n: usize| u32::try_from(n).expect("asserted above");
        out.put_u32(count(logs.len()));
        out.put_u32(count(self.chunks.len()));
        out.put_zeros(8);
        logs.put(&mut out);
        self.chunks.iter().for_each(|chunk| logs.put_chunk(&mut out, chunk));
        out
    }

    /// Reads a body.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("index run body", bytes);
        let logs = reader.count("index run logs", INDEX_RUN_LOGS_MAX)?;
        let chunks = reader.count("index run chunks", INDEX_RUN_CHUNKS_MAX)?;
        reader.reserved(8)?;
        let logs = Listed::take(&mut reader, logs)?;
        let chunks = take_chunks(&mut reader, chunks, logs)?;
        reader.finish()?;
        if !chunks.is_sorted_by(|a, b| a.id < b.id) {
            return Err(DecodeError::Range { what: "index run order", value: 0 });
        }
        Ok(Self { chunks })
    }
}

/// The logs that chunks are in, numbered in the order in which they come up.
pub(crate) struct Logs<'a> {
    numbers: BTreeMap<&'a LogId, u32>,
    list: Vec<&'a LogId>,
}

impl<'a> Logs<'a> {
    pub(crate) fn of(chunks: &'a [StoredChunk]) -> Self {
        let mut logs = Self { numbers: BTreeMap::new(), list: Vec::new() };
        for chunk in chunks {
            let next = u32::try_from(logs.list.len()).expect("there are fewer logs than chunks");
            if let Entry::Vacant(entry) = logs.numbers.entry(&chunk.log) {
                entry.insert(next);
                logs.list.push(&chunk.log);
            }
        }
        logs
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        self.list.iter().for_each(|log| out.put_bytes(&log.0));
    }

    pub(crate) fn put_chunk(&self, out: &mut Vec<u8>, chunk: &StoredChunk) {
        out.put_bytes(&chunk.id.0);
        out.put_u32(self.numbers[&chunk.log]);
        out.put_u64(chunk.slot.0);
        out.put_u32(chunk.chunk);
        out.put_u32(chunk.blocks);
    }
}

/// A list of logs as it is read: each log once, in the order in which the chunks come to it, and
/// none that no chunk is in. So a body has one encoding.
pub(crate) struct Listed {
    logs: Vec<LogId>,
    /// How many of them a chunk was in so far.
    used: usize,
}

impl Listed {
    pub(crate) fn take(reader: &mut Reader<'_>, count: usize) -> Result<Self, DecodeError> {
        let logs = (0..count).map(|_| reader.array().map(LogId)).collect::<Result<Vec<_>, _>>()?;
        let mut sorted = logs.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(DecodeError::Range { what: "log listed twice", value: count as u64 });
        }
        Ok(Self { logs, used: 0 })
    }

    /// The log at place `index` of the list; `written` is how the chunk calls it.
    pub(crate) fn get(&mut self, index: usize, written: u32) -> Result<LogId, DecodeError> {
        let Some(log) = self.logs.get(index).copied() else {
            return Err(DecodeError::Range { what: "chunk log", value: written.into() });
        };
        if index > self.used {
            return Err(DecodeError::Range { what: "order of logs", value: written.into() });
        }
        self.used = self.used.max(index + 1);
        Ok(log)
    }

    /// Ends the chunks.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.logs.len() - self.used {
            0 => Ok(()),
            unused => Err(DecodeError::Range { what: "logs of no chunk", value: unused as u64 }),
        }
    }
}

pub(crate) fn take_chunks(
    reader: &mut Reader<'_>,
    count: usize,
    mut logs: Listed,
) -> Result<Vec<StoredChunk>, DecodeError> {
    let mut chunks = Vec::with_capacity(count.min(reader.left() / 52));
    for _ in 0..count {
        let id = ChunkId(reader.array()?);
        let number = reader.u32()?;
        let log = logs.get(number as usize, number)?;
        let slot = reader.slot("chunk slot")?;
        let chunk = reader.u32()?;
        let blocks = reader.u32()?;
        if blocks == 0 || blocks as usize > CHUNK_BLOCKS_MAX {
            return Err(DecodeError::Range { what: "chunk blocks", value: blocks.into() });
        }
        chunks.push(StoredChunk { id, blocks, log, slot, chunk });
    }
    logs.finish()?;
    Ok(chunks)
}

/// Checks that a body has the length that its head says.
pub(crate) fn check_body(
    what: &'static str,
    needed: usize,
    body: &[u8],
) -> Result<(), DecodeError> {
    match body.len() {
        have if have < needed => Err(DecodeError::Truncated { what, needed, have }),
        have if have > needed => Err(DecodeError::Range { what, value: (have - needed) as u64 }),
        _ => Ok(()),
    }
}
