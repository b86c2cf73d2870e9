//! The map: what a volume holds at a recovery point, in parts. Derived.
//!
//! Layout and rules: `docs/formats/map.md`.

use crate::error::DecodeError;
use crate::ids::{BlockRange, LogId, MarkKind, PointId, Seq, Slot, VaultId, VolumeId};
use crate::limits::{MAP_CHUNKS_MAX, MAP_PARTS_MAX, MAP_RUNS_MAX, VOLUME_BYTES_MAX, blocks_of};
use crate::mark::kind_of;
use crate::object::{ObjectHeader, ObjectKind, ObjectPlace};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::targets::{STORED, StoredChunk, TARGETS, put_stored, take_stored};
use crate::wire::{Put, Reader};

/// Bytes of a map's own fields in the header.
pub(crate) const OWN_BYTES: usize = 36;
const WHAT: &str = "map body";
const HEAD: SectionKind = SectionKind { number: 1, stride: 56, max: 1, what: "map head" };
const RUNS: SectionKind =
    SectionKind { number: 4, stride: 20, max: MAP_RUNS_MAX, what: "map runs" };

/// Plain head of a part of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapHeader {
    /// What all objects have; the number of its place is the seq of the recovery point: all of the stream up to
    /// and including it is in the map.
    pub object: ObjectHeader,
    /// What only maps have.
    pub fields: MapFields,
}

/// What only maps have in their header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapFields {
    /// Drawn for each attempt to write the map: parts of different attempts are not one map.
    pub attempt: [u8; 16],
    /// Id of the recovery point.
    pub point: PointId,
    /// How many parts the map has.
    pub parts: u32,
}

impl MapFields {
    /// Lays them out.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.put_bytes(&self.attempt);
        out.put_bytes(&self.point.0);
        out.put_u32(self.parts);
    }
}

impl MapHeader {
    /// The place of a part of a map.
    #[must_use]
    pub fn place(vault: VaultId, volume: VolumeId, seq: Seq, part: u32) -> ObjectPlace {
        ObjectPlace { kind: ObjectKind::Map, vault, subject: volume.0, number: seq.0, part }
    }

    /// The recovery point's seq.
    #[must_use]
    pub fn seq(&self) -> Seq {
        Seq(self.object.place.number)
    }

    /// Number of this part, from 0.
    #[must_use]
    pub fn part(&self) -> u32 {
        self.object.place.part
    }

    /// Reads the head at the front of an object, of which no more need be there.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(object: &[u8]) -> Result<Self, DecodeError> {
        let (object, own) = ObjectHeader::decode(ObjectKind::Map, object)?;
        Self::of(object, own)
    }

    /// Of what all objects have, and the fields that only maps have.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn of(object: ObjectHeader, mut own: Reader<'_>) -> Result<Self, DecodeError> {
        let fields =
            MapFields { attempt: own.array()?, point: PointId(own.array()?), parts: own.u32()? };
        let ObjectPlace { number, part, .. } = object.place;
        if number == 0 || number == u64::MAX {
            return Err(DecodeError::Range { what: "map seq", value: number });
        }
        if part >= fields.parts || fields.parts as usize > MAP_PARTS_MAX {
            return Err(DecodeError::Range { what: "map parts", value: fields.parts.into() });
        }
        object.check_without_variants()?;
        Ok(Self { object, fields })
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
        assert!(self.chunks.len() <= MAP_CHUNKS_MAX, "a part holds so many chunks");
        let bytes = self.chunks.len() * 48 + self.runs.len() * RUNS.stride;
        let mut out = SectionWriter::with_capacity(128 + bytes);
        out.put(&HEAD, 1, |out| {
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
        });
        put_stored(&mut out, &self.chunks);
        out.put(&RUNS, self.runs.len(), |out| {
            for run in &self.runs {
                out.put_u64(run.range.block);
                out.put_u32(u32::try_from(run.range.count).expect("a run lies in a chunk"));
                out.put_u32(run.chunk);
                out.put_u32(run.first);
            }
        });
        out.finish()
    }

    /// Reads a body; all numbers in it refer to things that exist.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let sections = Sections::read(WHAT, bytes, &[HEAD, TARGETS, STORED, RUNS])?;
        let head = take_head(sections.record(&HEAD)?)?;
        let chunks = take_stored(&sections, MAP_CHUNKS_MAX)?;
        let records = sections.records(&RUNS);
        let mut runs = Vec::with_capacity(records.len());
        let mut floor = 0;
        for record in records {
            let run = take_run(record, &chunks, head.size_bytes)?;
            if run.range.block < floor {
                return Err(DecodeError::Range { what: "map order", value: run.range.block });
            }
            floor = run.range.end();
            runs.push(run);
        }
        Ok(Self { head, chunks, runs })
    }
}

fn take_head(mut reader: Reader<'_>) -> Result<MapHead, DecodeError> {
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
    let kind = kind_of(reader.u8()?)?;
    reader.reserved(3)?;
    let unknown_blocks = reader.u32()?;
    Ok(MapHead { ordinal, log, slot, size_bytes, time_unix_ms, kind, unknown_blocks })
}

fn take_run(
    mut reader: Reader<'_>,
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
