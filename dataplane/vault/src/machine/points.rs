//! The recovery points of a machine, and which of them have all of its disks: decided from the vault alone.
//!
//! Rules: `docs/formats/machine.md`.

use super::revisions::{self, Revision};
use super::{Found, find_all};
use crate::catalog::{MarkList, Marked, list_marks_to_damage};
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::vault::Vault;
use crate::view::Point;
use farshore_proto::group::GroupBody;
use farshore_proto::machine::{DiskState, MachineBody};
use farshore_proto::mark::MarkGroup;
use farshore_proto::{Epoch, ErrorKind, MachineId, MarkAttempt, MarkKind, PointId, Seq, VolumeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// Members that are named as lacking, of a point that lacks more.
const MISSING_NAMED_MAX: usize = 8;

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
    /// Which disks were protected then is not known: a revision of the machine is missing or does not open.
    Revision {
        /// The revision.
        object: ObjectName,
    },
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member { member, members } => {
                write!(f, "member {} of {members} is not in the vault", u32::from(*member) + 1)
            }
            Self::Twice { member } => {
                write!(f, "member {} is there more than once", u32::from(*member) + 1)
            }
            Self::Contradiction => f.write_str("its volumes say different things of it"),
            Self::Disk { index, volume } => write!(f, "disk {index} (volume {volume}) lacks it"),
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
            MarkKind::Crash => 1,
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

/// The recovery points of a machine as far as the streams of its volumes can be read.
#[derive(Debug)]
pub struct MachinePoints {
    /// In order.
    pub points: Vec<MachinePoint>,
    /// Volumes whose streams end in damage, or have lost something: there may have been more points.
    pub broken: Vec<(VolumeId, VaultError)>,
    /// Where points lack members: why a group cannot be read. What they lack may be on volumes that it names.
    pub unread_groups: Vec<VaultError>,
}

/// Lists the recovery points of a machine, in order, complete or not. `newest` is what it is made of now.
///
/// Costs the tables of all segments of its volumes; if an attempt lacks members, also those of the other volumes of its
/// groups.
///
/// # Errors
/// `Unavailable`; `Limit`.
pub async fn list_points(
    vault: &Vault,
    machine: MachineId,
    newest: &Revision<MachineBody>,
) -> Result<MachinePoints, VaultError> {
    let mut gathered = Gathered::default();
    let mut broken = Vec::new();
    for (disk, volume) in newest.body.volumes() {
        let list = marks_of(vault, volume).await?;
        gathered.add_disk(disk.index, volume, list.marks);
        broken.extend(list.broken.map(|error| (volume, error)));
    }
    let mut unread_groups = Vec::new();
    if gathered.lacks_members() {
        for volume in others(vault, machine, &newest.body, &mut unread_groups).await? {
            gathered.add_other(&marks_of(vault, volume).await?.marks);
        }
    }
    let mut history = History::new(vault, machine, newest);
    let mut points = Vec::with_capacity(gathered.order.len());
    for key in gathered.in_order() {
        let Some(found) = gathered.found.remove(&key) else { continue };
        points.push(found.judge(key, &mut history).await?);
    }
    Ok(MachinePoints { points, broken, unread_groups })
}

/// The marks of a volume; none of one that the vault does not know.
async fn marks_of(vault: &Vault, volume: VolumeId) -> Result<MarkList, VaultError> {
    match list_marks_to_damage(vault, volume).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok(MarkList { marks: Vec::new(), broken: None })
        }
        list => list,
    }
}

/// The volumes of other machines that are, or were, marked with those of this one, as far as groups can be read.
async fn others(
    vault: &Vault,
    machine: MachineId,
    body: &MachineBody,
    unread: &mut Vec<VaultError>,
) -> Result<BTreeSet<VolumeId>, VaultError> {
    let mut volumes = BTreeSet::new();
    for (_, Found { revision, broken, .. }) in find_all::<GroupBody>(vault).await? {
        unread.extend(broken);
        let members = revision.map(|revision| revision.body.members).unwrap_or_default();
        if members.iter().any(|member| member.machine == machine) {
            volumes.extend(members.iter().map(|member| member.volume));
        }
    }
    for (_, own) in body.volumes() {
        volumes.remove(&own);
    }
    Ok(volumes)
}

/// What makes marks one point: the attempt, or, of a mark alone, where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    Attempt(MarkAttempt),
    Alone(VolumeId, Seq),
}

/// The marks of one point.
#[derive(Debug, Default)]
struct Marks {
    disks: Vec<DiskPoint>,
    /// How often each member is there.
    members: BTreeMap<u16, u32>,
    /// How many members there are, as each mark says.
    sizes: BTreeSet<u16>,
}

/// The points of a machine while its volumes are read.
#[derive(Debug, Default)]
struct Gathered {
    found: HashMap<Key, Marks>,
    /// The points of each disk, in the order of its stream.
    order: Vec<Vec<Key>>,
}

impl Gathered {
    fn add_disk(&mut self, index: u16, volume: VolumeId, marks: Vec<Marked>) {
        let mut order = Vec::with_capacity(marks.len());
        for Marked { point, group } in marks {
            let key = match group {
                MarkGroup::ALONE => Key::Alone(volume, point.seq),
                MarkGroup { attempt, .. } => Key::Attempt(attempt),
            };
            let marks = self.found.entry(key).or_default();
            marks.disks.push(DiskPoint { index, volume, point });
            *marks.members.entry(group.member).or_default() += 1;
            marks.sizes.insert(group.members);
            order.push(key);
        }
        self.order.push(order);
    }

    /// Counts the marks of a volume of another machine that belong to attempts found before.
    fn add_other(&mut self, marks: &[Marked]) {
        for Marked { group, .. } in marks {
            if let Some(marks) = self.found.get_mut(&Key::Attempt(group.attempt)) {
                *marks.members.entry(group.member).or_default() += 1;
                marks.sizes.insert(group.members);
            }
        }
    }

    fn lacks_members(&self) -> bool {
        self.found.values().any(|marks| marks.missing().next().is_some())
    }

    /// First those of the first disk; then, disk by disk, each further one in front of the next of that disk that has
    /// its place already, or at the end.
    fn in_order(&mut self) -> Vec<Key> {
        let mut order: Vec<Key> = Vec::new();
        for stream in std::mem::take(&mut self.order) {
            let placed: HashMap<Key, usize> = order.iter().copied().zip(0..).collect();
            let mut in_front: BTreeMap<usize, Vec<Key>> = BTreeMap::new();
            let mut next = order.len();
            for key in stream.into_iter().rev() {
                match placed.get(&key) {
                    Some(place) => next = *place,
                    None => in_front.entry(next).or_default().push(key),
                }
            }
            let mut merged = Vec::with_capacity(order.len());
            for place in 0..=order.len() {
                merged.extend(in_front.remove(&place).into_iter().flatten().rev());
                merged.extend(order.get(place));
            }
            order = merged;
        }
        // One that a disk has twice would be there twice.
        let mut seen = BTreeSet::new();
        order.retain(|key| seen.insert(*key));
        order
    }
}

impl Marks {
    /// The first of the members that are not there, by the largest number that a mark says.
    fn missing(&self) -> impl Iterator<Item = (u16, u16)> {
        let members = self.sizes.last().copied().unwrap_or(0);
        let is_missing = |member: &u16| !self.members.contains_key(member);
        let missing = (0..members).filter(is_missing).take(MISSING_NAMED_MAX);
        missing.map(move |member| (member, members))
    }

    /// Says what the point lacks.
    async fn judge(
        mut self,
        key: Key,
        history: &mut History<'_>,
    ) -> Result<MachinePoint, VaultError> {
        self.disks.sort_by_key(|disk| disk.index);
        let id = self.disks[0].point.id;
        let mut lacking: Vec<Lack> =
            self.missing().map(|(member, members)| Lack::Member { member, members }).collect();
        let twice = self.members.iter().filter(|(_, count)| **count > 1);
        lacking.extend(twice.map(|(member, _)| Lack::Twice { member: *member }));
        if self.sizes.len() > 1 || self.disks.iter().any(|disk| disk.point.id != id) {
            lacking.push(Lack::Contradiction);
        }
        lacking.extend(history.lacking(&self.disks).await?);
        let attempt = match key {
            Key::Attempt(attempt) => Some(attempt),
            Key::Alone(..) => None,
        };
        Ok(MachinePoint { id, attempt, disks: self.disks, lacking })
    }
}

/// What the machine was made of at its points: its newest revision, and those before it as far as they are asked for.
struct History<'a> {
    vault: &'a Vault,
    machine: MachineId,
    /// From the newest down.
    read: Vec<(u64, MachineBody)>,
    /// The one behind those, if it cannot be read.
    unreadable: Option<ObjectName>,
}

impl<'a> History<'a> {
    fn new(vault: &'a Vault, machine: MachineId, newest: &Revision<MachineBody>) -> Self {
        let read = vec![(newest.number, newest.body.clone())];
        Self { vault, machine, read, unreadable: None }
    }

    /// The disks that were protected at a point and do not have it.
    async fn lacking(&mut self, disks: &[DiskPoint]) -> Result<Vec<Lack>, VaultError> {
        let mut at = 0;
        loop {
            while at >= self.read.len() {
                if let Some(object) = &self.unreadable {
                    return Ok(vec![Lack::Revision { object: object.clone() }]);
                }
                self.read_before().await?;
            }
            let (number, body) = &self.read[at];
            if *number == 1 || is_in_force(body, disks) {
                return Ok(lacking_of(body, disks));
            }
            at += 1;
        }
    }

    /// Reads the revision in front of the last that was read.
    async fn read_before(&mut self) -> Result<(), VaultError> {
        let number = self.read.last().map_or(0, |(number, _)| number.saturating_sub(1));
        match revisions::read::<MachineBody>(self.vault, self.machine, number).await {
            Ok(Some(body)) => self.read.push((number, body)),
            Err(error) if error.is_unavailable() => return Err(error),
            Ok(None) | Err(_) => {
                self.unreadable = Some(ObjectName::machine(self.machine, number));
            }
        }
        Ok(())
    }
}

/// Whether no disk that has a point says that its set of disks began behind it.
fn is_in_force(body: &MachineBody, disks: &[DiskPoint]) -> bool {
    let is_since = |since: (Epoch, Seq), point: &Point| since <= (point.epoch, point.seq);
    body.volumes().all(|(disk, volume)| {
        let point = disks.iter().find(|found| found.volume == volume).map(|found| &found.point);
        point.is_none_or(|point| is_since(disk.since, point))
    })
}

fn lacking_of(body: &MachineBody, disks: &[DiskPoint]) -> Vec<Lack> {
    let protected = body.volumes().filter(|(disk, _)| disk.state == DiskState::Protected);
    let lacks = |volume: VolumeId| disks.iter().all(|disk| disk.volume != volume);
    protected
        .filter(|(_, volume)| lacks(*volume))
        .map(|(disk, volume)| Lack::Disk { index: disk.index, volume })
        .collect()
}
