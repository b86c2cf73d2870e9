//! Group objects: which volumes are marked at one instant.
//!
//! Layout and rules: `docs/formats/group.md`.

use crate::error::DecodeError;
use crate::ids::{Epoch, GroupId, MachineId, Seq, VaultId, VolumeId};
use crate::limits::{GROUP_MEMBERS_MAX, NAME_BYTES_MAX};
use crate::machine::{check_name, check_since, codes, limit, text};
use crate::object::{ObjectKind, ObjectPlace};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::wire::{Put, Reader};
use std::collections::BTreeSet;

const HEAD: SectionKind = SectionKind { number: 1, stride: 32, max: 1, what: "group head" };
const NAME: SectionKind =
    SectionKind { number: 2, stride: 1, max: NAME_BYTES_MAX, what: "group name" };
const MEMBERS: SectionKind =
    SectionKind { number: 3, stride: 56, max: GROUP_MEMBERS_MAX, what: "group members" };

/// The place of a revision of a group.
#[must_use]
pub fn place(vault: VaultId, group: GroupId, revision: u64) -> ObjectPlace {
    ObjectPlace { kind: ObjectKind::Group, vault, subject: group.0, number: revision, part: 0 }
}

codes! {
    /// What a group is of.
    GroupKind, "group", "kind",
    1 Machine "machine" "The disks of one machine.",
    2 Machines "machines" "Several machines.",
}

codes! {
    /// Whether a volume is a member.
    MemberState, "group member", "state",
    1 Member "member" "It is marked with the others.",
    2 Left "left" "It was a member.",
}

/// A volume of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The machine whose disk it is.
    pub machine: MachineId,
    /// The volume.
    pub volume: VolumeId,
    /// The place of the volume from which its state is this one; nothing but zeros: from the beginning.
    pub since: (Epoch, Seq),
    /// Whether it is a member.
    pub state: MemberState,
}

/// Which volumes are marked at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupBody {
    /// The writer's wall clock; shown to people, never used for order.
    pub time_unix_ms: u64,
    /// What it is of.
    pub kind: GroupKind,
    /// Its name; not empty.
    pub name: String,
    /// Its members, in the order of machine and volume; at least one.
    pub members: Vec<Member>,
}

impl GroupBody {
    /// Lays the body out.
    ///
    /// # Panics
    /// If it does not [check](Self::check): a bug in the caller.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert_eq!(self.check(), Ok(()), "a group is checked before it is laid out");
        let mut out = SectionWriter::with_capacity(512);
        out.put(&HEAD, 1, |out| {
            out.put_u64(self.time_unix_ms);
            out.put_u8(self.kind.code());
            out.put_zeros(23);
        });
        out.put(&NAME, self.name.len(), |out| out.put_bytes(self.name.as_bytes()));
        out.put(&MEMBERS, self.members.len(), |out| {
            self.members.iter().for_each(|member| put_member(out, member));
        });
        out.finish()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// `Newer` for what must be understood and is not known here; by the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let sections = Sections::read("group body", bytes, &[HEAD, NAME, MEMBERS])?;
        let mut head = sections.record(&HEAD)?;
        let time_unix_ms = head.u64()?;
        let kind = GroupKind::of_code(head.u8()?)?;
        head.flags("group", 0)?;
        head.reserved(22)?;
        let name = text(NAME.what, sections.bytes(&NAME))?;
        let members = sections.records(&MEMBERS).map(take_member).collect::<Result<_, _>>()?;
        let body = Self { time_unix_ms, kind, name, members };
        body.check()?;
        Ok(body)
    }

    /// Whether it can be laid out: what a reader refuses, nobody writes.
    ///
    /// # Errors
    /// `Limit` or `Range`, by the field that is wrong.
    pub fn check(&self) -> Result<(), DecodeError> {
        check_name(NAME.what, &self.name)?;
        limit(MEMBERS.what, self.members.len(), GROUP_MEMBERS_MAX)?;
        let Some(first) = self.members.first() else {
            return Err(DecodeError::Range { what: MEMBERS.what, value: 0 });
        };
        let is_of_others = |member: &Member| member.machine != first.machine;
        if self.kind == GroupKind::Machine && self.members.iter().any(is_of_others) {
            return Err(DecodeError::Range { what: "machines of a group", value: 2 });
        }
        let mut volumes = BTreeSet::new();
        let is_order = self.members.windows(2).all(|pair| place_of(&pair[0]) < place_of(&pair[1]));
        if !is_order || !self.members.iter().all(|member| volumes.insert(member.volume)) {
            return Err(DecodeError::Range { what: "member order", value: 0 });
        }
        for member in &self.members {
            if member.volume == VolumeId([0; 16]) {
                return Err(DecodeError::Range { what: "volume of a member", value: 0 });
            }
            check_since("member", member.since)?;
        }
        Ok(())
    }
}

fn place_of(member: &Member) -> (MachineId, VolumeId) {
    (member.machine, member.volume)
}

fn put_member(out: &mut Vec<u8>, member: &Member) {
    out.put_bytes(&member.machine.0);
    out.put_bytes(&member.volume.0);
    out.put_u64(member.since.0.0);
    out.put_u64(member.since.1.0);
    out.put_u8(member.state.code());
    out.put_zeros(7);
}

fn take_member(mut reader: Reader<'_>) -> Result<Member, DecodeError> {
    let (machine, volume) = (MachineId(reader.array()?), VolumeId(reader.array()?));
    let since = (Epoch(reader.u64()?), reader.seq("since seq")?);
    let state = MemberState::of_code(reader.u8()?)?;
    reader.flags("group member", 0)?;
    reader.reserved(6)?;
    Ok(Member { machine, volume, since, state })
}
