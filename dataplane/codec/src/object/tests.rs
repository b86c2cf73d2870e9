use super::*;
use crate::base::{open_base, seal_base};
use crate::checkpoint::{open_checkpoint, seal_checkpoint};
use crate::digest::digest;
use crate::epoch::{open_epoch, seal_epoch};
use crate::group::{open_group, seal_group};
use crate::index_run::{open_index_run, seal_index_run};
use crate::machine::{open_machine, seal_machine};
use crate::register::{open_register, seal_register};
use farshore_proto::base::{BaseBody, KeptPoint};
use farshore_proto::checkpoint::{CheckpointBody, VolumeTail};
use farshore_proto::epoch::{EndKind, Ended, EpochBody};
use farshore_proto::group::{GroupBody, GroupKind, Member, MemberState};
use farshore_proto::index_run::IndexRun;
use farshore_proto::limits::{OBJECT_HEADER_BYTES_MAX, SMALL_BODY_BYTES_MAX};
use farshore_proto::machine::{Disk, DiskRole, DiskState, Firmware, MachineBody};
use farshore_proto::map::{MapFields, PartFields};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::object::ObjectKind;
use farshore_proto::register::At;
use farshore_proto::register::{RegisterBody, State, Statement};
use farshore_proto::segment::{SlotWriter, put_own};
use farshore_proto::targets::StoredChunk;
use farshore_proto::{
    Attempt, ChunkId, DecodeError, Epoch, ErrorKind, GroupId, Imprint, LogId, MachineId,
    MapAttempt, MarkKind, PointId, RunId, Seq, Slot, Stamp, Target, VaultId, VolumeId,
};
use std::sync::LazyLock;

const AT: At = At { number: 7, digest: [3; 8] };
const VAULT: VaultId = VaultId([1; 16]);
const KEY: KeyNumber = KeyNumber(1);
const OWN: KeyNumber = KeyNumber(3);
const CRC_BYTES: usize = 4;

fn key() -> DataKey {
    DataKey::from_bytes([5; 32])
}

fn own_key() -> DataKey {
    DataKey::from_bytes([7; 32])
}

/// The same keys under every number that a flipped bit makes of theirs, but for those of the other.
fn ring() -> KeyRing {
    let mut ring = KeyRing::new(VAULT);
    let near = |number: KeyNumber| (0..32).map(move |bit| KeyNumber(number.0 ^ (1 << bit)));
    near(KEY).for_each(|number| ring.insert(number, key()));
    near(OWN).filter(|number| *number != KEY).for_each(|number| ring.insert_own(number, own_key()));
    ring.insert(KEY, key());
    ring.insert_own(OWN, own_key());
    ring
}

/// The keys under their own numbers.
fn seal_keys() -> SealKeys<'static> {
    static RING: LazyLock<KeyRing> = LazyLock::new(|| {
        let mut ring = KeyRing::new(VAULT);
        ring.insert(KEY, key());
        ring.insert_own(OWN, own_key());
        ring
    });
    RING.sealing().unwrap()
}

/// What a body of a kind goes by.
fn under(kind: ObjectKind) -> (DedupDomain, KeyNumber) {
    match kind.is_own(1) {
        Some(true) => (DedupDomain::OWN, OWN),
        _ => (DedupDomain::FIRST, KEY),
    }
}

fn place(kind: ObjectKind) -> ObjectPlace {
    let part = u32::from(kind == ObjectKind::Pages);
    ObjectPlace { kind, vault: VAULT, subject: [2; 16], number: 9, part }
}

fn put_fields(kind: ObjectKind, out: &mut Vec<u8>) {
    let writer = SlotWriter { incarnation: 4, horizon: 3, register: AT, checkpoint: Some(Slot(1)) };
    match kind {
        ObjectKind::Slot => put_own(out, 0, &writer),
        ObjectKind::Map => {
            let (attempt, point) = (MapAttempt([8; 16]), Some(PointId([7; 16])));
            MapFields { attempt, point, ordinal: 3 }.put(out);
        }
        ObjectKind::Pages => {
            PartFields { attempt: MapAttempt([8; 16]), ordinal: 3, pages_bytes: 5 }.put(out);
        }
        ObjectKind::Epoch
        | ObjectKind::IndexRun
        | ObjectKind::Checkpoint
        | ObjectKind::Horizon
        | ObjectKind::Register
        | ObjectKind::Machine
        | ObjectKind::Group
        | ObjectKind::Base
        | ObjectKind::Revision => no_fields(out),
    }
}

/// A body that compresses.
fn body() -> Vec<u8> {
    b"what an object says, again and again. ".repeat(12)
}

fn draw(place: ObjectPlace) -> ObjectSealer {
    let variant = u8::from(place.kind == ObjectKind::Slot);
    ObjectSealer::draw(place, variant, seal_keys()).unwrap()
}

fn seal_with(sealer: &mut ObjectSealer) -> Result<(ObjectHeader, Vec<u8>), CodecError> {
    let kind = sealer.place.kind;
    sealer.seal_body(&mut Compressor::new(1), |out| put_fields(kind, out), &body())
}

fn sealed(kind: ObjectKind) -> Vec<u8> {
    seal_with(&mut draw(place(kind))).unwrap().1
}

fn opened(object: &[u8], place: &ObjectPlace) -> Result<Vec<u8>, CodecError> {
    open(place, object, &ring()).map(|(_, body)| body)
}

fn read(object: &[u8], place: &ObjectPlace) -> Result<OpenObject, CodecError> {
    OpenObject::read(Implementation::AwsLc, place, object, &ring())
}

/// Puts the checksum of a header of so many bytes right.
fn put_crc_right(object: &mut [u8], header_bytes: usize) {
    let end = header_bytes - CRC_BYTES;
    let crc = crc_of(&object[..end]);
    object[end..header_bytes].copy_from_slice(&crc.to_le_bytes());
}

fn crc_of(bytes: &[u8]) -> u32 {
    let mut out = bytes.to_vec();
    farshore_proto::wire::put_crc(&mut out, 0);
    u32::from_le_bytes(*out.last_chunk().unwrap())
}

/// The object with the name of another place in its header, and a good checksum.
fn relabelled(object: &[u8], to: &ObjectPlace) -> Vec<u8> {
    let mut out = object.to_vec();
    let header_bytes = usize::from(u16::from_le_bytes([out[6], out[7]]));
    out[..4].copy_from_slice(&to.kind.magic());
    out[16..32].copy_from_slice(&to.vault.0);
    out[32..48].copy_from_slice(&to.subject);
    out[48..56].copy_from_slice(&to.number.to_le_bytes());
    out[56..60].copy_from_slice(&to.part.to_le_bytes());
    put_crc_right(&mut out, header_bytes);
    out
}

#[test]
fn opens_in_its_own_place_and_no_other() {
    for kind in ObjectKind::ALL {
        let (object, own) = (sealed(kind), place(kind));
        assert_eq!(opened(&object, &own).unwrap(), body());
        for other in [
            ObjectPlace { vault: VaultId([9; 16]), ..own },
            ObjectPlace { subject: [9; 16], ..own },
            ObjectPlace { number: 10, ..own },
            ObjectPlace { part: 2, ..own },
        ] {
            let error = opened(&object, &other).unwrap_err();
            let (expected, found) = (Place::Object(other), Place::Object(own));
            assert_eq!(error, CodecError::Misplaced { expected, found });
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            // Relabelled with a good checksum: the key of that place is another.
            let error = opened(&relabelled(&object, &other), &other).unwrap_err();
            assert_eq!(error, CodecError::KeyMismatch { what: kind.what(), key: OWN });
        }
    }
}

#[test]
fn an_object_of_one_kind_is_none_of_another() {
    let mut mismatches = 0;
    for kind in ObjectKind::ALL {
        for other in ObjectKind::ALL.into_iter().filter(|other| *other != kind) {
            let (object, to) = (sealed(kind), ObjectPlace { kind: other, ..place(kind) });
            let magic = CodecError::Decode(DecodeError::Magic { what: other.what() });
            assert_eq!(read(&object, &to).unwrap_err(), magic);
            // Where the header would be one of the other kind too, the key says which it is.
            let error = read(&relabelled(&object, &to), &to).unwrap_err();
            mismatches += usize::from(matches!(error, CodecError::KeyMismatch { .. }));
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{kind:?} as {other:?}: {error}");
        }
    }
    // Of each two the one with the longer header as the other (it may be a later program's), and those without fields of
    // their own as each other.
    let pairs = ObjectKind::ALL.len() * (ObjectKind::ALL.len() - 1) / 2;
    let plain = ObjectKind::ALL.into_iter().filter(|kind| kind.own_bytes() == 4).count();
    assert_eq!(mismatches, pairs + plain * (plain - 1) / 2);
}

/// The point of a commitment to the header: nothing of it decides before it is authenticated but its magic, version,
/// length and place, and which key it commits to.
#[test]
fn every_bit_of_a_header_is_refused_before_anything_of_it_is_believed() {
    for kind in ObjectKind::ALL {
        let (object, own) = (sealed(kind), place(kind));
        let header_bytes = kind.header_bytes();
        for bit in 64..(header_bytes - CRC_BYTES) * 8 {
            let (at, mask) = (bit / 8, 1 << (bit % 8));
            let mut bad = object.clone();
            bad[at] ^= mask;
            put_crc_right(&mut bad, header_bytes);
            // Where it says that it belongs it does not open either.
            let claimed = Claim::read(kind, &bad).unwrap();
            let is_moved = matches!(read(&bad, &own), Err(CodecError::Misplaced { .. }));
            assert_eq!((is_moved, is_moved), ((16..60).contains(&at), claimed.place != own));
            let error = read(&bad, &claimed.place).expect_err("it is not what was sealed");
            let expected = match claimed.own_key {
                KEY => CodecError::NoOwnKey { key: KEY },
                key => CodecError::KeyMismatch { what: kind.what(), key },
            };
            assert_eq!(error, expected, "{kind:?} bit {bit}");
        }
        for bit in 0..64 {
            let mut bad = object.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            put_crc_right(&mut bad, header_bytes);
            read(&bad, &own).expect_err("it is not what was sealed");
        }
    }
}

/// An object as a later program seals it, with `more` in its header behind the fields known here.
fn sealed_later(kind: ObjectKind, more: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut sealer = draw(place(kind));
    let mut stored = body();
    let header = ObjectHeader {
        place: sealer.place,
        domain: under(kind).0,
        key: under(kind).1,
        own_key: OWN,
        variant: u8::from(kind == ObjectKind::Slot),
        compression: farshore_proto::object::Compression::Raw,
        body_bytes: stored.len() + TAG_BYTES,
        body_raw_bytes: stored.len(),
        salt: *sealer.sealer.salt(),
        commitment: [0; 32],
        header_bytes: kind.header_bytes(),
    };
    let mut head = header.encode(|out| put_fields(kind, out));
    head.truncate(head.len() - CRC_BYTES);
    head.extend(more);
    let length = u16::try_from(head.len() + CRC_BYTES).unwrap();
    head[6..8].copy_from_slice(&length.to_le_bytes());
    change(&mut head);
    head.extend([0; CRC_BYTES]);
    let commitment = sealer.committing.commit(&committed(&head));
    commit(&mut head, &commitment);
    sealer.sealer.seal(Domain::Body, &head, &mut stored).unwrap();
    [head, stored].concat()
}

#[test]
fn what_a_later_program_added_is_passed_over_and_authenticated() {
    for kind in ObjectKind::ALL {
        let room = OBJECT_HEADER_BYTES_MAX - kind.header_bytes();
        for more in [0, 8, 64, room] {
            let object = sealed_later(kind, &vec![0x5a; more], |head| head[12] = 0xff);
            assert_eq!(opened(&object, &place(kind)).unwrap(), body(), "{kind:?} and {more}");
            let header_bytes = kind.header_bytes() + more;
            // A bit that may be ignored, the compression, the last byte in front of the checksum.
            for at in [12, 73, header_bytes - CRC_BYTES - 1] {
                let mut bad = object.clone();
                bad[at] ^= 1;
                put_crc_right(&mut bad, header_bytes);
                let error = read(&bad, &place(kind)).unwrap_err();
                let mismatch = CodecError::KeyMismatch { what: kind.what(), key: OWN };
                assert_eq!(error, mismatch, "{kind:?} byte {at}");
            }
        }
        let newer = sealed_later(kind, &[], |head| head[8] = 4);
        let error = opened(&newer, &place(kind)).unwrap_err();
        let (what, feature) = (kind.what(), "feature");
        assert_eq!(error, CodecError::Decode(DecodeError::Newer { what, feature, bit: 2 }));
        assert_eq!(error.kind(), ErrorKind::Invalid);
        // Chunk ids and keys of another domain than the one that there is.
        let other = sealed_later(kind, &[], |head| head[64] = 2);
        let error = read(&other, &place(kind)).unwrap_err();
        let feature = "domain";
        let expected = match kind.is_own(1) {
            Some(true) => DecodeError::Range { what: "domain of an object", value: 2 },
            _ => DecodeError::Newer { what, feature, bit: 2 },
        };
        assert_eq!(error, CodecError::Decode(expected));
    }
}

#[test]
fn a_header_that_was_made_longer_is_refused() {
    for kind in ObjectKind::ALL {
        let object = sealed(kind);
        let end = kind.header_bytes() - CRC_BYTES;
        for more in [8, 24] {
            let mut longer = [&object[..end], &vec![0; more], &object[end..]].concat();
            let length = kind.header_bytes() + more;
            longer[6..8].copy_from_slice(&u16::try_from(length).unwrap().to_le_bytes());
            put_crc_right(&mut longer, length);
            let error = read(&longer, &place(kind)).unwrap_err();
            assert_eq!(error, CodecError::KeyMismatch { what: kind.what(), key: OWN });
        }
    }
}

#[test]
fn a_wrong_or_missing_data_key_is_named() {
    for kind in ObjectKind::ALL {
        let (object, place) = (sealed(kind), place(kind));
        let mut wrong = KeyRing::new(VAULT);
        wrong.insert_own(OWN, DataKey::from_bytes([6; 32]));
        let error = open(&place, &object, &wrong).unwrap_err();
        assert_eq!(error, CodecError::KeyMismatch { what: kind.what(), key: OWN });
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let error = open(&place, &object, &KeyRing::new(VAULT)).unwrap_err();
        assert_eq!((error.kind(), error), (ErrorKind::NotFound, CodecError::NoOwnKey { key: OWN }));
    }
}

/// When a domain's keys are gone, what its objects are can still be told: a log is walked to its end.
#[test]
fn a_header_serves_without_the_key_of_the_body() {
    for kind in ObjectKind::ALL {
        let (object, place) = (sealed(kind), place(kind));
        let mut own = KeyRing::new(VAULT);
        own.insert_own(OWN, own_key());
        let header = OpenObject::read(Implementation::AwsLc, &place, &object, &own).unwrap().header;
        assert_eq!((header.domain, header.key), under(kind));
        let opened = open(&place, &object, &own).map(|(_, body)| body);
        let expected = match kind.is_own(1) {
            Some(true) => Ok(body()),
            _ => Err(CodecError::NoKey { key: KEY }),
        };
        assert_eq!(opened, expected, "{kind:?}");
        own.insert(KEY, DataKey::from_bytes([6; 32]));
        let wrong = open(&place, &object, &own).map(|(_, body)| body);
        let tampered = CodecError::Tampered { what: "body of an object" };
        assert_eq!(wrong, expected.map_err(|_| tampered), "{kind:?}");
    }
}

#[test]
fn every_flipped_bit_and_every_truncation_is_refused() {
    for kind in ObjectKind::ALL {
        let (object, place) = (sealed(kind), place(kind));
        for at in 0..object.len() {
            for bit in 0..8 {
                let mut bad = object.clone();
                bad[at] ^= 1 << bit;
                assert!(opened(&bad, &place).is_err(), "{kind:?} byte {at} bit {bit}");
            }
            assert!(opened(&object[..at], &place).is_err(), "{kind:?} length {at}");
        }
        assert!(opened(&[object.as_slice(), &[0]].concat(), &place).is_err(), "{kind:?}");
    }
}

#[test]
fn two_objects_of_one_body_share_nothing_but_the_place() {
    for kind in ObjectKind::ALL {
        let (one, two) = (sealed(kind), sealed(kind));
        let (first, _) = ObjectHeader::decode(kind, &one).unwrap();
        let (second, _) = ObjectHeader::decode(kind, &two).unwrap();
        assert_eq!((first.place, first.body_bytes), (second.place, second.body_bytes));
        assert!(first.salt != second.salt && first.commitment != second.commitment);
        assert_ne!(first.attempt(), second.attempt());
        let body = first.header_bytes..;
        assert_ne!(one[body.clone()], two[body]);
        // The body of one does not open behind the header of the other.
        let mixed = [&one[..first.header_bytes], &two[first.header_bytes..]].concat();
        let error = opened(&mixed, &place(kind)).unwrap_err();
        assert_eq!(error, CodecError::Tampered { what: "body of an object" });
    }
}

#[test]
fn the_other_implementation_opens_it() {
    for kind in ObjectKind::ALL {
        let (object, place) = (sealed(kind), place(kind));
        let other = Implementation::RustCrypto;
        let found = OpenObject::read(other, &place, &object, &ring()).unwrap();
        let sealed = &object[found.header.header_bytes..];
        assert_eq!(found.open_body(sealed).unwrap(), body());
        let error = found.open_body(&sealed[1..]).unwrap_err();
        assert!(matches!(error, CodecError::Length { .. }), "{error}");
    }
}

#[test]
fn a_body_that_does_not_open_again_is_noticed() {
    for kind in ObjectKind::ALL {
        // A key of another salt stands for a cipher that does not do what it should.
        let mut sealer = draw(place(kind));
        sealer.cross = draw(place(kind)).cross;
        let error = seal_with(&mut sealer).unwrap_err();
        assert_eq!(error, CodecError::Unverified { what: kind.what() });
        assert_eq!(error.kind(), ErrorKind::Internal);
        let mut sealer = draw(place(kind));
        let (header, object) = seal_with(&mut sealer).unwrap();
        let (head, stored) = object.split_at(header.header_bytes);
        let check = |raw: &[u8]| check_body(&sealer.cross, &header, head, stored, raw);
        assert_eq!(check(&body()), Ok(()));
        let other = [&body()[1..], b"?"].concat();
        assert_eq!(check(&other), Err(CodecError::Unverified { what: kind.what() }));
    }
}

#[test]
fn a_body_has_the_limit_of_its_kind_and_may_be_empty() {
    for kind in ObjectKind::ALL {
        let place = place(kind);
        for bytes in [0, 1, SMALL_BODY_BYTES_MAX] {
            let raw = vec![7; bytes];
            let own = |out: &mut Vec<u8>| put_fields(kind, out);
            let object = seal(place, seal_keys(), own, &raw, 1);
            let Ok(object) = object else { panic!("{kind:?} of {bytes} bytes") };
            assert_eq!(opened(&object, &place).unwrap(), raw);
        }
    }
}

#[test]
#[should_panic(expected = "a body has a limit")]
fn a_body_over_the_limit_of_its_kind_is_not_sealed() {
    let raw = vec![7; SMALL_BODY_BYTES_MAX + 1];
    let _ = seal(place(ObjectKind::Epoch), seal_keys(), no_fields, &raw, 1);
}

const VOLUME: VolumeId = VolumeId([3; 16]);

fn stored() -> Vec<StoredChunk> {
    let target =
        |n: u8| Target { log: LogId([n % 2; 16]), slot: Slot(5), attempt: Attempt([n; 8]) };
    let chunk =
        |n: u8| StoredChunk { id: ChunkId([n; 32]), blocks: 4, target: target(n), chunk: n.into() };
    (0..6).map(chunk).collect()
}

#[test]
fn epochs_open_to_what_was_sealed() {
    let body = EpochBody {
        epoch: Epoch(7),
        log: LogId([3; 16]),
        first_slot: Slot(9),
        first_seq: Seq(11),
        size_bytes: 1 << 30,
        stamp: Stamp::default(),
        label: "web-1 /dev/vda".to_owned(),
        ended: Some(Ended { kind: EndKind::Seal, slot: Slot(4) }),
        base: None,
    };
    let object = seal_epoch(VAULT, VOLUME, 3, seal_keys(), &body).unwrap();
    let open = |volume, ordinal| open_epoch(&object, VAULT, volume, ordinal, &ring());
    assert_eq!(open(VOLUME, 3).unwrap(), body);
    for (volume, ordinal) in [(VolumeId([9; 16]), 3), (VOLUME, 4)] {
        let error = open(volume, ordinal).unwrap_err();
        assert!(matches!(error, CodecError::Misplaced { .. }), "{error}");
        assert!(error.to_string().contains(&format!("epoch object 3 of volume {VOLUME}")));
    }
}

#[test]
fn index_runs_open_to_what_was_sealed() {
    let (body, run) = (IndexRun { applied: AT, chunks: stored() }, RunId([4; 16]));
    let object = seal_index_run(VAULT, run, seal_keys(), &body, 1).unwrap();
    assert_eq!(open_index_run(&object, VAULT, run, &ring()).unwrap(), body);
    let error = open_index_run(&object, VAULT, RunId([9; 16]), &ring()).unwrap_err();
    assert!(matches!(error, CodecError::Misplaced { .. }), "{error}");
}

#[test]
fn checkpoints_open_to_what_was_sealed() {
    let (log, slot) = (LogId([3; 16]), Slot(9));
    let tail = VolumeTail {
        epoch: Epoch(7),
        first_seq: Seq(11),
        last_seq: Seq(12),
        newest: Slot(8),
        mark: Some((Seq(12), PointId([7; 16]))),
        stamp: Stamp::default(),
        imprint: Imprint::of(5),
        is_released: true,
        is_broken: false,
    };
    let tails = (0..200).map(|n| (VolumeId([n; 16]), tail)).collect();
    let body = CheckpointBody { incarnation: 1, horizon: 0, register: AT, tails };
    let object = seal_checkpoint(VAULT, log, slot, seal_keys(), &body).unwrap();
    assert!(object.len() < body.encode().len(), "it compresses");
    let open = |log, slot| open_checkpoint(&object, VAULT, log, slot, &ring());
    assert_eq!(open(log, slot).unwrap(), body);
    for (log, slot) in [(LogId([9; 16]), slot), (log, Slot(10))] {
        let error = open(log, slot).unwrap_err();
        assert!(matches!(error, CodecError::Misplaced { .. }), "{error}");
        assert!(error.to_string().contains(&format!("checkpoint at slot {slot} of log {log}")));
    }
    // Sealed as it should be, it is refused all the same if its volumes reach up to its own slot.
    let late = seal_checkpoint(VAULT, log, Slot(8), seal_keys(), &body).unwrap();
    let error = open_checkpoint(&late, VAULT, log, Slot(8), &ring()).unwrap_err();
    assert!(matches!(error, CodecError::Decode(DecodeError::Range { .. })), "{error}");
}

#[test]
fn bases_open_to_what_was_sealed() {
    let mark = Mark {
        point: PointId([7; 16]),
        kind: MarkKind::Crash,
        unknown_blocks: 0,
        is_prompt: false,
        time_unix_ms: 5,
        group: MarkGroup::ALONE,
    };
    let points = (1..200).map(|seq| KeptPoint {
        at: farshore_proto::Place { ordinal: 1, seq: Seq(seq) },
        map: MapAttempt([8; 16]),
        epoch: Epoch(7),
        size_bytes: 4096,
        mark,
    });
    let body = BaseBody {
        before: [4; 32],
        at: farshore_proto::Place { ordinal: 1, seq: Seq(200) },
        map: MapAttempt([8; 16]),
        manifest: [5; 32],
        log: LogId([3; 16]),
        slot: Slot(9),
        points: points.collect(),
    };
    let object = seal_base(VAULT, VOLUME, 3, seal_keys(), &body).unwrap();
    assert!(object.len() < body.encode().len(), "it compresses");
    let open = |volume, number| open_base(&object, VAULT, volume, number, &ring());
    assert_eq!(open(VOLUME, 3).unwrap(), body);
    for (volume, number) in [(VolumeId([9; 16]), 3), (VOLUME, 2)] {
        let error = open(volume, number).unwrap_err();
        assert!(matches!(error, CodecError::Misplaced { .. }), "{error}");
        assert!(error.to_string().contains(&format!("base {number} of volume {volume}")));
    }
    // Sealed as it should be, it is refused all the same if it is the first and names one before.
    let first = seal_base(VAULT, VOLUME, 1, seal_keys(), &body).unwrap();
    let error = open_base(&first, VAULT, VOLUME, 1, &ring()).unwrap_err();
    assert!(matches!(error, CodecError::Decode(DecodeError::Range { .. })), "{error}");
}

#[test]
fn entries_of_the_register_open_to_what_was_sealed() {
    let log = LogId([3; 16]);
    let state = State { logs: [(log, 2)].into(), ..State::default() };
    let body = RegisterBody { before: [7; 32], statement: Statement::birth(log), state };
    let object = seal_register(VAULT, 2, seal_keys(), &body).unwrap();
    assert_eq!(open_register(&object, VAULT, 2, &ring()).unwrap(), body);
    for (vault, number) in [(VAULT, 3), (VaultId([9; 16]), 2)] {
        let error = open_register(&object, vault, number, &ring()).unwrap_err();
        assert!(matches!(error, CodecError::Misplaced { .. }), "{error}");
        assert!(error.to_string().contains(&format!("register entry {number} in vault {vault}")));
    }
    // Sealed as it should be, it is refused all the same if it is what another number says.
    let late = seal_register(VAULT, 3, seal_keys(), &body).unwrap();
    let error = open_register(&late, VAULT, 3, &ring()).unwrap_err();
    assert!(matches!(error, CodecError::Decode(DecodeError::Range { .. })), "{error}");
    assert_ne!(digest(&object), digest(&late));
}

#[test]
fn machines_and_groups_open_to_what_was_sealed() {
    let disk = Disk {
        index: 0,
        volume: Some(VOLUME),
        size_bytes: 1 << 30,
        since: (Epoch(0), Seq(0)),
        boot_rank: 1,
        sector_log2: 9,
        role: DiskRole::Boot,
        state: DiskState::Protected,
        name: "/dev/vda".to_owned(),
        label: String::new(),
        serial: "S-1".to_owned(),
    };
    let body = MachineBody {
        time_unix_ms: 1,
        memory_bytes: 1 << 30,
        processors: 2,
        firmware: Firmware::Uefi,
        is_secure_boot: true,
        name: "web-1".to_owned(),
        system: "Debian 12".to_owned(),
        disks: vec![disk],
    };
    let (machine, other) = (MachineId([7; 16]), MachineId([9; 16]));
    let object = seal_machine(VAULT, machine, 3, seal_keys(), &body).unwrap();
    assert_eq!(open_machine(&object, VAULT, machine, 3, &ring()).unwrap(), body);
    for (machine_named, revision) in [(machine, 4), (other, 3)] {
        let error = open_machine(&object, VAULT, machine_named, revision, &ring()).unwrap_err();
        assert!(error.to_string().contains(&format!("revision 3 of machine {machine}")), "{error}");
    }
    let nameless = MachineBody { name: String::new(), ..body };
    let error = seal_machine(VAULT, machine, 3, seal_keys(), &nameless).unwrap_err();
    assert!(matches!(error, CodecError::Decode(DecodeError::Range { .. })), "{error}");

    let member =
        Member { machine, volume: VOLUME, since: (Epoch(2), Seq(9)), state: MemberState::Member };
    let members = vec![member, Member { machine: other, volume: VolumeId([8; 16]), ..member }];
    let (kind, name) = (GroupKind::Machines, "shop".to_owned());
    let body = GroupBody { time_unix_ms: 2, kind, name, members };
    let group = GroupId([6; 16]);
    let object = seal_group(VAULT, group, 1, seal_keys(), &body).unwrap();
    assert_eq!(open_group(&object, VAULT, group, 1, &ring()).unwrap(), body);
    let error = open_group(&object, VAULT, group, 2, &ring()).unwrap_err();
    assert!(error.to_string().contains(&format!("revision 1 of group {group}")), "{error}");
    let empty = GroupBody { members: Vec::new(), ..body };
    let error = seal_group(VAULT, group, 1, seal_keys(), &empty).unwrap_err();
    assert!(matches!(error, CodecError::Decode(DecodeError::Range { .. })), "{error}");
}
