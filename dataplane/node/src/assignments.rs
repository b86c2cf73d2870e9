//! Which volumes this node owns, under which epoch, and who may send them.
//!
//! The control plane says so; the last word is kept on disk, so that replication goes on while it
//! is away (I10). Sessions look here once, at their hello; so once a volume is not in the table, and its
//! shard holds nothing of it, nothing of it comes any more.

use crate::clock::unix_ms;
use farshore_api::node::{Assignments as Told, NodeVolume, ToLetGo};
use farshore_engine::assignments::{Changes, Given, changes};
use farshore_engine::standing::Allowed;
use farshore_proto::limits::LABEL_BYTES_MAX;
use farshore_proto::{Epoch, VolumeId};
use farshore_vault::machine::OneDisk;
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::SystemTime;
use tokio::sync::Notify;
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
    to_let_go: RwLock<Vec<ToLetGo>>,
    changed: Notify,
}

impl Assignments {
    /// An empty table of a node with so many shards.
    pub(crate) fn new(shards: usize) -> Self {
        let changed = Notify::new();
        Self { shards, volumes: RwLock::default(), to_let_go: RwLock::default(), changed }
    }

    /// Waits until the control plane has said something since this was waited for last; for one who waits.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes what the control plane says; returns what that changes.
    pub(crate) fn replace(&self, told: &Told) -> Changes {
        let next: BTreeMap<VolumeId, NodeVolume> =
            told.volumes.iter().map(|volume| (volume.volume.into(), volume.clone())).collect();
        let mut volumes = self.volumes.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *volumes, next);
        let now = volumes.iter().map(|(id, volume)| (*id, given(volume))).collect();
        drop(volumes);
        *self.to_let_go.write().unwrap_or_else(PoisonError::into_inner) = told.to_let_go.clone();
        self.changed.notify_one();
        changes(before.iter().map(|(id, volume)| (*id, given(volume))), &now)
    }

    /// The volumes that the control plane waits for to be let go; none that is assigned.
    pub(crate) fn to_let_go(&self) -> Vec<ToLetGo> {
        let asked = self.to_let_go.read().unwrap_or_else(PoisonError::into_inner).clone();
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        asked.into_iter().filter(|asked| !volumes.contains_key(&asked.volume.into())).collect()
    }

    /// How `agent` may send `volume` here, if it may.
    pub(crate) fn of(&self, volume: VolumeId, agent: Uuid) -> Option<Assigned> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        let known = volumes.get(&volume).filter(|known| known.agent == agent)?;
        Some(Assigned { epoch: Epoch(known.epoch), mark_interval_ms: known.mark_interval_ms })
    }

    /// Who may send `volume` here, and with which certificates.
    pub(crate) fn allowed(&self, volume: VolumeId) -> Option<Allowed<Uuid>> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        let known = volumes.get(&volume)?;
        Some(Allowed { agent: known.agent, generation_min: known.agent_generation_min })
    }

    /// The epoch under which the volume is assigned to this node, if it is.
    pub(crate) fn epoch(&self, volume: VolumeId) -> Option<Epoch> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        volumes.get(&volume).map(|known| Epoch(known.epoch))
    }

    /// What people call the volume, for its epoch object.
    pub(crate) fn label(&self, volume: VolumeId) -> String {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        let mut label = volumes.get(&volume).map(|known| known.machine.clone()).unwrap_or_default();
        label.truncate(label.floor_char_boundary(LABEL_BYTES_MAX));
        label
    }

    /// What is known of the machine of a volume of this size; nothing if the control plane does not say which it is.
    pub(crate) fn machine(&self, volume: VolumeId, size_bytes: u64) -> Option<OneDisk> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        let known = volumes.get(&volume)?;
        Some(OneDisk {
            machine: known.machine_id?.into(),
            name: known.machine.clone(),
            volume,
            size_bytes,
            disk: known.disk.clone(),
            time_unix_ms: unix_ms(SystemTime::now()),
        })
    }

    /// The shard that owns a volume. Ids are random, so their bytes spread evenly.
    pub(crate) fn owner(&self, volume: VolumeId) -> usize {
        let bytes = u64::from_le_bytes(std::array::from_fn(|n| volume.0[8 + n]));
        usize::try_from(bytes % self.shards as u64).expect("below the number of shards")
    }
}

fn given(volume: &NodeVolume) -> Given<Uuid> {
    Given { epoch: Epoch(volume.epoch), agent: volume.agent }
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
            agent_generation_min: 0,
            machine: "web1".to_owned(),
            machine_id: None,
            disk: String::new(),
            mark_interval_ms: 1000,
        }
    }

    /// T14: that its agent was revoked ends sessions; the volume itself stays.
    #[test]
    fn who_may_send_a_volume_and_with_which_certificates_is_the_newest_word() {
        let table = Assignments::new(1);
        for agent_generation_min in [3, u64::MAX] {
            let volume = NodeVolume { agent_generation_min, ..volume(1, 1, 9) };
            let told = Told { version: 1, volumes: vec![volume], to_let_go: Vec::new() };
            assert!(table.replace(&told).revoked.is_empty(), "the volume itself stays");
            let allowed =
                Allowed { agent: Uuid::from_u128(9), generation_min: agent_generation_min };
            assert_eq!(table.allowed(VolumeId([1; 16])), Some(allowed));
            assert_eq!(table.allowed(VolumeId([2; 16])), None);
        }
    }

    #[test]
    fn revokes_what_is_gone_or_changed_and_nothing_else() {
        let table = Assignments::new(2);
        let told = |volumes| Told { version: 1, volumes, to_let_go: Vec::new() };
        let first = vec![volume(1, 1, 9), volume(2, 1, 9), volume(3, 1, 9)];
        assert!(table.replace(&told(first)).revoked.is_empty());
        let revoked = table.replace(&told(vec![volume(1, 1, 9), volume(2, 2, 9)])).revoked;
        assert_eq!(revoked, [VolumeId([2; 16]), VolumeId([3; 16])]);
        let assigned = Assigned { epoch: Epoch(1), mark_interval_ms: 1000 };
        assert_eq!(table.of(VolumeId([1; 16]), Uuid::from_u128(9)), Some(assigned));
        assert_eq!(table.of(VolumeId([1; 16]), Uuid::from_u128(8)), None, "another agent");
        assert_eq!(table.of(VolumeId([3; 16]), Uuid::from_u128(9)), None);
    }

    #[test]
    fn what_is_assigned_is_not_let_go_whoever_asks() {
        let table = Assignments::new(1);
        let ask = |id: u8| ToLetGo { volume: Uuid::from_bytes([id; 16]), epoch: 5 };
        let to_let_go = vec![ask(1), ask(2)];
        table.replace(&Told { version: 1, volumes: vec![volume(1, 1, 9)], to_let_go });
        assert_eq!(table.to_let_go(), [ask(2)]);
        table.replace(&Told { version: 2, volumes: Vec::new(), to_let_go: Vec::new() });
        assert!(table.to_let_go().is_empty(), "it is asked for no more");
    }
}
