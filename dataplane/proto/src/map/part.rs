//! A part of a layer: pages behind a directory of them.

use super::manifest::place_of;
use crate::error::DecodeError;
use crate::ids::{BlockRange, MapAttempt, Place, Seq, VaultId, VolumeId};
use crate::limits::{
    MAP_PART_BYTES_MAX, MAP_PARTS_MAX, PAGE_BYTES_MAX, PAGE_RUNS_MAX, PART_PAGES_MAX,
    PART_RANGES_MAX, TAG_BYTES, VOLUME_BLOCKS_MAX,
};
use crate::object::{Compression, ObjectHeader, ObjectKind, ObjectPlace};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::wire::{Put, Reader};

/// Bytes of a part's own fields in the header.
pub(crate) const OWN_BYTES: usize = 36;
/// Blocks of a region, in which a delta's ranges lie: what two bytes tell apart.
pub const REGION_BLOCKS: u64 = 1 << 16;
const REGIONS_MAX: usize = 1 << 18;
const WHAT: &str = "directory of a map part";
const PAGES: SectionKind =
    SectionKind { number: 1, stride: 32, max: PART_PAGES_MAX, what: "pages" };
const REGIONS: SectionKind =
    SectionKind { number: 2, stride: 8, max: REGIONS_MAX, what: "regions of a delta" };
const RANGES: SectionKind =
    SectionKind { number: 3, stride: 4, max: PART_RANGES_MAX, what: "ranges of a delta" };
const _: () = assert!(REGIONS_MAX as u64 * REGION_BLOCKS >= VOLUME_BLOCKS_MAX);

/// Plain head of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartHeader {
    /// What all objects have; the number of its place is the seq of the map that it was written for.
    pub object: ObjectHeader,
    /// What only parts have.
    pub fields: PartFields,
}

/// What only parts have in their header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartFields {
    /// The attempt that wrote it.
    pub attempt: MapAttempt,
    /// Ordinal of the epoch that the map's place is of.
    pub ordinal: u64,
    /// Bytes of all sealed pages.
    pub pages_bytes: u64,
}

impl PartFields {
    /// Lays them out.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.put_bytes(&self.attempt.0);
        out.put_u64(self.ordinal);
        out.put_u64(self.pages_bytes);
        out.put_zeros(4);
    }
}

impl PartHeader {
    /// The place of a part among the objects of a vault.
    #[must_use]
    pub fn place(vault: VaultId, volume: VolumeId, seq: Seq, part: u32) -> ObjectPlace {
        ObjectPlace { kind: ObjectKind::Pages, vault, subject: volume.0, number: seq.0, part }
    }

    /// The place in the stream of the map that it was written for.
    #[must_use]
    pub fn at(&self) -> Place {
        Place { ordinal: self.fields.ordinal, seq: Seq(self.object.place.number) }
    }

    /// Bytes of the whole object.
    #[must_use]
    pub fn object_bytes(&self) -> u64 {
        self.object.whole_bytes() as u64 + self.fields.pages_bytes
    }

    /// Reads the head at the front of an object, of which no more need be there.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(object: &[u8]) -> Result<Self, DecodeError> {
        let (object, own) = ObjectHeader::decode(ObjectKind::Pages, object)?;
        Self::of(object, own)
    }

    /// Of what all objects have, and the fields that only parts have.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn of(object: ObjectHeader, mut own: Reader<'_>) -> Result<Self, DecodeError> {
        let attempt = MapAttempt(own.array()?);
        let ordinal = own.u64()?;
        let pages_bytes = own.u64()?;
        own.reserved(4)?;
        place_of(&object, ordinal)?;
        if object.place.part as usize >= MAP_PARTS_MAX {
            return Err(DecodeError::Range { what: "map part", value: object.place.part.into() });
        }
        if pages_bytes > MAP_PART_BYTES_MAX {
            let (value, max) = (pages_bytes, MAP_PART_BYTES_MAX);
            return Err(DecodeError::Limit { what: "pages of a map part", value, max });
        }
        object.check_without_variants()?;
        Ok(Self { object, fields: PartFields { attempt, ordinal, pages_bytes } })
    }
}

/// A page, as the directory knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageAt {
    /// First block of its first run.
    pub first: u64,
    /// The block behind its last run.
    pub end: u64,
    /// Its runs.
    pub runs: u32,
    /// Bytes in the object, with the tag.
    pub stored_bytes: u32,
    /// Bytes before compression.
    pub raw_bytes: u32,
    /// How it is compressed.
    pub compression: Compression,
}

/// Body of a part, opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    /// The pages, in block order and in that of the object.
    pub pages: Vec<PageAt>,
    /// Of a delta: which blocks its runs cover; ascending, apart or touching only where one ends with a region.
    pub covers: Vec<BlockRange>,
}

impl Directory {
    /// Lays the body out.
    ///
    /// # Panics
    /// If a count is over its limit, or what is covered does not ascend: bugs in the caller.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = SectionWriter::with_capacity(64 + self.pages.len() * 32);
        out.put(&PAGES, self.pages.len(), |out| {
            for page in &self.pages {
                out.put_u64(page.first);
                out.put_u64(page.end);
                out.put_u32(page.runs);
                out.put_u32(page.stored_bytes);
                out.put_u32(page.raw_bytes);
                out.put_u8(page.compression.code());
                out.put_zeros(3);
            }
        });
        let regions = self.covers.chunk_by(|a, b| region_of(a) == region_of(b));
        let regions: Vec<_> = regions.map(|ranges| (region_of(&ranges[0]), ranges.len())).collect();
        let narrow = |value: usize| u32::try_from(value).expect("ranges have a limit");
        out.put(&REGIONS, regions.len(), |out| {
            for (region, ranges) in &regions {
                out.put_u32(u32::try_from(*region).expect("a volume has so many regions"));
                out.put_u32(narrow(*ranges));
            }
        });
        out.put(&RANGES, self.covers.len(), |out| {
            for range in &self.covers {
                let first = range.block % REGION_BLOCKS;
                assert!(range.count > 0 && first + range.count <= REGION_BLOCKS, "in one region");
                let short = |value| u16::try_from(value).expect("in its region");
                out.put_u16(short(first));
                out.put_u16(short(first + range.count - 1));
            }
        });
        out.finish()
    }

    /// Reads a body.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let sections = Sections::read(WHAT, bytes, &[PAGES, REGIONS, RANGES])?;
        let mut pages: Vec<PageAt> = Vec::new();
        for record in sections.records(&PAGES) {
            let page = take_page(record)?;
            if pages.last().is_some_and(|last| page.first < last.end) {
                return Err(DecodeError::Range { what: "page order", value: page.first });
            }
            pages.push(page);
        }
        let mut ranges = sections.records(&RANGES);
        let mut covers: Vec<BlockRange> = Vec::with_capacity(ranges.len());
        let mut last = None;
        for mut record in sections.records(&REGIONS) {
            let (region, count) = (record.u32()?, record.u32()?);
            if count == 0
                || last.is_some_and(|last| region <= last)
                || region as usize >= REGIONS_MAX
            {
                return Err(DecodeError::Range { what: "region", value: region.into() });
            }
            last = Some(region);
            let mut floor = 0;
            for _ in 0..count {
                let Some(range) = ranges.next() else {
                    return Err(DecodeError::Range { what: "ranges", value: count.into() });
                };
                let range = take_range(range, region, &mut floor)?;
                covers.push(range);
            }
        }
        if ranges.len() > 0 {
            let value = ranges.len() as u64;
            return Err(DecodeError::Range { what: "ranges of no region", value });
        }
        Ok(Self { pages, covers })
    }

    /// Adds a range to what is covered, behind all that is; joined where it touches, cut where regions end.
    ///
    /// # Panics
    /// If it begins in front of what is covered: a bug in the caller.
    pub fn cover(covers: &mut Vec<BlockRange>, range: BlockRange) {
        let mut block = range.block;
        while block < range.end() {
            let region_end = (block / REGION_BLOCKS + 1) * REGION_BLOCKS;
            let count = range.end().min(region_end) - block;
            match covers.last_mut() {
                Some(last) if last.end() == block && region_of(last) == block / REGION_BLOCKS => {
                    last.count += count;
                }
                last => {
                    assert!(last.is_none_or(|last| last.end() <= block), "in block order");
                    covers.push(BlockRange { block, count });
                }
            }
            block += count;
        }
    }
}

fn region_of(range: &BlockRange) -> u64 {
    range.block / REGION_BLOCKS
}

/// `floor` is where the next range of the region may begin: one that touches would have been joined.
fn take_range(
    mut reader: Reader<'_>,
    region: u32,
    floor: &mut u64,
) -> Result<BlockRange, DecodeError> {
    let (first, last) = (u64::from(reader.u16()?), u64::from(reader.u16()?));
    if first < *floor || last < first {
        return Err(DecodeError::Range { what: "range of a region", value: first });
    }
    *floor = last + 2;
    let block = u64::from(region) * REGION_BLOCKS + first;
    Ok(BlockRange { block, count: last - first + 1 })
}

fn take_page(mut reader: Reader<'_>) -> Result<PageAt, DecodeError> {
    let (first, end) = (reader.u64()?, reader.u64()?);
    if first >= end || end > VOLUME_BLOCKS_MAX {
        return Err(DecodeError::Range { what: "page blocks", value: first });
    }
    let runs = reader.count("page runs", PAGE_RUNS_MAX)?;
    let stored = reader.count("page", PAGE_BYTES_MAX + TAG_BYTES)?;
    let raw = reader.count("page", PAGE_BYTES_MAX)?;
    let compression = Compression::from_code(reader.u8()?)?;
    reader.reserved(3)?;
    if runs == 0 {
        return Err(DecodeError::Range { what: "page runs", value: 0 });
    }
    let narrow = |value: usize| u32::try_from(value).expect("under its limit");
    let (runs, stored_bytes, raw_bytes) = (narrow(runs), narrow(stored), narrow(raw));
    Ok(PageAt { first, end, runs, stored_bytes, raw_bytes, compression })
}
