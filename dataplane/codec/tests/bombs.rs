//! zstd bombs where compressed bytes come in from outside: in the bodies of all objects, in the frames of
//! segments and in the pages of maps (N7). They are sealed as only somebody with the vault's data key could (T7): authentic, and hostile. No frame on
//! the wire is compressed.
//!
//! Each would become a gibibyte. Each is refused by an error that names the part, and the process
//! never holds much more than the sealed bytes.
#![allow(clippy::unwrap_used, reason = "test code")]

use farshore_codec::base::open_base;
use farshore_codec::checkpoint::open_checkpoint;
use farshore_codec::epoch::open_epoch;
use farshore_codec::group::open_group;
use farshore_codec::horizon::open_horizon;
use farshore_codec::index_run::open_index_run;
use farshore_codec::machine::open_machine;
use farshore_codec::map::{MapPlace, PartOpener, open_manifest, peek_manifest};
use farshore_codec::register::open_register;
use farshore_codec::revision::open_revision_wholly;
use farshore_codec::seal::{CommitKey, Domain, Purpose, Sealer};
use farshore_codec::segment::open_frame_at;
use farshore_codec::{CodecError, DataKey, KeyRing, Opener};
use farshore_proto::map::{
    Directory, FrameAt, MapFields, MapHeader, PageAt, PartFields, PartHeader,
};
use farshore_proto::object::{ObjectHeader, ObjectPlace, commit, committed};
use farshore_proto::segment::{
    Compression, SegmentFrame, SegmentHeader, SlotKind, SlotWriter, Table, put_own,
};
use farshore_proto::{
    Domain as DedupDomain, ErrorKind, GroupId, KeyNumber, LogId, MachineId, MapAttempt, Place,
    RunId, Seq, Slot, Target, VaultId, VolumeId, base, checkpoint, epoch, group, horizon,
    index_run, machine, register, revision,
};

const VAULT: VaultId = VaultId([1; 16]);
const LOG: LogId = LogId([2; 16]);
const VOLUME: VolumeId = VolumeId([3; 16]);
const SLOT: Slot = Slot(7);
const RUN: RunId = RunId([5; 16]);
const MAP: MapPlace = MapPlace {
    vault: VAULT,
    volume: VOLUME,
    at: Place { ordinal: 2, seq: Seq(9) },
    attempt: MapAttempt([8; 16]),
};
const KEY: KeyNumber = KeyNumber(1);
const OWN: KeyNumber = KeyNumber(3);

/// What the header of each object says that it decompresses to: the limit of the small ones, and more than a bomb has.
const RECORDED: usize = 64 << 10;
/// What the blocks of each bomb decompress to, and one block of it.
const EXPANDED: usize = 1 << 30;
const BLOCK: usize = 128 << 10;
/// All that opening may take: the sealed bytes twice, and a window within the limit of 16 MiB.
const GROWTH_MAX: u64 = 24 << 20;

/// A zstd frame by RFC 8878: its header up to the content size, then blocks that repeat one byte.
fn frame(descriptor: u8, window: Option<u8>, content: Option<u64>) -> Vec<u8> {
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, descriptor];
    out.extend(window);
    out.extend(content.iter().flat_map(|bytes| bytes.to_le_bytes()));
    let blocks = EXPANDED / BLOCK;
    for number in 1..=blocks {
        let size = u32::try_from(BLOCK).unwrap();
        // Last block or not, type 1 (one byte, repeated), size.
        let header = u32::from(number == blocks) | 1 << 1 | size << 3;
        out.extend(&header.to_le_bytes()[..3]);
        out.push(0);
    }
    out
}

const SIZE_IN_8_BYTES: u8 = 0xc0;
const OWN_WINDOW: u8 = 0x20;

fn window(log: u8) -> Option<u8> {
    Some((log - 10) << 3)
}

/// The bombs, and the error that each must make of the part `what`.
fn bombs(what: &'static str) -> Vec<(&'static str, Vec<u8>, CodecError)> {
    let recorded = RECORDED as u64;
    let honest = frame(SIZE_IN_8_BYTES | OWN_WINDOW, None, Some(EXPANDED as u64));
    let liar = frame(SIZE_IN_8_BYTES | OWN_WINDOW, None, Some(recorded));
    let small = zstd::bulk::compress(&[7; RECORDED], 1).unwrap();
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7];
    let length = |found| CodecError::Length { what, expected: recorded, found };
    let damaged = CodecError::Compressed { what };
    vec![
        ("says how large it is", honest.clone(), length(EXPANDED as u64)),
        (
            "says the largest number",
            frame(SIZE_IN_8_BYTES | OWN_WINDOW, None, Some(u64::MAX - 2)),
            length(u64::MAX - 2),
        ),
        ("says it is small", liar.clone(), damaged.clone()),
        ("says nothing of its size", frame(0, window(20), None), damaged.clone()),
        (
            "wants a window of 2 GiB",
            frame(SIZE_IN_8_BYTES, window(31), Some(recorded)),
            CodecError::Limit { what, value: 1 << 31, max: 1 << 24 },
        ),
        (
            "wants a window of 1 MiB for 64 KiB",
            frame(SIZE_IN_8_BYTES, window(20), Some(recorded)),
            damaged.clone(),
        ),
        (
            "comes behind what was recorded",
            [small.clone(), honest.clone()].concat(),
            damaged.clone(),
        ),
        ("is many of what was recorded", small.repeat(1000), damaged.clone()),
        ("hides behind a skippable frame", [&skippable[..], &liar].concat(), length(0)),
        ("is cut off", honest[..honest.len() / 2].to_vec(), length(EXPANDED as u64)),
        ("says it is small, and is cut off", liar[..liar.len() / 2].to_vec(), damaged),
    ]
}

fn ring() -> KeyRing {
    let mut ring = KeyRing::new(VAULT);
    ring.insert(KEY, DataKey::from_bytes([9; 32]));
    ring.insert_own(OWN, DataKey::from_bytes([10; 32]));
    ring
}

/// What the body of an object goes by.
fn under(place: &ObjectPlace, variant: u8) -> (DedupDomain, KeyNumber) {
    match place.kind.is_own(variant) {
        Some(true) => (DedupDomain::OWN, OWN),
        _ => (DedupDomain::FIRST, KEY),
    }
}

fn context<T>(place: &ObjectPlace, with: impl FnOnce(&[&[u8]]) -> T) -> T {
    let ObjectPlace { kind, vault, subject, number, part } = place;
    with(&[&kind.magic(), &vault.0, subject, &number.to_le_bytes(), &part.to_le_bytes()])
}

fn sealer(place: &ObjectPlace, variant: u8) -> Sealer {
    let (ring, (_, key)) = (ring(), under(place, variant));
    context(place, |context| Sealer::draw(ring.get(key).unwrap(), Purpose::Object, context))
        .unwrap()
}

/// A header of an object, and its body behind it, sealed as it is.
fn object(
    sealer: &mut Sealer,
    place: ObjectPlace,
    variant: u8,
    own: impl FnOnce(&mut Vec<u8>),
    (compression, raw_bytes, stored): (Compression, usize, &[u8]),
) -> Vec<u8> {
    let header = ObjectHeader {
        place,
        domain: under(&place, variant).0,
        key: under(&place, variant).1,
        own_key: OWN,
        variant,
        compression,
        body_bytes: stored.len() + 16,
        body_raw_bytes: raw_bytes,
        salt: *sealer.salt(),
        commitment: [0; 32],
        header_bytes: place.kind.header_bytes(),
    };
    let mut head = header.encode(own);
    let (ring, salt) = (ring(), sealer.salt());
    let derive = |context: &[&[u8]]| {
        CommitKey::derive(ring.own(OWN).unwrap(), Purpose::Object, context, salt)
    };
    let commitment = context(&place, derive).commit(&committed(&head));
    commit(&mut head, &commitment);
    let mut sealed = stored.to_vec();
    sealer.seal(Domain::Body, &head, &mut sealed).unwrap();
    [head, sealed].concat()
}

/// An object whose body is the bomb.
fn with_bomb(
    place: ObjectPlace,
    variant: u8,
    own: impl FnOnce(&mut Vec<u8>),
    bomb: &[u8],
) -> Vec<u8> {
    object(&mut sealer(&place, variant), place, variant, own, (Compression::Zstd, RECORDED, bomb))
}

fn segment_place() -> ObjectPlace {
    SegmentHeader::place(VAULT, LOG, SLOT)
}

fn put_writer(out: &mut Vec<u8>, frames_bytes: u64) {
    put_own(out, frames_bytes, &SlotWriter::of_run(1));
}

/// Opens a segment whose table is the bomb.
fn in_table(bomb: &[u8]) -> CodecError {
    let kind = SlotKind::Segment.code();
    let object = with_bomb(segment_place(), kind, |out| put_writer(out, 0), bomb);
    let opener = Opener::open_header(&object, VAULT, LOG, SLOT, &ring()).unwrap();
    opener.open_table(&object[opener.header().object.header_bytes..]).unwrap_err()
}

/// What is bound to the first frame or page of an object, 56 bytes, as docs/formats/segment.md lays them out.
fn part_aad(place: &ObjectPlace) -> Vec<u8> {
    let ObjectPlace { vault, subject, number, .. } = place;
    let mut aad = [&vault.0[..], subject, &number.to_le_bytes(), &0_u32.to_le_bytes()].concat();
    aad.extend(u32::try_from(RECORDED).unwrap().to_le_bytes());
    aad.push(1);
    aad.resize(56, 0);
    aad
}

/// Opens a segment that is right but for its one frame, the bomb.
fn in_frame(bomb: &[u8]) -> CodecError {
    let place = segment_place();
    let mut sealer = sealer(&place, 1);
    let frame = SegmentFrame {
        stored_bytes: u32::try_from(bomb.len() + 16 + 32).unwrap(),
        raw_bytes: u32::try_from(RECORDED).unwrap(),
        compression: Compression::Zstd,
    };
    let mut bomb = bomb.to_vec();
    sealer.seal(Domain::Frame, &part_aad(&place), &mut bomb).unwrap();
    bomb.extend(sealer.salt());
    let table = Table { frames: vec![frame], ..Table::default() };
    let raw = table.encode();
    let own = |out: &mut Vec<u8>| put_writer(out, bomb.len() as u64);
    let body = (Compression::Raw, raw.len(), raw.as_slice());
    let front = object(&mut sealer, place, SlotKind::Segment.code(), own, body);
    let object = [front.as_slice(), &bomb].concat();
    let opener = Opener::open_header(&object, VAULT, LOG, SLOT, &ring()).unwrap();
    assert_eq!(opener.open_table(&front[opener.header().object.header_bytes..]).unwrap(), table);
    let mut out = b"before".to_vec();
    let error = opener.open_frame(&table, 0, &bomb, &mut out).unwrap_err();
    assert_eq!(out, b"before", "nothing of it is returned");
    let whole = opener.open_all(&object, |_, _, _| Ok::<(), CodecError>(()));
    assert_eq!(whole.unwrap_err(), error, "the same by the way that verification reads");
    let offset = u32::try_from(front.len()).unwrap();
    let target = Target { log: LOG, slot: SLOT, attempt: opener.header().attempt() };
    let at = FrameAt { target, number: 0, offset, key: KEY, frame };
    let alone = open_frame_at(VAULT, &at, &bomb, &ring(), &mut out);
    assert_eq!(alone.unwrap_err(), error, "the same by the way of a map");
    assert_eq!(out, b"before", "nothing of it is returned");
    error
}

/// Opens an epoch object whose body is the bomb.
fn in_epoch(bomb: &[u8]) -> CodecError {
    let object = with_bomb(epoch::place(VAULT, VOLUME, 2), 0, |out| out.extend([0; 4]), bomb);
    open_epoch(&object, VAULT, VOLUME, 2, &ring()).unwrap_err()
}

/// Opens a manifest whose body is the bomb.
fn in_map(bomb: &[u8]) -> CodecError {
    let place = MapHeader::place(MAP.vault, MAP.volume, MAP.at.seq);
    let fields = MapFields { point: None, attempt: MAP.attempt, ordinal: MAP.at.ordinal };
    let object = with_bomb(place, 0, |out| fields.put(out), bomb);
    peek_manifest(&object, &MAP, &ring()).unwrap();
    open_manifest(&object, &MAP, &ring()).unwrap_err()
}

fn part_fields(pages_bytes: u64) -> PartFields {
    PartFields { attempt: MAP.attempt, ordinal: MAP.at.ordinal, pages_bytes }
}

/// Opens a part of a map whose directory is the bomb.
fn in_directory(bomb: &[u8]) -> CodecError {
    let place = PartHeader::place(MAP.vault, MAP.volume, MAP.at.seq, 3);
    let object = with_bomb(place, 0, |out| part_fields(0).put(out), bomb);
    PartOpener::open(&object, &MAP, 3, &ring()).unwrap_err()
}

/// Opens a part of a map that is right but for its one page, the bomb.
fn in_page(bomb: &[u8]) -> CodecError {
    let place = PartHeader::place(MAP.vault, MAP.volume, MAP.at.seq, 3);
    let mut sealer = sealer(&place, 1);
    let page = PageAt {
        first: 0,
        end: 9,
        runs: 2,
        stored_bytes: u32::try_from(bomb.len() + 16).unwrap(),
        raw_bytes: u32::try_from(RECORDED).unwrap(),
        compression: Compression::Zstd,
    };
    let mut bomb = bomb.to_vec();
    sealer.seal(Domain::Page, &part_aad(&place), &mut bomb).unwrap();
    let raw = Directory { pages: vec![page], covers: vec![] }.encode();
    let own = |out: &mut Vec<u8>| part_fields(bomb.len() as u64).put(out);
    let front = object(&mut sealer, place, 0, own, (Compression::Raw, raw.len(), &raw));
    let opener = PartOpener::open(&front, &MAP, 3, &ring()).unwrap();
    assert_eq!(opener.pages(), [page]);
    opener.open_page(0, &bomb).unwrap_err()
}

/// Opens an index run whose body is the bomb.
fn in_index_run(bomb: &[u8]) -> CodecError {
    let object = with_bomb(index_run::place(VAULT, RUN), 0, |out| out.extend([0; 4]), bomb);
    open_index_run(&object, VAULT, RUN, &ring()).unwrap_err()
}

/// Opens a revision whose body is the bomb.
fn in_revision(bomb: &[u8]) -> CodecError {
    let place = revision::place(VAULT, 2);
    let object = with_bomb(place, 0, |out| out.extend([0; 4]), bomb);
    open_revision_wholly(&object, VAULT, 2, &ring()).unwrap_err()
}

/// Opens a horizon whose body is the bomb.
fn in_horizon(bomb: &[u8]) -> CodecError {
    let place = horizon::place(VAULT, LOG, 2);
    let object = with_bomb(place, 0, |out| out.extend([0; 4]), bomb);
    open_horizon(&object, VAULT, LOG, 2, &ring()).unwrap_err()
}

/// Opens a checkpoint whose body is the bomb.
fn in_checkpoint(bomb: &[u8]) -> CodecError {
    let place = checkpoint::place(VAULT, LOG, SLOT);
    let object = with_bomb(place, 0, |out| out.extend([0; 4]), bomb);
    open_checkpoint(&object, VAULT, LOG, SLOT, &ring()).unwrap_err()
}

/// Opens a base whose body is the bomb.
fn in_base(bomb: &[u8]) -> CodecError {
    let place = base::place(VAULT, VOLUME, 2);
    let object = with_bomb(place, 0, |out| out.extend([0; 4]), bomb);
    open_base(&object, VAULT, VOLUME, 2, &ring()).unwrap_err()
}

/// Opens an entry of the register whose body is the bomb.
fn in_register(bomb: &[u8]) -> CodecError {
    let object = with_bomb(register::place(VAULT, 3), 0, |out| out.extend([0; 4]), bomb);
    open_register(&object, VAULT, 3, &ring()).unwrap_err()
}

/// Opens a machine whose body is the bomb.
fn in_machine(bomb: &[u8]) -> CodecError {
    let place = machine::place(VAULT, MachineId([6; 16]), 2);
    let object = with_bomb(place, 0, |out| out.extend([0; 4]), bomb);
    open_machine(&object, VAULT, MachineId([6; 16]), 2, &ring()).unwrap_err()
}

/// Opens a group whose body is the bomb.
fn in_group(bomb: &[u8]) -> CodecError {
    let place = group::place(VAULT, GroupId([7; 16]), 1);
    let object = with_bomb(place, 0, |out| out.extend([0; 4]), bomb);
    open_group(&object, VAULT, GroupId([7; 16]), 1, &ring()).unwrap_err()
}

/// Most memory that this process ever had, zstd's own included.
fn resident_max() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn no_bomb_goes_off_wherever_it_is_sealed() {
    type InPlace = (&'static str, fn(&[u8]) -> CodecError);
    let places: [InPlace; 14] = [
        ("segment", in_table),
        ("segment frame", in_frame),
        ("epoch object", in_epoch),
        ("map", in_map),
        ("map part", in_directory),
        ("page of a map", in_page),
        ("index run", in_index_run),
        ("checkpoint", in_checkpoint),
        ("horizon", in_horizon),
        ("revision", in_revision),
        ("base", in_base),
        ("register entry", in_register),
        ("machine", in_machine),
        ("group", in_group),
    ];
    let before = resident_max();
    let mut opened = 0;
    for (what, open) in places {
        for (name, bomb, expected) in bombs(what) {
            assert!(bomb.len() < RECORDED, "a bomb is small");
            let error = open(&bomb);
            assert_eq!(error, expected, "{what}: a bomb that {name}");
            assert!(error.to_string().contains(what), "{error}");
            assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Limit), "{error}");
            opened += 1;
        }
    }
    let grown = resident_max() - before;
    println!("{opened} bombs of {} MiB; memory grew by {} KiB", EXPANDED >> 20, grown >> 10);
    assert!(grown < GROWTH_MAX, "memory grew by {} KiB", grown >> 10);
}

/// The bombs above are real: what believes them holds all of it.
#[test]
fn a_bomb_goes_off_where_nobody_looks() {
    let honest = bombs("test").swap_remove(0).1;
    let mut decoder = zstd::stream::read::Decoder::new(honest.as_slice()).unwrap();
    // A frame without a window needs all of its content at once; by default zstd stops at 128 MiB.
    decoder.window_log_max(31).unwrap();
    let read = std::io::copy(&mut decoder, &mut std::io::sink()).unwrap();
    assert_eq!(read, EXPANDED as u64);
}
