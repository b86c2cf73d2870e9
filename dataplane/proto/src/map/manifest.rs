//! The manifest: the place that a map is at, and the layers that it is made of.

use crate::error::DecodeError;
use crate::ids::{LogId, MapAttempt, MarkKind, Place, PointId, Seq, Slot, VaultId, VolumeId};
use crate::limits::{
    MAP_LAYERS_MAX, MAP_PARTS_MAX, OBJECT_BODY_BYTES_MAX, OBJECT_HEADER_BYTES_MAX, TAG_BYTES,
    VOLUME_BLOCKS_MAX, VOLUME_BYTES_MAX,
};
use crate::mark::kind_of;
use crate::object::{ObjectHeader, ObjectKind, ObjectPlace};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::wire::{Put, Reader};

/// Bytes of a manifest's own fields in the header.
pub(crate) const OWN_BYTES: usize = 44;
const WHAT: &str = "map body";
const HEAD: SectionKind = SectionKind { number: 1, stride: 64, max: 1, what: "map head" };
const LAYERS: SectionKind =
    SectionKind { number: 2, stride: 56, max: MAP_LAYERS_MAX, what: "map layers" };
const PARTS: SectionKind =
    SectionKind { number: 3, stride: 16, max: MAP_PARTS_MAX, what: "map parts" };

/// Plain head of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapHeader {
    /// What all objects have; the number of its place is the seq.
    pub object: ObjectHeader,
    /// What only manifests have.
    pub fields: MapFields,
}

/// What only manifests have in their header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapFields {
    /// Drawn for each attempt to write a map: attempts never meet.
    pub attempt: MapAttempt,
    /// The newest recovery point at or before the map's place; none if there is none.
    pub point: Option<PointId>,
    /// Ordinal of the epoch that the place is of.
    pub ordinal: u64,
}

impl MapFields {
    /// Lays them out.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.put_bytes(&self.attempt.0);
        out.put_bytes(&self.point.map_or([0; 16], |point| point.0));
        out.put_u64(self.ordinal);
        out.put_zeros(4);
    }
}

/// The place that an object's header says.
pub(super) fn place_of(object: &ObjectHeader, ordinal: u64) -> Result<Place, DecodeError> {
    let at = Place { ordinal, seq: Seq(object.place.number) };
    check_place(at, "map place").map(|()| at)
}

fn check_place(Place { ordinal, seq }: Place, what: &'static str) -> Result<(), DecodeError> {
    if ordinal == 0 || seq.0 == 0 || seq.0 == u64::MAX {
        return Err(DecodeError::Range { what, value: seq.0 });
    }
    Ok(())
}

impl MapHeader {
    /// The place of a manifest among the objects of a vault.
    #[must_use]
    pub fn place(vault: VaultId, volume: VolumeId, seq: Seq) -> ObjectPlace {
        ObjectPlace { kind: ObjectKind::Map, vault, subject: volume.0, number: seq.0, part: 0 }
    }

    /// The place in the stream: all up to and including it is in the map.
    #[must_use]
    pub fn at(&self) -> Place {
        Place { ordinal: self.fields.ordinal, seq: Seq(self.object.place.number) }
    }

    /// Reads the head at the front of an object, of which no more need be there.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(object: &[u8]) -> Result<Self, DecodeError> {
        let (object, own) = ObjectHeader::decode(ObjectKind::Map, object)?;
        Self::of(object, own)
    }

    /// Of what all objects have, and the fields that only manifests have.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn of(object: ObjectHeader, mut own: Reader<'_>) -> Result<Self, DecodeError> {
        let attempt = MapAttempt(own.array()?);
        let point: [u8; 16] = own.array()?;
        let ordinal = own.u64()?;
        own.reserved(4)?;
        place_of(&object, ordinal)?;
        if object.place.part != 0 {
            return Err(DecodeError::Range { what: "map part", value: object.place.part.into() });
        }
        object.check_without_variants()?;
        let point = (point != [0; 16]).then_some(PointId(point));
        Ok(Self { object, fields: MapFields { attempt, point, ordinal } })
    }
}

/// What the newest mark at or before the place of a map says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapMark {
    /// Where it is; the map is at a recovery point if that is its own place.
    pub at: Place,
    /// What it promises.
    pub kind: MarkKind,
    /// Its time: the agent's wall clock.
    pub time_unix_ms: u64,
    /// Blocks that could not be read.
    pub unknown_blocks: u32,
}

/// What a layer says of blocks that it does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// They are zero.
    Full,
    /// A layer below has them.
    Delta,
}

impl LayerKind {
    fn code(self) -> u8 {
        match self {
            Self::Full => 1,
            Self::Delta => 2,
        }
    }
}

/// A part of a layer, as the manifest knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartShape {
    /// Bytes of its header and directory: what a reader asks for first.
    pub front_bytes: u32,
    /// Bytes of the object.
    pub bytes: u64,
}

/// A layer of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The place of the map that it was written for; names its parts together with the attempt.
    pub at: Place,
    /// The attempt that wrote it.
    pub attempt: MapAttempt,
    /// Full or delta.
    pub kind: LayerKind,
    /// Its runs.
    pub runs: u64,
    /// Blocks that it says hold data.
    pub data_blocks: u64,
    /// Its parts, in block order; none if it says nothing.
    pub parts: Vec<PartShape>,
}

/// Body of a manifest, opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Log of the epoch that the place is of.
    pub log: LogId,
    /// Slot of the segment whose span ends at the place: reading goes on from it.
    pub slot: Slot,
    /// Size of the volume.
    pub size_bytes: u64,
    /// The newest mark at or before the place, if there is one.
    pub mark: Option<MapMark>,
    /// The layers, newest first; the last is full, the others are deltas.
    pub layers: Vec<Layer>,
}

impl Manifest {
    /// Lays the body out.
    ///
    /// # Panics
    /// If a count is over its limit: a bug in the caller.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let parts: usize = self.layers.iter().map(|layer| layer.parts.len()).sum();
        let bytes = 128 + self.layers.len() * LAYERS.stride + parts * PARTS.stride;
        let mut out = SectionWriter::with_capacity(bytes);
        out.put(&HEAD, 1, |out| {
            let Self { log, slot, size_bytes, mark, .. } = self;
            out.put_bytes(&log.0);
            out.put_u64(slot.0);
            out.put_u64(*size_bytes);
            out.put_u64(mark.map_or(0, |mark| mark.at.ordinal));
            out.put_u64(mark.map_or(0, |mark| mark.at.seq.0));
            out.put_u64(mark.map_or(0, |mark| mark.time_unix_ms));
            out.put_u32(mark.map_or(0, |mark| mark.unknown_blocks));
            out.put_u8(mark.map_or(0, |mark| mark.kind.code()));
            out.put_zeros(3);
        });
        out.put(&LAYERS, self.layers.len(), |out| {
            for layer in &self.layers {
                out.put_u64(layer.at.ordinal);
                out.put_u64(layer.at.seq.0);
                out.put_bytes(&layer.attempt.0);
                out.put_u64(layer.runs);
                out.put_u64(layer.data_blocks);
                out.put_u32(u32::try_from(layer.parts.len()).expect("parts have a limit"));
                out.put_u8(layer.kind.code());
                out.put_zeros(3);
            }
        });
        out.put(&PARTS, parts, |out| {
            for part in self.layers.iter().flat_map(|layer| &layer.parts) {
                out.put_u32(part.front_bytes);
                out.put_zeros(4);
                out.put_u64(part.bytes);
            }
        });
        out.finish()
    }

    /// Reads a body.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let sections = Sections::read(WHAT, bytes, &[HEAD, LAYERS, PARTS])?;
        let mut head = sections.record(&HEAD)?;
        let log = LogId(head.array()?);
        let slot = head.slot("map slot")?;
        let size_bytes = head.u64()?;
        if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX {
            return Err(DecodeError::Range { what: "map size", value: size_bytes });
        }
        let mark = take_mark(&mut head)?;
        let mut parts = sections.records(&PARTS);
        let mut layers = Vec::new();
        for record in sections.records(&LAYERS) {
            layers.push(take_layer(record, &mut parts)?);
        }
        if parts.len() > 0 {
            return Err(DecodeError::Range {
                what: "parts of no layer",
                value: parts.len() as u64,
            });
        }
        let full = layers.iter().position(|layer| layer.kind == LayerKind::Full);
        if full.is_none_or(|at| at + 1 != layers.len()) {
            return Err(DecodeError::Range { what: "full layer", value: layers.len() as u64 });
        }
        if !layers.windows(2).all(|pair| pair[0].at > pair[1].at) {
            return Err(DecodeError::Range { what: "layer order", value: layers.len() as u64 });
        }
        Ok(Self { log, slot, size_bytes, mark, layers })
    }
}

fn take_mark(head: &mut Reader<'_>) -> Result<Option<MapMark>, DecodeError> {
    let at = Place { ordinal: head.u64()?, seq: Seq(head.u64()?) };
    let time_unix_ms = head.u64()?;
    let unknown_blocks = head.u32()?;
    let code = head.u8()?;
    head.reserved(3)?;
    if code == 0 {
        let value = at.ordinal | at.seq.0 | time_unix_ms | u64::from(unknown_blocks);
        return match value {
            0 => Ok(None),
            _ => Err(DecodeError::Range { what: "map without a mark", value }),
        };
    }
    check_place(at, "mark of a map")?;
    Ok(Some(MapMark { at, kind: kind_of(code)?, time_unix_ms, unknown_blocks }))
}

fn take_layer<'a>(
    mut reader: Reader<'a>,
    parts: &mut impl Iterator<Item = Reader<'a>>,
) -> Result<Layer, DecodeError> {
    let at = Place { ordinal: reader.u64()?, seq: Seq(reader.u64()?) };
    check_place(at, "layer place")?;
    let attempt = MapAttempt(reader.array()?);
    let runs = reader.u64()?;
    let data_blocks = reader.u64()?;
    if runs > VOLUME_BLOCKS_MAX || data_blocks > VOLUME_BLOCKS_MAX {
        return Err(DecodeError::Range { what: "layer runs", value: runs.max(data_blocks) });
    }
    let count = reader.count("map parts", MAP_PARTS_MAX)?;
    let kind = match reader.u8()? {
        1 => LayerKind::Full,
        2 => LayerKind::Delta,
        0 => return Err(DecodeError::Range { what: "layer kind", value: 0 }),
        bit => return Err(DecodeError::Newer { what: "map", feature: "layer", bit: bit.into() }),
    };
    reader.reserved(3)?;
    let mut shapes = Vec::with_capacity(count);
    for _ in 0..count {
        let Some(part) = parts.next() else {
            return Err(DecodeError::Range { what: "map parts", value: count as u64 });
        };
        shapes.push(take_part(part)?);
    }
    if (runs == 0) != shapes.is_empty() {
        return Err(DecodeError::Range { what: "layer without parts", value: runs });
    }
    Ok(Layer { at, attempt, kind, runs, data_blocks, parts: shapes })
}

fn take_part(mut reader: Reader<'_>) -> Result<PartShape, DecodeError> {
    let max = OBJECT_HEADER_BYTES_MAX + OBJECT_BODY_BYTES_MAX + TAG_BYTES;
    let front = reader.count("map part", max)?;
    reader.reserved(4)?;
    let bytes = reader.u64()?;
    if bytes < front as u64 {
        return Err(DecodeError::Range { what: "map part bytes", value: bytes });
    }
    Ok(PartShape { front_bytes: u32::try_from(front).expect("under its limit"), bytes })
}
