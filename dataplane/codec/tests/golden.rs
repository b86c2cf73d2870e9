//! Objects sealed once, kept in `testdata/`: what was sealed yesterday must open tomorrow.
//!
//! A change that fails here makes vaults unreadable: bump the version of the format, do not edit the
//! bytes. All are sealed under data key 1 of bytes 0x11, with chunk ids by root key 2 of bytes 0x12, in vault 0x01…, log 0x02…, volume 0x03….
//!
//! An object of a new version has no file yet: `FARSHORE_WRITE_GOLDEN=1` seals it, as the functions here say,
//! and writes it. A file that is there is never written again: its salt is drawn, so no second one is the same.
#![allow(clippy::unwrap_used, reason = "test code")]

use farshore_codec::base::{open_base, seal_base};
use farshore_codec::checkpoint::{open_checkpoint, seal_checkpoint};
use farshore_codec::epoch::{open_epoch, seal_epoch};
use farshore_codec::group::{open_group, seal_group};
use farshore_codec::horizon::{open_horizon, seal_horizon};
use farshore_codec::index_run::{open_index_run, seal_index_run};
use farshore_codec::journal::{JournalOpener, JournalSealer};
use farshore_codec::keys::{DataKey, KeyRing, RootKey, VaultKey};
use farshore_codec::machine::{open_machine, seal_machine};
use farshore_codec::map::{MapPlace, PartBuilder, PartOpener, open_manifest, seal_manifest};
use farshore_codec::register::{open_register, seal_register};
use farshore_codec::revision::{key_of_revision, open_revision_wholly, seal_revision};
use farshore_codec::segment::{Opener, SegmentBuilder, chunk_of, open_frame_at, slot_without_data};
use farshore_codec::{ChunkHasher, CodecError, WrappingKey};
use farshore_proto::base::{BaseBody, KeptPoint};
use farshore_proto::checkpoint::{CheckpointBody, VolumeTail};
use farshore_proto::epoch::{EndKind, Ended, EpochBase, EpochBody};
use farshore_proto::group::{GroupBody, GroupKind, Member, MemberState};
use farshore_proto::horizon::HorizonBody;
use farshore_proto::index_run::IndexRun;
use farshore_proto::journal::GroupSize;
use farshore_proto::keys::{KeyHeader, KeyKind, KeyObject};
use farshore_proto::limits::{BLOCK_BYTES, JOURNAL_ALIGN_BYTES, JOURNAL_GROUP_HEADER_BYTES};
use farshore_proto::machine::{Disk, DiskRole, DiskState, Firmware, MachineBody};
use farshore_proto::map::{
    FrameAt, Layer, LayerKind, Manifest, MapFields, MapMark, Page, PageChunk, PartHeader, PartShape,
};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::register::At;
use farshore_proto::register::{RegisterBody, State, Statement};
use farshore_proto::revision::RevisionBody;
use farshore_proto::segment::{
    ChunkPlace, Compression, Extent, ExtentSource, SegmentFrame, SlotKind, SlotWriter, Span, Table,
};
use farshore_proto::targets::StoredChunk;
use farshore_proto::vault::{DomainKeys, OWN_KEY};
use farshore_proto::{
    Attempt, BlockRange, ChunkId, Domain, Epoch, GroupId, Imprint, KeyNumber, LogId, MachineId,
    MapAttempt, MarkAttempt, MarkKind, Place, PointId, RunId, Seq, Slot, Stamp, Target, VaultId,
    VolumeId,
};
use std::path::PathBuf;

const VAULT: VaultId = VaultId([1; 16]);
const LOG: LogId = LogId([2; 16]);
const VOLUME: VolumeId = VolumeId([3; 16]);
const POINT: PointId = PointId([4; 16]);
const RUN: RunId = RunId([5; 16]);
const MAP: MapPlace = MapPlace {
    vault: VAULT,
    volume: VOLUME,
    at: Place { ordinal: 2, seq: Seq(1000) },
    attempt: MapAttempt([6; 16]),
};
const MACHINE: MachineId = MachineId([6; 16]);
const GROUP: GroupId = GroupId([7; 16]);
const KEY: KeyNumber = KeyNumber(1);
/// A segment of another log.
const THERE: Target = Target { log: LogId([9; 16]), slot: Slot(6), attempt: Attempt([0x66; 8]) };
const STAMP: Stamp = Stamp { life: 7, generation: 3 };
const AT: At = At { number: 40, digest: [9; 8] };
const WRITER: SlotWriter =
    SlotWriter { incarnation: 5, horizon: 2, register: AT, checkpoint: Some(Slot(4)) };

fn ring() -> KeyRing {
    let mut ring = KeyRing::new(VAULT);
    ring.insert(KEY, key());
    ring.insert_own(OWN_KEY, DataKey::from_bytes([0x13; 32]));
    ring.insert_root(KeyNumber(2), RootKey::from_bytes([0x12; 32]));
    ring
}

fn key() -> DataKey {
    DataKey::from_bytes([0x11; 32])
}

fn hasher() -> ChunkHasher {
    ChunkHasher::new(ring().vault_keys().unwrap().id_key)
}

/// The object of version 2 that is kept under `name`; `seal` makes it if none is.
fn kept(name: &str, seal: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/v2"));
    let path = folder.join(format!("{name}.bin"));
    if !path.exists() && std::env::var_os("FARSHORE_WRITE_GOLDEN").is_some() {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(&path, seal()).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn chunk() -> Vec<u8> {
    b"farshore golden segment ".iter().copied().cycle().take(4 * BLOCK_BYTES).collect()
}

fn span() -> Span {
    let extent = |block, count, source| Extent { range: BlockRange { block, count }, source };
    let part = |chunk, first| ExtentSource::Chunk { chunk, first };
    Span {
        volume: VOLUME,
        epoch: Epoch(4),
        first_seq: Seq(998),
        last_seq: Seq(1000),
        previous: Some(Slot(5)),
        mark: Some(Mark {
            point: POINT,
            kind: MarkKind::Crash,
            unknown_blocks: 0,
            is_prompt: true,
            time_unix_ms: 1_767_225_600_000,
            group: MarkGroup { attempt: MarkAttempt([0x77; 16]), member: 0, members: 2 },
        }),
        stamp: STAMP,
        imprint: Imprint::of(0x0403_0201),
        extents: vec![
            extent(0, 4, part(0, 0)),
            extent(10, 100, ExtentSource::Zero),
            extent(200, 2, part(1, 1)),
        ],
    }
}

fn segment() -> Vec<u8> {
    let mut builder =
        SegmentBuilder::new(VAULT, LOG, Slot(7), WRITER, ring().sealing().unwrap(), 3).unwrap();
    builder.push_chunk(hasher().id(&chunk()), &chunk());
    let there = ChunkPlace::There { target: THERE, chunk: 3 };
    builder.push_reference(ChunkId([8; 32]), 4, there).unwrap();
    builder.push_span(span());
    builder.finish().unwrap().bytes()
}

#[test]
fn a_segment_of_version_2_opens() {
    let object = kept("segment", segment);
    let opener = Opener::open_header(&object, VAULT, LOG, Slot(7), &ring()).unwrap();
    assert_eq!((opener.header().kind, opener.header().writer), (SlotKind::Segment, WRITER));
    let mut frames = Vec::new();
    let each = |_: &_, _, bytes: &[u8]| {
        frames.push(bytes.to_vec());
        Ok::<_, CodecError>(())
    };
    let table = opener.open_all(&object, each).unwrap();
    assert_eq!(chunk_of(&table, 0, &frames[0], &hasher()).unwrap(), chunk());
    assert_eq!(table.chunks[1].place, ChunkPlace::There { target: THERE, chunk: 3 });
    assert_eq!(table.spans, [span()]);
    // So does its frame alone.
    let target = Target { log: LOG, slot: Slot(7), attempt: opener.header().attempt() };
    let start = usize::try_from(opener.header().frames_offset()).unwrap();
    let (offset, frame) = (u32::try_from(start).unwrap(), table.frames[0]);
    let at = FrameAt { target, number: 0, offset, key: KEY, frame };
    let mut alone = Vec::new();
    open_frame_at(VAULT, &at, &object[start..], &ring(), &mut alone).unwrap();
    assert_eq!(alone, frames[0]);
}

#[test]
fn a_seal_and_a_fill_of_version_2_open() {
    for (name, kind, slot) in [("seal", SlotKind::Seal, 8), ("fill", SlotKind::Fill, 9)] {
        let at = (VAULT, LOG, Slot(slot));
        let object =
            kept(name, || slot_without_data(kind, at, WRITER, ring().sealing().unwrap()).unwrap());
        let opener = Opener::open_header(&object, VAULT, LOG, Slot(slot), &ring()).unwrap();
        assert_eq!((opener.header().kind, opener.header().writer), (kind, WRITER));
        let table = opener.open_all(&object, |_, _, _| Ok::<_, CodecError>(())).unwrap();
        assert_eq!(table, Table::default());
    }
}

#[test]
fn an_epoch_object_of_version_2_opens() {
    let body = EpochBody {
        epoch: Epoch(4),
        log: LOG,
        first_slot: Slot(5),
        first_seq: Seq(1000),
        size_bytes: 1 << 30,
        stamp: STAMP,
        label: "golden".to_owned(),
        ended: Some(Ended { kind: EndKind::Seal, slot: Slot(77) }),
        base: Some(EpochBase {
            volume: VOLUME,
            at: Place { ordinal: 1, seq: Seq(640) },
            point: PointId([8; 16]),
        }),
    };
    let object =
        kept("epoch", || seal_epoch(VAULT, VOLUME, 2, ring().sealing().unwrap(), &body).unwrap());
    assert_eq!(open_epoch(&object, VAULT, VOLUME, 2, &ring()).unwrap(), body);
}

#[test]
fn a_revision_of_version_2_opens() {
    let body = RevisionBody {
        time_unix_ms: 1_767_225_600_000,
        own_key: OWN_KEY,
        last_key: KeyNumber(9),
        domains: vec![DomainKeys::FIRST],
        erased: vec![5..=6],
    };
    let object =
        kept("revision", || seal_revision(VAULT, 3, ring().sealing().unwrap(), &body).unwrap());
    assert_eq!(open_revision_wholly(&object, VAULT, 3, &ring()).unwrap(), (body, true));
    assert_eq!(key_of_revision(&object).unwrap(), OWN_KEY);
}

#[test]
fn a_journal_file_of_version_2_opens() {
    let plains = [b"first group".as_slice(), b"second group"];
    let file = kept("journal", || {
        let mut sealer = JournalSealer::create(VAULT, LOG, 3, &key(), KEY).unwrap();
        let mut file = sealer.header().encode();
        for plain in plains {
            let mut disk = vec![0; JournalSealer::disk_bytes(plain.len())];
            disk[JOURNAL_GROUP_HEADER_BYTES..][..plain.len()].copy_from_slice(plain);
            let size = GroupSize { entries: 1, bytes: plain.len() };
            sealer.seal_group(size, &mut disk).unwrap();
            file.extend(disk);
        }
        file
    });
    let (block, groups) = file.split_at(JOURNAL_ALIGN_BYTES);
    let opener = JournalOpener::open(block, VAULT, LOG, &ring()).unwrap();
    assert_eq!(opener.header().number, 3);
    for (number, plain) in (0_u64..).zip(plains) {
        let at = usize::try_from(number).unwrap() * JOURNAL_ALIGN_BYTES;
        let mut disk = groups[at..].to_vec();
        assert_eq!(opener.open_group(number, &mut disk).unwrap(), plain);
    }
}

/// The key `number` of the vault as it was wrapped, by a key of bytes 0x42.
fn unwrapped(object: &[u8], text: &str, number: u32) -> (KeyHeader, VaultKey) {
    let object = KeyObject::decode(object).unwrap();
    let key = WrappingKey::parse(text).unwrap();
    (object.header, key.unwrap(VAULT, KeyNumber(number), &object).unwrap())
}

#[test]
fn a_data_key_wrapped_by_the_recovery_key_opens() {
    let text = format!("FSRK2-{}-fad428ec", "42".repeat(32));
    let object = include_bytes!("../testdata/v2/key.bin");
    let (header, key) = unwrapped(object, &text, 2);
    assert_eq!((header.domain, header.kind), (Domain::FIRST, KeyKind::Data));
    assert!(key.is(&VaultKey::Data(DataKey::from_bytes([0x11; 32]))));
}

#[test]
fn a_root_key_wrapped_by_a_node_key_opens() {
    let text = format!("FSNK2-{}-2ad84239", "42".repeat(32));
    let object = include_bytes!("../testdata/v2/key-node.bin");
    let (header, key) = unwrapped(object, &text, 1);
    assert_eq!((header.domain, header.kind), (Domain::FIRST, KeyKind::Root));
    assert!(key.is(&VaultKey::Root(RootKey::from_bytes([0x12; 32]))));
}

fn stored() -> Vec<StoredChunk> {
    let own = Target { log: LOG, slot: Slot(7), attempt: Attempt([0x55; 8]) };
    let chunk =
        |n: u8, target, chunk| StoredChunk { id: ChunkId([n; 32]), blocks: 4, target, chunk };
    vec![chunk(7, own, 0), chunk(8, THERE, 3)]
}

fn manifest() -> Manifest {
    let shape = |front_bytes, bytes| PartShape { front_bytes, bytes };
    let full = Layer {
        at: Place { ordinal: 1, seq: Seq(900) },
        attempt: MapAttempt([7; 16]),
        kind: LayerKind::Full,
        runs: 12,
        data_blocks: 40,
        parts: vec![shape(250, 1250), shape(251, 1251)],
    };
    let (at, attempt, kind) = (MAP.at, MAP.attempt, LayerKind::Delta);
    let delta = Layer { at, attempt, kind, runs: 4, data_blocks: 8, parts: vec![shape(252, 600)] };
    Manifest {
        log: LOG,
        slot: Slot(7),
        size_bytes: 1 << 30,
        mark: Some(MapMark {
            at: Place { ordinal: 2, seq: Seq(998) },
            kind: MarkKind::Crash,
            time_unix_ms: 1_767_225_600_000,
            unknown_blocks: 3,
        }),
        layers: vec![delta, full],
    }
}

#[test]
fn a_map_of_version_2_opens() {
    let fields = MapFields { attempt: MAP.attempt, point: Some(POINT), ordinal: 2 };
    let seal = || seal_manifest(&MAP, &fields, ring().sealing().unwrap(), &manifest(), 3).unwrap();
    let (header, found) = open_manifest(&kept("map", seal), &MAP, &ring()).unwrap();
    assert_eq!((header.fields, header.at(), found), (fields, MAP.at, manifest()));
}

/// The pages of a part of a delta: one of chunks and zeros, one of zeros only.
fn pages() -> [Page; 2] {
    let own = Target { log: LOG, slot: Slot(7), attempt: Attempt([0x55; 8]) };
    let extent = |block, count, source| Extent { range: BlockRange { block, count }, source };
    let of = |chunk, first| ExtentSource::Chunk { chunk, first };
    let frame = |target, number, offset| FrameAt {
        target,
        number,
        offset,
        key: KEY,
        frame: SegmentFrame {
            stored_bytes: 5000,
            raw_bytes: 32_768,
            compression: Compression::Zstd,
        },
    };
    let chunk = |frame, number, check| PageChunk {
        frame,
        number,
        offset: 4096,
        blocks: 4,
        check: [check; 8],
    };
    let page = Page {
        frames: vec![frame(own, 0, 300), frame(THERE, 2, 70_000)],
        chunks: vec![chunk(0, 0, 7), chunk(1, 3, 8)],
        runs: vec![
            extent(0, 4, of(0, 0)),
            extent(4, 2, of(0, 1)),
            extent(10, 100, ExtentSource::Zero),
            extent(200, 2, of(1, 1)),
        ],
    };
    let zeros = vec![extent(0xfff0, 32, ExtentSource::Zero)];
    [page, Page { runs: zeros, ..Page::default() }]
}

#[test]
fn a_part_of_a_map_of_version_2_opens() {
    let object = kept("map-pages", || {
        let mut builder = PartBuilder::new(MAP, 1, ring().sealing().unwrap(), 3).unwrap();
        pages().iter().for_each(|page| builder.push(page, true).unwrap());
        builder.finish().unwrap().0
    });
    let front = PartHeader::decode(&object).unwrap().object.whole_bytes();
    let mut opener = PartOpener::open(&object[..front], &MAP, 1, &ring()).unwrap();
    for (number, page) in pages().into_iter().enumerate() {
        let range = opener.page_range(number);
        let sealed =
            &object[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        assert_eq!(opener.open_page(number, sealed).unwrap(), page);
    }
    let range = |block, count| BlockRange { block, count };
    let covers =
        [range(0, 6), range(10, 100), range(200, 2), range(0xfff0, 16), range(0x1_0000, 16)];
    assert_eq!((opener.pages().len(), &opener.take_covers()[..]), (2, &covers[..]));
}

#[test]
fn an_index_run_of_version_2_opens() {
    let body = IndexRun { applied: AT, chunks: stored() };
    let object = kept("index-run", || {
        seal_index_run(VAULT, RUN, ring().sealing().unwrap(), &body, 3).unwrap()
    });
    assert_eq!(open_index_run(&object, VAULT, RUN, &ring()).unwrap(), body);
}

#[test]
fn a_checkpoint_of_version_2_opens() {
    let (slot, body) = (Slot(256), checkpoint());
    let object = kept("checkpoint", || {
        seal_checkpoint(VAULT, LOG, slot, ring().sealing().unwrap(), &body).unwrap()
    });
    assert_eq!(open_checkpoint(&object, VAULT, LOG, slot, &ring()).unwrap(), body);
}

#[test]
fn a_horizon_of_version_2_opens() {
    let body = HorizonBody { slot: Slot(256), before: [0x5a; 32], below: checkpoint() };
    let object =
        kept("horizon", || seal_horizon(VAULT, LOG, 4, ring().sealing().unwrap(), &body).unwrap());
    assert_eq!(open_horizon(&object, VAULT, LOG, 4, &ring()).unwrap(), body);
}

fn checkpoint() -> CheckpointBody {
    let tail = VolumeTail {
        epoch: Epoch(4),
        first_seq: Seq(998),
        last_seq: Seq(1000),
        newest: Slot(7),
        mark: Some((Seq(1000), POINT)),
        stamp: STAMP,
        imprint: Imprint::of(0x0403_0201),
        is_released: false,
        is_broken: false,
    };
    let other = VolumeTail { mark: None, is_released: true, is_broken: true, ..tail };
    let tails = [(VOLUME, tail), (VolumeId([6; 16]), other)].into();
    CheckpointBody { incarnation: 5, horizon: 2, register: AT, tails }
}

#[test]
fn a_base_of_version_2_opens() {
    let mark = Mark {
        point: POINT,
        kind: MarkKind::Crash,
        unknown_blocks: 0,
        is_prompt: false,
        time_unix_ms: 1_767_225_600_000,
        group: MarkGroup::ALONE,
    };
    let newest =
        KeptPoint { at: MAP.at, map: MAP.attempt, epoch: Epoch(4), size_bytes: 1 << 20, mark };
    let older = KeptPoint {
        at: Place { ordinal: 1, seq: Seq(400) },
        map: MapAttempt([8; 16]),
        epoch: Epoch(2),
        ..newest
    };
    let body = BaseBody {
        before: [9; 32],
        at: MAP.at,
        map: MAP.attempt,
        manifest: [8; 32],
        log: LOG,
        slot: Slot(7),
        points: vec![older, newest],
    };
    let object =
        kept("base", || seal_base(VAULT, VOLUME, 2, ring().sealing().unwrap(), &body).unwrap());
    assert_eq!(open_base(&object, VAULT, VOLUME, 2, &ring()).unwrap(), body);
}

#[test]
fn an_entry_of_the_register_of_version_2_opens() {
    let own = Target { log: LOG, slot: Slot(7), attempt: Attempt([0x55; 8]) };
    let body = RegisterBody {
        before: [0xbb; 32],
        statement: Statement::Condemnation([own, THERE].into()),
        state: State {
            logs: [(LOG, 1), (THERE.log, 2)].into(),
            floors: [(THERE.log, Slot(9))].into(),
            open: [(3, Some(5)), (6, None)].into(),
        },
    };
    let object =
        kept("register", || seal_register(VAULT, 6, ring().sealing().unwrap(), &body).unwrap());
    assert_eq!(open_register(&object, VAULT, 6, &ring()).unwrap(), body);
}

#[test]
fn a_machine_of_version_2_opens() {
    let disk = Disk {
        index: 0,
        volume: Some(VOLUME),
        size_bytes: 64 << 20,
        since: (Epoch(0), Seq(0)),
        boot_rank: 1,
        sector_log2: 9,
        role: DiskRole::Boot,
        state: DiskState::Protected,
        name: "/dev/vda".to_owned(),
        label: "root".to_owned(),
        serial: "S0".to_owned(),
    };
    let data = Disk {
        index: 1,
        volume: Some(VolumeId([8; 16])),
        since: (Epoch(4), Seq(1000)),
        boot_rank: 0,
        sector_log2: 12,
        role: DiskRole::Data,
        name: "/dev/vdb".to_owned(),
        label: String::new(),
        serial: "S1".to_owned(),
        ..disk.clone()
    };
    let body = MachineBody {
        time_unix_ms: 1_767_225_600_000,
        memory_bytes: 4 << 30,
        processors: 2,
        firmware: Firmware::Uefi,
        is_secure_boot: false,
        name: "db-1".to_owned(),
        system: "Debian 12".to_owned(),
        disks: vec![disk, data],
    };
    let object = kept("machine", || {
        seal_machine(VAULT, MACHINE, 2, ring().sealing().unwrap(), &body).unwrap()
    });
    assert_eq!(open_machine(&object, VAULT, MACHINE, 2, &ring()).unwrap(), body);
}

#[test]
fn a_group_of_version_2_opens() {
    let member = Member {
        machine: MACHINE,
        volume: VOLUME,
        since: (Epoch(4), Seq(1000)),
        state: MemberState::Member,
    };
    let left = Member { volume: VolumeId([8; 16]), state: MemberState::Left, ..member };
    let other = Member {
        machine: MachineId([9; 16]),
        volume: VolumeId([2; 16]),
        since: (Epoch(0), Seq(0)),
        ..member
    };
    let body = GroupBody {
        time_unix_ms: 1_767_225_600_000,
        kind: GroupKind::Machines,
        name: "shop".to_owned(),
        members: vec![member, left, other],
    };
    let object =
        kept("group", || seal_group(VAULT, GROUP, 1, ring().sealing().unwrap(), &body).unwrap());
    assert_eq!(open_group(&object, VAULT, GROUP, 1, &ring()).unwrap(), body);
}
