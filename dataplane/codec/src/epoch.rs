//! Sealing and opening epoch objects. Layout: `farshore_proto::epoch`.
//!
//! The key's context is the place: vault, volume, ordinal. The AAD is the whole header.

use crate::error::{CodecError, Place};
use crate::keys::{DataKey, KeyRing};
use crate::seal::{Domain, OpenKey, Purpose, Sealer};
use farshore_proto::epoch::{EPOCH_HEADER_BYTES, EpochBody, EpochHeader};
use farshore_proto::limits::{SMALL_OBJECT_BYTES_MAX, TAG_BYTES};
use farshore_proto::{KeyNumber, VaultId, VolumeId};

fn with_context<T>(
    vault: VaultId,
    volume: VolumeId,
    ordinal: u64,
    with: impl FnOnce(&[&[u8]]) -> T,
) -> T {
    with(&[&vault.0, &volume.0, &ordinal.to_le_bytes()])
}

/// Builds the epoch object `ordinal` of `volume`.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
///
/// # Panics
/// If the label is over its limit: a bug in the caller.
pub fn seal_epoch(
    vault: VaultId,
    volume: VolumeId,
    ordinal: u64,
    key: &DataKey,
    number: KeyNumber,
    body: &EpochBody,
) -> Result<Vec<u8>, CodecError> {
    let mut sealer =
        with_context(vault, volume, ordinal, |context| Sealer::draw(key, Purpose::Epoch, context))?;
    let mut sealed = body.encode();
    let header = EpochHeader {
        vault,
        volume,
        ordinal,
        key: number,
        salt: *sealer.salt(),
        commitment: *sealer.key().commitment(),
        body_bytes: sealed.len() + TAG_BYTES,
    };
    let mut object = header.encode();
    sealer.seal(Domain::Body, &object, &mut sealed)?;
    object.extend_from_slice(&sealed);
    Ok(object)
}

/// Opens the object found as epoch `ordinal` of `volume`.
///
/// # Errors
/// `Corrupt` if it is damaged, is that of another place, or was sealed under another key;
/// `NotFound` if `keys` lacks its data key; `Limit` if it is too large.
pub fn open_epoch(
    object: &[u8],
    vault: VaultId,
    volume: VolumeId,
    ordinal: u64,
    keys: &KeyRing,
) -> Result<EpochBody, CodecError> {
    if object.len() > SMALL_OBJECT_BYTES_MAX {
        return Err(CodecError::Limit {
            what: "epoch object",
            value: object.len() as u64,
            max: SMALL_OBJECT_BYTES_MAX as u64,
        });
    }
    let (header, sealed) = EpochHeader::decode(object)?;
    let expected = Place::Epoch { vault, volume, ordinal };
    let found =
        Place::Epoch { vault: header.vault, volume: header.volume, ordinal: header.ordinal };
    if found != expected {
        return Err(CodecError::Misplaced { expected, found });
    }
    let key = with_context(vault, volume, ordinal, |context| {
        keys.get(header.key).map(|key| OpenKey::derive(key, Purpose::Epoch, context, &header.salt))
    })?;
    key.check(&header.commitment, "epoch object", header.key)?;
    let mut copy = sealed.to_vec();
    let plain = key.open_in_place(Domain::Body, 0, &object[..EPOCH_HEADER_BYTES], &mut copy)?;
    Ok(EpochBody::decode(plain)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::{Epoch, ErrorKind, LogId, Seq, Slot};

    const VAULT: VaultId = VaultId([1; 16]);
    const VOLUME: VolumeId = VolumeId([2; 16]);
    const KEY: KeyNumber = KeyNumber(1);

    fn body() -> EpochBody {
        EpochBody {
            epoch: Epoch(7),
            log: LogId([3; 16]),
            first_slot: Slot(9),
            first_seq: Seq(11),
            size_bytes: 1 << 30,
            stamp: farshore_proto::Stamp::default(),
            label: "web-1 /dev/vda".to_owned(),
        }
    }

    fn ring(byte: u8) -> KeyRing {
        let mut ring = KeyRing::new(VAULT);
        ring.insert(KEY, DataKey::from_bytes([byte; 32]));
        ring
    }

    fn sealed() -> Vec<u8> {
        seal_epoch(VAULT, VOLUME, 3, ring(5).get(KEY).unwrap(), KEY, &body()).unwrap()
    }

    #[test]
    fn opens_in_its_own_place_and_no_other() {
        let object = sealed();
        assert_eq!(open_epoch(&object, VAULT, VOLUME, 3, &ring(5)).unwrap(), body());
        let elsewhere =
            [(VaultId([9; 16]), VOLUME, 3), (VAULT, VolumeId([9; 16]), 3), (VAULT, VOLUME, 4)];
        for (vault, volume, ordinal) in elsewhere {
            let error = open_epoch(&object, vault, volume, ordinal, &ring(5)).unwrap_err();
            assert!(matches!(error, CodecError::Misplaced { .. }), "{error}");
            // Relabelled with a good checksum: the key of that place is another.
            let (header, sealed) = EpochHeader::decode(&object).unwrap();
            let forged = EpochHeader { vault, volume, ordinal, ..header };
            let forged = [&forged.encode(), sealed].concat();
            let error = open_epoch(&forged, vault, volume, ordinal, &ring(5)).unwrap_err();
            assert!(matches!(error, CodecError::KeyMismatch { .. }), "{error}");
        }
    }

    #[test]
    fn a_wrong_or_missing_data_key_is_named() {
        let object = sealed();
        let error = open_epoch(&object, VAULT, VOLUME, 3, &ring(6)).unwrap_err();
        assert_eq!(error, CodecError::KeyMismatch { what: "epoch object", key: KEY });
        let empty = KeyRing::new(VAULT);
        let error = open_epoch(&object, VAULT, VOLUME, 3, &empty).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let object = sealed();
        let ring = ring(5);
        for at in 0..object.len() {
            for bit in 0..8 {
                let mut bad = object.clone();
                bad[at] ^= 1 << bit;
                assert!(open_epoch(&bad, VAULT, VOLUME, 3, &ring).is_err(), "byte {at} bit {bit}");
            }
            assert!(open_epoch(&object[..at], VAULT, VOLUME, 3, &ring).is_err(), "length {at}");
        }
        let longer = [object.as_slice(), &[0]].concat();
        assert!(open_epoch(&longer, VAULT, VOLUME, 3, &ring).is_err());
    }

    #[test]
    fn two_objects_of_one_body_share_nothing_but_the_place() {
        let (one, two) = (sealed(), sealed());
        let (one, body_one) = EpochHeader::decode(&one).unwrap();
        let (two, body_two) = EpochHeader::decode(&two).unwrap();
        assert_ne!(one.salt, two.salt);
        assert_ne!(one.commitment, two.commitment);
        assert_ne!(body_one, body_two);
    }
}
