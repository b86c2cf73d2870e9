//! Sealing and opening index runs. Layout: `farshore_proto::index_run`.
//!
//! The key's context is the place: vault and run. The AAD is the whole header.

use crate::compress::{Compressor, decompress};
use crate::error::{CodecError, Place};
use crate::keys::{DataKey, KeyRing};
use crate::seal::{Domain, OpenKey, Purpose, Sealer};
use farshore_proto::index_run::{IndexRun, IndexRunHeader};
use farshore_proto::limits::{INDEX_RUN_BODY_BYTES_MAX, INDEX_RUN_HEADER_BYTES, TAG_BYTES};
use farshore_proto::{KeyNumber, RunId, VaultId};

/// Builds the run `run`, compressed with zstd at `level`.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
///
/// # Panics
/// If something is over its limit or out of order: a bug in the caller.
pub fn seal_index_run(
    vault: VaultId,
    run: RunId,
    key: &DataKey,
    number: KeyNumber,
    body: &IndexRun,
    level: i32,
) -> Result<Vec<u8>, CodecError> {
    let mut sealer = Sealer::draw(key, Purpose::IndexRun, &[&vault.0, &run.0])?;
    let raw = body.encode();
    let mut stored = Vec::new();
    let compression = Compressor::new(level).compress(&raw, &mut stored)?;
    let header = IndexRunHeader {
        vault,
        run,
        key: number,
        salt: *sealer.salt(),
        commitment: *sealer.key().commitment(),
        body_bytes: stored.len() + TAG_BYTES,
        body_raw_bytes: raw.len(),
        compression,
    };
    let mut object = header.encode();
    sealer.seal(Domain::IndexRun, &object, &mut stored)?;
    object.extend_from_slice(&stored);
    Ok(object)
}

/// Opens the object found as the run `run`.
///
/// # Errors
/// `Corrupt` if it is damaged, is another run, or was sealed under another key; `NotFound` if
/// `keys` lacks its data key; `Limit` if it claims more than a run may be.
pub fn open_index_run(
    object: &[u8],
    vault: VaultId,
    run: RunId,
    keys: &KeyRing,
) -> Result<IndexRun, CodecError> {
    let (header, sealed) = IndexRunHeader::decode(object)?;
    if (header.vault, header.run) != (vault, run) {
        return Err(CodecError::Misplaced {
            expected: Place::IndexRun { vault, run },
            found: Place::IndexRun { vault: header.vault, run: header.run },
        });
    }
    let data_key = keys.get(header.key)?;
    let context: [&[u8]; 2] = [&vault.0, &run.0];
    let key = OpenKey::derive(data_key, Purpose::IndexRun, &context, &header.salt);
    key.check(&header.commitment, "index run", header.key)?;
    let mut copy = sealed.to_vec();
    let aad = &object[..INDEX_RUN_HEADER_BYTES];
    let stored = key.open_in_place(Domain::IndexRun, 0, aad, &mut copy)?;
    let mut raw = Vec::new();
    let (raw_bytes, max) = (header.body_raw_bytes, INDEX_RUN_BODY_BYTES_MAX);
    decompress("index run body", header.compression, stored, raw_bytes, max, &mut raw)?;
    Ok(IndexRun::decode(&raw)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::index_run::StoredChunk;
    use farshore_proto::{ChunkId, ErrorKind, LogId, Slot};

    const VAULT: VaultId = VaultId([1; 16]);
    const RUN: RunId = RunId([2; 16]);
    const KEY: KeyNumber = KeyNumber(1);

    fn body() -> IndexRun {
        let chunk = |n: u8| StoredChunk {
            id: ChunkId([n; 32]),
            blocks: 4,
            log: LogId([n % 2; 16]),
            slot: Slot(5),
            chunk: n.into(),
        };
        IndexRun { chunks: (0..6).map(chunk).collect() }
    }

    fn ring(byte: u8) -> KeyRing {
        let mut ring = KeyRing::new(VAULT);
        ring.insert(KEY, DataKey::from_bytes([byte; 32]));
        ring
    }

    fn sealed() -> Vec<u8> {
        seal_index_run(VAULT, RUN, ring(5).get(KEY).unwrap(), KEY, &body(), 1).unwrap()
    }

    #[test]
    fn opens_in_its_own_place_and_no_other() {
        let object = sealed();
        assert_eq!(open_index_run(&object, VAULT, RUN, &ring(5)).unwrap(), body());
        for (vault, run) in [(VaultId([9; 16]), RUN), (VAULT, RunId([9; 16]))] {
            let error = open_index_run(&object, vault, run, &ring(5)).unwrap_err();
            assert!(matches!(error, CodecError::Misplaced { .. }), "{error}");
            let (header, sealed) = IndexRunHeader::decode(&object).unwrap();
            let forged = IndexRunHeader { vault, run, ..header };
            let forged = [&forged.encode(), sealed].concat();
            let error = open_index_run(&forged, vault, run, &ring(5)).unwrap_err();
            assert!(matches!(error, CodecError::KeyMismatch { .. }), "{error}");
        }
        let error = open_index_run(&object, VAULT, RUN, &KeyRing::new(VAULT)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let (object, ring) = (sealed(), ring(5));
        for at in 0..object.len() {
            for bit in 0..8 {
                let mut bad = object.clone();
                bad[at] ^= 1 << bit;
                assert!(open_index_run(&bad, VAULT, RUN, &ring).is_err(), "byte {at} bit {bit}");
            }
            assert!(open_index_run(&object[..at], VAULT, RUN, &ring).is_err(), "length {at}");
        }
        assert!(open_index_run(&[object.as_slice(), &[0]].concat(), VAULT, RUN, &ring).is_err());
    }
}
