//! The bodies of machines and groups: round trips, and what the decoders refuse.

use crate::bodies::{Section, join, split};
use crate::roundtrip::seq;
use crate::samples::{self, MACHINE, VOLUME};
use farshore_proto::group::{GroupBody, GroupKind, Member, MemberState};
use farshore_proto::limits::{
    DISK_TEXT_BYTES_MAX, GROUP_MEMBERS_MAX, MACHINE_DISKS_MAX, MACHINE_TEXTS_BYTES_MAX,
    NAME_BYTES_MAX, SMALL_BODY_BYTES_MAX, VOLUME_BYTES_MAX,
};
use farshore_proto::machine::{Disk, DiskRole, DiskState, Firmware, MachineBody, OtherCode};
use farshore_proto::object::{ObjectHeader, ObjectKind};
use farshore_proto::{DecodeError, Epoch, ErrorKind, MachineId, Seq, VolumeId};
use proptest::collection::vec;
use proptest::prelude::*;

/// Where the head of a machine, its first disk and the one behind it begin; where the texts of the disks do.
const HEAD: usize = 16;
pub(crate) const DISK: usize = HEAD + 32 + 16 + 4 + 16 + 9 + 16;
const GONE: usize = DISK + 64;
const TEXTS: usize = DISK + 3 * 64 + 16;
/// Where the first member of a group begins.
pub(crate) const MEMBER: usize = HEAD + 32 + 16 + 4 + 16;

fn machine_with(at: usize, value: &[u8]) -> Result<MachineBody, DecodeError> {
    let mut body = samples::machine_body().encode();
    body[at..at + value.len()].copy_from_slice(value);
    MachineBody::decode(&body)
}

fn group_with(at: usize, value: &[u8]) -> Result<GroupBody, DecodeError> {
    let mut body = samples::group_body().encode();
    body[at..at + value.len()].copy_from_slice(value);
    GroupBody::decode(&body)
}

/// What is written checks, so a machine that does not is compared with what a reader says of the same.
fn machine_of(change: impl FnOnce(&mut MachineBody)) -> Result<(), DecodeError> {
    let mut body = samples::machine_body();
    change(&mut body);
    body.check()
}

fn group_of(change: impl FnOnce(&mut GroupBody)) -> Result<(), DecodeError> {
    let mut body = samples::group_body();
    change(&mut body);
    body.check()
}

fn out_of_range<T: std::fmt::Debug>(read: Result<T, DecodeError>, expected: &str) {
    let error = read.expect_err(expected);
    let is_named = matches!(error, DecodeError::Range { what, .. } if what == expected);
    assert!(is_named, "{expected}: {error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

fn over_limit(read: Result<(), DecodeError>, what: &'static str, value: usize, max: usize) {
    let (value, max) = (value as u64, max as u64);
    assert_eq!(read, Err(DecodeError::Limit { what, value, max }));
}

#[test]
fn the_samples_read_back_and_their_objects_have_their_places() {
    let (machine, group) = (samples::machine_body(), samples::group_body());
    assert_eq!(MachineBody::decode(&machine.encode()), Ok(machine.clone()));
    assert_eq!(GroupBody::decode(&group.encode()), Ok(group));
    assert_eq!(machine.volumes().map(|(disk, _)| disk.index).collect::<Vec<_>>(), [0, 1]);
    for (kind, object, subject, number) in [
        (ObjectKind::Machine, samples::machine_object(), MACHINE.0, 2),
        (ObjectKind::Group, samples::group_object(), samples::GROUP.0, 1),
    ] {
        let (header, _) = ObjectHeader::decode(kind, &object).unwrap();
        let place = header.place;
        assert_eq!((place.subject, place.number, place.part), (subject, number, 0));
        assert_eq!(kind.body_bytes_max(), SMALL_BODY_BYTES_MAX);
    }
}

#[test]
fn the_largest_machine_and_the_largest_group_fit_their_bodies() {
    let mut body = samples::machine_body();
    let texts = MACHINE_TEXTS_BYTES_MAX / MACHINE_DISKS_MAX / 2;
    let disk = |index: u16| Disk {
        index,
        volume: Some(VolumeId(u128::from(index + 1).to_be_bytes())),
        boot_rank: index + 1,
        name: "n".repeat(texts),
        label: "l".repeat(texts),
        serial: String::new(),
        ..samples::machine_body().disks[0].clone()
    };
    body.disks = (0..u16::try_from(MACHINE_DISKS_MAX).unwrap()).map(disk).collect();
    (body.name, body.system) = ("m".repeat(NAME_BYTES_MAX), "s".repeat(NAME_BYTES_MAX));
    let bytes = body.encode();
    assert!(bytes.len() <= SMALL_BODY_BYTES_MAX, "{}", bytes.len());
    assert_eq!(MachineBody::decode(&bytes), Ok(body.clone()));
    body.disks[0].serial.push('s');
    let texts = MACHINE_TEXTS_BYTES_MAX;
    over_limit(body.check(), "disk texts", texts + 1, texts);
    body.disks[0].serial.clear();
    body.disks.push(disk(u16::MAX - 1));
    over_limit(body.check(), "machine disks", MACHINE_DISKS_MAX + 1, MACHINE_DISKS_MAX);

    let mut group = samples::group_body();
    let member =
        |n: usize| Member { volume: VolumeId((n as u128 + 1).to_be_bytes()), ..group.members[0] };
    group.members = (0..GROUP_MEMBERS_MAX).map(member).collect();
    let bytes = group.encode();
    assert!(bytes.len() <= SMALL_BODY_BYTES_MAX, "{}", bytes.len());
    assert_eq!(GroupBody::decode(&bytes), Ok(group.clone()));
    group.members.push(Member { machine: MachineId([0xff; 16]), ..group.members[0] });
    over_limit(group.check(), "group members", GROUP_MEMBERS_MAX + 1, GROUP_MEMBERS_MAX);
}

#[test]
#[should_panic(expected = "checked before it is laid out")]
fn what_a_reader_would_refuse_is_not_laid_out() {
    let _ = MachineBody { name: String::new(), ..samples::machine_body() }.encode();
}

/// Each text at its limit and beyond, by what writes and by what reads.
#[test]
fn texts_have_limits_and_are_text() {
    let long = |bytes: usize| "x".repeat(bytes);
    let max = NAME_BYTES_MAX;
    machine_of(|body| (body.name, body.system) = (long(max), long(max))).unwrap();
    over_limit(machine_of(|body| body.name = long(max + 1)), "machine name", max + 1, max);
    let system = machine_of(|body| body.system = long(max + 1));
    over_limit(system, "machine operating system", max + 1, max);
    over_limit(group_of(|body| body.name = long(max + 1)), "group name", max + 1, max);
    out_of_range(machine_of(|body| body.name.clear()), "machine name");
    out_of_range(group_of(|body| body.name.clear()), "group name");
    machine_of(|body| body.system.clear()).unwrap();
    let texts: [fn(&mut Disk) -> &mut String; 3] =
        [|disk| &mut disk.name, |disk| &mut disk.label, |disk| &mut disk.serial];
    for text in texts {
        let max = DISK_TEXT_BYTES_MAX;
        machine_of(|body| *text(&mut body.disks[0]) = long(max)).unwrap();
        let read = machine_of(|body| *text(&mut body.disks[0]) = long(max + 1));
        over_limit(read, "disk text", max + 1, max);
    }
    for at in [HEAD + 32 + 16, HEAD + 32 + 16 + 4 + 16, TEXTS, TEXTS + 9] {
        let error = machine_with(at, &[0xff]).unwrap_err();
        assert!(matches!(error, DecodeError::Text { .. }), "{at}: {error}");
    }
    let error = group_with(HEAD + 32 + 16, &[0xff]).unwrap_err();
    assert!(matches!(error, DecodeError::Text { what: "group name" }), "{error}");
}

/// The lengths of the texts add up to the section, and none cuts a character in two.
#[test]
fn the_texts_of_the_disks_are_all_of_their_section() {
    let lengths = |name: u16, label: u16, serial: u16| {
        let bytes = [name, label, serial].map(u16::to_le_bytes).concat();
        machine_with(DISK + 48, &bytes)
    };
    assert_eq!(lengths(8, 4, 2).unwrap(), samples::machine_body());
    assert_eq!(lengths(6, 6, 2).unwrap().disks[0].name, "/dev/v");
    let error = lengths(8, 4, 1).unwrap_err();
    assert!(matches!(error, DecodeError::Text { .. } | DecodeError::Range { .. }), "{error}");
    let error = lengths(8, 4, 3).unwrap_err();
    assert!(matches!(error, DecodeError::Truncated { .. }), "{error}");
    let over = u16::try_from(DISK_TEXT_BYTES_MAX + 1).unwrap();
    let error = lengths(over, 0, 0).unwrap_err();
    assert!(matches!(error, DecodeError::Limit { what: "disk text", .. }), "{error}");
    let mut body = samples::machine_body();
    body.disks[0].name = "äöü".to_owned();
    let mut bytes = body.encode();
    bytes[DISK + 48] = 5;
    bytes[DISK + 50] += 1;
    let error = MachineBody::decode(&bytes).unwrap_err();
    assert!(matches!(error, DecodeError::Text { .. }), "{error}");
    // Without any.
    for disk in &mut body.disks {
        (disk.name, disk.label, disk.serial) = Default::default();
    }
    assert_eq!(MachineBody::decode(&body.encode()), Ok(body));
}

#[test]
fn a_disk_has_legal_values() {
    let refused = |what: &str, change: &dyn Fn(&mut Disk)| {
        out_of_range(machine_of(|body| change(&mut body.disks[0])), what);
    };
    refused("volume of a disk", &|disk| disk.volume = None);
    refused("volume of a disk", &|disk| disk.volume = Some(VolumeId([0; 16])));
    refused("disk size", &|disk| disk.size_bytes = 0);
    refused("disk size", &|disk| disk.size_bytes = VOLUME_BYTES_MAX + 1);
    refused("sector of a disk", &|disk| disk.sector_log2 = 8);
    refused("sector of a disk", &|disk| disk.sector_log2 = 17);
    refused("disk", &|disk| disk.since = (Epoch(0), Seq(1)));
    refused("disk", &|disk| disk.since = (Epoch(1), Seq(0)));
    refused("disk", &|disk| disk.since = (Epoch(1), Seq(u64::MAX)));
    refused("disk order", &|disk| disk.index = 1);
    refused("boot rank", &|disk| disk.boot_rank = 2);
    refused("volume of two disks", &|disk| disk.volume = Some(samples::OTHER_VOLUME));
    let ok = |change: &dyn Fn(&mut Disk)| machine_of(|body| change(&mut body.disks[0])).unwrap();
    ok(&|disk| disk.size_bytes = VOLUME_BYTES_MAX);
    ok(&|disk| disk.sector_log2 = 16);
    ok(&|disk| (disk.state, disk.volume, disk.size_bytes) = (DiskState::Excluded, None, 0));
    ok(&|disk| disk.boot_rank = 0);
    out_of_range(machine_of(|body| body.disks.clear()), "machine disks");
    out_of_range(machine_of(|body| body.disks[1].boot_rank = 1), "boot rank");
    machine_of(|body| body.disks[1].boot_rank = 2).unwrap();
    out_of_range(machine_of(|body| body.firmware = Firmware::Bios), "firmware of secure boot");
    // What a reader says of the same bytes.
    out_of_range(machine_with(DISK, &[0; 16]), "volume of a disk");
    out_of_range(machine_with(DISK + 40, &[1]), "disk order");
    out_of_range(machine_with(DISK + 32, &[0; 8]), "disk");
    out_of_range(machine_with(HEAD + 20, &[1]), "firmware of secure boot");
    for at in (54..64).map(|at| GONE + at).chain((22..32).map(|at| HEAD + at)) {
        let error = machine_with(at, &[1]).unwrap_err();
        assert!(matches!(error, DecodeError::Reserved { .. }), "{at}: {error}");
    }
    let disks = split(&samples::machine_body().encode());
    let without: Vec<Section> =
        disks.into_iter().filter(|section| section.number != 4 && section.number != 5).collect();
    out_of_range(MachineBody::decode(&join(&without)), "machine disks");
}

#[test]
fn a_member_has_legal_values() {
    let refused = |what: &str, change: &dyn Fn(&mut GroupBody)| {
        out_of_range(group_of(change), what);
    };
    refused("group members", &|body| body.members.clear());
    refused("machines of a group", &|body| body.kind = GroupKind::Machine);
    refused("member order", &|body| body.members.swap(0, 1));
    refused("member order", &|body| body.members[2].volume = VOLUME);
    refused("member order", &|body| body.members[1] = body.members[0]);
    refused("volume of a member", &|body| body.members[0].volume = VolumeId([0; 16]));
    refused("member", &|body| body.members[0].since = (Epoch(0), Seq(1)));
    group_of(|body| {
        body.members.pop();
        body.kind = GroupKind::Machine;
    })
    .unwrap();
    out_of_range(group_with(MEMBER + 40, &[0; 8]), "member");
    out_of_range(group_with(MEMBER + 16, &[0xff; 16]), "member order");
    for at in (50..56).map(|at| MEMBER + at).chain((10..32).map(|at| HEAD + at)) {
        let error = group_with(at, &[1]).unwrap_err();
        assert!(matches!(error, DecodeError::Reserved { .. }), "{at}: {error}");
    }
}

#[test]
fn codes_and_flags_of_a_later_program_are_named() {
    let newer = |what, feature, bit: u8| DecodeError::Newer { what, feature, bit: bit.into() };
    for code in 0..=255_u8 {
        let read = machine_with(HEAD + 20, &[code, 0]).map(|body| body.firmware.code());
        // From 128 on it is not known, and kept.
        let is_taken = |known| code <= known || code >= OtherCode::FIRST;
        let expected = if is_taken(2) { Ok(code) } else { Err(newer("machine", "firmware", code)) };
        assert_eq!(read, expected);
        let read = machine_with(DISK + 45, &[code]).map(|body| body.disks[0].role.code());
        let expected =
            if is_taken(4) { Ok(code) } else { Err(newer("machine disk", "role", code)) };
        assert_eq!(read, expected);
        if code > 3 {
            let read = machine_with(DISK + 46, &[code]);
            assert_eq!(read, Err(newer("machine disk", "state", code)));
        }
        if code > 2 {
            assert_eq!(group_with(HEAD + 8, &[code]), Err(newer("group", "kind", code)));
            let read = group_with(MEMBER + 48, &[code]);
            assert_eq!(read, Err(newer("group member", "state", code)));
        }
    }
    let mut later = machine_with(HEAD + 20, &[200, 0]).unwrap();
    assert_eq!(later.firmware.word(), "other");
    later.disks[0].role = machine_with(DISK + 45, &[201]).unwrap().disks[0].role;
    let again = MachineBody::decode(&later.encode()).unwrap();
    assert_eq!((again.firmware.code(), again.disks[0].role.code()), (200, 201));
    assert_eq!(again.disks[0].role.word(), "other");
    out_of_range(machine_with(DISK + 46, &[0]), "machine disk");
    out_of_range(group_with(HEAD + 8, &[0]), "group");
    out_of_range(group_with(MEMBER + 48, &[0]), "group member");
    for bit in 0..8_u8 {
        let flag = 1 << bit;
        let head = machine_with(HEAD + 21, &[1 | flag]);
        let disk = machine_with(DISK + 47, &[flag]);
        let (group, member) = (group_with(HEAD + 9, &[flag]), group_with(MEMBER + 49, &[flag]));
        if bit >= 4 {
            assert_eq!((head, disk), (Ok(samples::machine_body()), Ok(samples::machine_body())));
            assert_eq!((group, member), (Ok(samples::group_body()), Ok(samples::group_body())));
            continue;
        }
        if bit > 0 {
            assert_eq!(head, Err(newer("machine", "flag", bit)));
        }
        assert_eq!(disk, Err(newer("machine disk", "flag", bit)));
        assert_eq!(group, Err(newer("group", "flag", bit)));
        assert_eq!(member, Err(newer("group member", "flag", bit)));
    }
}

prop_compose! {
    fn since()(epoch in 1_u64.., seq in seq(), is_said: bool) -> (Epoch, Seq) {
        if is_said { (Epoch(epoch), seq) } else { (Epoch(0), Seq(0)) }
    }
}

prop_compose! {
    /// Its index and its rank are given by its machine.
    fn disk()(
        volume in any::<[u8; 16]>().prop_filter("zeros are no volume", |id| *id != [0; 16]),
        size_bytes in 1..=VOLUME_BYTES_MAX, since in since(),
        sector_log2 in prop_oneof![Just(0_u8), 9..=16_u8],
        role in prop::sample::select(DiskRole::ALL), state in prop::sample::select(DiskState::ALL),
        has_volume: bool, is_boot: bool, texts in vec("[ -~äß€]{0,40}", 3),
    ) -> (bool, Disk) {
        let has_volume = has_volume || state != DiskState::Excluded;
        let [name, label, serial] = [0, 1, 2].map(|at| texts[at].clone());
        (is_boot, Disk {
            index: 0, volume: has_volume.then_some(VolumeId(volume)), size_bytes, since,
            boot_rank: 0, sector_log2, role, state, name, label, serial,
        })
    }
}

proptest! {
    #[test]
    fn any_machine_reads_back(
        time_unix_ms: u64, memory_bytes: u64, processors: u32, is_secure_boot: bool,
        firmware in prop::sample::select(Firmware::ALL), name in "[ -~ä]{1,100}",
        system in "[ -~ß]{0,100}", drawn in vec((disk(), 1..500_u16), 1..20),
    ) {
        let (mut index, mut rank) = (0, 0);
        let mut disks = Vec::new();
        for ((is_boot, disk), step) in drawn {
            rank += u16::from(is_boot);
            disks.push(Disk { index, boot_rank: if is_boot { rank } else { 0 }, ..disk });
            index += step;
        }
        let is_secure_boot = is_secure_boot && firmware == Firmware::Uefi;
        let body = MachineBody {
            time_unix_ms, memory_bytes, processors, firmware, is_secure_boot, name, system, disks,
        };
        prop_assert_eq!(MachineBody::decode(&body.encode()), Ok(body));
    }

    #[test]
    fn any_group_reads_back(
        time_unix_ms: u64, is_of_one: bool, name in "[ -~ä]{1,100}",
        drawn in vec((any::<u8>(), since(), prop::sample::select(MemberState::ALL)), 1..60),
    ) {
        let kind = if is_of_one { GroupKind::Machine } else { GroupKind::Machines };
        let member = |(at, (machine, since, state)): (u16, (u8, (Epoch, Seq), MemberState))| Member {
            machine: MachineId([if is_of_one { 7 } else { machine }; 16]),
            volume: VolumeId((u128::from(at) + 1).to_be_bytes()), since, state,
        };
        let mut members: Vec<Member> = (0..).zip(drawn).map(member).collect();
        members.sort_by_key(|member| (member.machine, member.volume));
        let body = GroupBody { time_unix_ms, kind, name, members };
        prop_assert_eq!(GroupBody::decode(&body.encode()), Ok(body));
    }
}
