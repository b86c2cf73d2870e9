//! One point of a machine, found without reading its history: the newest complete one from the ends of the streams
//! backwards, and one that is known by its id.
//!
//! Revisions are taken from the newest down. A point of which one is in force, and which is complete, is on each
//! disk that the revision calls protected; so what is behind it on any of them was read, and whatever of that is
//! complete was found first. A disk of which nothing further back can have the revision in force ends the search under that one.

use super::gather::{Gathered, Key, Marks};
use super::history::{History, protected};
use super::point::{DiskPoint, MachinePoint};
use super::points::others;
use super::revisions::Revision;
use crate::catalog::{MarkTail, find_mark};
use crate::chain::Hole;
use crate::error::VaultError;
use crate::limits::VOLUMES_AT_ONCE;
use crate::vault::Vault;
use farshore_proto::machine::MachineBody;
use farshore_proto::{Epoch, MachineId, PointId, Seq, VolumeId};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The newest complete point of a machine.
#[derive(Debug)]
pub struct Newest {
    /// The point, if there is one.
    pub point: Option<MachinePoint>,
    /// Points behind it that lack something.
    pub passed_over: usize,
    /// Volumes whose streams end in damage, of those that were read: there may be a newer point.
    pub broken: Vec<(VolumeId, VaultError)>,
    /// Why a group, or another machine's volume, cannot be read: what lacks members may lack none.
    pub unread: Vec<VaultError>,
    /// Volumes at whose ends a slot is missing though later ones exist, of those that were read.
    pub holes: Vec<(VolumeId, Hole)>,
}

/// Finds the newest point of a machine that has all of its disks. `newest` is what it is made of now.
///
/// Reads what lies behind the newest maps of its volumes, and further back only as long as points lack something.
///
/// # Errors
/// `Unavailable`; `Limit`.
pub async fn find_newest(
    vault: &Vault,
    machine: MachineId,
    newest: &Revision<MachineBody>,
) -> Result<Newest, VaultError> {
    let mut history = History::new(vault, machine, newest);
    let (own, others) = (BTreeMap::new(), None);
    let mut search = Search { vault, machine, newest, own, others, unread: Vec::new() };
    let mut found = None;
    for at in 0.. {
        let Some(body) = history.at(at).await? else { break };
        let set: Vec<Member> =
            protected(body).map(|(disk, volume)| Member { volume, since: disk.since }).collect();
        // Without a disk there is no point.
        if set.is_empty() {
            continue;
        }
        found = search.under(&set, &mut history).await?;
        if found.is_some() {
            break;
        }
    }
    let (point, passed_over) = found.unzip();
    let holes = search.own.iter().filter_map(|(volume, tail)| Some((*volume, tail.hole()?)));
    let holes = holes.collect();
    let mut unread = search.unread;
    for tail in search.others.into_iter().flat_map(BTreeMap::into_values) {
        unread.extend(tail.into_broken());
    }
    let broken = search.own.into_iter();
    let broken = broken.filter_map(|(volume, tail)| Some((volume, tail.into_broken()?))).collect();
    Ok(Newest { point, passed_over: passed_over.unwrap_or(0), broken, unread, holes })
}

/// A disk that a revision calls protected.
struct Member {
    volume: VolumeId,
    since: (Epoch, Seq),
}

type Tails = BTreeMap<VolumeId, MarkTail>;

/// What was read so far.
struct Search<'a> {
    vault: &'a Vault,
    machine: MachineId,
    newest: &'a Revision<MachineBody>,
    /// Of the machine's volumes.
    own: Tails,
    /// Of those that its groups name besides, once they are needed.
    others: Option<Tails>,
    /// Groups that cannot be read.
    unread: Vec<VaultError>,
}

impl Search<'_> {
    /// The newest complete point that has all disks of a set, and how many behind it lack something.
    async fn under(
        &mut self,
        set: &[Member],
        history: &mut History<'_>,
    ) -> Result<Option<(MachinePoint, usize)>, VaultError> {
        let unopened = set.iter().map(|disk| disk.volume);
        let unopened: Vec<_> = unopened.filter(|volume| !self.own.contains_key(volume)).collect();
        self.own.extend(open_all(self.vault, unopened).await?);
        loop {
            let over: HashSet<VolumeId> = set
                .iter()
                .filter(|disk| self.own[&disk.volume].before() < Some(disk.since))
                .map(|disk| disk.volume)
                .collect();
            let Looked { found, unread } = self.look(set, history).await?;
            if found.is_some() && unread.is_empty() {
                return Ok(found);
            }
            if let Some(tails) = &mut self.others {
                extend_all(self.vault, tails, |volume| unread.contains(volume)).await?;
            }
            if found.is_some() {
                continue;
            }
            let is_hopeless =
                set.iter().any(|disk| over.contains(&disk.volume) && self.is_empty(disk));
            if is_hopeless || over.len() == set.len() && unread.is_empty() {
                return Ok(None);
            }
            let is_read = |volume: &VolumeId| {
                set.iter().any(|disk| disk.volume == *volume) && !over.contains(volume)
            };
            extend_all(self.vault, &mut self.own, is_read).await?;
        }
    }

    /// Whether nothing that was read of a disk can have the revision in force.
    fn is_empty(&self, disk: &Member) -> bool {
        let mut points = self.own[&disk.volume].marks().iter().map(|marked| marked.point);
        !points.any(|point| (point.epoch, point.seq) >= disk.since)
    }

    /// Looks at what was read.
    async fn look(
        &mut self,
        set: &[Member],
        history: &mut History<'_>,
    ) -> Result<Looked, VaultError> {
        let mut gathered = Gathered::default();
        for (disk, volume) in self.newest.body.volumes() {
            if let Some(tail) = self.own.get(&volume) {
                gathered.add_disk(disk.index, volume, tail.marks());
            }
        }
        if gathered.lacks_members() && self.others.is_none() {
            let body = &self.newest.body;
            let volumes = others(self.vault, self.machine, body, &mut self.unread).await?;
            self.others = Some(open_all(self.vault, volumes).await?);
        }
        let order = gathered.in_order();
        let reached = self.reached(&order);
        let (mut behind, mut unread) = (Vec::new(), HashSet::new());
        for (at, key) in order.iter().enumerate().rev() {
            let Some(mut marks) = gathered.take(key) else { continue };
            self.count_others(*key, &mut marks);
            let has_all = set.iter().all(|disk| marks.has(disk.volume));
            if has_all && marks.lacks_members() {
                let short = reached.iter().filter(|(_, from)| from.is_none_or(|from| from > at));
                unread.extend(short.map(|(volume, _)| *volume));
            }
            let point = marks.judge(*key, history).await?;
            if !point.is_complete() {
                behind.push(point);
                continue;
            }
            let passed_over = behind.iter().filter(|later| is_behind(later, &point)).count();
            return Ok(Looked { found: has_all.then_some((point, passed_over)), unread });
        }
        Ok(Looked { found: None, unread })
    }

    /// Volumes of other machines that were not read whole, and from which point of the machine's on they were: what is
    /// behind that one was read, and is there or is not.
    fn reached(&self, order: &[Key]) -> Vec<(VolumeId, Option<usize>)> {
        let places: HashMap<Key, usize> = order.iter().copied().zip(0..).collect();
        let from = |(volume, tail): (&VolumeId, &MarkTail)| {
            tail.before()?;
            let keys = tail.marks().iter().map(|marked| Key::of(*volume, marked));
            Some((*volume, keys.filter_map(|key| places.get(&key).copied()).min()))
        };
        self.others.iter().flatten().filter_map(from).collect()
    }

    /// Counts the members of a point that are on volumes of other machines, as far as those were read.
    fn count_others(&self, key: Key, marks: &mut Marks) {
        let Key::Attempt(attempt) = key else { return };
        let others = self.others.iter().flatten().flat_map(|(_, tail)| tail.marks());
        let members = others.filter(|marked| marked.group.attempt == attempt);
        members.for_each(|marked| marks.count(marked));
    }
}

/// What a look found.
struct Looked {
    /// The newest complete point, if it has all disks, and how many behind it lack something.
    found: Option<(MachinePoint, usize)>,
    /// Volumes of other machines further back in which members may be that points behind it lack, or any if there is none.
    unread: HashSet<VolumeId>,
}

/// Whether a point that stands behind another in their order is behind it: on the disks that both have, if there are any.
fn is_behind(later: &MachinePoint, point: &MachinePoint) -> bool {
    let seq_of = |disk: &DiskPoint| {
        let same = later.disks.iter().find(|other| other.volume == disk.volume);
        same.map(|other| other.point.seq > disk.point.seq)
    };
    let mut shared = point.disks.iter().filter_map(seq_of).peekable();
    shared.peek().is_none() || shared.any(|is_later| is_later)
}

async fn open_all(
    vault: &Vault,
    volumes: impl IntoIterator<Item = VolumeId>,
) -> Result<Tails, VaultError> {
    let tails = stream::iter(volumes)
        .map(|volume| async move { Ok((volume, MarkTail::open(vault, volume).await?)) });
    tails.buffered(VOLUMES_AT_ONCE).try_collect().await
}

async fn extend_all(
    vault: &Vault,
    tails: &mut Tails,
    is_read: impl Fn(&VolumeId) -> bool,
) -> Result<(), VaultError> {
    let tails = tails.iter_mut().filter(|(volume, _)| is_read(volume));
    let read = stream::iter(tails).map(|(_, tail)| tail.extend(vault));
    read.buffer_unordered(VOLUMES_AT_ONCE).try_collect().await
}

/// Finds a point of a machine by its id, if it is complete: by the maps of its volumes, where ids that are ordered by time put it.
/// None says little: the whole list knows what there is of it, if anything.
///
/// # Errors
/// `Unavailable`; `Limit`.
pub async fn find_complete(
    vault: &Vault,
    machine: MachineId,
    newest: &Revision<MachineBody>,
    id: PointId,
) -> Result<Option<MachinePoint>, VaultError> {
    let find = |volumes: Vec<VolumeId>| {
        let marks = stream::iter(volumes).map(move |volume| find_mark(vault, volume, id));
        marks.buffered(VOLUMES_AT_ONCE).try_collect::<Vec<_>>()
    };
    let own: Vec<_> = newest.body.volumes().map(|(disk, volume)| (disk.index, volume)).collect();
    let found = find(own.iter().map(|(_, volume)| *volume).collect()).await?;
    let mut gathered = Gathered::default();
    for ((index, volume), marked) in own.into_iter().zip(found) {
        gathered.add_disk(index, volume, marked.as_slice());
    }
    let order = gathered.in_order();
    let [key] = order.as_slice() else { return Ok(None) };
    let Some(mut marks) = gathered.take(key) else { return Ok(None) };
    if let (Key::Attempt(attempt), true) = (*key, marks.lacks_members()) {
        let volumes = others(vault, machine, &newest.body, &mut Vec::new()).await?;
        let found = find(volumes.into_iter().collect()).await?.into_iter().flatten();
        found.filter(|found| found.group.attempt == attempt).for_each(|found| marks.count(&found));
    }
    let point = marks.judge(*key, &mut History::new(vault, machine, newest)).await?;
    Ok(Some(point).filter(MachinePoint::is_complete))
}

#[cfg(test)]
mod tests;
