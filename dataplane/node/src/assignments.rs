//! Which volumes this node owns, under which epoch, and who may send them.
//!
//! The control plane says so; the last word is kept on disk, so that replication goes on while it
//! is away (I10). Sessions look here once, at their hello.

use farshore_api::node::{Assignments as Told, NodeVolume};
use farshore_proto::limits::LABEL_BYTES_MAX;
use farshore_proto::{Epoch, VolumeId};
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use uuid::Uuid;

/// What the control plane says of one volume and the agent that may send it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Assigned {
    /// Frames of this epoch only.
    pub(crate) epoch: Epoch,
    /// Milliseconds between two marks.
    pub(crate) mark_interval_ms: u64,
}

/// The table, shared by the shards and the control task.
#[derive(Debug)]
pub(crate) struct Assignments {
    shards: usize,
    volumes: RwLock<BTreeMap<VolumeId, NodeVolume>>,
}

impl Assignments {
    /// An empty table of a node with so many shards.
    pub(crate) fn new(shards: usize) -> Self {
        Self { shards, volumes: RwLock::default() }
    }

    /// Takes what the control plane says; returns the volumes whose sessions must end.
    pub(crate) fn replace(&self, told: &Told) -> Vec<VolumeId> {
        let next: BTreeMap<VolumeId, NodeVolume> =
            told.volumes.iter().map(|volume| (volume.volume.into(), volume.clone())).collect();
        let mut volumes = self.volumes.write().unwrap_or_else(PoisonError::into_inner);
        let revoked = volumes
            .iter()
            .filter(|(id, before)| {
                next.get(id)
                    .is_none_or(|now| now.epoch != before.epoch || now.agent != before.agent)
            })
            .map(|(id, _)| *id)
            .collect();
        *volumes = next;
        revoked
    }

    /// How `agent` may send `volume` here, if it may.
    pub(crate) fn of(&self, volume: VolumeId, agent: Uuid) -> Option<Assigned> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        let known = volumes.get(&volume).filter(|known| known.agent == agent)?;
        Some(Assigned { epoch: Epoch(known.epoch), mark_interval_ms: known.mark_interval_ms })
    }

    /// What people call the volume, for its epoch object.
    pub(crate) fn label(&self, volume: VolumeId) -> String {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        let mut label = volumes.get(&volume).map(|known| known.machine.clone()).unwrap_or_default();
        while label.len() > LABEL_BYTES_MAX {
            label.pop();
        }
        label
    }

    /// The shard that owns a volume. Ids are random, so their bytes spread evenly.
    pub(crate) fn owner(&self, volume: VolumeId) -> usize {
        let bytes = u64::from_le_bytes(std::array::from_fn(|n| volume.0[8 + n]));
        usize::try_from(bytes % self.shards as u64).expect("below the number of shards")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(id: u8, epoch: u64, agent: u128) -> NodeVolume {
        NodeVolume {
            volume: Uuid::from_bytes([id; 16]),
            epoch,
            parent_epoch: None,
            agent: Uuid::from_u128(agent),
            machine: "web1".to_owned(),
            mark_interval_ms: 1000,
        }
    }

    #[test]
    fn revokes_what_is_gone_or_changed_and_nothing_else() {
        let table = Assignments::new(2);
        let told = |volumes| Told { version: 1, volumes };
        let first = vec![volume(1, 1, 9), volume(2, 1, 9), volume(3, 1, 9)];
        assert!(table.replace(&told(first)).is_empty());
        let revoked = table.replace(&told(vec![volume(1, 1, 9), volume(2, 2, 9)]));
        assert_eq!(revoked, [VolumeId([2; 16]), VolumeId([3; 16])]);
        let assigned = Assigned { epoch: Epoch(1), mark_interval_ms: 1000 };
        assert_eq!(table.of(VolumeId([1; 16]), Uuid::from_u128(9)), Some(assigned));
        assert_eq!(table.of(VolumeId([1; 16]), Uuid::from_u128(8)), None, "another agent");
        assert_eq!(table.of(VolumeId([3; 16]), Uuid::from_u128(9)), None);
    }
}
