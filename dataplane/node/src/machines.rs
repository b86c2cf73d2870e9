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
/// Between two attempts while the store is away.
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
            Err(error) if error.is_unavailable() => tokio::time::sleep(RETRY).await,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(%machine, %volume, %error, "cannot say in the vault what a machine is made of");
                return false;
            }
        }
    }
    tracing::warn!(%machine, %volume, "the store is away: what a machine is made of is said at its next claim");
    false
}
