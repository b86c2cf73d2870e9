//! A recovery point of a machine, and what it lacks.

use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::view::Point;
use farshore_proto::{MarkAttempt, MarkKind, PointId, VolumeId};
use std::fmt;

/// A disk at a point of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskPoint {
    /// Which disk of the machine it is, by the machine's newest revision.
    pub index: u16,
    /// The volume that holds it.
    pub volume: VolumeId,
    /// The point of the volume.
    pub point: Point,
}

/// What a point of a machine lacks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lack {
    /// A member of its attempt is on no volume that the machine or its groups name.
    Member {
        /// Which, from 0.
        member: u16,
        /// How many there should be.
        members: u16,
    },
    /// The same, where it may be behind damage.
    HiddenMember {
        /// Which, from 0.
        member: u16,
        /// How many there should be.
        members: u16,
        /// What is damaged.
        damage: String,
    },
    /// Two volumes, or one twice, say that they are the same member.
    Twice {
        /// Which.
        member: u16,
    },
    /// Its volumes say different things of it: how many members there are, or which point it is.
    Contradiction,
    /// A disk that was protected then.
    Disk {
        /// Its index.
        index: u16,
        /// Its volume.
        volume: VolumeId,
    },
    /// The same, where it may be behind damage.
    HiddenDisk {
        /// Its index.
        index: u16,
        /// Its volume.
        volume: VolumeId,
        /// What is damaged.
        damage: String,
    },
    /// No revision of the machine calls a disk protected.
    NoneProtected,
    /// Which disks were protected then is not known: a revision of the machine is missing or does not open.
    Revision {
        /// The revision.
        object: ObjectName,
    },
}

impl Lack {
    /// Whether it may be there, behind damage.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        matches!(self, Self::HiddenMember { .. } | Self::HiddenDisk { .. })
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member { member, members } => {
                write!(f, "member {} of {members} is not in the vault", u32::from(*member) + 1)
            }
            Self::HiddenMember { member, members, damage } => {
                write!(f, "member {} of {members} was not found: {damage}", u32::from(*member) + 1)
            }
            Self::Twice { member } => {
                write!(f, "member {} is there more than once", u32::from(*member) + 1)
            }
            Self::Contradiction => f.write_str("its volumes say different things of it"),
            Self::Disk { index, volume } => write!(f, "disk {index} (volume {volume}) lacks it"),
            Self::HiddenDisk { index, volume, damage } => {
                write!(f, "disk {index} (volume {volume}) may have it: {damage}")
            }
            Self::NoneProtected => {
                f.write_str("no disk was protected then, so it is not known which belong to it")
            }
            Self::Revision { object } => {
                write!(
                    f,
                    "object {object} cannot be read, so it is not known which disks belong to it"
                )
            }
        }
    }
}

/// A recovery point of a machine: of those of its disks that have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachinePoint {
    /// Its id.
    pub id: PointId,
    /// The attempt to mark its volumes at one instant; nothing if one volume was marked alone.
    pub attempt: Option<MarkAttempt>,
    /// The disks that have it, in the order of their indexes; never empty.
    pub disks: Vec<DiskPoint>,
    /// What it lacks; nothing if it is complete.
    pub lacking: Vec<Lack>,
}

impl MachinePoint {
    /// Whether all disks are there, of one instant.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.lacking.is_empty()
    }

    /// The agent's wall clock, of the first disk; for people, never for order.
    #[must_use]
    pub fn time_unix_ms(&self) -> u64 {
        self.disks.first().map_or(0, |disk| disk.point.time_unix_ms)
    }

    /// What it promises: what the disk with the weakest promise does.
    #[must_use]
    pub fn kind(&self) -> MarkKind {
        let promises = |kind: &MarkKind| match kind {
            MarkKind::Scan => 0,
            MarkKind::Crash | MarkKind::Other(_) => 1,
            MarkKind::FileSystem => 2,
            MarkKind::App => 3,
            MarkKind::Final => 4,
        };
        let kinds = self.disks.iter().map(|disk| disk.point.kind);
        kinds.min_by_key(promises).unwrap_or(MarkKind::Scan)
    }

    /// Blocks of all disks that nobody could read.
    #[must_use]
    pub fn unknown_blocks(&self) -> u32 {
        let unknown = self.disks.iter().map(|disk| disk.point.unknown_blocks);
        unknown.fold(0, u32::saturating_add)
    }
}

/// Says of what a point lacks that it may be behind damage, where that is so.
pub(super) fn hide(
    point: &mut MachinePoint,
    broken: &[(VolumeId, VaultError)],
    unread: &[VaultError],
) {
    let of = |wanted: VolumeId| broken.iter().find(|(volume, _)| *volume == wanted);
    let has = |wanted: VolumeId| point.disks.iter().any(|disk| disk.volume == wanted);
    let own = broken.iter().find(|(volume, _)| !has(*volume)).map(|(_, error)| error);
    let elsewhere = own.or(unread.first());
    for lack in &mut point.lacking {
        let hidden = match (&*lack, elsewhere) {
            (&Lack::Member { member, members }, Some(error)) => {
                Lack::HiddenMember { member, members, damage: error.to_string() }
            }
            (&Lack::Disk { index, volume }, _) => match of(volume) {
                Some((_, error)) => Lack::HiddenDisk { index, volume, damage: error.to_string() },
                None => continue,
            },
            _ => continue,
        };
        *lack = hidden;
    }
}
