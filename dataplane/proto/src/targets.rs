//! Segments that chunks are in, listed once: in tables, maps and index runs.
//!
//! Layout: `docs/formats/segment.md`, "Targets".

use crate::error::DecodeError;
use crate::ids::{Attempt, ChunkId, LogId, Slot};
use crate::limits::{CHUNK_BLOCKS_MAX, INDEX_RUN_CHUNKS_MAX, TARGETS_MAX};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::wire::{Put, Reader};
use std::collections::{BTreeMap, BTreeSet};

/// One attempt at a slot of a log: whoever refers to a segment names it so. Another attempt at the same slot
/// is another segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The log.
    pub log: LogId,
    /// The slot.
    pub slot: Slot,
    /// The attempt.
    pub attempt: Attempt,
}

/// The section of targets, in a body of any kind.
pub(crate) const TARGETS: SectionKind =
    SectionKind { number: 2, stride: 32, max: TARGETS_MAX, what: "targets" };

/// Lays a target out.
pub(crate) fn put_target(out: &mut Vec<u8>, target: &Target) {
    let Target { log, slot, attempt } = target;
    out.put_bytes(&log.0);
    out.put_u64(slot.0);
    out.put_bytes(&attempt.0);
}

/// Reads a target.
pub(crate) fn take_target(record: &mut Reader<'_>) -> Result<Target, DecodeError> {
    let log = LogId(record.array()?);
    let slot = record.slot("target slot")?;
    Ok(Target { log, slot, attempt: Attempt(record.array()?) })
}

/// Targets as they are written: numbered in the order in which they come up.
#[derive(Debug, Default)]
pub(crate) struct Numbered {
    numbers: BTreeMap<Target, u32>,
    list: Vec<Target>,
}

impl Numbered {
    pub(crate) fn of(targets: impl IntoIterator<Item = Target>) -> Self {
        let mut numbered = Self::default();
        for target in targets {
            let next = u32::try_from(numbered.list.len()).expect("there are fewer than chunks");
            let Self { numbers, list } = &mut numbered;
            numbers.entry(target).or_insert_with(|| {
                list.push(target);
                next
            });
        }
        numbered
    }

    pub(crate) fn number(&self, target: &Target) -> u32 {
        self.numbers[target]
    }

    pub(crate) fn put(&self, out: &mut SectionWriter) {
        out.put(&TARGETS, self.list.len(), |out| {
            self.list.iter().for_each(|target| put_target(out, target));
        });
    }
}

/// Targets as they are read: each once, in the order in which the chunks come to it, and none that no chunk
/// is in. So a body has one encoding.
#[derive(Debug)]
pub(crate) struct Listed {
    list: Vec<Target>,
    /// How many of them a chunk was in so far.
    used: usize,
}

impl Listed {
    pub(crate) fn read(sections: &Sections<'_>) -> Result<Self, DecodeError> {
        let records = sections.records(&TARGETS);
        let mut list = Vec::with_capacity(records.len());
        let mut known = BTreeSet::new();
        for mut record in records {
            let target = take_target(&mut record)?;
            if !known.insert(target) {
                let value = target.slot.0;
                return Err(DecodeError::Range { what: "targets listed twice", value });
            }
            list.push(target);
        }
        Ok(Self { list, used: 0 })
    }

    /// The target of a number, of the chunk that is being read.
    pub(crate) fn get(&mut self, number: u32) -> Result<Target, DecodeError> {
        let index = number as usize;
        let Some(target) = self.list.get(index).copied() else {
            return Err(DecodeError::Range { what: "chunk target", value: number.into() });
        };
        if index > self.used {
            return Err(DecodeError::Range { what: "order of targets", value: number.into() });
        }
        self.used = self.used.max(index + 1);
        Ok(target)
    }

    /// Ends the chunks.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.list.len() - self.used {
            0 => Ok(()),
            unused => Err(DecodeError::Range { what: "targets of no chunk", value: unused as u64 }),
        }
    }
}

/// A chunk and the segment that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredChunk {
    /// Keyed hash of its bytes.
    pub id: ChunkId,
    /// Its length in blocks.
    pub blocks: u32,
    /// The segment.
    pub target: Target,
    /// Number of the chunk in that segment's table; it is `Here` there.
    pub chunk: u32,
}

/// The section of stored chunks, in index runs.
pub(crate) const STORED: SectionKind =
    SectionKind { number: 3, stride: 44, max: INDEX_RUN_CHUNKS_MAX, what: "stored chunks" };

/// Lays out chunks and their targets.
pub(crate) fn put_stored(out: &mut SectionWriter, chunks: &[StoredChunk]) {
    let targets = Numbered::of(chunks.iter().map(|chunk| chunk.target));
    targets.put(out);
    out.put(&STORED, chunks.len(), |out| {
        for StoredChunk { id, blocks, target, chunk } in chunks {
            out.put_bytes(&id.0);
            out.put_u32(targets.number(target));
            out.put_u32(*chunk);
            out.put_u32(*blocks);
        }
    });
}

/// Reads chunks and their targets, at most `max`.
pub(crate) fn take_stored(
    sections: &Sections<'_>,
    max: usize,
) -> Result<Vec<StoredChunk>, DecodeError> {
    let mut targets = Listed::read(sections)?;
    let records = sections.records(&STORED);
    if records.len() > max {
        let (value, max) = (records.len() as u64, max as u64);
        return Err(DecodeError::Limit { what: STORED.what, value, max });
    }
    let mut chunks = Vec::with_capacity(records.len());
    for mut record in records {
        let id = ChunkId(record.array()?);
        let number = record.u32()?;
        let target = targets.get(number)?;
        let chunk = record.u32()?;
        let blocks = record.u32()?;
        if blocks == 0 || blocks as usize > CHUNK_BLOCKS_MAX {
            return Err(DecodeError::Range { what: "chunk blocks", value: blocks.into() });
        }
        chunks.push(StoredChunk { id, blocks, target, chunk });
    }
    targets.finish()?;
    Ok(chunks)
}
