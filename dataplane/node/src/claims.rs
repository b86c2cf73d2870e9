//! Claims of the shards, carried out a few at a time, or those of a node that is gone would leave nothing of the
//! store for the puts of the volumes that are here; and on threads where no put waits for its turn.
//!
//! What a claim comes to is for [`farshore_engine::claims`] to say.

use crate::assignments::Assignments;
use crate::machines::{self, Machines};
use crate::metrics::Metrics;
use crate::rt::Post;
use crate::services::{chain, deliver};
use crate::shard::Message;
use crate::troubles::Work;
use farshore_engine::claims::{
    CLAIMS_AT_ONCE, CLAIMS_WAITING_MAX, Claims, Input, NotOurs, Output, Wanted,
};
use farshore_ingest::claim::{ClaimError, Claimed, SealedLogs, claim_with};
use farshore_proto::{Seq, Stamp};
use farshore_vault::Vault;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;

/// The driver of a node's claims.
#[derive(Debug)]
pub(crate) struct Claimant {
    claims: Mutex<Claims>,
    sealed: SealedLogs,
    vault: Vault,
    shards: Vec<Post<Message>>,
    metrics: Arc<Metrics>,
    machines: Arc<Machines>,
    /// The threads that claims run on.
    aside: Handle,
}

impl Claimant {
    pub(crate) fn new(
        vault: &Vault,
        shards: &[Post<Message>],
        metrics: &Arc<Metrics>,
        assignments: &Arc<Assignments>,
        aside: &Handle,
    ) -> Arc<Self> {
        let machines = Arc::<Machines>::default();
        let (told, table) = (Arc::clone(&machines), Arc::clone(assignments));
        aside.spawn(machines::run(vault.clone(), told, table));
        Arc::new(Self {
            claims: Mutex::new(Claims::new(CLAIMS_AT_ONCE, CLAIMS_WAITING_MAX)),
            sealed: SealedLogs::default(),
            vault: vault.clone(),
            shards: shards.to_vec(),
            metrics: Arc::clone(metrics),
            machines,
            aside: aside.clone(),
        })
    }

    /// A shard wants a volume.
    pub(crate) fn want(self: &Arc<Self>, shard: usize, wanted: Wanted) {
        self.step(Input::Wanted { shard, wanted });
    }

    fn step(self: &Arc<Self>, input: Input) {
        let mut out = Vec::new();
        // A panic inside is a bug of the machine or of this driver: the claims that it leaves are answered.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).step(input, &mut out);
        for output in out {
            match output {
                Output::Claim { number, wanted } => {
                    let claimant = Arc::clone(self);
                    self.aside.spawn(async move {
                        let end = claimant.claim(&wanted).await;
                        claimant.step(Input::Ended { number, end });
                    });
                }
                Output::Tell { shard, log, volume, outcome } => {
                    let post = self.shards[shard].clone();
                    self.aside.spawn(async move {
                        deliver(&post, Message::Claimed { log, volume, outcome }).await;
                    });
                }
                Output::Wish { volume, cause } => self.metrics.wish(volume, cause),
            }
        }
    }

    async fn claim(&self, wanted: &Wanted) -> Result<(Seq, Stamp), NotOurs> {
        let claimed = claim_with(&self.vault, wanted, &self.sealed).await;
        let (volume, epoch) = (wanted.volume, wanted.epoch);
        let (work, troubles) = (Work::Claim(volume), self.metrics.troubles());
        match &claimed {
            Err(error @ ClaimError::Vault { source, .. }) => {
                tracing::warn!(%volume, error = %chain(source), "cannot claim a volume");
                troubles.set(work, format!("{error}: {source}"));
            }
            _ => troubles.clear(work),
        }
        if let Ok(Claimed { sealed, ordinal, .. }) = &claimed {
            if let Some((log, slot)) = sealed {
                tracing::info!(%volume, %log, %slot, "sealed the log of the epoch before");
            }
            if let Some(ordinal) = ordinal {
                tracing::info!(%volume, %epoch, ordinal, "claimed");
            }
            self.machines.claimed(volume, wanted.size_bytes);
        }
        claimed
            .map(|claimed| (claimed.committed, claimed.stamp))
            .map_err(|error| NotOurs::from(&error))
    }
}
