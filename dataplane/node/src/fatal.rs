//! Errors that end the node: there is nothing honest left to do but stop and start over from disk.

use farshore_api::exit::Exit;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::Notify;

/// Why the node cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    /// A write or flush of the journal failed (I8).
    #[error("journal {}: {error}; the node stops and starts over from what is on the disk", path.display())]
    Journal {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    /// A log of this node was sealed, and no other can be begun in its place.
    #[error("log {log} was sealed, and no new one can be begun: {error}")]
    Sealed { log: farshore_proto::LogId, error: String },
    /// A slot holds something that this run did not put there.
    #[error("slot {slot} of log {log} is taken; the node starts over to find out by what")]
    Foreign { log: farshore_proto::LogId, slot: farshore_proto::Slot },
    /// A shard's thread is gone.
    #[error("shard {0} stopped")]
    ShardGone(usize),
    /// Segments cannot be built any more.
    #[error("cannot build a segment: {0}")]
    Build(String),
}

impl Cause {
    /// The exit status that tells a supervisor what to do.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Journal { error, .. } if error.kind() == io::ErrorKind::StorageFull => {
                Exit::NoSpace
            }
            Self::Journal { .. } => Exit::InputOutput,
            Self::Sealed { .. } | Self::Foreign { .. } | Self::ShardGone(_) | Self::Build(_) => {
                Exit::Internal
            }
        }
    }
}

/// Where any thread reports a fatal error; the first one counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fatal(Arc<State>);

#[derive(Debug, Default)]
struct State {
    cause: OnceLock<Cause>,
    raised: Notify,
    is_stopping: AtomicBool,
}

impl Fatal {
    /// Reports it. The caller then stops doing anything: no acknowledgement may follow.
    pub(crate) fn raise(&self, cause: Cause) {
        if let Err(later) = self.0.cause.set(cause) {
            tracing::debug!(%later, "one more fatal error");
        }
        self.0.raised.notify_one();
    }

    /// The node was told to stop: from now on the end of a shard is what was asked for.
    pub(crate) fn stopping(&self) {
        self.0.is_stopping.store(true, Ordering::SeqCst);
    }

    /// A shard's task has ended.
    pub(crate) fn shard_ended(&self, shard: usize) {
        if !self.0.is_stopping.load(Ordering::SeqCst) {
            self.raise(Cause::ShardGone(shard));
        }
    }

    /// Waits for the first report.
    pub(crate) async fn raised(&self) -> &Cause {
        loop {
            if let Some(cause) = self.0.cause.get() {
                return cause;
            }
            self.0.raised.notified().await;
        }
    }
}
