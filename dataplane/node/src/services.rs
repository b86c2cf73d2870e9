//! What shards ask of the vault: puts and claims, done on ordinary tokio threads.

use crate::derived::Maps;
use crate::fatal::{Cause, Fatal};
use crate::metrics::Metrics;
use crate::rt::Post;
use crate::shard::Message;
use bytes::Bytes;
use farshore_proto::epoch::EpochBody;
use farshore_proto::frame::RefusalReason;
use farshore_proto::limits::PUTS_IN_FLIGHT_MAX;
use farshore_proto::{Epoch, ErrorKind, LogId, Seq, Slot, VolumeId};
use farshore_vault::catalog::end_of_volume;
use farshore_vault::epoch::{Claim, claim, read_epochs};
use farshore_vault::log::{Foreign, PutOutcome, put_segment, seal};
use farshore_vault::{Vault, VaultError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Requests that wait; shards wait with them.
const QUEUE_MAX: usize = 16 * PUTS_IN_FLIGHT_MAX;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
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
        bytes: Bytes,
        /// Volume and number of extents of each span in it.
        spans: Vec<(VolumeId, usize)>,
    },
    /// Make a volume this log's own under an epoch.
    Claim {
        shard: usize,
        log: LogId,
        volume: VolumeId,
        epoch: Epoch,
        size_bytes: u64,
        first_slot: Slot,
        label: String,
    },
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
            Request::Put { shard, log, slot, bytes, spans } => {
                let (post, fatal) = (shards[shard].clone(), fatal.clone());
                let (maps, metrics) = (Arc::clone(&maps), Arc::clone(&metrics));
                tokio::spawn(async move {
                    match put_until_there(&vault, &metrics, log, slot, bytes).await {
                        Ok(()) => {
                            deliver(&post, Message::PutDone { slot }).await;
                            maps.committed(&spans);
                        }
                        Err(cause) => fatal.raise(cause),
                    }
                });
            }
            Request::Claim { shard, log, volume, epoch, size_bytes, first_slot, label } => {
                let (post, metrics) = (shards[shard].clone(), Arc::clone(&metrics));
                let wanted = Wanted { log, volume, epoch, size_bytes, first_slot, label };
                tokio::spawn(async move {
                    let outcome = claim_volume(&vault, &metrics, &wanted).await;
                    deliver(&post, Message::Claimed { volume, outcome }).await;
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

/// Puts one segment, however long the store is away: the frames in it are journaled, and the cache
/// limit keeps more from coming.
async fn put_until_there(
    vault: &Vault,
    metrics: &Metrics,
    log: LogId,
    slot: Slot,
    bytes: Bytes,
) -> Result<(), Cause> {
    let mut backoff = BACKOFF_MIN;
    loop {
        match put_segment(vault, log, slot, bytes.clone()).await {
            Ok(PutOutcome::Committed) => {
                metrics.set_trouble(None);
                return Ok(());
            }
            Ok(PutOutcome::Foreign(Foreign::Sealed)) => return Err(Cause::Sealed { log }),
            Ok(PutOutcome::Foreign(Foreign::Segment)) => {
                return Err(Cause::Foreign { log, slot });
            }
            Err(error) => {
                if backoff == BACKOFF_MIN || backoff == BACKOFF_MAX {
                    tracing::warn!(%log, %slot, error = %chain(&error), "the vault takes no segments; waiting");
                }
                metrics.set_trouble(Some(format!("the vault takes no segments: {error}")));
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}

struct Wanted {
    log: LogId,
    volume: VolumeId,
    epoch: Epoch,
    size_bytes: u64,
    first_slot: Slot,
    label: String,
}

type Refused = (RefusalReason, String);

/// Makes the volume ours under the wanted epoch and returns what the vault holds of it.
async fn claim_volume(vault: &Vault, metrics: &Metrics, wanted: &Wanted) -> Result<Seq, Refused> {
    let volume = wanted.volume;
    let refuse = |error: VaultError| {
        let reason = match error.kind() {
            ErrorKind::Corrupt => RefusalReason::Protocol,
            _ => RefusalReason::Unavailable,
        };
        tracing::warn!(%volume, error = %chain(&error), "cannot claim a volume");
        (reason, format!("the vault cannot be asked about volume {volume}: {error}"))
    };
    let epochs = read_epochs(vault, volume).await.map_err(refuse)?;
    let Some(last) = epochs.last() else {
        return make(vault, wanted, Seq(0)).await.map_err(refuse)?;
    };
    if last.epoch > wanted.epoch {
        let text = format!("epoch {} owns volume {volume}", last.epoch);
        return Err((RefusalReason::Fenced, text));
    }
    if last.size_bytes > wanted.size_bytes {
        let text = format!(
            "the disk has {} bytes, the vault recorded {} for volume {volume}; protect the right \
             disk, or make this one large enough",
            wanted.size_bytes, last.size_bytes
        );
        return Err((RefusalReason::Size, text));
    }
    if last.log == wanted.log && last.epoch == wanted.epoch {
        return Ok(end_of_volume(vault, volume).await.map_err(refuse)?.last_seq);
    }
    if last.epoch == wanted.epoch {
        metrics.want_epoch(volume);
        let text = format!("volume {volume} needs a new epoch: log {} holds this one", last.log);
        return Err((RefusalReason::Unavailable, text));
    }
    if last.log != wanted.log {
        // Whoever wrote it may still run: after the seal nothing of it counts any more.
        let slot = seal(vault, last.log, last.first_slot).await.map_err(refuse)?;
        tracing::info!(%volume, log = %last.log, %slot, "sealed the log of the epoch before");
    }
    let end = end_of_volume(vault, volume).await.map_err(refuse)?;
    make(vault, wanted, end.last_seq).await.map_err(refuse)?
}

async fn make(
    vault: &Vault,
    wanted: &Wanted,
    committed: Seq,
) -> Result<Result<Seq, Refused>, VaultError> {
    let body = EpochBody {
        epoch: wanted.epoch,
        log: wanted.log,
        first_slot: wanted.first_slot,
        first_seq: committed.next(),
        size_bytes: wanted.size_bytes,
        label: wanted.label.clone(),
    };
    Ok(match claim(vault, wanted.volume, &body).await? {
        Claim::Claimed { ordinal } => {
            tracing::info!(volume = %wanted.volume, epoch = %wanted.epoch, ordinal, "claimed");
            Ok(committed)
        }
        Claim::Lost { newest } => {
            let text = format!("epoch {} owns volume {}", newest.epoch, wanted.volume);
            Err((RefusalReason::Fenced, text))
        }
    })
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
