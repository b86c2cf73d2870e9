//! Machines and groups: heads, opened bodies, and sealed objects.

use super::derived::plain_head;
use super::sealed::{
    Body, VAULT, in_each_way, must_be, must_be_of_the_body, ring, seal_object, sealer,
};
use crate::later::{self, Strides};
use crate::taken;
use farshore_codec::CodecError;
use farshore_codec::group::open_group;
use farshore_codec::machine::open_machine;
use farshore_proto::group::GroupBody;
use farshore_proto::limits::{
    DISK_TEXT_BYTES_MAX, GROUP_MEMBERS_MAX, MACHINE_DISKS_MAX, NAME_BYTES_MAX, SMALL_BODY_BYTES_MAX,
};
use farshore_proto::machine::MachineBody;
use farshore_proto::object::{ObjectKind, ObjectPlace};
use farshore_proto::{GroupId, MachineId, group as groups, machine as machines};

const MACHINE: MachineId = MachineId([6; 16]);
const MACHINE_REVISION: u64 = 2;
const GROUP: GroupId = GroupId([7; 16]);
const GROUP_REVISION: u64 = 1;

const MACHINE_OBJECT: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/machine.bin");
const GROUP_OBJECT: &[u8] = include_bytes!("../../../../dataplane/codec/testdata/v2/group.bin");
const MACHINE_BODY: &[u8] =
    include_bytes!("../../../../dataplane/proto/testdata/v2/machine-body.bin");
const GROUP_BODY: &[u8] = include_bytes!("../../../../dataplane/proto/testdata/v2/group-body.bin");

/// Where the flags of the first disk and of the first member are.
const DISK_FLAGS: usize = 0x5d + 47;
const MEMBER_FLAGS: usize = 0x54 + 49;

pub(super) fn machine_object(bytes: &[u8]) {
    plain_head(bytes, ObjectKind::Machine);
}

pub(super) fn machine_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/machine-object.bin").to_vec(),
        MACHINE_OBJECT.to_vec(),
    ]
}

pub(super) fn group_object(bytes: &[u8]) {
    plain_head(bytes, ObjectKind::Group);
}

pub(super) fn group_object_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/group-object.bin").to_vec(),
        GROUP_OBJECT.to_vec(),
    ]
}

pub(super) fn machine_body(bytes: &[u8]) {
    let Ok(body) = MachineBody::decode(bytes) else { return };
    let again = |bytes: &[u8]| Ok(MachineBody::decode(bytes)?.encode());
    later::must_be_body(bytes, &body.encode(), later::MACHINE, again);
    assert!((1..=MACHINE_DISKS_MAX).contains(&body.disks.len()));
    assert!((1..=NAME_BYTES_MAX).contains(&body.name.len()));
    assert!(body.disks.windows(2).all(|pair| pair[0].index < pair[1].index));
    for disk in &body.disks {
        let texts = [&disk.name, &disk.label, &disk.serial];
        assert!(texts.iter().all(|text| text.len() <= DISK_TEXT_BYTES_MAX));
        let _ = disk.since.1.next();
    }
    taken();
}

pub(super) fn machine_body_samples() -> Vec<Vec<u8>> {
    with_flags_of_later(MACHINE_BODY, DISK_FLAGS)
}

pub(super) fn group_body(bytes: &[u8]) {
    let Ok(body) = GroupBody::decode(bytes) else { return };
    let again = |bytes: &[u8]| Ok(GroupBody::decode(bytes)?.encode());
    later::must_be_body(bytes, &body.encode(), later::GROUP, again);
    assert!((1..=GROUP_MEMBERS_MAX).contains(&body.members.len()));
    assert!((1..=NAME_BYTES_MAX).contains(&body.name.len()));
    for member in &body.members {
        let _ = member.since.1.next();
    }
    taken();
}

pub(super) fn group_body_samples() -> Vec<Vec<u8>> {
    with_flags_of_later(GROUP_BODY, MEMBER_FLAGS)
}

/// A body, and the same with flags of a later program, which may be ignored.
fn with_flags_of_later(body: &[u8], at: usize) -> Vec<Vec<u8>> {
    let mut of_later = body.to_vec();
    of_later[at] |= 0xf0;
    vec![body.to_vec(), of_later]
}

pub(super) fn sealed_machine(bytes: &[u8]) {
    let ring = ring();
    let place = machines::place(VAULT, MACHINE, MACHINE_REVISION);
    sealed(bytes, place, MACHINE_OBJECT, later::MACHINE, &|object| {
        let opened = open_machine(object, VAULT, MACHINE, MACHINE_REVISION, &ring);
        opened.map(|body| body.encode())
    });
}

pub(super) fn sealed_machine_samples() -> Vec<Vec<u8>> {
    in_each_way(MACHINE_OBJECT, MACHINE_BODY)
}

pub(super) fn sealed_group(bytes: &[u8]) {
    let ring = ring();
    let place = groups::place(VAULT, GROUP, GROUP_REVISION);
    sealed(bytes, place, GROUP_OBJECT, later::GROUP, &|object| {
        let opened = open_group(object, VAULT, GROUP, GROUP_REVISION, &ring);
        opened.map(|body| body.encode())
    });
}

pub(super) fn sealed_group_samples() -> Vec<Vec<u8>> {
    in_each_way(GROUP_OBJECT, GROUP_BODY)
}

/// Opens an object, and lays its body out again.
type Open<'a> = &'a dyn Fn(&[u8]) -> Result<Vec<u8>, CodecError>;

/// An object as found in the place of `golden`, or as somebody with the key sealed it.
fn sealed(bytes: &[u8], place: ObjectPlace, golden: &[u8], strides: Strides, open: Open<'_>) {
    let Some((way, input)) = bytes.split_first() else { return };
    let Some(body) = Body::of(*way, input, SMALL_BODY_BYTES_MAX) else {
        return must_be(open(input).is_ok(), input, golden);
    };
    let own = |out: &mut Vec<u8>| out.extend_from_slice(&[0; 4]);
    let object = seal_object(&mut sealer(&ring(), &place, 0), place, 0, own, &body);
    let Some(object) = object else { return };
    match open(&object) {
        Ok(again) => body.must_hold_but_for_later(&again, strides),
        Err(error) => must_be_of_the_body(&error),
    }
}
