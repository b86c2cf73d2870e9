//! Sealing and opening the parts of maps. Layout: `farshore_proto::map`.
//!
//! The key's context is the place: vault, volume, seq, part. The AAD is the whole header.

use crate::compress::{Compressor, decompress};
use crate::error::{CodecError, Place};
use crate::keys::{DataKey, KeyRing};
use crate::seal::{Domain, OpenKey, Purpose, Sealer};
use farshore_proto::limits::{MAP_BODY_BYTES_MAX, MAP_HEADER_BYTES, TAG_BYTES};
use farshore_proto::map::{MapBody, MapHeader};
use farshore_proto::{KeyNumber, PointId, Seq, VaultId, VolumeId};

/// The place of a part in the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapPlace {
    /// The vault.
    pub vault: VaultId,
    /// The volume.
    pub volume: VolumeId,
    /// The seq of the map.
    pub seq: Seq,
    /// The number of the part.
    pub part: u32,
}

impl MapPlace {
    fn place(self) -> Place {
        let Self { vault, volume, seq, part } = self;
        Place::Map { vault, volume, seq, part }
    }

    fn with_context<T>(self, with: impl FnOnce(&[&[u8]]) -> T) -> T {
        let Self { vault, volume, seq, part } = self;
        with(&[&vault.0, &volume.0, &seq.0.to_le_bytes(), &part.to_le_bytes()])
    }
}

/// What all parts of one map have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapLabel {
    /// Id of the recovery point that the map is at.
    pub point: PointId,
    /// Drawn for the attempt to write the map.
    pub attempt: [u8; 16],
    /// How many parts there are.
    pub parts: u32,
}

/// Builds a part of a map, compressed with zstd at `level`.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
///
/// # Panics
/// If something is over its limit: a bug in the caller.
pub fn seal_map(
    at: MapPlace,
    label: &MapLabel,
    key: &DataKey,
    number: KeyNumber,
    body: &MapBody,
    level: i32,
) -> Result<Vec<u8>, CodecError> {
    let mut sealer = at.with_context(|context| Sealer::draw(key, Purpose::Map, context))?;
    let raw = body.encode();
    let mut stored = Vec::new();
    let compression = Compressor::new(level).compress(&raw, &mut stored)?;
    let header = MapHeader {
        vault: at.vault,
        volume: at.volume,
        seq: at.seq,
        point: label.point,
        attempt: label.attempt,
        part: at.part,
        parts: label.parts,
        key: number,
        salt: *sealer.salt(),
        commitment: *sealer.key().commitment(),
        body_bytes: stored.len() + TAG_BYTES,
        body_raw_bytes: raw.len(),
        compression,
    };
    let mut object = header.encode();
    sealer.seal(Domain::Map, &object, &mut stored)?;
    object.extend_from_slice(&stored);
    Ok(object)
}

/// Opens the object found as the part `at` of a map.
///
/// # Errors
/// `Corrupt` if it is damaged, is that of another place, or was sealed under another key;
/// `NotFound` if `keys` lacks its data key; `Limit` if it claims more than a part may be.
pub fn open_map(
    object: &[u8],
    at: MapPlace,
    keys: &KeyRing,
) -> Result<(MapHeader, MapBody), CodecError> {
    let (header, sealed) = MapHeader::decode(object)?;
    check_place(&header, at)?;
    let key = at.with_context(|context| {
        keys.get(header.key).map(|key| OpenKey::derive(key, Purpose::Map, context, &header.salt))
    })?;
    key.check(&header.commitment, "map", header.key)?;
    let mut copy = sealed.to_vec();
    let stored = key.open_in_place(Domain::Map, 0, &object[..MAP_HEADER_BYTES], &mut copy)?;
    let mut raw = Vec::new();
    let raw_bytes = header.body_raw_bytes;
    decompress("map body", header.compression, stored, raw_bytes, MAP_BODY_BYTES_MAX, &mut raw)?;
    Ok((header, MapBody::decode(&raw)?))
}

/// Reads the head of the part `at`, of which `front` holds at least the header.
///
/// Nothing in it is authenticated: it serves to choose what to open.
///
/// # Errors
/// `Corrupt` if it is damaged or of another place.
pub fn peek_map(front: &[u8], at: MapPlace) -> Result<MapHeader, CodecError> {
    let header = MapHeader::decode_head(front)?;
    check_place(&header, at)?;
    Ok(header)
}

fn check_place(header: &MapHeader, at: MapPlace) -> Result<(), CodecError> {
    let MapHeader { vault, volume, seq, part, .. } = *header;
    let found = MapPlace { vault, volume, seq, part };
    if found != at {
        return Err(CodecError::Misplaced { expected: at.place(), found: found.place() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::index_run::StoredChunk;
    use farshore_proto::map::{MapHead, MapRun};
    use farshore_proto::{BlockRange, ChunkId, ErrorKind, LogId, MarkKind, Slot};

    const AT: MapPlace =
        MapPlace { vault: VaultId([1; 16]), volume: VolumeId([2; 16]), seq: Seq(9), part: 1 };
    const KEY: KeyNumber = KeyNumber(1);
    const LABEL: MapLabel = MapLabel { point: PointId([7; 16]), attempt: [8; 16], parts: 3 };

    fn body() -> MapBody {
        let log = LogId([3; 16]);
        let chunk = |n: u8| StoredChunk {
            id: ChunkId([n; 32]),
            blocks: 4,
            log,
            slot: Slot(5),
            chunk: n.into(),
        };
        let run = |n: u32| MapRun {
            range: BlockRange { block: u64::from(n) * 4, count: 4 },
            chunk: n,
            first: 0,
        };
        let head = MapHead {
            ordinal: 1,
            log,
            slot: Slot(6),
            size_bytes: 1 << 20,
            time_unix_ms: 77,
            kind: MarkKind::Crash,
            unknown_blocks: 0,
        };
        MapBody { head, chunks: (0..4).map(chunk).collect(), runs: (0..4).map(run).collect() }
    }

    fn ring(byte: u8) -> KeyRing {
        let mut ring = KeyRing::new(AT.vault);
        ring.insert(KEY, DataKey::from_bytes([byte; 32]));
        ring
    }

    fn sealed() -> Vec<u8> {
        seal_map(AT, &LABEL, ring(5).get(KEY).unwrap(), KEY, &body(), 1).unwrap()
    }

    #[test]
    fn opens_in_its_own_place_and_no_other() {
        let object = sealed();
        let (header, found) = open_map(&object, AT, &ring(5)).unwrap();
        assert_eq!((found, header.point, header.parts), (body(), LABEL.point, 3));
        assert_eq!(peek_map(&object[..MAP_HEADER_BYTES], AT).unwrap(), header);
        for at in [
            MapPlace { vault: VaultId([9; 16]), ..AT },
            MapPlace { volume: VolumeId([9; 16]), ..AT },
            MapPlace { seq: Seq(10), ..AT },
            MapPlace { part: 2, ..AT },
        ] {
            let error = open_map(&object, at, &ring(5)).unwrap_err();
            assert!(matches!(error, CodecError::Misplaced { .. }), "{error}");
            assert!(peek_map(&object, at).is_err());
            // Relabelled with a good checksum: the key of that place is another.
            let (header, sealed) = MapHeader::decode(&object).unwrap();
            let MapPlace { vault, volume, seq, part } = at;
            let forged = MapHeader { vault, volume, seq, part, ..header };
            let forged = [&forged.encode(), sealed].concat();
            let error = open_map(&forged, at, &ring(5)).unwrap_err();
            assert!(matches!(error, CodecError::KeyMismatch { .. }), "{error}");
        }
    }

    #[test]
    fn a_label_that_was_changed_is_noticed() {
        let object = sealed();
        let (header, sealed) = MapHeader::decode(&object).unwrap();
        for forged in [
            MapHeader { point: PointId([1; 16]), ..header },
            MapHeader { attempt: [1; 16], ..header },
            MapHeader { parts: 2, ..header },
        ] {
            let forged = [&forged.encode(), sealed].concat();
            let error = open_map(&forged, AT, &ring(5)).unwrap_err();
            assert_eq!(error, CodecError::Tampered { what: "map body" });
        }
    }

    #[test]
    fn a_wrong_or_missing_data_key_is_named() {
        let object = sealed();
        let error = open_map(&object, AT, &ring(6)).unwrap_err();
        assert_eq!(error, CodecError::KeyMismatch { what: "map", key: KEY });
        let error = open_map(&object, AT, &KeyRing::new(AT.vault)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let (object, ring) = (sealed(), ring(5));
        for at in 0..object.len() {
            for bit in 0..8 {
                let mut bad = object.clone();
                bad[at] ^= 1 << bit;
                assert!(open_map(&bad, AT, &ring).is_err(), "byte {at} bit {bit}");
            }
            assert!(open_map(&object[..at], AT, &ring).is_err(), "length {at}");
        }
        assert!(open_map(&[object.as_slice(), &[0]].concat(), AT, &ring).is_err());
    }

    #[test]
    fn two_objects_of_one_body_share_nothing_but_the_label() {
        let (one, two) = (sealed(), sealed());
        let (one, body_one) = MapHeader::decode(&one).unwrap();
        let (two, body_two) = MapHeader::decode(&two).unwrap();
        assert!(one.salt != two.salt && one.commitment != two.commitment && body_one != body_two);
    }
}
