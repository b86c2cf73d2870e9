//! One example of each layout; the golden files hold exactly these.

mod maps;

pub(crate) use maps::*;

use farshore_proto::base::{self, BaseBody, KeptPoint};
use farshore_proto::checkpoint::{self, CheckpointBody, VolumeTail};
use farshore_proto::epoch::{self, EndKind, Ended, EpochBase, EpochBody, SealedLabel};
use farshore_proto::frame::{Ack, Control, FrameHeader, Hello, Refusal, RefusalReason, Welcome};
use farshore_proto::group::{self, GroupBody, GroupKind, Member, MemberState};
use farshore_proto::horizon::{self, HorizonBody};
use farshore_proto::hrl::HrlHeader;
use farshore_proto::index_run::{self, IndexRun};
use farshore_proto::journal::{GroupHeader, JournalFileHeader, put_entry};
use farshore_proto::keys::{Fingerprint, KeyHeader, KeyKind, KeyObject, Wrapper, WrapperKind};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::machine::{self, Disk, DiskRole, DiskState, Firmware, MachineBody};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::object::{ObjectHeader, ObjectPlace};
use farshore_proto::register::At;
use farshore_proto::register::{self, RegisterBody, State, Statement};
use farshore_proto::revision::{self, RevisionBody};
use farshore_proto::segment::{
    ChunkPlace, Compression, Extent, ExtentSource, SegmentChunk, SegmentFrame, SegmentHeader,
    SlotKind, SlotWriter, Span, Table,
};
use farshore_proto::targets::StoredChunk;
use farshore_proto::vault::{DomainKeys, OWN_KEY, VaultObject};
use farshore_proto::{
    Attempt, BlockRange, ChunkId, Domain, Epoch, GroupId, Imprint, KeyNumber, LogId, MachineId,
    MapAttempt, MarkAttempt, MarkKind, Place, PointId, RunId, Seq, Slot, Stamp, Target, VaultId,
    VolumeId,
};

pub(crate) const VAULT: VaultId = VaultId(id(0xa0));
pub(crate) const VOLUME: VolumeId = VolumeId(id(0xb0));
pub(crate) const LOG: LogId = LogId(id(0xc0));
pub(crate) const OTHER_LOG: LogId = LogId(id(0xd0));
/// The other volume of the checkpoint.
pub(crate) const OTHER_VOLUME: VolumeId = VolumeId(id(0xb1));
pub(crate) const MACHINE: MachineId = MachineId(id(0x80));
pub(crate) const GROUP: GroupId = GroupId(id(0x90));
/// Where the checkpoint stands.
pub(crate) const CHECKPOINT_SLOT: Slot = Slot(0x0100);
/// Number of the base.
pub(crate) const BASE_NUMBER: u64 = 2;
/// Number of the horizon.
pub(crate) const HORIZON: u64 = 4;
/// Which entry of the register.
pub(crate) const ENTRY: u64 = 10;
pub(crate) const POINT: PointId = PointId(id(0xe0));

/// Bytes that count up from `first`, so that a misplaced field shows.
const fn id<const N: usize>(first: u8) -> [u8; N] {
    let mut out = [0; N];
    let mut at = 0;
    let mut byte = first;
    while at < N {
        out[at] = byte;
        byte = byte.wrapping_add(1);
        at += 1;
    }
    out
}

pub(crate) fn mark() -> Mark {
    Mark {
        point: POINT,
        kind: MarkKind::Crash,
        unknown_blocks: 0,
        is_prompt: true,
        time_unix_ms: 1_767_225_600_000,
        group: MarkGroup::ALONE,
    }
}

const STAMP: Stamp = Stamp { life: 0x0102_0304, generation: 0x0506_0708 };
const IMPRINT: [u8; 3] = [0x0a, 0x0b, 0x0c];

/// Of a scanned disk with unreadable blocks.
pub(crate) fn scan_mark() -> Mark {
    Mark { kind: MarkKind::Scan, unknown_blocks: 0x0001_0203, is_prompt: false, ..mark() }
}

/// Of a point that three volumes have.
pub(crate) fn group_mark() -> Mark {
    let group = MarkGroup { attempt: MarkAttempt(id(0xf0)), member: 1, members: 3 };
    Mark { kind: MarkKind::FileSystem, group, ..mark() }
}

/// Name of the golden file, and its bytes.
pub(crate) fn all() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = control_frames();
    all.extend([
        ("frame-write", write_frame()),
        ("frame-write-copy", copy_frame()),
        ("frame-zero", zero_frame()),
        ("hrl-file", hrl_file()),
        ("journal-file-header", journal_file_header().encode()),
        ("journal-group-header", group_header().encode().to_vec()),
        ("journal-entries", journal_entries()),
        ("vault", vault().encode()),
        ("vault-more", vault_of_a_later_program()),
        ("key", key().encode()),
        ("key-more", key_of_a_later_program()),
        ("key-aad", key().aad()),
        ("segment-header", segment_header(SlotKind::Segment).encode()),
        ("seal-header", segment_header(SlotKind::Seal).encode()),
        ("fill-header", segment_header(SlotKind::Fill).encode()),
        ("segment-table", table().encode()),
        ("segment-table-stamped", stamped_table().encode()),
        ("epoch-object", epoch_object()),
        ("epoch-body", epoch_body().encode(Some(&sealed_label()))),
        ("epoch-body-stamped", stamped_epoch_body().encode(Some(&sealed_label()))),
        ("map-object", map_object()),
        ("map-body", manifest().encode()),
        ("map-pages-object", map_pages_object()),
        ("map-directory", directory().encode()),
        ("map-delta-directory", delta_directory().encode()),
        ("map-page", page().encode()),
        ("index-run-object", index_run_object()),
        ("index-run-body", index_run().encode()),
        ("checkpoint-object", checkpoint_object()),
        ("checkpoint-body", checkpoint().encode()),
        ("base-object", base_object()),
        ("base-body", base().encode()),
        ("revision-object", revision_object()),
        ("revision-body", revision().encode()),
        ("horizon-object", horizon_object()),
        ("horizon-body", horizon().encode()),
        ("register-object", register_object()),
        ("register-body", register().encode()),
        ("machine-object", machine_object()),
        ("machine-body", machine_body().encode()),
        ("group-object", group_object()),
        ("group-body", group_body().encode()),
    ]);
    all
}

pub(crate) fn control_frames() -> Vec<(&'static str, Vec<u8>)> {
    let hello = Hello {
        volume: VOLUME,
        epoch: Epoch(3),
        size_bytes: 64 << 20,
        first_seq: Seq(41),
        last_seq: Seq(99),
        mark_interval_ms: 5000,
        life: 0x0a0b_0c0d,
        is_overtaken: true,
    };
    let welcome = Welcome {
        imprint: Imprint::from_bytes(IMPRINT),
        received: Seq(70),
        journaled: Seq(69),
        committed: Seq(50),
        window_bytes: 8 << 20,
        stamp: STAMP,
    };
    let refusal =
        Refusal { reason: RefusalReason::Fenced, text: "epoch 4 owns this volume".to_owned() };
    vec![
        ("frame-hello", Control::Hello(hello).encode()),
        ("frame-welcome", Control::Welcome(welcome).encode()),
        ("frame-mark", Control::Mark(Seq(43), mark()).encode()),
        (
            "frame-mark-scan",
            Control::Mark(Seq(44), scan_mark()).encode_in(STAMP, Imprint::from_bytes(IMPRINT)),
        ),
        (
            "frame-mark-group",
            Control::Mark(Seq(45), group_mark()).encode_in(STAMP, Imprint::from_bytes(IMPRINT)),
        ),
        (
            "frame-ack",
            Control::Ack(Ack { journaled: Seq(70), committed: Seq(52), gathers_in_ms: Some(1500) })
                .encode(),
        ),
        ("frame-refusal", Control::Refusal(refusal).encode()),
        ("frame-alive", Control::Alive.encode()),
    ]
}

pub(crate) fn block() -> Vec<u8> {
    id::<256>(0).repeat(BLOCK_BYTES / 256)
}

pub(crate) fn write_frame() -> Vec<u8> {
    let header = FrameHeader::write(Seq(41), 5, &block());
    [header.encode().to_vec(), block()].concat()
}

pub(crate) fn zero_frame() -> Vec<u8> {
    FrameHeader::zero(Seq(42), BlockRange { block: 8, count: 1024 }).encode().to_vec()
}

/// What was read in a copy, in its place in a stream.
pub(crate) fn copy_frame() -> Vec<u8> {
    let header = FrameHeader::write(Seq(46), 7, &block());
    let header = header.of_copy(true).stamped(STAMP).behind(Imprint::from_bytes(IMPRINT));
    [header.encode().to_vec(), block()].concat()
}

pub(crate) fn hrl_header() -> HrlHeader {
    HrlHeader { volume: VOLUME, first_seq: Seq(41) }
}

pub(crate) fn hrl_file() -> Vec<u8> {
    let mark = Control::Mark(Seq(43), mark()).encode();
    [hrl_header().encode().to_vec(), write_frame(), zero_frame(), mark].concat()
}

pub(crate) fn journal_file_header() -> JournalFileHeader {
    JournalFileHeader {
        vault: VAULT,
        log: LOG,
        number: 17,
        key: KeyNumber(1),
        salt: id(0x10),
        commitment: id(0x40),
    }
}

pub(crate) fn group_header() -> GroupHeader {
    GroupHeader { file: 17, group: 2, plain_bytes: journal_entries().len(), entries: 2 }
}

pub(crate) fn journal_entries() -> Vec<u8> {
    let mut out = Vec::new();
    for frame in [zero_frame(), Control::Mark(Seq(43), mark()).encode()] {
        let (header, body) = frame.split_first_chunk().expect("a frame has a header");
        put_entry(&mut out, VOLUME, Epoch(3), header, body);
    }
    out
}

/// What all objects have, of one with a body of so many bytes, sealed and raw.
fn object(place: ObjectPlace, variant: u8, body: usize, raw: usize) -> ObjectHeader {
    let (domain, key) = match place.kind.is_own(variant) {
        Some(true) => (Domain::OWN, OWN_KEY),
        _ => (Domain::FIRST, KeyNumber(1)),
    };
    ObjectHeader {
        place,
        domain,
        key,
        own_key: OWN_KEY,
        variant,
        compression: if body == raw + 16 { Compression::Raw } else { Compression::Zstd },
        body_bytes: body,
        body_raw_bytes: raw,
        salt: id(0x10),
        commitment: id(0x40),
        header_bytes: place.kind.header_bytes(),
    }
}

pub(crate) fn segment_header(kind: SlotKind) -> SegmentHeader {
    let is_segment = kind == SlotKind::Segment;
    let (body, raw) = if is_segment { (300, 700) } else { (16, 0) };
    let place = SegmentHeader::place(VAULT, LOG, Slot(0x0102));
    let writer = SlotWriter {
        incarnation: 4,
        horizon: 3,
        register: applied(),
        checkpoint: Some(Slot(0x0100)),
    };
    SegmentHeader {
        object: object(place, kind.code(), body, raw),
        kind,
        frames_bytes: if is_segment { 20_016 } else { 0 },
        writer: if is_segment { writer } else { SlotWriter::of_run(4) },
    }
}

/// With all that a writer may know of each span.
pub(crate) fn stamped_table() -> Table {
    let mut table = table();
    for span in &mut table.spans {
        span.previous = Some(Slot(0x00fe));
        span.stamp = STAMP;
        span.imprint = Imprint::from_bytes(IMPRINT);
    }
    table
}

/// A segment of another log, and the attempt at it.
pub(crate) const OTHER: Target =
    Target { log: OTHER_LOG, slot: Slot(9), attempt: Attempt(id(0x70)) };
/// The segment of the sample.
pub(crate) const OWN: Target = Target { log: LOG, slot: Slot(0x0102), attempt: Attempt(id(0x10)) };

pub(crate) fn table() -> Table {
    let here = ChunkPlace::Here { frame: 0, offset: 0 };
    let there = ChunkPlace::There { target: OTHER, chunk: 6 };
    let chunk = |chunk: u32, first: u32| ExtentSource::Chunk { chunk, first };
    let range = |block: u64, count: u64| BlockRange { block, count };
    let first = Span {
        volume: VOLUME,
        epoch: Epoch(3),
        first_seq: Seq(41),
        last_seq: Seq(43),
        previous: None,
        mark: Some(mark()),
        stamp: Stamp::default(),
        imprint: Imprint::default(),
        extents: vec![
            Extent { range: range(5, 2), source: chunk(0, 1) },
            Extent { range: range(8, 1024), source: ExtentSource::Zero },
            Extent { range: range(1032, 8), source: chunk(1, 0) },
        ],
    };
    let second = Span {
        first_seq: Seq(44),
        last_seq: Seq(44),
        mark: None,
        extents: vec![],
        ..first.clone()
    };
    Table {
        frames: vec![SegmentFrame {
            stored_bytes: 20_016,
            raw_bytes: 32_768,
            compression: Compression::Zstd,
        }],
        chunks: vec![
            SegmentChunk { id: ChunkId(id(0x20)), blocks: 8, place: here },
            SegmentChunk { id: ChunkId(id(0x60)), blocks: 8, place: there },
        ],
        spans: vec![first, second],
    }
}

pub(crate) fn vault() -> VaultObject {
    VaultObject::new(VAULT)
}

/// With a bit, a field of the header, a section and a longer record that a reader may pass over.
pub(crate) fn vault_of_a_later_program() -> Vec<u8> {
    let plain = vault().encode();
    let (parameters, domains) = (&plain[48..96], &plain[96..128]);
    let mut body = parameters.to_vec();
    body.extend(&domains[..16]);
    body[48 + 4] = 24;
    body.extend(&domains[16..]);
    body.extend([9; 8]);
    // Kind 9, no flags, one record of 4 bytes.
    body.extend([9, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
    let mut out = plain[..48].to_vec();
    (out[6], out[12]) = (56, 0b10);
    out[32..36].copy_from_slice(&u32::try_from(body.len()).expect("a small body").to_le_bytes());
    out.extend([8; 8]);
    out.extend(body);
    with_checksum(out)
}

/// Appends the checksum of all before it.
pub(crate) fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

/// In place of real ciphertext, which is the business of the codec crate.
fn sealed(plain: &[u8]) -> Vec<u8> {
    plain.iter().map(|byte| byte ^ 0xff).chain([0x77; 16]).collect()
}

/// An object with a body that is not compressed.
fn whole(place: ObjectPlace, own: impl FnOnce(&mut Vec<u8>), body: &[u8]) -> Vec<u8> {
    let head = object(place, 0, body.len() + 16, body.len()).encode(own);
    [head, sealed(body)].concat()
}

pub(crate) fn epoch_object() -> Vec<u8> {
    let place = epoch::place(VAULT, VOLUME, 2);
    whole(place, |own| own.extend([0; 4]), &epoch_body().encode(Some(&sealed_label())))
}

/// A label of thirteen bytes.
pub(crate) fn sealed_label() -> SealedLabel {
    let sealed = id::<29>(0x60).to_vec();
    SealedLabel { key: KeyNumber(1), salt: id(0x30), sealed }
}

pub(crate) fn epoch_body() -> EpochBody {
    EpochBody {
        epoch: Epoch(3),
        log: LOG,
        first_slot: Slot(0x0102),
        first_seq: Seq(41),
        size_bytes: 64 << 20,
        stamp: Stamp::default(),
        label: String::new(),
        ended: Some(Ended { kind: EndKind::Seal, slot: Slot(0x0302) }),
        base: Some(EpochBase {
            volume: VolumeId(id(0xd0)),
            at: Place { ordinal: 1, seq: Seq(40) },
            point: PointId(id(0xe0)),
        }),
    }
}

/// With the stamp of the frame before it.
pub(crate) fn stamped_epoch_body() -> EpochBody {
    EpochBody { stamp: STAMP, ..epoch_body() }
}

pub(crate) fn key() -> KeyObject {
    let fingerprint = Fingerprint(id(0x01));
    let header = KeyHeader {
        vault: VAULT,
        key: KeyNumber(2),
        domain: Domain::FIRST,
        kind: KeyKind::Data,
        wrapper: Wrapper { kind: WrapperKind::Node, fingerprint },
    };
    KeyObject::new(header, id(0x10), id(0x80))
}

/// With a bit and a field of the header that a reader may pass over.
pub(crate) fn key_of_a_later_program() -> Vec<u8> {
    let plain = key().encode();
    let mut out = plain[..56].to_vec();
    (out[6], out[12]) = (64, 0b10);
    out.extend([8; 8]);
    out.extend(&plain[56..116]);
    with_checksum(out)
}

pub(crate) fn stored_chunks() -> Vec<StoredChunk> {
    let chunk =
        |first, target, chunk| StoredChunk { id: ChunkId(id(first)), blocks: 8, target, chunk };
    vec![chunk(0x20, OTHER, 6), chunk(0x60, OWN, 0)]
}

pub(crate) fn index_run_object() -> Vec<u8> {
    let place = index_run::place(VAULT, RunId(id(0x90)));
    whole(place, |own| own.extend([0; 4]), &index_run().encode())
}

/// An entry of the register.
pub(crate) fn applied() -> At {
    At { number: 0x0405, digest: [0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88] }
}

pub(crate) fn index_run() -> IndexRun {
    IndexRun { applied: applied(), chunks: stored_chunks() }
}

pub(crate) fn checkpoint_object() -> Vec<u8> {
    let place = checkpoint::place(VAULT, LOG, CHECKPOINT_SLOT);
    whole(place, |own| own.extend([0; 4]), &checkpoint().encode())
}

/// Of a volume of which all is known, and one of which as little as may be.
pub(crate) fn checkpoint() -> CheckpointBody {
    let known = VolumeTail {
        epoch: Epoch(3),
        first_seq: Seq(41),
        last_seq: Seq(44),
        newest: Slot(0x00fe),
        mark: Some((Seq(43), POINT)),
        stamp: STAMP,
        imprint: Imprint::from_bytes(IMPRINT),
        is_released: false,
        is_broken: false,
    };
    let other = VolumeTail {
        epoch: Epoch(7),
        first_seq: Seq(1),
        last_seq: Seq(1),
        newest: Slot(0x0009),
        mark: None,
        stamp: Stamp::default(),
        imprint: Imprint::default(),
        is_released: true,
        is_broken: true,
    };
    CheckpointBody {
        incarnation: 4,
        horizon: 3,
        register: applied(),
        tails: [(VOLUME, known), (OTHER_VOLUME, other)].into(),
    }
}

pub(crate) fn revision_object() -> Vec<u8> {
    let place = revision::place(VAULT, 3);
    whole(place, |own| own.extend([0; 4]), &revision().encode())
}

/// Of a vault whose first data key is gone.
pub(crate) fn revision() -> RevisionBody {
    RevisionBody {
        time_unix_ms: 1_767_225_600_000,
        own_key: OWN_KEY,
        last_key: KeyNumber(9),
        domains: vec![DomainKeys::FIRST],
        erased: vec![2..=2, 5..=6],
    }
}

pub(crate) fn horizon_object() -> Vec<u8> {
    let place = horizon::place(VAULT, LOG, HORIZON);
    whole(place, |own| own.extend([0; 4]), &horizon().encode())
}

/// Of the checkpoint, which was made when the horizon before was the newest.
pub(crate) fn horizon() -> HorizonBody {
    let before = id(0xa0);
    HorizonBody { slot: CHECKPOINT_SLOT, before, below: checkpoint() }
}

pub(crate) fn base_object() -> Vec<u8> {
    let place = base::place(VAULT, VOLUME, BASE_NUMBER);
    whole(place, |own| own.extend([0; 4]), &base().encode())
}

/// At a place where a point is kept, and with one of the epoch before.
pub(crate) fn base() -> BaseBody {
    let at = Place { ordinal: 2, seq: Seq(44) };
    let older = KeptPoint {
        at: Place { ordinal: 1, seq: Seq(40) },
        map: MapAttempt(id(0x72)),
        epoch: Epoch(1),
        size_bytes: 32 << 20,
        mark: scan_mark(),
    };
    let newest = KeptPoint {
        at,
        map: MapAttempt(id(0x70)),
        epoch: Epoch(3),
        size_bytes: 64 << 20,
        mark: group_mark(),
    };
    BaseBody {
        before: id(0x20),
        at,
        map: newest.map,
        manifest: id(0x40),
        log: LOG,
        slot: Slot(0x0102),
        points: vec![older, newest],
    }
}

pub(crate) fn machine_object() -> Vec<u8> {
    let place = machine::place(VAULT, MACHINE, 2);
    whole(place, |own| own.extend([0; 4]), &machine_body().encode())
}

/// Of a disk of which all is known, one that is gone, and one of which as little as may be.
pub(crate) fn machine_body() -> MachineBody {
    let boot = Disk {
        index: 0,
        volume: Some(VOLUME),
        size_bytes: 64 << 20,
        since: (Epoch(3), Seq(43)),
        boot_rank: 1,
        sector_log2: 9,
        role: DiskRole::Boot,
        state: DiskState::Protected,
        name: "/dev/vda".to_owned(),
        label: "root".to_owned(),
        serial: "S0".to_owned(),
    };
    let gone = Disk {
        index: 1,
        volume: Some(OTHER_VOLUME),
        size_bytes: (1 << 30) + 512,
        boot_rank: 0,
        sector_log2: 12,
        role: DiskRole::Data,
        state: DiskState::Removed,
        name: "/dev/vdb".to_owned(),
        label: String::new(),
        serial: "S1".to_owned(),
        ..boot.clone()
    };
    let excluded = Disk {
        index: 4,
        volume: None,
        size_bytes: 0,
        since: (Epoch(0), Seq(0)),
        boot_rank: 0,
        sector_log2: 0,
        role: DiskRole::Unknown,
        state: DiskState::Excluded,
        name: String::new(),
        label: String::new(),
        serial: String::new(),
    };
    MachineBody {
        time_unix_ms: 1_767_225_600_000,
        memory_bytes: 4 << 30,
        processors: 2,
        firmware: Firmware::Uefi,
        is_secure_boot: true,
        name: "db-1".to_owned(),
        system: "Debian 12".to_owned(),
        disks: vec![boot, gone, excluded],
    }
}

pub(crate) fn group_object() -> Vec<u8> {
    let place = group::place(VAULT, GROUP, 1);
    whole(place, |own| own.extend([0; 4]), &group_body().encode())
}

/// Of two machines; a disk of the first left.
pub(crate) fn group_body() -> GroupBody {
    let member = Member {
        machine: MACHINE,
        volume: VOLUME,
        since: (Epoch(3), Seq(43)),
        state: MemberState::Member,
    };
    let left = Member { volume: OTHER_VOLUME, state: MemberState::Left, ..member };
    let other = Member {
        machine: MachineId(id(0x81)),
        volume: VolumeId(id(0x21)),
        since: (Epoch(0), Seq(0)),
        ..member
    };
    GroupBody {
        time_unix_ms: 1_767_225_600_000,
        kind: GroupKind::Machines,
        name: "shop".to_owned(),
        members: vec![member, left, other],
    }
}

pub(crate) fn register_object() -> Vec<u8> {
    let place = register::place(VAULT, ENTRY);
    whole(place, |own| own.extend([0; 4]), &register().encode())
}

/// A verdict, while another condemnation has none.
pub(crate) fn register() -> RegisterBody {
    RegisterBody {
        before: id(0x20),
        statement: Statement::Verdict { of: 7, targets: [OWN, OTHER].into() },
        state: State {
            logs: [(LOG, 1), (OTHER_LOG, 4)].into(),
            floors: [(LOG, Slot(259))].into(),
            open: [(5, None), (7, Some(ENTRY))].into(),
        },
    }
}
