//! What a machine was made of at its points.

use super::point::{DiskPoint, Lack};
use super::revisions::{self, Revision};
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::vault::Vault;
use crate::view::Point;
use farshore_proto::machine::{Disk, DiskState, MachineBody};
use farshore_proto::{Epoch, MachineId, Seq, VolumeId};

/// What the machine was made of at its points: its newest revision, and those before it as far as they are asked for.
pub(super) struct History<'a> {
    vault: &'a Vault,
    machine: MachineId,
    /// From the newest down.
    read: Vec<(u64, MachineBody)>,
    /// The one behind those, if it cannot be read.
    unreadable: Option<ObjectName>,
}

impl<'a> History<'a> {
    pub(super) fn new(
        vault: &'a Vault,
        machine: MachineId,
        newest: &Revision<MachineBody>,
    ) -> Self {
        let read = vec![(newest.number, newest.body.clone())];
        Self { vault, machine, read, unreadable: None }
    }

    /// A revision, from the newest down; none behind the first, or one that cannot be read.
    pub(super) async fn at(&mut self, at: usize) -> Result<Option<&MachineBody>, VaultError> {
        while at >= self.read.len() && self.unreadable.is_none() && !self.is_whole() {
            self.read_before().await?;
        }
        Ok(self.read.get(at).map(|(_, body)| body))
    }

    /// The disks that were protected at a point and do not have it.
    pub(super) async fn lacking(&mut self, disks: &[DiskPoint]) -> Result<Vec<Lack>, VaultError> {
        for at in 0.. {
            let Some(body) = self.at(at).await? else { break };
            let is_protecting = protected(body).next().is_some();
            let is_in_force = is_in_force(body, disks);
            let is_first = self.is_whole() && at + 1 == self.read.len();
            if is_protecting && (is_in_force || is_first) {
                return Ok(lacking_of(&self.read[at].1, disks));
            }
        }
        Ok(match &self.unreadable {
            Some(object) => vec![Lack::Revision { object: object.clone() }],
            None => vec![Lack::NoneProtected],
        })
    }

    /// Whether the first revision was read.
    fn is_whole(&self) -> bool {
        self.read.last().is_none_or(|(number, _)| *number == 1)
    }

    /// Reads the revision in front of the last that was read.
    async fn read_before(&mut self) -> Result<(), VaultError> {
        let number = self.read.last().map_or(0, |(number, _)| number.saturating_sub(1));
        match revisions::read::<MachineBody>(self.vault, self.machine, number).await {
            Ok(Some(revision)) => self.read.push((number, revision.body)),
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

/// The disks that a revision calls protected.
pub(super) fn protected(body: &MachineBody) -> impl Iterator<Item = (&Disk, VolumeId)> {
    body.volumes().filter(|(disk, _)| disk.state == DiskState::Protected)
}

fn lacking_of(body: &MachineBody, disks: &[DiskPoint]) -> Vec<Lack> {
    let lacks = |volume: VolumeId| disks.iter().all(|disk| disk.volume != volume);
    protected(body)
        .filter(|(_, volume)| lacks(*volume))
        .map(|(disk, volume)| Lack::Disk { index: disk.index, volume })
        .collect()
}
