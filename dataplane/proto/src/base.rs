//! The base of a volume: the stream at and below a place is one map, and of the recovery points there these are kept.
//!
//! Layout and rules: `docs/formats/base.md`.

use crate::error::DecodeError;
use crate::ids::{Epoch, LogId, MapAttempt, Place, Seq, Slot, VaultId, VolumeId};
use crate::limits::{BASE_POINTS_MAX, VOLUME_BYTES_MAX};
use crate::mark::Mark;
use crate::object::{ObjectKind, ObjectPlace};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::wire::{Put, Reader};

const HEAD: SectionKind = SectionKind { number: 1, stride: 128, max: 1, what: "base head" };
const POINTS: SectionKind =
    SectionKind { number: 2, stride: 112, max: BASE_POINTS_MAX, what: "base points" };

/// Bytes of the digest of an object.
pub const DIGEST_BYTES: usize = 32;

/// BLAKE3-256 of an object as it is stored.
pub type Digest = [u8; DIGEST_BYTES];

/// The place of a base of a volume; the first number is 1.
#[must_use]
pub fn place(vault: VaultId, volume: VolumeId, number: u64) -> ObjectPlace {
    ObjectPlace { kind: ObjectKind::Base, vault, subject: volume.0, number, part: 0 }
}

/// A recovery point that is kept, and the map that it opens by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptPoint {
    /// Where its mark is.
    pub at: Place,
    /// The attempt at the map of exactly that place.
    pub map: MapAttempt,
    /// The epoch of its ordinal.
    pub epoch: Epoch,
    /// Size of the volume in bytes, of that epoch.
    pub size_bytes: u64,
    /// Its mark.
    pub mark: Mark,
}

/// What a base says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBody {
    /// Digest of the base before; zeros for the first.
    pub before: Digest,
    /// The stream at and below this place is the map.
    pub at: Place,
    /// The attempt at the map of exactly that place.
    pub map: MapAttempt,
    /// Digest of that map's manifest.
    pub manifest: Digest,
    /// The log where the place's span lies, as the manifest says.
    pub log: LogId,
    /// The slot of that span.
    pub slot: Slot,
    /// Of the points at and below the place those that are kept, in order; no others are.
    pub points: Vec<KeptPoint>,
}

impl BaseBody {
    /// The point that is kept at a place, if one is.
    #[must_use]
    pub fn kept_at(&self, at: Place) -> Option<&KeptPoint> {
        let index = self.points.binary_search_by_key(&at, |point| point.at).ok()?;
        self.points.get(index)
    }

    /// Lays the body out.
    ///
    /// # Panics
    /// If there are more points than the limit: the caller asks first.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = SectionWriter::with_capacity(256 + self.points.len() * POINTS.stride);
        out.put(&HEAD, 1, |out| {
            out.put_bytes(&self.before);
            out.put_u64(self.at.ordinal);
            out.put_u64(self.at.seq.0);
            out.put_bytes(&self.map.0);
            out.put_bytes(&self.manifest);
            out.put_bytes(&self.log.0);
            out.put_u64(self.slot.0);
            out.put_zeros(8);
        });
        out.put(&POINTS, self.points.len(), |out| {
            self.points.iter().for_each(|point| put_point(out, point));
        });
        out.finish()
    }

    /// Reads the body of the base with a number.
    ///
    /// # Errors
    /// `Newer` for what must be understood and is not known here; by the field that is wrong.
    pub fn decode(bytes: &[u8], number: u64) -> Result<Self, DecodeError> {
        let sections = Sections::read("base body", bytes, &[HEAD, POINTS])?;
        let mut head = sections.record(&HEAD)?;
        let before: Digest = head.array()?;
        if number == 0 || (number == 1) != (before == [0; DIGEST_BYTES]) {
            return Err(DecodeError::Range { what: "base before", value: number });
        }
        let at = take_place(&mut head, "base place")?;
        let (map, manifest) = (MapAttempt(head.array()?), head.array()?);
        let (log, slot) = (LogId(head.array()?), head.slot("base slot")?);
        head.reserved(8)?;
        let records = sections.records(&POINTS);
        let mut points: Vec<KeptPoint> = Vec::with_capacity(records.len());
        for record in records {
            let point = take_point(record)?;
            if points.last().is_some_and(|last| !is_behind(last, &point)) {
                return Err(DecodeError::Range { what: "base order", value: point.at.seq.0 });
            }
            points.push(point);
        }
        // The newest is the only one that can lie too far up, or where the base is.
        let fits = |point: &KeptPoint| point.at < at || point.at == at && point.map == map;
        if let Some(point) = points.last().filter(|point| !fits(point)) {
            return Err(DecodeError::Range { what: "base point", value: point.at.seq.0 });
        }
        Ok(Self { before, at, map, manifest, log, slot, points })
    }
}

/// Whether a point comes behind another: seqs go on from epoch to epoch, and ordinals ascend with the epochs.
fn is_behind(before: &KeptPoint, point: &KeptPoint) -> bool {
    let same = (before.epoch, before.size_bytes) == (point.epoch, point.size_bytes);
    let of_epoch = match before.at.ordinal == point.at.ordinal {
        true => same,
        false => before.at.ordinal < point.at.ordinal && before.epoch < point.epoch,
    };
    of_epoch && before.at.seq < point.at.seq
}

fn put_point(out: &mut Vec<u8>, point: &KeptPoint) {
    out.put_u64(point.at.ordinal);
    out.put_u64(point.at.seq.0);
    out.put_bytes(&point.map.0);
    out.put_u64(point.epoch.0);
    out.put_u64(point.size_bytes);
    point.mark.put(out);
}

fn take_point(mut reader: Reader<'_>) -> Result<KeptPoint, DecodeError> {
    let at = take_place(&mut reader, "base point place")?;
    let map = MapAttempt(reader.array()?);
    let epoch = Epoch(reader.u64()?);
    let size_bytes = reader.u64()?;
    if epoch == Epoch(0) || size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX {
        return Err(DecodeError::Range { what: "base point", value: at.seq.0 });
    }
    let mark = Mark::take(&mut reader)?;
    Ok(KeptPoint { at, map, epoch, size_bytes, mark })
}

fn take_place(reader: &mut Reader<'_>, what: &'static str) -> Result<Place, DecodeError> {
    let ordinal = reader.u64()?;
    let seq = reader.seq(what)?;
    if ordinal == 0 || seq == Seq(0) {
        return Err(DecodeError::Range { what, value: seq.0 });
    }
    Ok(Place { ordinal, seq })
}
