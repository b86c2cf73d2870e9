//! What the machines of this node's volumes are made of, put into the vault beside its work: one at a time, so that it
//! takes nothing from claims and puts. Nothing waits for it; what is lost here is done at the volume's next claim.

use crate::services::chain;
use farshore_proto::VolumeId;
use farshore_vault::Vault;
use farshore_vault::machine::{Described, OneDisk, describe};
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Descriptions that wait.
const QUEUE_MAX: usize = 1024;
/// Between two attempts while the store is away, or others say something else of the machine.
const RETRY: Duration = Duration::from_secs(10);
/// Attempts; then the next claim tries.
const TRIES_MAX: usize = 30;
/// Volumes that are remembered as described; of more, all are asked for again.
const KNOWN_MAX: usize = 1 << 16;

/// Where claims tell of machines.
#[derive(Debug, Clone)]
pub(crate) struct Machines(Sender<OneDisk>);

impl Machines {
    /// The telling end and the queue for [`run`].
    pub(crate) fn new() -> (Self, Receiver<OneDisk>) {
        let (sender, receiver) = channel(QUEUE_MAX);
        (Self(sender), receiver)
    }

    /// Has the vault say what the machine is made of; not if too many wait.
    pub(crate) fn tell(&self, one: OneDisk) {
        let volume = one.volume;
        if self.0.try_send(one).is_err() {
            tracing::debug!(%volume, "its machine is described at its next claim");
        }
    }
}

/// Describes machines until nobody tells of any.
pub(crate) async fn run(vault: Vault, mut queue: Receiver<OneDisk>) {
    let mut known: HashMap<VolumeId, OneDisk> = HashMap::new();
    while let Some(one) = queue.recv().await {
        let is_known = known.get(&one.volume).is_some_and(|told| is_same(told, &one));
        if is_known || !put(&vault, &one).await {
            continue;
        }
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(one.volume, one);
    }
}

fn is_same(told: &OneDisk, one: &OneDisk) -> bool {
    let OneDisk { time_unix_ms, .. } = *told;
    *told == OneDisk { time_unix_ms, ..one.clone() }
}

/// Whether the vault says it now.
async fn put(vault: &Vault, one: &OneDisk) -> bool {
    let OneDisk { machine, volume, .. } = one;
    for _ in 0..TRIES_MAX {
        match describe(vault, one).await {
            Ok(Described::Put { revision }) => {
                tracing::info!(%machine, %volume, revision, "the vault says what the machine is made of");
                return true;
            }
            Ok(Described::Known) => return true,
            Ok(Described::Others) => {
                tracing::warn!(%machine, %volume, "the vault says that the machine has other disks; left as it is");
                return true;
            }
            Ok(Described::Outrun) => tokio::time::sleep(RETRY).await,
            Err(error) if error.is_unavailable() => tokio::time::sleep(RETRY).await,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(%machine, %volume, %error, "cannot say in the vault what a machine is made of");
                return false;
            }
        }
    }
    tracing::warn!(%machine, %volume, "what a machine is made of is said at its next claim: the store is away, or others are always first");
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::MachineId;
    use farshore_proto::machine::MachineBody;
    use farshore_vault::layout::ObjectName;
    use farshore_vault::machine::{Revised, find};
    use farshore_vault::testing::{World, counted};

    #[tokio::test(start_paused = true)]
    async fn a_description_that_others_outrun_is_put_later() {
        let world = World::new(1, 1).await;
        let (store, others) = counted(&world.vault);
        let vault = Vault::open(&store, &world.recovery).await.unwrap();
        let (machine, volume) = (MachineId([5; 16]), world.volumes[0].id);
        let (name, disk) = ("web-1".to_owned(), "/dev/vda".to_owned());
        let one = OneDisk { machine, name, volume, size_bytes: 1 << 20, disk, time_unix_ms: 7 };
        assert!(put(&world.vault, &one).await);
        let mut body = newest(&vault, machine).await;
        body.name = "theirs".to_owned();
        for revision in 2..12 {
            body.memory_bytes = revision;
            let (number, key) = vault.newest_key();
            let sealed = body.seal(vault.id(), machine, revision, key, number).unwrap();
            let name = ObjectName::machine(machine, revision);
            others.outrun(&name, world.file(&name), sealed);
        }
        let one = OneDisk { size_bytes: 2 << 20, ..one };
        assert!(put(&vault, &one).await);
        let body = newest(&vault, machine).await;
        assert_eq!((body.memory_bytes, body.name.as_str()), (11, "web-1"));
        assert_eq!(body.disks[0].size_bytes, 2 << 20);
    }

    async fn newest(vault: &Vault, machine: MachineId) -> MachineBody {
        let found = find::<MachineBody>(vault, machine).await.unwrap().unwrap();
        found.into_newest().unwrap().unwrap().body
    }
}
