//! The marks of a machine's volumes, put together to points.

use super::history::History;
use super::point::{DiskPoint, Lack, MachinePoint};
use crate::catalog::Marked;
use crate::error::VaultError;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::mark::MarkGroup;
use farshore_proto::{MarkAttempt, Seq, VolumeId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Members that are named as lacking, of a point that lacks more.
const MISSING_NAMED_MAX: usize = 8;

/// What makes marks one point: the attempt, or, of a mark alone, where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    Attempt(MarkAttempt),
    Alone(VolumeId, Seq),
}

impl Key {
    /// Of a mark of a volume.
    pub(super) fn of(volume: VolumeId, marked: &Marked) -> Self {
        match marked.group {
            MarkGroup::ALONE => Self::Alone(volume, marked.point.seq),
            MarkGroup { attempt, .. } => Self::Attempt(attempt),
        }
    }
}

/// The marks of one point.
#[derive(Debug, Default)]
pub(super) struct Marks {
    disks: Vec<DiskPoint>,
    /// How often each member is there.
    members: BTreeMap<u16, u32>,
    /// How many members there are, as each mark says.
    sizes: BTreeSet<u16>,
}

/// The points of a machine while its volumes are read.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    found: HashMap<Key, Marks>,
    /// The points of each disk, in the order of its stream.
    order: Vec<Vec<Key>>,
}

impl Gathered {
    /// Adds the marks of a disk, in the order of its stream.
    pub(super) fn add_disk(&mut self, index: u16, volume: VolumeId, marks: &[Marked]) {
        let mut order = Vec::with_capacity(marks.len());
        for marked in marks {
            let key = Key::of(volume, marked);
            let marks = self.found.entry(key).or_default();
            marks.disks.push(DiskPoint { index, volume, point: marked.point });
            marks.count(marked);
            order.push(key);
        }
        self.order.push(order);
    }

    /// Counts the marks of a volume of another machine that belong to attempts found before.
    pub(super) fn add_other(&mut self, marks: &[Marked]) {
        for marked in marks {
            if let Some(marks) = self.found.get_mut(&Key::Attempt(marked.group.attempt)) {
                marks.count(marked);
            }
        }
    }

    /// Whether members of some attempt are not there.
    pub(super) fn lacks_members(&self) -> bool {
        self.found.values().any(Marks::lacks_members)
    }

    /// Takes the marks of a point out.
    pub(super) fn take(&mut self, key: &Key) -> Option<Marks> {
        self.found.remove(key)
    }

    /// First those of the first disk; then, disk by disk, each further one in front of the next of that disk that has
    /// its place already, or at the end.
    pub(super) fn in_order(&mut self) -> Vec<Key> {
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
    /// Counts a member.
    pub(super) fn count(&mut self, marked: &Marked) {
        *self.members.entry(marked.group.member).or_default() += 1;
        self.sizes.insert(marked.group.members);
    }

    /// Whether members are not there.
    pub(super) fn lacks_members(&self) -> bool {
        self.missing().next().is_some()
    }

    /// Whether a volume of the machine has the point.
    pub(super) fn has(&self, volume: VolumeId) -> bool {
        self.disks.iter().any(|disk| disk.volume == volume)
    }

    /// The first of the members that are not there, by the largest number that a mark says.
    fn missing(&self) -> impl Iterator<Item = (u16, u16)> {
        let mut members = self.sizes.last().copied().unwrap_or(0);
        if is_on(Bug::MembersCounted) && self.members.values().sum::<u32>() >= members.into() {
            members = 0;
        }
        let is_missing = |member: &u16| !self.members.contains_key(member);
        let missing = (0..members).filter(is_missing).take(MISSING_NAMED_MAX);
        missing.map(move |member| (member, members))
    }

    /// Says what the point lacks.
    pub(super) async fn judge(
        mut self,
        key: Key,
        history: &mut History<'_>,
    ) -> Result<MachinePoint, VaultError> {
        self.disks.sort_by_key(|disk| disk.index);
        let id = self.disks[0].point.id;
        let mut lacking: Vec<Lack> =
            self.missing().map(|(member, members)| Lack::Member { member, members }).collect();
        let is_counted = is_on(Bug::MembersCounted);
        let twice = self.members.iter().filter(|(_, count)| **count > 1 && !is_counted);
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
