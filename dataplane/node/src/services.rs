//! What shards ask of the vault: puts and claims, done on ordinary tokio threads.

use crate::derived::Maps;
use crate::fatal::{Cause, Fatal};
use crate::metrics::Metrics;
use crate::rt::Post;
use crate::shard::Message;
use farshore_proto::frame::RefusalReason;
use farshore_proto::limits::PUTS_IN_FLIGHT_MAX;
use farshore_proto::{LogId, Seq, Slot, VolumeId};
use farshore_vault::claim::{ClaimError, Claimed, Wanted, claim_volume};
use farshore_vault::log::{Foreign, PUT_BACKOFF_MAX, PUT_BACKOFF_MIN, put_until_there};
use farshore_vault::store::Object;
use farshore_vault::{Vault, VaultError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Requests that wait; shards wait with them.
const QUEUE_MAX: usize = 16 * PUTS_IN_FLIGHT_MAX;
/// A mailbox that is full is tried again after this.
const MAILBOX_RETRY: Duration = Duration::from_millis(2);

/// What a shard asks for.
#[derive(Debug)]
pub(crate) enum Request {
    /// Put a segment, until it is there.
    Put {
        shard: usize,
        log: LogId,
        slot: Slot,
        object: Object,
        /// Volume and number of extents of each span in it.
        spans: Vec<(VolumeId, usize)>,
    },
    /// Make a volume this log's own under an epoch.
    Claim { shard: usize, wanted: Wanted },
}

/// Where shards send their requests.
#[derive(Debug, Clone)]
pub(crate) struct Services(Sender<Request>);

impl Services {
    /// The sending end and the queue for [`run`].
    pub(crate) fn new() -> (Self, Receiver<Request>) {
        let (sender, receiver) = channel(QUEUE_MAX);
        (Self(sender), receiver)
    }

    /// Sends a segment; waits while the queue is full. False when the services are gone.
    pub(crate) async fn put(&self, request: Request) -> bool {
        self.0.send(request).await.is_ok()
    }

    /// Sends a claim. A queue that is full loses it: the agent's next hello asks again.
    pub(crate) fn try_claim(&self, request: Request) -> Result<(), Request> {
        self.0.try_send(request).map_err(tokio::sync::mpsc::error::TrySendError::into_inner)
    }
}

/// Carries requests out until all shards are gone.
pub(crate) async fn run(
    vault: Vault,
    mut queue: Receiver<Request>,
    shards: Vec<Post<Message>>,
    metrics: Arc<Metrics>,
    fatal: Fatal,
) {
    let maps = Arc::new(Maps::default());
    tokio::spawn(Arc::clone(&maps).run(vault.clone()));
    while let Some(request) = queue.recv().await {
        let vault = vault.clone();
        match request {
            Request::Put { shard, log, slot, object, spans } => {
                let (post, fatal) = (shards[shard].clone(), fatal.clone());
                let (maps, metrics) = (Arc::clone(&maps), Arc::clone(&metrics));
                tokio::spawn(async move {
                    match put(&vault, &metrics, log, slot, object).await {
                        Ok(()) => {
                            deliver(&post, Message::PutDone { slot }).await;
                            maps.committed(&spans);
                        }
                        Err(cause) => fatal.raise(cause),
                    }
                });
            }
            Request::Claim { shard, wanted } => {
                let (post, metrics) = (shards[shard].clone(), Arc::clone(&metrics));
                tokio::spawn(async move {
                    let outcome = claim(&vault, &metrics, &wanted).await;
                    deliver(&post, Message::Claimed { volume: wanted.volume, outcome }).await;
                });
            }
        }
    }
}

async fn deliver(post: &Post<Message>, message: Message) {
    let mut message = message;
    while let Err(back) = post.try_send(message) {
        message = back;
        tokio::time::sleep(MAILBOX_RETRY).await;
    }
}

/// Puts one segment, however long the store is away.
async fn put(
    vault: &Vault,
    metrics: &Metrics,
    log: LogId,
    slot: Slot,
    object: Object,
) -> Result<(), Cause> {
    let pause = |error: VaultError, backoff: Duration| {
        if backoff == PUT_BACKOFF_MIN || backoff == PUT_BACKOFF_MAX {
            tracing::warn!(%log, %slot, error = %chain(&error), "the vault takes no segments; waiting");
        }
        metrics.set_trouble(Some(format!("the vault takes no segments: {error}")));
        tokio::time::sleep(backoff)
    };
    match put_until_there(vault, log, slot, object, pause).await {
        Ok(()) => {
            metrics.set_trouble(None);
            Ok(())
        }
        Err(Foreign::Sealed) => Err(Cause::Sealed { log }),
        Err(Foreign::Segment) => Err(Cause::Foreign { log, slot }),
    }
}

/// Makes the volume ours under the wanted epoch and returns what the vault holds of it; or what its
/// agent is told.
async fn claim(
    vault: &Vault,
    metrics: &Metrics,
    wanted: &Wanted,
) -> Result<Seq, (RefusalReason, String)> {
    let (volume, epoch) = (wanted.volume, wanted.epoch);
    let error = match claim_volume(vault, wanted).await {
        Ok(Claimed { committed, sealed, ordinal }) => {
            if let Some((log, slot)) = sealed {
                tracing::info!(%volume, %log, %slot, "sealed the log of the epoch before");
            }
            if let Some(ordinal) = ordinal {
                tracing::info!(%volume, %epoch, ordinal, "claimed");
            }
            return Ok(committed);
        }
        Err(error) => error,
    };
    let text = match &error {
        ClaimError::NeedsEpoch { .. } => {
            metrics.want_epoch(volume);
            error.to_string()
        }
        ClaimError::Vault { source, .. } => {
            tracing::warn!(%volume, error = %chain(source), "cannot claim a volume");
            format!("{error}: {source}")
        }
        _ => error.to_string(),
    };
    Err((error.reason(), text))
}

/// An error with its sources, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
