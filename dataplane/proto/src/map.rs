//! The map: a checkpoint of a volume at a recovery point, in parts. Derived.
//!
//! Layout and rules: `docs/formats/map.md`.

use crate::error::DecodeError;
use crate::ids::{BlockRange, KeyNumber, LogId, MarkKind, PointId, Seq, Slot, VaultId, VolumeId};
use crate::index_run::{Listed, Logs, StoredChunk, check_body, take_chunks};
use crate::limits::{
    MAP_BODY_BYTES_MAX, MAP_CHUNKS_MAX, MAP_HEADER_BYTES, MAP_LOGS_MAX, MAP_PARTS_MAX,
    MAP_RUNS_MAX, TAG_BYTES, VOLUME_BYTES_MAX, blocks_of,
};
use crate::segment::Compression;
use crate::wire::{Put, Reader, check_crc, put_crc};

const MAGIC: [u8; 4] = *b"FSMP";
const VERSION: u16 = 1;
const RUN_BYTES: usize = 20;

/// Plain head of a part of a map; the AAD of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapHeader {
    /// The vault it belongs to.
    pub vault: VaultId,
    /// The volume it is of.
    pub volume: VolumeId,
    /// The recovery point: all of the stream up to and including this seq is in the map.
    pub seq: Seq,
    /// Id of the recovery point.
    pub point: PointId,
    /// Drawn for each attempt to write the map: parts of different attempts are not one map.
    pub attempt: [u8; 16],
    /// Number of this part, from 0.
    pub part: u32,
    /// How many parts the map has.
    pub parts: u32,
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

impl MapHeader {
    /// Lays the head out.
    ///
    /// # Panics
    /// If a length or number is over its limit: bugs in the caller.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.body_raw_bytes <= MAP_BODY_BYTES_MAX, "a body has a limit");
        assert!(self.part < self.parts && self.parts as usize <= MAP_PARTS_MAX, "parts are few");
        let mut out = Vec::with_capacity(MAP_HEADER_BYTES);
        out.put_bytes(&MAGIC);
        out.put_u16(VERSION);
        out.put_u8(self.compression.code());
        out.put_zeros(1);
        out.put_bytes(&self.vault.0);
        out.put_bytes(&self.volume.0);
        out.put_u64(self.seq.0);
        out.put_bytes(&self.point.0);
        out.put_bytes(&self.attempt);
        out.put_u32(self.part);
        out.put_u32(self.parts);
        out.put_u32(self.key.0);
        out.put_zeros(4);
        out.put_bytes(&self.salt);
        out.put_bytes(&self.commitment);
        out.put_u32(u32::try_from(self.body_bytes).expect("bodies have a limit"));
        out.put_u32(u32::try_from(self.body_raw_bytes).expect("asserted above"));
        out.put_zeros(MAP_HEADER_BYTES - 4 - out.len());
        put_crc(&mut out, 0);
        out
    }

    /// Reads the head at the front of an object, of which no more need be there.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode_head(object: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "map";
        let Some(head) = object.get(..MAP_HEADER_BYTES) else {
            let (needed, have) = (MAP_HEADER_BYTES, object.len());
            return Err(DecodeError::Truncated { what: WHAT, needed, have });
        };
        let mut reader = Reader::new(WHAT, head);
        reader.magic(MAGIC)?;
        reader.version(VERSION)?;
        check_crc(WHAT, head)?;
        let compression = Compression::from_code(reader.u8()?)?;
        reader.reserved(1)?;
        let vault = VaultId(reader.array()?);
        let volume = VolumeId(reader.array()?);
        let seq = reader.seq("map seq")?;
        let point = PointId(reader.array()?);
        let attempt = reader.array()?;
        let part = reader.u32()?;
        let parts = reader.u32()?;
        if seq == Seq(0) {
            return Err(DecodeError::Range { what: "map seq", value: 0 });
        }
        if part >= parts || parts as usize > MAP_PARTS_MAX {
            return Err(DecodeError::Range { what: "map parts", value: parts.into() });
        }
        let key = KeyNumber(reader.u32()?);
        reader.reserved(4)?;
        let salt = reader.array()?;
        let commitment = reader.array()?;
        let body_bytes = reader.count("map body", MAP_BODY_BYTES_MAX + TAG_BYTES)?;
        let body_raw_bytes = reader.count("map body", MAP_BODY_BYTES_MAX)?;
        reader.reserved(reader.left() - 4)?;
        Ok(Self {
            vault,
            volume,
            seq,
            point,
            attempt,
            part,
            parts,
            key,
            salt,
            commitment,
            body_bytes,
            body_raw_bytes,
            compression,
        })
    }

    /// Reads the head at the front of a whole object; returns it and the sealed body.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(object: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let header = Self::decode_head(object)?;
        let body = &object[MAP_HEADER_BYTES..];
        check_body("map body", header.body_bytes, body)?;
        Ok((header, body))
    }
}

/// What every part of a map says about the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapHead {
    /// Ordinal of the epoch that the recovery point is of.
    pub ordinal: u64,
    /// Log of that epoch.
    pub log: LogId,
    /// Slot of the segment whose span ends with the mark: reading goes on from it, and skips the
    /// spans at or below the map's seq.
    pub slot: Slot,
    /// Size of the volume.
    pub size_bytes: u64,
    /// The mark's time: the agent's wall clock.
    pub time_unix_ms: u64,
    /// What the mark promises.
    pub kind: MarkKind,
    /// Blocks that could not be read, as the mark says.
    pub unknown_blocks: u32,
}

/// Blocks of a volume and the blocks of a chunk that they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRun {
    /// The blocks.
    pub range: BlockRange,
    /// Number of the chunk in the part.
    pub chunk: u32,
    /// First block inside the chunk.
    pub first: u32,
}

/// Body of a part of a map, opened. Blocks that no run of any part names are zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapBody {
    /// About the whole map.
    pub head: MapHead,
    /// Chunks that the runs refer to.
    pub chunks: Vec<StoredChunk>,
    /// Runs in block order, without overlap; those of the next part lie behind them.
    pub runs: Vec<MapRun>,
}

impl MapBody {
    /// Lays the body out.
    ///
    /// # Panics
    /// If a count is over its limit: a bug in the caller.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let logs = Logs::of(&self.chunks);
        assert!(self.chunks.len() <= MAP_CHUNKS_MAX && logs.len() <= MAP_LOGS_MAX);
        assert!(self.runs.len() <= MAP_RUNS_MAX);
        let bytes = self.chunks.len() * 52 + self.runs.len() * RUN_BYTES;
        let mut out = Vec::with_capacity(72 + logs.len() * 16 + bytes);
        let MapHead { ordinal, log, slot, size_bytes, time_unix_ms, kind, unknown_blocks } =
            self.head;
        out.put_u64(ordinal);
        out.put_bytes(&log.0);
        out.put_u64(slot.0);
        out.put_u64(size_bytes);
        out.put_u64(time_unix_ms);
        out.put_u8(kind.code());
        out.put_zeros(3);
        out.put_u32(unknown_blocks);
        let count = |n: usize| u32::try_from(n).expect("asserted above");
        out.put_u32(count(logs.len()));
        out.put_u32(count(self.chunks.len()));
        out.put_u32(count(self.runs.len()));
        out.put_zeros(4);
        logs.put(&mut out);
        self.chunks.iter().for_each(|chunk| logs.put_chunk(&mut out, chunk));
        for run in &self.runs {
            out.put_u64(run.range.block);
            out.put_u32(u32::try_from(run.range.count).expect("a run lies in a chunk"));
            out.put_u32(run.chunk);
            out.put_u32(run.first);
        }
        out
    }

    /// Reads a body; all numbers in it refer to things that exist.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("map body", bytes);
        let head = take_head(&mut reader)?;
        let logs = reader.count("map logs", MAP_LOGS_MAX)?;
        let chunks = reader.count("map chunks", MAP_CHUNKS_MAX)?;
        let count = reader.count("map runs", MAP_RUNS_MAX)?;
        reader.reserved(4)?;
        let logs = Listed::take(&mut reader, logs)?;
        let chunks = take_chunks(&mut reader, chunks, logs)?;
        let mut runs = Vec::with_capacity(count.min(reader.left() / RUN_BYTES));
        let mut floor = 0;
        for _ in 0..count {
            let run = take_run(&mut reader, &chunks, head.size_bytes)?;
            if run.range.block < floor {
                return Err(DecodeError::Range { what: "map order", value: run.range.block });
            }
            floor = run.range.end();
            runs.push(run);
        }
        reader.finish()?;
        Ok(Self { head, chunks, runs })
    }
}

fn take_head(reader: &mut Reader<'_>) -> Result<MapHead, DecodeError> {
    let ordinal = reader.u64()?;
    if ordinal == 0 {
        return Err(DecodeError::Range { what: "map ordinal", value: 0 });
    }
    let log = LogId(reader.array()?);
    let slot = reader.slot("map slot")?;
    let size_bytes = reader.u64()?;
    if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX {
        return Err(DecodeError::Range { what: "map size", value: size_bytes });
    }
    let time_unix_ms = reader.u64()?;
    let code = reader.u8()?;
    let kind = MarkKind::from_code(code)
        .ok_or(DecodeError::Range { what: "mark kind", value: code.into() })?;
    reader.reserved(3)?;
    let unknown_blocks = reader.u32()?;
    Ok(MapHead { ordinal, log, slot, size_bytes, time_unix_ms, kind, unknown_blocks })
}

fn take_run(
    reader: &mut Reader<'_>,
    chunks: &[StoredChunk],
    size_bytes: u64,
) -> Result<MapRun, DecodeError> {
    let range = BlockRange { block: reader.u64()?, count: reader.u32()?.into() };
    let chunk = reader.u32()?;
    let first = reader.u32()?;
    let blocks = blocks_of(size_bytes);
    if range.count == 0 || range.block.checked_add(range.count).is_none_or(|end| end > blocks) {
        return Err(DecodeError::Range { what: "map run", value: range.block });
    }
    let Some(held) = chunks.get(chunk as usize) else {
        return Err(DecodeError::Range { what: "map run chunk", value: chunk.into() });
    };
    if u64::from(first) + range.count > held.blocks.into() {
        return Err(DecodeError::Range { what: "map run blocks", value: range.count });
    }
    Ok(MapRun { range, chunk, first })
}
