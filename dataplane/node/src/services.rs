//! What shards ask of the vault: puts, and claims for [`crate::claims`], done on ordinary tokio threads.

use crate::claims::Claimant;
use crate::derived::Maps;
use crate::metrics::Metrics;
use crate::rt::{Post, Unsent};
use crate::shard::Message;
use crate::troubles::Work;
use farshore_engine::claims::Wanted;
use farshore_engine::tenure::PutEnd;
use farshore_proto::checkpoint::CheckpointBody;
use farshore_proto::limits::PUTS_IN_FLIGHT_MAX;
use farshore_proto::{LogId, Slot, VolumeId};
use farshore_vault::log::{Foreign, PUT_BACKOFF_MAX, PUT_BACKOFF_MIN, put_until_there};
use farshore_vault::store::Object;
use farshore_vault::{Vault, VaultError, checkpoint};
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
    /// Put a checkpoint of the log, if the store takes it.
    Checkpoint { shard: usize, log: LogId, slot: Slot, body: CheckpointBody },
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

    /// Sends what is asked for again when it is lost: a claim, a checkpoint. A queue that is full loses it.
    pub(crate) fn offer(&self, request: Request) -> Result<(), Request> {
        self.0.try_send(request).map_err(tokio::sync::mpsc::error::TrySendError::into_inner)
    }
}

/// Carries requests out until all shards are gone.
pub(crate) async fn run(
    vault: Vault,
    mut queue: Receiver<Request>,
    (shards, metrics, maps): (Vec<Post<Message>>, Arc<Metrics>, Arc<Maps>),
    claimant: Arc<Claimant>,
) {
    while let Some(request) = queue.recv().await {
        let vault = vault.clone();
        match request {
            Request::Put { shard, log, slot, object, spans } => {
                let post = shards[shard].clone();
                let (maps, metrics) = (Arc::clone(&maps), Arc::clone(&metrics));
                tokio::spawn(async move {
                    let put = put(&vault, &metrics, log, slot, object).await;
                    let end = put.map_or_else(PutEnd::from, |()| PutEnd::There);
                    deliver(&post, Message::PutEnded { log, slot, end }).await;
                    if end == PutEnd::There {
                        maps.committed(log, slot, &spans);
                    }
                });
            }
            Request::Claim { shard, wanted } => claimant.want(shard, wanted),
            Request::Checkpoint { shard, log, slot, body } => {
                let post = shards[shard].clone();
                tokio::spawn(async move {
                    let written = checkpoint::write(&vault, log, slot, body).await;
                    if let Err(error) = &written {
                        tracing::warn!(%log, %slot, error = %chain(error), "cannot write a checkpoint; starts read more until one is there");
                    }
                    let is_there = written.is_ok();
                    deliver(&post, Message::Checkpointed { log, slot, is_there }).await;
                });
            }
        }
    }
}

/// Sends a message however long its shard is busy; one that is gone takes none, and has told why.
pub(crate) async fn deliver(post: &Post<Message>, message: Message) {
    let mut message = message;
    while let Err(Unsent::Full(back)) = post.try_send(message) {
        message = back;
        tokio::time::sleep(MAILBOX_RETRY).await;
    }
}

/// Puts one segment, however long the store is away; or what the slot holds instead.
async fn put(
    vault: &Vault,
    metrics: &Metrics,
    log: LogId,
    slot: Slot,
    object: Object,
) -> Result<(), Foreign> {
    let work = Work::Put(log, slot);
    let pause = |error: VaultError, backoff: Duration| {
        if backoff == PUT_BACKOFF_MIN || backoff == PUT_BACKOFF_MAX {
            tracing::warn!(%log, %slot, error = %chain(&error), "the vault takes no segments; waiting");
        }
        metrics.troubles().set(work, format!("the vault takes no segments: {error}"));
        tokio::time::sleep(backoff)
    };
    let put = put_until_there(vault, log, slot, object, pause).await;
    metrics.troubles().clear(work);
    put
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::{Mail, mailbox};

    fn revoked(n: u8) -> Message {
        Message::Revoked { volume: VolumeId([n; 16]) }
    }

    #[tokio::test]
    async fn a_message_waits_for_a_busy_shard_and_not_for_one_that_is_gone() {
        let (post, inbox) = mailbox(1);
        assert!(post.try_send(revoked(0)).is_ok());
        let waiting = tokio::spawn({
            let post = post.clone();
            async move { deliver(&post, revoked(1)).await }
        });
        for n in [0, 1] {
            let Mail::Message(Message::Revoked { volume }) = inbox.next().await else {
                panic!("a message of the two");
            };
            assert_eq!(volume, VolumeId([n; 16]));
        }
        waiting.await.unwrap();
        assert!(post.try_send(revoked(2)).is_ok());
        drop(inbox);
        let is_over = tokio::time::timeout(Duration::from_secs(10), deliver(&post, revoked(3)));
        is_over.await.expect("nobody is there to wait for");
    }
}
